"""Memorization: whether samples are copies of training examples."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SEARCHED = 16
"""Pixels along the longer side, at most, at which images are compared; larger ones are downsampled."""
POSITIONS = {3: 256, 5: SEARCHED}
"""Positions along the longest side of signals (N, C, L) and of volumes (N, C, D, H, W), likewise."""
CHUNK = 1024
"""Number of training examples whose distances are in memory at once."""
NUMBERS = 1 << 26
"""Numbers of training examples in memory at once."""
Rows = Callable[[slice | Tensor], Tensor]
"""Training examples by their rows, on the device of the samples."""


@dataclass(frozen=True)
class Neighbors:
    """The nearest training examples of some samples.

    Attributes:
        index: number of the nearest example, int64 (N,).
        distance: root mean square distance to it, in units of what is compared, (N,).
        copied: fraction of samples that are copies: at most half as far from the nearest as from the next.
        copied_held_out: the same fraction of held-out examples: the value of `copied` without memorization.
        ratio: mean distance of samples divided by that of held-out examples: 1 without memorization, 0 for a model that
            repeats training examples.
    """

    index: Tensor
    distance: Tensor
    copied: float
    copied_held_out: float
    ratio: float


def nearest_neighbors(
    samples: Tensor, train: Tensor, held_out: Tensor, shift: int = 1, inputs: Callable[[Tensor], Tensor] | None = None
) -> Neighbors:
    """Finds the training examples that samples are copies of.

    A copy is a sample that is twice as near to one training example as to any other (as in Yoon et al. 2023, "Diffusion
    probabilistic models generalize when they fail to memorize", who require three times). Near duplicates of that one, which
    are less than half as far from it as a held-out example usually is from its nearest, count as the same example. Images
    are downsampled to at most 16 pixels a side, which reduces noise, and are compared where they overlap after all shifts of
    up to `shift` pixels each way, with and without a horizontal flip. Signals are downsampled to at most 256 positions,
    volumes to 16 a side; missing values are zero in what is compared.

    The cost for K samples and held-out examples, M training examples and D <= 256 coordinates a channel is that of
    6 (2 shift + 1)^2 products of (K, D) by (D, M); memory does not grow beyond the examples themselves.

    Args:
        samples: (N, *shape).
        train: training examples, (M, *shape), two or more.
        held_out: examples not trained on, (K, *shape), on the device of the samples.
        shift: largest shift of images in pixels; above 32 pixels a side, in half pixels of the averaged images.
        inputs: maps examples to what is compared, as the standardized values; None: they are compared as they are.
    """
    compared = inputs or (lambda x: x)
    samples, held_out = (compared(x.cpu()).to(x.device) if inputs else x for x in (samples, held_out))

    def examples(rows: slice | Tensor) -> Tensor:
        return compared(train[rows]).to(samples.device)

    others, apart, _ = _nearest(held_out, len(train), examples, shift, None)
    found, beyond, index = _nearest(samples, len(train), examples, shift, float(others.median()) / 2)
    ratio = found.mean() / others.mean().clamp(min=torch.finfo(others.dtype).tiny)
    copied, usual = ((near <= far / 2).float().mean() for near, far in ((found, beyond), (others, apart)))
    return Neighbors(index, found, float(copied), float(usual), float(ratio))


def _nearest(x: Tensor, n: int, train: Rows, shift: int, same: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Distances (N,) to the nearest of n training examples and to the next that is farther than `same` from that one, and
    the number of the nearest. Without `same` it is half the median of the former.
    """
    first = [_search(part, n, train, shift) for part in x.split(1000)]
    index = torch.cat([each for _, each in first])
    found = torch.cat([distance for distance, _ in first])
    same = float(found.median()) / 2 if same is None else same
    parts = zip(x.split(1000), index.split(1000), strict=True)
    beyond = [_search(part, n, train, shift, train(rows.cpu()), same)[0] for part, rows in parts]
    return found, torch.cat(beyond).nan_to_num(posinf=2 * same), index  # if all are duplicates


def _search(
    x: Tensor, n: int, train: Rows, shift: int, twins: Tensor | None = None, same: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Distances (N,) to the nearest of n training examples, of those farther than `same` from the sample's one of `twins`,
    and its number; infinite if there is none.
    """
    moved = _variants(x, shift)
    twin = None if twins is None else _variants(twins, shift)
    best = torch.full((len(x),), torch.inf, device=x.device)
    index = torch.zeros(len(x), dtype=torch.long, device=x.device)
    chunk = max(1, min(CHUNK, NUMBERS // x[0].numel()))
    for first in range(0, n, chunk):
        y = _variants(train(slice(first, min(first + chunk, n))), 0, flips=(False,)).x[:, 0]
        squares = _squares(moved, y)
        if twin is not None:
            squares.masked_fill_(_squares(twin, y) <= same**2, torch.inf)
        near, at = squares.min(1)
        index = torch.where(near < best, first + at, index)
        best = torch.minimum(near, best)
    y = _variants(train(index.cpu()), 0, flips=(False,)).x  # the fast distances lose small ones to rounding
    exact = (((moved.x - y) * moved.inside).square().sum(2) / moved.inside.sum(1)).amin(1).sqrt()
    return torch.where(best.isfinite(), exact, best), index


class _Variants(NamedTuple):
    """V shifted and flipped variants of examples.

    Fields: x (N, V, D), 0 outside of the shifted image; inside (V, D), 1 inside of it.
    """

    x: Tensor
    inside: Tensor


def _variants(x: Tensor, shift: int, flips: tuple[bool, ...] = (False, True)) -> _Variants:
    """All shifts of images (N, C, H, W), downsampled, with and without a flip; signals and volumes downsampled; others as
    they are. NaN becomes zero.
    """
    x = x.nan_to_num() if x.is_floating_point() else x
    if x.ndim in POSITIONS:
        pool = math.ceil(max(x.shape[2:]) / POSITIONS[x.ndim])
        average = F.avg_pool1d if x.ndim == 3 else F.avg_pool3d
        x = average(x.float(), [min(pool, size) for size in x.shape[2:]])
    if x.ndim != 4:
        return _Variants(x.flatten(1).float()[:, None], torch.ones(1, x[0].numel(), device=x.device))
    channels, height, width = x.shape[1:]
    x = x.int() if x.dtype == torch.uint16 else x  # torch flips no uint16
    pool = math.ceil(max(height, width) / SEARCHED)
    unit = max(1, pool // 2)
    steps = [unit * k for k in range(-shift, shift + 1)]
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    moved, inside = [], []
    for flip, down, right in product(flips, steps, steps):
        there = ((rows - down >= 0) & (rows - down < height))[:, None] & (columns - right >= 0) & (columns - right < width)
        cells = F.avg_pool2d(there[None].float(), (min(pool, height), min(pool, width))) > 0.999
        if not cells.any():
            continue
        image = (x.flip(-1) if flip else x).roll((down, right), (-2, -1)).float()
        averaged = F.avg_pool2d(image, (min(pool, height), min(pool, width)))
        moved.append((averaged * cells).flatten(1))
        inside.append(cells.float().expand(channels, *cells.shape[1:]).flatten())
    return _Variants(torch.stack(moved, 1), torch.stack(inside))


def _squares(moved: _Variants, y: Tensor) -> Tensor:
    """Mean square differences inside of the image, the least over all variants; y is (M, D), the result (N, M). Each variant
    costs one product, of `[-2 x, x^2]/n` with `[y, 1]`, to which the means of `y^2` are added.
    """
    share = moved.inside / moved.inside.sum(1, keepdim=True)
    right = torch.cat([y, torch.ones_like(y[:, :1])], 1).mT
    least = torch.full((len(moved.x), len(y)), torch.inf, device=y.device)
    for x, inside, own in zip(moved.x.unbind(1), share, share @ y.square().mT, strict=True):
        left = torch.cat([-2 * x * inside.max(), (x.square() @ inside)[:, None]], 1)
        torch.minimum(least, torch.addmm(own, left, right), out=least)
    return least
