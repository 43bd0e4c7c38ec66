"""Checkpoints: written atomically, the previous one kept, every byte checked when read, no code run."""

import lightning_score.lean_imports  # noqa: F401

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from tqdm import tqdm

from lightning_score.errors import InputError, one_line, require
from lightning_score.files import read_tensors, replacing
from lightning_score.runs.bundle import is_bundle, read_bundle
from lightning_score.runs.old_names import with_new_names
from lightning_score.runs.pretrained import find_checkpoint, pretrained

CONFIGS = {"config", "hyper_parameters", "datamodule_hyper_parameters"}
"""Entries of a checkpoint that name classes."""
LAST = "last.ckpt"
"""The name of the newest checkpoint in a run folder."""
PREVIOUS = ".previous"
"""The ending of the name of the checkpoint before the newest."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint atomically and keeps the former one as `<name>.previous`. On a full disk the run continues without
    it. Reading checks every byte and runs no code.

    Attributes:
        unsaved: by file, the reason why its newest checkpoint could not be written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unsaved: dict[str, str] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes it, or prints why that failed; the former checkpoint stays intact."""
        file = Path(path)
        try:
            with replacing(file) as temporary:
                with temporary.open("wb") as stream:
                    torch.save(checkpoint, stream)
                    stream.flush()
                    os.fsync(stream.fileno())
                _keep_previous(file)
            self.unsaved.pop(str(file), None)
        except OSError as error:
            self.unsaved[str(file)] = reason = str(error.strerror)
            there = f"; {file} is the previous one" if file.exists() else ""
            tqdm.write(
                f"checkpoint of step {checkpoint.get('global_step')}: not saved ({reason}){there}. Training continues."
            )

    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads an undamaged one.

        Raises:
            InputError: it is damaged.
        """
        return read_checkpoint(Path(path))


def read_checkpoint(file: Path) -> dict[str, Any]:
    """An undamaged checkpoint, the bundle in a folder, or the model of this name in the package, on the CPU: tensors and
    plain values; no code is run.

    Raises:
        InputError: it is missing, damaged, not a checkpoint, or holds code.
    """
    file = find_checkpoint(file)
    found = read_bundle(file) if is_bundle(file) else _read(file)
    return found | {name: with_new_names(found[name]) for name in CONFIGS & found.keys()}


def _read(file: Path) -> dict[str, Any]:
    known = f"the package has {', '.join(pretrained())}"
    require(file.exists(), f"{file}: there is no such file; runs/NAME/latest/last.ckpt is the newest of a run, {known}")
    require(not file.is_dir(), f"{file}: this is a folder; give the file in it, as last.ckpt")
    require(file.is_file(), f"{file}: not a file; runs/NAME/latest/last.ckpt is the newest")
    verify_checksums(file)
    found = read_tensors(file)
    require(isinstance(found, dict), f"{file}: not a checkpoint but a file of {type(found).__name__}")
    return found


def last_saved(folder: Path) -> float:
    """When the last checkpoint of a run was written, in seconds since 1970; 0 without one."""
    files = (folder / LAST, folder / f"{LAST}{PREVIOUS}")
    return next((file.stat().st_mtime for file in files if file.is_file()), 0.0)


def _keep_previous(file: Path) -> None:
    """Links the present checkpoint to its second name, before a new one replaces it."""
    if file.exists():
        with suppress(OSError), replacing(file.with_name(file.name + PREVIOUS)) as link:
            os.link(file, link)  # without hard links there is only one checkpoint


def verify_checksums(file: Path) -> None:
    """Compares every byte of a checkpoint with the checksums in the file.

    Raises:
        InputError: it is truncated, changed, or not a checkpoint; the message names the previous one, if that is undamaged.
    """
    fault = _fault(file)
    if not fault:
        return
    before = file.with_name(file.name + PREVIOUS)
    offer = f"; the previous one is undamaged: {before}" if before.exists() and not _fault(before) else ""
    raise InputError(f"{file}: not a readable checkpoint, damaged or truncated ({fault}){offer}")


def _fault(file: Path) -> str:
    """The damage of a checkpoint; empty if there is none."""
    try:
        with ZipFile(file) as archive:
            packed = sum(entry.file_size for entry in archive.infolist())
            if packed > file.stat().st_size:  # torch does not compress
                return f"it unpacks to {packed:,} bytes, more than its size"
            broken = archive.testzip()
        return f"{broken} has changed since it was written" if broken else ""
    except (OSError, BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        return one_line(error, 160)
