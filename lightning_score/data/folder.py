"""A folder of images, decoded once and cached on disk in the model's size."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from errno import ENOSPC
from functools import cached_property
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from tqdm import tqdm

from lightning_score.data.base import Examples, Splits
from lightning_score.data.files import (
    Unreadable,
    check_form,
    fingerprint,
    folder_of_cache,
    image_files,
    read_image,
    summary,
)
from lightning_score.data.gray import GrayScale, check_gray_range, gray_scale, warn_of_few_levels
from lightning_score.data.images import ImageData
from lightning_score.errors import require
from lightning_score.files import LocalPath, new_folder_if_kept
from lightning_score.memory import require_room


class ImageFolder(ImageData):
    """The images in a folder and its subfolders; further arguments as in `ImageData`.

    Each image is cropped at its center to the model's aspect ratio, then resized (bilinear, with antialiasing). Images of
    any mode are converted, gray images of more than 8 bits by one scale for all files. Unreadable images are left out and
    counted, and links are not followed. The result is cached as bytes on disk and memory-mapped by later runs, so folders
    larger than memory work.

    Args:
        path: the folder.
        shape: [channels, height, width] of the model's images; 1 channel for gray, 3 for color.
        crop: first crop to the center square of this many pixels; null: no crop.
        num_classes: number of classes, the direct subfolders of `path` in alphabetical order; 0: no labels.
        held_out: fraction of the images held out for validation and test.
        cache: folder of the decoded images; by default lightning_score in the user's cache folder.
        gray_range: [black, white], the values that become 0 and 255 in gray images of 16 or 32 bits or of floats; null: 0
            and a value that fits all files, which is printed.

    Raises:
        InputError: an argument is out of range; when the images are first needed: the folder is missing, contains no
            readable image, or has another number of classes.
    """

    def __init__(
        self,
        path: LocalPath,
        shape: Sequence[int] = (3, 32, 32),
        crop: int | None = None,
        num_classes: int = 0,
        held_out: float = 0.1,
        cache: LocalPath | None = None,
        gray_range: Sequence[float] | None = None,
        batch_size: int = 128,
        data_range: Sequence[float] = (0.0, 1.0),
        flip: bool = False,
        dequantize: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, data_range, flip, dequantize, num_workers)
        check_form(shape, crop, num_classes)
        require(0 < held_out < 1, f"held_out={held_out}: must be a fraction between 0 and 1, as in 0.1")
        self.path, self.shape, self.crop, self.num_classes = Path(path), tuple(shape), crop, num_classes
        check_gray_range(gray_range)
        self.held_out, self.cache, self.gray_range = held_out, cache, gray_range
        self._known_scale: GrayScale | None = None

    def load(self) -> Splits:
        files = image_files(self.path)
        labels = torch.tensor(folder_labels(files, self.path, self.num_classes), dtype=torch.long)
        self._rows(len(files))  # raises before all images are decoded
        images, skipped = self._images(files)
        labels = labels[[str(file.relative_to(self.path)) not in skipped for file in files]]
        self._all = images
        return Splits(*(Examples(images[rows], labels[rows]) for rows in self._rows(len(images))))

    def reference(self) -> Tensor:
        """All images, not copied."""
        self.splits  # noqa: B018
        return self._all

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the files' names, sizes and times, and of the conversion."""
        return self._fingerprint(image_files(self.path))

    def _fingerprint(self, files: Sequence[Path]) -> str:
        scale = sorted(self._scale(files).items())
        return fingerprint(files, self.path, self.shape, self.crop, *([scale] if scale else []))

    def _scale(self, files: Sequence[Path]) -> GrayScale:
        """Black and white, computed once."""
        if self._known_scale is None:
            name = f"{self.path.resolve().name}-{fingerprint(files, self.path)}.gray.json"
            self._known_scale = gray_scale(files, self.path, folder_of_cache(self.cache) / name, self.gray_range)
        return self._known_scale

    def _rows(self, n: int) -> tuple[slice, slice]:
        """The rows of both splits: the images are stored in random order, so that each split is a slice."""
        train = max(n - max(round(n * self.held_out), 1), 0)
        require(
            train > 0, f"{self.path}: only {n} images, so none is left for training; give more images, or a smaller held_out"
        )
        return slice(0, train), slice(train, n)

    def _images(self, files: Sequence[Path]) -> tuple[Tensor, dict[str, str]]:
        """All readable images as bytes (N, C, H, W), mapped from the cache, which is created if it is missing; and the
        errors of the others."""
        folder = folder_of_cache(self.cache)
        stored = folder / f"{self.path.resolve().name}-{self._fingerprint(files)}.npy"
        left_out = stored.with_suffix(".left_out.json")
        found = self._stored(stored, left_out)
        if found is None:
            try:
                with new_folder_if_kept(folder):
                    self._store(files, stored, left_out)
                found = self._stored(stored, left_out)
            except OSError as error:  # a full disk, or no permission
                rank_zero_warn(
                    f"{folder}: the decoded images cannot be written there ({error.strerror or error}); this run keeps them "
                    "in memory and the next decodes them again; give another --data.cache"
                )
                found = self._in_memory(files)
        images, skipped = found
        if skipped:
            where = f"; all are listed in {left_out}" if left_out.exists() else ""
            rank_zero_warn(f"{summary(skipped, len(files), self.path)}{where}")
        if self._scale(files):
            warn_of_few_levels(images, self.path)
        return images, skipped

    @staticmethod
    def _stored(stored: Path, left_out: Path) -> tuple[Tensor, dict[str, str]] | None:
        """The content of the cache if it is complete."""
        try:
            return torch.from_numpy(np.load(stored, mmap_mode="c")), json.loads(left_out.read_text())
        except (OSError, ValueError, EOFError):
            return None

    def _store(self, files: Sequence[Path], stored: Path, left_out: Path) -> None:
        """Decodes all files into the cache, which is replaced at the end.

        Raises:
            OSError: there is no space, or no permission.
        """
        needed = len(files) * prod(self.shape)
        if shutil.disk_usage(stored.parent).free < needed:
            raise OSError(ENOSPC, f"{needed / 1e9:.3g} GB are needed, more than is free")
        with tempfile.TemporaryDirectory(dir=stored.parent) as temporary:
            part, skipped = Path(temporary, stored.name), {}
            with part.open("wb") as out:
                self._write_header(out, len(files))
                for image in self._decoded(files, skipped):
                    out.write(image.tobytes())
                out.seek(0)  # the header has space for the number of rows
                self._write_header(out, len(files) - len(skipped))
            Path(temporary, "left_out").write_text(json.dumps(skipped, indent=1))
            Path(temporary, "left_out").replace(left_out)
            part.replace(stored)  # several processes may do this at the same time; each reads a complete file

    def _in_memory(self, files: Sequence[Path]) -> tuple[Tensor, dict[str, str]]:
        """Decodes all files into memory."""
        require_room(len(files) * prod(self.shape), f"{len(files)} images of shape {list(self.shape)}")
        images, skipped, n = torch.empty(len(files), *self.shape, dtype=torch.uint8), {}, 0
        for n, image in enumerate(self._decoded(files, skipped), 1):
            images[n - 1] = torch.tensor(image)  # PIL's own memory is read-only
        return images[:n], skipped

    def _decoded(self, files: Sequence[Path], skipped: dict[str, str]) -> Iterator[np.ndarray]:
        """The images of all readable files; adds the errors of the others to `skipped`.

        Raises:
            InputError: no file is readable.
        """
        self._scale(files)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = zip(files, pool.map(self._read, files), strict=True)
            for file, image in tqdm(decoded, f"reading {self.path}", len(files), unit="image", disable=None):
                if isinstance(image, Unreadable):
                    skipped[str(file.relative_to(self.path))] = ": ".join(image.args)
                else:
                    yield np.ascontiguousarray(image)
        if skipped:
            summary(skipped, len(files), self.path)

    def _write_header(self, file: BinaryIO, n: int) -> None:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (n, *self.shape)})

    def _read(self, file: Path) -> np.ndarray | Unreadable:
        try:
            return read_image(file, self.shape, self.crop, self._known_scale)
        except Unreadable as error:
            return error


def folder_labels(files: Sequence[Path], folder: Path, num_classes: int) -> list[int]:
    """The label of each file: the index of its class folder in alphabetical order; zeros without classes.

    Raises:
        InputError: the number of folders is not that of classes, or an image is outside of them.
    """
    if not num_classes:
        return [0] * len(files)
    names = [file.relative_to(folder).parts[0] for file in files]
    classes = sorted(set(names))
    require(
        len(classes) == num_classes and all(len(file.relative_to(folder).parts) > 1 for file in files),
        f"num_classes={num_classes}: {folder} contains images in {len(classes)} folders or places "
        f"({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}); each class must have its own folder",
    )
    place = {name: k for k, name in enumerate(classes)}
    return [place[name] for name in names]
