"""Calibration on a conjugate Gaussian: uniform ranks and coverage of its posterior, known ones of other laws, bands."""

import math

import pytest
import torch

from lightning_score.metrics import sbc_ranks, tarp, z_scores

NOISE = 0.5


def draws(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def problem(factor=1.0, shift=0.0, count=400, members=19, size=4, seed=0):
    """Truths N(0, I), observations with noise, and samples of the posterior with another spread and mean."""
    truth = draws(count, size, seed=seed)
    y = truth + NOISE * draws(count, size, seed=seed + 1)
    mean, std = y / (1 + NOISE**2), NOISE / (1 + NOISE**2) ** 0.5
    return mean[:, None] + std * (shift + factor * draws(count, members, size, seed=seed + 2)), truth, y


@pytest.mark.parametrize(("factor", "shift", "calibrated"), [(1, 0, True), (0.5, 0, False), (2, 0, False), (1, 1, False)])
def test_ranks_and_coverage_tell_the_posterior_from_other_laws(factor, shift, calibrated):
    samples, truth, _ = problem(factor, shift)
    ranks = sbc_ranks(samples, truth)
    counts = ranks[:, 0].bincount(minlength=20).double()
    chi_square = float((counts - 20).square().sum() / 20)  # 19 degrees of freedom
    assert (chi_square < 36) == calibrated, chi_square
    found = tarp(samples, truth, draws(30, 4, seed=7))
    assert (found.deviation < found.limit) == calibrated, found


def test_coverage_of_gaussians_of_a_wrong_spread_is_its_closed_form():
    """Seen from afar the balls are half-lines, which contain the truth with the probability Phi(s Phi^-1(c))."""
    normal, members = torch.distributions.Normal(0.0, 1.0), 49
    for s in (0.5, 2.0):
        samples, truth = s * draws(1200, members, 1, seed=1), draws(1200, 1, seed=2)
        found = tarp(samples, truth, torch.tensor([[-1e6]], dtype=torch.float64))
        inner = found.credibility[1:-1]
        torch.testing.assert_close(found.coverage[1:-1], normal.cdf(s * normal.icdf(inner)), atol=0.05, rtol=0)
        assert found.coverage[0] == 0 and found.coverage[-1] == pytest.approx(1)


def test_ranks_count_the_samples_below_with_ties_at_random():
    samples = torch.tensor([0.0, 1.0, 1.0, 2.0]).expand(3000, 4)[..., None]
    truth = torch.tensor([-1.0, 1.0, 1.5]).repeat(1000)[:, None]
    below, tied, above = (sbc_ranks(samples, truth)[k::3, 0] for k in range(3))
    assert (below == 0).all() and (above == 3).all()
    torch.testing.assert_close(tied.bincount(minlength=5) / 1000, torch.tensor([0, 1, 1, 1, 0]) / 3, atol=0.05, rtol=0)


def test_the_likelihood_tells_the_prior_from_the_posterior():
    """Samples of the prior have uniform ranks of entries (Modrak et al. 2023), and another likelihood of the observation."""
    _, truth, y = problem(count=1000)
    prior = draws(1000, 19, 4, seed=11)

    def likelihood(x, y):
        return -(x - y).square().sum(-1, keepdim=True)

    entries, likelihoods = sbc_ranks(prior, truth), sbc_ranks(likelihood(prior, y[:, None]), likelihood(truth, y))
    assert entries.double().mean(0) == pytest.approx([9.5] * 4, abs=0.6) and likelihoods.double().mean() > 15


def test_z_scores_of_a_gaussian_posterior_are_student_t():
    samples, truth, _ = problem(members=8, count=4000)
    found = z_scores(samples, truth)
    error = float(found.square().std() / found.numel() ** 0.5)
    assert abs(float(found.square().mean()) - 7 / 5) < 4 * error < 0.2
    assert abs(float(found.mean())) < 4 * (7 / 5 / found.numel()) ** 0.5
    narrow, truth, _ = problem(factor=0.5, members=200)
    assert float(z_scores(narrow, truth).std()) == pytest.approx(math.sqrt(1 / 0.25), rel=0.1)


@pytest.mark.slow
def test_the_limit_holds_for_reference_points_that_see_the_same_samples():
    """Of calibrated models 5 % exceed the limit, with one reference point and with many."""
    for references in (1, 30):
        found = [tarp(*problem(count=40, members=7, seed=3 * k)[:2], draws(references, 4, seed=5)) for k in range(200)]
        assert 2 <= sum(each.deviation > each.limit for each in found) <= 20
        outside = torch.stack([(each.coverage < each.low) | (each.coverage > each.high) for each in found])[:, 1:-1]
        assert 0.02 < outside.double().mean() < 0.08
