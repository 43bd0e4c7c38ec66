"""The parts that networks share: embeddings of the noise level, the conditioning vector, residual blocks, attention."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_score.utils import require


def zero(module: nn.Module) -> nn.Module:
    """The module with all its parameters set to zero: a branch, or a network, that starts from no contribution."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class NoiseEmbedding(nn.Module, ABC):
    """Features of the number that stands for the noise level.

    Args:
        width: number of features, even: half of them sines, half cosines.

    Raises:
        InputError: for a width that is odd or below 4.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        require(width >= 4 and width % 2 == 0, f"embedding width {width}: must be even and at least 4")
        self.width = width

    @abstractmethod
    def forward(self, noise_label: Tensor) -> Tensor:
        """Features (B, width) of the labels (B,)."""


class PositionalEmbedding(NoiseEmbedding):
    """Sines, then cosines, of geometrically spaced frequencies: for labels that count, such as an index up to 1000.

    `[sin(w_k c), cos(w_k c)]`, `w_k = 10000^(-k/(K - 1))`, `k = 0 ... K - 1`, `K = width/2`
    (Vaswani et al. 2017, section 3.5, in the order and spacing of Ho et al. 2020).

    Args:
        width: number of features, even.
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__(width)
        half = width // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half) / (half - 1))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, noise_label: Tensor) -> Tensor:
        angles = noise_label[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class FourierEmbedding(NoiseEmbedding):
    """Sines, then cosines, of random frequencies: for real labels, such as log sigma.

    `[sin(2 pi w_k c), cos(2 pi w_k c)]`, `w_k ~ N(0, scale^2)`, drawn once and saved with the weights
    (Tancik et al. 2020, equation 5; Song et al. 2021, appendix C.1, with scale 16).

    Args:
        width: number of features, even.
        scale: standard deviation of the frequencies: the larger, the finer the differences between labels it resolves.
        seed: seed of the frequencies.

    Raises:
        InputError: for a scale that is not positive.
    """

    def __init__(self, width: int = 128, scale: float = 16.0, seed: int = 0) -> None:
        super().__init__(width)
        require(scale > 0, f"Fourier scale {scale}: must be positive")
        frequencies = scale * torch.randn(width // 2, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("frequencies", frequencies)

    def forward(self, noise_label: Tensor) -> Tensor:
        angles = 2 * math.pi * noise_label[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Conditioning(nn.Module):
    """The vector that tells every block the noise level and the class.

    `silu(W_2 silu(W_1 embedding(noise_label)) + e_cond)`, with a learned `e_y` per class and one for "no class".

    Args:
        embedding: features of the noise label.
        width: size of the vector.
        num_classes: number of classes; 0 for none.
    """

    def __init__(self, embedding: NoiseEmbedding, width: int, num_classes: int = 0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embedding = embedding
        self.linear1 = nn.Linear(embedding.width, width)
        self.linear2 = nn.Linear(width, width)
        self.classes = nn.Embedding(num_classes + 1, width) if num_classes > 0 else None

    def forward(self, noise_label: Tensor, cond: Tensor | None) -> Tensor:
        """The vectors (B, width), or (1, width) where one serves the whole batch."""
        features = self.embedding(noise_label.to(self.linear1.weight.dtype).reshape(-1))
        vector = self.linear2(F.silu(self.linear1(features)))
        if self.classes is not None:
            no_class = self.classes.weight[self.num_classes]
            vector = vector + (no_class if cond is None else self.classes(cond))
        return F.silu(vector)


class ResidualBlock(nn.Module):
    """Two convolutions with group norm, shifted in between by the conditioning vector, added to their input.

    `h = conv_1(silu(norm_1(x))) + W c`, `y = skip(x) + conv_2(dropout(silu(norm_2(h))))` (Ho et al. 2020, appendix B).

    Args:
        inputs: channels of the input.
        outputs: channels of the output; where they differ the skip is a 1x1 convolution.
        condition: size of the conditioning vector.
        groups: groups of the norms.
        dropout: probability of dropping a feature.
    """

    def __init__(self, inputs: int, outputs: int, condition: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shift = nn.Linear(condition, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.shift(c)[:, :, None, None]
        return self.skip(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class SelfAttention(nn.Module):
    """Attention of every pixel to all others, one head, added to its input.

    `y = x + W_o softmax(q k^T/sqrt(C)) v`, with q, k, v linear in `norm(x)` (Ho et al. 2020, appendix B).

    Args:
        channels: channels of input and output.
        groups: groups of the norm.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        # (B, C, H, W) -> (B, H W, C), a view in channels_last. Written out, because torch's fused attention has no
        # forward-mode and no second derivatives, which sliced score matching and likelihoods need.
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        scale = pixels.shape[2] ** -0.5
        weights = F.softmax(scale * self.query(pixels) @ self.key(pixels).mT, dim=2)
        return x + self.out(weights @ self.value(pixels)).transpose(1, 2).unflatten(2, x.shape[2:])


class Downsample(nn.Module):
    """Halves height and width by a 3x3 convolution of stride 2, padded at the right and the bottom only (as Ho et al.).

    Args:
        channels: channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then a 3x3 convolution.

    Args:
        channels: channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
