"""The networks of NCSN and NCSNv2: RefineNets with dilated convolutions and InstanceNorm++."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_score.conditions import Condition
from lightning_score.errors import require
from lightning_score.networks.base import Network
from lightning_score.networks.blocks import Norm, zero
from lightning_score.networks.grid import Grid
from lightning_score.networks.refinenet_layers import InstanceNormPlus, Labels, NoNorm, RefineBlock, RefineResidual


class RefineNet(Network, ABC):
    """Stages of two residual blocks on the way down, a RefineNet block for each on the way up.

    A stage of dilation 1 (except the first) halves the resolution; one of a larger dilation keeps it and enlarges the
    receptive field instead.

    Args:
        shape: [C, L], [C, H, W] or [C, D, H, W].
        num_classes: number of classes it can be conditioned on; 0 for none.
        channels: channels of the first stage.
        multipliers: the channels of each stage as multiples of `channels`.
        dilations: the dilation of each stage.
        norm: makes the norms of the residual blocks.
        inner_norm: makes the norms of the RefineNet blocks.
        pool: the pooling in the RefineNet blocks.
        centered: whether the data lie around zero; if not, they lie in [0, 1] and the network maps them to [-1, 1] itself.
        periodic: whether the ends of an axis are neighbors, for all axes or a list for each; if not, zeros surround it.
        condition: an array, which the model gives it, instead of classes; null for nothing.
    """

    units = (RefineResidual, RefineBlock)

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        channels: int,
        multipliers: Sequence[int],
        dilations: Sequence[int],
        norm: Norm,
        inner_norm: Norm,
        pool: Literal["Avg", "Max"],
        centered: bool = False,
        periodic: bool | Sequence[bool] = False,
        condition: Condition | None = None,
    ) -> None:
        super().__init__(shape, num_classes, condition)
        name = type(self).__name__
        require(
            condition is None or condition.embedding(1) is None,
            f"condition: {name} takes classes or arrays; use a UNet, DDPMpp or NCSNpp for vectors of numbers",
        )
        grid, widths = Grid(shape, periodic), [channels * m for m in multipliers]
        _check(grid, channels, multipliers, dilations)
        self.centered = centered
        self.conv_in = grid.conv(self.inputs, widths[0])
        self.stages = nn.ModuleList()
        for k, (width, dilation) in enumerate(zip(widths, dilations, strict=True)):
            first = RefineResidual(grid, widths[max(k - 1, 0)], width, norm, dilation, begins=k > 0)
            self.stages.append(nn.ModuleList([first, RefineResidual(grid, width, width, norm, dilation, begins=False)]))
        self.refine = nn.ModuleList()
        for k in reversed(range(len(widths))):
            inputs = [widths[k]] if k == len(widths) - 1 else [widths[k], widths[k]]
            units = 1 if k > 0 else 3
            self.refine.append(RefineBlock(grid, inputs, widths[max(k - 1, 0)], units, inner_norm, grid.pool(pool, 5)))
        self.norm_out = norm(widths[0])
        self.conv_out = zero(grid.conv(widths[0], shape[0]))

    @abstractmethod
    def labels(self, noise_label: Tensor, cond: Tensor | None) -> Labels:
        """What the norms are conditioned on."""

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor | None = None) -> Tensor:
        labels = self.labels(noise_label, cond)
        h = self.conv_in(self.join(x if self.centered else 2 * x - 1, cond))
        kept = []
        for stage in self.stages:
            for block in stage.children():
                h = block(h, labels)
            kept.append(h)
        h = self.refine[0]([kept.pop()], labels)
        for block in self.refine[1:]:
            h = block([kept.pop(), h], labels)
        return self.conv_out(F.elu(self.norm_out(h, labels)))


class NCSN(RefineNet):
    """The network of NCSN (Song and Ermon 2019, 1907.05600, appendix A); its defaults are the one for CIFAR-10.

    Every norm has coefficients for each noise level; the noise label is the level's number, 0 to levels - 1
    (`noise_label: Index`, descending as in the paper), rounded and kept in this range. Its output is the score itself
    (`parametrization: Score`). 30.1 M parameters.

    Args:
        shape: [C, L], [C, H, W] or [C, D, H, W]; all sizes after C must be even.
        num_classes: number of classes it can be conditioned on; 0 for none.
        levels: number of noise levels L.
        channels: channels of the first stage; the paper takes 128, and 64 for MNIST.
        multipliers: the channels of each stage as multiples of `channels`.
        dilations: the dilation of each stage; 1, but in the first stage, halves the resolution instead.
        plus: whether the norms are InstanceNorm++; false: instance norm, as in the authors' CondRefineNetDeeperDilated.
        settings: centered, periodic and condition, as for RefineNet.

    Raises:
        InputError: for a point's shape or one that cannot be halved that often, or numbers out of range.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int = 0,
        levels: int = 10,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 2, 4),
        plus: bool = True,
        **settings: Any,
    ) -> None:
        require(levels >= 1, f"levels={levels}: must be at least 1, the number of noise levels of the process")
        norm = partial(InstanceNormPlus, levels=levels, num_classes=num_classes, plus=plus)
        super().__init__(
            shape, num_classes, channels, multipliers, dilations, norm=norm, inner_norm=norm, pool="Avg", **settings
        )
        self.levels = levels

    def labels(self, noise_label: Tensor, cond: Tensor | None) -> Labels:
        return Labels(noise_label.round().long().clamp(0, self.levels - 1), cond)


class NCSNv2(RefineNet):
    """The network of NCSNv2 (Song and Ermon 2020, 2006.09011, appendix B); its defaults are the one for CIFAR-10.

    It does not see the noise level: its output is the score times sigma (`parametrization: ScoreOverSigma`, technique 3).
    29.7 M parameters.

    Args:
        shape: [C, L], [C, H, W] or [C, D, H, W]; all sizes after C must be even.
        num_classes: number of classes it can be conditioned on; 0 for none.
        channels: channels of the first stage.
        multipliers: the channels of each stage as multiples of `channels`.
        dilations: the dilation of each stage; 1, but in the first stage, halves the resolution instead.
        settings: centered, periodic and condition, as for RefineNet.

    Raises:
        InputError: for a point's shape or one that cannot be halved that often, or numbers out of range.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int = 0,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 2, 4),
        **settings: Any,
    ) -> None:
        norm = partial(InstanceNormPlus, num_classes=num_classes)
        super().__init__(
            shape, num_classes, channels, multipliers, dilations, norm=norm, inner_norm=NoNorm, pool="Max", **settings
        )

    def labels(self, noise_label: Tensor, cond: Tensor | None) -> Labels:
        return Labels(None, cond)


class NCSNv2Deeper(NCSNv2):
    """NCSNv2's network for images of 96 to 128 pixels: five stages, of which two halve the resolution.

    Args:
        shape: [C, L], [C, H, W] or [C, D, H, W]; all sizes after C must be divisible by 4, for NCSNv2Deepest by 8.
        num_classes: number of classes it can be conditioned on; 0 for none.
        channels: channels of the first stage.
        settings: centered, periodic and condition, as for RefineNet.
    """

    multipliers: Sequence[int] = (1, 2, 2, 4, 4)
    dilations: Sequence[int] = (1, 1, 1, 2, 4)

    def __init__(self, shape: Sequence[int], num_classes: int = 0, channels: int = 128, **settings: Any) -> None:
        super().__init__(shape, num_classes, channels, multipliers=self.multipliers, dilations=self.dilations, **settings)


class NCSNv2Deepest(NCSNv2Deeper):
    """NCSNv2's network for images of 256 pixels: six stages, of which three halve the resolution."""

    multipliers = (1, 2, 2, 2, 4, 4)
    dilations = (1, 1, 1, 1, 2, 4)


def _check(grid: Grid, channels: int, multipliers: Sequence[int], dilations: Sequence[int]) -> None:
    require(channels > 1, f"channels={channels}: must be at least 2")
    require(
        len(multipliers) == len(dilations) > 0 and min(*multipliers, *dilations) > 0 and len(set(multipliers[-2:])) == 1,
        f"multipliers={list(multipliers)}, dilations={list(dilations)}: give one positive integer of each per stage, "
        "and the same multiplier for the last two",
    )
    factor = 2 ** sum(dilation == 1 for dilation in dilations[1:])
    require(
        dilations[0] == 1 and grid.divisible_by(factor),
        f"shape={list(grid.shape)}, dilations={list(dilations)}: the first dilation must be 1, and {grid.axes} divisible by "
        f"{factor}, since each further 1 halves them; use larger dilations, fewer stages or another size",
    )
