"""The score function: a network seen through a process and a parametrization."""

from lightning_score.score.empirical import EmpiricalScore as EmpiricalScore
from lightning_score.score.function import (
    ScoreField as ScoreField,
    ScoreFunction as ScoreFunction,
    ScoreWrapper as ScoreWrapper,
)
from lightning_score.score.parametrization import (
    EDM as EDM,
    Denoised as Denoised,
    Index as Index,
    LogSigma as LogSigma,
    Noise as Noise,
    NoiseLabel as NoiseLabel,
    Parametrization as Parametrization,
    Score as Score,
    ScoreOverSigma as ScoreOverSigma,
    Time as Time,
    Velocity as Velocity,
)
