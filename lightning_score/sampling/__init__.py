"""Sampling: time grids, predictors, correctors and the samplers made of them."""

from lightning_score.sampling.corrector import (
    BatchLangevin as BatchLangevin,
    Corrector as Corrector,
    FixedLangevin as FixedLangevin,
    Langevin as Langevin,
    LangevinCorrector as LangevinCorrector,
    SampleLangevin as SampleLangevin,
)
from lightning_score.sampling.ends import (
    FinalDenoise as FinalDenoise,
    Initial as Initial,
    KeepNoise as KeepNoise,
    LastMean as LastMean,
    Prior as Prior,
    Tweedie as Tweedie,
    UniformNoise as UniformNoise,
)
from lightning_score.sampling.flow import RK45 as RK45, DormandPrince as DormandPrince, ProbabilityFlow as ProbabilityFlow
from lightning_score.sampling.grid import (
    Geometric as Geometric,
    Karras as Karras,
    ProcessTable as ProcessTable,
    Quadratic as Quadratic,
    Snapped as Snapped,
    TimeGrid as TimeGrid,
    Uniform as Uniform,
)
from lightning_score.sampling.langevin import (
    AnnealedLangevin as AnnealedLangevin,
    AnnealedLangevinStep as AnnealedLangevinStep,
    ConsistentAnnealedLangevin as ConsistentAnnealedLangevin,
    LangevinDynamics as LangevinDynamics,
)
from lightning_score.sampling.metropolis import HMC as HMC, MALA as MALA, UnderdampedLangevin as UnderdampedLangevin
from lightning_score.sampling.noise import NoiseStream as NoiseStream
from lightning_score.sampling.predictor import (
    DDIM as DDIM,
    Ancestral as Ancestral,
    DPMSolver2M as DPMSolver2M,
    Euler as Euler,
    EulerMaruyama as EulerMaruyama,
    Heun as Heun,
    NoPredictor as NoPredictor,
    Predictor as Predictor,
    ReverseDiffusion as ReverseDiffusion,
    SDEDPMSolver2M as SDEDPMSolver2M,
    StochasticHeun as StochasticHeun,
)
from lightning_score.sampling.sampler import PredictorCorrector as PredictorCorrector, Sampler as Sampler, Samples as Samples
