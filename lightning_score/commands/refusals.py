"""Errors of Lightning and torch as one line that names the options."""

import lightning_score.lean_imports  # noqa: F401

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from lightning_score.errors import InputError, one_line, require

TRAINER_DEFAULTS = {"num_sanity_val_steps": 0, "enable_model_summary": False}
"""Those of our commands that differ from Lightning's."""
AT_LEAST = {
    -1: ("max_epochs", "max_steps", "num_sanity_val_steps"),
    0: ("gradient_clip_val", "limit_predict_batches", "limit_test_batches", "limit_train_batches", "limit_val_batches",
        "log_every_n_steps", "min_epochs", "min_steps", "overfit_batches", "reload_dataloaders_every_n_epochs"),
    1: ("accumulate_grad_batches", "check_val_every_n_epoch", "num_nodes"),
}  # fmt: skip
"""The least values of the trainer's numbers; Lightning divides by some of them unchecked."""
LOST = {"fit": ("train", "learned"), "validate": ("val", "measured"), "test": ("test", "measured")}
"""By command, the batches without which nothing is learned or measured."""


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Refuses numbers of the trainer that are too small.

    Raises:
        InputError: one is too small.
    """
    for least, names in AT_LEAST.items():
        for name in names:
            value = settings.get(name)
            fits = not isinstance(value, int | float) or value >= least
            require(fits, f"--trainer.{name} {value}: must be at least {least}")
    interval, devices = settings.get("val_check_interval"), settings.get("devices")
    fits = not isinstance(interval, int | float) or interval > 0
    require(fits, f"--trainer.val_check_interval {interval}: must be above 0")
    require(devices not in (0, "0"), f"--trainer.devices {devices}: must be at least 1, or auto for all of this machine")


def check_limits(command: str, settings: Mapping[str, Any]) -> None:
    """Refuses limits with which a command would train, measure or draw nothing, or less than it reports.

    Raises:
        InputError: there is one.
    """
    kind, lost = LOST.get(command, ("", ""))
    limit, few = settings.get(f"limit_{kind}_batches"), settings.get("overfit_batches")
    require(limit is None or limit > 0, f"--trainer.limit_{kind}_batches {limit}: must be above 0, or nothing is {lost}")
    instead = "not for these data, whose batches are drawn as a whole; give --trainer.limit_train_batches"
    require(not few, f"--trainer.overfit_batches {few}: {instead}")
    limit = settings.get("limit_predict_batches") if command == "predict" else None
    require(limit is None, f"--trainer.limit_predict_batches {limit}: not for predict; give fewer --num_samples")


def of_options(error: Exception, settings: Namespace) -> str:
    """The message of an error after the trainer's options that it names or quotes, or, for an error of Lightning's own,
    after all that were given.
    """
    message = one_line(error, 600)
    plain = {name: value for name, value in vars(settings).items() if value is None or isinstance(value, str | int | float)}
    defaults = {name: parameter.default for name, parameter in signature(Trainer).parameters.items()} | TRAINER_DEFAULTS
    given = {name: value for name, value in plain.items() if value != defaults.get(name)}
    named = {name: value for name, value in given.items() if re.search(rf"\b{name}\b", message)}
    quoted = {name: value for name, value in given.items() if isinstance(value, str) and value in message}
    chosen = named or quoted or (given if of_lightning(error) else {})
    options = " ".join(f"--trainer.{name} {'null' if value is None else value}" for name, value in chosen.items())
    return f"{options or 'this configuration cannot be used'}: {message}"


def of_lightning(error: Exception) -> bool:
    """Whether Lightning's own code raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and re.search(r"lightning/(pytorch|fabric)/", Path(frames[-1].filename).as_posix()) is not None


def _callback(error: Exception) -> str:
    """The module of the callback of Lightning that could not start with this model or machine, or empty."""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if frame.name in ("setup", "on_fit_start") and path.as_posix().endswith(f"lightning/pytorch/callbacks/{path.name}"):
            return path.stem
    return ""


@contextmanager
def refusing(settings: Namespace) -> Iterator[None]:
    """Within it, errors of Lightning about options, and about restoring a checkpoint, become a user's mistake.

    Args:
        settings: the trainer's options.

    Raises:
        InputError: in place of the error.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if any(frame.filename.endswith("checkpoint_connector.py") and "restore" in frame.name for frame in frames):
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"--ckpt_path: training cannot resume from it with these options ({reason})") from error
        if isinstance(error, MisconfigurationException) or (isinstance(error, ValueError) and of_lightning(error)):
            raise InputError(of_options(error, settings)) from error
        if callback := _callback(error):
            raise InputError(f"--trainer.callbacks: {callback}: {one_line(error)}") from error
        raise
