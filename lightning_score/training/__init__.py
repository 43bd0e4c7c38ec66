"""Training: the LightningModule, its optimization, and weights that are sharded over processes."""

import lightning_score.lean_imports  # noqa: F401

from lightning_score.training.model import ScoreModel
from lightning_score.training.optimization import Optimization
from lightning_score.training.sharding import FullyShard

__all__ = ["FullyShard", "Optimization", "ScoreModel"]
