"""Image files: finds those in a folder, and reads them as bytes of the model's shape."""

import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from errno import ENOSPC
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL import Image, ImageOps
from tqdm import tqdm

from lightning_score.data.batches import split_indices
from lightning_score.data.check import is_interval
from lightning_score.data.gray import GrayScale, as_levels, highest_of, is_deep, white_level
from lightning_score.data.images import ENDINGS, ImageData
from lightning_score.data.sixteen_bits import deep_planes, fit
from lightning_score.errors import InputError, require
from lightning_score.files import LocalPath, cache_folder, replace_text

Result = TypeVar("Result")
AT_ONCE = 4096
"""Number of files that wait for threads at once."""

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, OverflowError, MemoryError, Image.DecompressionBombError)
"""Errors of PIL for files that are damaged or not images."""


class Unreadable(Exception):
    """A file cannot be read as an image; the arguments are the kind of reason and the reason."""


class ImageFiles(ImageData):
    """Images in files; further arguments as in `ImageData`.

    Args:
        path: a folder; its images, in subfolders too, are read.
        shape: [channels, height, width] of the model's images; 1 channel for gray, 3 for color.
        crop: first crop to the center square of this many pixels; null: no crop.
        num_classes: number of classes, the direct subfolders of `path` in alphabetical order; 0: no labels.
        cache: folder of the decoded images; by default lightning_score in the user's cache folder.
        gray_range: [black, white], the values that become 0 and 255 in gray images of 16 or 32 bits or of floats; null: 0
            and a value that fits all files, which is printed.
        bits: of each channel, 8 or 16; images of 8 bits are then spread over 16.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        path: LocalPath,
        shape: Sequence[int] = (3, 32, 32),
        crop: int | None = None,
        num_classes: int = 0,
        cache: LocalPath | None = None,
        gray_range: Sequence[float] | None = None,
        bits: Literal[8, 16] = 8,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        require(bits in (8, 16), f"bits={bits}: must be 8 or 16, for each channel")
        require(
            len(shape) == 3 and shape[0] in (1, 3) and min(shape) > 0,
            f"shape={list(shape)}: must be [channels, height, width] with 1 channel (gray) or 3 (color), as in [3, 32, 32]",
        )
        require(crop is None or crop > 0, f"crop={crop}: must be the positive side in pixels of the center square, or null")
        require(num_classes >= 0, f"num_classes={num_classes}: must be 0 (no labels) or the number of classes")
        require(
            gray_range is None or is_interval(gray_range),
            f"gray_range={gray_range}: must be two increasing numbers, of black and white, as in [0, 4095], or null",
        )
        self.path, self.folder, self.shape, self.crop = path, Path(path), tuple(shape), crop
        self.num_classes, self.cache, self.gray_range = num_classes, cache, gray_range
        self.levels, self.stored_dtype = 2**bits, torch.uint8 if bits == 8 else torch.uint16
        self.pixel, self.item_bytes = np.dtype(f"u{bits // 8}"), math.prod(shape) * bits // 8

    @cached_property
    def files(self) -> list[Path]:
        """All image files, in random order."""
        return image_files(self.folder)

    def labels(self) -> list[int]:
        """The label of each file: the index of its class folder in alphabetical order; zeros without classes.

        Raises:
            InputError: the number of folders differs from that of classes, or an image is outside of them.
        """
        if not self.num_classes:
            return [0] * len(self.files)
        parts = [file.relative_to(self.folder).parts for file in self.files]
        classes = sorted({first for first, *_ in parts})
        require(
            len(classes) == self.num_classes and all(len(each) > 1 for each in parts),
            f"num_classes={self.num_classes}: {self.folder} contains images in {len(classes)} folders or places "
            f"({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}); each class must have its own folder",
        )
        number = {name: k for k, name in enumerate(classes)}
        return [number[first] for first, *_ in parts]

    @cached_property
    def scale(self) -> GrayScale:
        """Black and white of the images of more than 8 bits; prints them.

        Black is 0. White is the smallest usual value that is not below all values, or the largest value if that would leave
        most of the 256 levels unused.
        """
        if self.gray_range is not None:
            return {"any": tuple(map(float, self.gray_range))}
        stored = self.in_cache(f"{fingerprint(self.files, self.folder)}.gray.json")
        try:
            highest: dict[str, tuple[int, float]] = json.loads(stored.read_text())
        except (OSError, ValueError):
            highest = {}
            for kind, high in filter(None, in_threads(highest_of, self.files, "reading gray scales")):
                n, before = highest.get(kind, (0, 0.0))
                highest[kind] = (n + 1, max(before, high))
            with suppress(OSError):
                replace_text(stored, json.dumps(highest))
        scale = {kind: (0.0, white_level(kind, high)) for kind, (_, high) in highest.items()}
        for kind, (n, high) in highest.items():
            rank_zero_only(print)(
                f"{self.folder}: {n} gray images of {kind} values up to {high:g}: in all of them 0 is black and "
                f"{scale[kind][1]:g} white (--data.gray_range changes it)",
                flush=True,
            )
        return scale

    def hashed(self, *settings: Any) -> str:
        """A hash of the files' names, sizes and times, of their scale and of other settings."""
        scale = sorted(self.scale.items())
        return fingerprint(
            self.files, self.folder, *settings, *([scale] if scale else []), *[self.levels][self.levels == 256 :]
        )

    def in_cache(self, key: str) -> Path:
        """The path of an entry of the cache.

        Raises:
            InputError: the folder or a parent of it is a file.
        """
        folder = Path(self.cache) if self.cache else cache_folder()
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        require(there.is_dir(), f"--data.cache {folder}: {there} is a file; give a folder, which may be new")
        return folder / f"{self.folder.resolve().name}-{key}"

    def decoded(self, skipped: dict[str, str]) -> Iterator[tuple[Path, np.ndarray]]:
        """The readable files in order, with their images; adds the reasons of the others to `skipped`, by file name.

        Raises:
            InputError: no file is readable.
        """
        scale = self.scale

        def read(file: Path) -> np.ndarray | Unreadable:
            try:
                return read_image(file, self.shape, self.crop, scale, self.levels)
            except Unreadable as error:
                return error

        for file, image in zip(self.files, in_threads(read, self.files, f"reading {self.folder}"), strict=True):
            if isinstance(image, Unreadable):
                skipped[str(file.relative_to(self.folder))] = ": ".join(image.args)
            else:
                yield file, image
        if len(skipped) == len(self.files):
            raise InputError(self.summary(skipped))

    def require_space(self, folder: Path) -> None:
        """Raises `OSError` unless all images fit on the disk of a folder."""
        needed = len(self.files) * self.item_bytes
        if shutil.disk_usage(folder).free < needed:
            raise OSError(ENOSPC, f"{needed / 1e9:.3g} GB are needed, more than is free")

    def summary(self, skipped: Mapping[str, str]) -> str:
        """A summary of the unreadable files.

        Args:
            skipped: reasons by file name, each a kind, a colon and details.
        """
        counts = Counter(reason.split(": ")[0] for reason in skipped.values())
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        name, reason = next(iter(skipped.items()))
        if len(skipped) == len(self.files):
            return f"{self.folder}: none of its {len(skipped)} images can be read ({kinds}); {name}: {reason}"
        return (
            f"{self.folder}: {len(skipped)} of {len(self.files)} images are left out ({kinds}), for example {name}: {reason}"
        )


def in_threads(function: Callable[[Path], Result], files: Sequence[Path], title: str) -> Iterator[Result]:
    """The results of a function of each file, in order, with a progress bar."""
    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=len(files), desc=title, unit="image", disable=None) as bar:
        for first in range(0, len(files), AT_ONCE):
            for result in pool.map(function, files[first : first + AT_ONCE]):
                bar.update()
                yield result


def image_files(folder: Path) -> list[Path]:
    """All images in a folder and its subfolders, by file name or content, in a fixed random order.

    Hidden files are skipped. Links are not followed, except links to files in hidden folders of the same folder, which
    git-annex uses.

    Raises:
        InputError: the folder is missing or contains no image.
    """
    require(folder.is_dir(), f"{folder}: must be a folder that exists; set --data.path to a folder of images")
    root, files, links = folder.resolve(), dict[Path, Path](), list[Path]()
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in (*folders, *names) if not name.startswith(".")):
            if path.is_symlink():
                links.append(path)
            elif path.name in names:
                files[root / path.relative_to(folder)] = path
    for link in sorted(links):
        target = link.resolve()
        if target.is_file() and target.is_relative_to(root):
            files.setdefault(target, link)
    left = sorted({*links} - {*files.values()})
    outside = f"{len(left)} links are not followed, for example {left[0]} -> {os.readlink(left[0])}" if left else ""
    images = sorted(file for file in files.values() if file.is_file() and _is_image(file))
    require(bool(images), f"{folder}: no images in it" + (f"; {outside}: give the linked folder itself" if left else ""))
    if left:
        rank_zero_warn(f"{folder}: {outside}: only files in the folder itself are read, each once")
    first, last = split_indices(len(images))
    return [images[i] for i in [*first, *last]]


def fingerprint(files: Sequence[Path], folder: Path, *settings: Any) -> str:
    """A hash of settings and of the names, sizes and times of files in a folder."""
    digest = hashlib.sha256(repr(settings).encode())
    for file in files:
        state = file.stat()
        digest.update(f"{file.relative_to(folder)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _is_image(file: Path) -> bool:
    """Whether the name or the content of a file is that of an image."""
    if file.suffix.lower() in ENDINGS:
        return True
    with suppress(*UNREADABLE), Image.open(file):
        return True
    return False


def read_image(
    file: Path, shape: Sequence[int], crop: int | None = None, scale: GrayScale | None = None, levels: int = 256
) -> np.ndarray:
    """One image of any format and mode, cropped at its center to the aspect ratio of `shape` and resized (bilinear, with
    antialiasing). More than 8 bits are reduced to 8 unless 16 are asked for, transparency becomes white, only the first
    frame is read, and the EXIF orientation is applied.

    Args:
        file: the file; its format follows from its content, not its name.
        shape: (channels, height, width), 1 channel for gray, 3 for color.
        crop: first crop to the center square of this many pixels; null: no crop.
        scale: black and white of gray images of more than 8 bits, the same for a data set; null: fitted to this file.
        levels: 256, or 65536 for 16 bits.

    Returns:
        uint8, or uint16, of that shape.

    Raises:
        Unreadable: the file is damaged, not an image, or smaller than `crop`.
    """
    try:
        if levels > 256:
            planes = deep_planes(file, shape[0], scale)
        else:
            with Image.open(file) as opened:
                planes = [as_bytes(ImageOps.exif_transpose(opened), shape[0], scale)]
    except UNREADABLE as error:
        raise Unreadable("damaged or not an image", str(error)) from error
    if crop is not None:
        if min(planes[0].size) < crop:
            raise Unreadable(f"smaller than crop={crop}", f"{planes[0].width} x {planes[0].height} pixels")
        from torchvision.transforms.functional import center_crop  # takes a second to import

        planes = [center_crop(plane, [crop, crop]) for plane in planes]
    return fit(planes, shape)


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
        image = Image.fromarray(as_levels(np.asarray(image), scale))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")
