"""The exact posteriors of the test problems, and methods that reach them."""

from dataclasses import replace

import pytest
import torch
from benchmarks.test_posteriors import HEUN, METHODS, Method, Observations, draw, moments, of, one_observation
from conftest import times
from posteriors import TWO_MODES_Y, LawScore, digits, gaussian, two_modes

from lightning_score.guidance import MomentMatching, Observed
from lightning_score.process import VP
from lightning_score.sampling import Heun, Karras, PredictorCorrector

PROBLEMS = {"gaussian": gaussian, "two modes": two_modes, "digits": digits}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_exact_posterior_is_bayes_rule(name):
    """log p(x given y) - log p(x) - log p(y given x) is the same for all x, and the score is the gradient of the density."""
    problem, generator = PROBLEMS[name](), torch.Generator().manual_seed(0)
    y = problem.observe(problem.prior.sample(1, generator), generator)
    posterior = problem.posterior(y[0])
    x = posterior.sample(4, generator).requires_grad_()
    t = torch.tensor(0.0, dtype=torch.float64)
    bayes = (
        LawScore(VP(), problem.prior)(x, t)
        + torch.autograd.grad((problem.noise.log_prob(y, problem.operator.apply(x))).sum(), x, retain_graph=True)[0]
    )
    torch.testing.assert_close(LawScore(VP(), posterior)(x, t), bayes, rtol=1e-6, atol=1e-6)
    log_density = problem.prior.log_prob(x, 0.8, 0.5)
    (gradient,) = torch.autograd.grad(log_density.sum(), x)
    torch.testing.assert_close(LawScore(VP(), problem.prior).exact(x, torch.tensor(0.8), torch.tensor(0.5)), gradient)


def test_the_observation_of_the_two_modes_leaves_both_possible():
    weights = two_modes().posterior(TWO_MODES_Y[0]).weights
    assert 0.25 < float(weights[0]) < 0.35


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_moment_matching_is_exact_for_gaussian_data(noise_process, dtype):
    """At every time the guided score is that of the exact posterior under the process."""
    problem, generator, t = gaussian(), torch.Generator().manual_seed(0), times(12)
    y = problem.observe(problem.prior.sample(1, generator), generator)
    clean = problem.posterior(y[0]).sample(12, generator)
    x = noise_process.perturb(clean, t, torch.randn(clean.shape, generator=generator)).to(dtype)
    guidance = MomentMatching(problem.operator, y, noise=problem.noise, iterations=6)
    guided = guidance.guide(LawScore(noise_process, problem.prior), torch.arange(12))
    exact = LawScore(noise_process, problem.posterior(y[0]))(x, t)
    close = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float64 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(guided(x, t), exact, **close)
    torch.testing.assert_close(guided(x, t[3])[3], exact[3], **close)


def test_samples_by_moment_matching_are_those_of_the_exact_posterior():
    """With the same random numbers."""
    problem, y = gaussian(), one_observation(gaussian())
    sampler = PredictorCorrector(Heun(), grid=Karras(20, 1e-3))
    method = Method(of(MomentMatching, iterations=6), sampler)
    drawn = draw(method, problem, y, 16)
    guided = draw(Method(of(Observed), sampler), replace(problem, prior=problem.posterior(y[0])), y, 16)
    torch.testing.assert_close(drawn.x, guided.x, atol=1e-5, rtol=1e-5)
    assert drawn.evaluations == 40 and drawn.gradients == 6 * 40


@pytest.mark.slow
def test_samples_by_moment_matching_have_the_mean_and_covariance_of_the_posterior():
    """n |mean|^2 and n |covariance - I|^2/2 of samples in which the posterior is N(0, I) are chi-squared."""
    problem, y, n = gaussian(), one_observation(gaussian()), 2048
    drawn = draw(Method(of(MomentMatching, iterations=6), HEUN), problem, y, n)
    mean, covariance = moments(problem.posterior(y[0]), drawn.x)
    for value, freedom in ((16 * n * mean**2, 16), (16 * n * covariance**2 / 2, 16 * 17 / 2)):
        assert abs(value - freedom) < 3 * (2 * freedom) ** 0.5


@pytest.mark.slow
def test_the_table_of_the_readme_tells_the_methods_apart():
    """The share of the mode that the observation favors, .28: with one of them it stays at its share of .1 without one."""
    problem, exact = two_modes(), float(two_modes().posterior(TWO_MODES_Y[0]).weights[0])
    twisted, matching = "`TwistedSMC` of `MomentMatching`, 1 iteration", "`MomentMatching`, 1 iteration"
    names = (twisted, matching, "`PseudoInverse`", "`DPS`")
    drawn = {name: draw(METHODS[name], problem, TWO_MODES_Y, 4096).x for name in names}
    share = {name: float(problem.posterior(TWO_MODES_Y[0]).shares(x)[0]) for name, x in drawn.items()}
    assert abs(share[twisted] - exact) < 0.02
    assert 0.02 < abs(share[matching] - exact) < 0.06
    assert share["`PseudoInverse`"] < 0.15 and share["`DPS`"] > 0.35


@pytest.mark.slow
def test_moment_matching_finds_the_digits_better_than_the_pseudo_inverse():
    """At one backward pass per evaluation."""
    seen = Observations(30)
    drawn = {
        name: draw(METHODS[name], seen.problem, seen.y, 60, dtype=torch.float32)
        for name in ("`PseudoInverse`", "`MomentMatching`, 1 iteration")
    }
    worse, better = (seen.errors(each.x)[0] for each in drawn.values())
    assert 1 < better < 0.9 * worse
    assert [each.gradients / each.evaluations for each in drawn.values()] == [0, 1]
