"""The score function: a network seen through a process and a parametrization."""

from lightning_score.score.density import Banana, Density, DensityScore, Funnel, Mixture
from lightning_score.score.empirical import EmpiricalScore
from lightning_score.score.function import ScoreField, ScoreFunction, ScoreWrapper
from lightning_score.score.parametrization import (
    EDM,
    Denoised,
    Flow,
    Index,
    LogSigma,
    Noise,
    NoiseLabel,
    Parametrization,
    Score,
    ScoreOverSigma,
    Time,
    Velocity,
)

__all__ = ["EDM", "Banana", "Denoised", "Density", "DensityScore", "EmpiricalScore", "Flow", "Funnel", "Index", "LogSigma",
           "Mixture", "Noise", "NoiseLabel", "Parametrization", "Score", "ScoreField", "ScoreFunction", "ScoreOverSigma",
           "ScoreWrapper", "Time", "Velocity"]  # fmt: skip
