"""What accompanies the features of NCSN++ from level to level: the image on the way down, the output on the way up.

Song et al. 2021 (2011.13456), appendix H, after StyleGAN2 (Karras et al. 2020, 1912.04958, section 4.1).
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_score.networks.blocks import Norm, scaled, zero
from lightning_score.networks.resampling import Resampling


class InputLevel(nn.Module):
    """At a level of the way down: nothing joins the features."""

    widening = 1
    """How many times as many channels the features have afterwards."""

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, C, H, W) and the pyramid after this level, of features just halved and the pyramid before."""
        return h, pyramid


class InputSkip(InputLevel):
    """The smaller image is added to the features through a 1x1 convolution.

    Args:
        image: channels of the image.
        channels: channels of the features.
        resampling: how the image is made smaller.
    """

    def __init__(self, image: int, channels: int, resampling: Resampling) -> None:
        super().__init__()
        self.down = resampling.down()
        self.conv = nn.Conv2d(image, channels, 1)

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        pyramid = self.down(pyramid)
        return self.join(self.conv(pyramid), h), pyramid

    def join(self, image: Tensor, h: Tensor) -> Tensor:
        """The features with those of the image."""
        return image + h


class InputConcatenation(InputSkip):
    """The smaller image is put before the features, with as many channels through a 1x1 convolution.

    Args:
        image: channels of the image.
        channels: channels of the features.
        resampling: how the image is made smaller.
    """

    widening = 2

    def join(self, image: Tensor, h: Tensor) -> Tensor:
        return torch.cat([image, h], dim=1)


class InputResidual(InputLevel):
    """The pyramid is halved by a convolution and added to the features; the sum is both from here on.

    Args:
        before: channels of the pyramid before.
        channels: channels of the features.
        resampling: how the pyramid is halved.
        scale: factor of the sum.
    """

    def __init__(self, before: int, channels: int, resampling: Resampling, scale: float) -> None:
        super().__init__()
        self.down = resampling.conv_down(before, channels)
        self.scale = scale

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        h = scaled(self.down(pyramid) + h, self.scale)
        return h, h


class OutputLevel(nn.Module):
    """At a level of the way up: nothing happens; the output is made at the end."""

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The features (B, C, H, W) and the pyramid after this level, of the features and the pyramid of the level below."""
        return h, pyramid


class Head(nn.Sequential):
    """Norm, SiLU and a 3x3 convolution.

    Args:
        inputs: channels of the features.
        outputs: channels of the output.
        norm: makes the norm.
    """

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__(norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))

    def from_zero(self) -> "Head":
        """The same, giving zeros until it is trained."""
        zero(self[2])
        return self


class OutputSkip(OutputLevel):
    """The output is a sum of what the levels contribute, each doubled on its way up.

    Args:
        channels: channels of the features.
        image: channels of the image.
        norm: makes the norm.
        resampling: how the output so far is doubled.
    """

    def __init__(self, channels: int, image: int, norm: Norm, resampling: Resampling) -> None:
        super().__init__()
        self.up = resampling.up()
        self.head = Head(channels, image, norm).from_zero()

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        image = self.head(h)
        return h, image if pyramid is None else self.up(pyramid) + image


class OutputBegins(OutputLevel):
    """The deepest level of OutputResidual.

    Args:
        channels: channels of the features.
        norm: makes the norm.
    """

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.head = Head(channels, channels, norm)

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return h, self.head(h)


class OutputResidual(OutputLevel):
    """The pyramid, doubled by a convolution, is added to the features; the sum is both from here on.

    Args:
        before: channels of the pyramid before.
        channels: channels of the features.
        resampling: how the pyramid is doubled.
        scale: factor of the sum.
    """

    def __init__(self, before: int, channels: int, resampling: Resampling, scale: float) -> None:
        super().__init__()
        self.up = resampling.conv_up(before, channels)
        self.scale = scale

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        h = scaled(self.up(pyramid) + h, self.scale)
        return h, h


InputKind = Literal["none", "input_skip", "input_concatenation", "residual"]
"""What joins the features on the way down."""

OutputKind = Literal["none", "output_skip", "residual"]
"""How the output is made on the way up."""


def input_level(kind: InputKind, image: int, before: int, channels: int, resampling: Resampling, scale: float) -> InputLevel:
    """What joins the features at a level that has just been halved.

    Args:
        kind: of the pyramid.
        image: channels of the image.
        before: channels of the features at the level above; those of the image at the first.
        channels: channels of the features.
        resampling: how resolutions are changed.
        scale: factor of sums.
    """
    makers: dict[InputKind, Callable[[], InputLevel]] = {
        "none": InputLevel,
        "input_skip": partial(InputSkip, image, channels, resampling),
        "input_concatenation": partial(InputConcatenation, image, channels, resampling),
        "residual": partial(InputResidual, before, channels, resampling, scale),
    }
    return makers[kind]()


def output_level(
    kind: OutputKind, image: int, before: int | None, channels: int, norm: Norm, resampling: Resampling, scale: float
) -> OutputLevel:
    """What happens to the output at a level.

    Args:
        kind: of the pyramid.
        image: channels of the image.
        before: channels of the features at the level below; None at the deepest.
        channels: channels of the features.
        norm: makes the norms.
        resampling: how resolutions are changed.
        scale: factor of sums.
    """
    residual: Callable[[], OutputLevel] = partial(OutputBegins, channels, norm)
    if before is not None:
        residual = partial(OutputResidual, before, channels, resampling, scale)
    makers: dict[OutputKind, Callable[[], OutputLevel]] = {
        "none": OutputLevel,
        "output_skip": partial(OutputSkip, channels, image, norm, resampling),
        "residual": residual,
    }
    return makers[kind]()
