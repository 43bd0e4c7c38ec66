"""A folder of images, decoded once and cached on disk in the model's size."""

import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_score.data.batches import Examples, Splits
from lightning_score.data.files import ImageFiles
from lightning_score.data.gray import warn_of_few_levels
from lightning_score.errors import require
from lightning_score.files import LocalPath, made_once
from lightning_score.memory import require_room


class ImageFolder(ImageFiles):
    """The images in a folder and its subfolders; further arguments as in `ImageFiles`.

    Each image is cropped at its center to the model's aspect ratio, then resized (bilinear, with antialiasing). Images of
    any mode are converted, gray images of more than 8 bits by one scale for all files. Unreadable images are left out and
    counted, and links are not followed. The result is cached as bytes on disk and memory-mapped by later runs, so folders
    larger than memory work.

    Args:
        path: the folder.
        held_out: fraction of the images held out for validation and test.

    Raises:
        InputError: an argument is out of range; when the images are first needed: the folder is missing, contains no
            readable image, or has another number of classes.
    """

    def __init__(self, path: LocalPath, shape: Sequence[int] = (3, 32, 32), held_out: float = 0.1, **options: Any) -> None:
        super().__init__(path, shape, **options)
        require(0 < held_out < 1, f"held_out={held_out}: must be a fraction between 0 and 1, as in 0.1")
        self.held_out = held_out

    def load(self) -> Splits:
        labels = torch.tensor(self.labels(), dtype=torch.long)
        self._rows(len(self.files))  # raises before all images are decoded
        self._all, skipped = self._images()
        labels = labels[[str(file.relative_to(self.folder)) not in skipped for file in self.files]]
        return Splits(*(Examples(self._all[rows], labels[rows]) for rows in self._rows(len(labels))))

    def reference(self) -> Tensor:
        """All images, not copied."""
        self.splits  # noqa: B018
        return self._all

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the files' names, sizes and times, and of the conversion."""
        return self.hashed(self.shape, self.crop)

    def _rows(self, n: int) -> tuple[slice, slice]:
        """The rows of both splits: the images are stored in random order, so that each split is a slice."""
        train = n - max(round(n * self.held_out), 1)
        require(
            train > 0, f"{self.path}: only {n} images, so none is left for training; give more images, or a smaller held_out"
        )
        return slice(0, train), slice(train, n)

    def _images(self) -> tuple[Tensor, dict[str, str]]:
        """All readable images as bytes (N, C, H, W), and the errors of the other files."""
        stored = self.in_cache(f"{self.fingerprint}.npy")
        left_out = stored.with_suffix(".left_out.json")
        try:
            images, skipped = self._stored(stored, left_out)
        except OSError as error:  # a full disk, or no permission
            rank_zero_warn(
                f"{stored.parent}: the decoded images cannot be written there ({error.strerror or error}); this run keeps "
                "them in memory and the next decodes them again; give another --data.cache"
            )
            require_room(len(self.files) * self.item_bytes, f"{len(self.files)} images of shape {list(self.shape)}")
            skipped = {}
            images = np.fromiter((image for _, image in self.decoded(skipped)), np.dtype((self.pixel, self.shape)))
        if skipped:
            listed = f"; all are listed in {left_out}" if left_out.exists() else ""
            rank_zero_warn(f"{self.summary(skipped)}{listed}")
        found = torch.from_numpy(images)
        if self.scale:
            warn_of_few_levels(found, self.folder)
        return found, skipped

    def _stored(self, stored: Path, left_out: Path) -> tuple[np.ndarray, dict[str, str]]:
        """The content of the cache, which one of several processes creates if it is missing or damaged.

        Raises:
            OSError: there is no space, or no permission.
        """

        def content() -> tuple[np.ndarray, dict[str, str]]:
            return np.load(stored, mmap_mode="c"), json.loads(left_out.read_text())

        with suppress(OSError, ValueError, EOFError):
            return content()
        with made_once(stored):
            with suppress(OSError, ValueError, EOFError):
                return content()
            self._store(stored, left_out)
            return content()

    def _store(self, stored: Path, left_out: Path) -> None:
        """Decodes all files into the cache, which is replaced at the end."""
        self.require_space(stored.parent)
        skipped: dict[str, str] = {}
        with tempfile.TemporaryDirectory(dir=stored.parent) as temporary:
            part, listed = Path(temporary, stored.name), Path(temporary, left_out.name)
            with part.open("wb") as out:
                self._write_header(out, len(self.files))
                for _, image in self.decoded(skipped):
                    out.write(image.tobytes())
                out.seek(0)  # the header has space for the number of rows
                self._write_header(out, len(self.files) - len(skipped))
            listed.write_text(json.dumps(skipped, indent=1))
            listed.replace(left_out)
            part.replace(stored)  # a process that reads meanwhile has a complete file

    def _write_header(self, file: BinaryIO, n: int) -> None:
        header = {"descr": self.pixel.str, "fortran_order": False, "shape": (n, *self.shape)}
        np.lib.format.write_array_header_1_0(file, header)
