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
CLASSES = {
    "Chain": "Composed",
    "Colourisation": "Colorization",
    "Geometric": "GeometricAugmentation",
    "RootBetaTable": "ScaledLinearBetas",
    "data.Geometric": "GeometricAugmentation",
    "guidance.Chain": "Composed",
    "guidance.Colourisation": "Colorization",
    "guidance.Downsample": "BlockMean",
    "guidance.Grey": "Gray",
    "process.Chain": "BetaChain",
    "process.RootBetaTable": "ScaledLinearBetas",
    "sampling.Table": "ProcessTable",
}
"""Classes that have another name: before, with the folder of today unless they were named without, and now."""
MOVED = {
    "objective.implicit.Gaussian": "score.trace.Gaussian",
    "objective.implicit.Rademacher": "score.trace.Rademacher",
    "sampling.corrector.AnnealedLangevinStep": "sampling.langevin.AnnealedLangevinStep",
}
"""Classes that have moved from a module that stays: before, now."""
OPTIONS = {"evaluate": {"neighbours": "neighbors"}, "init_args": {"grey_range": "gray_range"}}
"""Parameters that have another name, by the name of the mapping in which they stand: before, now."""


def with_new_names(config: Any, place: str = "") -> Any:
    """A config of mappings, lists and plain values, with the names of today in place of those of earlier versions.

    Args:
        config: what a checkpoint, or a config that a run has written, says.
        place: the name of the mapping that it is.
    """
    if isinstance(config, Mapping):
        options = OPTIONS.get(place, {})
        return {options.get(name, name): with_new_names(part, str(name)) for name, part in config.items()}
    if isinstance(config, list):
        return [with_new_names(part) for part in config]
    return new_name(config) if isinstance(config, str) and config.startswith(f"{PACKAGE}.") else config


def new_name(path: str) -> str:
    """Today's path of what had a path in an earlier version; the same one, if it has not moved."""
    path = path.removeprefix(f"{PACKAGE}.")
    module, _, name = MOVED.get(path, path).rpartition(".")
    module = MODULES.get(module, module)
    name = CLASSES.get(f"{module.partition('.')[0]}.{name}".lstrip("."), name)
    return ".".join(part for part in (PACKAGE, module, name) if part)
