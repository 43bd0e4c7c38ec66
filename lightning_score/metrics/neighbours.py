"""Memorisation: whether samples are copies of what was trained on."""

from typing import NamedTuple

import torch
from torch import Tensor


class Neighbours(NamedTuple):
    """The nearest training examples of some samples.

    Attributes:
        index: number of the nearest, int64 (N,).
        distance: to it, per coordinate (root mean square), in the units of the bytes, (N,).
        copied: share of the samples that are at most a third as far from the nearest as from the second nearest.
        ratio: mean distance of samples over that of held-out examples: 1 for a model that knows the training examples no
            better than others, 0 for one that repeats them.
    """

    index: Tensor
    distance: Tensor
    copied: float
    ratio: float


def nearest_neighbours(samples: Tensor, train: Tensor, held_out: Tensor, chunk: int = 2048) -> Neighbours:
    """Finds them by distance in the examples' own coordinates.

    A copy is a sample three times nearer to one training example than to any other (Yoon et al. 2023, "Diffusion
    probabilistic models generalize when they fail to memorize").

    Args:
        samples: (N, *shape).
        train: training examples, (M, *shape), two or more.
        held_out: examples not trained on, (K, *shape).
        chunk: training examples whose distances are in memory at once.
    """
    distances, index = _two_nearest(samples, train, chunk)
    others = _two_nearest(held_out, train, chunk)[0][:, 0]
    copied = (distances[:, 0] <= distances[:, 1] / 3).float().mean()
    ratio = distances[:, 0].mean() / others.mean().clamp(min=torch.finfo(others.dtype).tiny)
    return Neighbours(index[:, 0], distances[:, 0], float(copied), float(ratio))


def _two_nearest(x: Tensor, train: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Distances to the two nearest training examples and their numbers, each (N, 2)."""
    flat = x.flatten(1).float()
    best = torch.full((len(x), 2), torch.inf, device=x.device)
    index = torch.zeros(len(x), 2, dtype=torch.long, device=x.device)
    for first in range(0, len(train), chunk):
        found = torch.cdist(flat, train[first : first + chunk].flatten(1).float().to(x.device))
        numbers = torch.arange(first, first + found.shape[1], device=x.device).expand(len(x), -1)
        best, order = torch.cat([best, found], 1).topk(2, largest=False)
        index = torch.cat([index, numbers], 1).gather(1, order)
    # the quick distances lose small ones to rounding
    exact = [(flat - train[i.cpu()].flatten(1).to(x.device)).square().mean(1).sqrt() for i in index.T]
    return torch.stack(exact, 1), index
