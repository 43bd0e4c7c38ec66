"""Callbacks: averaged weights, samples, Frechet distances, progress."""

import lightning_score.torchvision_guard  # noqa: F401

from lightning_score.callbacks.bits import BitsPerDim
from lightning_score.callbacks.checkpoints import BestCheckpoint
from lightning_score.callbacks.ema import EMA
from lightning_score.callbacks.evaluate import Evaluate, Evaluation
from lightning_score.callbacks.field import ScorePlot
from lightning_score.callbacks.floor import LossFloor
from lightning_score.callbacks.guard import Guard
from lightning_score.callbacks.health import LangevinHealth, LevelHealth
from lightning_score.callbacks.keep import Keep
from lightning_score.callbacks.predict import SampleWriter
from lightning_score.callbacks.progress import StepProgress
from lightning_score.callbacks.samples import SampleGrid

__all__ = [
    "EMA",
    "BestCheckpoint",
    "BitsPerDim",
    "Evaluate",
    "Evaluation",
    "Guard",
    "Keep",
    "LangevinHealth",
    "LevelHealth",
    "LossFloor",
    "SampleGrid",
    "SampleWriter",
    "ScorePlot",
    "StepProgress",
]
