"""The grids on which networks have features: layers in one, two or three dimensions, with zeros outside or periodic axes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_score.errors import require

CONVOLUTIONS: tuple[Callable[..., nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)
SPREAD = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
POOLS = {"Avg": (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), "Max": (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)}
AXES = ("length", "height and width", "depth, height and width")


class Grid:
    """The positions of a sample: as many axes as its shape has after the channels, each of them periodic or not.

    Args:
        shape: [C, L], [C, H, W] or [C, D, H, W].
        periodic: whether the ends of an axis are neighbors, for all axes or for each; if not, zeros surround it.

    Raises:
        InputError: the shape is a point's, or there is not one value for each axis.
    """

    def __init__(self, shape: Sequence[int], periodic: bool | Sequence[bool] = False) -> None:
        self.dim = len(shape) - 1
        require(
            1 <= self.dim <= 3,
            f"shape={list(shape)}: must be [channels, length], [channels, height, width] or [channels, depth, height, width]"
            "; use an MLP for points, or --data.axes NL if the rows of a table are signals",
        )
        self.shape, self.axes = tuple(shape), AXES[self.dim - 1]
        self.periodic = (periodic,) * self.dim if isinstance(periodic, bool) else tuple(periodic)
        require(
            len(self.periodic) == self.dim,
            f"periodic={list(self.periodic)}: must be true, false or a list with one of them for each axis: {self.axes}",
        )
        self.linear = ("linear", "bilinear", "trilinear")[self.dim - 1]

    def divisible_by(self, factor: int) -> bool:
        """Whether the size of every axis is."""
        return all(size % factor == 0 for size in self.shape[1:])

    def conv(self, inputs: int, outputs: int, size: int = 3, dilation: int = 1, **settings: Any) -> nn.Module:
        """A convolution that keeps the resolution."""
        padding, kind = dilation * (size // 2), CONVOLUTIONS[self.dim - 1]
        layer = kind(inputs, outputs, size, padding=self.zeros(padding), dilation=dilation, **settings)
        return self._surrounded(layer, padding)

    def strided(self, inputs: int, outputs: int) -> nn.Module:
        """A convolution of size 3 and stride 2, which halves the resolution of padded features."""
        return CONVOLUTIONS[self.dim - 1](inputs, outputs, 3, stride=2)

    def convolve(self, x: Tensor, kernel: Tensor, **settings: Any) -> Tensor:
        """`torch.nn.functional`'s convolution."""
        return CONVOLVE[self.dim - 1](x, kernel, **settings)

    def spread_doubled(self, x: Tensor, kernel: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
        """The transposed convolution of size 4 and stride 2, which doubles the resolution."""
        beyond = [3 if periodic else 1 for periodic in self.periodic]
        return SPREAD[self.dim - 1](self.wrap(x, 1, 1), kernel, bias, stride=2, padding=beyond, groups=groups)

    def pool(self, kind: Literal["Avg", "Max"], size: int, stride: int = 1) -> nn.Module:
        """Means or maxima over `size` positions along each axis; with an odd size and stride 1 they keep the resolution."""
        padding = size // 2 if stride == 1 else 0
        if padding and kind == "Avg" and self.dim == 3:
            # torch's avg_pool3d refuses an input smaller than its window, whatever the padding
            return nn.Sequential(Pad(self, padding, padding), nn.AvgPool3d(size, stride))
        layer = POOLS[kind][self.dim - 1](size, stride, self.zeros(padding))
        return self._surrounded(layer, padding)

    def pad(self, x: Tensor, before: int, after: int) -> Tensor:
        """x with more positions before and after each axis."""
        sides = [0 if periodic else n for periodic in reversed(self.periodic) for n in (before, after)]
        return self.wrap(x if all(self.periodic) else F.pad(x, sides), before, after)

    def wrap(self, x: Tensor, before: int, after: int) -> Tensor:
        """x with more positions before and after each periodic axis."""
        for axis in (axis for axis, periodic in enumerate(self.periodic, 2) if periodic):
            n = x.shape[axis]
            begin, end = x.narrow(axis, n - before % n, before % n), x.narrow(axis, 0, after % n)
            parts = [begin, *[x] * (before // n + 1 + after // n), end]
            x = torch.cat([part for part in parts if part.shape[axis]], axis)  # unlike F.pad, in x's memory format
        return x

    def enlarge(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Linear interpolation from the first position to the last, and along periodic axes on to the first again."""
        larger = [n + periodic for n, periodic in zip(size, self.periodic, strict=True)]
        resized = F.interpolate(self.wrap(x, 0, 1), larger, mode=self.linear, align_corners=True)
        return crop(resized, 0, size) if any(self.periodic) else resized

    def zeros(self, padding: int) -> tuple[int, ...]:
        """The zeros beside each axis, if `padding` positions are seen there."""
        return tuple(0 if periodic else padding for periodic in self.periodic)

    def _surrounded(self, layer: nn.Module, padding: int) -> nn.Module:
        """The layer, which gets its input with the other end of periodic axes beside them."""
        if padding and any(self.periodic):
            layer.register_forward_pre_hook(partial(_wrap_input, self, padding))
        return layer


def _wrap_input(grid: Grid, padding: int, layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return grid.wrap(inputs[0], padding, padding)


class Pad(nn.Module):
    """Adds positions before and after each axis.

    Args:
        grid: where.
        before: how many before.
        after: how many after.
    """

    def __init__(self, grid: Grid, before: int, after: int) -> None:
        super().__init__()
        self.grid, self.before, self.after = grid, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.grid.pad(x, self.before, self.after)


def crop(x: Tensor, begin: int, size: Sequence[int]) -> Tensor:
    """The positions of x from `begin` on, `size` of them along each axis."""
    for axis, n in enumerate(size, 2):
        x = x.narrow(axis, begin, n)
    return x


def over(vector: Tensor, x: Tensor) -> Tensor:
    """Coefficients (..., C) that are the same at all positions of x, (B, C, *positions)."""
    return vector.reshape(*vector.shape, *[1] * (x.ndim - 2))


def channels_last(network: nn.Module) -> None:
    """Stores kernels of two and three dimensions with their channels last, with which convolutions are the quickest."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in network.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.to(memory_format=formats[parameter.ndim])  # strides, too, where both fit
