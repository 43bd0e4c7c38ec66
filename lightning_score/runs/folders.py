"""Run folders: names, new folders, removal of empty ones, and a lock, so that one process at a time trains in one."""

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning_score.errors import InputError, require
from lightning_score.files import replacing
from lightning_score.runs.status import STATUS, is_dead, read_status
from lightning_score.stopping import cleaning

LEADS_OUT = "leads out of the folder of runs, or is not a file; left out"

LONGEST_NAME = 200
"""Bytes of the name of a run; file systems allow 255, and names of files made from it are longer."""

CONSOLE, SYSTEM, LANGEVIN = "console.log", "system.csv", "langevin.jsonl"
"""Files of a run: what its command prints, how busy its machine is, and the levels of Langevin dynamics by validation."""

KIND = "Kind"
"""The metadata of a picture that distinguishes drawings from pixels."""

WITHOUT_RESULT = ("config.yaml", "hparams.yaml", CONSOLE, SYSTEM, STATUS)
"""Files that a run writes although it may not have computed anything."""

LAST_WORKERS = 8.0
"""Seconds that data-loading processes may outlive a killed run."""

_made: list[tuple[Path, list[Path]]] = []  # folders that this process made, with the parents that it had to make
_held: list[int] = []  # descriptors of the folders that it has locked


def check_name(name: str, option: str) -> None:
    """Refuses a name that is not the name of one folder in the folder of all runs, such as `../other`.

    Args:
        name: from an option, a config or a checkpoint.
        option: the option that sets it.

    Raises:
        InputError: it leads elsewhere, or cannot be the name of a folder.
    """
    plain = name.isprintable() and not set(name) & set("/\\")
    length = len(name.encode(errors="replace"))
    fits = plain and 0 < length <= LONGEST_NAME and name[0] not in "-." and name == name.strip() and name != "latest"
    require(
        fits,
        f"{option} {name[:80]!r}: must be the name of one folder, 1 to {LONGEST_NAME} bytes without / or \\, that does not "
        "begin with a dot, a space or a hyphen, and is not latest; as in my_run",
    )


def leads_out(file: Path, root: Path) -> bool:
    """Whether a path is not a file below a folder: a link to elsewhere, a pipe or a device."""
    if not os.path.lexists(file):
        return False
    return not (os.path.isfile(file) and os.path.realpath(file).startswith(os.path.join(os.path.realpath(root), "")))


def new_folder(folder: Path) -> Path:
    """Makes a folder that did not exist before, with its parents.

    Raises:
        InputError: it exists or cannot be written.
    """
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise InputError(f"{folder}: already exists and is not overwritten; give a new folder") from error
    except OSError as error:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another output folder") from error
    _made.append((folder, missing))
    return folder


@contextmanager
def discarding() -> Iterator[None]:
    """Removes folders made within it that hold no results, if a signal or a user's mistake ends it."""
    before = len(_made)

    def discard() -> None:
        for folder, parents in _made[before:]:
            if not any(file.name not in WITHOUT_RESULT for file in _files(folder)):
                _discard(folder, parents)

    with cleaning(discard):
        try:
            yield
        except (KeyboardInterrupt, SystemExit, InputError, OSError):
            discard()
            raise


def _files(folder: Path) -> Iterator[Path]:
    """Files of a run that may be results: not those of W&B, which repeat others, nor metrics without a row."""
    for file in folder.rglob("*"):
        empty = file.name == "metrics.csv" and file.read_bytes().count(b"\n") < 2
        if file.is_file() and "wandb" not in file.relative_to(folder).parts and not empty:
            yield file


def _discard(folder: Path, parents: Sequence[Path]) -> None:
    """Removes a folder and the parents made for it; `latest` then points to the run before it."""
    shutil.rmtree(folder, ignore_errors=True)
    link = folder.parent / "latest"
    with suppress(OSError):
        if link.is_symlink() and not link.exists():
            link.unlink()
            others = sorted(file.parent for file in folder.parent.glob(f"*/{STATUS}"))
            if others:
                point_latest(others[-1])
        for parent in parents:
            parent.rmdir()


def new_dated_folder(parent: Path) -> Path:
    """Makes `parent/<date>_<time>`, with a number appended if it exists.

    Raises:
        InputError: it cannot be written.
    """
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder, n = parent / stamp, 1
    while True:
        try:
            return new_folder(folder)
        except InputError:
            if not folder.exists():
                raise
        n += 1
        folder = parent / f"{stamp}-{n}"


def point_latest(folder: Path) -> None:
    """Atomically makes `latest`, next to the folder, a link to it."""
    with replacing(folder.parent / "latest") as temporary:
        temporary.symlink_to(folder.name)


def hold(folder: Path) -> None:
    """Locks a run folder until the command or its process ends: two runs would overwrite each other's files.

    Raises:
        InputError: another process is training in it.
    """
    _held.append(os.open(folder, os.O_RDONLY))
    status = read_status(folder)
    where = f"process {status.get('pid')} on {status.get('host')}"
    alive = status.get("host") == socket.gethostname() and not is_dead(f"{status['host']}:{status.get('pid')}")
    end = time.monotonic() + (0 if alive else LAST_WORKERS)
    with suppress(OSError):  # of a file system that cannot lock folders
        while not _locks(_held[-1]):
            require(time.monotonic() < end, f"{folder}: {where} is training in this run; wait for its end, or stop it")
            time.sleep(0.1)


def remove_without_results(folder: Path) -> None:
    """Removes the folder of a run that was killed before it had computed anything."""
    if not any(file.name not in WITHOUT_RESULT for file in _files(folder)):
        shutil.rmtree(folder, ignore_errors=True)


def is_held(folder: Path) -> bool:
    """Whether a process is training in a run folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return not _locks(descriptor)
    except OSError:  # a file system that cannot lock folders
        return False
    finally:
        os.close(descriptor)


def _locks(descriptor: int) -> bool:
    """Locks a folder unless another process has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def release() -> None:
    """Unlocks all folders."""
    while _held:
        os.close(_held.pop())
