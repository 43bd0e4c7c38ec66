"""What every module needs: the error for a user's mistake, the one broadcasting helper, memory and the folder of caches."""

import ctypes
import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import Any, Literal, NewType

import torch
from torch import Tensor

CPU = torch.device("cpu")

Auto = Literal["auto"]
"""Stands in the place of a number in a config whose number `fit` chooses from the data."""

LocalPath = NewType("LocalPath", str)
"""A file or folder, or a URL: options of this type, and of pathlib.Path, are made absolute, so that a checkpoint serves in
any folder.
"""

AUTO_IN_FIT = "auto stands in a config of fit only: elsewhere take the number that schedule.plan or `schedule` finds"


class InputError(ValueError):
    """A mistake in what the user gave: the message names the value, what is allowed and the fix.

    The command line prints it as one line, without a traceback, and exits with a non-zero code.
    """


class Unmeasurable(InputError):
    """Samples or numbers from which nothing can be found, as those of a sampler that diverged. Training may go on."""


MOST_PASSES = 1_000_000


def require(condition: bool, message: str) -> None:
    """Raises `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def require_batch(batch: Any, shape: Sequence[int], num_classes: int = 0) -> tuple[Tensor, Tensor]:
    """A batch (x, y), refused unless it is what a model of examples of `shape` takes; it costs no transfer from a device.

    Args:
        batch: what a data loader gives.
        shape: of one example.
        num_classes: of a model that takes the labels; 0: they are not used.

    Raises:
        InputError: it is something else.
    """
    pair = isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
    require(
        pair, "a batch must be a pair (x, y) of tensors, examples and labels: give a ScoreData, or a loader of such pairs"
    )
    x, y = batch
    if x.shape[1:] != tuple(shape) or not x.is_floating_point():
        raise InputError(
            f"a batch holds examples of shape {tuple(x.shape[1:])} and {x.dtype}, but the model was made for floats of "
            f"shape {tuple(shape)}: convert them in the data, or make the model for their shape"
        )
    if num_classes:
        known = y.dtype == torch.int64 and y.shape == x.shape[:1]
        known = known and (y.device.type != "cpu" or bool((y >= 0).all() and (y < num_classes).all()))
        if not known:
            ends = f", from {y.min().item():g} to {y.max().item():g}" if y.numel() else ""
            raise InputError(
                f"a batch holds labels of {y.dtype} and shape {tuple(y.shape)}{ends}: they must be torch.int64 of shape "
                f"({len(x)},), from 0 to {num_classes - 1}"
            )
    return x, y


def require_classes(config: Any) -> None:
    """Refuses a parsed configuration in which a class is to be made of what is none: a parser that is given the name of a
    function calls it with what stands beside it, or hands it on to be called.

    Args:
        config: mappings and sequences of plain values.

    Raises:
        InputError: a `class_path` names something else than a class, or a value is a function.
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
    else:
        name = getattr(config, "__qualname__", config)
        called = inspect.isroutine(config) or isinstance(config, partial)
        require(not called, f"{name}: is a function, and a config makes nothing but classes")


def printable(text: str) -> str:
    """Text of others in one line, without control characters, which would steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


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


def free_memory() -> float:
    """Bytes of main memory that this process can still take, of the machine and of its control group; infinity where the
    system does not say."""
    found = [math.inf]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(found)


def require_passes(**counts: int) -> None:
    """Refuses numbers of steps, levels or draws, given by their names, each of which costs a pass through the network, that
    no run comes to the end of.

    Raises:
        InputError: one is above `MOST_PASSES`.
    """
    for name, count in counts.items():
        require(count <= MOST_PASSES, f"{name}={count}: at most {MOST_PASSES}; each costs a pass through the network")


def require_room(nbytes: float, what: str, fix: str = "take fewer or smaller ones") -> None:
    """Refuses what would not fit into main memory, before it is begun: a system that overcommits would end the program.

    Args:
        nbytes: how much it takes at least.
        what: that, for the message.
        fix: what to do about it.

    Raises:
        InputError: there is less memory.
    """
    free = free_memory() if nbytes > 1 << 24 else math.inf
    require(nbytes <= free, f"{what}: takes at least {nbytes / 1e9:.3g} GB of memory, and {free / 1e9:.3g} are free; {fix}")
