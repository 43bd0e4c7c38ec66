"""Layers against their plain forms and their laws."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_score.networks.blocks import Dropout, SelfAttention
from lightning_score.networks.grid import Grid, crop
from lightning_score.networks.refinenet_layers import moments
from lightning_score.networks.resampling import Filter, FilterUp, Repeat, resampled


class TestDropout:
    @pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
    def test_drops_independently_with_its_probability_and_keeps_the_mean(self, p):
        torch.manual_seed(0)
        n, shape = 40_000, (5, 2, 3)  # features that share bits and that do not
        y = Dropout(p)(torch.ones(n, *shape))
        assert len(y.unique()) == 2 and y.max() == pytest.approx(1 / (1 - p), rel=2**-13)
        features = y.flatten(1).double()
        assert (features.mean(0) - 1).abs().max() < 5 * (p / (1 - p) / n) ** 0.5
        correlation = torch.corrcoef(features.T) - torch.eye(features.shape[1])
        assert correlation.abs().max() < 5 / n**0.5

    def test_extreme_probabilities(self):
        x = torch.ones(2, 3, 4)
        assert torch.equal(Dropout(0.0)(x), x) and torch.equal(Dropout(1e-9)(x), x)
        assert set(Dropout(1 - 1e-9)(x).unique().tolist()) <= {0.0, 2.0**16}

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_mask_is_that_of_any_memory_format_and_precision(self, dtype):
        x, dropout = torch.rand(3, 5, 4, 6) + 1, Dropout(0.3)

        def dropped(x: Tensor) -> Tensor:
            torch.manual_seed(1)
            return dropout(x)

        expected = dropped(x)
        assert torch.equal(dropped(x.to(memory_format=torch.channels_last)), expected)
        torch.testing.assert_close(
            dropped(x.to(dtype)), expected.to(dtype), rtol=2**-7 if dtype == torch.bfloat16 else 1e-6, atol=0
        )

    def test_derivatives_are_the_mask(self):
        dropout, x = Dropout(0.3), torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        y = dropout(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(gradient * x, y, rtol=1e-12, atol=0)
        value, tangent = torch.func.jvp(dropout, (x.detach(),), (2 * x.detach(),))
        torch.testing.assert_close(tangent, 2 * value, rtol=1e-12, atol=0)


class TestMoments:
    """Of channels, against torch's."""

    def plain(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axes = tuple(range(2, x.ndim))
        return x.mean(axes, keepdim=True), x.var(axes, correction=0, keepdim=True)

    @pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (1, 2, 2, 3, 2)], ids=str)
    def test_values_and_derivatives_up_to_the_second(self, shape):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        torch.testing.assert_close(moments(x), self.plain(x))
        assert torch.autograd.gradcheck(moments, x, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(moments, x)

    def test_under_transforms(self):
        """Tangents and gradients for a batch of directions, and products of the Hessian with them."""
        x, directions = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(6, 2, 3, 4, 5, dtype=torch.float64)

        def products(function):
            def loss(x):
                mean, variance = function(x)
                return (mean.exp() * variance).sum()

            def along(v):
                return torch.func.jvp(torch.func.grad(loss), (x,), (v,))[1]

            tangents = torch.func.vmap(lambda v: torch.func.jvp(function, (x,), (v,))[1])(directions)
            return torch.func.grad(loss)(x), tangents, torch.func.vmap(along)(directions)

        torch.testing.assert_close(products(moments), products(self.plain))


class TestFilters:
    @pytest.mark.parametrize("periodic", [False, True], ids=["zeros", "periodic"])
    @pytest.mark.parametrize("shape", [(2, 5), (2, 4, 3), (2, 3, 2, 4)], ids=str)
    def test_up_is_linear_interpolation(self, shape, periodic):
        grid, x = Grid(shape, periodic), torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
        doubled = F.interpolate(grid.pad(x, 1, 1), scale_factor=2.0, mode=grid.linear, align_corners=False)
        expected, found = crop(doubled, 2, [2 * n for n in shape[1:]]), FilterUp(grid).double()(x)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        weights = torch.randn_like(found)
        gradients = (torch.autograd.grad(y, x, weights)[0] for y in (found, expected))
        torch.testing.assert_close(next(gradients), next(gradients), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("periodic", [False, True], ids=["zeros", "periodic"])
    def test_down_is_the_adjoint_of_up(self, periodic):
        """Up to a factor of 2 along each axis, by which means become sums."""
        grid = Grid((2, 4, 6), periodic)
        x, y = torch.randn(3, 2, 4, 6, dtype=torch.float64), torch.randn(3, 2, 8, 12, dtype=torch.float64)
        up, down = FilterUp(grid).double()(x), Filter(grid, stride=2).double()(y)
        torch.testing.assert_close((up * y).sum(), 4 * (x * down).sum())


@pytest.mark.parametrize(("shape", "heads"), [((4, 6), 2), ((128, 6), 1), ((128, 2, 3), 2), ((128, 2, 1, 2), 1)], ids=str)
def test_attention_is_that_of_linear_layers(shape, heads):
    """With few channels and many, also its gradients and their derivatives in a direction."""
    channels = shape[0]
    layer = SelfAttention(channels, partial(nn.GroupNorm, 2), heads, scale=0.7).double()
    nn.init.normal_(layer.out.weight, std=channels**-0.5)

    def plain(x: Tensor) -> Tensor:
        pixels = layer.norm(x).flatten(2).mT
        query, key, value = (
            linear(pixels).unflatten(2, (heads, -1)).transpose(1, 2) for linear in (layer.query, layer.key, layer.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return 0.7 * (x + layer.out(attended).mT.unflatten(2, x.shape[2:]))

    x, direction = torch.randn(2, 2, *shape, dtype=torch.float64)
    weights = list(layer.parameters())

    def found(function):
        gradients = torch.autograd.grad(function(x).square().sum(), weights)
        gradient = torch.func.grad(lambda x: function(x).square().sum())
        return function(x), gradients, torch.func.jvp(gradient, (x,), (direction,))

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        torch.testing.assert_close(found(layer), found(plain), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("periodic", [False, True], ids=["zeros", "periodic"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("shape", [(3, 64), (3, 16, 8), (3, 4, 8, 8)], ids=str)
def test_convolution_of_repeated_pixels(shape, size, periodic):
    """Values and gradients, of few positions and of as many as are worth sums of weights; and under transforms."""
    grid = Grid(shape, periodic)
    conv, repeat = grid.conv(3, 5, size).double(), Repeat(grid).double()
    for batch in (2, 17):
        x = torch.randn(batch, *shape, dtype=torch.float64, requires_grad=True)
        found, expected = resampled(repeat, conv, x), conv(repeat(x))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        weights = torch.randn_like(found)
        gradients = [torch.autograd.grad(y, [x, *conv.parameters()], weights) for y in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
    inputs = (x.detach(),), (torch.randn_like(x),)
    functions = (lambda x: resampled(repeat, conv, x).exp()), (lambda x: conv(repeat(x)).exp())
    torch.testing.assert_close(*(torch.func.jvp(function, *inputs) for function in functions), rtol=1e-9, atol=1e-9)
