"""Errors of Lightning and torch as one line that names the options."""

import lightning_score.torchvision_guard  # noqa: F401

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_score.errors import InputError, one_line, require

LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "limit_predict_batches": 0,
    "limit_test_batches": 0,
    "limit_train_batches": 0,
    "limit_val_batches": 0,
    "log_every_n_steps": 0,
    "max_epochs": -1,
    "max_steps": -1,
    "min_epochs": 0,
    "min_steps": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
    "overfit_batches": 0,
    "reload_dataloaders_every_n_epochs": 0,
    "val_check_interval": 1e-9,
}
"""The least values of the trainer's numbers; Lightning divides by some of them unchecked."""


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Refuses numbers of the trainer that are too small.

    Raises:
        InputError: one is too small.
    """
    for name, least in LEAST.items():
        value = settings.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            allowed = "above 0" if name == "val_check_interval" else f"at least {least}"
            require(value >= least, f"--trainer.{name} {value}: must be {allowed}")


def check_limits(command: str, settings: Mapping[str, Any]) -> None:
    """Refuses limits with which a command would train, measure or draw nothing, or less than it reports.

    Raises:
        InputError: there is one.
    """
    name, lost = {
        "fit": ("limit_train_batches", "learned"),
        "validate": ("limit_val_batches", "measured"),
        "test": ("limit_test_batches", "measured"),
    }.get(command, ("", ""))
    limit = settings.get(name)
    require(limit is None or limit > 0, f"--trainer.{name} {limit}: must be above 0, or nothing is {lost}")
    few = settings.get("overfit_batches")
    instead = "not for these data, whose batches are drawn as a whole; give --trainer.limit_train_batches"
    require(not few, f"--trainer.overfit_batches {few}: {instead}")
    limit = settings.get("limit_predict_batches") if command == "predict" else None
    require(limit is None, f"--trainer.limit_predict_batches {limit}: not for predict; give fewer --num_samples")


def of_options(error: Exception, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The message of an error after the trainer's options that it names or quotes, or, for an error of Lightning's own,
    after all that were given.
    """
    message = one_line(error, 600)
    plain = {name: value for name, value in settings.items() if value is None or isinstance(value, str | int | float)}
    plain = {name: value for name, value in plain.items() if "." not in name}  # a namespace also yields nested names
    named = {name: value for name, value in plain.items() if re.search(rf"\b{name}\b", message)}
    given = {name: value for name, value in plain.items() if value != defaults.get(name)}
    quoted = {name: value for name, value in given.items() if isinstance(value, str) and value in message}
    chosen = {name: value for name, value in named.items() if name in given} or quoted
    chosen = chosen or (given if of_lightning(error) else {})
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
def refusing(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[None]:
    """Within it, errors of Lightning about options, and about restoring a checkpoint, become a user's mistake.

    Args:
        settings: the trainer's options.
        defaults: of these options.

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
            what = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(
                f"--ckpt_path: training cannot resume from this checkpoint with these options ({what})"
            ) from error
        if isinstance(error, MisconfigurationException) or (isinstance(error, ValueError) and of_lightning(error)):
            raise InputError(of_options(error, settings, defaults)) from error
        if callback := _callback(error):
            raise InputError(f"--trainer.callbacks: {callback}: {one_line(error)}") from error
        raise
