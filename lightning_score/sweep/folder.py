"""The folder of a sweep's results; files that are not of the sweep are never overwritten."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from optuna.storages._rdb.models import BaseModel

from lightning_score.errors import InputError, require

DATABASE, FILE = "study.db", "sweep.yaml"


def folder_of(runs: str, name: str) -> Path:
    """The folder for the results of a sweep.

    Raises:
        InputError: the name is not a folder name.
    """
    fits = name not in ("", ".", "..") and not set(name) & set("/\\\0\n") and len(name.encode()) <= 200
    require(fits, f"--name {name[:60]}: must be a folder name, without /, of at most 200 characters")
    return Path(runs).resolve() / "sweeps" / name


def check_folder(folder: Path, text: str, shared: bool) -> None:
    """Checks that a folder is empty, missing or that of this sweep.

    Args:
        folder: the folder for the results.
        text: the content of this sweep's `sweep.yaml`.
        shared: whether the trials are in a database elsewhere (`--storage`).

    Raises:
        InputError: it contains other files.
    """
    require(not folder.exists() or folder.is_dir(), f"{folder}: not a folder; give a new --name")
    if not folder.exists() or not any(folder.iterdir()):
        return
    file, database = folder / FILE, folder / DATABASE
    known = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
    require(
        known in (None, text),
        f"{folder}: contains another sweep, or another version of its file; give a new --name, or the old file",
    )
    if shared:
        require(
            known is not None and not database.exists(),
            f"{folder}: contains files that are not of this sweep with --storage; give a new --name",
        )
    else:
        require(_is_ours(database), f"{folder}: contains files that are not of a sweep without --storage; give a new --name")


def _is_ours(database: Path) -> bool:
    """Whether a file is a database of trials, possibly incomplete."""
    if not database.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=60)) as connection:
            tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
    except sqlite3.DatabaseError:
        return False
    return tables <= {*BaseModel.metadata.tables, "alembic_version"}


@contextmanager
def creating(folder: Path) -> Iterator[None]:
    """Creates a folder; if the body fails, removes the folders that were created and are empty.

    Raises:
        InputError: it cannot be created.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        with suppress(OSError):
            for place in new:
                place.rmdir()
        if isinstance(error, OSError):
            raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another --runs") from error
        raise
