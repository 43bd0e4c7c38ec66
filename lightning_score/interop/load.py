"""Reads checkpoints of other packages as score functions."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning_score
from lightning_score.errors import InputError, one_line, require
from lightning_score.interop.base import OPTIONS, Imported, Settings
from lightning_score.score.function import ScoreFunction

KINDS = ("score_sde", "ncsnv2", "ncsn", "ddpm", "edm", "torchcfm", "diffusers")
CHANGEABLE = ("process", "network", "parametrization")
MALFORMED = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""Errors of a reader for values of wrong types or shapes."""


def read(
    path: str | Path, kind: str, size: int | None = None, sde: str | None = None, precond: str | None = None
) -> Imported:
    """Reads and converts a checkpoint of another package.

    Args:
        path: its file, or its folder for diffusers.
        kind: its kind, one of `KINDS`.
        size: height and width of the images in pixels, if the file does not determine them; by default those of the
            published models.
        sde: for score_sde only: ve, vp, subvp, ve_discrete or vp_discrete, if the folders' names do not determine it.
        precond: for edm only: the preconditioning, edm, vp or ve.

    Raises:
        InputError: an unknown kind, a file that is not of this kind, or options that do not belong to it.
    """
    require(kind in KINDS, f"kind={kind!r}: give one of {', '.join(KINDS)}")
    require(size is None or size > 0, f"size={size}: must be the positive height and width of the images in pixels")
    given = {name: value for name, value in (("sde", sde), ("precond", precond)) if value is not None}
    for name, value in given.items():
        home, allowed = OPTIONS[name]
        require(kind == home, f"{name}={value}: only for files of {home}; leave it out for {kind}")
        require(value in allowed, f"{name}={value}: give one of {', '.join(allowed)}")
    try:
        imported: Imported = import_module(f"lightning_score.interop.{kind}").read(Path(path), size, **given)
    except InputError:
        raise
    except MALFORMED as error:
        detail = f"{type(error).__name__}: {one_line(error, 200)}"
        raise InputError(f"{path}: not a {kind} checkpoint that can be converted ({detail})") from error
    step = imported.step
    counted = isinstance(step, int) and 0 <= step < 2**62
    require(counted, f"the {kind} checkpoint's step is {step!r:.40}, which is not a number of steps")
    return imported


def load(
    path: str | Path,
    kind: str,
    averaged: bool = True,
    size: int | None = None,
    sde: str | None = None,
    precond: str | None = None,
    **changes: Any,
) -> ScoreFunction:
    """Loads a checkpoint of another package as a score function, in evaluation mode.

    Args:
        path: its file, or its folder for diffusers.
        kind: its kind, one of `KINDS`.
        averaged: take the averaged (EMA) weights if the file has them.
        size: as for `read`.
        sde: as for `read`.
        precond: as for `read`.
        changes: other parts than those found or assumed, as `process=SubVP()`, or settings, as `network={"fir": False}`.

    Raises:
        InputError: an unknown kind, a file that is not of this kind, or one that contains code.
    """
    return build(read(path, kind, size, sde, precond), averaged, **changes)


def build(imported: Imported, averaged: bool = True, **changes: Any) -> ScoreFunction:
    """The score function of an imported checkpoint; `changes` replace parts, or some of their settings."""
    unknown = sorted(set(changes) - set(CHANGEABLE))
    require(not unknown, f"{', '.join(unknown)}: cannot be changed; give process, network or parametrization")
    process, network, parametrization = (_changed(imported.model[name], changes.get(name)) for name in CHANGEABLE)
    made = make(network, imported.shape, imported.num_classes)
    try:
        made.load_state_dict(imported.averages if averaged and imported.averages is not None else imported.weights)
    except RuntimeError as error:
        raise InputError(f"the weights do not fit the network: {one_line(error)}") from error
    return ScoreFunction(made, make(process), make(parametrization), imported.num_classes).eval()


def _changed(settings: Settings, change: Any) -> Any:
    if isinstance(change, Mapping):
        return {**settings, "init_args": {**settings["init_args"], **change}}
    return settings if change is None else change


def make(settings: Any, *arguments: Any) -> Any:
    """The object of `{"class_path": ..., "init_args": {...}}` in a config; other values are unchanged."""
    if not (isinstance(settings, Mapping) and "class_path" in settings):
        return settings
    given = {name: make(value) for name, value in settings.get("init_args", {}).items()}
    return find(settings["class_path"])(*arguments, **given)


def find(class_path: str) -> Any:
    """A class by its path, or by its name for classes of this package."""
    module, _, name = class_path.rpartition(".")
    if module:
        return getattr(import_module(module), name)
    for home in ("process", "score", "networks", "sampling", "objective"):
        found = getattr(import_module(f"lightning_score.{home}"), name, None)
        if found is not None:
            return found
    return getattr(lightning_score, name)
