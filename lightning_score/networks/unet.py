"""The U-Net of DDPM, from 35.7 million parameters for CIFAR-10 down to a quarter of a million for 8x8 digits."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_score.conditions import Condition
from lightning_score.errors import require
from lightning_score.networks.base import Network
from lightning_score.networks.blocks import Norm, ResidualBlock, ScaleShiftBlock, SelfAttention, attention_if, zero
from lightning_score.networks.conditioning import Conditioning, NoiseEmbedding, PositionalEmbedding
from lightning_score.networks.grid import Grid
from lightning_score.networks.resampling import Downsample, Upsample, boxes


class Stage(nn.Module):
    """A residual block, then self-attention where the resolution asks for it.

    Args:
        residual: the block.
        attention: self-attention; the identity for none.
    """

    def __init__(self, residual: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.residual = residual
        self.attention = attention

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return self.attention(self.residual(h, c))


class DownLevel(nn.Module):
    """The stages of one resolution on the way down, then a change to half of it; every output is kept for the way up.

    Args:
        stages: the level's stages.
        downsample: the way to the next level; None in the last.
    """

    def __init__(self, stages: Sequence[Stage], downsample: nn.Module | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.downsample = downsample

    def forward(self, h: Tensor, c: Tensor) -> list[Tensor]:
        outputs = []
        for stage in self.stages:
            h = stage(h, c)
            outputs.append(h)
        return outputs if self.downsample is None else [*outputs, self.downsample(h, c)]


class UpLevel(nn.Module):
    """The stages of one resolution on the way up, each joined by an output of the way down, then the next resolution.

    Args:
        stages: the level's stages.
        upsample: the way to the next level; None in the last.
    """

    def __init__(self, stages: Sequence[Stage], upsample: nn.Module | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.upsample = upsample

    def forward(self, h: Tensor, c: Tensor, kept: list[Tensor]) -> Tensor:
        for stage in self.stages:
            h = stage(torch.cat([h, kept.pop()], dim=1), c)
        return h if self.upsample is None else self.upsample(h, c)


class UNet(Network):
    """The U-Net of DDPM (Ho et al. 2020, appendix B); its defaults are the network for CIFAR-10.

    On the way down each level has `blocks` residual blocks and halves the resolution (the last one does not); in the
    middle are a residual block, attention and a residual block; on the way up each level has `blocks + 1` residual
    blocks, each of which also gets an output of the way down, and doubles the resolution (the last one does not).

    Args:
        shape: [C, L], [C, H, W] or [C, D, H, W]; all sizes after C must be divisible by 2 to the number of levels minus 1.
        num_classes: number of classes it can be conditioned on; 0 for none.
        channels: channels at full resolution; the conditioning vector has four times as many.
        multipliers: the channels of each level as multiples of `channels`, from full resolution down.
        blocks: residual blocks per level.
        attention: the resolutions (lengths of signals, heights of images, depths of volumes) at which self-attention follows
            each residual block.
        dropout: probability of dropping a feature inside the residual blocks.
        groups: groups of the group norms; every level's channels must be divisible by it.
        embedding: features of the noise label; by default a PositionalEmbedding of width `channels`.
        head_channels: channels of each attention head; None for one head.
        middle_attention: whether there is attention in the middle.
        scale_shift: whether the condition scales and shifts a block's second norm instead of shifting before it.
        resample_blocks: change the resolution inside residual blocks, by means and repetition, instead of by convolutions.
        symmetric_padding: pad the convolutions that halve the resolution on all sides.
        eps: of the norms.
        periodic: whether the ends of an axis are neighbors, for all axes or a list for each; if not, zeros surround it.
        condition: what it is conditioned on instead of classes, which the model gives it; null for nothing.

    Raises:
        InputError: for a point's shape or one that cannot be halved that often, channels that do not divide
            into groups or heads, a resolution for attention that does not occur, or another number out of range.
    """

    units = (ResidualBlock, SelfAttention)

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int = 0,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        dropout: float = 0.1,
        groups: int = 32,
        embedding: NoiseEmbedding | None = None,
        head_channels: int | None = None,
        middle_attention: bool = True,
        scale_shift: bool = False,
        resample_blocks: bool = False,
        symmetric_padding: bool = False,
        eps: float = 1e-6,
        periodic: bool | Sequence[bool] = False,
        condition: Condition | None = None,
    ) -> None:
        super().__init__(shape, num_classes, condition)
        grid = Grid(shape, periodic)
        attends = levels_with_attention(grid, multipliers, blocks, attention, dropout)
        check_groups(channels, groups, f"channels={channels}, groups={groups}")
        check_heads(channels, head_channels)
        width_of_vector, norm = 4 * channels, partial(nn.GroupNorm, groups, eps=eps)
        widths = [channels * m for m in multipliers]
        kind = ScaleShiftBlock if scale_shift else ResidualBlock
        block = partial(kind, grid, condition=width_of_vector, norm=norm, dropout=dropout)
        parts = Parts(grid, block, norm, head_channels, resample_blocks, symmetric_padding)

        self.conditioning = Conditioning(embedding or PositionalEmbedding(channels), width_of_vector, self.condition)
        self.conv_in = grid.conv(self.inputs, channels)

        kept = [channels]
        self.down = nn.ModuleList()
        for level, (width, attend) in enumerate(zip(widths, attends, strict=True)):
            inputs = [kept[-1]] + [width] * (blocks - 1)
            half = parts.halve(width) if level < len(widths) - 1 else None
            self.down.append(DownLevel([parts.stage(i, width, attend) for i in inputs], half))
            kept += [width] * (blocks + (half is not None))

        h = widths[-1]
        self.middle = nn.ModuleList([parts.stage(h, h, middle_attention), parts.stage(h, h, False)])

        self.up = nn.ModuleList()
        for level, (width, attend) in reversed(list(enumerate(zip(widths, attends, strict=True)))):
            inputs = [h + kept.pop()] + [width + kept.pop() for _ in range(blocks)]
            double = parts.double(width) if level > 0 else None
            self.up.append(UpLevel([parts.stage(i, width, attend) for i in inputs], double))
            h = width

        self.norm_out = norm(widths[0])
        self.conv_out = zero(grid.conv(widths[0], shape[0]))

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor | None = None) -> Tensor:
        c = self.conditioning(noise_label, cond)
        kept = [self.conv_in(self.join(x, cond))]
        for level in self.down:
            kept += level(kept[-1], c)
        h = kept[-1]
        for stage in self.middle:
            h = stage(h, c)
        for level in self.up:
            h = level(h, c, kept)
        return self.conv_out(F.silu(self.norm_out(h)))


class Parts(NamedTuple):
    """Makes the parts of a level.

    Fields: grid (of the features), block (makes a residual block of given inputs and outputs), norm and head_channels (of
    attention), resample_blocks (change the resolution inside residual blocks, not by convolutions), symmetric (pad these on
    all sides).
    """

    grid: Grid
    block: Callable[..., nn.Module]
    norm: Norm
    head_channels: int | None
    resample_blocks: bool
    symmetric: bool

    def stage(self, inputs: int, outputs: int, attend: bool) -> Stage:
        """A residual block, with attention or without."""
        attention = attention_if(attend, outputs, self.norm, head_channels=self.head_channels)  # first, as seeds expect it
        return Stage(self.block(inputs, outputs), attention)

    def halve(self, width: int) -> nn.Module:
        """The way to the next level down."""
        if self.resample_blocks:
            return self.block(width, width, resample=boxes(self.grid).down())
        return Downsample(self.grid, width, self.symmetric)

    def double(self, width: int) -> nn.Module:
        """The way to the next level up."""
        if self.resample_blocks:
            return self.block(width, width, resample=boxes(self.grid).up())
        return Upsample(self.grid, width)


def levels_with_attention(
    grid: Grid, multipliers: Sequence[int], blocks: int, attention: Sequence[int], dropout: float
) -> list[bool]:
    """Whether each level has attention.

    Raises:
        InputError: data of that shape cannot have these levels, or these resolutions with attention.
    """
    require(len(multipliers) > 0 and min(multipliers) > 0, f"multipliers={list(multipliers)}: must be positive integers")
    require(blocks > 0, f"blocks={blocks}: must be positive")
    require(0 <= dropout < 1, f"dropout={dropout}: must be in [0, 1)")
    factor = 2 ** (len(multipliers) - 1)
    require(
        grid.divisible_by(factor),
        f"shape={list(grid.shape)}: {grid.axes} must be divisible by {factor} for {len(multipliers)} levels; "
        "use fewer multipliers or another size",
    )
    sizes = [grid.shape[1] >> level for level in range(len(multipliers))]
    absent = [a for a in attention if a not in sizes]
    require(not absent, f"attention={absent}: must be resolutions of the levels; choose from {sizes}, or [] for none")
    return [size in attention for size in sizes]


def check_groups(channels: int, groups: int, settings: str) -> None:
    """Checks the group norms of the first level.

    Args:
        channels: of the level.
        groups: their number.
        settings: the values from which they follow, for the message.

    Raises:
        InputError: the groups do not divide the channels. Warns of groups that cancel the conditioning of residual blocks.
    """
    divides = groups > 0 and channels > 0 and channels % groups == 0
    require(divides, f"{settings}: channels must be a multiple of the number of groups")
    if groups >= channels:
        warnings.warn(
            f"{settings}: a group of one channel cancels the shift by which a residual block is conditioned on the noise "
            "level; give at least two channels per group",
            stacklevel=2,
        )


def check_heads(channels: int, head_channels: int | None) -> None:
    """Raises `InputError` for heads that do not divide the channels."""
    require(
        head_channels is None or (head_channels > 0 and channels % head_channels == 0),
        f"head_channels={head_channels}: must divide {channels} channels, or be null for one head",
    )
