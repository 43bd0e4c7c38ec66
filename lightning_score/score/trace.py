"""Ways to the trace of the score's Jacobian."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_score.errors import require, require_passes

Pullback = Callable[[Tensor], Tensor]  # v -> v^T ds/dx, row by row


class ProbeLaw(ABC):
    """The law of random vectors v with E[v v^T] = I."""

    @abstractmethod
    def sample(self, like: Tensor) -> Tensor:
        """Draws v of the shape of `like`."""


class Rademacher(ProbeLaw):
    """Independent signs; of all laws the estimate of a trace varies least under it (Hutchinson 1989)."""

    def sample(self, like: Tensor) -> Tensor:
        return torch.randint_like(like, 2) * 2 - 1


class Gaussian(ProbeLaw):
    """Independent standard normal coordinates."""

    def sample(self, like: Tensor) -> Tensor:
        return torch.randn_like(like)


class Trace(ABC):
    """A way to the trace of the score's Jacobian."""

    @abstractmethod
    def __call__(self, pullback: Pullback, like: Tensor) -> Tensor:
        """tr(ds/dx) of each example, (B,), from v -> v^T ds/dx; `like` has the shape of x."""


class ExactTrace(Trace):
    """tr(ds/dx) = sum_d e_d^T ds/dx e_d; its time and memory grow with the dimension."""

    def __call__(self, pullback: Pullback, like: Tensor) -> Tensor:
        basis = torch.eye(like[0].numel(), device=like.device, dtype=like.dtype)
        return sum(_inner(pullback(e.reshape(like[0].shape).expand_as(like)), e.reshape(like[0].shape)) for e in basis)


class Hutchinson(Trace):
    """tr(ds/dx) = E[v^T ds/dx v], estimated with a few random vectors v (Hutchinson 1989).

    Args:
        probes: the number of vectors per example.
        law: the law of v; Rademacher by default.
    """

    def __init__(self, probes: int = 1, law: ProbeLaw | None = None):
        _require_probes(probes)
        self.probes, self.law = probes, law or Rademacher()

    def __call__(self, pullback: Pullback, like: Tensor) -> Tensor:
        return sum(_inner(pullback(v), v) for v in _draws(self.law, self.probes, like)) / self.probes


def _draws(law: ProbeLaw, probes: int, like: Tensor) -> Iterator[Tensor]:
    return (law.sample(like) for _ in range(probes))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """a . b of each example, (B,)."""
    return (a * b).flatten(1).sum(1)


def _require_probes(probes: int) -> None:
    require(probes >= 1, f"probes={probes}: need at least one random vector per example")
    require_passes(probes=probes)
