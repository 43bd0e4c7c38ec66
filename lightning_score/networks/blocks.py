"""The blocks of U-Nets: residual blocks and self-attention, with any norm."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_score.networks.grid import CONVOLVE, Grid, over
from lightning_score.networks.resampling import resampled

Norm = Callable[[int], nn.Module]
"""Makes the norm of a number of channels."""


def zero(module: nn.Module) -> nn.Module:
    """The module with all its parameters set to zero: a branch, or a network, that starts with output 0."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Dropout(nn.Dropout):
    """Dropout whose mask does not depend on the memory format, which differs under FSDP.

    The probability is rounded to a multiple of 2^-16, and what is kept is divided by its probability.
    """

    def forward(self, x: Tensor) -> Tensor:
        p = min(round(self.p * 2**16), 2**16 - 1) / 2**16
        if not self.training or p == 0:
            return x
        return (x * _uniform(x).ge_(p).div_(1 - p)).to(x.dtype)


def _uniform(x: Tensor) -> Tensor:
    """Independent numbers in [0, 1), shaped like x, drawn in the order of channels-last features. On a CPU they are
    multiples of 2^-16, four from each random integer: a draw for each takes three times as long.
    """
    shape = len(x), *x.shape[2:], x.shape[1]
    if not x.is_cpu:
        return torch.rand(shape, device=x.device).movedim(-1, 1)
    bits = torch.randint(-(2**63), 2**63 - 1, (x.numel() // 4 + 1,)).view(torch.int16)[: x.numel()]
    return bits.to(torch.float32).mul_(2**-16).add_(0.5).view(shape).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """Two convolutions with group norm, shifted in between by the conditioning vector, added to their input.

    `h = conv_1(silu(norm_1(x))) + W c`, `y = scale (skip(x) + conv_2(dropout(silu(norm_2(h)))))` (Ho et al. 2020, app. B).
    A block that changes the resolution does so to the input of conv_1 and to x (Brock et al. 2019, BigGAN).

    Args:
        grid: of the features.
        inputs: channels of the input.
        outputs: channels of the output.
        condition: size of the conditioning vector.
        norm: makes the norms.
        dropout: probability of dropping a feature.
        resample: a change of resolution; None for none.
        project: whether the skip is a 1x1 convolution; by default where the channels differ.
        scale: factor of the output, 1/sqrt(2) to keep the variance of a sum of two.
    """

    def __init__(
        self,
        grid: Grid,
        inputs: int,
        outputs: int,
        condition: int,
        norm: Norm,
        dropout: float,
        resample: nn.Module | None = None,
        project: bool | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.norm1 = norm(inputs)
        self.resample = resample or nn.Identity()
        self.conv1 = grid.conv(inputs, outputs)
        self.shift = nn.Linear(condition, outputs)
        self.norm2 = norm(outputs)
        self.dropout = Dropout(dropout)
        self.conv2 = zero(grid.conv(outputs, outputs))
        project = inputs != outputs if project is None else project
        self.skip = grid.conv(inputs, outputs, 1) if project else nn.Identity()
        self.scale = scale

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = resampled(self.resample, self.conv1, F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.conditioned(h, c))))
        return scaled_sum(resampled(self.resample, self.skip, x), h, self.scale)

    def conditioned(self, h: Tensor, c: Tensor) -> Tensor:
        """Shifted by the condition, then normalized."""
        return self.norm2(h + over(self.shift(c), h))


class ScaleShiftBlock(ResidualBlock):
    """A residual block whose second norm is scaled and shifted: `(1 + W_1 c) norm_2(h) + W_2 c` (Nichol and Dhariwal 2021).

    Args:
        grid: of the features.
        inputs: channels of the input.
        outputs: channels of the output.
        condition: size of the conditioning vector.
        settings: as those of ResidualBlock.
    """

    def __init__(self, grid: Grid, inputs: int, outputs: int, condition: int, *settings: Any, **named: Any) -> None:
        super().__init__(grid, inputs, outputs, condition, *settings, **named)
        self.shift = nn.Linear(condition, 2 * outputs)

    def conditioned(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = over(self.shift(c), h).chunk(2, dim=1)
        return torch.addcmul(shift, self.norm2(h), 1 + scale)


class SelfAttention(nn.Module):
    """Attention of every pixel to all others, added to its input.

    `y = scale (x + W_o softmax(q k^T/sqrt(d)) v)`, with q, k, v linear in `norm(x)`, each head on its own d = C/heads of the
    channels (Ho et al. 2020, appendix B).

    Args:
        channels: C, of input and output.
        norm: makes the norm.
        heads: number of heads.
        scale: factor of the output.
    """

    def __init__(self, channels: int, norm: Norm, heads: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        zero(self.out)
        self.heads, self.scale = heads, scale

    def forward(self, x: Tensor) -> Tensor:
        # (B, C, *positions) -> (B, N, C), a view in channels_last. Written out, because torch's fused attention has no
        # forward-mode and no second derivatives, which sliced score matching and likelihoods need.
        projections = self.query, self.key, self.value
        weight, bias = (torch.cat([getattr(linear, name) for linear in projections]) for name in ("weight", "bias"))
        pixels = mix_channels(self.norm(x), weight, bias).flatten(2).mT
        query, key, value = map(self._split, pixels.chunk(3, dim=2))
        weights = F.softmax(query.shape[-1] ** -0.5 * query @ key.mT, dim=-1)
        attended = self._join(weights @ value).mT.unflatten(2, x.shape[2:])
        return scaled_sum(x, mix_channels(attended, self.out.weight, self.out.bias), self.scale)

    def _split(self, features: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, C/heads)."""
        return features if self.heads == 1 else features.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _join(self, features: Tensor) -> Tensor:
        return features if self.heads == 1 else features.transpose(1, 2).flatten(2)


def attention_if(attend: bool, channels: int, norm: Norm, scale: float = 1.0, head_channels: int | None = None) -> nn.Module:
    """Self-attention with heads of `head_channels` channels, by default one head; the identity unless `attend`."""
    return SelfAttention(channels, norm, channels // (head_channels or channels), scale) if attend else nn.Identity()


def mix_channels(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear map of the channels at every position: x (B, C, *positions) -> (B, C', *positions), weight (C', C).

    On a CPU a convolution of size 1, which takes half the time of a matrix product where MKL is slow (AMD), with channels
    enough; elsewhere a matrix product.
    """
    if x.is_cpu and x.shape[1] >= 128:
        return CONVOLVE[x.ndim - 3](x, over(weight, x), bias)
    return F.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)


def scaled_sum(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """scale (x + y)."""
    total = x + y
    return total if scale == 1 else total.mul_(scale)
