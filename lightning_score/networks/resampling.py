"""Changes of resolution by a factor of two, with and without a convolution."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_score.networks.grid import Grid, Pad


class Downsample(nn.Module):
    """Halves the resolution by a convolution of size 3 and stride 2.

    Args:
        grid: of the features.
        channels: channels of input and output.
        symmetric: pad both ends of each axis by a pixel; if not, its last end only (as Ho et al.).
    """

    def __init__(self, grid: Grid, channels: int, symmetric: bool = False) -> None:
        super().__init__()
        self.conv = grid.strided(channels, channels)
        self.pad = Pad(grid, int(symmetric), 1)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """The smaller features; what conditions other blocks is ignored."""
        return self.conv(self.pad(x))


class Upsample(nn.Module):
    """Doubles the resolution by repeating pixels, then a convolution of size 3.

    Args:
        grid: of the features.
        channels: channels of input and output.
    """

    def __init__(self, grid: Grid, channels: int) -> None:
        super().__init__()
        self.conv = grid.conv(channels, channels)
        self.repeat = Repeat(grid)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """The larger features; what conditions other blocks is ignored."""
        return resampled(self.repeat, self.conv, x)


class Repeat(nn.Module):
    """Doubles the resolution by repeating pixels.

    A convolution of size 3 then sees each pixel through sums of its weights. It is a transposed convolution of size 4 with
    these, which multiplies 2 times instead of 3 along each axis.

    Args:
        grid: of the features.
    """

    sums: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        sums = along_axis = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        for _ in range(grid.dim - 1):
            sums = torch.kron(sums, along_axis)
        self.register_buffer("sums", sums, persistent=False)
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")

    def convolved(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        """The convolution of size 3 of what this makes of x."""
        sums = torch.einsum("pk,oik->iop", self.sums.to(conv.weight.dtype), conv.weight.flatten(2))
        return self.grid.spread_doubled(x, sums.unflatten(2, [4] * self.grid.dim), conv.bias)


WORTHWHILE = 1024
"""Fewest positions of a batch for which sums of weights take less time than they save."""


def resampled(resample: nn.Module, conv: nn.Module, x: Tensor) -> Tensor:
    """conv(resample(x)), of a convolution of any size or the identity, in the quickest of equal ways."""
    if not isinstance(resample, Repeat):
        return conv(resample(x))
    if getattr(conv, "kernel_size", (1,))[0] == 1:
        return resample(conv(x))
    worthwhile = x.is_cpu and x[:, 0].numel() >= WORTHWHILE
    return resample.convolved(x, cast(nn.Conv2d, conv)) if worthwhile else conv(resample(x))


class Filter(nn.Module):
    """Correlates every channel with [1, 3, 3, 1]/8 along each axis.

    Args:
        grid: of the features.
        stride: pixels from one output to the next.
        padding: pixels outside the grid that are seen on each side.
    """

    kernel: Tensor

    def __init__(self, grid: Grid, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        kernel = taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        for _ in range(grid.dim - 1):
            kernel = kernel[..., None] * taps
        self.register_buffer("kernel", kernel[None, None], persistent=False)
        self.grid, self.stride, self.padding = grid, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        x, zeros = self.grid.wrap(x, self.padding, self.padding), self.grid.zeros(self.padding)
        return self.grid.convolve(x, self.per_channel(x), stride=self.stride, padding=zeros, groups=x.shape[1])

    def per_channel(self, x: Tensor) -> Tensor:
        """The kernel of each channel of x."""
        return self.kernel.expand(x.shape[1], *self.kernel.shape[1:])


class FilterUp(Filter):
    """Doubles the resolution: zeros between the pixels, then the filter, twice as strong along each axis.

    That is linear interpolation between the pixels' centers; as a transposed convolution it takes a fifth of the time.

    Args:
        grid: of the features.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self.kernel *= 2**grid.dim

    def forward(self, x: Tensor) -> Tensor:
        return self.grid.spread_doubled(x, self.per_channel(x), groups=x.shape[1])


class Resampling(NamedTuple):
    """A way to change the resolution, channel by channel or together with a convolution of size 3.

    Fields: grid (of the features), down (makes what halves the resolution), up (makes what doubles it), before_stride (makes
    what precedes a convolution of stride 2, so that this one halves it).
    """

    grid: Grid
    down: Callable[[], nn.Module]
    up: Callable[[], nn.Module]
    before_stride: Callable[[], nn.Module]

    def conv_down(self, inputs: int, outputs: int) -> nn.Module:
        """Halves the resolution with a convolution."""
        return nn.Sequential(self.before_stride(), self.grid.strided(inputs, outputs))

    def conv_up(self, inputs: int, outputs: int) -> nn.Module:
        """Doubles it, then convolves."""
        return nn.Sequential(self.up(), self.grid.conv(inputs, outputs))


def boxes(grid: Grid) -> Resampling:
    """Means of two pixels along each axis on the way down, repeated pixels on the way up."""
    return Resampling(grid, partial(grid.pool, "Avg", 2, stride=2), partial(Repeat, grid), partial(Pad, grid, 0, 1))


def filtered(grid: Grid) -> Resampling:
    """The filter [1, 3, 3, 1] along each axis against aliasing (Zhang 2019; Karras et al. 2020, StyleGAN2)."""
    return Resampling(grid, partial(Filter, grid, stride=2), partial(FilterUp, grid), partial(Filter, grid, padding=2))
