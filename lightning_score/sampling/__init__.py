"""Sampling: time grids, predictors, correctors and the samplers made of them."""

from lightning_score.sampling.corrector import AnnealedLangevinStep, Corrector, Langevin
from lightning_score.sampling.ends import FinalDenoise, Initial, KeepNoise, LastMean, Prior, Tweedie, UniformNoise
from lightning_score.sampling.grid import Geometric, Karras, Table, TimeGrid, Uniform
from lightning_score.sampling.noise import NoiseStream
from lightning_score.sampling.predictor import (
    DDIM,
    Ancestral,
    EulerMaruyama,
    NoPredictor,
    Predictor,
    ReverseDiffusion,
)
from lightning_score.sampling.sampler import AnnealedLangevin, PredictorCorrector, Sampler, Samples

__all__ = [
    "DDIM",
    "Ancestral",
    "AnnealedLangevin",
    "AnnealedLangevinStep",
    "Corrector",
    "EulerMaruyama",
    "FinalDenoise",
    "Geometric",
    "Initial",
    "Karras",
    "KeepNoise",
    "Langevin",
    "LastMean",
    "NoPredictor",
    "NoiseStream",
    "Predictor",
    "PredictorCorrector",
    "Prior",
    "ReverseDiffusion",
    "Sampler",
    "Samples",
    "Table",
    "TimeGrid",
    "Tweedie",
    "Uniform",
    "UniformNoise",
]
