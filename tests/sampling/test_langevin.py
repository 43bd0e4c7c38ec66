"""Langevin samplers: the laws of one noise level and of a ladder, and the formulas of their papers."""

import math

import numpy as np
import pytest
import torch
from conftest import ImageScore, MixtureScore, QuickNoise
from laws import gaussian, moments
from scipy import stats

from lightning_score.data import Mixture
from lightning_score.errors import InputError
from lightning_score.process import VE, VP, BetaTable, Linear, SigmaTable
from lightning_score.process.ladder import choose_step_size, variance_limit, variance_ratio
from lightning_score.sampling import (
    AnnealedLangevin,
    ConsistentAnnealedLangevin,
    Geometric,
    Given,
    KeepNoise,
    LangevinDynamics,
    LastMean,
    NoiseStream,
    ProcessTable,
    Tweedie,
    UniformNoise,
)
from lightning_score.score.function import ScoreField
from lightning_score.tensors import broadcast_to

LADDER = SigmaTable(0.01, 1.0, 10)
GAMMA = 100 ** (1 / 9)


def streams(n=5, shape=(1,)):
    return NoiseStream(0, range(n), shape, dtype=torch.float64)


class TestAnnealedLangevin:
    def test_is_algorithm_one(self):
        """With alpha_i = eps sigma_i^2/sigma_L^2 and eps = 2 step_size: x + alpha_i/2 score + sqrt(alpha_i) z."""
        eps, steps, score, noise = 4e-5, 3, gaussian(LADDER), streams()
        result = AnnealedLangevin(eps / 2, steps)(score, streams())
        x = LADDER.prior(noise.normal())
        for t in LADDER.table_times().flip(0):
            sigma = LADDER.sigma(t)
            for _ in range(steps):
                alpha = eps * sigma**2 / 0.01**2
                x = x + alpha / 2 * score(x, t) + alpha.sqrt() * noise.normal()
        torch.testing.assert_close(result.x, x)
        assert result.nfe == 10 * steps

    def test_is_ncsnv2s_sampler(self):
        """step = step_lr (sigma/sigma_L)^2; x + step grad + noise sqrt(2 step); last x + sigma_L^2 grad; from U[0, 1]."""
        step_lr, shape = 6.2e-6, (3, 4, 4)
        score, noise = ImageScore(LADDER), streams(2, shape)
        sampler = AnnealedLangevin(step_lr, 5, denoise=Tweedie(), initial=UniformNoise(), clip=None)
        result = sampler(score, streams(2, shape))
        x, sigmas = noise.uniform(), LADDER.sigmas.flip(0)
        for t, sigma in zip(LADDER.table_times().flip(0), sigmas, strict=True):
            step = step_lr * (sigma / sigmas[-1]) ** 2
            for _ in range(5):
                grad, z = score(x, t), noise.normal()
                x = x + step * grad + z * (step * 2).sqrt()
        torch.testing.assert_close(result.raw, x)
        torch.testing.assert_close(result.x, x + sigmas[-1] ** 2 * score(x, t))
        assert result.nfe == 10 * 5 + 1

    @pytest.mark.parametrize("step_size", [2e-5, "auto"])
    def test_follows_the_recursion_of_technique_four(self, step_size):
        """On a point mass the variance ratio obeys r_i = q (gamma^2 r_{i-1} - k) + k (Song and Ermon 2020, prop. 4)."""
        steps = 5
        sampler = AnnealedLangevin(step_size, steps)
        times = sampler.grid(LADDER)
        stages, score = sampler.plan(LADDER, times), gaussian(LADDER, 0.0, 1e-9)
        chosen = sampler.chosen_step_size(LADDER, times[:-1])
        state = {stage.method: stage.method.init(LADDER, times) for stage in stages}
        ratio, variance = 1.0, GAMMA**2  # as if from a level before the first
        for level, sigma in enumerate(LADDER.sigmas.flip(0)):
            here = [stage for stage in stages if float(LADDER.sigma(stage.end)) == pytest.approx(float(sigma))]
            _, variance = moments(score, here, state, 0.0, variance)
            ratio = variance_ratio(chosen, 0.01, GAMMA, steps, before=ratio)
            assert variance / float(sigma) ** 2 == pytest.approx(ratio, rel=1e-6), level
        if step_size == "auto":
            assert chosen == pytest.approx(choose_step_size(0.01, GAMMA, steps), rel=1e-9)
            assert ratio == pytest.approx(variance_limit(chosen, 0.01, GAMMA, steps), rel=1e-3)

    def test_equal_values_at_every_level_are_one_value(self):
        """Bit for bit, by the same moves."""
        once, listed = (AnnealedLangevin(*args, denoise=Tweedie()) for args in ((2e-5, 3), ([2e-5] * 10, [3] * 10)))
        assert len(once.plan(LADDER, once.grid(LADDER))) == len(listed.plan(LADDER, listed.grid(LADDER))) == 39
        a, b = (sampler(ImageScore(LADDER), streams(4, (1, 4, 4))) for sampler in (once, listed))
        assert torch.equal(a.x, b.x) and a.nfe == b.nfe == 31

    def test_each_level_has_its_own_step_size_and_steps(self):
        """On a point mass: r_i = q_i (gamma_i^2 r_{i-1} - k_i) + k_i, on levels that are no geometric ladder."""
        process, sigmas = SigmaTable(0.01, 1.0, 100), [1.0, 0.3, 0.02]
        sizes, counts = [1e-4, 4e-5, 2e-4], [2, 1, 5]
        sampler = AnnealedLangevin(sizes, counts, Given(sigmas=sigmas))
        sampler.check(process)
        times = sampler.grid(process)
        stages, score = sampler.plan(process, times), gaussian(process, 0.0, 1e-9)
        _, variance = moments(score, stages, {m: m.init(process, times) for m, *_ in stages}, 0.0, 1.0)
        ratio = 1.0
        for i, (size, count) in enumerate(zip(sizes, counts, strict=True)):
            gamma = sigmas[i - 1] / sigmas[i] if i else 1.0
            ratio = variance_ratio(size, 0.02, gamma, count, before=ratio)
        assert variance / 0.02**2 == pytest.approx(ratio, rel=1e-6)
        assert sampler(score, streams()).nfe == sum(counts)

    def test_auto_is_the_best_step_size(self):
        """CIFAR-10's ladder: 6.2e-6; and no other step size leaves the variance ratio closer to 1."""
        process = SigmaTable(0.01, 50.0, 232)
        sampler = AnnealedLangevin("auto", 5)
        sampler.check(process)
        chosen = sampler.chosen_step_size(process, process.table_times().flip(0))
        assert chosen == pytest.approx(6.2e-6, rel=0.01)
        gamma = 5000 ** (1 / 231)
        best = abs(variance_ratio(chosen, 0.01, gamma, 5) - 1)
        assert all(best <= abs(variance_ratio(chosen * f, 0.01, gamma, 5) - 1) for f in (0.5, 0.9, 1.1, 2.0))

    def test_on_vp_is_that_on_ve_after_rescaling(self):
        """x/alpha of a VP process is a VE process: the same noise gives the same samples."""
        vp, mixture = VP(), Mixture([[0.5], [-1.0]], [0.3, 0.2])
        grid = Geometric(12, 1e-3)
        times = grid(vp)
        ladder = (vp.sigma(times) / vp.alpha(times)).flip(0)
        ve = SigmaTable(float(ladder[0]), float(ladder[-1]), len(ladder))
        for make in (lambda g: AnnealedLangevin(1e-6, 3, g, temperature=0.7), lambda g: ConsistentAnnealedLangevin(9e-5, g)):
            a = make(grid)(MixtureScore(vp, mixture), streams(50))
            b = make(ProcessTable())(MixtureScore(ve, mixture), streams(50))
            torch.testing.assert_close(a.raw / vp.alpha(times[-1]), b.raw, rtol=1e-5, atol=1e-5)

    def test_temperature_narrows_the_samples(self):
        """A Gaussian's variance at temperature T is T v."""
        process = SigmaTable(0.1, 2.0, 20)
        for temperature in (0.25, 1.0):
            x = AnnealedLangevin(5e-4, 40, temperature=temperature)(gaussian(process), QuickNoise((20_000, 1))).x
            assert float(x.var()) == pytest.approx(temperature * (0.4**2 + 0.1**2), rel=0.08)


class TestLangevinDynamics:
    mixture, process, sigma = Mixture([[-0.8], [0.8]], [0.5, 0.3], [0.6, 0.4]), VE(0.1, 2.0), 0.3

    @pytest.mark.parametrize("temperature", [0.5, *(pytest.param(t, marks=pytest.mark.slow) for t in (1.0, 2.0))])
    def test_has_the_law_of_its_temperature(self, temperature):
        """p^(1/T), by its numeric distribution function (Kolmogorov-Smirnov, 5000 particles)."""
        sampler = LangevinDynamics(4e-3, 2500, temperature, sigma=self.sigma)
        sampler.check(self.process)
        x = sampler(MixtureScore(self.process, self.mixture), QuickNoise((5000, 1))).x
        at = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
        log_density = self.mixture.log_prob(at.unsqueeze(1), 1.0, torch.tensor(self.sigma).double())

        def p_value(temperature):
            cdf = (log_density / temperature).exp().cumsum(0)
            return stats.kstest(x[:, 0].numpy(), lambda v: np.interp(v, at.numpy(), (cdf / cdf[-1]).numpy())).pvalue

        assert p_value(temperature) > 0.01
        assert max(p_value(other) for other in (0.5, 1.0, 2.0) if other != temperature) < 1e-6

    def test_moves_to_the_modes_at_temperature_zero(self):
        score, t = MixtureScore(self.process, self.mixture), LangevinDynamics(sigma=self.sigma).grid(self.process)[0]
        x = LangevinDynamics(0.02, 1500, 0.0, sigma=self.sigma)(score, streams(40)).x
        assert float(score(x, t).abs().max()) < 1e-6
        assert len({round(v, 4) for v in x.flatten().tolist()}) == 2
        nearby = torch.cat([x - 0.05, x + 0.05])
        assert (
            self.mixture.log_prob(x, 1.0, score.process.sigma(t)).repeat(2) > self.mixture.log_prob(nearby, 1.0, 0.3)
        ).all()

    def test_samples_at_the_given_level(self):
        for process in (VE(), VP(), BetaTable(), SigmaTable(0.01, 1.0, 10)):
            (by_sigma,), (by_t,), (by_default,) = (
                s.grid(process) for s in (LangevinDynamics(sigma=0.5), LangevinDynamics(t=0.25), LangevinDynamics())
            )
            assert float(process.sigma(by_sigma) / process.alpha(by_sigma)) == pytest.approx(0.5, rel=1e-6)
            assert (float(by_t), float(by_default)) == (0.25, process.t_min)

    def test_step_size_is_in_squared_units_of_the_data(self):
        """x/alpha of a VP process moves as x of VE at the same sigma/alpha."""
        paths = []
        for process in (VE(0.1, 1.0), VP()):
            sampler = LangevinDynamics(1e-3, 20, sigma=0.3, initial=UniformNoise(0, 1))
            alpha = process.alpha(sampler.grid(process))
            sampler.initial = UniformNoise(0, float(alpha))
            result = sampler(MixtureScore(process, self.mixture), streams(30))
            assert result.nfe == 20
            paths.append(result.x / alpha)
        torch.testing.assert_close(*paths)


class LineScore(ScoreField):
    """The exact score of clusters on a line in the plane: a mixture along the line and a point across it."""

    along, across = torch.tensor([[0.8, 0.6], [-0.6, 0.8]], dtype=torch.float64).unsqueeze(1)
    mixture, evaluations = Mixture([[-3.0], [3.0]], [0.4, 0.4], [0.8, 0.2]), 0

    def forward(self, x, t, cond=None):
        sigma = broadcast_to(self.process.sigma(t), x)
        u, w = ((x * v).sum(1, keepdim=True) for v in (self.along, self.across))
        return self.mixture.score(u, 1.0, sigma) * self.along - w / sigma**2 * self.across


def test_one_level_misses_the_weights_of_the_modes_that_many_levels_find():
    """Data on a line, clusters of weight 0.8 and 0.2: 1500 steps at sigma = 0.01 against 30 levels of 50 steps."""
    process, noise = SigmaTable(0.01, 8.0, 30), QuickNoise((1500, 2))
    one = LangevinDynamics(5e-5, 1500, sigma=0.01)(LineScore(process), noise).x
    many = AnnealedLangevin(5e-6, 50)(LineScore(process), noise).x
    weight = [float(((x * LineScore.along).sum(1) < 0).double().mean()) for x in (one, many)]
    assert weight[0] == pytest.approx(0.5, abs=0.05)
    assert weight[1] == pytest.approx(0.8, abs=0.04)
    assert float((many * LineScore.across).sum(1).std()) < 0.02  # on the line, except for the last level's noise
    spread = (many * LineScore.along).sum(1)
    assert float(spread[spread < 0].std()) == pytest.approx(0.4, rel=0.15)


class TestConsistentAnnealedLangevin:
    def test_is_algorithm_two(self):
        """x + eta sigma_i^2 score + beta sigma_{i+1} z, beta = sqrt(1 - ((1 - eta)/g)^2), sigma_{L+1} = 0; then Tweedie."""
        step_size, score, noise = 6e-5, gaussian(LADDER), streams()
        result = ConsistentAnnealedLangevin(step_size)(score, streams())
        eta, g, sigmas = step_size / 0.01**2, 1 / GAMMA, LADDER.sigmas.flip(0)
        beta = math.sqrt(1 - ((1 - eta) / g) ** 2)
        x = LADDER.prior(noise.normal())
        for i, t in enumerate(LADDER.table_times().flip(0)):
            following = sigmas[i + 1] if i < 9 else 0.0
            x = x + eta * sigmas[i] ** 2 * score(x, t) + beta * following * noise.normal()
        torch.testing.assert_close(result.raw, x)
        torch.testing.assert_close(result.x, x + 0.01**2 * score(x, t))
        assert result.nfe == 10 + 1

    @pytest.mark.parametrize(("process", "step_size"), [(LADDER, 6e-5), (SigmaTable(0.01, 50.0, 232), 5.6e-6)])
    def test_keeps_the_variance_of_every_level_exactly(self, process, step_size):
        """On a point mass the variance is sigma_i^2 at every level, where annealed Langevin's is not."""
        sampler = ConsistentAnnealedLangevin(step_size)
        sampler.check(process)
        times = sampler.grid(process)
        stages, variance = sampler.plan(process, times), float(process.sigmas[-1]) ** 2
        state = {stages[0].method: stages[0].method.init(process, times)}
        for stage in stages[:-1]:
            _, variance = moments(gaussian(process, 0.0, 1e-12), [stage], state, 0.0, variance)
            assert variance == pytest.approx(float(process.sigma(stage.end)) ** 2, rel=1e-9)

    @pytest.mark.parametrize(("step_size", "word"), [(3.5e-6, "between 3.62e-06"), (2e-4, "step_size=0.0002")])
    def test_refuses_a_step_size_that_is_not_feasible(self, step_size, word):
        with pytest.raises(InputError, match=word):
            ConsistentAnnealedLangevin(step_size).check(SigmaTable(0.01, 50.0, 232))


SAMPLERS = [
    LangevinDynamics(1e-5, 4, sigma=0.02),
    AnnealedLangevin("auto", 2),
    AnnealedLangevin(1e-6, 2, temperature=0.5),
    ConsistentAnnealedLangevin(6e-5),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_sample_k_is_the_same_in_any_batch_and_every_final_denoise_works(sampler, monkeypatch):
    score, raw = ImageScore(LADDER), {}
    for denoise in (KeepNoise(), LastMean(), Tweedie()):
        monkeypatch.setattr(sampler, "denoise", denoise)
        sampler.check(LADDER)
        together = sampler(score, NoiseStream(7, range(6), (1, 4, 4)))
        apart = torch.cat([sampler(score, NoiseStream(7, [k], (1, 4, 4))).x for k in range(6)])
        torch.testing.assert_close(together.x, apart)
        assert together.nfe == sum(stage.method.evaluations for stage in sampler.plan(LADDER, sampler.grid(LADDER))) + (
            1 if isinstance(denoise, Tweedie) else 0
        )
        raw[type(denoise)] = together.raw
    torch.testing.assert_close(raw[Tweedie], raw[KeepNoise])
    assert not torch.equal(together.x, together.raw)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AnnealedLangevin(-1e-5), "step_size=-1e-05"),
        (lambda: AnnealedLangevin(steps=0), "steps=0"),
        (lambda: AnnealedLangevin(temperature=-1), "temperature=-1"),
        (lambda: AnnealedLangevin([1e-5, -1e-5]), "step_size=-1e-05"),
        (lambda: AnnealedLangevin(steps=[3, 0]), r"steps=\[3, 0\]: need at least one"),
        (lambda: AnnealedLangevin("auto", [3, 4]), r"step_size=auto, steps=\[3, 4\]: auto is for the same steps"),
        (lambda: AnnealedLangevin([1e-5] * 9).check(LADDER), "step_size=.*: a list of 9 for a grid of 10 noise levels"),
        (lambda: AnnealedLangevin(steps=[5] * 11).check(LADDER), "steps=.*: a list of 11 for a grid of 10 noise levels"),
        (lambda: AnnealedLangevin([1e-5] * 9 + [3e-4]).check(LADDER), "step_size=0.0003: Langevin dynamics diverges"),
        (lambda: AnnealedLangevin(0.1).check(SigmaTable()), "step_size=0.1: Langevin dynamics diverges"),
        (lambda: AnnealedLangevin().check(VP()), "VP is a continuous process"),
        (lambda: AnnealedLangevin("auto").check(BetaTable()), "step_size=auto: needs two or more noise levels in geometric"),
        (lambda: AnnealedLangevin("auto").check(SigmaTable(0.1, 0.1, 1)), "step_size=auto: needs two or more"),
        (lambda: LangevinDynamics(0), "step_size=0"),
        (lambda: LangevinDynamics(steps=0), "steps=0"),
        (lambda: LangevinDynamics(temperature=-1), "temperature=-1"),
        (lambda: LangevinDynamics(sigma=1.0, t=0.5), "both set the noise level"),
        (lambda: LangevinDynamics(sigma=0), "sigma=0"),
        (lambda: LangevinDynamics(t=2), "t=2"),
        (lambda: LangevinDynamics(t=0.0).check(VP()), "t=0.0: must be a time of both noise and data"),
        (lambda: LangevinDynamics(t=1.0).check(Linear()), "t=1.0: must be a time of both noise and data"),
        (lambda: LangevinDynamics(sigma=100.0).check(VE()), "sigma=100: VE does not have .* nearest is 50"),
        (lambda: ConsistentAnnealedLangevin(0), "step_size=0"),
    ],
)
def test_errors_name_the_value(make, words):
    with pytest.raises(InputError, match=words):
        make()
