"""What every module needs: the error for a user's mistake, the one broadcasting helper, memory and the folder of caches."""

import ctypes
import hashlib
import inspect
import math
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import Any, Literal, NewType
from zipfile import ZipFile, is_zipfile

import numpy as np
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


unwritten: list[str] = []
"""Files that `without_room` has left out in this process."""


@contextmanager
def without_room(file: Path) -> Iterator[None]:
    """Says that a file cannot be written, as on a full disk, and goes on: what a run computes is worth more than what is
    kept of it on the way.
    """
    try:
        yield
    except OSError as error:
        unwritten.append(str(file))
        print(f"{file}: cannot be written ({error.strerror or error}); the run goes on without", file=sys.stderr, flush=True)


UNPACKED, DENSER = 1 << 30, 200
"""An archive of arrays may hold so many bytes once it is unpacked, or so many times those of its file."""


def read_tensors(file: Path, allowed: tuple[Any, ...] = ()) -> Any:
    """What a file of `torch.save` holds: tensors and plain values. Code that it may hold is not run.

    Args:
        file: the file.
        allowed: the few harmless classes or functions that it may name besides.

    Raises:
        InputError: it is damaged or truncated, holds code, or unpacks to more than it is.
    """
    try:
        if is_zipfile(file):
            with ZipFile(file) as archive:  # torch packs, but does not compress
                size = sum(entry.file_size for entry in archive.infolist())
            require(
                size <= file.stat().st_size, f"{file}: unpacks to {size:,} bytes, more than it has: not a file of torch.save"
            )
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # pickle, zipfile and torch each raise their own
        said = str(error).strip()
        if "WeightsUnpickler error" in said or "Weights only load failed" in said:  # torch advises to switch safety off
            code = re.search(r"(?:GLOBAL|class|function) ([\w.]+\.\w+)", said)
            named = f" ({code[1]})" if code else ""
            raise InputError(f"{file}: holds code{named} that could run when it is loaded, so it is not loaded") from None
        reason = re.split(r"\n|\. ", said)[0] if " " in said else type(error).__name__
        raise InputError(f"{file}: not a readable file of tensors, damaged or truncated ({reason})") from error


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a NPZ by their names, or that of a NPY by the name `x`; no pickle is read.

    Raises:
        InputError: it is damaged, is another kind of file, holds pickles, or unpacks to too much.
    """
    try:
        if not is_zipfile(file):
            return {"x": np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))}  # mapped: as large as the file
        with ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        most = max(UNPACKED, DENSER * file.stat().st_size)
        require(size <= most, f"{file}: unpacks to {size:,} bytes; at most {most:,} are read")
        with np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except InputError:
        raise
    except Exception as error:  # numpy and zipfile each raise their own
        said = " ".join(str(error).split())
        reason = (
            "it holds pickles, which may run any code, or is of another kind"
            if "allow_pickle" in said
            else said or type(error).__name__
        )
        raise InputError(f"{file}: not a readable NPY or NPZ file of numbers ({reason})") from error


def seed_of(*parts: int) -> int:
    """A seed for what is told apart by some numbers, each at least 0, and by the seed of the run (`seed_everything`)."""
    run = int(os.environ.get("PL_GLOBAL_SEED", 0))
    return int(np.random.SeedSequence([run, *parts]).generate_state(1, np.uint64)[0])


def counted_seed(*numbers: int) -> int:
    """A seed for what some numbers count, such as a run, an epoch and a batch: 64 bits of a hash of them."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest())


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Within it, torch's random numbers on the CPU and on a GPU are those of a seed; after it they continue as before."""
    before = random_state(device)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a hundred times as long
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        take_up(before, device)


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


@contextmanager
def new_folder_if_kept(folder: Path) -> Iterator[None]:
    """Makes a folder with its parents; if what follows fails, those that it made go again, as far as they are empty."""
    made = [place for place in (folder, *folder.absolute().parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for place in made:
            with suppress(OSError):
                place.rmdir()
        raise


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
