"""Reads checkpoints of other packages as score functions."""

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lightning_score
from lightning_score.errors import InputError, require
from lightning_score.interop.base import OPTIONS, Imported, Settings, size_of
from lightning_score.score.function import ScoreFunction

KINDS = ("score_sde", "ncsnv2", "ncsn", "ddpm", "edm", "diffusers")
MALFORMED = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""Errors of a reader for values of wrong types or shapes."""


def read(
    path: str | Path, kind: str, size: int | None = None, sde: str | None = None, precond: str | None = None
) -> Imported:
    """Reads and converts a checkpoint of another package.

    Args:
        path: its file, or its folder for diffusers.
        kind: whose it is, one of `KINDS`.
        size: height and width of the images in pixels, where the file does not say; that of the published models by default.
        sde: of score_sde alone: ve, vp, subvp, ve_discrete or vp_discrete, where folders do not say.
        precond: of edm alone: the preconditioning, edm, vp or ve.

    Raises:
        InputError: an unknown kind, a file that is not of this kind, or options that do not belong to it.
    """
    require(kind in KINDS, f"kind={kind!r}: give one of {', '.join(KINDS)}")
    require(size is None or size > 0, f"size={size}: must be the positive height and width of the images in pixels")
    reader = import_module(f"lightning_score.interop.{kind}").read
    given = {name: value for name, value in (("sde", sde), ("precond", precond)) if value is not None}
    for name, value in given.items():
        home, allowed = OPTIONS[name]
        require(kind == home, f"{name}={value}: only for files of {home}; leave it out for {kind}")
        require(value in allowed, f"{name}={value}: give one of {', '.join(allowed)}")
    try:
        imported = reader(Path(path), size, **given)
    except InputError:
        raise
    except MALFORMED as error:
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(f"{path}: not a {kind} checkpoint that can be converted ({detail})") from error
    return checked(imported, kind)


def checked(imported: Imported, kind: str) -> Imported:
    """The checkpoint in single precision.

    Raises:
        InputError: its tensors are not those of the network that its names describe, or not finite numbers.
    """
    with torch.device("meta"):
        expected = make(imported.model["network"], imported.shape, imported.num_classes).state_dict()
    states, step = {"weights": imported.weights, "averages": imported.averages}, imported.step
    require(
        isinstance(step, int) and 0 <= step < 2**62,
        f"the {kind} checkpoint's step is {step!r:.40}, which is not a number of steps",
    )
    for which, state in states.items():
        if state is not None:
            for name, tensor in state.items():
                _check_tensor(f"the {kind} checkpoint's {which}: {name}", tensor, expected.get(name))
            states[which] = {name: tensor.float() for name, tensor in state.items()}
    return replace(imported, **states)


def _check_tensor(name: str, tensor: Tensor, expected: Tensor | None) -> None:
    require(expected is not None, f"{name} is not a tensor of the network that the file describes")
    found, needed = size_of(tensor), size_of(expected)
    require(found == needed, f"{name} is {found} in the file, but {needed} in the network that its other tensors describe")
    dense = tensor.layout == torch.strided and tensor.is_floating_point()
    require(dense, f"{name} is of type {tensor.dtype} ({tensor.layout}); weights must be dense floating-point numbers")
    require(bool(tensor.isfinite().all()), f"{name} contains NaN or infinity; use an earlier checkpoint")


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
        kind: whose it is: score_sde, ncsnv2, ncsn, ddpm, edm or diffusers.
        averaged: take the averaged (EMA) weights where the file has them.
        size: height and width of the images in pixels, where the file does not say; that of the published models by default.
        sde: of score_sde alone: ve, vp, subvp, ve_discrete or vp_discrete, where folders do not say.
        precond: of edm alone: edm, vp or ve.
        changes: other parts than those found or assumed, as `process=SubVP()`, or settings, as `network={"fir": False}`.

    Raises:
        InputError: an unknown kind, a file that is not of this kind, or one that could run code.
    """
    return build(read(path, kind, size, sde, precond), averaged, **changes)


def build(imported: Imported, averaged: bool = True, **changes: Any) -> ScoreFunction:
    """The score function of an imported checkpoint; `changes` replace parts, or some of their settings."""
    unknown = set(changes) - {"process", "network", "parametrization"}
    require(not unknown, f"{', '.join(sorted(unknown))}: cannot be changed; give process, network or parametrization")
    parts = {name: _changed(imported.model[name], changes.get(name)) for name in ("process", "network", "parametrization")}
    network = make(parts["network"], imported.shape, imported.num_classes)
    state = imported.weights if imported.averages is None or not averaged else imported.averages
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"the weights do not fit the network: {' '.join(str(error).split())[:300]}") from error
    process, parametrization = make(parts["process"]), make(parts["parametrization"])
    return ScoreFunction(network, process, parametrization, imported.num_classes).eval()


def _changed(settings: Settings, change: Any) -> Any:
    if isinstance(change, Mapping):
        return {**settings, "init_args": {**settings["init_args"], **change}}
    return settings if change is None else change


def make(settings: Settings | Any, *arguments: Any) -> Any:
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
