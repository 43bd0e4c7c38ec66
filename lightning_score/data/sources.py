"""Where arrays are: an array, or columns of a table, in a file or in every file of a folder."""

import hashlib
import shutil
import tempfile
from collections.abc import Collection, Sequence
from errno import ENOSPC
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lightning_score.data.readers import Member, Members, checked, files_of, located, members_of, reading
from lightning_score.errors import InputError, require
from lightning_score.files import cache_folder, made_once
from lightning_score.memory import free_memory, require_room

Name = str | int
"""The name of an array or column, or its number among them."""
USUAL = ("x", "data", "images", "SCI")
"""Usual names of the data among several arrays."""
MAPPED_FILES = 256
"""Files that are mapped one by one, at most; a process may open about a thousand. More are read, or copied into one."""
COPIED = 1 << 26
"""Bytes that are copied at once."""


class Source:
    """An array, or columns of a table, in a file or in every file of a folder.

    Args:
        paths: files, folders, or `package://NAME/PATH`.
        key: the name or number of the array, or names of columns, in each file; None: the only one, or all columns.
        without: columns that are not among all columns.
        text: whether it may hold text, as the names of groups.
    """

    def __init__(
        self,
        paths: Sequence[str],
        key: Name | Sequence[Name] | None = None,
        without: Collection[str] = (),
        text: bool = False,
    ):
        self.key = None if key is None else texts(key) if isinstance(key, list | tuple) else str(key)
        self.paths, self.without, self.text = paths, without, text

    @cached_property
    def files(self) -> list[Path]:
        """The files of each path in the order of their names."""
        return [file for path in self.paths for file in files_of(located(path))]

    def __str__(self) -> str:
        return f"{self.paths[0]}{'' if self.key is None else f': {self.key}'}"

    @property
    def count(self) -> int:
        """The number of files of the first path."""
        return len(files_of(located(self.paths[0])))

    def rows(self, alone: bool) -> np.ndarray:
        """The rows of all files, in memory; `alone`: each file is one row."""
        rows = [array[None] if alone else array for array in self.arrays(True, None)]
        sizes = {row.shape[1:] for row in rows}
        require(len(sizes) == 1, f"{self}: the files differ in the shape of an example: {sorted(sizes)}; keep one shape")
        return np.concatenate(rows)

    @cached_property
    def first(self) -> Member:
        """The header of the first file."""
        return self.member(self.files[0])

    @cached_property
    def columns(self) -> list[str]:
        """The names of the columns of a table; none for another array."""
        key = self._chosen(members_of(self.files[0]), self.files[0])
        return key if isinstance(key, list) else []

    def member(self, file: Path) -> Member:
        """The array of one of the files.

        Raises:
            InputError: there is none of this name, or it holds no numbers.
        """
        members = members_of(file)
        key = self._chosen(members, file)
        if isinstance(key, str):
            return checked(f"{file}{': ' * bool(key)}{key}", members[key], self.text)
        columns = [checked(f"{file}: {name}", members[name]) for name in key]
        sizes = {column.shape for column in columns}
        require(len(sizes) == 1, f"{file}: the columns {key} differ in shape: {sorted(sizes)}; choose those of one shape")
        dtype = np.result_type(*(column.dtype for column in columns))
        shape = (*columns[0].shape, len(columns))
        return Member(shape, dtype, lambda: np.stack([np.asarray(column.open()) for column in columns], -1))

    def _chosen(self, members: Members, file: Path) -> str | list[str]:
        """The key, or keys of columns, in a file."""
        names = list(members)
        named = {str(k): name for k, name in enumerate(names)} | {name: name for name in names}
        if self.key is not None:
            keys = [named.get(key, key.lstrip("/")) for key in texts(self.key)]
            lacking = [key for key in keys if key not in members]
            known = ", ".join(name for name in names[:20] if name) or "one array without a name"
            require(not lacking, f"{file}: has no {', '.join(lacking)}; it holds {known}")
            return keys if isinstance(self.key, list) else keys[0]
        without = [named.get(key, key.lstrip("/")) for key in self.without]
        left = [name for name in names if name not in without and members[name].dtype.kind not in "US"]
        arrays = [name for name in left if len(members[name].shape) > 1]
        for only in (left, arrays, [name for name in USUAL if name in left]):
            if len(only) == 1:
                return only[0]
        if left and not arrays and len({members[name].shape for name in left}) == 1:
            return left
        raise InputError(f"{file}: holds {', '.join(names[:20])}; choose one by --data.key, or several columns by a list")

    def in_memory(self, chosen: bool | None) -> bool:
        """Whether to read all into memory: as chosen, or if a quarter of the free memory is enough."""
        size = prod(self.first.shape) * max(4, self.first.dtype.itemsize) * len(self.files)
        return size <= free_memory() / 4 if chosen is None else chosen

    def arrays(self, in_memory: bool, cache: str | None) -> list[np.ndarray]:
        """The array of every file: memory-mapped, or in memory.

        Args:
            in_memory: read what cannot be mapped into memory; false: copy it into the cache, once, and map that.
            cache: its folder; None: the user's.

        Raises:
            InputError: a file cannot be read, or there is no room for it.
        """
        few, found = len(self.files) <= MAPPED_FILES, list[np.ndarray]()
        if not in_memory and not few:
            return self._copies(self.files, cache)
        for file in self.files:
            member = self.member(file)
            with reading(file):
                if member.mapped and few:
                    found.append(np.asarray(member.open()))
                elif in_memory:
                    size = prod(member.shape) * member.dtype.itemsize
                    require_room(size * (len(self.files) - len(found)), str(self), "set --data.in_memory false")
                    found.append(np.array(member.open()[...]))
                else:
                    found += self._copies([file], cache)
        return found

    def _copies(self, files: Sequence[Path], cache: str | None) -> list[np.ndarray]:
        """The arrays of files, memory-mapped from one file in the cache, which is written unless it is there."""
        headers = [(member.shape, member.dtype) for member in map(self.member, files)]
        ends = np.cumsum([0, *(prod(shape) * dtype.itemsize for shape, dtype in headers)])
        folder = Path(cache) if cache else cache_folder()
        stored = folder / f"arrays-{self.fingerprint(files)}.bin"
        try:
            if not stored.exists():
                with made_once(stored), tempfile.TemporaryDirectory(dir=folder) as temporary:
                    if not stored.exists():
                        self._copy(files, Path(temporary, stored.name), int(ends[-1])).replace(stored)
        except OSError as error:
            raise InputError(
                f"--data.cache {folder}: {self} needs {ends[-1] / 1e9:.3g} GB there, which cannot be written "
                f"({error.strerror or error}); give another folder"
            ) from error
        whole = np.asarray(np.memmap(stored, mode="r"))
        places = zip(ends, ends[1:], headers, strict=False)
        return [whole[first:last].view(dtype).reshape(shape) for first, last, (shape, dtype) in places]

    def _copy(self, files: Sequence[Path], copy: Path, size: int) -> Path:
        """Writes the arrays of files one after another."""
        if shutil.disk_usage(copy.parent).free < size:
            raise OSError(ENOSPC, "the disk is too full")
        with copy.open("wb") as out:
            for file in files:
                member = self.member(file)
                step = max(1, COPIED // (prod(member.shape[1:]) * member.dtype.itemsize))
                with reading(file):
                    opened = member.open()
                for first in range(0, member.shape[0], step):
                    with reading(file):
                        rows = np.asarray(opened[first : first + step], member.dtype)
                    rows.tofile(out)
        return copy

    def fingerprint(self, files: Sequence[Path] = ()) -> str:
        """A hash of the key and of the names, sizes and times of files, by default of all."""
        digest = hashlib.sha256(repr((self.key, sorted(self.without))).encode())
        for each in files or self.files:
            for part in sorted(each.rglob("*")) if each.is_dir() else [each]:
                state = part.stat()
                digest.update(f"{part.name} {state.st_size} {state.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]


def texts(names: Any) -> list[str]:
    """One name or several, or none, as a list of texts."""
    return [] if names is None else [str(name) for name in (names if isinstance(names, list | tuple) else [names])]
