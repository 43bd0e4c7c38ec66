"""Langevin dynamics for a budget: against closed forms, the steps' own moments, and technique 4 at the same budget."""

import math

import numpy as np
import pytest
import torch
from laws import gaussian, moments

from lightning_score.errors import InputError
from lightning_score.process import VP, SigmaTable
from lightning_score.process.ladder import choose_step_size, variance_ratio
from lightning_score.sampling import (
    MALA,
    AnnealedLangevin,
    BatchLangevin,
    DPMSolver2M,
    Geometric,
    Given,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
)
from lightning_score.sampling.tuning import (
    SIZES,
    EquivalentGaussian,
    Moments,
    equivalent_gaussian,
    tuned_ladder,
    tuned_snrs,
    tuned_steps,
)

SIGMAS = np.geomspace(3.0, 0.03, 10).tolist()
STDS = [0.0, 0.1, 0.8]
MIXED = EquivalentGaussian(np.array(STDS) ** 2, np.array([0.5, 0.3, 0.2]))
POINT = EquivalentGaussian(np.zeros(1), np.ones(1))
START = Moments.at_start(MIXED, 9.0, 0.0)


def sampled_ratio(sampler, process, std):
    """The variance of the samples over that of the last level, for data from N(0, std^2), by the sampler's own moves."""
    times = sampler.grid(process)
    stages = sampler.plan(process, times)
    state = {stage.method: stage.method.init(process, times) for stage in stages}
    _, variance = moments(gaussian(process, 0.0, max(std, 1e-9)), stages, state, 0.0, float(process.sigma(times[0])) ** 2)
    alpha, sigma = float(process.alpha(stages[-1].end)), float(process.sigma(stages[-1].end))
    return variance / (alpha**2 * std**2 + sigma**2)


def as_sampler(levels):
    scale = levels[-1].sigma ** 2
    grid = Given(sigmas=[level.sigma for level in levels])
    return AnnealedLangevin([level.u * scale for level in levels], [level.steps for level in levels], grid)


def test_a_gaussian_is_found_from_its_score_norms():
    """n(sigma) = sum_k w_k sigma^2/(lambda_k + sigma^2), and with it what Langevin dynamics sees of the data."""
    found = equivalent_gaussian(SIGMAS, [MIXED.score_norm(sigma) for sigma in SIGMAS])
    assert found.shares.sum() == pytest.approx(1)
    for sigma in np.geomspace(3.0, 0.03, 50):
        assert found.score_norm(sigma) == pytest.approx(MIXED.score_norm(sigma), abs=2e-3)
    for low, high, share in ((0.0, 0.03, 0.5), (0.03, 0.3, 0.3), (0.3, 3.0, 0.2)):
        inside = (found.variances >= low**2) & (found.variances < high**2)
        assert found.shares[inside].sum() == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_data_at_a_point_have_the_step_size_of_technique_four(steps):
    """From the law of a level the best step size at the next one is technique 4's, and so is the variance ratio after it."""
    first, second = tuned_steps(POINT, [3.0, 2.0], Moments.at_start(POINT, 9.0, 0.0), 2 * steps)
    assert (first.steps, second.steps, first.u) == (steps, steps, SIZES[0])
    best = choose_step_size(2.0, 1.5, steps) / 4
    assert second.u == pytest.approx(min(best, SIZES[-1]), rel=0.04)
    expected = variance_ratio(second.u * 4, 2.0, 1.5, steps, before=first.variance_ratio)
    assert second.variance_ratio == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("only", [True, False])
@pytest.mark.parametrize("evaluations", [2, 9, 99])
def test_the_budget_is_spent_and_more_of_it_deviates_less(only, evaluations):
    by_count, levels = tuned_ladder(MIXED, SIGMAS, only, START, evaluations, 64)
    assert sum(level.steps for level in levels) == evaluations
    assert levels[0].sigma == pytest.approx(3.0) and levels[-1].sigma == pytest.approx(0.03)
    assert not only or {level.sigma for level in levels} <= set(SIGMAS)
    assert max(level.deviation for level in levels) == by_count[len(levels)] <= 1.25 * min(by_count.values())
    assert max(level.steps for level in levels) - min(level.steps for level in levels) <= 1
    if evaluations > 2:
        assert min(by_count.values()) < min(tuned_ladder(MIXED, SIGMAS, only, START, evaluations // 2, 64)[0].values())


def test_the_sampler_has_the_predicted_variance_and_is_better_than_technique_four():
    """By its own moves, at 100 Langevin steps, in every direction of the data."""
    process = SigmaTable(0.03, 3.0, 10)
    _, levels = tuned_ladder(MIXED, SIGMAS, True, START, 100, 64)
    tuned, auto = as_sampler(levels), AnnealedLangevin("auto", 10)
    tuned.check(process)
    ratios, theirs = (np.array([sampled_ratio(sampler, process, std) for std in STDS]) for sampler in (tuned, auto))
    assert MIXED.deviation(0.03, ratios) == pytest.approx(levels[-1].deviation, rel=1e-3)
    assert MIXED.score_norm(0.03, ratios) / MIXED.score_norm(0.03) == pytest.approx(levels[-1].variance_ratio, rel=1e-4)
    assert np.all(np.abs(ratios[1:] - 1) < 0.25) and np.all(np.abs(ratios[1:] - 1) < np.abs(theirs[1:] - 1))
    assert MIXED.deviation(0.03, ratios) < 0.5 * MIXED.deviation(0.03, theirs)


def test_a_mean_that_is_not_that_of_the_prior_takes_larger_steps():
    shifted, centered = (tuned_steps(MIXED, SIGMAS, Moments.at_start(MIXED, 9.0, shift), 99)[0] for shift in (1.0, 0.0))
    assert shifted.u > centered.u and shifted.deviation > centered.deviation


def test_choices_are_the_same_again():
    assert tuned_ladder(MIXED, SIGMAS, True, START, 20, 64) == tuned_ladder(MIXED, SIGMAS, True, START, 20, 64)


@pytest.mark.parametrize("predictor", [ReverseDiffusion(), DPMSolver2M()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("process", [SigmaTable(0.03, 3.0, 10), VP()], ids=lambda p: type(p).__name__)
def test_ratios_of_correctors_are_those_of_the_samplers_law(process, predictor):
    """The deviation after the last correction, by the moves of a sampler that has these ratios; and against none."""
    sampler = PredictorCorrector(predictor, Langevin(), 2, grid=Geometric(12, float(process.time_of(torch.tensor(0.03)))))
    times = sampler.grid(process)
    start = float(process.sigma(times[0])) ** 2
    found = tuned_snrs(MIXED, process, sampler.plan(process, times), sampler.corrector, start)
    assert len(found) == 12
    pairs = [(level.sigma, level.snr) for level in found]
    chosen = PredictorCorrector(predictor, Langevin(pairs), 2, grid=sampler.grid)
    ratios = np.array([sampled_ratio(chosen, process, std) for std in STDS])
    assert MIXED.deviation(found[-1].sigma, ratios) == pytest.approx(found[-1].after, rel=1e-3)
    alone = np.array([sampled_ratio(PredictorCorrector(predictor, grid=sampler.grid), process, std) for std in STDS])
    gain = 0.5 if isinstance(predictor, ReverseDiffusion) else 1.05  # corrections upset a predictor with a memory
    assert found[-1].after < gain * MIXED.deviation(found[-1].sigma, alone)


def test_pairs_are_interpolated_in_the_logarithm_of_the_level():
    process, pairs = SigmaTable(0.01, 1.0, 3), [(1.0, 0.3), (0.01, 0.1)]
    for sigma, snr in ((1.0, 0.3), (0.1, 0.2), (0.01, 0.1)):
        t = process.time_of(torch.tensor(sigma, dtype=torch.float64))
        args = process, t, t, None, torch.zeros(1), torch.zeros(1)
        assert float(Langevin(pairs).size(*args)) == pytest.approx(float(Langevin(snr).size(*args)), rel=1e-6)
    assert math.isclose(float(Langevin([(0.5, 0.2)]).size(*args)), float(Langevin(0.2).size(*args)))


@pytest.mark.parametrize("snr", [[], [(0.0, 0.1)], [(0.1, -0.1)], [(0.1, math.inf)], 0])
@pytest.mark.parametrize("kind", [Langevin, BatchLangevin, MALA])
def test_wrong_pairs_are_refused(kind, snr):
    with pytest.raises(InputError, match=r"snr=.*above 0, as in"):
        kind(snr)
