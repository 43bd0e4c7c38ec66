"""Sampling: time grids, predictors, correctors and the samplers made of them."""

from lightning_score.sampling.corrector import (
    AnnealedLangevinStep,
    BatchLangevin,
    Corrector,
    FixedLangevin,
    Langevin,
    SampleLangevin,
)
from lightning_score.sampling.ends import FinalDenoise, Initial, KeepNoise, LastMean, Prior, Tweedie, UniformNoise
from lightning_score.sampling.grid import Geometric, Karras, Table, TimeGrid, Uniform
from lightning_score.sampling.langevin import AnnealedLangevin, ConsistentAnnealedLangevin, LangevinDynamics
from lightning_score.sampling.metropolis import HMC, MALA, UnderdampedLangevin
from lightning_score.sampling.noise import NoiseStream
from lightning_score.sampling.predictor import (
    DDIM,
    Ancestral,
    EulerMaruyama,
    NoPredictor,
    Predictor,
    ReverseDiffusion,
)
from lightning_score.sampling.sampler import PredictorCorrector, Sampler, Samples

__all__ = [
    "DDIM",
    "HMC",
    "MALA",
    "Ancestral",
    "AnnealedLangevin",
    "AnnealedLangevinStep",
    "BatchLangevin",
    "ConsistentAnnealedLangevin",
    "Corrector",
    "EulerMaruyama",
    "FinalDenoise",
    "FixedLangevin",
    "Geometric",
    "Initial",
    "Karras",
    "KeepNoise",
    "Langevin",
    "LangevinDynamics",
    "LastMean",
    "NoPredictor",
    "NoiseStream",
    "Predictor",
    "PredictorCorrector",
    "Prior",
    "ReverseDiffusion",
    "SampleLangevin",
    "Sampler",
    "Samples",
    "Table",
    "TimeGrid",
    "Tweedie",
    "UnderdampedLangevin",
    "Uniform",
    "UniformNoise",
]
