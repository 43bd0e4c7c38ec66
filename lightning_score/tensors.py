"""Tensors: broadcasting coefficients, linear combinations, and moments of channels."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

CPU = torch.device("cpu")

Scale = Tensor | float
"""A factor, () or (B,)."""


def broadcast_to(coefficient: Tensor | float, x: Tensor) -> Tensor:
    """Shapes a coefficient, () or (B,), so that it multiplies `x`, (B, ...), sample by sample, in the precision of `x`.

    One of shape () stays where it is: a scalar on the CPU multiplies tensors of any device without synchronization.
    """
    coefficient = torch.as_tensor(coefficient, dtype=x.dtype)
    return coefficient if coefficient.ndim == 0 else coefficient.to(x.device).reshape(-1, *[1] * (x.ndim - 1))


def without_missing(x: Tensor) -> tuple[Tensor, Tensor]:
    """x with 0 in place of NaN, which marks missing entries, and where it is known, both of the shape of x."""
    known = ~x.isnan()
    return x.where(known, 0.0), known


def differentiated(x: Tensor) -> bool:
    """Whether the caller differentiates with respect to `x`, so that the graph must be kept."""
    return torch.is_grad_enabled() and x.requires_grad


def is_number(coefficient: Tensor | float) -> bool:
    """Whether it is a number that can be read without synchronizing a device, losing a gradient or breaking a graph."""
    if not isinstance(coefficient, Tensor):
        return True
    readable = coefficient.is_cpu and not torch.compiler.is_compiling()
    return coefficient.ndim == 0 and readable and not coefficient.requires_grad


def number(coefficient: Scale) -> Scale:
    """The coefficient, as a number if it can be read as one: arithmetic on numbers takes no time."""
    return coefficient if isinstance(coefficient, float) or not is_number(coefficient) else float(coefficient)


def combine(*terms: tuple[Tensor | float, Tensor]) -> Tensor:
    """The linear combination a x + b y + ..., in one pass over memory for each term with a non-zero coefficient.

    Args:
        terms: pairs of a coefficient, () or (B,), and a tensor (B, ...).
    """
    total: Tensor | None = None
    others: list[tuple[Scale, Tensor]] = []
    for c, x in terms:
        c = number(c)
        if not isinstance(c, float):
            others.append((broadcast_to(c, x), x))
        elif c == 1:  # needs no product
            total = x if total is None else total + x
        elif c != 0:
            others.append((c, x))
    for c, x in others:
        if total is None or not isinstance(c, float):
            total = c * x if total is None else total + c * x
        else:
            total = torch.add(total, x, alpha=c)
    return torch.zeros_like(terms[0][1]) if total is None else total


class Moments(NamedTuple):
    """What a pass over the known values of each channel finds, float64 (C,) each."""

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor


def moments(chunks: Iterable[Tensor]) -> Moments:
    """Mean, standard deviation (of the population), lowest and highest known value of each channel, in one pass.

    Chunks are merged by the formulas of Chan, Golub and LeVeque 1983, in float64.

    Args:
        chunks: examples (n, C, ...); NaN is not known. The deviation of a channel without known values is NaN.
    """
    n = mean = squares = low = high = torch.zeros((), dtype=torch.float64)
    for chunk in chunks:
        x = values_of_channels(chunk).double()
        count = (~x.isnan()).sum(1).double()
        center = x.nansum(1) / count.clamp(min=1)
        apart, total = center - mean, n + count
        squares = squares + (x - center[:, None]).square().nansum(1) + apart.square() * n * count / total.clamp(min=1)
        mean, n = mean + apart * count / total.clamp(min=1), total
        lowest, highest = x.nan_to_num(torch.inf).amin(1), x.nan_to_num(-torch.inf).amax(1)
        low, high = (lowest, highest) if low.ndim == 0 else (torch.minimum(low, lowest), torch.maximum(high, highest))
    return Moments(mean, (squares / n).sqrt(), low, high)


def values_of_channels(x: Tensor) -> Tensor:
    """Values (n, C, ...) as (C, ...)."""
    return x.transpose(0, 1).flatten(1)
