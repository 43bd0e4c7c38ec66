"""Class paths of earlier versions, in checkpoints and configs, by the paths of today."""

from collections.abc import Mapping
from typing import Any

PACKAGE = "lightning_score"
MODULES = {
    "augmentation": "data.augmentation",
    "callbacks.bits": "callbacks.bits_per_dim",
    "callbacks.field": "callbacks.score_plot",
    "callbacks.floor": "callbacks.loss_floor",
    "callbacks.health": "callbacks.langevin_health",
    "callbacks.keep": "callbacks.checkpoints",
    "callbacks.predict": "callbacks.sample_writer",
    "callbacks.samples": "callbacks.sample_grid",
    "empirical": "score.empirical",
    "likelihood": "sampling.likelihood",
    "model": "training.model",
    "optimization": "training.optimization",
    "parametrization": "score.parametrization",
    "schedule": "process.ladder",
    "sharding": "training.sharding",
}
"""Modules that have moved: before, now."""
CLASSES: dict[str, str] = {}
"""Classes that have another name: before, now, each with its module of today."""


def with_new_names(config: Any) -> Any:
    """A config of mappings, lists and plain values, with the class paths of today in place of those of earlier versions."""
    if isinstance(config, Mapping):
        return {name: with_new_names(part) for name, part in config.items()}
    if isinstance(config, list):
        return [with_new_names(part) for part in config]
    return new_name(config) if isinstance(config, str) and config.startswith(f"{PACKAGE}.") else config


def new_name(path: str) -> str:
    """Today's path of what had a path in an earlier version; the same one, if it has not moved."""
    module, _, name = path.removeprefix(f"{PACKAGE}.").rpartition(".")
    here = ".".join(part for part in (MODULES.get(module, module), name) if part)
    return f"{PACKAGE}.{CLASSES.get(here, here)}"
