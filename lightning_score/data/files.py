"""Image files: finds those in a folder, and reads any of them as bytes of the model's shape."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.functional import center_crop

from lightning_score.data.base import split_indices
from lightning_score.data.gray import GrayScale, eight_bits, is_deep
from lightning_score.errors import InputError, require
from lightning_score.files import cache_folder

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, OverflowError, MemoryError, Image.DecompressionBombError)
"""What PIL raises for files that are damaged or not images."""


class Unreadable(Exception):
    """A file cannot be read as an image; the arguments are the kind of reason and the reason."""


def check_form(shape: Sequence[int], crop: int | None, num_classes: int) -> None:
    """Raises `InputError` for an invalid shape, crop or number of classes."""
    require(
        len(shape) == 3 and shape[0] in (1, 3) and min(shape) > 0,
        f"shape={list(shape)}: must be [channels, height, width] with 1 channel (gray) or 3 (color), as in [3, 32, 32]",
    )
    require(crop is None or crop > 0, f"crop={crop}: must be the positive side in pixels of the center square, or null")
    require(num_classes >= 0, f"num_classes={num_classes}: must be 0 (no labels) or the number of classes")


def image_files(folder: Path) -> list[Path]:
    """All images in a folder and its subfolders, by file name or content, in a fixed random order.

    Hidden files are skipped. Links are not followed, except links to files in hidden folders of the same folder, which
    git-annex uses.

    Raises:
        InputError: the folder is missing or contains no image.
    """
    require(folder.is_dir(), f"{folder}: there is no such folder; set --data.path to a folder of images")
    found, links = [], []
    for parent, folders, names in os.walk(folder):
        links += [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(parent, name)
            if not name.startswith("."):
                (links if file.is_symlink() else found).append(file)
    root = folder.resolve()
    files = {root / file.relative_to(folder): file for file in found}
    for link in sorted(links):
        target = link.resolve()
        if target.is_file() and target.is_relative_to(root):
            files.setdefault(target, link)
    left = sorted({*links} - {*files.values()})
    outside = f"{len(left)} links are not followed, for example {left[0]} -> {os.readlink(left[0])}" if left else ""
    images = sorted(file for file in files.values() if file.is_file() and (_named_as_image(file) or _is_image(file)))
    require(bool(images), f"{folder}: no images in it" + (f"; {outside}: give the linked folder itself" if left else ""))
    if left:
        rank_zero_warn(f"{folder}: {outside}: only files in the folder itself are read, each once")
    first, last = split_indices(len(images))
    return [images[i] for i in [*first, *last]]


def folder_of_cache(chosen: str | None) -> Path:
    """The folder for decoded images.

    Raises:
        InputError: a parent of it is a file.
    """
    folder = Path(chosen) if chosen else cache_folder()
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    require(there.is_dir(), f"--data.cache {folder}: {there} is a file; give a folder, which may be new")
    return folder


def fingerprint(files: Sequence[Path], folder: Path, *settings: Any) -> str:
    """A hash of settings and of the names, sizes and times of files in a folder."""
    digest = hashlib.sha256(repr(settings).encode())
    for file in files:
        state = file.stat()
        digest.update(f"{file.relative_to(folder)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _named_as_image(file: Path) -> bool:
    return file.suffix.lower() in IMG_EXTENSIONS


def _is_image(file: Path) -> bool:
    try:
        with Image.open(file):
            return True
    except UNREADABLE:
        return False


def read_image(file: Path, shape: Sequence[int], crop: int | None = None, scale: GrayScale | None = None) -> np.ndarray:
    """One image of any format and mode, cropped at its center to the aspect ratio of `shape` and resized (bilinear, with
    antialiasing). More than 8 bits are reduced to 8, transparency becomes white, only the first frame is read, and the EXIF
    orientation is applied.

    Args:
        file: the file; its format follows from its content, not its name.
        shape: (channels, height, width), 1 channel for gray, 3 for color.
        crop: first crop to the center square of this many pixels; null: no crop.
        scale: black and white of gray images of more than 8 bits, the same for a data set; null: fitted to this file.

    Returns:
        uint8, of that shape.

    Raises:
        Unreadable: the file is damaged, not an image, or smaller than `crop`.
    """
    try:
        with Image.open(file) as opened:
            image = as_bytes(ImageOps.exif_transpose(opened), shape[0], scale)
    except UNREADABLE as error:
        raise Unreadable("damaged or not an image", str(error)) from error
    if crop is not None:
        if min(image.size) < crop:
            raise Unreadable(f"smaller than crop={crop}", f"{image.width} x {image.height} pixels")
        image = center_crop(image, [crop, crop])
    return fit(image, shape)


def fit(image: Image.Image, shape: Sequence[int]) -> np.ndarray:
    """An image from `as_bytes` as uint8 of `shape`, cropped at its center and resized."""
    channels, height, width = shape
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(height, width, channels).transpose(2, 0, 1)


def as_bytes(image: Image.Image, channels: int, scale: GrayScale | None = None) -> Image.Image:
    """Converts an image of any mode to gray (1 channel) or color (3) with 8 bits per channel.

    Args:
        image: the image.
        channels: 1 or 3.
        scale: black and white of gray images of more than 8 bits; null: fitted to this image.

    Raises:
        ValueError: its values are not finite or not gray levels.
    """
    if is_deep(image):
        image = Image.fromarray(eight_bits(np.asarray(image), scale))
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def summary(skipped: Mapping[str, str], n: int, folder: Path) -> str:
    """A summary of the unreadable files of a folder.

    Args:
        skipped: reasons by file name, each a kind, a colon and details.
        n: total number of files.
        folder: the folder.

    Raises:
        InputError: no file is readable.
    """
    counts = Counter(reason.split(": ")[0] for reason in skipped.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    name, reason = next(iter(skipped.items()))
    if len(skipped) == n:
        raise InputError(f"{folder}: none of its {n} images can be read ({kinds}); {name}: {reason}")
    return f"{folder}: {len(skipped)} of {n} images are left out ({kinds}), for example {name}: {reason}"
