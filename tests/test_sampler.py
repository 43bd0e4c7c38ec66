"""Samplers: the laws of their samples, their ends, and their random numbers."""

import math

import pytest
import torch
from conftest import CORRECTORS, PREDICTORS, MixtureScore
from laws import gaussian, moments

from lightning_score.data import Mixture
from lightning_score.process import VE, VP, BetaTable, Cosine, SigmaTable
from lightning_score.sampling import (
    DDIM,
    Ancestral,
    AnnealedLangevin,
    AnnealedLangevinStep,
    Geometric,
    Karras,
    KeepNoise,
    Langevin,
    LastMean,
    NoiseStream,
    NoPredictor,
    PredictorCorrector,
    ReverseDiffusion,
    Table,
    Tweedie,
    Uniform,
    UniformNoise,
)
from lightning_score.utils import InputError


def test_annealed_langevin_is_algorithm_one():
    """With alpha_i = eps sigma_i^2/sigma_L^2 and eps = 2 step_size: x + alpha_i/2 score + sqrt(alpha_i) z."""
    process, eps, steps = SigmaTable(0.01, 1.0, 10), 4e-5, 3
    sampler, score = AnnealedLangevin(eps / 2, steps), gaussian(process)
    result = sampler(score, NoiseStream(0, range(5), (1,), dtype=torch.float64))
    noise = NoiseStream(0, range(5), (1,), dtype=torch.float64)
    x = process.prior(noise.normal())
    for t in process.table_times().flip(0):
        sigma = process.sigma(t)
        for _ in range(steps):
            alpha = eps * sigma**2 / 0.01**2
            x = x + alpha / 2 * score(x, t) + alpha.sqrt() * noise.normal()
    torch.testing.assert_close(result.x, x)
    assert result.nfe == 10 * steps


def test_annealed_langevin_follows_the_recursion_of_technique_four():
    """On a point mass the variance ratio obeys r_i = q (gamma^2 r_{i-1} - k) + k (Song and Ermon 2020, prop. 4)."""
    process, step_size, steps = SigmaTable(0.01, 1.0, 10), 2e-5, 5
    sampler = AnnealedLangevin(step_size, steps)
    times = sampler.grid(process)
    stages, score = sampler.plan(process, times), gaussian(process, 0.0, 1e-9)
    state = {stage.method: stage.method.init(process, times) for stage in stages}
    shrink, gamma2 = 1 - step_size / 0.01**2, (1 / 0.01) ** (2 / 9)
    q, k = shrink ** (2 * steps), 2 * step_size / (0.01**2 * (1 - shrink**2))
    ratio, variance = 1 / gamma2, 1.0  # so that the first level starts from sigma_max^2
    for level, sigma in enumerate(process.sigmas.flip(0)):
        here = [stage for stage in stages if float(process.sigma(stage.end)) == pytest.approx(float(sigma))]
        _, variance = moments(score, here, state, 0.0, variance)
        ratio = q * (gamma2 * ratio - k) + k
        assert variance / float(sigma) ** 2 == pytest.approx(ratio, rel=1e-6), level


def test_annealed_langevin_on_vp_is_that_on_ve_after_rescaling():
    """x/alpha of a VP process is a VE process: the same noise gives the same samples."""
    vp, mixture = VP(), Mixture([[0.5], [-1.0]], [0.3, 0.2])
    grid = Geometric(12, 1e-3)
    sampler = AnnealedLangevin(1e-6, 3, grid)
    a = sampler(MixtureScore(vp, mixture), NoiseStream(0, range(50), (1,), dtype=torch.float64)).x
    times = grid(vp)
    ladder = (vp.sigma(times) / vp.alpha(times)).flip(0)
    ve = SigmaTable(float(ladder[0]), float(ladder[-1]), len(ladder))
    b = AnnealedLangevin(1e-6, 3)(MixtureScore(ve, mixture), NoiseStream(0, range(50), (1,), dtype=torch.float64)).x
    torch.testing.assert_close(a / vp.alpha(times[-1]), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("process", "sampler"),
    [
        (VP(), PredictorCorrector(ReverseDiffusion(), Langevin(0.16), grid=Uniform(300, 1e-3))),
        (VE(0.01, 8.0), PredictorCorrector(ReverseDiffusion(), Langevin(0.16), predict_first=False, grid=Uniform(300))),
        (BetaTable(5e-4, 0.1, 200), PredictorCorrector(Ancestral(), grid=Table())),
        (SigmaTable(0.01, 8.0, 30), AnnealedLangevin(5e-6, 30)),
        (Cosine(), PredictorCorrector(DDIM(), grid=Uniform(300))),
    ],
    ids=lambda v: type(v).__name__,
)
def test_samples_of_a_mixture_follow_its_law(process, sampler):
    mixture = Mixture([[2.0, 0.0], [-1.0, 1.0], [0.0, -1.5]], [0.5, 0.4, 0.3], [0.5, 0.3, 0.2])
    sampler.check(process)
    n = 4000
    x = sampler(MixtureScore(process, mixture), NoiseStream(0, range(n), (2,))).x.double()
    reference = mixture.sample(100_000, torch.Generator().manual_seed(0))
    for moment in (lambda v: v, lambda v: v**2, lambda v: v[:, :1] * v[:, 1:]):
        difference, spread = moment(x).mean(0) - moment(reference).mean(0), moment(reference).std(0) / math.sqrt(n)
        assert (difference.abs() < 4 * spread + 0.06).all(), (difference, spread)
    mode = (x[:, None] - mixture.means).square().sum(-1).argmin(1)
    exact = (reference[:, None] - mixture.means).square().sum(-1).argmin(1)
    shares, expected = (torch.bincount(m, minlength=3) / len(m) for m in (mode, exact))
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.04)


@pytest.mark.parametrize("predict_first", [True, False])
@pytest.mark.parametrize("corrector", [None, *(c() for c in CORRECTORS)], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("kind", PREDICTORS, ids=lambda p: p.__name__)
def test_every_combination_runs_in_both_precisions_and_counts_its_calls(noise_process, kind, corrector, predict_first):
    sampler = PredictorCorrector(kind(), corrector, 2, predict_first, Uniform(8, 0.1))
    for dtype, shape in ((torch.float32, (2,)), (torch.float64, (2,))):
        result = sampler(MixtureScore(noise_process), NoiseStream(3, range(4), shape, dtype=dtype), trajectory=True)
        assert result.x.dtype == dtype and bool(result.x.isfinite().all())
        assert result.nfe == 8 * (kind().calls + (2 if corrector else 0))
        assert len(result.trajectory) == 1 + len(sampler.plan(noise_process, sampler.grid(noise_process)))


@pytest.mark.parametrize(
    "sampler", [AnnealedLangevin(1e-6, 2), PredictorCorrector(Ancestral(), Langevin(), grid=Table())], ids=["ald", "pc"]
)
def test_sample_k_is_the_same_in_any_batch(sampler):
    score = MixtureScore(SigmaTable(), Mixture([[0.0, 0.3]], [0.5]))
    together = sampler(score, NoiseStream(7, range(6), (2,))).x
    apart = torch.cat([sampler(score, NoiseStream(7, [k], (2,))).x for k in range(6)])
    torch.testing.assert_close(together, apart)
    assert not torch.allclose(together, sampler(score, NoiseStream(8, range(6), (2,))).x)


def test_noise_streams_are_normal_uniform_and_independent():
    stream = NoiseStream(0, range(2000), (3, 5))
    draws = torch.stack([stream.normal() for _ in range(20)])
    assert abs(float(draws.mean())) < 0.01 and abs(float(draws.var()) - 1) < 0.01
    lag = (
        (draws[1:] * draws[:-1]).mean(),
        (draws[:, 1:] * draws[:, :-1]).mean(),
        (draws[..., 1:] * draws[..., :-1]).mean(),
    )
    assert max(abs(float(v)) for v in lag) < 0.01
    uniform = stream.uniform()
    assert float(uniform.min()) >= 0 and float(uniform.max()) < 1 and abs(float(uniform.mean()) - 0.5) < 0.01
    big = NoiseStream(0, [0, 1], (3, 40, 40))
    assert not torch.equal(big.normal(), big.normal())


class TestFinalDenoise:
    process = VE(0.1, 5.0)

    def run(self, denoise):
        sampler = PredictorCorrector(ReverseDiffusion(), None, grid=Uniform(10), denoise=denoise)
        return sampler(gaussian(self.process), NoiseStream(0, range(50), (1,), dtype=torch.float64), trajectory=True)

    def test_tweedie_takes_one_more_evaluation_and_keeps_the_raw_samples(self):
        kept, denoised = self.run(KeepNoise()), self.run(Tweedie())
        assert denoised.nfe == kept.nfe + 1
        torch.testing.assert_close(denoised.raw, kept.x)
        t = torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(denoised.x, gaussian(self.process).denoised(kept.x, t))

    def test_last_mean_takes_none_and_leaves_out_the_last_noise(self):
        kept, mean = self.run(KeepNoise()), self.run(LastMean())
        assert mean.nfe == kept.nfe
        times = Uniform(10)(self.process)
        _, b = self.process.transition(times[-1], times[-2])
        assert float((kept.x - mean.x).std()) == pytest.approx(float(b), rel=0.3)
        torch.testing.assert_close(mean.trajectory[-2], kept.trajectory[-2])

    @pytest.mark.parametrize("denoise", [LastMean(), Tweedie()], ids=["mean", "tweedie"])
    def test_neither_is_skipped_without_a_predictor(self, denoise):
        """The last move that sees the score is the corrector's then."""
        noisy, clean = (
            PredictorCorrector(NoPredictor(), Langevin(), 3, False, Uniform(20), d)(
                gaussian(self.process), NoiseStream(0, range(50), (1,))
            ).x
            for d in (KeepNoise(), denoise)
        )
        assert not torch.equal(noisy, clean)

    def test_tweedie_refuses_a_grid_that_ends_at_clean_data(self):
        with pytest.raises(InputError, match="ends at clean data"):
            PredictorCorrector(Ancestral(), grid=Table(), denoise=Tweedie()).check(BetaTable())
        AnnealedLangevin(denoise=Tweedie()).check(SigmaTable())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AnnealedLangevin(-1e-5), "step_size=-1e-05"),
        (lambda: AnnealedLangevin(steps=0), "steps=0"),
        (lambda: AnnealedLangevin(0.1).check(SigmaTable()), "step_size=0.1: Langevin dynamics diverges"),
        (lambda: AnnealedLangevin().check(VP()), "VP is a continuous process"),
        (lambda: AnnealedLangevinStep(0), "step_size=0"),
        (lambda: Langevin(0), "snr=0"),
        (lambda: DDIM(2), "eta=2"),
        (lambda: Uniform(0), "steps=0"),
        (lambda: Uniform(t_min=1.0), "t_min=1.0"),
        (lambda: Karras(rho=0), "rho=0"),
        (lambda: UniformNoise(1, 0), "low=1"),
        (lambda: PredictorCorrector(clip=[1, -1]), "clip="),
        (lambda: PredictorCorrector(corrector_steps=0), "corrector_steps=0"),
    ],
)
def test_errors_name_the_value(make, words):
    with pytest.raises(InputError, match=words):
        make()
