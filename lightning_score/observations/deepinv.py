"""Operators by the physics modules of deepinv (pip install 'lightning_score[deepinv]'), or by any module like them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_score.errors import require
from lightning_score.observations.base import LinearOperator, Operator


class DeepinvPhysics(Operator):
    """A(x) of a physics module; its noise model is not used.

    Args:
        physics: a module with a method A(x), as the classes of `deepinv.physics` have it.

    Raises:
        InputError: it has none; in `check`: it fails for the samples.
    """

    needed: tuple[str, ...] = ("A",)
    """The methods of the module."""

    def __init__(self, physics: nn.Module):
        missing = [name for name in self.needed if not callable(getattr(physics, name, None))]
        kind = type(physics).__name__
        require(not missing, f"physics={kind}: has no method {' and no '.join(missing)}; {type(self).__name__} needs it")
        self.physics = physics.requires_grad_(False)

    def apply(self, x: Tensor) -> Tensor:
        return self.physics.to(x.device).A(x)  # type: ignore[operator]


class DeepinvLinearPhysics(DeepinvPhysics, LinearOperator):
    """A x of a linear physics module, and A^T v by its A_adjoint; A A^T is solved by iteration.

    Args:
        physics: a module with the methods A(x) and A_adjoint(y), as subclasses of `deepinv.physics.LinearPhysics` have them.

    Raises:
        InputError: one is missing; in `check`: it fails for the samples, is not linear, or A_adjoint is not the adjoint.
    """

    needed = ("A", "A_adjoint")

    def check(self, shape: Sequence[int]) -> None:
        super().check(shape)
        x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        y = self.apply(x)
        found, expected = (float((part * x).sum()) for part in (self.adjoint(y, shape), super().adjoint(y, shape)))
        require(
            abs(found - expected) <= 1e-3 * abs(expected),
            f"physics={type(self.physics).__name__}: A_adjoint is not the adjoint of A, <x, A_adjoint(A x)> is {found:g}, "
            f"not {expected:g}; use an exact one, as with adjoint_via_backprop=True",
        )

    def adjoint(self, v: Tensor, shape: Sequence[int]) -> Tensor:
        return self.physics.to(v.device).A_adjoint(v)  # type: ignore[operator]
