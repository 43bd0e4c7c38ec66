"""Weights of another model, from which a training starts."""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from lightning_score.data import ScoreData
from lightning_score.errors import InputError, one_line, require
from lightning_score.runs.checkpoints import read_checkpoint

if TYPE_CHECKING:
    from lightning_score.training.model import ScoreModel

NETWORK = "score_function.network."
"""Where a model keeps its network."""


def begin(model: "ScoreModel") -> None:
    """Gives the network the weights from which its training starts, and the objective the score function that it trains."""
    objective, data = model.objective, getattr(model.trainer, "datamodule", None)
    named = f"objective={type(objective).__name__}"
    require(
        not objective.refines or model.start_from is not None,
        f"{named}: improves a trained model; give its checkpoint, as --model.start_from runs/NAME/latest/last.ckpt",
    )
    require(
        not objective.refines or model.augmentation is None,
        f"{named}: compares data with samples, which are not augmented; set model.augmentation to null",
    )
    objective.receive(data if isinstance(data, ScoreData) else None)
    if model.start_from is not None:
        take_weights(model.score_function.network, model.start_from)
    objective.steps_done = lambda: model.trainer.global_step if model.training else None
    objective.begin(model.score_function)


def take_weights(network: nn.Module, path: str) -> None:
    """Gives a network the weights of a checkpoint, the averaged ones where it has averages.

    Args:
        network: the network.
        path: a checkpoint or bundle, or the name of a model in the package or on the Hub.

    Raises:
        InputError: the file is missing or damaged, or is that of another network.
    """
    try:
        state = read_checkpoint(Path(path)).get("state_dict")
    except InputError as error:
        raise InputError(f"start_from={path}: {error}") from error
    state = state if isinstance(state, dict) else {}
    found = {name.removeprefix(NETWORK): value for name, value in state.items() if str(name).startswith(NETWORK)}
    require(bool(found), f"start_from={path}: holds no network of this package; give a checkpoint that fit has written")
    try:
        network.load_state_dict(found)
    except RuntimeError as error:
        raise InputError(
            f"start_from={path}: its network is another one than model.network: {one_line(error, 300)}"
        ) from error
