"""Operators: their adjoints and normal equations against dense matrices, known transforms, and clear errors."""

import math
import pickle

import pytest
import torch

from lightning_score.observations import (
    Blur,
    Composition,
    Fourier,
    Gray,
    LinearOperator,
    Mask,
    Matrix,
    Radon,
)

SHAPES = [(2, 10), (2, 5, 6), (2, 3, 4, 5)]
GENERATOR = torch.Generator().manual_seed(0)


class Differences(LinearOperator):
    """A user's operator: neighbors' differences."""

    def apply(self, x):
        return x.diff(dim=-1)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def operators(shape):
    """All linear operators that observe samples of a shape, by name."""
    sizes = shape[1:]
    kernel = 0.05 * random(*[3, 2, 3][: len(sizes)])
    kernel[tuple(n // 2 for n in kernel.shape)] = 1.0
    some = (random(*sizes) > 0) | (random(*sizes) > 1)
    found = {
        "mask": Mask(random(*shape) > 0),
        "mask of pixels": Mask(some),
        "gray": Gray(),
        "matrix": Matrix(random(7, math.prod(shape))),
        "blur": Blur(0.7),
        "wide blur": Blur(3.0),
        "kernel": Blur(kernel=kernel),
        "kernel, zeros": Blur(kernel=kernel, border="zeros"),
        "kernel, reflect": Blur(kernel=kernel, border="reflect"),
        "MRI": Fourier(acceleration=2),
        "MRI of some": Fourier(some),
        "complex MRI": Fourier(some, complex_images=True),
        "full MRI": Fourier(acceleration=1),
        "blur, then mask": Composition([Blur(0.7), Mask(some)]),
        "user's": Differences(),
    }
    if len(sizes) > 1:
        found["CT"] = Radon(3)
    return found


EVERY = [(shape, name) for shape in SHAPES for name in operators(shape)]
every = pytest.mark.parametrize(("shape", "name"), EVERY, ids=[f"{len(shape) - 1}-D {name}" for shape, name in EVERY])


def dense(operator, shape):
    """The matrix of an operator, (m, D), from the inner products of A e_i with the unit vectors."""
    d = math.prod(shape)
    return operator.apply(torch.eye(d, dtype=torch.float64).reshape(d, *shape)).flatten(1).mT


@every
def test_operators_agree_with_their_matrices(shape, name):
    """<A x, v> = <x, A^T v>; gram_solve is the dense solution for every row's r2, the pseudo-inverse for s2 = 0; lift is
    A^+; each row is the same alone; a pickled operator is the same.
    """
    operator = operators(shape)[name]
    assert operator.observed_shape(shape) == tuple(operator.apply(torch.zeros(1, *shape)).shape[1:])
    operator = pickle.loads(pickle.dumps(operator))
    a, x = dense(operator, shape), random(3, *shape)
    y = operator.apply(x)
    torch.testing.assert_close(y.flatten(1), x.flatten(1) @ a.mT)
    v = random(*y.shape).requires_grad_()
    back = operator.adjoint(v, shape)
    torch.testing.assert_close(back.flatten(1), (v.flatten(1) @ a).detach(), check_layout=False)
    (gradient,) = torch.autograd.grad((back * x).sum(), v)
    torch.testing.assert_close(gradient, y)
    r2, s2 = torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64), torch.tensor([0.3, 0.05, 1.0], dtype=torch.float64)
    gram = r2.reshape(-1, 1, 1) * (a @ a.mT) + s2.reshape(-1, 1, 1) * torch.eye(len(a), dtype=torch.float64)
    with torch.inference_mode():
        solved = operator.gram_solve(v, r2, s2)
        alone = operator.gram_solve(v[1:2], r2[1], 0.05)
        lifted = operator.lift(v, shape)
    torch.testing.assert_close(solved.flatten(1), torch.linalg.solve(gram, v.detach().flatten(1)), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(alone, solved[1:2], rtol=1e-9, atol=1e-12)
    kept = 1e-10 if name == "matrix" else 1e-6
    exact = operator.gram_solve(y, r2, 0.0).flatten(1)
    if name != "wide blur":  # its smallest singular values are lost in rounding
        inverse = torch.linalg.pinv(a, rtol=kept)
        torch.testing.assert_close(lifted.flatten(1), v.detach().flatten(1) @ inverse.mT, rtol=1e-6, atol=1e-7)
        expected = y.flatten(1) @ inverse.mT @ inverse
        torch.testing.assert_close(exact, expected / r2[:, None], rtol=1e-6, atol=1e-7)
