"""Any folder of images, decoded once and kept on disk in the size in which a model sees them."""

import lightning_score.torchvision_guard  # noqa: F401

import hashlib
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.functional import center_crop
from tqdm import tqdm

from lightning_score.data.base import Examples, Splits, split_indices
from lightning_score.data.images import ImageData
from lightning_score.utils import InputError, cache_folder, require


class ImageFolder(ImageData):
    """The images in a folder and in the folders within it.

    Each is cut to the largest middle part of the wanted proportions, then reduced or enlarged (bilinear, with antialiasing).
    The result is kept as bytes in a cache, which later runs map into memory, so that folders larger than memory work.

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
            such folder, no images in it, another number of classes, or a file that is no image.
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
        require(
            len(shape) == 3 and shape[0] in (1, 3) and min(shape) > 0,
            f"shape {list(shape)}: must be [channels, height, width] with 1 channel (grey) or 3 (colour), as in [3, 32, 32]",
        )
        require(crop is None or crop > 0, f"crop {crop}: must be positive, the side in pixels of the middle square, or null")
        require(
            0 < held_out < 1, f"held_out {held_out}: must be between 0 and 1, the fraction that is not trained on, as 0.1"
        )
        require(num_classes >= 0, f"num_classes {num_classes}: must be 0 (no labels) or the number of folders in the folder")
        self.path, self.shape, self.crop, self.num_classes = Path(path), tuple(shape), crop, num_classes
        self.held_out = held_out
        self.cache = cache

    def load(self) -> Splits:
        files = image_files(self.path)
        labels = torch.tensor(self._labels(files), dtype=torch.long)
        images = torch.from_numpy(self._images(files))
        return Splits(*(Examples(images[rows], labels[rows]) for rows in self._rows(len(files))))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the files' names, sizes and times, and of what is made of them."""
        return self._key(image_files(self.path))

    def _rows(self, n: int) -> tuple[slice, slice]:
        """The images were shuffled before they were stored, so that each split is a slice that need not be copied."""
        train = max(n - max(round(n * self.held_out), 1), 0)
        require(
            train > 0, f"{self.path}: only {n} images, of which none is left to train on; give more, or a smaller held_out"
        )
        return slice(0, train), slice(train, n)

    def _labels(self, files: Sequence[Path]) -> list[int]:
        if not self.num_classes:
            return [0] * len(files)
        names = [file.relative_to(self.path).parts[0] for file in files]
        classes = sorted(set(names))
        require(
            len(classes) == self.num_classes and all(len(file.relative_to(self.path).parts) > 1 for file in files),
            f"num_classes {self.num_classes}: {self.path} holds images in {len(classes)} folders or places "
            f"({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}); each class needs a folder of its own",
        )
        return [classes.index(name) for name in names]

    def _images(self, files: Sequence[Path]) -> np.ndarray:
        """All images as bytes, (N, C, H, W), mapped from the cache, which is made where there is none."""
        folder = Path(self.cache) if self.cache else cache_folder()
        stored = folder / f"{self.path.resolve().name}-{self._key(files)}.npy"
        if not stored.exists():
            stored.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=stored.parent) as temporary:
                self._decode(files, Path(temporary) / stored.name)
                Path(temporary, stored.name).replace(stored)  # several processes may do so at once; each finds a whole file
        return np.load(stored, mmap_mode="c")

    def _key(self, files: Sequence[Path]) -> str:
        """Changes with the shape, the crop and the files' names, sizes and times."""
        digest = hashlib.sha256(repr((self.shape, self.crop)).encode())
        for file in files:
            state = file.stat()
            digest.update(f"{file.relative_to(self.path)} {state.st_size} {state.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def _decode(self, files: Sequence[Path], out: Path) -> None:
        with out.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *self.shape)}
            np.lib.format.write_array_header_1_0(file, header)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                decoded = pool.map(self._read, files)
                for image in tqdm(decoded, f"reading {self.path}", len(files), unit="image", disable=None):
                    file.write(image.tobytes())

    def _read(self, file: Path) -> np.ndarray:
        """One image, uint8 (C, H, W)."""
        channels, height, width = self.shape
        try:
            with Image.open(file) as opened:
                image = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{file}: not an image that can be read ({error}); remove it or mend it") from error
        if self.crop is not None:
            require(
                min(image.size) >= self.crop,
                f"{file}: {image.width} x {image.height} pixels, smaller than crop={self.crop}; choose a smaller crop",
            )
            image = center_crop(image, [self.crop, self.crop])
        fitted = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        return np.asarray(fitted).reshape(height, width, channels).transpose(2, 0, 1)


def image_files(folder: Path) -> list[Path]:
    """All images in a folder and below, in an order that is random but always the same.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    require(folder.is_dir(), f"{folder}: there is no such folder; set --data.path to a folder of images")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS and file.is_file())
    require(bool(files), f"{folder}: no images in it, that is, no files with an ending of {', '.join(IMG_EXTENSIONS)}")
    first, last = split_indices(len(files))
    return [files[i] for i in [*first, *last]]
