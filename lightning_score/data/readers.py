"""Files of arrays: what is in them by name, read from their headers, and their arrays, memory-mapped where possible."""

import csv
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from PIL import Image

from lightning_score.errors import InputError, one_line, require

TIFF_AXES = str.maketrans("YXSZTIQPRA", "HWCDNNNNNN")
"""Letters of tifffile for axes, and ours."""
UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, IndexError, SyntaxError, BadZipFile,
              MemoryError, AttributeError, csv.Error)  # fmt: skip
"""Errors of readers for damaged files."""


class Member(NamedTuple):
    """An array in a file.

    Attributes:
        shape: from the header.
        dtype: from the header.
        open: gives the array, or an object that reads slices of it.
        mapped: whether `open` gives a memory-mapped array, which is read where it is indexed.
        axes: the meaning of its axes as in `axes.Axes`, if the format has one.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open: Callable[[], Any]
    mapped: bool = False
    axes: str = ""


Members = Mapping[str, Member]


def located(path: str) -> Path:
    """A path, or the file that `package://NAME/PATH` names in an installed package, which is not imported.

    Raises:
        InputError: there is no such package or file.
    """
    scheme, separator, inside = path.partition("://")
    if not separator:
        require(Path(path).exists(), f"{path}: there is no such file or folder; set --data.path to one")
        return Path(path)
    require(scheme == "package", f"{path}: must be a local path, or package://NAME/PATH for a file of an installed package")
    name, _, rest = inside.partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    require(bool(places), f"{path}: there is no installed package {name}: pip install it")
    found = next((place / rest for place in places if (place / rest).exists()), None)
    if found is None or ".." in Path(rest).parts:
        raise InputError(f"{path}: the installed package {name} has no file {rest}")
    return found


def files_of(path: Path) -> list[Path]:
    """A file, or all files of a folder and its subfolders whose format is known, in the order of their names."""
    if path.is_file() or _is_zarr(path):
        return [path]
    found = [Path(parent, name) for parent, _, names in os.walk(path) for name in names if not name.startswith(".")]
    known = sorted(file for file in found if _reader(file) is not None)
    require(bool(known), f"{path}: no files of arrays in it; known are {', '.join(READERS)}")
    return known


def members_of(file: Path) -> Members:
    """The arrays in a file by name.

    Raises:
        InputError: the format is unknown, its package is missing, the file is damaged, or it holds Python objects.
    """
    reader = _zarr if _is_zarr(file) else _reader(file)
    if reader is None:
        raise InputError(f"{file}: unknown format; known are {', '.join(READERS)}")
    with reading(file):
        found = reader(file)
    require(bool(found), f"{file}: holds no arrays")
    return found


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Within it, what a reader raises is an `InputError` that names the file."""
    try:
        yield
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(f"{file}: needs {error.name}: pip install 'lightning_score[science]'") from error
    except UNREADABLE as error:
        objects = "object" in str(error).lower() or "pickle" in str(error).lower()
        reason = "it holds Python objects, which may run any code and are never loaded" if objects else one_line(error)
        raise InputError(f"{file}: cannot be read ({reason})") from error


def checked(name: str, member: Member, text: bool = False) -> Member:
    """The member, of numbers or, where that is allowed, text.

    Raises:
        InputError: it holds no numbers, or nothing.
    """
    kind = member.dtype.kind
    require(kind != "O", f"{name}: holds Python objects, which may run any code and are never loaded; save it as numbers")
    fix = "; save the real and the imaginary part as channels" if kind == "c" else ""
    holds = "text" if kind in "US" else str(member.dtype)
    require(kind in "biuf" or (text and kind in "US"), f"{name}: holds {holds}, must be real numbers{fix}")
    require(0 not in member.shape, f"{name}: is empty, of shape {list(member.shape)}")
    return member


def _member(array: Any, mapped: bool = False, axes: str = "") -> Member:
    """What is open already: an array, or an object that reads slices of one."""
    return Member(array.shape, np.dtype(array.dtype), lambda: array, mapped, axes)


def _npy(file: Path) -> Members:
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    require(isinstance(array, np.ndarray), f"{file}: is not an NPY file")
    return {"": _member(array, True)}


def _npz(file: Path) -> Members:
    found = {}
    with ZipFile(file) as archive:
        for entry in archive.infolist():
            if not entry.filename.endswith(".npy"):
                continue
            with archive.open(entry) as stream, file.open("rb") as raw:
                first = np.lib.format.read_magic(stream) == (1, 0)
                header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = header(stream)
                raw.seek(entry.header_offset + 26)  # where the lengths of the entry's name and extra field are
                offset = raw.tell() + 4 + int(np.fromfile(raw, "<u2", 2).sum()) + stream.tell()
            name = entry.filename.removesuffix(".npy")
            mapped = entry.compress_type == ZIP_STORED and not dtype.hasobject and 0 not in shape
            opened = partial(np.memmap, file, dtype, "r", offset, shape, "F" if fortran else "C")
            found[name] = Member(shape, dtype, opened if mapped else partial(_unpacked, file, name), mapped)
    return found


def _unpacked(file: Path, name: str) -> np.ndarray:
    """An array of an NPZ file."""
    with np.load(file, allow_pickle=False) as archive:
        return archive[name]


def _hdf5(file: Path) -> Members:
    h5py = import_module("h5py")
    opened, found = h5py.File(file, "r"), dict[str, Member]()

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or item.shape is None:
            return
        offset = item.id.get_offset() if item.chunks is None and not item.external else None
        if offset is None or item.dtype.kind not in "biuf" or 0 in item.shape:
            found[name] = _member(item)
        else:
            opened_map = partial(np.memmap, file, item.dtype, "r", offset, item.shape)
            found[name] = Member(item.shape, item.dtype, opened_map, True)

    opened.visititems(visit)
    return found


def _is_zarr(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))


def _zarr(file: Path) -> Members:
    zarr = import_module("zarr")
    opened = zarr.open(str(file), mode="r")

    def within(item: Any, place: str) -> Iterator[tuple[str, Any]]:
        if hasattr(item, "shape"):
            yield place, item
        else:
            for name in sorted(item):
                yield from within(item[name], f"{place}/{name}".lstrip("/"))

    return {name: _member(item) for name, item in within(opened, "")}


def _fits(file: Path) -> Members:
    fits = import_module("astropy.io.fits")
    found = dict[str, Member]()
    with fits.open(file, memmap=True) as opened:
        for number, unit in enumerate(opened):
            name = unit.name if unit.name and unit.name != "PRIMARY" and unit.name not in found else str(number)
            if not unit.is_image:
                columns = unit.columns.dtype
                for column in columns.names:
                    kind, size = columns[column].base, (unit.header["NAXIS2"], *columns[column].shape)
                    found[column] = Member(size, kind, partial(_column, file, number, column))
            elif unit.shape:
                dtype, shift = np.dtype(fits.hdu.base.BITPIX2DTYPE[unit.header["BITPIX"]]), unit.header.get("BZERO", 0)
                unscaled = unit.header.get("BSCALE", 1) == 1 and "BLANK" not in unit.header
                unsigned = unscaled and dtype.kind == "i" and shift == 2.0 ** (8 * dtype.itemsize - 1)
                plain = unscaled and not shift
                dtype = dtype if plain else np.dtype(f"u{dtype.itemsize}" if unsigned else "f8")
                mapped = plain and not str(file).endswith(".gz") and not isinstance(unit, fits.CompImageHDU)
                axes = {2: "HW", 3: "NHW"}.get(len(unit.shape), "")
                found[name] = Member(unit.shape, dtype, partial(fits.getdata, file, number, memmap=mapped), mapped, axes)
    return found


def _column(file: Path, number: int, name: str) -> np.ndarray:
    """A column of a table in a FITS file."""
    return np.asarray(import_module("astropy.io.fits").getdata(file, number)[name])


def _nifti(file: Path) -> Members:
    image: Any = import_module("nibabel").load(file)
    slope, shift = image.dataobj.slope, image.dataobj.inter
    plain, axes = (slope, shift) == (1, 0), {2: "HW", 3: "DHW", 4: "DHWN"}.get(len(image.shape), "")
    dtype = np.dtype(image.get_data_dtype()) if plain else np.dtype("f8")
    mapped = plain and not str(file).endswith(".gz")
    return {"": Member(image.shape, dtype, lambda: np.asanyarray(image.dataobj) if mapped else image.dataobj, mapped, axes)}


def _tiff(file: Path) -> Members:
    tifffile = import_module("tifffile")
    with tifffile.TiffFile(file) as opened:
        series = opened.series[0]
        shape, dtype, mapped = series.shape, series.dtype, series.dataoffset is not None
        letters = series.axes.translate(TIFF_AXES)
    known = letters if len(set(letters)) == len(letters) else ""
    read = (lambda: tifffile.memmap(file, mode="r")) if mapped else (lambda: tifffile.imread(file, series=0))
    return {"": Member(shape, dtype, read, mapped, known)}


def _png(file: Path) -> Members:
    depth, color = file.read_bytes()[24:26]
    require(depth <= 8 or color == 0, f"{file}: PNG in color with {depth} bits is not read; save it as TIFF")
    with Image.open(file) as opened:
        array = np.asarray(opened.convert("RGB") if opened.mode == "P" else opened)
    return {"": _member(array, False, "HWC"[: array.ndim])}


def _csv(file: Path) -> Members:
    delimiter = "\t" if file.suffix == ".tsv" else ","
    with file.open(encoding="utf-8-sig", newline="") as stream:
        lines = list(islice(csv.reader(stream, delimiter=delimiter), 2))
    first, second = [*lines, [], []][:2]
    require(bool(first), f"{file}: is empty, or its first line is")
    headed = not all(_is_number(cell) for cell in first)
    cells = second if headed else first
    named = headed and len(first) == len(cells)  # scikit-learn's tables begin with their size
    names = [cell.strip() for cell in first] if named else [str(k) for k in range(len(cells))]
    columns = [k for k, cell in enumerate(cells) if _is_number(cell)]
    require(bool(columns), f"{file}: has no column of numbers in its first line, {delimiter.join(cells)[:80]!r}")
    dialect: Any = {"comments": None, "delimiter": delimiter, "quotechar": '"', "encoding": "utf-8-sig"}
    read = partial(np.loadtxt, file, skiprows=int(headed), **dialect)
    try:
        table = read(usecols=columns, ndmin=2)
    except ValueError:  # cells may be empty
        table = read(usecols=columns, ndmin=2, converters=lambda cell: float(cell.strip() or "nan"))
    texts = [k for k in range(len(names)) if k not in columns]
    found = {names[k]: Member((len(table),), np.dtype(str), partial(read, dtype=str, usecols=k, ndmin=1)) for k in texts}
    for values, k in zip(table.T, columns, strict=True):
        whole = cells[k].strip().lstrip("+-").isdigit() and bool((values == np.round(values)).all())
        found[names[k]] = _member(np.ascontiguousarray(values, np.int64 if whole else np.float64))
    return {name: found[name] for name in names}


def _is_number(cell: str) -> bool:
    try:
        float(cell or "nan")
    except ValueError:
        return False
    return True


READERS: dict[str, Callable[[Path], Members]] = {
    ".npy": _npy, ".npz": _npz, ".h5": _hdf5, ".hdf5": _hdf5, ".nc": _hdf5, ".zarr": _zarr, ".fits": _fits, ".fit": _fits,
    ".fits.gz": _fits, ".nii": _nifti, ".nii.gz": _nifti, ".csv": _csv, ".tsv": _csv, ".tif": _tiff, ".tiff": _tiff,
    ".png": _png,
}  # fmt: skip
"""The reader of each format, by the ending of the file's name."""


def _reader(file: Path) -> Callable[[Path], Members] | None:
    name = file.name.lower()
    return next((reader for ending, reader in READERS.items() if name.endswith(ending)), None)
