"""The test problems' exact posteriors, by importance sampling and by differentiation."""

import pytest
import torch
from posteriors import TWO_MODES_Y, LawScore, digits, gaussian, two_modes

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
