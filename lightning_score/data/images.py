"""Image data sets: stored as uint8, and converted to floats in the model's range batch by batch."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_score.data.base import ScoreData
from lightning_score.data.batches import Examples, Splits, split_indices
from lightning_score.data.check import is_interval
from lightning_score.errors import Unmeasurable, require

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of names of files that count as images, as in torchvision's folders."""


def to_picture(image: Tensor) -> Image.Image:
    """Bytes (1, H, W) as a gray picture, (3, H, W) as one in color."""
    return Image.fromarray(image.squeeze(0).numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy())


def of_picture(picture: Image.Image) -> Tensor:
    """The values of a picture in the layout of tensors, (C, H, W)."""
    values = torch.from_numpy(np.array(picture))
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)


def spread(level: Tensor, levels: int) -> Tensor:
    """Gray levels 0..levels-1 spread evenly over the bytes: uint8 `round(255 level / (levels - 1))`; more than 256 levels
    as they are, uint16.
    """
    return level.to(torch.uint16) if levels > 256 else torch.round(level.float() * 255 / (levels - 1)).to(torch.uint8)


def from_uint8(images: Tensor, data_range: Sequence[float], levels: int = 256, dequantize: bool = False) -> Tensor:
    """Bytes to floats in the data range: gray level v becomes `low + (high - low) u`, `u = v / (levels - 1)`.

    Uniform dequantization, `u = (v + U) / levels` with U ~ U[0, 1), gives the data a density (Theis, van den Oord and
    Bethge 2016, arXiv:1511.01844, section 3.1).

    Args:
        images: uint8 (N, C, H, W), the gray levels spread over 0..255; of more than 256 levels uint16; means of both as
            floats.
        data_range: low and high.
        levels: number of gray levels; a byte between two of them counts as the nearest, a float keeps its value.
        dequantize: add the uniform noise.
    """
    low, high = data_range
    level = images.to(torch.float32, copy=True)
    if levels < 256:
        level.mul_((levels - 1) / 255)
        level = level if images.is_floating_point() else level.round_()
    unit = (level + torch.rand_like(level)).div_(levels) if dequantize else level.div_(levels - 1)
    return unit.mul_(high - low).add_(low)


def to_uint8(x: Tensor, data_range: Sequence[float], levels: int = 256, dequantized: bool = False) -> Tensor:
    """Floats to bytes, the inverse of `from_uint8`: `v = round((levels - 1) u)`, `u = (x - low) / (high - low)`.

    For dequantized data `v = floor(levels u)`, which removes the uniform noise again. Values outside the data range are
    clamped. A real image passes through `from_uint8` and back unchanged; a dequantized one too, except that the
    rounding of float32 changes about one pixel in a million by one level, and of 65536 levels one in a thousand.

    Args:
        x: float (N, C, H, W), in the data range.
        data_range: low and high.
        levels: number of gray levels.
        dequantized: whether the model was trained on dequantized data.

    Returns:
        uint8 (N, C, H, W), the gray levels spread over 0..255; of more than 256 levels uint16.

    Raises:
        Unmeasurable: `x` contains NaN, for example because the model diverged.
    """
    if bool(x.isnan().any()):
        count = int(x.flatten(1).isnan().any(1).sum())
        raise Unmeasurable(
            f"{count} of {len(x)} images contain NaN: the model or its sampler diverged; "
            "use a smaller step size or learning rate"
        )
    low, high = data_range
    unit = (x.float() - low) / (high - low)
    level = torch.floor(unit * levels) if dequantized else torch.round(unit * (levels - 1))
    return spread(level.clamp_(0, levels - 1), levels)


@dataclass(frozen=True)
class ToBatch:
    """Stored bytes to a batch: `from_uint8`, and with `flip` the mirror image instead, with probability 1/2."""

    data_range: tuple[float, float]
    levels: int
    dequantize: bool
    flip: bool

    def __call__(self, images: Tensor) -> Tensor:
        if self.flip:
            n, images = len(images), images.int() if images.dtype == torch.uint16 else images  # torch flips no uint16
            either = torch.cat([images, images.flip(-1)])
            rows = torch.arange(n) + n * torch.randint(2, (n,))
            images = either.index_select(0, rows.to(images.device, non_blocking=True))
        return from_uint8(images, self.data_range, self.levels, self.dequantize)


class ImageData(ScoreData):
    """Images kept in memory as bytes; a data set defines `load`, `shape` (C, H, W), and `num_classes` if it has labels;
    further arguments as in `ScoreData`.

    Args:
        batch_size: examples per batch and process.
        data_range: lowest and highest value that the model sees, e.g. 0, 1 or -1, 1.
        flip: mirror training images left to right with probability 1/2.
        dequantize: add uniform noise within a gray level.

    Raises:
        InputError: `data_range` is not two increasing numbers.
    """

    data_range: tuple[float, float]
    levels: int = 256
    stored_dtype = torch.uint8

    def __init__(
        self,
        batch_size: int = 128,
        data_range: Sequence[float] = (0.0, 1.0),
        flip: bool = False,
        dequantize: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, **options)
        require(is_interval(data_range), f"data_range={data_range}: must be two increasing numbers, as in [0, 1] or [-1, 1]")
        self.data_range = (float(data_range[0]), float(data_range[1]))
        self.flip = flip
        self.dequantize = dequantize

    @abstractmethod
    def load(self) -> Splits:
        """Reads the images, uint8 (N, C, H, W) with the gray levels spread over 0..255, and their labels."""

    def transform(self, train: bool) -> ToBatch:
        return ToBatch(self.data_range, self.levels, self.dequantize, flip=self.flip and train)

    def to_reference(self, x: Tensor) -> Tensor:
        return to_uint8(x, self.data_range, self.levels, dequantized=self.dequantize)


class Digits(ImageData):
    """1797 handwritten digits, 8x8 with 17 gray levels, shipped with the package: 1437 to train on, 360 held out.

    The test set of E. Alpaydin and C. Kaynak's Optical Recognition of Handwritten Digits (UCI, CC BY 4.0), as
    in scikit-learn. The split is `split_indices(1797)`, random and not stratified; the classifier of `DigitFeatures` was
    trained on the same split.
    """

    shape = (1, 8, 8)
    num_classes = 10
    levels = 17

    def load(self) -> Splits:
        with np.load(Path(__file__).with_name("digits.npz")) as file:
            images = spread(torch.from_numpy(file["images"]), self.levels).unsqueeze(1)
            labels = torch.from_numpy(file["labels"]).long()
        return Splits(*(Examples(images[rows], labels[rows]) for rows in split_indices(len(images))))
