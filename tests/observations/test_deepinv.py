"""Physics modules of deepinv as operators; without it, modules like them."""

import lightning_score.lean_imports  # noqa: F401

import pytest
import torch
from torch import nn

from lightning_score.errors import InputError
from lightning_score.observations import DeepinvLinearPhysics, DeepinvPhysics, GaussianNoise, Observation

SHAPE = (2, 8, 8)


class Halving(nn.Module):
    """Every second column, with a weight of its own."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale
        self.weights = nn.Parameter(torch.linspace(1, 2, 4))

    def A(self, x):
        return self.weights * x[..., ::2]

    def A_adjoint(self, y):
        return self.scale * torch.stack([self.weights * y, torch.zeros_like(y)], -1).flatten(-2)


class Square(nn.Module):
    def A(self, x):
        return x.square().sum((1, 2, 3)).unsqueeze(1)


def deepinv_modules():
    physics = pytest.importorskip("deepinv.physics")
    return [
        physics.Blur(torch.ones(1, 1, 3, 3) / 9, padding="valid"),
        physics.Downsampling(SHAPE, torch.ones(1, 1, 3, 3) / 9, 2),
        physics.MRI(mask=(torch.rand(8, 8) > 0.5).float(), img_size=SHAPE),
        physics.Tomography(3, 8, normalize=False),
    ]


def check_solutions(module):
    """A by the module, A^T by its A_adjoint, and solutions of both."""
    operator, r2 = DeepinvLinearPhysics(module), torch.tensor([1.0, 0.5])
    v = torch.randn(2, *operator.observed_shape(SHAPE))
    w = operator.gram_solve(v, r2, 0.1)
    again = operator.apply(operator.adjoint(w, SHAPE)) * r2.reshape(-1, *[1] * (v.ndim - 1)) + 0.1 * w
    torch.testing.assert_close(again, v, rtol=1e-3, atol=1e-4)
    x = torch.randn(2, *SHAPE, requires_grad=True)
    observation = Observation(operator, GaussianNoise(0.5), v)
    (gradient,) = torch.autograd.grad(observation.log_prob(x).sum(), x)
    torch.testing.assert_close(gradient, operator.adjoint(v - operator.apply(x), SHAPE) / 0.25, rtol=1e-3, atol=1e-3)
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_module_like_deepinvs_is_an_operator():
    check_solutions(Halving())
    assert DeepinvPhysics(Square()).observed_shape(SHAPE) == (1,)


@pytest.mark.slow
def test_modules_of_deepinv_are_operators():
    for module in deepinv_modules():
        check_solutions(module)
    from deepinv.physics import CompressedSensing, Haze, PhaseRetrieval

    squares = DeepinvPhysics(PhaseRetrieval(CompressedSensing(20, SHAPE)))
    assert squares.observed_shape(SHAPE) == (20,)
    with pytest.raises(InputError, match="Haze: has no method A_adjoint"):
        DeepinvLinearPhysics(Haze())


def test_mistakes_have_one_clear_line():
    for wrong, words in (
        (lambda: DeepinvPhysics(nn.Linear(2, 2)), "physics=Linear: has no method A; DeepinvPhysics needs it"),
        (lambda: DeepinvLinearPhysics(Square()), "physics=Square: has no method A_adjoint"),
        (lambda: DeepinvLinearPhysics(Halving(2.0)).check(SHAPE), "A_adjoint is not the adjoint of A"),
        (lambda: DeepinvPhysics(Halving()).check([2, 8, 6]), "fails for samples of shape .2, 8, 6."),
    ):
        with pytest.raises(InputError, match=words):
            wrong()
