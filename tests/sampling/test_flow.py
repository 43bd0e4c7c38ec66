"""The probability-flow ODE: its closed form, its tolerance, its inverse, and the law of its samples."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import PROCESSES, MixtureScore
from laws import gaussian
from scipy.integrate import solve_ivp

from lightning_score.data import Mixture
from lightning_score.errors import InputError
from lightning_score.process import VE, VP, BetaTable, Cosine, SigmaTable
from lightning_score.sampling import (
    RK45,
    DormandPrince,
    DPMSolver,
    Euler,
    Heun,
    HeunInTime,
    NoiseStream,
    PredictorCorrector,
    ProbabilityFlow,
    ProcessTable,
    ReverseDiffusion,
    Uniform,
)
from lightning_score.score.function import Conditioned, ScoreFunction

MEAN, STD = torch.tensor([0.5, -1.0], dtype=torch.float64), 0.5  # of conftest's Gaussian
MIXTURE = Mixture([[2.0, 0.0], [-1.0, 1.0], [0.0, -1.5]], [0.5, 0.4, 0.3], [0.5, 0.3, 0.2])
SMALL = {BetaTable: {"steps": 20, "beta_min": 0.005, "beta_max": 0.6}, SigmaTable: {"sigma_max": 10.0, "levels": 20}}
EVERY = [p(**SMALL.get(p, {})) for p in PROCESSES]


def law(process, t):
    """Mean and standard deviation of x_t for data N(MEAN, STD^2 I)."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return alpha * MEAN, (alpha**2 * STD**2 + sigma**2).sqrt()


@pytest.fixture
def standard():
    return torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("process", EVERY, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_flow_of_a_gaussian_is_affine_with_the_ratio_of_standard_deviations(process, dtype, standard):
    """In both directions; a thousandth of the standard deviation covers the steps' errors of 1e-5."""
    score, flow = MixtureScore(process), ProbabilityFlow()
    flow.check(process)
    (noise_mean, noise_std), (data_mean, data_std) = (law(process, t) for t in flow.grid(process))
    noise, data = noise_mean + noise_std * standard, data_mean + data_std * standard
    decoded, encoded = flow.decode(score, noise.to(dtype)), flow.encode(score, data.to(dtype))
    assert decoded.dtype == encoded.dtype == dtype
    assert float(((decoded - data) / data_std).abs().max()) < 2e-3
    assert float(((encoded - noise) / noise_std).abs().max()) < 2e-3


@pytest.mark.parametrize("process", [VP(), VE(), SigmaTable()], ids=lambda p: type(p).__name__)
def test_the_error_falls_with_the_tolerance(process, standard):
    errors, counts = [], []
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        score, flow = MixtureScore(process), ProbabilityFlow(RK45(tolerance, tolerance))
        (mean, std), (data_mean, data_std) = (law(process, t) for t in flow.grid(process))
        errors.append(float((flow.decode(score, mean + std * standard) - data_mean - data_std * standard).abs().max()))
        counts.append(score.evaluations / len(standard))
    assert all(later < earlier / 5 for earlier, later in pairwise(errors)), errors
    assert errors[-1] < 1e-6 and counts == sorted(counts)
    assert all((n - 1) % 6 == 0 for n in counts), counts  # 1 + 6 per step, counted


def test_the_solver_agrees_with_a_closed_form_in_both_directions():
    """dy/dt = cos(t) y, every row with its own scale, from 0 to 3 and back."""
    y = torch.tensor([[1.0, 2.0], [1e3, -5.0], [0.0, 1e-3]], dtype=torch.float64)
    solve = DormandPrince(1e-9, 1e-9)
    ends = torch.zeros(()), torch.tensor(3.0)
    there = solve(lambda v, t: t.cos().unsqueeze(1) * v, y, *ends)
    torch.testing.assert_close(there, y * math.exp(math.sin(3.0)), rtol=1e-7, atol=1e-7)
    back = solve(lambda v, t: t.cos().unsqueeze(1) * v, there, *reversed(ends))
    torch.testing.assert_close(back, y, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("process", [VP(), VE(0.01, 8.0)], ids=lambda p: type(p).__name__)
def test_the_flow_of_a_mixture_agrees_with_scipy_in_time(process):
    """scipy integrates dx = [f x - g^2 score/2] dt itself, not in our variables."""
    score, t_min = MixtureScore(process, MIXTURE), 1e-3
    latent = process.prior(torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64))

    def slope(t, x):
        time = torch.tensor(t, dtype=torch.float64)
        x = torch.from_numpy(x).unsqueeze(0)
        return (process.drift(time) * x - process.diffusion(time) ** 2 / 2 * score(x, time)).squeeze(0).numpy()

    expected = [solve_ivp(slope, (1, t_min), z.numpy(), rtol=1e-9, atol=1e-9).y[:, -1] for z in latent]
    ours = ProbabilityFlow(RK45(1e-9, 1e-9), Uniform(1, t_min)).decode(score, latent)
    np.testing.assert_allclose(ours.numpy(), np.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("process", [VP(), SigmaTable()], ids=lambda p: type(p).__name__)
def test_sample_k_is_the_same_in_any_batch(process):
    score, flow = MixtureScore(process, MIXTURE), ProbabilityFlow()
    together = flow(score, NoiseStream(0, range(6), (2,), dtype=torch.float64)).x
    apart = [flow(score, NoiseStream(0, [k], (2,), dtype=torch.float64)) for k in range(6)]
    torch.testing.assert_close(together, torch.cat([a.x for a in apart]), rtol=1e-10, atol=1e-10)
    assert len({a.nfe for a in apart}) > 1  # each takes its own steps


def test_a_bad_row_becomes_nan_and_changes_no_other_row():
    solve, y = DormandPrince(), torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    ends = torch.zeros(()), torch.ones(())
    with pytest.warns(UserWarning, match="1 of 2 ODEs became NaN"):
        result = solve(lambda v, t: torch.where((v > 2.8) & (t > 0.3).unsqueeze(1), torch.nan, v), y, *ends)
    alone = solve(lambda v, t: v, y[:1], *ends)
    assert bool(result[1].isnan()) and torch.equal(result[:1], alone)


@pytest.mark.parametrize(
    "flow",
    [ProbabilityFlow(), ProbabilityFlow(Heun(), Uniform(2000)), ProbabilityFlow(Euler(), Uniform(4000))],
    ids=["rk45", "heun", "euler"],
)
def test_encode_and_decode_are_inverses(flow):
    score = MixtureScore(VE(0.05, 5.0), MIXTURE)
    x = MIXTURE.sample(5, torch.Generator().manual_seed(0)).double()
    latent = flow.encode(score, x)
    assert not latent.requires_grad and not torch.allclose(latent, x)
    torch.testing.assert_close(flow.decode(score, latent), x, rtol=0, atol=2e-2)


@pytest.mark.parametrize("process", [VP(), BetaTable(5e-4, 0.1, 200)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("predictor", [DPMSolver(2), DPMSolver(3), HeunInTime()], ids=["two", "three", "in time"])
def test_singlestep_methods_encode_as_the_exact_flow_does(predictor, process):
    """Also where f and g jump, at the entries of a table."""
    score, grid = MixtureScore(process, MIXTURE), Uniform(333, 0.05)
    x = MIXTURE.sample(5, torch.Generator().manual_seed(0)).double()
    latent = ProbabilityFlow(predictor, grid).encode(score, x)
    torch.testing.assert_close(
        latent, ProbabilityFlow(RK45(1e-8, 1e-8), Uniform(1, 0.05)).encode(score, x), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(ProbabilityFlow(predictor, grid).decode(score, latent), x, rtol=0, atol=1e-3)


def test_interpolation_runs_from_one_input_to_the_other():
    flow, score = ProbabilityFlow(), MixtureScore(VP(), MIXTURE)
    x0, x1 = MIXTURE.sample(8, torch.Generator().manual_seed(0)).double().split(4)
    path = flow.interpolate(score, x0, x1, 5)
    assert path.shape == (5, 4, 2)
    torch.testing.assert_close(path[0], x0, rtol=0, atol=1e-2)
    torch.testing.assert_close(path[-1], x1, rtol=0, atol=1e-2)
    same = flow.interpolate(score, x0, x0, 3)
    torch.testing.assert_close(same, x0.expand(3, 4, 2), rtol=0, atol=1e-2)


def test_labels_and_evaluation_mode():
    """A score given the labels is encoded with them, and dropout is off only while it is."""

    class Shift(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = torch.nn.Dropout(0.5)

        def forward(self, x, noise_label, cond):
            return self.dropout(x) * 0.5 + cond.to(x).unsqueeze(1)

    from lightning_score.score.parametrization import Noise

    score = ScoreFunction(Shift(), VP(), Noise())
    x, flow = torch.zeros(2, 3, dtype=torch.float64), ProbabilityFlow()
    a = flow.encode(Conditioned(score, torch.tensor([0, 1])), x)
    assert score.network.dropout.training and not torch.allclose(a[0], a[1])
    torch.testing.assert_close(a, flow.encode(Conditioned(score, torch.tensor([0, 1])), x))


@pytest.mark.parametrize("process", [VP(), VE(0.01, 8.0), Cosine()], ids=lambda p: type(p).__name__)
def test_samples_of_a_mixture_follow_its_law(process):
    n = 3000
    sampler = PredictorCorrector(RK45(1e-3, 1e-3), grid=Uniform(1))
    sampler.check(process)
    x = sampler(MixtureScore(process, MIXTURE), NoiseStream(0, range(n), (2,))).x.double()
    reference = MIXTURE.sample(100_000, torch.Generator().manual_seed(0))
    for moment in (lambda v: v, lambda v: v**2, lambda v: v[:, :1] * v[:, 1:]):
        difference, spread = moment(x).mean(0) - moment(reference).mean(0), moment(reference).std(0) / math.sqrt(n)
        assert (difference.abs() < 4 * spread + 0.02).all(), (difference, spread)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RK45(rtol=-1), "rtol=-1"),
        (lambda: RK45(atol=0), "atol=0"),
        (lambda: PredictorCorrector(RK45(), grid=ProcessTable()).check(BetaTable()), "ends at clean data"),
        (lambda: ProbabilityFlow(ReverseDiffusion()).check(VP()), "draws noise"),
        (lambda: ProbabilityFlow().interpolate(gaussian(VP()), torch.zeros(1, 1), torch.zeros(1, 1), 1), "n=1"),
    ],
)
def test_errors_name_the_value(make, words):
    with pytest.raises(InputError, match=words):
        make()
