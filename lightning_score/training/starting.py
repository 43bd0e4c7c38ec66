"""Weights of another model, from which a training starts."""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_score.data import ScoreData
from lightning_score.errors import InputError, one_line, require
from lightning_score.process import NoiseProcess
from lightning_score.runs.checkpoints import read_checkpoint
from lightning_score.runs.trust import made_from
from lightning_score.score.parametrization import Noise, Parametrization
from lightning_score.training.loading import alike, data_range_of, modules_of

if TYPE_CHECKING:
    from lightning_score.training.model import ScoreModel

NETWORK = "score_function.network."
"""Where a model keeps its network."""


def begin(model: "ScoreModel") -> None:
    """Gives the network the weights from which its training starts, and the objective the score function that it trains."""
    objective, data = model.objective, getattr(model.trainer, "datamodule", None)
    data = data if isinstance(data, ScoreData) else None
    named = f"objective={type(objective).__name__}"
    require(
        not objective.refines or model.start_from is not None,
        f"{named}: improves a trained model; give its checkpoint, as --model.start_from runs/NAME/latest/last.ckpt",
    )
    require(
        not objective.refines or model.augmentation is None,
        f"{named}: needs examples as the first model has seen them; set model.augmentation to null",
    )
    objective.receive(data)
    if model.start_from is not None:
        stored = _read(model.start_from)
        take_weights(model.score_function.network, model.start_from, stored)
        compare(model, stored, data)
    objective.steps_done = lambda: model.trainer.global_step if model.training else None
    objective.begin(model.score_function)


def _read(path: str) -> dict[str, Any]:
    try:
        return read_checkpoint(Path(path))
    except InputError as error:
        raise InputError(f"start_from={path}: {error}") from error


def compare(model: "ScoreModel", stored: Mapping[str, Any], data: ScoreData | None) -> None:
    """Compares a model with the one from whose weights it starts, as far as the checkpoint says how that was trained.

    Another process only leads to a warning, unless the objective refines the model itself: the new one can learn it.

    Args:
        model: starts from the checkpoint.
        stored: the content of the checkpoint.
        data: those of the training.

    Raises:
        InputError: the data have another range; or process or parametrization are others, and the objective refines.
    """
    name, refines = f"start_from={model.start_from}", model.objective.refines
    before, now = data_range_of(stored), None if data is None else data.data_range
    require(
        before is None or now is None or before == tuple(now),
        f"{name}: was trained on data from {before}, and these are from {now}; set data.data_range to its range",
    )
    parts = _parts_of(model)
    if parts is None:
        return
    (process, parametrization), score = parts, model.score_function
    other = f"{name}: its noise process ({type(process).__name__}) is another one than model.process"
    if not alike(process, score.process):
        require(not refines, f"{other}; give the same with objective={type(model.objective).__name__}")
        rank_zero_warn(f"{other} ({type(score.process).__name__}): the first steps have to learn its noise levels")
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    pairs = zip(parametrization(process, t), score.parametrization(score.process, t), strict=True)
    require(
        not refines or all(torch.allclose(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs),
        f"{name}: its parametrization ({type(parametrization).__name__}, or its parameters) is another one than "
        f"model.parametrization; give the same with objective={type(model.objective).__name__}",
    )


def _parts_of(model: "ScoreModel") -> tuple[NoiseProcess, Parametrization] | None:
    """Process and parametrization of the model from which another starts; None where the checkpoint does not hold them."""
    given = inspect.signature(type(model)).parameters.keys() - {"process", "parametrization"}
    with suppress(InputError), made_from(str(model.start_from), type(model), modules_of(model), given) as made:
        return (made["process"], made.get("parametrization") or Noise()) if made else None
    return None


def take_weights(network: nn.Module, path: str, stored: Mapping[str, Any]) -> None:
    """Gives a network the weights of a checkpoint, the averaged ones where it has averages.

    Args:
        network: the network.
        path: of the checkpoint, for messages.
        stored: its content.

    Raises:
        InputError: it holds no network, or another one.
    """
    state = stored.get("state_dict")
    state = state if isinstance(state, dict) else {}
    found = {name.removeprefix(NETWORK): value for name, value in state.items() if str(name).startswith(NETWORK)}
    require(bool(found), f"start_from={path}: holds no network of this package; give a checkpoint that fit has written")
    try:
        network.load_state_dict(found)
    except RuntimeError as error:
        raise InputError(
            f"start_from={path}: its network is another one than model.network: {one_line(error, 300)}"
        ) from error
