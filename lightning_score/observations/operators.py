"""Linear operators of samples of any shape: masks, means and matrices."""

from abc import ABC
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_score.errors import InputError, require
from lightning_score.files import LocalPath
from lightning_score.observations.base import LinearOperator
from lightning_score.observations.files import read_array
from lightning_score.tensors import broadcast_to

if TYPE_CHECKING:
    Numbers = Tensor | Sequence[Any] | LocalPath
else:
    Numbers = Sequence[Any] | LocalPath  # on the command line, whose help would list all classes of tensors


def numbers(name: str, given: Numbers) -> Tensor:
    """Finite numbers that are given, or those of a PNG, NPY or NPZ file, float64.

    Args:
        name: of the argument, for errors.
        given: the numbers.

    Raises:
        InputError: they are no finite numbers, or the file cannot be read.
    """
    values = read_array(given) if isinstance(given, str) else given
    try:
        found = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        rows = "must be numbers, in rows of equal lengths, or the path of a PNG, NPY or NPZ"
        raise InputError(f"{name}={given!r:.60}: {rows}") from error
    fits = found.numel() > 0 and bool(found.isfinite().all())
    require(fits, f"{name} of shape {list(found.shape)}: must be finite numbers")
    return found


def without_first_ones(values: Tensor) -> Tensor:
    """Without first axes of size 1, as the file of a gray image has them."""
    while values.ndim > 1 and len(values) == 1:
        values = values.squeeze(0)
    return values


class Averaging(LinearOperator, ABC):
    """Each number of an observation is the mean of n numbers of the sample, which no other observes: A A^T = I/n.

    Attributes:
        averaged: n.
    """

    averaged = 1

    def gram_solve(self, v: Tensor, r2: Tensor, s2: Tensor | float) -> Tensor:
        return v / (broadcast_to(r2, v) / self.averaged + broadcast_to(s2, v))


class Mask(Averaging):
    """Some coordinates of a sample, (m,): A selects, so A A^T = I.

    Args:
        mask: true or non-zero where it is observed, in the shape of a sample, or the path of a PNG, NPY or NPZ; axes of
            size 1 and missing first axes stand for all, as a mask (H, W) for all channels.

    Raises:
        InputError: nothing is observed; in `check`: it does not fit the samples.
    """

    def __init__(self, mask: Numbers):
        self.mask = without_first_ones(numbers("mask", mask) != 0)
        require(bool(self.mask.any()), "mask: all entries are zero, so nothing is observed; set some to 1")

    def check(self, shape: Sequence[int]) -> None:
        require_mask(self.mask, shape)

    def apply(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, self._known_places(x.shape[1:], x.device))

    def adjoint(self, v: Tensor, shape: Sequence[int]) -> Tensor:
        zeros = v.new_zeros(len(v), prod(shape))
        return zeros.index_copy(1, self._known_places(shape, v.device), v).reshape(-1, *shape)

    def _known_places(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Of the entries of a sample, int64 (m,)."""
        return self.mask.expand(*shape).flatten().nonzero().flatten().to(device)


def require_mask(mask: Tensor, shape: Sequence[int], name: str = "mask") -> None:
    """Raises `InputError` unless a mask, of this name in errors, expands to a shape."""
    require(
        mask.ndim <= len(shape) and all(a in (1, b) for a, b in zip(mask.shape[::-1], list(shape)[::-1], strict=False)),
        f"{name} of shape {list(mask.shape)}: does not fit the shape {list(shape)}; give a mask of that, or without its "
        "first axes",
    )


class Gray(Averaging):
    """The mean over the C channels of an image, (1, H, W), a signal or a volume: A A^T = I/C."""

    def check(self, shape: Sequence[int]) -> None:
        require(len(shape) > 1, f"samples of shape {list(shape)}: only images, [C, H, W], signals and volumes have channels")

    def apply(self, x: Tensor) -> Tensor:
        self.averaged = x.shape[1]
        return x.mean(1, keepdim=True)


class BlockMean(Averaging):
    """The means over blocks of f x f pixels, (C, H/f, W/f), or of signals or volumes: A A^T = I/f^n in n dimensions.

    Args:
        factor: f, at least 2, a divisor of every spatial size.

    Raises:
        InputError: the factor is below 2; in `check`: it does not divide the image.
    """

    def __init__(self, factor: int = 2):
        require(factor >= 2, f"factor={factor}: must be at least 2, the side of the blocks that are averaged")
        self.factor = factor

    def check(self, shape: Sequence[int]) -> None:
        require(
            len(shape) in (2, 3, 4) and not any(size % self.factor for size in shape[1:]),
            f"factor={self.factor}: samples of shape {list(shape)} are not images, signals or volumes that divide into "
            "blocks of this side; give a divisor of every spatial size",
        )

    def apply(self, x: Tensor) -> Tensor:
        self.averaged = self.factor ** (x.ndim - 2)
        return (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3](x, self.factor)


class Matrix(LinearOperator):
    """Any matrix A (m, D) on the flattened sample, (m,).

    Args:
        matrix: A, m rows of D numbers, D the size of a sample, or the path of an NPY or NPZ.

    Raises:
        InputError: it is not a matrix; in `check`: its rows are not as long as a sample.
    """

    dense = True

    def __init__(self, matrix: Numbers):
        self.matrix = numbers("matrix", matrix)
        require(self.matrix.ndim == 2, f"matrix of shape {list(self.matrix.shape)}: must be [m, D], D the size of a sample")
        self._shape = self.matrix.shape[1:]

    def check(self, shape: Sequence[int]) -> None:
        columns, size = self.matrix.shape[1], prod(shape)
        require(columns == size, f"matrix with {columns} columns: samples of shape {list(shape)} have {size} numbers")

    def apply(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x).mT
