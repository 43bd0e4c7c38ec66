"""What every module needs: the error for a user's mistake, the one broadcasting helper, memory and the folder of caches."""

import ctypes
import inspect
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from pydoc import locate
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Auto = Literal["auto"]
"""Stands in the place of a number in a config whose number `fit` chooses from the data."""

AUTO_IN_FIT = "auto stands in a config of fit only: elsewhere take the number that schedule.plan or `schedule` finds"


class InputError(ValueError):
    """A mistake in what the user gave: the message names the value, what is allowed and the fix.

    The command line prints it as one line, without a traceback, and exits with a non-zero code.
    """


class Unmeasurable(InputError):
    """Samples or numbers from which nothing can be found, as those of a sampler that diverged. Training may go on."""


def require(condition: bool, message: str) -> None:
    """Raises `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def require_classes(config: Any) -> None:
    """Refuses a configuration in which a class is to be made of what is none: a parser that is given the name of a function
    calls it with what stands beside it, and a checkpoint brings a configuration of its own.

    Args:
        config: mappings and sequences of plain values.

    Raises:
        InputError: a `class_path` names something else than a class.
    """
    if isinstance(config, Mapping):
        name = config.get("class_path")
        found = locate(name) if isinstance(name, str) and "." in name else None
        require(
            found is None or inspect.isclass(found),
            f"class_path {name}: is no class, and nothing else is made from a config",
        )
    if isinstance(config, Mapping | list | tuple):
        for part in config.values() if isinstance(config, Mapping) else config:
            require_classes(part)


def as_list(chosen: Any) -> list[Any]:
    """What may be given as one, as several or not at all, as a list."""
    return [] if chosen is None else list(chosen) if isinstance(chosen, list | tuple) else [chosen]


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """Shapes a coefficient, () or (B,), so that it multiplies `x`, (B, ...), sample by sample, in the precision of `x`.

    One of shape () may stay on the CPU: it multiplies tensors of any device, and none has to wait for it.
    """
    coefficient = torch.as_tensor(coefficient).to(x.dtype)
    return coefficient if coefficient.ndim == 0 else coefficient.to(x.device).reshape(-1, *[1] * (x.ndim - 1))


def is_number(coefficient: Tensor | float) -> bool:
    """Whether it is one number that can be read at once: no device has to be waited for, no gradient is lost, and no graph
    that is being compiled ends there.
    """
    if not isinstance(coefficient, Tensor):
        return True
    readable = coefficient.device.type == "cpu" and not torch.compiler.is_compiling()
    return coefficient.ndim == 0 and readable and not coefficient.requires_grad


def combine(*terms: tuple[Tensor | float, Tensor]) -> Tensor:
    """The linear combination a x + b y + ..., each term in one pass over memory; none for those with coefficient 0.

    Args:
        terms: pairs of a coefficient, () or (B,), and a tensor (B, ...).
    """
    pairs = [(float(c) if is_number(c) else expand(c, x), x) for c, x in terms]
    pairs = [pair for pair in pairs if not _is(pair[0], 0.0)]
    if not pairs:
        return torch.zeros_like(terms[0][1])
    pairs.sort(key=lambda pair: not _is(pair[0], 1.0))  # what needs no product can be added to at once
    (c, x), *others = pairs
    total = x if _is(c, 1.0) else c * x
    for c, x in others:
        total = torch.add(total, x, alpha=c) if isinstance(c, float) else total + c * x
    return total


def _is(coefficient: Tensor | float, number: float) -> bool:
    return isinstance(coefficient, float) and coefficient == number


def keep_freed_memory() -> None:
    """Lets the C library keep large blocks that are freed, for the next step, instead of giving them back to the system.

    A training step on a CPU frees and takes hundreds of them, and without this spends up to a fifth of its time in page
    faults. It concerns the process as a whole, and glibc (Linux) alone; elsewhere nothing happens.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its upper limit
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


@contextmanager
def without_room(file: Path) -> Iterator[None]:
    """Says that a file cannot be written, as on a full disk, and goes on: what a run computes is worth more than what is
    kept of it on the way.
    """
    try:
        yield
    except OSError as error:
        print(f"{file}: cannot be written ({error.strerror or error}); the run goes on without", file=sys.stderr, flush=True)


def seed_of(*parts: int) -> int:
    """A seed for what is told apart by some numbers, each at least 0, and by the seed of the run (`seed_everything`)."""
    run = int(os.environ.get("PL_GLOBAL_SEED", 0))
    return int(np.random.SeedSequence([run, *parts]).generate_state(1, np.uint64)[0])


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's random numbers on the CPU and, if that is where a model is, on a GPU."""
    on_gpu = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **on_gpu}


def take_up(state: dict[str, Tensor], device: torch.device) -> None:
    """Goes on with random numbers from a state, as far as it holds one."""
    if "cpu" in state:
        torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def cache_folder() -> Path:
    """Where what can be computed again is kept: lightning_score in the user's cache folder (XDG Base Directory), or, where
    that cannot be written to, in the folder of temporary files.
    """
    wanted = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_score"
    try:
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir()) / "lightning_score"
    return wanted
