"""The folder of a sweep's results: nobody else's files are overwritten in it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from optuna.storages._rdb.models import BaseModel

from lightning_score.errors import InputError, require

DATABASE, FILE = "study.db", "sweep.yaml"


def folder_of(runs: str, name: str) -> Path:
    """Where the results of a sweep go.

    Raises:
        InputError: the name is not that of a folder.
    """
    fits = name not in ("", ".", "..") and not set(name) & set("/\\\0\n") and len(name.encode()) <= 200
    require(fits, f"--name {name[:60]}: must be the name of a folder, without /, of at most 200 characters")
    return Path(runs).resolve() / "sweeps" / name


def check_folder(folder: Path, text: str, shared: bool) -> None:
    """Looks whether a folder is free, or that of this sweep.

    Args:
        folder: of the results.
        text: what its `sweep.yaml` holds if it is of this sweep.
        shared: whether the trials are in a database elsewhere.

    Raises:
        InputError: it holds something else.
    """
    require(not folder.exists() or folder.is_dir(), f"{folder}: is not a folder; give a new --name")
    if not folder.exists() or not any(folder.iterdir()):
        return
    file, database = folder / FILE, folder / DATABASE
    known = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
    require(
        known in (None, text),
        f"{folder}: holds another sweep, or another version of its file; give a new --name, or the old file",
    )
    if shared:
        require(
            known is not None and not database.exists(),
            f"{folder}: holds files that are not of this sweep with --storage; give a new --name",
        )
    else:
        require(_is_ours(database), f"{folder}: holds files that are not of a sweep without --storage; give a new --name")


def _is_ours(database: Path) -> bool:
    """Whether a file holds a database of trials, or is the beginning of one."""
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
    """Makes a folder; if what follows fails, the folders that are new and empty are removed again.

    Raises:
        InputError: it cannot be made.
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
