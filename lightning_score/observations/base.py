"""The interface of operators A of observations y = A(x) with noise; linear ones with their adjoint and normal equations."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_score.errors import InputError, one_line, require
from lightning_score.tensors import broadcast_to

MOST_ITERATIONS = 1000


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

    def _sample_shape(self) -> tuple[int, ...]:
        if self._shape is None:
            raise InputError(f"operator={type(self).__name__}: call observed_shape(shape) first, with the shape of a sample")
        return self._shape


class LinearOperator(Operator):
    """A linear map A from samples to observations; its adjoint is autograd's, its equations are solved by iteration."""

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
        """(r2 A A^T + s2 I)^-1 v, the pseudo-inverse where that is singular; here by conjugate residuals, in at most 1000
        iterations; differentiable in v.

        Args:
            v: in the form of an observation, (B, ...).
            r2: variance of what is observed, () or (B,).
            s2: variance of the observation's noise, a number, () or (B,).
        """
        shape = self._sample_shape()
        with torch.inference_mode(False):
            r2, s2 = (broadcast_to(c, v).detach().clone() for c in (r2, s2))
            v = v if v.requires_grad else v.clone()
            return _Solution.apply(v, lambda u: r2 * self.apply(self.adjoint(u, shape)) + s2 * u)

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


class _Solution(torch.autograd.Function):
    """M^-1 v, of which the gradient in v is M^-1 g."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, matrix: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.matrix = matrix
        return conjugate_residuals(matrix, v)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _Solution.apply(g, ctx.matrix), None


def conjugate_residuals(matrix: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """M^-1 v for a symmetric M with no negative eigenvalue, row by row (Stiefel 1955).

    The residual never grows, also where M is singular and v is not in its range: then M w is the nearest to v. The end is at
    the precision of v's type or after `MOST_ITERATIONS`.

    Args:
        matrix: v -> M v, (B, ...), each row on its own.
        v: (B, ...).
    """

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (v.ndim - 1))

    tolerance = max(8 * torch.finfo(v.dtype).eps, 1e-13) ** 2
    w, r = torch.zeros_like(v), v
    p, m_r = r, matrix(r)
    m_p, r_m_r = m_r, inner(r, m_r)
    enough, enough_m = tolerance * inner(r, r), tolerance * inner(m_r, m_r)
    for _ in range(MOST_ITERATIONS):
        going = (inner(r, r) > enough) & (inner(m_r, m_r) > enough_m) & (r_m_r > 0)  # a row stops on its own
        if not bool(going.any()):
            break
        step = torch.where(going, r_m_r / inner(m_p, m_p), 0)
        w, r = w + step * p, r - step * m_p
        m_r = matrix(r)
        before, r_m_r = r_m_r, inner(r, m_r)
        beta = torch.where(going, r_m_r / before, 0)
        p, m_p = r + beta * p, m_r + beta * m_p
    return w
