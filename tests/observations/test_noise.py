"""Noise of observations: its laws against scipy's, and the unknown level against its marginal likelihood by quadrature."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_score.errors import InputError
from lightning_score.observations import GaussianNoise, Mask, Observation, PoissonNoise


def drawn(noise, mean, n=4000):
    return noise.sample(torch.full((n, 1), mean), torch.Generator().manual_seed(0)).flatten().double().numpy()


def test_gaussian_noise_has_its_law():
    assert stats.kstest(drawn(GaussianNoise(0.3), 0.5), stats.norm(0.5, 0.3).cdf).pvalue > 1e-3
    assert (drawn(GaussianNoise(0.0), 0.5) == 0.5).all()
    y, mean = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    log_p = GaussianNoise(0.3).log_prob(y, mean)
    expected = torch.from_numpy(stats.norm(mean, 0.3).logpdf(y)).sum((1, 2))
    torch.testing.assert_close((log_p - log_p[0]).double(), expected - expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(GaussianNoise(0.3).variance(y, mean), torch.full((5, 1, 1), 0.09))


def test_counts_have_the_law_of_poisson():
    """Of images in [-1, 1], with the counts from -1."""
    noise = PoissonNoise(rate=7.0, low=-1.0)
    counts = 7 * (drawn(noise, 0.2) + 1)
    np.testing.assert_allclose(counts, counts.round(), atol=1e-4)
    found = np.bincount(counts.round().astype(int), minlength=18)
    law = stats.poisson(7 * 1.2)
    expected = np.append(law.pmf(np.arange(17)), law.sf(16)) * len(counts)
    found = np.append(found[:17], found[17:].sum())
    kept = expected > 5
    assert stats.chisquare(found[kept], expected[kept] * found[kept].sum() / expected[kept].sum()).pvalue > 1e-3
    assert noise.variance(torch.zeros(1), torch.tensor([0.2])).item() == pytest.approx(law.var() / 49)
    assert (drawn(noise, -3.0) == -1).all()


def test_the_likelihood_of_counts_is_that_of_poisson():
    """Up to a constant of y alone; below the floor its gradient still leads to what is observed."""
    noise, mean = PoissonNoise(rate=7.0, low=-1.0), torch.tensor([[0.2], [0.9], [-0.9], [3.0]], dtype=torch.float64)
    y = torch.full((4, 1), -1 + 5 / 7, dtype=torch.float64)
    log_p, expected = noise.log_prob(y, mean), torch.from_numpy(stats.poisson(7 * (mean + 1)).logpmf(5)).flatten()
    torch.testing.assert_close(log_p - log_p[0], expected - expected[0])
    below = torch.tensor([[-1 + 5e-4], [-1.0], [-2.0]], requires_grad=True)
    value = noise.log_prob(torch.tensor([[1.0], [-0.5], [0.0]]), below)
    (gradient,) = torch.autograd.grad(value.sum(), below)
    assert bool(value.isfinite().all()) and bool((gradient > 0).all())
    at = -1 + noise.floor * torch.tensor([[1 - 1e-6], [1 + 1e-6]], dtype=torch.float64)
    low, high = noise.log_prob(torch.zeros(2, 1), at)
    assert abs(high - low) < 1e-4 * abs(low)


def test_an_unknown_level_has_its_marginal_likelihood():
    """The integral of prod N(y; m, s^2) 1/s^2 over s^2, by quadrature, up to a constant."""
    y = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([[0.0], [0.1], [1.0], [5.0]], dtype=torch.float64).expand(4, 6)

    def marginal(residual):
        log_s = np.linspace(-6, 8, 4001)  # d s^2/s^2 = 2 d log s
        return math.log(np.trapezoid(2 * np.exp(stats.norm(0, np.exp(log_s)).logpdf(residual[:, None]).sum(0)), log_s))

    found = GaussianNoise(None).log_prob(y, mean)
    expected = torch.tensor([marginal(row) for row in (y - mean).numpy()], dtype=torch.float64)
    torch.testing.assert_close(found - found[0], expected - expected[0], rtol=1e-6, atol=1e-6)
    best = GaussianNoise(None).variance(y, mean)
    torch.testing.assert_close(best, (y - mean).square().mean(1, keepdim=True))


def test_an_exact_match_has_a_finite_likelihood_and_gradient():
    mean = torch.zeros(1, 3, requires_grad=True)
    value = GaussianNoise(None).log_prob(torch.zeros(1, 3), mean)
    (gradient,) = torch.autograd.grad(value.sum(), mean)
    assert bool(value.isfinite().all()) and bool(gradient.isfinite().all())


def test_an_observation_has_the_likelihood_of_what_is_observed():
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    observation = Observation(Mask([1, 0, 1]), GaussianNoise(0.5), y)
    torch.testing.assert_close(observation.log_prob(x), -((y - x[:, [0, 2]]) ** 2).sum(1) / 0.5)


def test_mistakes_have_one_clear_line():
    some = torch.zeros(1, 2)
    for wrong, words in (
        (lambda: GaussianNoise(-1.0), "std=-1.0: must be 0"),
        (lambda: GaussianNoise(math.nan), "std=nan: must be 0"),
        (lambda: GaussianNoise(None).sample(some), "std=None: the noise to add is not known"),
        (lambda: GaussianNoise(0.0).log_prob(some, some), "std=0: exact observations have no density"),
        (lambda: PoissonNoise(0.0), "rate=0.0"),
        (lambda: PoissonNoise(1.0, 0.0), "floor=0.0"),
        (lambda: PoissonNoise(low=math.inf), "low=inf"),
        (lambda: PoissonNoise().check(some - 1), "goes down to -1, below low=0 of PoissonNoise"),
    ):
        with pytest.raises(InputError, match=words):
            wrong()
