"""Conditioning on the noise level and the condition: embeddings, and the vector that every block receives."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_score.conditions import Condition
from lightning_score.errors import InputError, require


class NoiseEmbedding(nn.Module, ABC):
    """Features of the noise label, the number that encodes the noise level.

    Args:
        width: number of features, even: half of them sines, half cosines.

    Raises:
        InputError: for a width that is odd or below 4.
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        require(width >= 4 and width % 2 == 0, f"width={width}: must be even and at least 4")
        self.width = width

    @abstractmethod
    def forward(self, noise_label: Tensor) -> Tensor:
        """Features (B, width) of the labels (B,)."""


class PositionalEmbedding(NoiseEmbedding):
    """Sines, then cosines, of geometrically spaced frequencies: for integer labels, such as an index up to 1000.

    `[sin(w_k c), cos(w_k c)]`, `w_k = 10000^(-k/(K - shift))`, `k = 0 ... K - 1`, `K = width/2`
    (Vaswani et al. 2017, section 3.5, in the order and spacing of Ho et al. 2020).

    Args:
        width: number of features, even.
        shift: 1 for a lowest frequency of 1/10000 (Ho et al.), 0 for one a step above it (Dhariwal and Nichol).
        cosines_first: cosines, then sines.
    """

    def __init__(self, width: int = 128, shift: float = 1.0, cosines_first: bool = False) -> None:
        super().__init__(width)
        half = width // 2
        require(half > shift, f"shift={shift}: must be below half of the embedding width {width}")
        frequencies = torch.exp(-math.log(10000) * torch.arange(half) / (half - shift))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.cosines_first = cosines_first

    def forward(self, noise_label: Tensor) -> Tensor:
        angles = noise_label[:, None] * self.frequencies
        waves = [angles.sin(), angles.cos()]
        return torch.cat(waves[::-1] if self.cosines_first else waves, dim=1)


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
        require(scale > 0, f"scale={scale}: must be above 0, as in 16")
        frequencies = scale * torch.randn(width // 2, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("frequencies", frequencies)

    def forward(self, noise_label: Tensor) -> Tensor:
        angles = noise_label[:, None] * self.frequencies * 2 * math.pi  # in the order of score_sde, for the same rounding
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Conditioning(nn.Module):
    """The vector that conditions every block on the noise level and the condition.

    `silu(W_2 silu(W_1 embedding(noise_label)) + e_cond)`, with the condition's vector, such as one per class and one for "no
    class".

    Args:
        embedding: features of the noise label.
        width: size of the vector.
        condition: gives a vector, or only channels; None for none.
        condition_width: size of its vector; None for `width`.
    """

    def __init__(
        self, embedding: NoiseEmbedding, width: int, condition: Condition | None = None, condition_width: int | None = None
    ) -> None:
        super().__init__()
        self.condition = condition
        self.embedding = embedding
        self.linear1 = nn.Linear(embedding.width, width)
        self.linear2 = nn.Linear(width, width)
        self.classes = condition.embedding(condition_width or width) if condition else None  # its name in checkpoints

    def forward(self, noise_label: Tensor, cond: Tensor | None) -> Tensor:
        """The vectors, (B, width), or (1, width) if all are the same."""
        vector = self.linear2(F.silu(self.linear1(self.features(noise_label))))
        return F.silu(vector + self.condition_vector(cond))

    def features(self, noise_label: Tensor) -> Tensor:
        """The features of the noise label."""
        return self.embedding(noise_label.to(self.linear1.weight.dtype).reshape(-1))

    def condition_vector(self, cond: Tensor | None) -> Tensor | float:
        """The vectors of the conditions, (B, width) or (1, width); 0 for a network without a condition of vectors."""
        if self.condition is None or self.classes is None:
            return 0.0
        vectors: Tensor = self.classes(self.condition.empty(1, self.linear1.weight.device) if cond is None else cond)
        return vectors


class EarlyConditioning(Conditioning):
    """Conditioning whose features include the condition and the augmentation of the image (Karras et al. 2022, 2206.00364).

    `silu(W_2 silu(W_1 (embedding(noise_label) + e_cond + W_0 augmented)))`.

    Args:
        embedding: features of the noise label.
        width: size of the vector.
        condition: gives a vector, or only channels; None for none.
        augmentations: number of augmentation labels of an image; 0 for none.
    """

    def __init__(
        self, embedding: NoiseEmbedding, width: int, condition: Condition | None = None, augmentations: int = 0
    ) -> None:
        super().__init__(embedding, width, condition, condition_width=embedding.width)
        self.augment = nn.Linear(augmentations, embedding.width, bias=False) if augmentations > 0 else None

    def forward(self, noise_label: Tensor, cond: Tensor | None, augmented: Tensor | None = None) -> Tensor:
        features = self.features(noise_label) + self.condition_vector(cond)
        if augmented is not None:
            if self.augment is None:
                raise InputError("augmentations=0: must be the number of labels, as 9 for GeometricAugmentation")
            features = features + self.augment(augmented)
        return F.silu(self.linear2(F.silu(self.linear1(features))))
