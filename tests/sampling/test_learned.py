"""Learned times: nearer to the exact flow than those of Karras, on latents that the fit has not seen."""

from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import ExactScore, MixtureScore
from scipy.optimize import minimize_scalar

from lightning_score.data import Digits, Mixture
from lightning_score.errors import InputError
from lightning_score.process import VE, VP, BetaTable, Linear, SigmaTable
from lightning_score.sampling import (
    DDIM,
    IPNDM,
    RK45,
    AnnealedLangevin,
    DPMSolver2M,
    Given,
    Heun,
    Karras,
    KeepNoise,
    Langevin,
    LangevinDynamics,
    LastMean,
    Learned,
    NoPredictor,
    Predictor,
    PredictorCorrector,
    ProbabilityFlow,
    Restart,
    SDEDPMSolver2M,
    Snapped,
    StochasticHeun,
    Tweedie,
    UniPC,
    exact_ends,
    learning,
)
from lightning_score.sampling.exact_ends import Latents, check_learnable, group_of
from lightning_score.sampling.learning import LogSteps, Trials, fit_levels, learn
from lightning_score.sampling.predictor import ddim_step

MIXTURE = Mixture([[1.0, 0.5], [-1.0, 0.2], [0.1, -1.2]], [0.2, 0.1, 0.3])
PROCESS = VE(0.01, 20.0)


def draw_from(process, numbers):
    return MixtureScore(process, MIXTURE), Latents(numbers, (2,), dtype=torch.float64)


class Own(Predictor):
    """A user's predictor: Euler's step with the noise that was predicted in the middle of the last one."""

    order, evaluations = 1, 1

    def step(self, score, x, t, s, noise, state):
        found = score.noise(x, t)
        return ddim_step(score.process, x, t, s, found if state is None else 1.5 * found - 0.5 * state), found


@pytest.fixture(autouse=True)
def _quick(request, monkeypatch):
    if "slow" not in request.keywords:
        monkeypatch.setattr(learning, "ITERATIONS", 6)
        monkeypatch.setattr(exact_ends, "EXACT_STEPS", 40)


@pytest.mark.parametrize(
    ("predictor", "process"),
    [(DDIM, PROCESS), (Heun, PROCESS), (Own, PROCESS), (IPNDM, VP()), (IPNDM, Linear())],
    ids=lambda c: str(c)[:40],
)
def test_learned_times_are_better_on_other_latents(predictor, process):
    sampler, draw = PredictorCorrector(predictor(), denoise=Tweedie()), partial(draw_from, process)
    times = learn(sampler, process, draw, 5)
    assert times.dtype == torch.float64 and len(times) == 6
    assert float(times[0]) == 1 and float(times[-1]) >= process.t_min and bool((times.diff() < 0).all())
    others = group_of(sampler, draw, 2, None, None)
    learned, karras = (float(others.errors(grid).mean()) for grid in (times, Karras(5)(process)))
    assert learned < 0.8 * karras
    assert others.nfe == 5 * predictor.evaluations + 1
    if predictor is DDIM:
        assert torch.equal(times, learn(sampler, process, draw, 5)), "deterministic"


@pytest.mark.parametrize("denoise", [KeepNoise(), LastMean()], ids=lambda d: type(d).__name__)
def test_without_a_final_denoise_the_last_time_is_kept(denoise):
    sampler = PredictorCorrector(DPMSolver2M(), denoise=denoise)
    assert float(learn(sampler, PROCESS, partial(draw_from, PROCESS), 4, t_min=0.02)[-1]) == 0.02
    assert float(learn(sampler, PROCESS, partial(draw_from, PROCESS), 2)[-1]) == PROCESS.t_min


def test_one_free_time_is_that_of_a_search():
    sampler, draw = PredictorCorrector(DDIM(), denoise=KeepNoise()), partial(draw_from, PROCESS)
    fit = group_of(sampler, draw, 0, None, None)

    def error(t):
        return float(fit.errors(torch.tensor([1.0, t, PROCESS.t_min], dtype=torch.float64)).mean())

    best = minimize_scalar(error, bounds=(0.2, 0.8), method="bounded")
    assert error(float(learn(sampler, PROCESS, draw, 2)[1])) < 1.02 * best.fun


def test_parameters_of_zero_are_the_start_and_every_grid_falls():
    for steps in (1, 2, 9, 25):
        start = Karras(steps)(PROCESS)
        grid = LogSteps(PROCESS, start)
        torch.testing.assert_close(grid(grid.zero), start)
        for seed in range(3):
            times = grid(np.random.default_rng(seed).normal(size=len(grid.zero)))
            assert bool((times.diff() < 0).all()) and torch.equal(times[[0, -1]], start[[0, -1]])


class TestLevels:
    """Models that were trained at a few levels only."""

    PROCESS = SigmaTable(0.02, 10.0, 9)
    SAMPLER = PredictorCorrector(DPMSolver2M(), denoise=Tweedie())

    def test_the_times_are_levels_and_as_good_as_those_of_an_exhaustive_search(self):
        levels, draw = self.PROCESS.table_times(), partial(draw_from, self.PROCESS)
        times = learn(self.SAMPLER, self.PROCESS, draw, 4, levels=levels)
        assert bool(torch.isin(times, levels).all()) and float(times[0]) == 1 and bool((times.diff() < 0).all())
        choice = group_of(self.SAMPLER, draw, 1, None, levels)
        choices = [
            torch.tensor([1.0, *sorted(rest, reverse=True)], dtype=torch.float64)
            for rest in combinations(levels[:-1].tolist(), 4)
        ]
        assert float(choice.errors(times).mean()) == min(float(choice.errors(grid).mean()) for grid in choices)

    def test_as_many_steps_as_there_are_levels_take_all_and_more_are_refused(self):
        levels, draw = self.PROCESS.table_times(), partial(draw_from, self.PROCESS)
        assert torch.equal(learn(self.SAMPLER, self.PROCESS, draw, 8, levels=levels), levels.flip(0))
        with pytest.raises(InputError, match="steps=9: the model was trained at 9 levels; at most 8"):
            learn(self.SAMPLER, self.PROCESS, draw, 9, levels=levels)

    def test_many_levels_are_searched_in_strides(self):
        process = BetaTable(steps=60, beta_min=2e-3, beta_max=0.3)
        levels, draw = process.table_times(), partial(draw_from, process)
        times = learn(self.SAMPLER, process, draw, 4, levels=levels)
        assert bool(torch.isin(times, levels).all())
        fit, choice = (group_of(self.SAMPLER, draw, i, None, levels) for i in range(2))
        trials, start = Trials(fit, choice, 4, Bar()), Snapped(Karras(5))(process)
        trials.value(start[:5])
        before = trials.least
        fit_levels(trials, levels, start[:5], True)
        assert float(choice.errors(trials.best).mean()) == trials.least < before


class Bar:
    """A progress bar that shows nothing."""

    def update(self):
        pass


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (PredictorCorrector(SDEDPMSolver2M()), r"SDEDPMSolver2M\): draws noise.* --model.sampler.predictor IPNDM"),
        (PredictorCorrector(StochasticHeun()), "draws noise"),
        (PredictorCorrector(DDIM(eta=0.5)), "draws noise"),
        (PredictorCorrector(Heun(), Langevin()), r"Heun, Langevin\): draws noise"),
        (PredictorCorrector(RK45(), denoise=KeepNoise()), r"\(RK45\): chooses its own times"),
        (PredictorCorrector(NoPredictor()), r"\(NoPredictor\): has no solver"),
        (AnnealedLangevin(1e-6, grid=Karras(5)), r"AnnealedLangevin \(.*draws noise.*tune"),
        (LangevinDynamics(1e-5), "LangevinDynamics .*draws noise.*tune"),
        (PredictorCorrector(Restart(Heun(), 0.1, 1.0)), "draws noise"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_samplers_without_an_exact_end_are_refused(sampler, words):
    with pytest.raises(InputError, match=words):
        check_learnable(sampler, PROCESS)


def test_the_step_from_noise_alone_is_not_what_draws_noise():
    with pytest.raises(InputError, match=r"PredictorCorrector \(SDEDPMSolver2M\): draws noise"):
        check_learnable(PredictorCorrector(SDEDPMSolver2M()), Linear())


def test_deterministic_samplers_are_accepted():
    for sampler in (
        PredictorCorrector(UniPC(3)),
        ProbabilityFlow(Heun(), Karras(4)),
        PredictorCorrector(StochasticHeun(0.0)),
    ):
        check_learnable(sampler, PROCESS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"t_min": 0.0}, "t_min=0.0: must lie between 0 and 1"),
        ({"steps": 1, "times": [1.0, 0.1]}, "give both, or none"),
        ({"learned_for": "abc"}, "give both, or none"),
        ({"steps": 3, "times": [1.0, 0.1], "learned_for": "abc"}, "must be 4 for steps=3"),
        ({"steps": 1, "times": [0.1, 1.0], "learned_for": "abc"}, "that fall"),
    ],
)
def test_errors_name_the_value(options, words):
    with pytest.raises(InputError, match=words):
        Learned(**options)


def test_kept_times_are_the_grid_and_karras_until_then():
    grid = Learned(2)
    assert torch.equal(grid(PROCESS), Karras(2)(PROCESS)) and grid.learns
    grid.keep(torch.tensor([1.0, 0.3, 0.1], dtype=torch.float64), "abc")
    assert grid(PROCESS).tolist() == [1.0, 0.3, 0.1] == grid.times
    again = Learned(2, times=grid.times, learned_for=grid.learned_for)
    assert torch.equal(again(PROCESS), Given(grid.times)(PROCESS))
    with pytest.raises(InputError, match="grid=Learned: learns which levels to use"):
        Snapped(grid)


class KernelDensityScore(ExactScore):
    """The exact score of a kernel density of width h over points (M, D)."""

    def __init__(self, process, points, width):
        super().__init__(process)
        self.points, self.width = points, width

    def exact(self, x, alpha, sigma):
        variance = sigma**2 + self.width**2
        logits = (x @ self.points.T - self.points.square().sum(1) / 2) / variance
        return (logits.softmax(1) @ self.points - x) / variance


@pytest.mark.slow
@pytest.mark.parametrize(("evaluations", "most"), [(5, 0.2), (10, 0.04), (20, 0.004)])
def test_the_error_on_the_digits(evaluations, most):
    """Root mean square per pixel on 64 latents that the fit has not seen: IPNDM of order 4, VE from 80 to 0.002."""
    process, splits = VE(0.002, 80.0), Digits(data_range=(-1, 1)).splits
    points = torch.cat([splits.train.x, splits.held_out.x]).double().flatten(1)
    score = KernelDensityScore(process, 2 * points / points.max() - 1, 0.2)
    sampler = PredictorCorrector(IPNDM(4), denoise=Tweedie())

    def draw(numbers):
        return score, Latents(numbers, (64,), dtype=torch.float64)

    others = group_of(sampler, draw, 2, None, None)
    error = float(others.errors(learn(sampler, process, draw, evaluations - 1)).square().mean().sqrt())
    assert others.nfe == evaluations and error <= most
