"""Names of earlier versions in checkpoints and configs, and those of today."""

from collections.abc import Mapping
from typing import Any

PACKAGE = "lightning_score"
MODULES = {
    "augmentation": "data.augmentation",
    "callbacks.bits": "callbacks.bits_per_dim",
    "callbacks.field": "callbacks.score_plot",
    "callbacks.floor": "callbacks.loss_floor",
    "callbacks.guard": "callbacks.loss_guard",
    "callbacks.health": "callbacks.langevin_health",
    "callbacks.keep": "callbacks.checkpoints",
    "callbacks.predict": "callbacks.sample_writer",
    "callbacks.samples": "callbacks.sample_grid",
    "empirical": "score.empirical",
    "conditions.operators": "observations.operators",
    "guidance.operators": "observations.operators",
    "likelihood": "sampling.likelihood",
    "model": "training.model",
    "objective.explicit": "objective.denoising",
    "optimization": "training.optimization",
    "parametrization": "score.parametrization",
    "runs.csv_logger": "runs.logs",
    "sampling.dormand_prince": "sampling.flow",
    "schedule": "process.ladder",
    "sharding": "training.sharding",
}
"""Modules that have moved: old and new path."""
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
    "guidance.InverseProblem": "PseudoInverse",
    "process.Chain": "BetaChain",
    "process.RootBetaTable": "ScaledLinearBetas",
    "sampling.Table": "ProcessTable",
}
"""Renamed classes: old name, after today's folder unless it was given alone, and new name."""
MOVED = {
    "objective.implicit.Gaussian": "score.trace.Gaussian",
    "objective.implicit.Rademacher": "score.trace.Rademacher",
    "sampling.corrector.AnnealedLangevinStep": "sampling.langevin.AnnealedLangevinStep",
}
"""Classes that have moved out of a module that stays: old and new path."""
OPTIONS = {
    "evaluate": {"limit": "fid_infinity", "neighbours": "neighbors", "noisy": "before_denoising", "thorough": "all_metrics"},
    "init_args": {"grey_range": "gray_range"},
}
"""Renamed options by the name of the mapping that holds them: old and new name."""


def with_new_names(config: Any, place: str = "", options: bool = True) -> Any:
    """A config of mappings, lists and plain values, with today's names in place of those of earlier versions.

    Args:
        config: what a checkpoint, or a config that a run has written, holds.
        place: the name of the mapping that it is.
        options: whether names of options are changed, too; else only the paths of classes.
    """
    if isinstance(config, Mapping):
        new = OPTIONS.get(place, {}) if options else {}
        return {new.get(name, name): with_new_names(part, str(name), options) for name, part in config.items()}
    if isinstance(config, list):
        return [with_new_names(part, options=options) for part in config]
    return new_name(config) if isinstance(config, str) and config.startswith(f"{PACKAGE}.") else config


def new_option(name: str) -> str:
    """Today's name of an option that has been renamed; empty for any other.

    Args:
        name: dotted, without `init_args`, as `evaluate.neighbours`.
    """
    parent, _, last = name.rpartition(".")
    new = OPTIONS.get(parent.rpartition(".")[2], {}).get(last) or (OPTIONS["init_args"].get(last) if parent else None)
    return f"{parent}.{new}".lstrip(".") if new else ""


def new_classes(name: str) -> set[str]:
    """Today's names of the classes that had a short name, such as `Table`, in an earlier version."""
    return {new.rpartition(".")[2] for old, new in CLASSES.items() if old.rpartition(".")[2] == name}


def new_metric(name: Any) -> Any:
    """Today's name of a metric; the same one, if it has not changed."""
    return name.replace("fid_limit_", "fid_infinity_") if isinstance(name, str) else name


def new_name(path: str) -> str:
    """Today's path of a class or function; the same if it has not moved."""
    path = path.removeprefix(f"{PACKAGE}.")
    module, _, name = MOVED.get(path, path).rpartition(".")
    module = MODULES.get(module, module)
    name = CLASSES.get(f"{module.partition('.')[0]}.{name}".lstrip("."), name)
    return ".".join(part for part in (PACKAGE, module, name) if part)
