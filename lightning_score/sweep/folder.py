"""The folder of a sweep's results; files that are not of the sweep are never overwritten."""

import sqlite3
from contextlib import closing
from pathlib import Path

from optuna.storages._rdb.models import BaseModel

from lightning_score.errors import InputError, require
from lightning_score.runs.folders import check_name, new_folder

DATABASE, FILE = "study.db", "sweep.yaml"


def folder_of(runs: str, name: str) -> Path:
    """The folder for the results of a sweep.

    Raises:
        InputError: the name is not a folder name.
    """
    check_name(name, "--name")
    return Path(runs).resolve() / "sweeps" / name


def make_folder(folder: Path) -> None:
    """Makes a folder with its parents, unless it exists.

    Raises:
        InputError: it cannot be written.
    """
    try:
        new_folder(folder)
    except InputError:
        if not folder.is_dir():  # it existed, or another machine has made it in the meantime
            raise


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
    other = f"{folder}: contains another sweep, or another version of its file; give a new --name, or the old file"
    require(known in (None, text), other)
    ours = known is not None and not database.exists() if shared else _is_ours(database)
    which = "with" if shared else "without"
    require(ours, f"{folder}: contains files that are not of this sweep {which} --storage; give a new --name")


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
