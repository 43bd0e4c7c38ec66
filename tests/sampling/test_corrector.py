"""Correctors: the marginal they stay on."""

import math

import pytest
import torch
from conftest import CORRECTORS, ImageScore, QuickNoise
from laws import MEAN, STD, affine, gaussian

from lightning_score.errors import InputError
from lightning_score.process import VE, BetaTable
from lightning_score.sampling import (
    AnnealedLangevinStep,
    BatchLangevin,
    FixedLangevin,
    Langevin,
    NoiseStream,
    PredictorCorrector,
    SampleLangevin,
    Uniform,
)
from lightning_score.sampling.noise import NoNoise

UNADJUSTED = [
    Langevin(0.01),
    AnnealedLangevinStep(1e-6),
    FixedLangevin(1e-4),
]  # one evaluation, one draw: x -> A x + B + C z


def law(process, t):
    """Mean and variance at time t of N(MEAN, STD^2)."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    return alpha * MEAN, alpha**2 * STD**2 + sigma**2


def test_langevin_has_its_stationary_variance():
    """On N(m, v) the variance tends to v/(1 - e/(2 v)) T: this pins the convention of the step size."""
    score, v, e, temperature = gaussian(VE(1e-3, 1.0)), STD**2 + 1e-6, 0.02, 0.5
    t = torch.zeros((), dtype=torch.float64)
    corrector = FixedLangevin(e, temperature)
    a, b, c = affine(lambda x, z: corrector.step(score, x, t, t, z, None)[0])
    assert b / (1 - a) == pytest.approx(MEAN, rel=1e-6)
    assert c**2 / (1 - a**2) == pytest.approx(temperature * v / (1 - e / (2 * v)), rel=1e-6)


@pytest.mark.parametrize("corrector", UNADJUSTED, ids=lambda c: type(c).__name__)
def test_unadjusted_correctors_keep_the_marginal_up_to_the_predicted_bias(noise_process, corrector):
    """The stationary mean is exact and the variance v/(1 - e/(2 v))."""
    score = gaussian(noise_process)
    times = torch.tensor([0.5, 0.495], dtype=torch.float64)
    t, s = times
    state = corrector.init(noise_process, times)
    a, b, c = affine(lambda x, z: corrector.step(score, x, t, s, z, state)[0])
    (mean, v), e = law(noise_process, t), c**2 / 2
    assert 0 < e < 0.1 * v
    assert b / (1 - a) == pytest.approx(mean, rel=1e-5)
    assert c**2 / (1 - a**2) == pytest.approx(v / (1 - e / (2 * v)), rel=1e-5)


@pytest.mark.parametrize("kind", CORRECTORS, ids=lambda c: c.__name__)
def test_every_corrector_stays_on_the_marginal(noise_process, kind):
    """Many particles keep the moments of their Gaussian, up to the bias of the default step."""
    corrector, shape = kind(), (max(20, 40_000 // kind.min_dimension), max(kind.min_dimension, 2))
    times = torch.tensor([0.5, 0.495], dtype=torch.float64)
    corrector.check(noise_process, times)
    mean, v = law(noise_process, times[0])
    score, noise = ImageScore(noise_process, MEAN, STD), QuickNoise(shape)
    x, state, start = mean + math.sqrt(v) * noise.normal(), corrector.init(noise_process, times), score.evaluations
    for _ in range(20):
        x, state = corrector.step(score, x, *times, noise, state)
    assert score.evaluations - start == 20 * corrector.evaluations * shape[0]
    error = 4 / math.sqrt(x.numel())
    assert abs(float(x.mean()) - mean) < error * math.sqrt(v)
    assert 1 - 1.5 * error < float(x.var()) / v < 1.03 + 1.5 * error, float(x.var()) / v


def test_langevin_corrector_formula():
    """e = 2 alpha_c (snr sigma)^2 with alpha_c = 1 - beta_i (score SDE, Algorithm 5 without the norms)."""
    process, corrector = BetaTable(), Langevin(0.16)
    score, times = gaussian(process), process.table_times()
    _, _, c = affine(lambda x, z: corrector.step(score, x, times[400], times[399], z, None)[0])
    expected = 2 * (1 - process.betas[400]) * (0.16 * process.sigma(times[400])) ** 2
    assert c**2 / 2 == pytest.approx(float(expected), rel=1e-6)


def test_annealed_step_of_score_sde():
    """e = 2 alpha (snr sigma)^2 is AnnealedLangevinStep(2 snr^2 sigma_min^2) on VE: NCSN's snr is sqrt(2e-5/2)/0.01."""
    score, snr = ImageScore(VE(0.01, 1.0)), math.sqrt(2e-5 / 2) / 0.01
    times, x = torch.tensor([0.5, 0.0], dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    step, langevin = AnnealedLangevinStep(2e-5), Langevin(snr)
    ours, _ = step.step(score, x, times[0], times[1], QuickNoise(x.shape), step.init(score.process, times))
    theirs, _ = langevin.step(score, x, times[0], times[1], QuickNoise(x.shape), None)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("process", [VE(), BetaTable()], ids=lambda p: type(p).__name__)
def test_batch_langevin_is_the_formula_of_score_sde(process):
    """step = 2 alpha (snr mean||z||/mean||score||)^2, x_mean = x + step score, x = x_mean + sqrt(2 step) z."""
    score, snr, i = ImageScore(process), 0.16, 600
    t, s = (torch.tensor(k / 1000, dtype=torch.float64) for k in (i, i - 1))
    x, streams = torch.randn(6, 1, 4, 4, dtype=torch.float64), [NoiseStream(1, range(6), (1, 4, 4), dtype=torch.float64)]
    streams += [NoiseStream(1, range(6), (1, 4, 4), dtype=torch.float64) for _ in range(2)]
    alpha = 1 - float(process.betas[i - 1]) if isinstance(process, BetaTable) else 1.0
    grad, z = score(x, t), streams[0].normal()
    step = 2 * alpha * (snr * z.reshape(6, -1).norm(dim=-1).mean() / grad.reshape(6, -1).norm(dim=-1).mean()) ** 2
    mean = x + step * grad
    ours, _ = BatchLangevin(snr).step(score, x, t, s, streams[1], None)
    torch.testing.assert_close(ours, mean + (2 * step).sqrt() * z)
    last, _ = BatchLangevin(snr).step(score, x, t, s, NoNoise(streams[2]), None)
    torch.testing.assert_close(last, mean)


def norm_rule_variance(kind, dimension, monkeypatch, snr=0.16, steps=50, size=200_000):
    """Variance of N(0, I) after some steps with sizes from norms."""
    monkeypatch.setattr(SampleLangevin, "min_dimension", 1)
    score, noise = ImageScore(VE(1e-6, 1.0), 0.0, 1.0), QuickNoise((size // dimension, dimension))
    t, x = torch.zeros((), dtype=torch.float64), noise.normal()
    for _ in range(steps):
        x, _ = kind(snr).step(score, x, t, t, noise, None)
    return float(x.var())


def test_norms_of_single_samples_explode_in_low_dimension(monkeypatch):
    """On N(0, I), 50 steps: why the rule is refused there, while the batch mean keeps the variance."""
    assert norm_rule_variance(SampleLangevin, 2, monkeypatch) > 4
    assert norm_rule_variance(SampleLangevin, 64, monkeypatch) == pytest.approx(1.087, abs=0.02)
    assert norm_rule_variance(SampleLangevin, 1000, monkeypatch, size=500_000) == pytest.approx(1.03, abs=0.02)
    assert norm_rule_variance(BatchLangevin, 2, monkeypatch) == pytest.approx(1.03, abs=0.02)
    assert norm_rule_variance(BatchLangevin, 64, monkeypatch) == pytest.approx(1.03, abs=0.02)


def test_norms_of_single_samples_are_refused_in_low_dimension():
    sampler = PredictorCorrector(corrector=SampleLangevin(), grid=Uniform(3))
    sampler.check(VE())
    with pytest.raises(InputError, match=r"the samples have 16 entries; it needs at least 1000.*use Langevin"):
        sampler(ImageScore(VE()), NoiseStream(0, range(2), (1, 4, 4)))
    assert bool(sampler(ImageScore(VE()), NoiseStream(0, range(2), (1, 32, 32))).x.isfinite().all())


@pytest.mark.parametrize("kind", CORRECTORS, ids=lambda c: c.__name__)
def test_a_sample_depends_on_its_batch_only_where_that_is_declared(kind):
    sampler = PredictorCorrector(corrector=kind(), grid=Uniform(6), corrector_steps=2)
    score, shape = ImageScore(VE(0.1, 2.0)), (1, 32, 32) if kind.min_dimension > 16 else (1, 4, 4)
    together = sampler(score, NoiseStream(7, range(5), shape)).x
    apart = torch.cat([sampler(score, NoiseStream(7, [k], shape)).x for k in range(5)])
    assert torch.allclose(together, apart, rtol=1e-4, atol=1e-5) == kind.batch_independent


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AnnealedLangevinStep(0), "step_size=0"),
        (lambda: AnnealedLangevinStep(temperature=-1), "temperature=-1"),
        (lambda: FixedLangevin(0), "step_size=0"),
        (lambda: FixedLangevin(temperature=-0.5), "temperature=-0.5"),
        (lambda: Langevin(0), "snr=0"),
        (lambda: BatchLangevin(-1), "snr=-1"),
        (lambda: SampleLangevin(0), "snr=0"),
    ],
)
def test_errors_name_the_value(make, words):
    with pytest.raises(InputError, match=words):
        make()
