"""Changes of resolution by a factor of two, with and without a convolution."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Downsample(nn.Module):
    """Halves height and width by a 3x3 convolution of stride 2.

    Args:
        channels: channels of input and output.
        symmetric: pad all sides by a pixel; if not, the right and the bottom only (as Ho et al.).
    """

    def __init__(self, channels: int, symmetric: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)
        self.padding = (1, 1, 1, 1) if symmetric else (0, 1, 0, 1)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """The smaller features; what conditions other blocks is ignored."""
        return self.conv(F.pad(x, self.padding))


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then a 3x3 convolution.

    Args:
        channels: channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """The larger features; what conditions other blocks is ignored."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Filter(nn.Module):
    """Correlates every channel with [1, 3, 3, 1]/8 along each axis; outside the image there are zeros.

    Args:
        stride: pixels from one output to the next.
        padding: pixels outside the image that are seen on each side.
    """

    kernel: Tensor

    def __init__(self, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None], persistent=False)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.kernel.expand(channels, 1, 4, 4)
        return F.conv2d(x, kernel, stride=self.stride, padding=self.padding, groups=channels)


class FilterUp(nn.Module):
    """Doubles height and width: zeros between the pixels, then the filter, four times as strong.

    That is linear interpolation between the pixels' centers, with zeros outside the image.
    """

    def forward(self, x: Tensor) -> Tensor:
        doubled = F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=2.0, mode="bilinear", align_corners=False)
        return doubled[..., 2:-2, 2:-2]


class Resampling(NamedTuple):
    """A way to change the resolution, channel by channel or together with a 3x3 convolution.

    Fields: down (makes what halves height and width), up (makes what doubles them), before_stride (makes what precedes a
    convolution of stride 2, so that this one halves them).
    """

    down: Callable[[], nn.Module]
    up: Callable[[], nn.Module]
    before_stride: Callable[[], nn.Module]

    def conv_down(self, inputs: int, outputs: int) -> nn.Module:
        """Halves height and width with a convolution."""
        return nn.Sequential(self.before_stride(), nn.Conv2d(inputs, outputs, 3, stride=2))

    def conv_up(self, inputs: int, outputs: int) -> nn.Module:
        """Doubles them, then convolves."""
        return nn.Sequential(self.up(), nn.Conv2d(inputs, outputs, 3, padding=1))


BOXES = Resampling(
    down=partial(nn.AvgPool2d, 2),
    up=partial(nn.Upsample, scale_factor=2.0, mode="nearest"),
    before_stride=partial(nn.ZeroPad2d, (0, 1, 0, 1)),
)
"""Means of 2x2 pixels on the way down, repeated pixels on the way up."""

FIR = Resampling(down=partial(Filter, stride=2), up=FilterUp, before_stride=partial(Filter, padding=2))
"""The filter [1, 3, 3, 1] along each axis against aliasing (Zhang 2019; Karras et al. 2020, StyleGAN2)."""
