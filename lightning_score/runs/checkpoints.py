"""How checkpoints are written and read: in one move, with the one before beside them, every byte checked, no code run."""

import lightning_score.torchvision_guard  # noqa: F401

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from tqdm import tqdm

from lightning_score.errors import InputError, require
from lightning_score.files import read_tensors, replacing
from lightning_score.runs.old_names import with_new_names

CONFIGS = {"config", "hyper_parameters", "datamodule_hyper_parameters"}
"""The entries of a checkpoint that name classes."""
PREVIOUS = ".previous"
"""What the name of the checkpoint before the newest one ends in."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint into a file beside, onto the disk, and only then to its name, in one move; the one that had the
    name stays as `<name>.previous`. Where there is no room the run goes on without. Reading checks every byte and runs no
    code.

    Attributes:
        unsaved: why the newest checkpoint of a file could not be written, by the file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unsaved: dict[str, str] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes it, or says why it could not; what was there before is harmed in no case."""
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
            self.unsaved[str(file)] = reason = error.strerror
            there = f"; {file} is the one before" if file.exists() else ""
            tqdm.write(f"checkpoint of step {checkpoint.get('global_step')}: not saved ({reason}){there}. Training goes on.")

    def load_checkpoint(
        self, path: Any, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads one that is whole.

        Raises:
            InputError: it is damaged.
        """
        return read(Path(path))


def read(file: Path) -> dict[str, Any]:
    """A checkpoint that is whole, on the CPU: tensors and plain values; code that it may hold is not run.

    Raises:
        InputError: it is missing, damaged, no checkpoint, or holds code.
    """
    require(file.exists(), f"{file}: there is no such file; runs/NAME/latest/last.ckpt is the newest")
    require(not file.is_dir(), f"{file}: this is a folder; give the file in it, as last.ckpt")
    require(file.is_file(), f"{file}: not a file; runs/NAME/latest/last.ckpt is the newest")
    check(file)
    found = read_tensors(file)
    require(isinstance(found, dict), f"{file}: not a checkpoint but a file of {type(found).__name__}")
    return found | {name: with_new_names(found[name]) for name in CONFIGS & found.keys()}


def _keep_previous(file: Path) -> None:
    """Gives the checkpoint that is there a second name, and only then its place to a new one."""
    if file.exists():
        with suppress(OSError), replacing(file.with_name(file.name + PREVIOUS)) as link:
            os.link(file, link)  # on a file system without hard links there is one checkpoint, as ever


def check(file: Path) -> None:
    """Reads every byte of a checkpoint and compares it with the checksums that the file holds.

    Raises:
        InputError: it is truncated, a bit of it has changed, or it is no checkpoint; the message names the one before it, if
            that is whole.
    """
    fault = _fault(file)
    if not fault:
        return
    before = file.with_name(file.name + PREVIOUS)
    offer = f"; the one before it is whole: {before}" if before.exists() and not _fault(before) else ""
    raise InputError(f"{file}: not a readable checkpoint, damaged or truncated ({fault}){offer}")


def _fault(file: Path) -> str:
    """What is wrong with a checkpoint, or nothing."""
    try:
        with ZipFile(file) as archive:
            packed = sum(entry.file_size for entry in archive.infolist())
            if packed > file.stat().st_size:  # torch does not compress
                return f"it unpacks to {packed:,} bytes, more than it has"
            broken = archive.testzip()
        return f"{broken} has changed since it was written" if broken else ""
    except (OSError, BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        return " ".join(str(error).split())[:160] or type(error).__name__
