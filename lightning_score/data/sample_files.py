"""Samples in files: images in a folder, NPZ or zip, written as other projects read them, and read as they write them."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_score.data.base import ScoreData
from lightning_score.data.images import ENDINGS, of_picture, to_picture
from lightning_score.errors import InputError, one_line, require
from lightning_score.files import read_arrays, replacing
from lightning_score.memory import require_room

ARRAYS = ("images", "arr_0", "x")
"""The arrays of an NPZ that may hold samples: of `predict`, of ADM's evaluator, and of `predict` as the model sees them."""
CONDITIONS = ("labels", "condition", "arr_1")
"""The arrays that may hold their labels or conditions."""
OUTSIDE = 0.01
"""The share of values that may be further from the range of the data than half its width."""


def check_writable(data: ScoreData, n: int, option: str) -> None:
    """Raises `InputError` unless n images of the data can be kept and written."""
    held_out = data.splits.held_out.x
    images = held_out.ndim == 4 and held_out.dtype == torch.uint8 and held_out.shape[1] in (1, 3)
    require(images, f"{option}: keeps images of bytes with 1 or 3 channels; leave it out, and draw others with predict")
    require_room(n * prod(data.shape), f"{option}: {n} images", "draw fewer")


def write_images(images: Tensor, folder: Path, form: str, labels: Sequence[int] | None = None) -> Path:
    """Writes images, uint8 (N, C, H, W), with 1 or 3 channels.

    Args:
        images: the images.
        folder: where `images`, `images.npz` or `images.zip` is written.
        form: png, npz or zip.
        labels: the class of each image, if they have any.
    """
    path = folder / ("images" if form == "png" else f"images.{form}")
    with replacing(path) as temporary:
        WRITERS[form](images, temporary, labels)
    return path


def _write_folder(images: Tensor, path: Path, labels: Sequence[int] | None) -> None:
    path.mkdir()
    for k, image in enumerate(images):
        to_picture(image).save(path / f"{k:06d}.png")


def _write_npz(images: Tensor, path: Path, labels: Sequence[int] | None) -> None:
    """`arr_0`, uint8 (N, H, W, 3), and `arr_1`, the labels."""
    arrays = [images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy(), *([] if labels is None else [np.asarray(labels)])]
    with path.open("wb") as stream:
        np.savez(stream, *arrays)


def _write_zip(images: Tensor, path: Path, labels: Sequence[int] | None) -> None:
    """`00000/img00000000.png` and so on, and `dataset.json`."""
    names = [f"{k:08d}"[:5] + f"/img{k:08d}.png" for k in range(len(images))]
    with ZipFile(path, "w") as archive:
        for name, image in zip(names, images, strict=True):
            stream = io.BytesIO()
            to_picture(image).save(stream, "png")
            archive.writestr(name, stream.getvalue())
        pairs = None if labels is None else [list(pair) for pair in zip(names, labels, strict=True)]
        archive.writestr("dataset.json", json.dumps({"labels": pairs}))


WRITERS: dict[str, Callable[[Tensor, Path, Sequence[int] | None], None]] = {
    "png": _write_folder,
    "npz": _write_npz,
    "zip": _write_zip,
}


def read_samples(path: Path, data: ScoreData) -> Tensor:
    """Samples in the form of the data's `reference()`, (N, *shape).

    Args:
        path: a folder or zip of images, or an NPZ or NPY: `images` or `arr_0`, uint8 (N, H, W, C), or `x`, floats in the
            range of the data or, of data stored as floats, in their units.
        data: the data, which say what samples must look like.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    require(path.exists(), f"{path}: does not exist; give a folder or zip of images, or an NPZ of samples")
    like = data.splits.held_out.x[:2]
    in_images = path.is_dir() or (is_zipfile(path) and not any(name.endswith(".npy") for name in ZipFile(path).namelist()))
    found = _read_images(path, data) if in_images else _read_array(path, data, like.dtype)
    require(len(found) >= 2, f"{path}: has {len(found)} samples; give 2 or more")
    finite = not found.is_floating_point() or bool(found.isfinite().all())
    require(finite, f"{path}: has NaN or infinite values; leave these samples out")
    if found.dtype == like.dtype:
        if like.dtype == torch.uint8:
            require(int(found.max()) > 1, f"{path}: has bytes of 0 and 1 only; images have 0 to 255")
        return found
    if like.is_floating_point():
        require(found.is_floating_point(), _wrong_type(path, found, f"{like.dtype}, in the units of the data"))
        return found.to(like.dtype)
    allowed = f"{like.dtype} from 0 to {torch.iinfo(like.dtype).max}, or floats in the range of the data"
    require(found.is_floating_point() and data.data_range is not None, _wrong_type(path, found, allowed))
    _check_range(path, found, data)
    return torch.cat([data.to_reference(part) for part in found.split(1024)])


def read_conditions(path: Path, data: ScoreData) -> Tensor | None:
    """The labels, or the conditions in the units of the model, of samples in a file, (N, ...); None if it holds none."""
    arrays = read_arrays(path) if path.suffix == ".npz" else {}
    name = next((name for name in CONDITIONS if name in arrays), None)
    if name is None:
        return None
    array = np.asarray(arrays[name])
    fits = array.dtype.kind in ("fiub" if name == "condition" else "iu")
    require(fits, f"{path}: {name} has values of {array.dtype}; must be {'numbers' if name == 'condition' else 'integers'}")
    values = torch.from_numpy(array)
    return data.to_condition(values) if name == "condition" else values.long()


def _wrong_type(path: Path, found: Tensor, allowed: str) -> str:
    return f"{path}: has values of {found.dtype}; must be {allowed}".replace("torch.", "")


def _check_range(path: Path, found: Tensor, data: ScoreData) -> None:
    """Raises `InputError` for floats in another range than that of the data."""
    low, high = data.data_range or (0.0, 1.0)
    half = (high - low) / 2
    outside = float(((found < low - half) | (found > high + half)).double().mean())
    ends = f"has values from {float(found.min()):.3g} to {float(found.max()):.3g}, and data_range is [{low:g}, {high:g}]"
    fits = outside <= OUTSIDE and float(found.min()) < low + 0.9 * half
    require(fits, f"{path}: {ends}; give them in this range, or images as bytes")


def _read_array(path: Path, data: ScoreData, dtype: torch.dtype) -> Tensor:
    """The samples of an NPZ or NPY, (N, *shape)."""
    arrays = read_arrays(path)
    wanted = reversed(ARRAYS) if dtype.is_floating_point else ARRAYS
    name = next((name for name in wanted if name in arrays), None)
    require(name is not None, f"{path}: holds {', '.join(arrays) or 'nothing'}; must hold one of {', '.join(ARRAYS)}")
    array = np.asarray(arrays[str(name)])
    require(array.dtype.kind in "fiub", f"{path}: {name} has values of {array.dtype}; must be numbers")
    if len(data.shape) == 3 and array.ndim == 4 and (name != "x" or array.shape[1:] != data.shape):
        array = np.moveaxis(array, 3, 1)
    if array.dtype == np.float16 or array.dtype.byteorder == ">":
        array = array.astype(np.float32 if array.dtype == np.float16 else array.dtype.newbyteorder("="))
    return _of_shape(path, torch.from_numpy(np.require(array, requirements=["C", "W"])), data.shape)


def _of_shape(path: Path, found: Tensor, shape: Sequence[int]) -> Tensor:
    """Samples of the shape of the data; of color images with three equal channels one, if the data are gray."""
    if found.ndim == len(shape) == 3 and shape[0] == 1:
        found = found[:, None]
    colors = found.ndim == 4 and found.shape[1] == 3 and shape[0] == 1
    if colors and all(torch.equal(found[:, 0], found[:, k]) for k in (1, 2)):
        found = found[:, :1]
    given, needed = list(found.shape[1:]), list(shape)
    require(given == needed, f"{path}: has samples of shape {given}, and the data have {needed}; give the same size")
    return found


def _read_images(path: Path, data: ScoreData) -> Tensor:
    """The images of a folder or zip in the order of their names, uint8 (N, C, H, W)."""
    with _opened(path) as (names, read):
        require(bool(names), f"{path}: has no images ({', '.join(ENDINGS)})")
        require_room(len(names) * prod(data.shape), f"{path}: {len(names)} images")
        return torch.cat([_of_shape(Path(path, name), _decode(path, name, read)[None], data.shape) for name in names])


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], Any]]]:
    """The names of the images in a folder or zip, and a function that opens one."""
    if path.is_dir():
        names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.suffix.lower() in ENDINGS)
        yield names, lambda name: (path / name).open("rb")
        return
    try:
        with ZipFile(path) as archive:
            yield sorted(name for name in archive.namelist() if Path(name).suffix.lower() in ENDINGS), archive.open
    except BadZipFile as error:
        raise InputError(f"{path}: a damaged zip ({one_line(error)})") from error


def _decode(path: Path, name: str, read: Callable[[str], Any]) -> Tensor:
    """An image as bytes (C, H, W)."""
    try:
        with read(name) as file, Image.open(file) as image:
            mode, pixels = image.mode, of_picture(image)
    except Exception as error:  # of any library for a format
        raise InputError(f"{path / name}: not a readable image ({one_line(error)})") from error
    require(mode in ("L", "RGB"), f"{path / name}: has mode {mode}; must be 8-bit gray or RGB")
    return pixels
