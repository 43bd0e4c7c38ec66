"""Densities of one's own: their scores, the laws of all chains on them, temperatures, and what is refused."""

import math

import numpy as np
import pytest
import torch
from conftest import CORRECTORS, QuickNoise
from scipy import stats
from torch import nn

from lightning_score import data
from lightning_score.errors import InputError
from lightning_score.sampling import (
    HMC,
    MALA,
    AnnealedLangevin,
    Geometric,
    Langevin,
    LangevinDynamics,
    MarkovChain,
    NoiseStream,
    NormalNoise,
    Tweedie,
    UnderdampedLangevin,
)
from lightning_score.sampling.metropolis import path_integral
from lightning_score.score import Banana, Density, DensityScore, Funnel, Mixture

ZERO = torch.zeros((), dtype=torch.float64)
MEANS, STDS, WEIGHTS = [[-0.7, 0.5], [0.8, -0.3]], [0.6, 0.5], [0.3, 0.7]


class Gaussian:
    """A class that derives from nothing."""

    def __init__(self, mean=0.5, std=1.5):
        self.mean, self.std = mean, std

    def log_density(self, x):
        return -((x - self.mean) ** 2).sum(1) / (2 * self.std**2) + 7.0


class GaussianScore:
    """Its score alone."""

    def score(self, x):
        return (0.5 - x) / 1.5**2


class Both(Gaussian, GaussianScore):
    """Both."""


class Network(nn.Module, Gaussian):
    """A density that is a module, with weights."""

    shape = (3,)

    def __init__(self):
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor(0.5)), 1.5


def points(n=50, d=2):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("density", [Mixture(MEANS, STDS, WEIGHTS), Banana(0.7, 0.4), Funnel(1.5, 4)])
def test_the_score_is_the_gradient_of_the_log_density(density):
    """By central differences, within inference mode, too."""
    x, h = points(d=density.shape[0]), 1e-6
    steps = h * torch.eye(x.shape[1], dtype=torch.float64)
    numeric = torch.stack([(density.log_density(x + e) - density.log_density(x - e)) / (2 * h) for e in steps], 1)
    with torch.inference_mode():
        score = DensityScore(density)(x.clone(), ZERO)
    torch.testing.assert_close(score.clone(), numeric, rtol=1e-4, atol=1e-6)
    assert not score.requires_grad


def test_the_examples_have_their_densities():
    x = points(d=2)
    mixture = data.Mixture(MEANS, STDS, WEIGHTS)
    torch.testing.assert_close(Mixture(MEANS, STDS, WEIGHTS).log_density(x), mixture.log_prob(x), rtol=1e-6, atol=1e-6)
    a, b = x.numpy().T
    cases = {
        Banana(0.7, 0.4): stats.norm.logpdf(a) + stats.norm.logpdf(b, 0.7 * (a**2 - 1), 0.4),
        Funnel(1.5): stats.norm.logpdf(a, 0, 1.5) + stats.norm.logpdf(b, 0, np.exp(a / 2)),
    }
    for density, exact in cases.items():
        constant = density.log_density(x).numpy() - exact
        np.testing.assert_allclose(constant, constant[0], rtol=1e-9)


@pytest.mark.parametrize("density", [Gaussian(), GaussianScore(), Both(), Network()], ids=lambda d: type(d).__name__)
def test_plain_classes_scores_and_modules_are_densities(density):
    assert issubclass(type(density), Density) and not issubclass(type(density), Banana)
    score, x = DensityScore(density), points(d=3)
    torch.testing.assert_close(score(x, ZERO), ((0.5 - x) / 1.5**2).detach())
    assert score.evaluations == len(x) and score.shape == getattr(density, "shape", (2,))
    assert (score.log_density(x, ZERO) is None) == (type(density) is GaussianScore)


KERNELS = [
    (MALA(0.35), 2, 300),
    (HMC(0.25, 4), 5, 100),
    (UnderdampedLangevin(0.1), 2, 400),
    (Langevin(0.08), 1, 500),
]
LAWS = {
    "mixture": (Mixture(MEANS, STDS, WEIGHTS), [-0.3 * 0.7 + 0.7 * 0.8, 0.3 * 0.5 - 0.7 * 0.3], None),
    "banana": (Banana(0.4, 0.6), [0.0, 0.0], [1.0, 2 * 0.4**2 + 0.6**2]),
    "funnel": (Funnel(0.8, 3), [0.0, 0.0, 0.0], [0.64, math.exp(0.32), math.exp(0.32)]),
}


@pytest.mark.parametrize(("kernel", "calls", "steps"), KERNELS, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("law", LAWS)
def test_chains_have_the_moments_of_the_density(law, kernel, calls, steps):
    """1500 chains from N(0, 1), within four Monte Carlo errors; the unadjusted ones with small steps within their bias."""
    density, mean, variance = LAWS[law]
    if variance is None:
        components = zip(WEIGHTS, MEANS, STDS, strict=True)
        second = sum(w * (torch.tensor(m) ** 2 + s**2) for w, m, s in components)
        variance = (second - torch.tensor(mean) ** 2).tolist()
    score, n = DensityScore(density), 1500
    result = MarkovChain(kernel, steps)(score, QuickNoise((n, len(mean)), dtype=torch.float32))
    x, bias = result.x.double(), 0.0 if kernel.rejects else 0.03
    mean, variance = torch.tensor(mean).double(), torch.tensor(variance).double()
    assert result.nfe == calls * steps
    assert ((x.mean(0) - mean).abs() < 4 * (variance / n).sqrt() + bias).all(), x.mean(0)
    spread = ((x - mean) ** 2).std(0) / math.sqrt(n)
    assert (((x - mean) ** 2).mean(0) - variance).abs().lt(4 * spread + bias * variance).all(), x.var(0)


def one_dimensional(score, sampler, n=20_000):
    return float(sampler(score, QuickNoise((n, 1))).x.var())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_langevin_dynamics_has_its_biased_law(temperature):
    """T v/(1 - e/(2 v)) for the temperature of the sampler; v T takes the place of v for that of the density."""
    v, e = 2.25, 1.0
    start, within = NormalNoise(1.5, 0.5), 0.05
    sampler = LangevinDynamics(e, 60, temperature, initial=start)
    assert one_dimensional(DensityScore(Gaussian()), sampler) == pytest.approx(
        temperature * v / (1 - e / (2 * v)), rel=within
    )
    warm, tempered = temperature * v, DensityScore(Gaussian(), temperature=temperature)
    sampler = LangevinDynamics(e, 60, initial=start)
    assert one_dimensional(tempered, sampler) == pytest.approx(warm / (1 - e / (2 * warm)), rel=within)
    assert one_dimensional(tempered, MarkovChain(MALA(0.6), 40, initial=start)) == pytest.approx(warm, rel=within)


@pytest.mark.parametrize(
    "corrector", [kind() for kind in CORRECTORS if kind.min_dimension <= 2], ids=lambda c: type(c).__name__
)
def test_every_corrector_is_the_kernel_of_a_chain(corrector):
    """In units of the scale: on a density that is twice as wide, with twice the scale, the same draws move twice as far."""
    steps, noise = 5, lambda: QuickNoise((30, 2))
    narrow, wide = DensityScore(Gaussian(0.0, 1.0)), DensityScore(Gaussian(0.0, 2.0), scale=2.0)
    sampler = MarkovChain(corrector, steps)
    sampler.check(narrow.process)
    x, y = sampler(narrow, noise()).x, sampler(wide, noise()).x
    assert bool(x.isfinite().all()) and not torch.equal(x, QuickNoise((30, 2)).normal())
    if not hasattr(corrector, "step_size"):  # which is in units of x
        torch.testing.assert_close(y, 2 * x)


def test_chain_k_is_the_same_for_any_number_of_chains():
    score = DensityScore(Banana())
    for kernel in (MALA(0.2), HMC(0.2), UnderdampedLangevin(0.2)):
        many, few = (MarkovChain(kernel, 30)(score, NoiseStream(3, range(n), (2,))).x for n in (20, 5))
        torch.testing.assert_close(many[:5], few)


def test_acceptance_takes_the_exact_ratio():
    """One evaluation at y, for that at x is known from its score; a score alone is integrated, at its nodes."""
    x, y = points(), points().flip(0)
    score, alone = DensityScore(Both(), temperature=2.0), DensityScore(GaussianScore(), temperature=2.0)
    exact = (Gaussian().log_density(y) - Gaussian().log_density(x)) / 2
    for each, calls in ((DensityScore(Gaussian(), temperature=2.0), 2), (score, 4), (alone, 3)):
        ratio, at_y = path_integral(each, x, y, ZERO, each(x, ZERO), 3)
        torch.testing.assert_close(ratio, exact)
        torch.testing.assert_close(at_y, (0.5 - y) / 1.5**2 / 2)
        assert each.evaluations == calls * len(x)


def test_a_density_of_bounded_support_is_sampled():
    """Uniform on [0, 1] times x: proposals outside have the log density -inf, or NaN, and are rejected."""

    class Ramp:
        shape = (1,)

        def log_density(self, x):
            inside = ((x > 0) & (x < 1))[:, 0]
            return torch.where(inside, x[:, 0].log(), -math.inf)

    sampler = MarkovChain(MALA(0.2), 400, initial=NormalNoise(0.0, 0.5))
    x = sampler(DensityScore(Ramp()), QuickNoise((4000, 1))).x
    assert stats.kstest(x[:, 0].numpy(), lambda v: np.clip(v, 0, 1) ** 2).pvalue > 0.01


class TestTemperatures:
    def test_annealed_langevin_cools_down(self):
        """x + e/T_0 grad log p + sqrt(2 e T/T_0) z for every temperature T down to T_0 in turn."""
        score, noise, e, steps = DensityScore(Banana(), 1.0, 0.5, 8.0, levels=3), NoiseStream(0, range(4), (2,)), 0.01, 2
        result = AnnealedLangevin(e, steps)(score, NoiseStream(0, range(4), (2,)))
        x = math.sqrt(8.0) * noise.normal()
        for temperature in (8.0, 2.0, 0.5):
            for _ in range(steps):
                gradient = DensityScore(Banana())(x, ZERO)
                x = x + e / 0.5 * gradient + math.sqrt(2 * e * temperature / 0.5) * noise.normal()
        torch.testing.assert_close(result.x, x, rtol=1e-4, atol=1e-4)
        assert result.nfe == 6

    def test_cooling_finds_both_modes_where_one_temperature_does_not(self):
        """All chains start in the lesser mode."""
        mixture, start = Mixture([[-3.0, 0.0], [3.0, 0.0]], [0.5, 0.5], [0.75, 0.25]), NormalNoise(0.1, 3.0)

        def share(sampler, **settings):
            x = sampler(DensityScore(mixture, **settings), QuickNoise((500, 2))).x
            return float((x[:, 0] < 0).double().mean())

        assert share(LangevinDynamics(0.02, 300, initial=start)) < 0.01
        annealed = AnnealedLangevin(0.02, 40, initial=start)
        assert 0.45 < share(annealed, initial_temperature=40.0, levels=8) < 0.75  # that of the last temperature that mixes
        other = AnnealedLangevin(0.02, 40, Geometric(7), initial=start)
        assert 0.45 < share(other, initial_temperature=40.0) < 0.75

    def test_the_law_of_a_gaussian_of_the_scale_has_the_width_sigma(self):
        score = DensityScore(Gaussian(0.0, 2.0), scale=2.0, temperature=0.5, initial_temperature=9.0)
        for t in torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64):
            x = points()
            torch.testing.assert_close(score(x, t), -x / score.process.sigma(t) ** 2)
        assert float(score.process.sigma(torch.ones(()))) == pytest.approx(6.0)


class Wrong:
    """A density that is wrong in the given way."""

    def __init__(self, log_density):
        self.log_density = log_density


class WrongScore(Gaussian):
    """A sign is wrong."""

    def score(self, x):
        return x - 0.5


class WrongShape(Gaussian):
    """Not a shape."""

    shape = 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: object(), "neither log_density"),
        (
            lambda: Wrong(lambda x: -(x**2).sum()),
            r"returns shape \[\] for x of shape \[8, 2\]; must be .* \[8\], one number",
        ),
        (lambda: Wrong(lambda x: -(x**2).sum(1, keepdim=True)), r"returns shape \[8, 1\]"),
        (lambda: Wrong(lambda x: 0.0), "returns float"),
        (lambda: Wrong(lambda x: -(x.detach() ** 2).sum(1)), "no gradient in x"),
        (lambda: Wrong(lambda x: torch.ones(len(x), requires_grad=True)), "no gradient in x"),
        (lambda: Wrong(lambda x: torch.from_numpy(x.numpy())[:, 0]), "numpy.*test_density.py, line"),
        (lambda: Wrong(lambda x: x[:, 0].log()), "log_density is NaN or infinite at . of 8 starting points"),
        (lambda: Wrong(lambda x: -x.norm(dim=1) - math.inf), "log_density is NaN or infinite at 8 of 8"),
        (lambda: Wrong(lambda x: (x[:, 0] * 0).sqrt() - (x**2).sum(1)), "gradient of log_density is NaN"),
        (lambda: Wrong(lambda x: -((x - x.mean(0)) ** 2).sum(1)), "depends on the others of its batch"),
        (lambda: WrongScore(), r"score\(x\) is not the gradient of log_density\(x\)"),
        (lambda: WrongShape(), "shape=3 must be that of one sample"),
        (lambda: Wrong(lambda x: x @ torch.ones(3, 3)), "RuntimeError.*test_density.py, line"),
    ],
)
def test_a_wrong_density_is_refused_at_the_first_evaluation(make, words):
    with pytest.raises(InputError, match=words) as refusal:
        LangevinDynamics(0.1, 1)(DensityScore(make()), NoiseStream(0, range(8), (2,)))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scale": 0.0}, "scale=0.0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": 2.0, "initial_temperature": 1.0}, "initial_temperature=1.0: must be above the last, 2.0"),
        ({"levels": 1}, "levels=1"),
    ],
)
def test_errors_name_the_value(settings, words):
    with pytest.raises(InputError, match=words):
        DensityScore(Banana(), **settings)


def test_what_needs_noise_is_refused():
    score = DensityScore(Banana())
    with pytest.raises(InputError, match="no noise to remove"):
        LangevinDynamics(0.1, 1, denoise=Tweedie())(score, NoiseStream(0, range(8), (2,)))
    with pytest.raises(InputError, match=r"no noise levels.*initial_temperature"):
        AnnealedLangevin(0.1, 1).check(score.process)


WRONG = [lambda: Mixture([[0.0], [1.0, 2.0]]), lambda: Mixture(stds=[0.0, 1.0]), lambda: Mixture([]),
         lambda: Banana(width=0), lambda: Funnel(std=0), lambda: Funnel(dimension=1)]  # fmt: skip


@pytest.mark.parametrize("make", WRONG)
def test_the_examples_refuse_wrong_numbers(make):
    with pytest.raises(InputError):
        make()
