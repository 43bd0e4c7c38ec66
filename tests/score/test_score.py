"""Parametrizations and score functions: every conversion has an inverse, and a perfect network gives the exact score."""

import pytest
import torch
from conftest import PARAMETRIZATIONS, MixtureScore, times
from torch import nn

from lightning_score.errors import InputError
from lightning_score.process import VE, VP, BetaTable, Linear
from lightning_score.score.empirical import EmpiricalScore
from lightning_score.score.function import ClippedScore, Conditioned, PriorScore, ScoreField, ScoreFunction
from lightning_score.score.parametrization import (
    EDM,
    Denoised,
    Flow,
    Index,
    LogSigma,
    Noise,
    Score,
    ScoreOverSigma,
    Time,
    Velocity,
)
from lightning_score.tensors import broadcast_to, combine

TARGETS = {
    Score: lambda a, s, x0, z: -z / s,
    ScoreOverSigma: lambda a, s, x0, z: -z,
    Noise: lambda a, s, x0, z: z,
    Denoised: lambda a, s, x0, z: x0,
    Velocity: lambda a, s, x0, z: a * z - s * x0,
    Flow: lambda a, s, x0, z: z - x0,
}


class Fixed(nn.Module):
    """A network that returns a given output and remembers what it was called with."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x, noise_label, cond=None):
        self.call = x, noise_label, cond
        return self.output


def skip_if_refused(process, kind):
    if kind.divides_by_alpha and process.t_signal < 1:
        pytest.skip("refused, since alpha(1) = 0")


@pytest.mark.parametrize("kind", TARGETS, ids=lambda c: c.__name__)
def test_the_target_of_each_parametrization_gives_the_score_of_the_kernel(noise_process, kind):
    """score = -z/sigma for x_t = alpha x_0 + sigma z, if the network returns what its parametrization names."""
    skip_if_refused(noise_process, kind)
    torch.manual_seed(0)
    t = times(16)
    x0, z = torch.randn(2, 16, 3, dtype=torch.float64)
    alpha, sigma = broadcast_to(noise_process.alpha(t), x0), broadcast_to(noise_process.sigma(t), x0)
    x = noise_process.perturb(x0, t, z)
    score = ScoreFunction(Fixed(TARGETS[kind](alpha, sigma, x0, z)), noise_process, kind())
    torch.testing.assert_close(score(x, t), -z / sigma, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(score.noise(x, t), z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(score.denoised(x, t), x0, rtol=1e-6, atol=1e-6)


def test_edm_is_the_denoiser_of_its_paper(noise_process):
    """Karras et al. 2022, table 1, on y = x/alpha: D = c_skip y + c_out F(c_in y, ln(s)/4)."""
    torch.manual_seed(0)
    t, d = times(16), 0.5
    x, output = torch.randn(2, 16, 3, dtype=torch.float64)
    alpha, s = broadcast_to(noise_process.alpha(t), x), broadcast_to(noise_process.sigma(t) / noise_process.alpha(t), x)
    network = Fixed(output)
    score = ScoreFunction(network, noise_process, EDM(d))
    variance = s**2 + d**2
    expected = d**2 / variance * x / alpha + s * d / variance.sqrt() * output
    torch.testing.assert_close(score.denoised(x, t), expected, rtol=1e-6, atol=1e-6)
    seen, label, _ = network.call
    torch.testing.assert_close(seen, x / alpha / variance.sqrt())
    torch.testing.assert_close(label, s[:, 0].log() / 4)


@pytest.mark.parametrize("kind", PARAMETRIZATIONS, ids=lambda c: c.__name__)
def test_data_std_scales_the_input_to_unit_variance(noise_process, kind):
    t = times()
    coefficients = kind(data_std=0.3)(noise_process, t)
    variance = noise_process.alpha(t) ** 2 * 0.3**2 + noise_process.sigma(t) ** 2
    torch.testing.assert_close(coefficients.c_in**2 * variance, torch.ones_like(t))


@pytest.mark.parametrize("kind", PARAMETRIZATIONS, ids=lambda c: c.__name__)
def test_scalar_time_equals_a_time_per_row(noise_process, kind):
    skip_if_refused(noise_process, kind)
    torch.manual_seed(0)
    x, output = torch.randn(2, 4, 1, 2, 2)
    score = ScoreFunction(Fixed(output), noise_process, kind())
    torch.testing.assert_close(score(x, torch.tensor(0.3)), score(x, torch.full((4,), 0.3)))


def test_denoised_and_noise_are_views_of_one_score(exact_score):
    x, t = torch.randn(8, 2, dtype=torch.float64), torch.tensor(0.31, dtype=torch.float64)
    alpha, sigma = exact_score.process.alpha(t), exact_score.process.sigma(t)
    torch.testing.assert_close(alpha * exact_score.denoised(x, t) + sigma * exact_score.noise(x, t), x)


def test_labels():
    t = torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(Index()(BetaTable(), t), torch.tensor([0.0, 499.0, 999.0], dtype=torch.float64))
    descending = Index(descending=True)(BetaTable(), t)
    torch.testing.assert_close(descending, torch.tensor([999.0, 500.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(Time()(VP(), t), 999 * t)
    torch.testing.assert_close(LogSigma()(VE(), t), VE().sigma(t).log())


def test_evaluations_are_counted_per_row_also_through_wrappers():
    score = ScoreFunction(Fixed(torch.zeros(5, 2)), VP(), Noise())
    wrapped = ClippedScore(Conditioned(score, torch.arange(5)), -1, 1)
    wrapped(torch.zeros(5, 2), torch.tensor(0.5))
    assert score.evaluations == wrapped.evaluations == 5
    assert score.network.call[2].tolist() == [0, 1, 2, 3, 4]


def test_a_score_that_does_not_count_is_an_error():
    """Not one of 0 evaluations."""

    class Silent(ScoreField):
        def forward(self, x, t, cond=None):
            return -x

    with pytest.raises(AttributeError, match="evaluations"):
        _ = Silent(VP()).evaluations


def test_clipped_score_denoises_into_the_range(noise_process):
    score = MixtureScore(noise_process)
    x, t = 5 * torch.randn(50, 2, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    denoised = score.denoised(x, t)
    torch.testing.assert_close(ClippedScore(score, -0.7, 0.6).denoised(x, t), denoised.clamp(-0.7, 0.6))
    torch.testing.assert_close(ClippedScore(score, -1e9, 1e9)(x, t), score(x, t))


def test_a_linear_combination_is_the_sum_of_its_terms():
    """With numbers, one per sample, or both; coefficients 0 and 1 need no product; gradients pass, also to coefficients."""
    torch.manual_seed(0)
    x, y, z = torch.randn(3, 4, 2, 3, dtype=torch.float64)
    several = torch.randn(4, dtype=torch.float64, requires_grad=True)
    for a in (0.0, 1.0, -2.5, torch.tensor(3.0), torch.tensor(1, dtype=torch.float64), several):
        for b in (0, 1, torch.tensor(0.5)):
            expected = broadcast_to(torch.as_tensor(a), x) * x + b * y - 2 * z
            torch.testing.assert_close(combine((a, x), (b, y), (-2.0, z)), expected)
    assert combine((0.0, x), (1.0, y)) is y
    assert not combine((0.0, torch.full_like(x, torch.nan))).any()
    (gradient,) = torch.autograd.grad(combine((several, x), (1.0, y)).sum(), several)
    torch.testing.assert_close(gradient, x.sum((1, 2)))
    number = torch.tensor(2.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(combine((number, x.float())).sum(), number)
    torch.testing.assert_close(gradient, x.float().sum())


@pytest.mark.parametrize(
    "wrap",
    [lambda s: s, lambda s: Conditioned(s, torch.zeros(16)), lambda s: ClippedScore(s, -0.5, 1)],
    ids=["plain", "Conditioned", "ClippedScore"],
)
@pytest.mark.parametrize("kind", PARAMETRIZATIONS, ids=lambda c: c.__name__)
def test_a_combination_of_x_and_score(noise_process, kind, wrap):
    """At one time, at one per sample, and with cached coefficients."""
    skip_if_refused(noise_process, kind)
    torch.manual_seed(0)
    x, output = torch.randn(2, 16, 3, dtype=torch.float64)
    score = wrap(ScoreFunction(Fixed(output), noise_process, kind()))
    for t in (times(16), times(16)[5]):
        a, b = 0.3 + t, 2 * noise_process.sigma(t)
        expected = broadcast_to(a, x) * x + broadcast_to(b, x) * score(x, t)
        torch.testing.assert_close(score.combination(x, t, x_scale=a, score_scale=b), expected)
    with noise_process.cached_at(times(16)):
        torch.testing.assert_close(score.combination(x, t, x_scale=a, score_scale=b), expected)


class TestNoiseAlone:
    """alpha(1) = 0: the score is -x/sigma^2, and the denoised image has coefficients of its own."""

    @pytest.mark.parametrize("process", [Linear(), BetaTable(zero_snr=True)], ids=lambda p: type(p).__name__)
    @pytest.mark.parametrize("kind", [p for p in PARAMETRIZATIONS if not p.divides_by_alpha], ids=lambda c: c.__name__)
    def test_the_denoised_image_is_the_limit_of_that_with_data(self, process, kind):
        """One evaluation each, at one time and at one per row, plain and clipped; the network's target gives x_0."""
        x0, z, t = *torch.randn(2, 4, 3, dtype=torch.float64), torch.ones((), dtype=torch.float64)
        near = process.inverse_log_snr(-2 * torch.tensor(1e8, dtype=torch.float64).log())
        score = ScoreFunction(Fixed(torch.randn(4, 3, dtype=torch.float64)), process, kind())
        torch.testing.assert_close(score.denoised(z, t), score.denoised(z, near), rtol=0, atol=1e-6)
        torch.testing.assert_close(score.denoised(z, t), score.denoised(z, t.expand(4)))
        torch.testing.assert_close(score(z, t), -z)
        label = score.network.call[1]
        assert bool(label.isfinite().all()) and score.evaluations == 5 * 4
        torch.testing.assert_close(ClippedScore(score, -0.1, 0.1).denoised(z, t), score.denoised(z, t).clamp(-0.1, 0.1))
        if kind in TARGETS:
            score.network.output = TARGETS[kind](process.alpha(t), process.sigma(t), x0, z)
            torch.testing.assert_close(score.denoised(z, t), x0)

    def test_other_scores_have_one_too(self):
        """To 1e-2 where it comes from the score near by; exactly for data points, each of the same weight."""
        x, t, data = torch.randn(5, 2, dtype=torch.float64), torch.ones((), dtype=torch.float64), torch.randn(9, 2).double()
        assert not PriorScore(MixtureScore(Linear()), t, 0.5).denoised(x, t).any()
        torch.testing.assert_close(EmpiricalScore(Linear(), data).denoised(x, t), data.mean(0).expand(5, 2))
        plain = MixtureScore(Linear())
        torch.testing.assert_close(ScoreField.denoised(plain, x, t), plain.denoised(x, t), rtol=0, atol=1e-2)

    @pytest.mark.parametrize("kind", [p for p in PARAMETRIZATIONS if p.divides_by_alpha], ids=lambda c: c.__name__)
    def test_what_divides_by_alpha_is_refused(self, kind):
        with pytest.raises(InputError, match="has no denoised image where alpha = 0, as at t = 1 of Linear; take Flow"):
            ScoreFunction(nn.Identity(), Linear(), kind())
