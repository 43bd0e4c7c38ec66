"""The learned times of a run in its configuration."""

from typing import Any, cast

from lightning_score.sampling import Learned
from lightning_score.training.model import ScoreModel


def learned_settings(config: Any) -> Any:
    """The parameters of the grid `Learned` in a parsed configuration; None with another grid."""
    sampler = (config["model"] or {}).get("sampler") or {}
    grid = (sampler.get("init_args") or {}).get("grid") or {}
    return grid.get("init_args") if grid.get("class_path", "").rpartition(".")[2] == Learned.__name__ else None


def forget_times(config: Any) -> None:
    """Has the grid `Learned` of a parsed configuration learn anew."""
    settings = learned_settings(config)
    if settings is not None:
        settings["times"] = settings["learned_for"] = None


def with_times(config: Any, model: ScoreModel) -> Any:
    """The parsed configuration with the times that the grid `Learned` of a model has learned; None if it has not."""
    config = config.clone()
    settings = learned_settings(config)
    if settings is None or not model.sampler.grid.learns:
        return None
    grid = cast(Learned, model.sampler.grid)
    settings["times"], settings["learned_for"] = grid.times, grid.learned_for
    return config
