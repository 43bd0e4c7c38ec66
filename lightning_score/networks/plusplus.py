"""The networks of score SDEs and of EDM: DDPM++ and NCSN++."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_score.conditions import Condition
from lightning_score.errors import require
from lightning_score.networks.base import Network
from lightning_score.networks.blocks import ResidualBlock, SelfAttention, attention_if
from lightning_score.networks.conditioning import EarlyConditioning, FourierEmbedding, NoiseEmbedding, PositionalEmbedding
from lightning_score.networks.grid import Grid
from lightning_score.networks.pyramids import INPUTS, OUTPUTS, Common, InputKind, InputLevel, OutputKind, OutputLevel, head
from lightning_score.networks.resampling import Resampling, boxes, filtered
from lightning_score.networks.unet import Stage, check_groups, check_heads, levels_with_attention


class Down(nn.Module):
    """A level of the way down: half the resolution, what joins the features, and residual blocks; all outputs are kept.

    Args:
        resample: the way from the level above.
        join: what joins the features after it.
        stages: the residual blocks with their attention.
    """

    def __init__(self, resample: nn.Module, join: InputLevel, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.resample, self.join, self.stages = resample, join, nn.ModuleList(stages)

    def forward(self, c: Tensor, kept: list[Tensor], pyramid: Tensor) -> Tensor:
        h, pyramid = self.join(self.resample(kept[-1], c), pyramid)
        kept.append(h)
        for stage in self.stages:
            kept.append(stage(kept[-1], c))
        return pyramid


class Up(nn.Module):
    """A level of the way up: twice the resolution, residual blocks with skip connections, attention, and the output.

    Args:
        resample: the way from the level below.
        blocks: the residual blocks.
        attention: after the last of them; the identity for none.
        output: what happens to the output.
    """

    def __init__(self, resample: nn.Module, blocks: Sequence[nn.Module], attention: nn.Module, output: OutputLevel) -> None:
        super().__init__()
        self.resample, self.blocks = resample, nn.ModuleList(blocks)
        self.attention, self.output = attention, output

    def forward(self, h: Tensor, c: Tensor, kept: list[Tensor], pyramid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        h = self.resample(h, c)
        for block in self.blocks:
            h = block(torch.cat([h, kept.pop()], dim=1), c)
        return self.output(self.attention(h), pyramid)


class Unconditioned(nn.Module):
    """A module without conditioning in the place of one with it.

    Args:
        module: takes the features only.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return self.module(h)


class DDPMpp(Network):
    """DDPM++ (Song et al. 2021, 2011.13456, appendix H); its defaults are the network for CIFAR-10, 61.8 M parameters.

    A U-Net of BigGAN's residual blocks, which also change the resolution, with every sum scaled by 1/sqrt(2). Classes join
    the features of the noise level (Karras et al. 2022, 2206.00364, which train these networks as "VP" and NCSN++ as "VE").

    Args:
        shape: [C, L], [C, H, W] or [C, D, H, W]; all sizes after C must be divisible by 2 to the number of levels minus 1.
        num_classes: number of classes it can be conditioned on; 0 for none.
        channels: channels at full resolution; the conditioning vector has four times as many.
        multipliers: the channels of each level as multiples of `channels`, from full resolution down.
        blocks: residual blocks per level on the way down; one more on the way up.
        attention: the resolutions (lengths of signals, heights of images, depths of volumes) with self-attention: after each
            residual block on the way down, after the last one on the way up.
        dropout: probability of dropping a feature inside the residual blocks.
        embedding: features of the noise label; by default a PositionalEmbedding of width `channels`.
        fir: filter with [1, 3, 3, 1] where the resolution changes, instead of taking means and repeating pixels.
        progressive_input: what joins the features on the way down, besides the features themselves: `none`, the image made
            smaller (`input_skip`, added, or `input_concatenation`), or a `residual` pyramid of features.
        progressive: how the output is made on the way up: from the last features (`none`), as a sum of what all levels
            contribute (`output_skip`), or from a `residual` pyramid of features.
        rescale: scale every sum by 1/sqrt(2).
        resample_blocks: change the resolution inside residual blocks; if not, by convolutions as DDPM.
        groups: the largest number of groups of the norms.
        group_size: the least number of channels in a group.
        centered: whether the data lie around zero; if not, they lie in [0, 1] and the network maps them to [-1, 1] itself.
        augmentations: number of augmentation labels: 9 for GeometricAugmentation, 0 for none.
        head_channels: channels of each attention head; None for one head.
        periodic: whether the ends of an axis are neighbors, for all axes or a list for each; if not, zeros surround it.
        condition: what it is conditioned on instead of classes, which the model gives it; null for nothing.

    Raises:
        InputError: for a point's shape or one that cannot be halved that often, a resolution for attention that does
            not occur, or another number out of range.
    """

    units = (ResidualBlock, SelfAttention)

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int = 0,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        dropout: float = 0.1,
        embedding: NoiseEmbedding | None = None,
        fir: bool = False,
        progressive_input: InputKind = "none",
        progressive: OutputKind = "none",
        rescale: bool = True,
        resample_blocks: bool = True,
        groups: int = 32,
        group_size: int = 4,
        centered: bool = True,
        augmentations: int = 0,
        head_channels: int | None = None,
        periodic: bool | Sequence[bool] = False,
        condition: Condition | None = None,
    ) -> None:
        super().__init__(shape, num_classes, condition)
        grid = Grid(shape, periodic)
        attends = levels_with_attention(grid, multipliers, blocks, attention, dropout)
        _check(channels, groups, group_size, head_channels, augmentations)
        self.centered, self.augmentations = centered, augmentations
        self.from_levels = progressive == "output_skip"
        scale = 0.5**0.5 if rescale else 1.0
        norm, resampling = partial(_group_norm, groups, group_size), filtered(grid) if fir else boxes(grid)
        block = partial(ResidualBlock, grid, condition=4 * channels, norm=norm, dropout=dropout, scale=scale)
        attend_to = partial(attention_if, norm=norm, scale=scale, head_channels=head_channels)
        parts = Parts(block, attend_to, resampling, resample_blocks)
        widths, image = [channels * m for m in multipliers], shape[0]
        common, embedding = Common(self.inputs, image, norm, resampling, scale), embedding or PositionalEmbedding(channels)

        self.conditioning = EarlyConditioning(embedding, 4 * channels, self.condition, augmentations)
        self.conv_in = grid.conv(self.inputs, channels)
        kept, pyramid = [channels], self.inputs
        self.first = nn.ModuleList(parts.stages(channels, widths[0], blocks, attends[0]))
        kept += [widths[0]] * blocks
        self.down = nn.ModuleList()
        for width, attend in zip(widths[1:], attends[1:], strict=True):
            join = INPUTS[progressive_input](common, pyramid, kept[-1])
            kept.append(kept[-1] * join.widening)
            self.down.append(Down(parts.halve(kept[-2]), join, parts.stages(kept[-1], width, blocks, attend)))
            pyramid = kept[-1]
            kept += [width] * blocks

        h = widths[-1]
        self.middle = nn.ModuleList([Stage(block(h, h), parts.attention(True, h)), Stage(block(h, h), nn.Identity())])

        self.up, below = nn.ModuleList(), None
        for width, attend in zip(widths[::-1], attends[::-1], strict=True):
            double = Unconditioned(nn.Identity()) if below is None else parts.double(below)
            inputs = [i + kept.pop() for i in [h] + [width] * blocks]
            output = OUTPUTS[progressive](common, below, width)
            self.up.append(Up(double, [block(i, width) for i in inputs], parts.attention(attend, width), output))
            h = below = width
        self.head = nn.Identity() if self.from_levels else head(grid, h, image, norm)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor | None = None) -> Tensor:
        c = self.conditioning(noise_label, cond, self._augmented)
        pyramid = self.join(x if self.centered else 2 * x - 1, cond)
        kept = [self.conv_in(pyramid)]
        for stage in self.first:
            kept.append(stage(kept[-1], c))
        for level in self.down:
            pyramid = level(c, kept, pyramid)
        h = kept[-1]
        output: Tensor | None = None
        for stage in self.middle:
            h = stage(h, c)
        for level in self.up:
            h, output = level(h, c, kept, output)
        return output if output is not None and self.from_levels else self.head(h)


class NCSNpp(DDPMpp):
    """NCSN++ (Song et al. 2021, 2011.13456, appendix H); its defaults are the network for CIFAR-10, 62.8 M parameters.

    DDPM++ with filtered changes of resolution, a residual pyramid of the input and Fourier features of the noise level.

    Args:
        shape: [C, L], [C, H, W] or [C, D, H, W]; all sizes after C must be divisible by 2 to the number of levels minus 1.
        num_classes: number of classes it can be conditioned on; 0 for none.
        channels: channels at full resolution; the conditioning vector has four times as many.
        embedding: features of the noise label; by default a FourierEmbedding of width `2 channels`.
        fir: filter with [1, 3, 3, 1] where the resolution changes, instead of taking means and repeating pixels.
        progressive_input: as for DDPMpp.
        centered: whether the data lie around zero; if not, they lie in [0, 1] and the network maps them to [-1, 1] itself.
        settings: the others of DDPMpp.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int = 0,
        channels: int = 128,
        embedding: NoiseEmbedding | None = None,
        fir: bool = True,
        progressive_input: InputKind = "residual",
        centered: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(
            shape,
            num_classes,
            channels,
            embedding=embedding or FourierEmbedding(2 * channels),
            fir=fir,
            progressive_input=progressive_input,
            centered=centered,
            **settings,
        )


class Parts(NamedTuple):
    """Makes the parts of a level.

    Fields: block (makes a residual block of given inputs and outputs), attention (makes self-attention of given channels,
    or the identity), resampling (how resolutions are changed), resample_blocks (inside residual blocks or by convolutions).
    """

    block: Callable[..., nn.Module]
    attention: Callable[[bool, int], nn.Module]
    resampling: Resampling
    resample_blocks: bool

    def stages(self, inputs: int, width: int, blocks: int, attend: bool) -> list[nn.Module]:
        """The residual blocks of a level on the way down."""
        sizes = [inputs] + [width] * (blocks - 1)
        return [Stage(self.block(i, width), self.attention(attend, width)) for i in sizes]

    def halve(self, width: int) -> nn.Module:
        """The way to the next level down."""
        if self.resample_blocks:
            return self.block(width, width, resample=self.resampling.down(), project=True)
        return Unconditioned(self.resampling.conv_down(width, width))

    def double(self, width: int) -> nn.Module:
        """The way to the next level up."""
        if self.resample_blocks:
            return self.block(width, width, resample=self.resampling.up(), project=True)
        return Unconditioned(self.resampling.conv_up(width, width))


def _group_norm(groups: int, group_size: int, channels: int) -> nn.Module:
    return nn.GroupNorm(min(channels // group_size, groups), channels, eps=1e-6)


def _check(channels: int, groups: int, group_size: int, head_channels: int | None, augmentations: int) -> None:
    require(augmentations >= 0, f"augmentations={augmentations}: must be 0 or the number of labels of an augmentation")
    require(groups > 0 and group_size > 0, f"groups={groups}, group_size={group_size}: must be positive")
    settings = f"channels={channels}, groups={groups}, group_size={group_size}"
    check_groups(channels, min(channels // group_size, groups), settings)
    check_heads(channels, head_channels)
