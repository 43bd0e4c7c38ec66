"""Objectives: what is minimized so that a network becomes a score."""

from lightning_score.objective.base import LevelwiseObjective, Objective
from lightning_score.objective.consistency import ConsistencyTuning
from lightning_score.objective.denoising import DenoisingScoreMatching, ExplicitScoreMatching
from lightning_score.objective.discriminative import DirectDiscriminative
from lightning_score.objective.implicit import ImplicitScoreMatching, SlicedScoreMatching
from lightning_score.objective.times import (
    FixedTimes,
    ImportanceTimes,
    LogNormalTimes,
    TableTimes,
    TimeDistribution,
    UniformTimes,
)
from lightning_score.objective.weighting import (
    EDMWeighting,
    FlowWeighting,
    Likelihood,
    MinSNR,
    SigmaSquared,
    Uncertainty,
    Weighting,
)
from lightning_score.score.trace import ExactTrace, Gaussian, Hutchinson, ProbeLaw, Rademacher, Trace

__all__ = ["ConsistencyTuning", "DenoisingScoreMatching", "DirectDiscriminative", "EDMWeighting", "ExactTrace",
           "ExplicitScoreMatching", "FixedTimes", "FlowWeighting", "Gaussian", "Hutchinson", "ImplicitScoreMatching",
           "ImportanceTimes", "LevelwiseObjective", "Likelihood", "LogNormalTimes", "MinSNR", "Objective", "ProbeLaw",
           "Rademacher", "SigmaSquared", "SlicedScoreMatching", "TableTimes", "TimeDistribution", "Trace",
           "Uncertainty", "UniformTimes", "Weighting"]  # fmt: skip
