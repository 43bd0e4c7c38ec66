"""The trace of a Jacobian J from products v^T J: exact, or estimated with random vectors.

Hutchinson 1989: E[v^T J v] = tr(J) for random v with E[v v^T] = I.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from lightning_score.errors import require, require_passes

Pullback = Callable[[Tensor], Tensor]
"""v -> v^T J of each example, for v (B, ...)."""


class Draws(Protocol):
    """A source of random numbers for a batch of examples."""

    def normal(self) -> Tensor:
        """Standard normal draws (B, ...)."""

    def uniform(self) -> Tensor:
        """Draws uniform in [0, 1), (B, ...)."""


class ProbeLaw(ABC):
    """The law of random vectors v with E[v v^T] = I."""

    @abstractmethod
    def sample(self, like: Tensor, noise: Draws | None = None) -> Tensor:
        """Draws v of the shape and precision of `like`, (B, ...), from `noise`, or by default from torch's generator."""


class Rademacher(ProbeLaw):
    """Independent signs, the law with the least variance of the estimate (Hutchinson 1989); exact if J is diagonal."""

    def sample(self, like: Tensor, noise: Draws | None = None) -> Tensor:
        if noise is None:
            return torch.randint_like(like, 2) * 2 - 1
        return torch.where(noise.uniform() < 0.5, -1.0, 1.0).to(like.dtype)


class Gaussian(ProbeLaw):
    """Independent standard normal coordinates."""

    def sample(self, like: Tensor, noise: Draws | None = None) -> Tensor:
        return torch.randn_like(like) if noise is None else noise.normal()


class Trace(ABC):
    """tr(J) = sum of v^T J v over vectors v with sum of v v^T = I, exactly or on average."""

    @abstractmethod
    def vectors(self, like: Tensor, noise: Draws | None = None) -> Iterator[Tensor]:
        """The vectors v, each of the shape of `like`, (B, ...); drawn from `noise`, or by default from torch's generator."""

    def __call__(self, pullback: Pullback, vectors: Iterable[Tensor]) -> Tensor:
        """The trace of each example, (B,), from v -> v^T J and the vectors v."""
        return reduce(torch.add, (inner(pullback(v), v) for v in vectors))


class ExactTrace(Trace):
    """tr(J) = sum_d e_d^T J e_d over the D unit vectors: D backward passes, for small D."""

    def vectors(self, like: Tensor, noise: Draws | None = None) -> Iterator[Tensor]:
        basis = torch.eye(like[0].numel(), device=like.device, dtype=like.dtype)
        return (e.reshape(like[0].shape).expand_as(like) for e in basis)


class Hutchinson(Trace):
    """tr(J) = E[v^T J v], estimated with a few random vectors v (Hutchinson 1989).

    Args:
        probes: the number of vectors per example.
        law: the law of v; Rademacher by default.
    """

    def __init__(self, probes: int = 1, law: ProbeLaw | None = None):
        require(probes >= 1, f"probes={probes}: need at least one random vector per example")
        require_passes(probes=probes)
        self.probes, self.law = probes, law or Rademacher()

    def vectors(self, like: Tensor, noise: Draws | None = None) -> Iterator[Tensor]:
        return (self.law.sample(like, noise) for _ in range(self.probes))

    def __call__(self, pullback: Pullback, vectors: Iterable[Tensor]) -> Tensor:
        return super().__call__(pullback, vectors) / self.probes


def inner(a: Tensor, b: Tensor) -> Tensor:
    """a . b of each example, (B,), for a and b (B, ...)."""
    return (a * b).flatten(1).sum(1)
