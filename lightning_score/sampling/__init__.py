"""Sampling: time grids, predictors, correctors and the samplers made of them."""

from lightning_score.sampling.corrector import (
    BatchLangevin,
    Corrector,
    FixedLangevin,
    Langevin,
    LangevinCorrector,
    SampleLangevin,
)
from lightning_score.sampling.ends import (
    FinalDenoise,
    FromFile,
    Initial,
    KeepNoise,
    LastMean,
    NormalNoise,
    Prior,
    Tweedie,
    UniformNoise,
)
from lightning_score.sampling.flow import RK45, DormandPrince, ProbabilityFlow
from lightning_score.sampling.grid import Geometric, Given, Karras, ProcessTable, Quadratic, Snapped, TimeGrid, Uniform
from lightning_score.sampling.langevin import (
    AnnealedLangevin,
    AnnealedLangevinStep,
    ConsistentAnnealedLangevin,
    LangevinDynamics,
    MarkovChain,
)
from lightning_score.sampling.metropolis import HMC, MALA, UnderdampedLangevin
from lightning_score.sampling.noise import NoiseStream
from lightning_score.sampling.predictor import (
    DDIM,
    Ancestral,
    DPMSolver2M,
    Euler,
    EulerMaruyama,
    Heun,
    NoPredictor,
    Predictor,
    ReverseDiffusion,
    SDEDPMSolver2M,
    StochasticHeun,
)
from lightning_score.sampling.sampler import PredictorCorrector, Sampler, Samples

__all__ = ["DDIM", "HMC", "MALA", "RK45", "Ancestral", "AnnealedLangevin", "AnnealedLangevinStep",
           "BatchLangevin", "ConsistentAnnealedLangevin", "Corrector", "DPMSolver2M", "DormandPrince", "Euler",
           "EulerMaruyama", "FinalDenoise", "FixedLangevin", "FromFile", "Geometric", "Given", "Heun", "Initial", "Karras",
           "KeepNoise", "Langevin", "LangevinCorrector", "LangevinDynamics", "LastMean", "MarkovChain", "NoPredictor",
           "NoiseStream", "NormalNoise", "Predictor", "PredictorCorrector", "Prior", "ProbabilityFlow", "ProcessTable",
           "Quadratic", "ReverseDiffusion", "SDEDPMSolver2M", "SampleLangevin", "Sampler", "Samples", "Snapped",
           "StochasticHeun", "TimeGrid", "Tweedie", "UnderdampedLangevin", "Uniform", "UniformNoise"]  # fmt: skip
