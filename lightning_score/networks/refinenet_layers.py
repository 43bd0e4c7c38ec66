"""The blocks of NCSN's and NCSNv2's networks: InstanceNorm++, residual blocks and the four parts of a RefineNet block.

Lin et al. 2017 (1611.06612) for RefineNet; Song and Ermon 2019 (1907.05600), appendix A, and 2020 (2006.09011), appendix B.
Every module is called with the features and the labels, including modules that do not use the labels.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_score.networks.blocks import Norm
from lightning_score.networks.grid import Grid, over


class Labels(NamedTuple):
    """What the norms are conditioned on: the noise level's number and the class, each int64 (B,), () or None."""

    level: Tensor | None
    cond: Tensor | None


class InstanceNormPlus(nn.Module):
    """InstanceNorm++: instance norm that keeps the channels' means relative to one another.

    `gamma ((x - mu)/sqrt(v + e) + alpha (mu - m)/sqrt(s + e)) + beta`, e = 1e-5, mu and v the (biased) mean and variance
    over a channel's pixels, and m and s the (unbiased) mean and variance of mu over the channels (Song and Ermon 2019,
    appendix A.1). gamma, alpha and beta are one row of a table for each noise level, plus one for each class, which begins
    at zero. Without alpha it is instance norm.

    Args:
        channels: C.
        levels: rows of the table; 1 for a norm that does not see the noise level.
        num_classes: number of classes; 0 for none.
        plus: whether there is alpha.
    """

    def __init__(self, channels: int, levels: int = 1, num_classes: int = 0, plus: bool = True) -> None:
        super().__init__()
        self.levels, self.num_classes, self.plus = levels, num_classes, plus
        rows = 3 if plus else 2
        self.table = nn.Parameter(torch.zeros(levels, rows, channels))
        nn.init.normal_(self.table[:, : rows - 1], 1.0, 0.02)
        self.classes = nn.Parameter(torch.zeros(num_classes + 1, rows, channels)) if num_classes > 0 else None

    def forward(self, x: Tensor, labels: Labels) -> Tensor:
        mean, variance = moments(x)
        coefficients = over(self._coefficients(labels).to(x.dtype), x).unbind(1)
        gamma, beta = coefficients[0], coefficients[-1]
        if self.plus:
            beta = gamma * coefficients[1] * self._relative(mean) + beta
        scale = gamma * (variance + 1e-5).rsqrt()
        return torch.addcmul(torch.addcmul(beta, scale, mean, value=-1), x, scale)

    @staticmethod
    def _relative(mean: Tensor) -> Tensor:
        """(mu - m)/sqrt(s + e) of the channels' means mu, (B, C, 1, ...)."""
        spread, center = torch.var_mean(mean, dim=1, correction=1, keepdim=True)
        return (mean - center) * (spread + 1e-5).rsqrt()

    def _coefficients(self, labels: Labels) -> Tensor:
        """gamma, alpha (if there is one) and beta, (B or 1, 3 or 2, C)."""
        rows = self.table if labels.level is None or self.levels == 1 else self.table[labels.level.reshape(-1)]
        if self.classes is None:
            return rows
        return rows + (self.classes[self.num_classes] if labels.cond is None else self.classes[labels.cond])


class _Moments(torch.autograd.Function):
    """Mean and variance of channels, with derivatives in one pass over memory instead of six, since they are linear in x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        axes = tuple(range(2, x.ndim))
        mean = x.mean(axes, keepdim=True)
        return mean, (x - mean).square_().mean(axes, keepdim=True)  # on a CPU five times as fast as torch.var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[0])
        ctx.save_for_forward(inputs[0], output[0])

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        slope = of_variance * (2 * mean.numel() / x.numel())
        return torch.addcmul(of_mean * (mean.numel() / x.numel()) - slope * mean, x, slope)

    @staticmethod
    def jvp(ctx: Any, change: Tensor) -> tuple[Tensor, Tensor]:
        x, mean = ctx.saved_tensors
        axes = tuple(range(2, x.ndim))
        return change.mean(axes, keepdim=True), 2 * ((x - mean) * change).mean(axes, keepdim=True)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of the channels of x, (B, C, ...), over their positions: (B, C, 1, ...) each."""
    if torch.compiler.is_compiling():  # which fuses the passes itself
        return _Moments.forward(x)
    mean, variance = _Moments.apply(x)
    return mean, variance


class NoNorm(nn.Module):
    """Features as they are, where other networks have a norm.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, labels: Labels) -> Tensor:
        return x


class RefineResidual(nn.Module):
    """Two convolutions with norms and ELUs, added to the input, at the beginning of a stage or within it.

    `shortcut(x) + conv_2(elu(norm_2(conv_1(elu(norm_1(x))))))`. A block that begins a stage makes its channels in the second
    convolution, and either halves the resolution by mean pooling or dilates all its convolutions.

    Args:
        grid: of the features.
        inputs: channels of the input.
        outputs: channels of the output.
        norm: makes the norms.
        dilation: of the convolutions.
        begins: whether it begins a stage (not the first one).
    """

    def __init__(self, grid: Grid, inputs: int, outputs: int, norm: Norm, dilation: int, begins: bool) -> None:
        super().__init__()
        middle = inputs if begins else outputs
        self.norm1, self.norm2 = norm(inputs), norm(middle)
        self.conv1 = grid.conv(inputs, middle, dilation=dilation)
        self.conv2 = grid.conv(middle, outputs, dilation=dilation)
        self.shortcut: nn.Module = nn.Identity()
        self.pool: nn.Module = nn.Identity()
        if begins and dilation == 1:
            self.shortcut, self.pool = grid.conv(inputs, outputs, 1), grid.pool("Avg", 2, stride=2)
        elif begins:
            self.shortcut = grid.conv(inputs, outputs, dilation=dilation)

    def forward(self, x: Tensor, labels: Labels) -> Tensor:
        h = self.conv1(F.elu(self.norm1(x, labels)))
        h = self.conv2(F.elu(self.norm2(h, labels)))
        return self.pool(self.shortcut(x) + h)


class ConvUnit(nn.Module):
    """Twice norm, ELU and a convolution of size 3 without bias, added to the input.

    Args:
        grid: of the features.
        channels: channels of input and output.
        norm: makes the norms.
    """

    def __init__(self, grid: Grid, channels: int, norm: Norm) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm(channels) for _ in range(2))
        self.convs = nn.ModuleList(grid.conv(channels, channels, bias=False) for _ in range(2))

    def forward(self, x: Tensor, labels: Labels) -> Tensor:
        h = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(F.elu(norm(h, labels)))
        return x + h


class Fusion(nn.Module):
    """Multi-resolution fusion: the sum of all inputs, each through norm and convolution, at the resolution of the first.

    Args:
        grid: of the features.
        inputs: channels of each input.
        outputs: channels of the output.
        norm: makes the norms.
    """

    def __init__(self, grid: Grid, inputs: Sequence[int], outputs: int, norm: Norm) -> None:
        super().__init__()
        self.grid = grid
        self.norms = nn.ModuleList(norm(channels) for channels in inputs)
        self.convs = nn.ModuleList(grid.conv(channels, outputs) for channels in inputs)

    def forward(self, xs: Sequence[Tensor], labels: Labels) -> Tensor:
        size = xs[0].shape[2:]
        parts = [conv(norm(x, labels)) for x, norm, conv in zip(xs, self.norms, self.convs, strict=True)]
        resized = [h if h.shape[2:] == size else self.grid.enlarge(h, size) for h in parts]
        return sum(resized[1:], resized[0])


class ChainedPooling(nn.Module):
    """Chained residual pooling: `x_0 = elu(x)`, `p_(k+1) = conv_k(pool(norm_k(p_k)))`, `x_(k+1) = x_k + p_(k+1)`.

    Args:
        grid: of the features.
        channels: channels of input and output.
        norm: makes the norms.
        pool: pooling over 5 pixels along each axis that keeps the resolution.
    """

    def __init__(self, grid: Grid, channels: int, norm: Norm, pool: nn.Module) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm(channels) for _ in range(2))
        self.convs = nn.ModuleList(grid.conv(channels, channels, bias=False) for _ in range(2))
        self.pool = pool

    def forward(self, x: Tensor, labels: Labels) -> Tensor:
        x = path = F.elu(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            path = conv(self.pool(norm(path, labels)))
            x = x + path
        return x


class RefineBlock(nn.Module):
    """RefineNet's block: two conv units for each input, fusion, chained pooling, and one conv unit or three.

    Args:
        grid: of the features.
        inputs: channels of each input, the one of the same resolution first.
        outputs: channels of the output.
        units: number of conv units at the end.
        norm: makes the norms.
        pool: the pooling in the chain.
    """

    def __init__(self, grid: Grid, inputs: Sequence[int], outputs: int, units: int, norm: Norm, pool: nn.Module) -> None:
        super().__init__()
        self.adapt = nn.ModuleList(nn.ModuleList(ConvUnit(grid, c, norm) for _ in range(2)) for c in inputs)
        self.fuse = Fusion(grid, inputs, outputs, norm) if len(inputs) > 1 else None
        self.chain = ChainedPooling(grid, outputs, norm, pool)
        self.out = nn.ModuleList(ConvUnit(grid, outputs, norm) for _ in range(units))

    def forward(self, xs: Sequence[Tensor], labels: Labels) -> Tensor:
        adapted = [run(units.children(), x, labels) for units, x in zip(self.adapt, xs, strict=True)]
        h = adapted[0] if self.fuse is None else self.fuse(adapted, labels)
        return run(self.out, self.chain(h, labels), labels)


def run(modules: Iterable[nn.Module], x: Tensor, labels: Labels) -> Tensor:
    """Applies the modules in order."""
    for module in modules:
        x = module(x, labels)
    return x
