"""Where numbers are within files, so that they can be mapped into memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def npy_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type from the header of an NPY."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def data_offset(file: Path, header: int) -> int:
    """Where the data of an entry of a ZIP begin: after its local header, name and extra field."""
    with file.open("rb") as stream:
        stream.seek(header + 26)
        lengths = stream.read(4)
    return header + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


def mapping(file: Path, dtype: Any, offset: int, shape: tuple[int, ...], order: Any = "C") -> Callable[[], np.ndarray]:
    """Maps an array that begins at an offset into a file when it is called."""
    return lambda: np.memmap(file, dtype, "r", offset, shape, order)
