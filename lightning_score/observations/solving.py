"""Solutions of the normal equations of linear operators: by eigenvalues of A A^T, or by iteration."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_score.tensors import broadcast_to

MOST_ITERATIONS, AT_ONCE = 1000, 64


def spectral_inverse(eigenvalues: Tensor, v: Tensor, r2: Tensor, s2: Tensor | float, rounding: float) -> Tensor:
    """1/(r2 eigenvalues + s2); without noise 0 where the eigenvalue is, or is lost in rounding.

    Args:
        eigenvalues: those of A A^T.
        v: what is multiplied, (B, ...).
        r2: () or (B,).
        s2: a number, () or (B,).
        rounding: the error of an eigenvalue, as a share of the largest.
    """
    shift = broadcast_to(s2, v)
    kept = (shift > 0) | (eigenvalues > rounding * eigenvalues.max())
    return torch.where(kept, 1 / (broadcast_to(r2, v) * eigenvalues + shift), 0)


def eigensystem(gram: Callable[[Tensor], Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvectors (m, m), in columns, and the eigenvalues (m,) of A A^T, found in 64 bits where it can.

    Args:
        gram: v -> A A^T v, (B, ...).
        like: v, with m numbers in each row, in the precision of `gram`.
    """

    def columns(dtype: torch.dtype) -> Tensor:
        unit = torch.eye(like[0].numel(), dtype=dtype, device=like.device).reshape(-1, *like.shape[1:])
        return torch.cat([gram(part).flatten(1) for part in unit.split(AT_ONCE)]).cpu().double()

    with torch.no_grad():
        try:
            matrix = columns(torch.float64)
        except (RuntimeError, TypeError):  # an operator or a device that has no 64 bits
            matrix = columns(like.dtype)
        eigenvalues, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return vectors.to(like), eigenvalues.clamp(min=0).to(like)


class Solution(torch.autograd.Function):
    """M^-1 v, of which the gradient in v is M^-1 g."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, matrix: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.matrix = matrix
        return conjugate_residuals(matrix, v)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return Solution.apply(g, ctx.matrix), None


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
