"""The channels of data of any shape, and what distances need to know of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_score.tensors import moments

ENTRIES = 1 << 24
"""Numbers of examples that are computed with at once."""
SUBSET = 1 << 20
"""Numbers of which quantiles are computed, about."""
ROWS = 4096
"""Examples from which these are taken, about."""


def by_channel(x: Tensor) -> Tensor:
    """Examples (N, C, *space) as (N, C, L); the columns of a table (N, C) are channels of one entry."""
    return x.flatten(2) if x.ndim > 2 else x.reshape(len(x), -1, 1)


def chunks(x: Tensor) -> tuple[Tensor, ...]:
    """The same examples, as many at once as memory allows."""
    return x.split(max(1, ENTRIES // max(x[:1].numel(), 1)))


class Channels(NamedTuple):
    """Statistics of the one-point distribution of each channel of data, or column of a table, (C,) each.

    Fields: mean, std (1 where a channel is constant), low, high, and in standard deviations from the mean: median and
    spread, half the distance of the quartiles (1 where these are equal).
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    median: Tensor
    spread: Tensor

    @classmethod
    def of(cls, data: Tensor) -> "Channels":
        """The statistics of data (N, C, *space)."""
        mean, std, low, high = moments(part.cpu() for part in chunks(data))
        std = torch.where(std > 1e-12 * torch.maximum(low.abs(), high.abs()), std, torch.ones(()).double())
        some = by_channel(data[:: max(1, len(data) // ROWS)])
        some = some[..., :: some.numel() // SUBSET | 1].double().cpu()  # an odd step meets every column of a field
        some = some.transpose(0, 1).flatten(1)  # (C, entries)
        quantiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        lower, median, upper = ((some - mean[:, None]) / std[:, None]).quantile(quantiles, 1)
        spread = torch.where(upper > lower, (upper - lower) / 2, torch.ones(()).double())
        return cls(mean, std, low, high, median, spread)

    def standardized(self, x: Tensor) -> Tensor:
        """Examples in standard deviations from the mean of their channels, in single precision."""
        size = (1, -1, *[1] * (x.ndim - 2))
        return ((x.double() - self.mean.to(x.device).view(size)) / self.std.to(x.device).view(size)).float()
