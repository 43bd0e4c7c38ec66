"""Restart: its moves, the law of its samples, and how it contracts errors."""

import math

import pytest
import torch
from conftest import PREDICTORS, MixtureScore, QuickNoise
from laws import gaussian, moments

from lightning_score.data import Mixture
from lightning_score.errors import InputError
from lightning_score.process import VE, VP, BetaTable
from lightning_score.sampling import (
    DPMSolver,
    DPMSolver2M,
    Geometric,
    Heun,
    Karras,
    KeepNoise,
    Langevin,
    NoiseStream,
    NoPredictor,
    PredictorCorrector,
    Prior,
    ProbabilityFlow,
    ProcessTable,
    Restart,
    Tweedie,
)

PROCESS = VE(0.002, 80.0)


def levels(moves, process=PROCESS):
    return [float(process.noise_level(move.end)) for move in moves]


def test_moves_go_up_by_noise_and_down_the_karras_grid():
    grid = Karras(18)
    sampler = PredictorCorrector(Restart(Heun(), 0.06, 0.3, steps=2, repeats=3), grid=grid)
    plain, moves = PROCESS.noise_level(grid(PROCESS))[1:].tolist(), sampler.moves(PROCESS)
    nearest = min(plain, key=lambda level: abs(math.log(level / 0.06)))
    middle = ((0.3 ** (1 / 7) + nearest ** (1 / 7)) / 2) ** 7
    start = plain.index(nearest) + 1
    expected = plain[:start] + 3 * [0.3, middle, nearest] + plain[start:]
    assert levels(moves) == pytest.approx(expected)
    assert [move.method.evaluations for move in moves] == [2] * start + 3 * [0, 2, 2] + [2] * (18 - start)


def test_evaluations_are_those_of_the_paper():
    """NFE 43 for CIFAR-10: 18 times with zero last, and [3, 2, 0.06, 0.30], whose count of times is one more than ours."""
    sampler = PredictorCorrector(Restart(None, 0.06, 0.3, 2, 2), grid=Karras(17), denoise=Tweedie())
    result = sampler(gaussian(PROCESS), NoiseStream(0, range(3), (1,)))
    assert result.nfe == sampler.evaluations(PROCESS) == 2 * 17 + 1 + 2 * 2 * 2 == 43


def test_several_intervals_and_settings_for_each():
    """Those of the paper for ImageNet 64."""
    low, high = [19.35, 1.09, 0.59, 0.30, 0.06], [40.79, 1.92, 1.09, 0.59, 0.30]
    steps, repeats = [3, 3, 3, 3, 5], [1, 1, 5, 5, 6]
    predictor = Restart(Heun(), low, high, steps, repeats)
    moves = PredictorCorrector(predictor, grid=Karras(35)).moves(PROCESS)
    ups = [round(level, 2) for level, move in zip(levels(moves), moves, strict=True) if move.method.evaluations == 0]
    assert ups == [40.79, 1.92, *[1.09] * 5, *[0.59] * 5, *[0.30] * 6]
    assert len(moves) == 35 + sum(k * (n + 1) for n, k in zip(steps, repeats, strict=True))


@pytest.mark.parametrize("process", [VP(), VE(0.01, 20.0), BetaTable()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kind", [k for k in PREDICTORS if k().evaluations], ids=lambda k: k.__name__)
def test_samples_keep_the_law_of_a_gaussian(kind, process):
    """With any other predictor, since noise and steps take one marginal to another."""
    grid = Geometric(60, float(process.time_of(torch.tensor(0.05).double())))
    predictor = Restart(kind(), [0.5, 0.1], [2.0, 0.6], steps=[15, 20], repeats=2)
    sampler = PredictorCorrector(predictor, grid=grid, denoise=KeepNoise())
    sampler.check(process)
    if kind().adaptive:
        return
    times, moves = grid(process), sampler.moves(process)
    states = {method: method.init(process, times) for method in {move.method for move in moves}}
    first, last = (tuple(float(c) for c in (process.alpha(t), process.sigma(t))) for t in times[[0, -1]])
    law = first[0] * 0.5, (first[0] * 0.4) ** 2 + first[1] ** 2
    mean, variance = moments(gaussian(process), moves, states, *law)
    assert mean == pytest.approx(last[0] * 0.5, abs=0.03)
    assert math.sqrt(variance) == pytest.approx(math.hypot(last[0] * 0.4, last[1]), abs=0.03)


def test_samples_of_a_mixture_follow_its_law():
    """The statistic of Kolmogorov and Smirnov against the exact law."""
    mixture, n = Mixture([[1.5], [-1.0], [0.2]], [0.4, 0.5, 0.2], [0.5, 0.3, 0.2]), 4000
    predictor = Restart(Heun(), [1.0, 0.06], [4.0, 0.3], steps=[12, 6], repeats=[2, 3])
    sampler = PredictorCorrector(predictor, grid=Karras(40), denoise=Tweedie())
    x = sampler(MixtureScore(PROCESS, mixture), NoiseStream(0, range(n), (1,), dtype=torch.float64)).x
    normal = torch.distributions.Normal(mixture.means[:, 0], mixture.stds)
    exact = normal.cdf(x.flatten().sort().values[:, None]) @ mixture.weights
    ranks = torch.arange(n + 1) / n
    distance = float(torch.maximum(ranks[1:] - exact, exact - ranks[:-1]).max())
    assert distance < 1.95 / math.sqrt(n) + 0.01, distance


@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_contracts_an_error_made_before(repeats):
    """On N(m, v), the flow from sigma_max back to sigma_min shrinks distances by r = sqrt((v + min^2)/(v + max^2)), while
    noise leaves them: a wrong mean shrinks by r^K, as by theorem 1 of Xu et al. 2023 errors do by some power of K.
    """
    score, grid = gaussian(PROCESS, 0.5, 0.4), Karras(60)
    predictor = Restart(Heun(), 0.1, 0.8, steps=60, repeats=repeats)
    t = grid(PROCESS)
    start = int((PROCESS.noise_level(t).log() - math.log(0.1)).abs().argmin())
    low = float(PROCESS.noise_level(t[start]))
    moves = predictor.plan(PROCESS, t)[start - 1]
    states = {move.method: move.method.init(PROCESS, t) for move in moves}
    shifted, exact = (torch.full((2000, 1), mean).double() for mean in (0.9, 0.5))
    for method, time, s, _ in moves[1:]:
        noise = QuickNoise((2000, 1), seed=len(states))
        shifted, _ = method.step(score, shifted, time, s, noise, states[method])
        noise = QuickNoise((2000, 1), seed=len(states))
        exact, states[method] = method.step(score, exact, time, s, noise, states[method])
    ratio = math.sqrt((0.16 + low**2) / (0.16 + 0.64))
    assert float((shifted - exact).mean()) == pytest.approx(0.4 * ratio**repeats, rel=1e-3)


def test_mends_samples_of_a_wrong_start():
    """Half as wide as it should be: a flow keeps that error, and every restart loses a part of it."""
    mixture, n = Mixture([[1.5], [-1.0]], [0.2, 0.2], [0.7, 0.3]), 2000

    def error(predictor):
        sampler = PredictorCorrector(predictor, grid=Karras(30), denoise=Tweedie(), initial=Prior(40.0))
        x = sampler(MixtureScore(PROCESS, mixture), NoiseStream(1, range(n), (1,), dtype=torch.float64)).x
        normal = torch.distributions.Normal(mixture.means[:, 0], mixture.stds)
        exact = normal.cdf(x.flatten().sort().values[:, None]) @ mixture.weights
        return float((exact - (torch.arange(n) + 0.5) / n).abs().mean())

    flow, once, often = error(Heun()), *(error(Restart(Heun(), 0.5, 1.0, 3, k)) for k in (1, 6))
    assert flow > 0.09 and 0.35 * flow < once < 0.8 * flow and often < 0.3 * flow, (flow, once, often)


def test_a_multistep_predictor_begins_anew():
    """The first step down and the first after the restart are DDIM's, of first order, with one evaluation each."""
    t = Karras(10)(PROCESS)
    plan = Restart(DPMSolver2M(), 1.0, 5.0, steps=3, repeats=1).plan(PROCESS, t)
    (i,) = [i for i, moves in enumerate(plan) if len(moves) > 1]
    _, up, *down = plan[i]
    assert up.method.evaluations == 0 and len(down) == 3
    assert len({down[0].method, plan[0][0].method, plan[i + 1][0].method}) == 3
    assert all(not move.method.init(PROCESS, t).predictions for move in (down[0], plan[i + 1][0]))
    assert plan[0][0].method is plan[i][0].method and down[0].method is down[-1].method


def test_with_a_corrector_samples_do_not_depend_on_the_batch_and_every_move_is_seen():
    predictor = Restart(DPMSolver(3), [1.0, 0.06], [4.0, 0.3], repeats=2)
    for predict_first in (True, False):
        sampler = PredictorCorrector(predictor, Langevin(), 2, predict_first, Karras(9))
        sampler.check(PROCESS)
        seen = []

        def observe(score, move, before, after, state, seen=seen):
            seen.append(move)

        score = MixtureScore(PROCESS)
        together = sampler(score, NoiseStream(3, range(4), (2,)), trajectory=True, observe=observe)
        assert len(seen) == len(sampler.moves(PROCESS)) == len(together.trajectory) - 1
        assert together.nfe == sampler.evaluations(PROCESS) == 9 * 3 + 2 * 2 * 2 * 3 + 9 * 2
        apart = torch.cat([sampler(score, NoiseStream(3, part, (2,))).x for part in ([0], [1, 2], [3])])
        torch.testing.assert_close(together.x, apart)


def test_reaches_clean_data_with_the_evaluations_announced():
    process = BetaTable()
    sampler = PredictorCorrector(Restart(Heun(), 0.1, 0.5, repeats=2), grid=ProcessTable(20))
    sampler.check(process)
    result = sampler(MixtureScore(process), NoiseStream(0, range(3), (2,)))
    assert result.nfe == sampler.evaluations(process) == 2 * 20 - 1 + 2 * 2 * 2 and bool(result.x.isfinite().all())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Restart(NoPredictor()), "predictor=NoPredictor: Restart needs one that moves"),
        (lambda: Restart(sigma_min=0.3, sigma_max=0.06), "sigma_min=0.3, sigma_max=0.06: need 0 < sigma_min < sigma_max"),
        (lambda: Restart(sigma_min=0.0), "sigma_min=0.0"),
        (lambda: Restart(repeats=0), "repeats=0: need at least one"),
        (lambda: Restart(steps=0), "steps=0: need at least one"),
        (lambda: Restart(steps=2000, repeats=2000), "steps x repeats=4000000: at most"),
        (
            lambda: Restart(sigma_min=[0.1, 0.2], sigma_max=[0.3, 0.4, 0.5]),
            r"sigma_min=\[0.1, 0.2\]: .* each of 3 intervals",
        ),
        (lambda: Restart(sigma_min=[]), r"sigma_min=\[\]"),
        (lambda: Restart(restart_noise=0), "restart_noise=0"),
        (lambda: check(Restart(sigma_max=100.0)), "sigma_max=100: VE does not have this noise level .* nearest is 80"),
        (lambda: check(Restart(sigma_min=0.001)), "sigma_min=0.001: VE does not have this noise level"),
        (lambda: check(Restart(), 3), "sigma_min=0.06, sigma_max=0.3: must hold .* below sigma_max"),
        (lambda: ProbabilityFlow(Restart(), Karras()).check(PROCESS), "ProbabilityFlow: the predictor draws noise"),
    ],
)
def test_errors_name_the_value(make, words):
    with pytest.raises(InputError, match=words):
        make()


def check(predictor, steps=18):
    PredictorCorrector(predictor, grid=Karras(steps)).check(PROCESS)
