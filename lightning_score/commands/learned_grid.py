"""The learned times of a run in its configuration."""

from pathlib import Path
from typing import Any, cast

from lightning_score.files import replace_text
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


def keep_times(config: Any, model: ScoreModel, parser: Any, folder: Path) -> None:
    """Writes `config.yaml` again with the times that the model has learned, if it has.

    Args:
        config: the parsed configuration.
        model: the model.
        parser: of the configuration.
        folder: of the run.
    """
    settings = learned_settings(config)
    if settings is not None and model.sampler.grid.learns:
        grid = cast(Learned, model.sampler.grid)
        settings["times"], settings["learned_for"] = grid.times, grid.learned_for
        replace_text(folder / "config.yaml", parser.dump(config, skip_none=False))
