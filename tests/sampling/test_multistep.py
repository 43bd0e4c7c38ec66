"""Multistep predictors: orders, special cases, and what they leave behind."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from conftest import PREDICTORS, MixtureScore
from laws import MEAN, STD, Given, gaussian, weak_error

from lightning_score.data import Mixture
from lightning_score.errors import InputError
from lightning_score.process import VE, VP
from lightning_score.sampling import (
    DDIM,
    IPNDM,
    RK45,
    AdamsBashforth,
    DPMSolver2M,
    DPMSolver3M,
    SASolver,
    SDEDPMSolver2M,
    SDEDPMSolver3M,
    UniPC,
)
from lightning_score.sampling.multistep import Multistep

MIXTURE = Mixture([[1.5], [-1.0], [0.2]], [0.4, 0.5, 0.2], [0.5, 0.3, 0.2])
MULTISTEP = [kind for kind in PREDICTORS if issubclass(kind, Multistep)]
CONTINUOUS = pytest.mark.parametrize("process", [VP(), VE(0.05, 5.0)], ids=lambda p: type(p).__name__)


def name(predictor):
    return "-".join([type(predictor).__name__, *map(str, vars(predictor).values())])


def endpoint_error(predictor, score, times, exact):
    """The largest error at the last of the times, after first steps that are replaced by the exact flow."""
    x, state = exact[0], predictor.init(score.process, times)
    for i, (t, s) in enumerate(pairwise(times)):
        x, state = predictor.step(score, x, t, s, Given(None), state)
        if i + 1 < max(predictor.points, predictor.refined_points):
            x = exact[i + 1]
    return float((x - exact[-1]).abs().max())


@cache
def flow_of_a_mixture(process):
    """The score of a mixture, times, and its flow at them to twelve digits."""
    score, solver = MixtureScore(process, MIXTURE), RK45(1e-12, 1e-12)
    times = torch.linspace(0.8, 0.4, 81, dtype=torch.float64)
    exact = [torch.linspace(-2, 2, 11, dtype=torch.float64)[:, None] * process.sigma(times[0])]
    for t, s in pairwise(times):
        exact.append(solver.step(score, exact[-1], t, s, Given(None), None)[0])
    return score, times, exact


def flow_of_a_gaussian(process, times):
    """Its score, and its flow at the times, which is known."""
    stds = (process.alpha(times) ** 2 * STD**2 + process.sigma(times) ** 2).sqrt()
    z = torch.linspace(-2, 2, 11, dtype=torch.float64)[:, None]
    return gaussian(process), [alpha * MEAN + std * z for alpha, std in zip(process.alpha(times), stds, strict=True)]


@CONTINUOUS
@pytest.mark.parametrize(
    "predictor",
    [
        DPMSolver2M(),
        DPMSolver3M(),
        *(AdamsBashforth(variable, order) for variable in ("sigma", "log_sigma", "time") for order in (1, 2, 3, 4)),
        *(UniPC(order, refine) for order in (1, 2, 3, 4) for refine in (False, True)),
        *(SASolver(points, refined, 0.0) for points, refined in ((2, 0), (2, 2), (2, 3), (3, 4))),
    ],
    ids=name,
)
def test_the_measured_order_is_the_declared_one(predictor, process):
    score, times, exact = flow_of_a_mixture(process)
    errors = [endpoint_error(predictor, score, times[::stride], exact[::stride]) for stride in (2, 1)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(predictor.order, abs=0.3), errors


@CONTINUOUS
@pytest.mark.parametrize("predictor", [IPNDM(order) for order in (1, 2, 3, 4)], ids=name)
def test_ipndm_has_its_order_on_equal_steps_of_sigma_and_two_at_most_on_others(predictor, process):
    first, last = process.noise_level(torch.tensor([0.8, 0.4], dtype=torch.float64))
    errors = {}
    for n in (200, 400):
        equal = process.time_of(torch.lerp(first, last, torch.linspace(0, 1, n + 1, dtype=torch.float64)))
        others = torch.linspace(0.8, 0.4, n + 1, dtype=torch.float64)
        grids = [(times, *flow_of_a_gaussian(process, times)) for times in (equal, others)]
        errors[n] = [endpoint_error(predictor, score, times, exact) for times, score, exact in grids]
    orders = [math.log2(a / b) for a, b in zip(errors[200], errors[400], strict=True)]
    assert orders[0] == pytest.approx(predictor.order, abs=0.3) and orders[1] == pytest.approx(
        min(predictor.order, 2), abs=0.3
    )


@CONTINUOUS
@pytest.mark.parametrize(
    "predictor",
    [
        SDEDPMSolver2M(),
        *(
            SASolver(points, refined, tau, 0.0, 1e9)
            for points, refined in ((1, 0), (1, 2), (2, 0), (2, 2))
            for tau in (0.5, 1.0)
        ),
    ],
    ids=name,
)
def test_the_law_of_stochastic_methods_converges_at_the_declared_order(predictor, process):
    errors = [weak_error(predictor, process, steps, 0.8, 0.4) for steps in (50, 100)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(predictor.order, abs=0.3), errors


@pytest.mark.parametrize("predictor", [SDEDPMSolver3M(), SASolver(3, 3, 1.0, 0.0, 1e9)], ids=name)
def test_more_images_make_the_law_no_worse(predictor):
    for process in (VP(), VE(0.05, 5.0)):
        errors = [weak_error(kind, process, 50, 0.8, 0.4) for kind in (predictor, SDEDPMSolver2M())]
        assert errors[0] < errors[1] / 2


def run(predictor, score, x, times, z=None):
    state = predictor.init(score.process, times)
    for t, s in pairwise(times):
        x, state = predictor.step(score, x, t, s, Given(z), state)
    return x


def test_special_cases_are_other_methods(noise_process):
    """One prediction is DDIM; SA-Solver without noise is Adams-Bashforth on the denoised image, with it SDE-DPM-Solver++."""
    score, (x, z) = MixtureScore(noise_process), torch.randn(2, 20, 2, dtype=torch.float64)
    times = torch.linspace(0.98, 0.3, 9, dtype=torch.float64)
    ddim = run(DDIM(), score, x, times)
    for one in (IPNDM(1), AdamsBashforth("time", 1), UniPC(1, False), SASolver(1, 0, 0.0)):
        torch.testing.assert_close(run(one, score, x, times), ddim)
    torch.testing.assert_close(run(SASolver(1, 0, 1.0, 0.0, 1e9), score, x, times, z), run(DDIM(1.0), score, x, times, z))
    torch.testing.assert_close(
        run(SASolver(3, 0, 0.0), score, x, times), run(SASolver(3, 0, 1.0, 1e8, 1e9), score, x, times)
    )
    torch.testing.assert_close(run(UniPC(2, False), score, x, times), run(DPMSolver2M(), score, x, times))


@pytest.mark.parametrize(("kind", "rate"), [(DPMSolver3M, 1), (SDEDPMSolver3M, 2)])
def test_the_step_with_three_images_is_the_published_one(kind, rate, noise_process):
    """With a half of the parabola's second derivative. (diffusers' form for the SDE has it with the wrong sign.)"""
    score, (x, z) = MixtureScore(noise_process), torch.randn(2, 20, 2, dtype=torch.float64)
    times = torch.tensor([0.9, 0.8, 0.65, 0.5], dtype=torch.float64)
    state = kind().init(noise_process, times)
    for t, s in pairwise(times[:-1]):
        _, state = kind().step(score, x, t, s, Given(z), state)
    moved, state = kind().step(score, x, times[2], times[3], Given(z), state)
    (d0, d1, d2), (l2, l1, l0, ls) = state.predictions, noise_process.log_snr(times) / 2
    h, r0, r1 = rate * (ls - l0), (l0 - l1) / (ls - l0), (l1 - l2) / (ls - l0)
    slope_0, slope_1 = (d0 - d1) / r0, (d1 - d2) / r1
    second = (slope_0 - slope_1) / (r0 + r1)
    phi_1 = -torch.expm1(-h)
    phi_2 = 1 - phi_1 / h
    alpha, sigma, ratio = noise_process.alpha(times[3]), noise_process.sigma(times[3]), torch.exp(-(rate - 1) * (ls - l0))
    expected = sigma / noise_process.sigma(times[2]) * ratio * x + sigma * (1 - ratio**2).sqrt() * z
    expected += alpha * (phi_1 * d0 + phi_2 * (slope_0 + r0 * second) + (0.5 - phi_2 / h) * second)
    torch.testing.assert_close(moved, expected)


def test_equal_steps_have_the_weights_of_adams_and_bashforth():
    """IPNDM is Adams-Bashforth in sigma/alpha there."""
    process, x = VE(0.05, 5.0), torch.randn(20, 2, dtype=torch.float64)
    times = process.time_of(torch.linspace(5.0, 1.0, 9, dtype=torch.float64))
    for order in (2, 3, 4):
        moved = [run(kind, MixtureScore(process), x, times) for kind in (IPNDM(order), AdamsBashforth("sigma", order))]
        torch.testing.assert_close(*moved, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", MULTISTEP, ids=lambda kind: kind.__name__)
def test_a_step_elsewhere_starts_anew_and_unknown_steps_are_computed(kind, noise_process):
    """The state knows neither the times before a jump nor those that are not on the grid."""
    score, (x, z) = MixtureScore(noise_process), torch.randn(2, 20, 2, dtype=torch.float64)
    times = torch.linspace(0.9, 0.3, 7, dtype=torch.float64)
    state = kind().init(noise_process, times)
    for t, s in pairwise(times):
        _, state = kind().step(score, x, t, s, Given(z), state)
    t, s = torch.tensor([0.63, 0.6], dtype=torch.float64)
    jumped = kind().step(score, x, t, s, Given(z), state)[0]
    torch.testing.assert_close(jumped, kind().step(score, x, t, s, Given(z), None)[0])
    torch.testing.assert_close(run(kind(), score, x, times, z), _without_table(kind(), score, x, times, z))


def _without_table(predictor, score, x, times, z):
    state = None
    for t, s in pairwise(times):
        x, state = predictor.step(score, x, t, s, Given(z), state)
    return x


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: IPNDM(5), "order=5: must lie between 1 and 4"),
        (lambda: AdamsBashforth("sigma", 0), "order=0: must lie between 1 and 4"),
        (lambda: UniPC(5), "order=5: must lie between 1 and 4"),
        (lambda: SASolver(0), "predictor_order=0: must lie between 1 and 4"),
        (lambda: SASolver(2, 5), "corrector_order=5: must lie between 0"),
        (lambda: SASolver(tau=-1.0), "tau=-1.0: must be at least 0"),
        (lambda: SASolver(tau_min=2.0, tau_max=1.0), "tau_min=2.0, tau_max=1.0"),
        (lambda: AdamsBashforth("lambda"), "variable=lambda: must be sigma, log_sigma or time"),
    ],
)
def test_errors_name_the_value(make, words):
    with pytest.raises(InputError, match=words):
        make()
