"""What accompanies the features of NCSN++ from level to level: the image on the way down, the output on the way up.

Song et al. 2021 (2011.13456), appendix H, after StyleGAN2 (Karras et al. 2020, 1912.04958, section 4.1).
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_score.networks.blocks import Norm, scaled_sum, zero
from lightning_score.networks.grid import Grid
from lightning_score.networks.resampling import Resampling


class Common(NamedTuple):
    """What all levels of a network share: channels of input and output, norm, changes of resolution, factor of sums."""

    inputs: int
    outputs: int
    norm: Norm
    resampling: Resampling
    scale: float


class InputLevel(nn.Module):
    """At a level of the way down: nothing joins the features.

    Args:
        common: what all levels share.
        before: channels of the features at the level above; those of the image at the first.
        channels: channels of the features, which have just been halved.
    """

    widening = 1
    """How many times as many channels the features have afterwards."""

    def __init__(self, common: Common, before: int, channels: int) -> None:
        super().__init__()

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, C, ...) and the pyramid after this level, of features just halved and the pyramid before."""
        return h, pyramid


class InputSkip(InputLevel):
    """The smaller image is added to the features through a convolution of size 1."""

    def __init__(self, common: Common, before: int, channels: int) -> None:
        super().__init__(common, before, channels)
        self.down = common.resampling.down()
        self.conv = common.resampling.grid.conv(common.inputs, channels, 1)

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        pyramid = self.down(pyramid)
        return self.join(self.conv(pyramid), h), pyramid

    def join(self, image: Tensor, h: Tensor) -> Tensor:
        """The features with those of the image."""
        return image + h


class InputConcatenation(InputSkip):
    """The smaller image is put before the features, with as many channels through a convolution of size 1."""

    widening = 2

    def join(self, image: Tensor, h: Tensor) -> Tensor:
        return torch.cat([image, h], dim=1)


class InputResidual(InputLevel):
    """The pyramid is halved by a convolution and added to the features; the sum is both from here on."""

    def __init__(self, common: Common, before: int, channels: int) -> None:
        super().__init__(common, before, channels)
        self.down = common.resampling.conv_down(before, channels)
        self.scale = common.scale

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        h = scaled_sum(self.down(pyramid), h, self.scale)
        return h, h


def head(grid: Grid, inputs: int, outputs: int, norm: Norm, from_zero: bool = True) -> nn.Sequential:
    """Norm, SiLU and a convolution of size 3, which returns zeros until it is trained, if `from_zero`."""
    conv = grid.conv(inputs, outputs)
    return nn.Sequential(norm(inputs), nn.SiLU(), zero(conv) if from_zero else conv)


class OutputLevel(nn.Module):
    """At a level of the way up: nothing happens; the output is made at the end.

    Args:
        common: what all levels share.
        before: channels of the features at the level below; None at the deepest.
        channels: channels of the features.
    """

    def __init__(self, common: Common, before: int | None, channels: int) -> None:
        super().__init__()

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The features (B, C, ...) and the pyramid after this level, of the features and the pyramid of the level below."""
        return h, pyramid


class OutputSkip(OutputLevel):
    """The output is a sum of what the levels contribute, each doubled on its way up."""

    def __init__(self, common: Common, before: int | None, channels: int) -> None:
        super().__init__(common, before, channels)
        self.up = common.resampling.up()
        self.head = head(common.resampling.grid, channels, common.outputs, common.norm)

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        image = self.head(h)
        return h, image if pyramid is None else self.up(pyramid) + image


class OutputResidual(OutputLevel):
    """The pyramid, which starts at the deepest level, is doubled by a convolution and added to the features of each level
    above; the sum is both from here on.
    """

    def __init__(self, common: Common, before: int | None, channels: int) -> None:
        super().__init__(common, before, channels)
        self.scale = common.scale
        if before is None:
            self.head = head(common.resampling.grid, channels, channels, common.norm, from_zero=False)
        else:
            self.up = common.resampling.conv_up(before, channels)

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if pyramid is None:
            return h, self.head(h)
        h = scaled_sum(self.up(pyramid), h, self.scale)
        return h, h


InputKind = Literal["none", "input_skip", "input_concatenation", "residual"]
"""What joins the features on the way down."""

INPUTS: dict[InputKind, type[InputLevel]] = {
    "none": InputLevel,
    "input_skip": InputSkip,
    "input_concatenation": InputConcatenation,
    "residual": InputResidual,
}

OutputKind = Literal["none", "output_skip", "residual"]
"""How the output is made on the way up."""

OUTPUTS: dict[OutputKind, type[OutputLevel]] = {"none": OutputLevel, "output_skip": OutputSkip, "residual": OutputResidual}
