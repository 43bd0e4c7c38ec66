"""Multistep consistency sampling: exact for consistency functions, too narrow for means, DDIM without fresh noise."""

import math

import pytest
import torch
from conftest import MixtureScore
from laws import MEAN, STD, Given, gaussian, moments

from lightning_score.errors import InputError
from lightning_score.process import VP, BetaTable, Linear
from lightning_score.sampling import DDIM, Consistency, NoiseStream, PredictorCorrector, grid
from lightning_score.score.function import ScoreField

PROCESSES = [VP(), BetaTable(), Linear()]


class Ends(ScoreField):
    """A model tuned to perfection on N(MEAN, STD^2): `denoised` is the end of the path of the probability-flow ODE."""

    evaluations = 0

    def denoised(self, x, t, cond=None):
        s = self.process.noise_level(t)
        return MEAN + STD / (STD**2 + s**2).sqrt() * (x / self.process.alpha(t) - MEAN)

    def forward(self, x, t, cond=None):
        self.evaluations += len(x)
        return (self.process.alpha(t) * self.denoised(x, t) - x) / self.process.sigma(t) ** 2


def law(score, levels):
    """Mean and variance of samples that start from the law of x_t at the first level, and end as clean data."""
    process = score.process
    times = process.time_of(torch.tensor(levels, dtype=torch.float64))
    alpha, sigma = process.alpha(times[0]), process.sigma(times[0])
    start = float(alpha * MEAN), float(alpha**2 * STD**2 + sigma**2)
    moves = PredictorCorrector(Consistency()).plan(process, torch.cat([times, times.new_zeros(1)]))
    return moments(score, moves, {move.method: None for move in moves}, *start)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("levels", [[15.0], [15.0, 0.8], [15.0, 2.0, 0.5]], ids=len)
def test_samples_of_a_consistency_function_have_the_law_of_the_data(process, levels):
    """Whatever the number of steps."""
    assert law(Ends(process), levels) == pytest.approx((MEAN, STD**2), rel=1e-5)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_samples_of_a_mean_are_too_narrow(process):
    """denoised = m + k (x/alpha - m) with k = d^2/(d^2 + s^2), whose variance is k^2 (v + s^2) after noise on variance v."""
    score, k = gaussian(process), lambda s: STD**2 / (STD**2 + s**2)
    first, then = 15.0, 0.8
    variance = k(first) ** 2 * (STD**2 + first**2)
    assert law(score, [first]) == pytest.approx((MEAN, variance), rel=1e-5)
    variance = k(then) ** 2 * (variance + then**2)
    assert law(score, [first, then]) == pytest.approx((MEAN, variance), rel=1e-5) and variance < 0.5 * STD**2


def test_without_fresh_noise_it_is_ddim(noise_process):
    score, (x, z) = MixtureScore(noise_process), torch.randn(2, 20, 2, dtype=torch.float64)
    t, s = (torch.tensor(v, dtype=torch.float64) for v in (0.63, 0.3))
    expected = DDIM().step(score, x, t, s, Given(z), None)[0]
    torch.testing.assert_close(Consistency(0.0).step(score, x, t, s, Given(z), None)[0], expected)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_fresh_noise_takes_the_place_of_the_old(noise_process, eta):
    score, (x, z) = MixtureScore(noise_process), torch.randn(2, 20, 2, dtype=torch.float64)
    t, s = (torch.tensor(v, dtype=torch.float64) for v in (0.63, 0.3))
    drawn = eta * z + math.sqrt(1 - eta**2) * score.noise(x, t)
    expected = noise_process.alpha(s) * score.denoised(x, t) + noise_process.sigma(s) * drawn
    torch.testing.assert_close(Consistency(eta).step(score, x, t, s, Given(z), None)[0], expected)


@pytest.mark.parametrize("levels", [[20.0, 0.0], [20.0, 1.0, 0.0]], ids=[1, 2])
def test_evaluations_are_counted(levels):
    score = MixtureScore(VP())
    sampler = PredictorCorrector(Consistency(), grid=grid.Given(sigmas=levels))
    sampler.check(score.process)
    drawn = sampler(score, NoiseStream(0, range(5), (2,)))
    assert drawn.nfe == sampler.evaluations(score.process) == len(levels) - 1


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_a_share_is_between_none_and_all(eta):
    with pytest.raises(InputError, match=f"eta={eta}"):
        Consistency(eta)
