"""Metropolis-adjusted and underdamped correctors: laws without the bias of the step size."""

import math

import pytest
import torch
from conftest import ImageScore, MixtureScore, QuickNoise
from scipy import stats

from lightning_score.data import Mixture
from lightning_score.errors import InputError
from lightning_score.process import VE
from lightning_score.sampling import HMC, MALA, Langevin, NoiseStream, UnderdampedLangevin
from lightning_score.sampling.metropolis import lobatto, path_integral
from lightning_score.sampling.noise import NoNoise

T = torch.zeros((), dtype=torch.float64)
MIXTURE = Mixture([[-0.9], [0.9]], [0.45, 0.25], [0.6, 0.4])


def run(corrector, score, x, noise, steps):
    """x after some steps at t = 0, and the share of moves that were accepted."""
    state, moved = corrector.init(score.process, T.reshape(1)), 0.0
    for _ in range(steps):
        y, state = corrector.step(score, x, T, T, noise, state)
        moved += float((y != x).flatten(1).any(1).double().mean()) / steps
        x = y
    return x, moved


@pytest.mark.parametrize("nodes", range(2, 8))
def test_lobatto_is_exact_to_its_degree(nodes):
    u, w = (torch.tensor(v, dtype=torch.float64) for v in lobatto(nodes))
    for degree in range(2 * nodes - 2):
        assert float((w * u**degree).sum()) == pytest.approx(1 / (degree + 1), abs=1e-12)


def test_path_integral_is_the_ratio_of_the_densities():
    """Against the exact density: the trapezoid on a Gaussian, and on a mixture the more nodes the better."""
    x, y = torch.randn(2, 50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, two = Mixture([[0.5, 0.0, 1.0]], [0.7]), Mixture([[0.5, 0.0, 1.0], [-1.0, 0.2, 0.0]], [0.7, 0.9])

    def error(mixture, nodes):
        score = MixtureScore(VE(0.1, 1.0), mixture)
        integral, score_y = path_integral(score, x, y, T, score(x, T), nodes)
        assert score.evaluations == 50 * nodes
        torch.testing.assert_close(score_y, score(y, T))
        back, _ = path_integral(score, y, x, T, score_y, nodes)
        torch.testing.assert_close(integral, -back)
        exact = mixture.log_prob(y, 1.0, score.process.sigma(T)) - mixture.log_prob(x, 1.0, score.process.sigma(T))
        return float((integral - exact).abs().max())

    assert error(one, 2) < 1e-12
    errors = [error(two, nodes) for nodes in (2, 3, 5, 8, 20)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-5


@pytest.mark.parametrize("corrector", [MALA(0.45, 2), HMC(0.9, 3), UnderdampedLangevin(0.9)], ids=lambda c: type(c).__name__)
def test_a_gaussian_keeps_exactly_its_variance_where_langevin_has_a_bias(corrector):
    """Unadjusted, e/(2 v) = 0.2025 makes the variance v/(1 - e/(2 v)) = 1.25 v."""
    score, n = ImageScore(VE(1.0, 2.0), 0.5, 1e-3), 60_000
    noise = QuickNoise((n, 1))
    x = 0.5 + noise.normal()
    adjusted, _ = run(corrector, score, x, noise, 40)
    biased, _ = run(Langevin(0.45), score, x, noise, 40)
    assert float(adjusted.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / n))
    assert float(adjusted.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(n))
    assert float(biased.var()) == pytest.approx(1 / (1 - 0.2025), abs=0.04)


def test_underdamped_langevin_is_exact_in_x_for_a_gaussian():
    """Its affine map of (x, p), found by probing, has the stationary variance v to rounding."""
    score, corrector = ImageScore(VE(1.0, 2.0), 0.0, 0.5), UnderdampedLangevin(1.1, 0.7)
    x, p, z = torch.eye(3, dtype=torch.float64).unsqueeze(-1)

    class Given:
        def normal(self):
            return z

    after = torch.cat(corrector.step(score, x, T, T, Given(), p), dim=1)  # rows: the images of x, p and z
    a, c = after[:2].T, after[2]
    stationary = torch.linalg.solve(torch.eye(4, dtype=torch.float64) - torch.kron(a, a), torch.kron(c, c))
    assert float(stationary[0]) == pytest.approx(1.25, rel=1e-12)
    assert float(stationary[1]) == pytest.approx(0, abs=1e-12)


def test_underdamped_langevin_keeps_its_momentum():
    """Its momentum, of unit variance, lives on at the next level with the correlation of the same step within one."""
    score, corrector = ImageScore(VE(0.1, 2.0), 0.5, 1e-3), UnderdampedLangevin(0.2, 1.0)
    noise = QuickNoise((20_000, 1))
    x, p = 0.5 + 0.1 * noise.normal(), None
    for _ in range(50):
        before = p
        x, p = corrector.step(score, x, T, T, noise, p)
    assert float(p.var()) == pytest.approx(1, abs=0.05)
    within = float((before * p).mean())
    assert 0.7 < within < math.exp(-0.2)
    t = torch.tensor(0.1, dtype=torch.float64)
    x_scaled = 0.5 + (x - 0.5) * score.process.sigma(t) / 0.1
    _, after = corrector.step(score, x_scaled, t, t, noise, p)
    assert float((after * p).mean()) == pytest.approx(within, abs=0.03)


@pytest.mark.parametrize("corrector", [MALA(0.9, 5), HMC(0.9, 3, 5)], ids=lambda c: type(c).__name__)
def test_a_mixture_is_sampled_exactly_where_langevin_at_the_same_step_fails(corrector):
    """Kolmogorov-Smirnov test of 20 000 particles against exact draws, p_t at sigma = 0.3."""
    score, n = MixtureScore(VE(0.3, 2.0), MIXTURE), 20_000
    generator = torch.Generator().manual_seed(1)

    def exact():
        return MIXTURE.sample(n, generator) + 0.3 * torch.randn(n, 1, dtype=torch.float64, generator=generator)

    def p_value(x):
        return stats.ks_2samp(x[:, 0].numpy(), exact()[:, 0].numpy()).pvalue

    noise, x = QuickNoise((n, 1)), exact()
    adjusted, rate = run(corrector, score, x, noise, 60)
    biased, _ = run(Langevin(0.9), score, x, noise, 60)
    trapezoid, _ = run(MALA(0.9, 2), score, x, noise, 60)
    assert 0.5 < rate < 0.999
    assert p_value(adjusted) > 0.01
    assert p_value(biased) < 1e-6 and p_value(trapezoid) < 1e-6


@pytest.mark.parametrize("kind", [MALA, HMC])
def test_acceptance_falls_with_the_step_and_with_the_dimension(kind):
    def rate(step, dimension):
        noise = QuickNoise((max(50, 40_000 // dimension), dimension))
        score = ImageScore(VE(1.0, 2.0), 0.0, 1e-3)
        return run(kind(step), score, noise.normal(), noise, 10)[1]

    scale = 0.5 if kind is MALA else 1.0  # one Langevin step is one leapfrog step of h = 2 snr sigma
    rates = [rate(scale * h, 50) for h in (0.1, 0.6, 1.2)]
    assert rates[0] > 0.98 and rates[0] > rates[1] > rates[2] and 0.1 < rates[2] < 0.9
    assert 0.4 < rate(kind().snr if kind is MALA else kind().time_step, 3072) < 0.99
    assert rate(scale * 1.2, 800) < rates[2]


def test_mala_is_hmc_with_one_leapfrog_step():
    """h = 2 snr sigma and the same draws give the same samples."""
    score, x = MixtureScore(VE(0.3, 2.0), MIXTURE), torch.randn(500, 1, dtype=torch.float64)
    mala, _ = run(MALA(0.3, 4), score, x, QuickNoise((500, 1)), 5)
    hmc, _ = run(HMC(0.6, 1, 4), score, x, QuickNoise((500, 1)), 5)
    torch.testing.assert_close(mala, hmc)


@pytest.mark.parametrize("corrector", [MALA(0.9), HMC(1.5)], ids=lambda c: type(c).__name__)
def test_the_last_mean_is_always_accepted(corrector):
    score, x = ImageScore(VE(0.5, 2.0)), 3 * torch.randn(200, 1, 2, 2, dtype=torch.float64)
    stream = NoiseStream(0, range(200), (1, 2, 2), dtype=torch.float64)
    y, _ = corrector.step(score, x, T, T, NoNoise(stream), None)
    assert bool((y != x).flatten(1).any(1).all())
    expected, _ = corrector.propose(score, x, T, T, NoNoise(stream))
    torch.testing.assert_close(y, expected)


def test_a_proposal_that_is_not_finite_is_refused():
    class Broken(ImageScore):
        def forward(self, x, t, cond=None):
            return super().forward(x, t) + torch.where(x > 1, float("nan"), 0.0)

    noise, score = QuickNoise((1000, 1)), Broken(VE(0.5, 2.0))
    x, rate = run(MALA(0.9), score, torch.zeros(1000, 1, dtype=torch.float64), noise, 20)
    assert bool((x <= 1).all()) and 0.2 < rate < 0.9


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MALA(0), "snr=0"),
        (lambda: MALA(nodes=1), "nodes=1"),
        (lambda: HMC(2.0), "time_step=2.0"),
        (lambda: HMC(leapfrog_steps=0), "leapfrog_steps=0"),
        (lambda: HMC(nodes=0), "nodes=0"),
        (lambda: UnderdampedLangevin(0), "time_step=0"),
        (lambda: UnderdampedLangevin(friction=0), "friction=0"),
    ],
)
def test_errors_name_the_value(make, words):
    with pytest.raises(InputError, match=words):
        make()
