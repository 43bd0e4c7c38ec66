"""The interface of operators A of observations y = A(x) with noise; linear ones with their adjoint and normal equations."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_score.errors import InputError, one_line, require
from lightning_score.observations.solving import Solution, eigensystem, spectral_inverse
from lightning_score.tensors import broadcast_to

LARGEST_DENSE = 2048
"""The most numbers of an observation whose A A^T is held as a matrix; its eigenvalues cost seconds, once."""


class Operator(ABC):
    """A map A from samples to observations, which torch differentiates."""

    _shape: tuple[int, ...] | None = None
    """The shape of the samples that were last asked about."""

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """A(x), for x (B, *shape)."""

    def check(self, shape: Sequence[int]) -> None:
        """Raises `InputError` if samples of this shape cannot be observed: by default, if A fails for numbers from 0 to 2,
        mixes samples, or is not differentiated by torch.
        """
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
            x = torch.cat([x, x.sum(0, keepdim=True)]).requires_grad_()
            y, alone = _tried(self, x), _tried(self, x[:1])
        require(
            alone.shape == y[:1].shape and bool((alone - y[:1]).abs().max() <= 1e-3 * y.abs().max()),
            f"operator={type(self).__name__}: A(x) of a sample differs between batches; it must depend on that sample alone",
        )
        self._check_observed(y)

    def _check_observed(self, y: Tensor) -> None:
        """Raises `InputError` if y = A(x) is not what it must be, x_2 = x_0 + x_1."""

    def observed_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of an observation of a sample of the given shape.

        Raises:
            InputError: samples of this shape cannot be observed.
        """
        self.check(shape)
        self._shape = tuple(shape)
        return tuple(self.apply(torch.zeros(1, *shape)).shape[1:])


class LinearOperator(Operator):
    """A linear map A from samples to observations; its adjoint is autograd's, its equations are solved numerically."""

    dense = False
    """Whether A A^T is held as a matrix whatever its size."""

    _known: tuple[Any, Tensor, Tensor] | None = None
    """For what A A^T was last solved, its eigenvectors and its eigenvalues."""

    def _check_observed(self, y: Tensor) -> None:
        error, size = (y[2] - y[0] - y[1]).abs().max(), y.abs().max()
        message = f"operator={type(self).__name__}: not linear, A(a + b) is not A(a) + A(b); use an Operator"
        require(bool(error <= 1e-3 * size), message)

    def adjoint(self, v: Tensor, shape: Sequence[int]) -> Tensor:
        """A^T v, (B, *shape), for v in the form of an observation, (B, ...); differentiable in v."""
        keep = torch.is_grad_enabled() and v.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            x = v.new_zeros(len(v), *shape).requires_grad_()
            observed = self.apply(x)
            (found,) = torch.autograd.grad(observed, x, v if keep else v.clone(), create_graph=keep)
        return found

    def gram_solve(self, v: Tensor, r2: Tensor, s2: Tensor | float) -> Tensor:
        """(r2 A A^T + s2 I)^-1 v, the pseudo-inverse where that is singular; differentiable in v. By default by the
        eigenvalues of A A^T, found once, or for observations of more than `LARGEST_DENSE` numbers by conjugate residuals.

        Args:
            v: in the form of an observation, (B, ...).
            r2: variance of what is observed, () or (B,).
            s2: variance of the observation's noise, a number, () or (B,).
        """
        shape = self._shape
        if shape is None:
            raise InputError(f"operator={type(self).__name__}: call observed_shape(shape) first, with the shape of a sample")
        with torch.inference_mode(False):
            v = v if v.requires_grad else v.clone()
            if self.dense or v[0].numel() <= LARGEST_DENSE:
                key = (shape, v.shape[1:], v.dtype, v.device)
                if self._known is None or self._known[0] != key:
                    self._known = key, *eigensystem(lambda u: self.apply(self.adjoint(u, shape)), v)
                _, basis, eigenvalues = self._known
                flat, rounding = v.flatten(1), v[0].numel() * torch.finfo(v.dtype).eps
                inverse = spectral_inverse(eigenvalues, flat, r2, s2, rounding)
                return ((inverse * (flat @ basis)) @ basis.mT).reshape(v.shape)
            scale, shift = (broadcast_to(c, v).detach().clone() for c in (r2, s2))
            return Solution.apply(v, lambda u: scale * self.apply(self.adjoint(u, shape)) + shift * u)

    def lift(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        """The smallest x (B, *shape) with A x = y, or as near as possible: A^T (A A^T)^-1 y."""
        self.observed_shape(shape)
        return self.adjoint(self.gram_solve(y, y.new_ones(()), 0.0), shape)


def _tried(operator: Operator, x: Tensor) -> Tensor:
    """A(x); raises `InputError` unless it is a finite tensor of the batch size of x, and depends on x for torch."""
    name = f"operator={type(operator).__name__}"
    try:
        y = operator.apply(x)
    except InputError:
        raise
    except Exception as error:  # of the user's code
        raise InputError(f"{name}: fails for samples of shape {list(x.shape[1:])}: {one_line(error)}") from error
    require(isinstance(y, Tensor), f"{name}: A(x) must be a tensor, and it is of type {type(y).__name__}")
    require(
        y.is_floating_point() and y.ndim > 1 and len(y) == len(x),
        f"{name}: A(x) must be real numbers (B, ...) for x (B, ...), and for x {list(x.shape)} it has the shape "
        f"{list(y.shape)} and the type {str(y.dtype).removeprefix('torch.')}",
    )
    require(bool(y.isfinite().all()), f"{name}: A(x) is NaN or infinite for numbers x from 0 to 2; it must be finite")
    require(y.requires_grad, f"{name}: A(x) has no gradient; compute it with torch, and without no_grad, detach or round")
    return y
