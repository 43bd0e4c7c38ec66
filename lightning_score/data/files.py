"""Image files as they come: which there are in a folder, and any of them as the bytes that a model sees."""

import lightning_score.torchvision_guard  # noqa: F401

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
"""What PIL raises for files that are damaged, or are no images at all."""


class Unreadable(Exception):
    """A file that gives no image; its first argument is the kind of reason, the second the reason itself."""


def check_form(shape: Sequence[int], crop: int | None, num_classes: int) -> None:
    """Raises `InputError` unless these describe images: their shape, the square that is cut out first, and their classes."""
    require(
        len(shape) == 3 and shape[0] in (1, 3) and min(shape) > 0,
        f"shape={list(shape)}: must be [channels, height, width] with 1 channel (gray) or 3 (color), as in [3, 32, 32]",
    )
    require(crop is None or crop > 0, f"crop={crop}: must be positive, the side in pixels of the middle square, or null")
    require(num_classes >= 0, f"num_classes={num_classes}: must be 0 (no labels) or the number of classes")


def image_files(folder: Path) -> list[Path]:
    """All images in a folder and below, in an order that is random but always the same: files that are named as images, and
    others that are images by their content. Hidden files are none of them, and links are not followed, but for links to
    files in hidden folders of the same folder, as git-annex keeps them.

    Raises:
        InputError: there is no such folder, or no image in it.
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
    outside = f"{len(left)} links are not followed, as {left[0]} -> {os.readlink(left[0])}" if left else ""
    images = sorted(file for file in files.values() if file.is_file() and (_named_as_image(file) or _is_image(file)))
    require(bool(images), f"{folder}: no images in it" + (f"; {outside}: give the folder itself" if left else ""))
    if left:
        rank_zero_warn(f"{folder}: {outside}: only what is in the folder itself is read, and each image once")
    first, last = split_indices(len(images))
    return [images[i] for i in [*first, *last]]


def folder_of_cache(chosen: str | None) -> Path:
    """Where what was decoded is kept.

    Raises:
        InputError: that cannot be a folder.
    """
    folder = Path(chosen) if chosen else cache_folder()
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    require(there.is_dir(), f"--data.cache {folder}: {there} is a file; give a folder, which need not exist")
    return folder


def fingerprint(files: Sequence[Path], folder: Path, *settings: Any) -> str:
    """A hash of the names, sizes and times of files in a folder, and of what is made of them."""
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
    """One image, whatever its format and mode, cut to the largest middle part of the wanted proportions and reduced or
    enlarged (bilinear, with antialiasing). Grays of more than 8 bits are reduced to 8, what is transparent becomes white, of
    several frames the first is taken, and the camera's turn is heeded.

    Args:
        file: the file; what it is, its content says and not its name.
        shape: (channels, height, width), 1 channel for gray, 3 for color.
        crop: cut to the middle square of so many pixels first; null: not.
        scale: black and white of grays of more than 8 bits, one for a data set; null: as fits this file alone.

    Returns:
        uint8, of that shape.

    Raises:
        Unreadable: it is damaged, no image, or smaller than `crop`.
    """
    try:
        with Image.open(file) as opened:
            image = as_bytes(ImageOps.exif_transpose(opened), shape[0], scale)
    except UNREADABLE as error:
        raise Unreadable("damaged or no image", str(error)) from error
    if crop is not None:
        if min(image.size) < crop:
            raise Unreadable(f"smaller than crop={crop}", f"{image.width} x {image.height} pixels")
        image = center_crop(image, [crop, crop])
    return fit(image, shape)


def fit(image: Image.Image, shape: Sequence[int]) -> np.ndarray:
    """An image of `as_bytes`, uint8 of `shape`: its largest middle part of these proportions, reduced or enlarged."""
    channels, height, width = shape
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(height, width, channels).transpose(2, 0, 1)


def as_bytes(image: Image.Image, channels: int, scale: GrayScale | None = None) -> Image.Image:
    """An image of any mode in gray (1 channel) or color (3), with 8 bits per channel.

    Args:
        image: the image.
        channels: 1 or 3.
        scale: black and white of grays of more than 8 bits; null: as fits this image alone.

    Raises:
        ValueError: its numbers are not those of a picture.
    """
    if is_deep(image):
        image = Image.fromarray(eight_bits(np.asarray(image), scale))
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def summary(skipped: Mapping[str, str], n: int, folder: Path) -> str:
    """What became of the files of a folder that gave no image.

    Args:
        skipped: reasons by the file's name, each its kind, a colon and the rest.
        n: number of files in all.
        folder: the folder.

    Raises:
        InputError: none is left.
    """
    counts = Counter(reason.split(": ")[0] for reason in skipped.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    name, reason = next(iter(skipped.items()))
    if len(skipped) == n:
        raise InputError(f"{folder}: none of its {n} images can be read ({kinds}); {name}: {reason}")
    return f"{folder}: {len(skipped)} of {n} images are left out ({kinds}), as {name}: {reason}"
