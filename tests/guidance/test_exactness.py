"""The test problems' exact posteriors, by importance sampling and by differentiation."""

import pytest
import torch
from conftest import times
from posteriors import TWO_MODES_Y, LawScore, digits, gaussian, two_modes

from lightning_score.guidance import MomentMatching
from lightning_score.process import VP

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
