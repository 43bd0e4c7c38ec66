"""The vectors of conditions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Known(nn.Module):
    """Conditions (B, ...) and which of their numbers are known, (B, 2, ...), zero and zero where they are NaN."""

    def forward(self, y: Tensor) -> Tensor:
        known = ~y.isnan()
        return torch.stack([torch.where(known, y, 0.0), known.to(y.dtype)], dim=1)


class VectorEmbedding(nn.Module):
    """`W_2 silu(W_1 [y, known])`, with y zero where it is not known.

    Args:
        size: how many numbers.
        width: size of the result.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.known = Known()
        self.linear1 = nn.Linear(2 * size, width)
        self.linear2 = nn.Linear(width, width)

    def forward(self, y: Tensor) -> Tensor:
        both = self.known(y).flatten(1).to(self.linear1.weight.dtype)
        return self.linear2(F.silu(self.linear1(both)))
