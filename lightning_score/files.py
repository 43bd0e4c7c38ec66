"""Reading files safely and writing them atomically."""

import csv
import hashlib
import io
import os
import re
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import EIO
from pathlib import Path
from typing import Any, NewType
from zipfile import ZipFile, is_zipfile

import numpy as np
from safetensors import SafetensorError

from lightning_score import stopping
from lightning_score.errors import InputError, one_line, require

LocalPath = NewType("LocalPath", str)
"""A file, folder or URL: options of this type, and of pathlib.Path, are made absolute, so that a checkpoint works from any
folder.
"""
CheckpointPath = NewType("CheckpointPath", str)
"""A checkpoint, run folder or bundle, made absolute as `LocalPath` is, or a model of the package or of the Hub."""

unwritten: list[str] = []
"""Files that `tolerating_full_disk` could not write in this process."""

UNPACKED, DENSER = 1 << 30, 200
"""The most bytes that an archive of arrays may unpack to, or the most times its own size."""
OF_A_DISK = re.compile(r"PytorchStreamWriter|unexpected pos|inline_container|iostream|os error")
"""Messages of torch and safetensors on a full disk."""


@contextmanager
def replacing(file: str | Path) -> Iterator[Path]:
    """A temporary path next to a file or folder, which replaces it at the end; after an error or a signal it is removed.

    Args:
        file: the file or folder to write; its parent is made if it does not exist.

    Raises:
        OSError: it cannot be written; the error names `file`. Also in place of torch's errors about the disk.
    """
    file = Path(file)
    temporary = file.with_name(f".{os.getpid()}-{socket.gethostname()}-{file.name[-60:]}")  # of all that share the folder
    with stopping.cleaning(lambda: _remove(temporary)):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(file)
        except OSError as error:
            raise type(error)(error.errno, error.strerror or str(error), str(file)) from error
        except (RuntimeError, SafetensorError) as error:
            if not OF_A_DISK.search(str(error)):
                raise
            cause = error.__context__ if isinstance(error.__context__, OSError) else OSError(EIO, str(error)[:160])
            raise OSError(cause.errno, cause.strerror, str(file)) from error
        finally:
            _remove(temporary)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def tolerating_full_disk(file: Path) -> Iterator[None]:
    """Within it, a file that cannot be written, as on a full disk, is only reported: the run matters more than its logs."""
    try:
        yield
    except OSError as error:
        unwritten.append(str(file))
        reason = f"{file}: cannot be written ({error.strerror or error}); the run continues without it"
        print(reason, file=sys.stderr, flush=True)


def read_tensors(file: Path, allowed: tuple[Any, ...] = ()) -> Any:
    """The content of a file of `torch.save`: tensors and plain values; no code is run.

    Args:
        file: the file.
        allowed: further harmless classes or functions that it may name.

    Raises:
        InputError: it is damaged or truncated, holds code, or unpacks to more than its size.
    """
    import torch  # takes a second to import

    try:
        if is_zipfile(file):
            _require_unpacked(file, file.stat().st_size)  # torch packs, but does not compress
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # of pickle, zipfile or torch
        text = str(error).strip()
        if "WeightsUnpickler error" in text or "Weights only load failed" in text:  # torch advises to turn off the check
            code = re.search(r"(?:GLOBAL|class|function) ([\w.]+\.\w+)", text)
            named = f" ({code[1]})" if code else ""
            raise InputError(f"{file}: holds code{named} that could run when it is loaded, so it is not loaded") from None
        reason = re.split(r"\n|\. ", text)[0] if " " in text else type(error).__name__
        raise InputError(f"{file}: not a readable file of tensors, damaged or truncated ({reason})") from error


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an NPZ by name, or the array of an NPY under `x`; no pickle is read.

    Raises:
        InputError: it is damaged, another kind of file, holds pickles, or unpacks to too much.
    """
    try:
        if not is_zipfile(file):
            return {"x": np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))}  # mapped, so not larger than the file
        _require_unpacked(file, max(UNPACKED, DENSER * file.stat().st_size))
        with np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except InputError:
        raise
    except Exception as error:  # of numpy or zipfile
        pickled = "allow_pickle" in str(error)
        reason = "it holds pickles, which may run any code, or is another kind of file" if pickled else one_line(error)
        raise InputError(f"{file}: not a readable NPY or NPZ file of numbers ({reason})") from error


def _require_unpacked(file: Path, most: int) -> None:
    """Raises `InputError` if an archive unpacks to more bytes than are allowed."""
    with ZipFile(file) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    require(size <= most, f"{file}: unpacks to {size:,} bytes; at most {most:,} are read")


def file_hash(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for part in iter(lambda: stream.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()


def cache_folder() -> Path:
    """The folder for what can be recomputed: in the user's cache folder (XDG), or among the temporary files if that cannot
    be written.
    """
    wanted = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_score"
    try:
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir()) / "lightning_score"
    return wanted


@contextmanager
def new_folder_if_kept(folder: Path) -> Iterator[None]:
    """Makes a folder with its parents; if the block fails, removes those of them that are empty."""
    made = [place for place in (folder, *folder.absolute().parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for place in made:
            with suppress(OSError):
                place.rmdir()
        raise


@contextmanager
def made_once(path: Path) -> Iterator[None]:
    """Lets one process at a time make a file or folder of a cache; the others wait. If the block fails, nothing is left."""
    from filelock import FileLock

    lock = Path(f"{path}.lock")
    with new_folder_if_kept(path.parent):
        try:
            with FileLock(lock):
                yield
        except BaseException:
            lock.unlink(missing_ok=True)
            raise


def csv_text(lines: Iterable[Iterable[Any]]) -> str:
    """Lines of cells as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    return text.getvalue()


def replace_text(file: Path, text: str) -> None:
    """Writes a file atomically."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
