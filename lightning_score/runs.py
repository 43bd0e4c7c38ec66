"""Run folders: one for each run, and a stable path to the newest."""

import os
import time
from pathlib import Path

from lightning_score.utils import InputError


def new_folder(folder: Path) -> Path:
    """Makes a folder that did not exist before, with its parents.

    Raises:
        InputError: it exists or cannot be written.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise InputError(f"{folder}: exists already and nothing is overwritten; give a new folder") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another output folder") from error
    return folder


def new_dated_folder(parent: Path) -> Path:
    """Makes `parent/<date>_<time>`, with a number behind it where two begin in one second.

    Raises:
        InputError: it cannot be written.
    """
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for suffix in ("", *(f"-{k}" for k in range(2, 1000))):
        folder = parent / f"{stamp}{suffix}"
        if not folder.exists():
            try:
                return new_folder(folder)
            except InputError:
                if not folder.exists():
                    raise
    raise InputError(f"{parent}: holds a thousand folders of this second already; choose another output folder")


def point_latest(folder: Path) -> None:
    """Makes `latest`, beside the folder, a link to it, in one step that readers never see half done."""
    link, temporary = folder.parent / "latest", folder.parent / f".latest-{os.getpid()}"
    temporary.symlink_to(folder.name)
    temporary.replace(link)
