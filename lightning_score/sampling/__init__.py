"""Sampling: time grids, predictors, correctors and the samplers made of them."""

from lightning_score.sampling.adams import IPNDM, AdamsBashforth
from lightning_score.sampling.consistency import Consistency
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
from lightning_score.sampling.exponential import DPMSolver2M, DPMSolver3M, SASolver, SDEDPMSolver2M, SDEDPMSolver3M, UniPC
from lightning_score.sampling.flow import RK45, DormandPrince, ProbabilityFlow
from lightning_score.sampling.grid import Geometric, Given, Karras, ProcessTable, Quadratic, Snapped, TimeGrid, Uniform
from lightning_score.sampling.langevin import (
    AnnealedLangevin,
    AnnealedLangevinStep,
    ConsistentAnnealedLangevin,
    LangevinDynamics,
    MarkovChain,
)
from lightning_score.sampling.learned import Learned
from lightning_score.sampling.metropolis import HMC, MALA, UnderdampedLangevin
from lightning_score.sampling.noise import NoiseStream
from lightning_score.sampling.predictor import (
    DDIM,
    Ancestral,
    Euler,
    EulerMaruyama,
    Heun,
    NoPredictor,
    Predictor,
    ReverseDiffusion,
    StochasticHeun,
)
from lightning_score.sampling.published import Leading, Linspace, ScoreSDESteps
from lightning_score.sampling.restart import Restart
from lightning_score.sampling.restore import DiffPIR
from lightning_score.sampling.sampler import PredictorCorrector, Sampler, Samples
from lightning_score.sampling.singlestep import DPMSolver, HeunInTime
from lightning_score.sampling.twisted import TwistedSMC

__all__ = ["DDIM", "HMC", "IPNDM", "MALA", "RK45", "AdamsBashforth", "Ancestral", "AnnealedLangevin",
           "AnnealedLangevinStep", "BatchLangevin", "Consistency", "ConsistentAnnealedLangevin", "Corrector", "DPMSolver",
           "DPMSolver2M", "DPMSolver3M", "DiffPIR", "DormandPrince", "Euler", "EulerMaruyama", "FinalDenoise",
           "FixedLangevin", "FromFile", "Geometric", "Given", "Heun", "HeunInTime", "Initial", "Karras",
           "KeepNoise", "Langevin", "LangevinCorrector", "LangevinDynamics", "LastMean", "Leading", "Learned",
           "Linspace", "MarkovChain", "NoPredictor", "NoiseStream", "NormalNoise", "Predictor",
           "PredictorCorrector", "Prior", "ProbabilityFlow", "ProcessTable", "Quadratic", "Restart",
           "ReverseDiffusion", "SASolver", "SDEDPMSolver2M", "SDEDPMSolver3M", "SampleLangevin", "Sampler",
           "Samples", "ScoreSDESteps", "Snapped", "StochasticHeun", "TimeGrid", "Tweedie",
           "TwistedSMC", "UnderdampedLangevin", "UniPC", "Uniform", "UniformNoise"]  # fmt: skip
