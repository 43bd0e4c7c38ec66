"""DiffPIR against its definition, and correctors on the score of a posterior."""

from dataclasses import replace

import pytest
import torch
from conftest import QuickNoise
from posteriors import LawScore, Problem, gaussian

from lightning_score.guidance import NoisyLikelihood, Observed
from lightning_score.observations import Mask
from lightning_score.process import VE, VP
from lightning_score.sampling import HMC, MALA, Ancestral, DiffPIR, Geometric, MarkovChain, NormalNoise, PredictorCorrector


def observed(problem, n, process, guidance=Observed, per=1):
    """The score given an observation for every row, or for `per` rows, and the observations."""
    generator = torch.Generator().manual_seed(3)
    y = problem.observe(problem.prior.sample(n, generator), generator)
    guided = guidance(problem.operator, noise=problem.noise).observe_with(y, per)
    problem.operator.observed_shape(problem.prior.shape)
    return guided.guide(LawScore(process, problem.prior), torch.arange(n * per)), y


@pytest.mark.parametrize("process", [VP(), VE()], ids=lambda p: type(p).__name__)
def test_a_step_to_clean_data_is_the_proximal_point(process):
    """u minimizes |y - A u|^2/s^2 + |u - denoised|^2/r^2: its gradient vanishes."""
    problem, n, strength = gaussian(8, 3), 5, 2.0
    score, y = observed(problem, n, process)
    t, s = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    x = torch.randn(n, 8, dtype=torch.float64)
    noise = QuickNoise(x.shape)
    u, _ = DiffPIR(strength).step(score, x, t, s, noise, None)
    if float(process.sigma(s)) > 0:  # VE has no clean data
        z = QuickNoise(x.shape).normal()
        share, sigma, sigma_s = 0.3, process.sigma(t), process.sigma(s)
        u = (u - sigma_s * (1 - share) ** 0.5 * x / sigma - sigma_s * share**0.5 * z) / (
            1 - sigma_s / sigma * (1 - share) ** 0.5
        )
    r2, a = process.noise_level(t) ** 2 / strength, problem.matrix
    residual = y - u @ a.mT
    denoised = score.score.denoised(x, t)
    torch.testing.assert_close(residual @ a / problem.std**2, (u - denoised) / r2, rtol=1e-6, atol=1e-8)


def test_without_weight_on_the_observation_it_is_ancestral_sampling():
    problem = gaussian(4, 2)
    score, _ = observed(problem, 6, VP())
    t, s = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    x = torch.randn(6, 4, dtype=torch.float64)
    found, _ = DiffPIR(1e14, None).step(score, x, t, s, QuickNoise(x.shape), None)
    expected, _ = Ancestral().step(score, x, t, s, QuickNoise(x.shape), None)
    torch.testing.assert_close(found, expected)


def moments_error(x, law):
    """The root mean square of the mean's error, in standard deviations of the law."""
    whitening = torch.linalg.inv(torch.linalg.cholesky(law.covariance))
    return float(((x.mean(0) - law.mean) @ whitening.mT).square().mean().sqrt())


def test_repeated_steps_reduce_the_error_of_ancestral_restoration():
    problem, n = gaussian(), 400
    score, y = observed(problem, 1, VP(), per=n)
    errors = []
    for repeats in (1, 5):
        sampler = PredictorCorrector(DiffPIR(1.0, None, repeats), grid=Geometric(40, 1e-3))
        out = sampler(score, QuickNoise((n, 16)))
        assert out.nfe == sampler.evaluations(VP()) == 40 * repeats
        errors.append(moments_error(out.x, problem.posterior(y[0])))
    assert errors[1] < errors[0] / 2


def test_an_exactly_observed_part_is_that_of_the_observation():
    problem = Problem(gaussian(6, 2).prior, Mask([1, 0, 0, 1, 0, 0]), 0.0)
    score, y = observed(problem, 50, VP())
    x = PredictorCorrector(DiffPIR(), grid=Geometric(30, 1e-4))(score, QuickNoise((50, 6))).x
    torch.testing.assert_close(x[:, [0, 3]], y, atol=0.02, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("corrector", "steps"), [(MALA(1.0, 2), 800), (HMC(1.5, 7), 150)], ids=["MALA", "HMC"])
def test_metropolis_correctors_draw_from_the_posterior(corrector, steps):
    """The score of prior and likelihood at one level is a gradient, so that line integrals are exact: mean and covariance of
    independent chains within three standard errors.
    """
    problem, n, sigma = gaussian(), 1000, 0.03
    score, y = observed(problem, 1, VE(sigma_min=0.001), NoisyLikelihood, per=n)
    x = MarkovChain(corrector, steps, sigma=sigma, initial=NormalNoise(1.0))(score, QuickNoise((n, 16))).x
    prior = replace(problem.prior, covariance=problem.prior.covariance + sigma**2 * torch.eye(16))
    law = prior.given(problem.matrix, (problem.std**2 + sigma**2) ** 0.5, y[0])
    w = (x - law.mean) @ torch.linalg.inv(torch.linalg.cholesky(law.covariance)).mT
    means = w.mean(0) * n**0.5
    covariance = (w.mT @ w / n - torch.eye(16)) * (n / (1 + torch.eye(16))) ** 0.5
    for errors in (means, covariance):  # three standard errors, for the largest of many entries four
        assert float(errors.square().mean()) < 1 + 3 * (2 / errors.numel()) ** 0.5 and float(errors.abs().max()) < 4
