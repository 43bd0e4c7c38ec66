"""Callbacks: averaged weights, samples, Frechet distances, progress."""

import lightning_score.lean_imports  # noqa: F401

from lightning_score.callbacks.bits_per_dim import BitsPerDim, Nats
from lightning_score.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from lightning_score.callbacks.ema import EMA
from lightning_score.callbacks.ensembles import Ensembles
from lightning_score.callbacks.evaluate import Evaluate
from lightning_score.callbacks.gradient_noise import GradientNoiseScale
from lightning_score.callbacks.langevin_health import LangevinHealth, LevelHealth
from lightning_score.callbacks.learned_weighting import LearnedWeighting
from lightning_score.callbacks.loss_floor import LossFloor
from lightning_score.callbacks.loss_guard import LossGuard
from lightning_score.callbacks.posterior import Posterior
from lightning_score.callbacks.progress import StepProgress
from lightning_score.callbacks.sample_grid import SampleGrid
from lightning_score.callbacks.sample_writer import SampleWriter
from lightning_score.callbacks.score_plot import ScorePlot
from lightning_score.callbacks.system_metrics import SystemMetrics

__all__ = ["EMA", "BestCheckpoint", "BitsPerDim", "Ensembles", "Evaluate", "GradientNoiseScale", "LangevinHealth",
           "LastCheckpoint", "LearnedWeighting", "LevelHealth", "LossFloor", "LossGuard", "Nats", "Posterior", "SampleGrid",
           "SampleWriter", "ScorePlot", "StepProgress", "SystemMetrics"]  # fmt: skip
