"""Predictors: their orders of convergence, the laws of their samples, and their special cases."""

import math

import pytest
import torch
from conftest import PREDICTORS, PROCESSES, MixtureScore
from laws import Given, weak_error

from lightning_score.data import Mixture
from lightning_score.errors import InputError
from lightning_score.process import VE, VP, BetaTable, SigmaTable
from lightning_score.sampling import (
    DDIM,
    Ancestral,
    DPMSolver,
    DPMSolver2M,
    Heun,
    Karras,
    KeepNoise,
    NoiseStream,
    PredictorCorrector,
    ProcessTable,
    SDEDPMSolver2M,
    StochasticHeun,
    Uniform,
)
from lightning_score.sampling.multistep import Multistep

ORDER_PROCESSES = [p() if p not in (SigmaTable, BetaTable, VE) else None for p in PROCESSES]
ORDER_PROCESSES = [p for p in ORDER_PROCESSES if p is not None] + [
    VE(0.05, 5.0),
    SigmaTable(0.2, 2.0, 5),
    BetaTable(0.05, 0.3, 5),
]
MIXTURE = Mixture([[1.5], [-1.0], [0.2]], [0.4, 0.5, 0.2], [0.5, 0.3, 0.2])


@pytest.mark.parametrize("process", ORDER_PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    "predictor",
    [p() for p in PREDICTORS if p().evaluations and not p.adaptive and not issubclass(p, Multistep)],
    ids=lambda predictor: type(predictor).__name__,
)
def test_every_predictor_converges_at_its_declared_order(predictor, process):
    t_max, t_min = 0.8, 0.4  # entries of the tables, with one between; every step lies inside an interval
    errors = [weak_error(predictor, process, steps, t_max, t_min) for steps in (100, 200)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(predictor.order, abs=0.2), errors


@pytest.mark.parametrize("process", ORDER_PROCESSES, ids=lambda p: type(p).__name__)
def test_dpm_solver_of_order_three(process):
    """Its order shows on fewer steps, above the errors of rounding."""
    errors = [weak_error(DPMSolver(3), process, steps, 0.8, 0.4) for steps in (20, 40)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.3), errors


def law(mixture, process, t):
    """The distribution function of x_t for one-dimensional data from a mixture."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    law = torch.distributions.Normal(alpha * mixture.means[:, 0], (alpha**2 * mixture.stds**2 + sigma**2).sqrt())
    return lambda x: law.cdf(x[:, None]) @ mixture.weights


@pytest.mark.parametrize("process", [VP(), VE(0.01, 20.0)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kind", [p for p in PREDICTORS if p().evaluations], ids=lambda p: p.__name__)
def test_samples_of_a_mixture_follow_its_law(kind, process):
    """The statistic of Kolmogorov and Smirnov against the exact law at t_min."""
    n, t_min = 4000, 1e-2
    grid = Uniform(3, t_min) if kind.adaptive else Uniform(250, t_min)
    x = PredictorCorrector(kind(), grid=grid, denoise=KeepNoise())(
        MixtureScore(process, MIXTURE), NoiseStream(0, range(n), (1,), dtype=torch.float64)
    ).x
    ordered, ranks = x.flatten().sort().values, torch.arange(n + 1) / n
    exact = law(MIXTURE, process, torch.tensor(t_min, dtype=torch.float64))(ordered)
    distance = float(torch.maximum(ranks[1:] - exact, exact - ranks[:-1]).max())
    assert distance < 1.95 / math.sqrt(n) + 0.01, distance  # probability 0.001, and the error of the steps


def one_step(predictor, score, x, t, s, z=None, state=None):
    t, s = (torch.as_tensor(v, dtype=torch.float64) for v in (t, s))
    return predictor.step(score, x, t, s, Given(z), state)[0]


def test_first_steps_are_ddim_and_ancestral_sampling(noise_process):
    """DDIM with eta = 1 is ancestral sampling, and so is a first step of SDE-DPM-Solver++; without noise it is DDIM."""
    score, (x, z) = MixtureScore(noise_process), torch.randn(2, 20, 2, dtype=torch.float64)
    ancestral = one_step(Ancestral(), score, x, 0.63, 0.6, z)
    torch.testing.assert_close(one_step(DDIM(1.0), score, x, 0.63, 0.6, z), ancestral)
    torch.testing.assert_close(one_step(SDEDPMSolver2M(), score, x, 0.63, 0.6, z), ancestral)
    torch.testing.assert_close(one_step(DPMSolver2M(), score, x, 0.63, 0.6), one_step(DDIM(), score, x, 0.63, 0.6))


@pytest.mark.parametrize(
    "predictor",
    [
        *(DDIM(), DDIM(1.0), Ancestral(), Heun(), DPMSolver(2), DPMSolver(3)),
        *(kind() for kind in PREDICTORS if issubclass(kind, Multistep)),
    ],
    ids=lambda predictor: type(predictor).__name__,
)
def test_a_step_to_clean_data_denoises_with_one_evaluation(predictor):
    process = BetaTable(steps=200)
    score, (x, z) = MixtureScore(process), torch.randn(2, 20, 2, dtype=torch.float64)
    t = torch.tensor(0.005, dtype=torch.float64)
    before = torch.tensor(0.01, dtype=torch.float64)
    state = predictor.step(score, x, before, t, Given(z), predictor.init(process, torch.stack([before, t, 0 * t])))[1]
    moved = one_step(predictor, score, x, t, 0.0, z, state)
    assert score.evaluations == (predictor.evaluations + 1) * len(x)
    torch.testing.assert_close(moved, score.denoised(x, t))


@pytest.mark.parametrize("kind", [p for p in PREDICTORS if p().evaluations and not p.adaptive], ids=lambda p: p.__name__)
@pytest.mark.parametrize("process", [BetaTable(), SigmaTable(0.01, 10.0, 100)], ids=lambda p: type(p).__name__)
def test_every_predictor_reaches_clean_data_on_a_part_of_the_table(kind, process):
    sampler = PredictorCorrector(kind(), grid=ProcessTable(20))
    sampler.check(process)
    result = sampler(MixtureScore(process), NoiseStream(0, range(50), (2,)))
    assert bool(result.x.isfinite().all()) and result.nfe == 20 * kind().evaluations - (kind().evaluations - 1)
    assert result.nfe == sampler.evaluations(process)


class TestChurn:
    def test_raises_sigma_over_alpha_by_one_plus_gamma_up_to_the_end(self, noise_process):
        from_noise = noise_process.t_signal < 1  # in a first step, which is not Heun's
        times = Uniform(50 + from_noise, 0.1)(noise_process)[int(from_noise) :]
        raised = torch.stack(list(StochasticHeun(10.0, 0.0, 1e9).init(noise_process, times).values()))
        log_snr = noise_process.log_snr(times[:-1]) - 2 * math.log(1.2)
        capped = log_snr < noise_process.log_snr(torch.ones(1).double())
        torch.testing.assert_close(noise_process.log_snr(raised[~capped]), log_snr[~capped])
        assert bool(capped[0]) != from_noise and bool(((raised[capped] == 1) | (raised[capped] == times[:-1][capped])).all())

    def test_is_bounded_and_shared_among_the_steps(self):
        process, ratio = VE(0.002, 80.0), lambda t: float(process.sigma(t))
        for steps, gamma in ((10, math.sqrt(2) - 1), (200, 0.15)):
            times = Karras(steps)(process)
            state = StochasticHeun(30.0, 0.05, 50.0).init(process, times)
            for t in times[:-1]:
                expected = gamma if 0.05 <= ratio(t) <= 50 else 0.0
                assert ratio(state[float(t)]) / ratio(t) == pytest.approx(1 + expected), float(t)

    def test_none_is_heun(self, noise_process):
        grid, stream = Uniform(10, 0.1), lambda: NoiseStream(0, range(20), (2,), dtype=torch.float64)
        score = MixtureScore(noise_process)
        none, heun = (PredictorCorrector(p, grid=grid)(score, stream()).x for p in (StochasticHeun(0.0), Heun()))
        assert torch.equal(none, heun)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StochasticHeun(-1.0), "churn=-1.0"),
        (lambda: StochasticHeun(churn_min=2.0, churn_max=1.0), "churn_min=2.0, churn_max=1.0"),
        (lambda: StochasticHeun(churn_noise=-0.1), "churn_noise=-0.1"),
        (lambda: DDIM(-0.1), "eta=-0.1"),
        (lambda: DPMSolver(1), "order=1: must be 2 or 3"),
        (lambda: DPMSolver(5), "order=5: must be 2 or 3"),
    ],
)
def test_errors_name_the_value(make, words):
    with pytest.raises(InputError, match=words):
        make()
