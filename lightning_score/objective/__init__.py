"""Objectives: what is minimized so that a network becomes a score."""

from lightning_score.objective.base import LevelwiseObjective as LevelwiseObjective, Objective as Objective
from lightning_score.objective.denoising import (
    DenoisingScoreMatching as DenoisingScoreMatching,
    ExplicitScoreMatching as ExplicitScoreMatching,
)
from lightning_score.objective.implicit import (
    ImplicitScoreMatching as ImplicitScoreMatching,
    SlicedScoreMatching as SlicedScoreMatching,
)
from lightning_score.objective.times import (
    FixedTimes as FixedTimes,
    ImportanceTimes as ImportanceTimes,
    LogNormalTimes as LogNormalTimes,
    TableTimes as TableTimes,
    TimeDistribution as TimeDistribution,
    UniformTimes as UniformTimes,
)
from lightning_score.objective.weighting import (
    EDMWeighting as EDMWeighting,
    Likelihood as Likelihood,
    MinSNR as MinSNR,
    SigmaSquared as SigmaSquared,
    Weighting as Weighting,
)
from lightning_score.score.trace import (
    ExactTrace as ExactTrace,
    Gaussian as Gaussian,
    Hutchinson as Hutchinson,
    ProbeLaw as ProbeLaw,
    Rademacher as Rademacher,
    Trace as Trace,
)
