"""Any folder of images, decoded once and kept on disk in the size in which a model sees them."""

import lightning_score.torchvision_guard  # noqa: F401

import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from tqdm import tqdm

from lightning_score.data.base import Examples, Splits
from lightning_score.data.files import Unreadable, check_form, fingerprint, image_files, read_image, summary
from lightning_score.data.images import ImageData
from lightning_score.utils import cache_folder, require


class ImageFolder(ImageData):
    """The images in a folder and in the folders within it.

    Each is cut to the largest middle part of the wanted proportions, then reduced or enlarged (bilinear, with antialiasing);
    images of any mode are converted, and those that cannot be read are left out and counted. The result is kept as bytes in
    a cache, which later runs map into memory, so that folders larger than memory work.

    Args:
        path: the folder.
        shape: [channels, height, width] that the model sees; 1 channel for grey, 3 for colour.
        crop: cut to the middle square of so many pixels first; null: not.
        num_classes: number of classes, which are the folders right inside `path`, in alphabetical order; 0: no labels.
        held_out: fraction of the images held out for validation and test.
        cache: folder of the decoded images; by default lightning_score in the user's cache folder.
        batch_size: examples per batch and process.
        data_range: lowest and highest value that the model sees, e.g. 0, 1 or -1, 1.
        flip: mirror training images left to right with probability 1/2.
        dequantize: add uniform noise within a grey level.
        num_workers: processes that load; data in memory are quickest with 0.

    Raises:
        InputError: a shape that is not an image's, or another number out of range; when the images are first needed: no
            such folder, no images in it that can be read, or another number of classes.
    """

    def __init__(
        self,
        path: str,
        shape: Sequence[int] = (3, 32, 32),
        crop: int | None = None,
        num_classes: int = 0,
        held_out: float = 0.1,
        cache: str | None = None,
        batch_size: int = 128,
        data_range: Sequence[float] = (0.0, 1.0),
        flip: bool = False,
        dequantize: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, data_range, flip, dequantize, num_workers)
        check_form(shape, crop, num_classes)
        require(
            0 < held_out < 1, f"held_out {held_out}: must be between 0 and 1, the fraction that is not trained on, as 0.1"
        )
        self.path, self.shape, self.crop, self.num_classes = Path(path), tuple(shape), crop, num_classes
        self.held_out = held_out
        self.cache = cache

    def load(self) -> Splits:
        files = image_files(self.path)
        images, skipped = self._images(files)
        files = [file for file in files if str(file.relative_to(self.path)) not in skipped]
        labels = torch.tensor(folder_labels(files, self.path, self.num_classes), dtype=torch.long)
        self._all = images
        return Splits(*(Examples(images[rows], labels[rows]) for rows in self._rows(len(files))))

    def reference(self) -> Tensor:
        """All images, which stay where they are stored."""
        self.splits  # noqa: B018
        return self._all

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the files' names, sizes and times, and of what is made of them."""
        return fingerprint(image_files(self.path), self.path, self.shape, self.crop)

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
        folder = Path(self.cache) if self.cache else cache_folder()
        stored = folder / f"{self.path.resolve().name}-{fingerprint(files, self.path, self.shape, self.crop)}.npy"
        left_out = stored.with_suffix(".left_out.json")
        if not (stored.exists() and left_out.exists()):
            stored.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=stored.parent) as temporary:
                skipped = self._decode(files, Path(temporary) / stored.name)
                Path(temporary, "left_out").write_text(json.dumps(skipped, indent=1))
                Path(temporary, "left_out").replace(left_out)
                Path(temporary, stored.name).replace(stored)  # several processes may do so at once; each finds a whole file
        skipped = json.loads(left_out.read_text())
        if skipped:
            rank_zero_warn(f"{summary(skipped, len(files), self.path)}; all are listed in {left_out}")
        return torch.from_numpy(np.load(stored, mmap_mode="c")), skipped

    def _decode(self, files: Sequence[Path], out: Path) -> dict[str, str]:
        """Writes the images; returns why others were left out."""
        skipped: dict[str, str] = {}
        with out.open("wb") as stored, ThreadPoolExecutor(os.cpu_count()) as pool:
            self._write_header(stored, len(files))
            decoded = pool.map(self._read, files)
            for file, image in tqdm(
                zip(files, decoded, strict=True), f"reading {self.path}", len(files), unit="image", disable=None
            ):
                if isinstance(image, Unreadable):
                    skipped[str(file.relative_to(self.path))] = ": ".join(image.args)
                else:
                    stored.write(image.tobytes())
            if skipped:
                summary(skipped, len(files), self.path)
                stored.seek(0)  # numpy leaves room for the number of rows
                self._write_header(stored, len(files) - len(skipped))
        return skipped

    def _write_header(self, file: BinaryIO, n: int) -> None:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (n, *self.shape)})

    def _read(self, file: Path) -> np.ndarray | Unreadable:
        try:
            return read_image(file, self.shape, self.crop)
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
        f"num_classes {num_classes}: {folder} holds images in {len(classes)} folders or places "
        f"({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}); each class needs a folder of its own",
    )
    place = {name: k for k, name in enumerate(classes)}
    return [place[name] for name in names]
