"""Any folder of images, decoded once and kept on disk in the size in which a model sees them."""

import lightning_score.torchvision_guard  # noqa: F401

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
    """The images in a folder and in the folders within it.

    Each is cut to the largest middle part of the wanted proportions, then reduced or enlarged (bilinear, with antialiasing);
    images of any mode are converted, grays of more than 8 bits by one scale for all files; those that cannot be read are
    left out and counted, and links are not followed. The result is kept as bytes in a cache,
    which later runs map into memory, so that folders larger than memory work.

    Args:
        path: the folder.
        shape: [channels, height, width] that the model sees; 1 channel for gray, 3 for color.
        crop: cut to the middle square of so many pixels first; null: not.
        num_classes: number of classes, which are the folders right inside `path`, in alphabetical order; 0: no labels.
        held_out: fraction of the images held out for validation and test.
        cache: folder of the decoded images; by default lightning_score in the user's cache folder.
        gray_range: [black, white], the values that become 0 and 255 in gray images of 16 or 32 bits or of floats; null: 0,
            and what fits all files of the folder, which is said.
        batch_size: examples per batch and process.
        data_range: lowest and highest value that the model sees, e.g. 0, 1 or -1, 1.
        flip: mirror training images left to right with probability 1/2.
        dequantize: add uniform noise within a gray level.
        num_workers: processes that load; data in memory are quickest with 0.

    Raises:
        InputError: a shape that is not an image's, or another number out of range; when the images are first needed: no
            such folder, no images in it that can be read, or another number of classes.
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
        require(
            0 < held_out < 1, f"held_out={held_out}: must be between 0 and 1, the fraction that is not trained on, as 0.1"
        )
        self.path, self.shape, self.crop, self.num_classes = Path(path), tuple(shape), crop, num_classes
        check_gray_range(gray_range)
        self.held_out, self.cache, self.gray_range = held_out, cache, gray_range
        self._known_scale: GrayScale | None = None

    def load(self) -> Splits:
        files = image_files(self.path)
        labels = torch.tensor(folder_labels(files, self.path, self.num_classes), dtype=torch.long)
        self._rows(len(files))  # what does not fit is found before all is decoded
        images, skipped = self._images(files)
        labels = labels[[str(file.relative_to(self.path)) not in skipped for file in files]]
        self._all = images
        return Splits(*(Examples(images[rows], labels[rows]) for rows in self._rows(len(images))))

    def reference(self) -> Tensor:
        """All images, which stay where they are stored."""
        self.splits  # noqa: B018
        return self._all

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the files' names, sizes and times, and of what is made of them."""
        return self._fingerprint(image_files(self.path))

    def _fingerprint(self, files: Sequence[Path]) -> str:
        scale = sorted(self._scale(files).items())
        return fingerprint(files, self.path, self.shape, self.crop, *([scale] if scale else []))

    def _scale(self, files: Sequence[Path]) -> GrayScale:
        """Black and white, found once."""
        if self._known_scale is None:
            name = f"{self.path.resolve().name}-{fingerprint(files, self.path)}.gray.json"
            self._known_scale = gray_scale(files, self.path, folder_of_cache(self.cache) / name, self.gray_range)
        return self._known_scale

    def _rows(self, n: int) -> tuple[slice, slice]:
        """The images were shuffled before they were stored, so that each split is a slice that need not be copied."""
        train = max(n - max(round(n * self.held_out), 1), 0)
        require(
            train > 0, f"{self.path}: only {n} images, of which none is left to train on; give more, or a smaller held_out"
        )
        return slice(0, train), slice(train, n)

    def _images(self, files: Sequence[Path]) -> tuple[Tensor, dict[str, str]]:
        """All images that can be read, as bytes (N, C, H, W), mapped from the cache, which is made where there is none; and
        why others cannot."""
        folder = folder_of_cache(self.cache)
        stored = folder / f"{self.path.resolve().name}-{self._fingerprint(files)}.npy"
        left_out = stored.with_suffix(".left_out.json")
        found = self._stored(stored, left_out)
        if found is None:
            try:
                with new_folder_if_kept(folder):
                    self._store(files, stored, left_out)
                found = self._stored(stored, left_out)
            except OSError as error:  # a full disk, or a folder that is not the user's
                rank_zero_warn(
                    f"{folder}: the decoded images cannot be kept there ({error.strerror or error}); this run keeps them in "
                    "memory and the next decodes them again: give another --data.cache"
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
        """What the cache holds, if that is whole."""
        try:
            return torch.from_numpy(np.load(stored, mmap_mode="c")), json.loads(left_out.read_text())
        except (OSError, ValueError, EOFError):
            return None

    def _store(self, files: Sequence[Path], stored: Path, left_out: Path) -> None:
        """Decodes all files into the cache, where they appear when all is done.

        Raises:
            OSError: there is no room, or no right to write.
        """
        needed = len(files) * prod(self.shape)
        if shutil.disk_usage(stored.parent).free < needed:
            raise OSError(ENOSPC, f"{needed / 1e9:.3g} GB are needed, which are not free")
        with tempfile.TemporaryDirectory(dir=stored.parent) as temporary:
            part, skipped = Path(temporary, stored.name), {}
            with part.open("wb") as out:
                self._write_header(out, len(files))
                for image in self._decoded(files, skipped):
                    out.write(image.tobytes())
                out.seek(0)  # numpy leaves room for the number of rows
                self._write_header(out, len(files) - len(skipped))
            Path(temporary, "left_out").write_text(json.dumps(skipped, indent=1))
            Path(temporary, "left_out").replace(left_out)
            part.replace(stored)  # several processes may do so at once; each finds a whole file

    def _in_memory(self, files: Sequence[Path]) -> tuple[Tensor, dict[str, str]]:
        """Decodes all files into memory."""
        require_room(len(files) * prod(self.shape), f"{len(files)} images of shape {list(self.shape)}")
        images, skipped, n = torch.empty(len(files), *self.shape, dtype=torch.uint8), {}, 0
        for n, image in enumerate(self._decoded(files, skipped), 1):
            images[n - 1] = torch.tensor(image)  # PIL's own memory is read-only
        return images[:n], skipped

    def _decoded(self, files: Sequence[Path], skipped: dict[str, str]) -> Iterator[np.ndarray]:
        """The images of all files that can be read; fills in why others cannot.

        Raises:
            InputError: none can.
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
    """The label of each file, the place of its topmost folder in alphabetical order; zeros if there are no classes.

    Raises:
        InputError: there are not as many folders as classes, or images outside of them.
    """
    if not num_classes:
        return [0] * len(files)
    names = [file.relative_to(folder).parts[0] for file in files]
    classes = sorted(set(names))
    require(
        len(classes) == num_classes and all(len(file.relative_to(folder).parts) > 1 for file in files),
        f"num_classes={num_classes}: {folder} holds images in {len(classes)} folders or places "
        f"({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}); each class needs a folder of its own",
    )
    place = {name: k for k, name in enumerate(classes)}
    return [place[name] for name in names]
