"""Every sampler against a law. With a Gaussian's exact score every move is affine in x and z, so that the moments of
the samples are known without drawing any.
"""

import math

import numpy as np
import pytest
import torch
from conftest import CORRECTORS, GRIDS, PREDICTORS, PROCESSES, MixtureScore

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
from lightning_score.sampling.corrector import langevin_step
from lightning_score.utils import InputError

MEAN, STD = 0.5, 0.4


class Given:
    """Hands out the same noise at every step."""

    def __init__(self, z):
        self.z = z

    def normal(self):
        return self.z


def gaussian(process, mean=MEAN, std=STD):
    return MixtureScore(process, Mixture([[mean]], [std]))


def affine(step):
    """(A, B, C) of a step x -> A x + B + C z, in one dimension."""
    x, z = (torch.tensor(v, dtype=torch.float64).unsqueeze(1) for v in ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0]))
    b, a_plus_b, c_plus_b = step(x, Given(z)).flatten().tolist()
    return a_plus_b - b, b, c_plus_b - b


def moments(score, stages, state, mean, variance):
    for method, t, s, _ in stages:
        a, b, c = affine(lambda x, z, m=method, t=t, s=s: m.step(score, x, t, s, z, state[m])[0])
        mean, variance = a * mean + b, a * a * variance + c * c
    return mean, variance


def weak_error(predictor, process, steps, t_min):
    """Error of the mean and the standard deviation at t_min, from the exact law at t = 1."""
    score, times = gaussian(process), Uniform(steps, t_min)(process)
    stages = PredictorCorrector(predictor, grid=Uniform(steps, t_min)).plan(process, times)
    state = {predictor: predictor.init(process, times)}

    def law(t):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        return alpha * MEAN, alpha**2 * STD**2 + sigma**2

    mean, variance = moments(score, stages, state, *law(times[0]))
    exact_mean, exact_variance = law(times[-1])
    return abs(mean - exact_mean) + abs(math.sqrt(variance) - math.sqrt(exact_variance))


ORDER_PROCESSES = [p() if p not in (SigmaTable, BetaTable, VE) else None for p in PROCESSES]
ORDER_PROCESSES = [p for p in ORDER_PROCESSES if p is not None] + [
    VE(0.05, 5.0),
    SigmaTable(0.2, 2.0, 5),
    BetaTable(0.05, 0.3, 5),
]


@pytest.mark.parametrize("process", ORDER_PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kind", [p for p in PREDICTORS if p().calls], ids=lambda p: p.__name__)
def test_every_predictor_converges_at_its_declared_order(kind, process):
    t_min = 0.2  # an entry of the tables, on whose intervals every step lies inside
    errors = [weak_error(kind(), process, steps, t_min) for steps in (200, 400, 800)]
    orders = [math.log2(errors[i] / errors[i + 1]) for i in range(2)]
    assert orders[1] == pytest.approx(kind.order, abs=0.25), (errors, orders)


def test_ddim_with_eta_one_is_ancestral(noise_process):
    score = MixtureScore(noise_process)
    x, z = torch.randn(2, 20, 2, dtype=torch.float64)
    t, s = torch.tensor(0.63, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    ddim, _ = DDIM(1.0).step(score, x, t, s, Given(z), None)
    ancestral, _ = Ancestral().step(score, x, t, s, Given(z), None)
    torch.testing.assert_close(ddim, ancestral)


def test_langevin_has_its_stationary_variance():
    """On N(m, v) the variance tends to v/(1 - e/(2 v)) T: this pins the convention of the step size."""
    score, v, e, temperature = gaussian(VE(1e-3, 1.0)), STD**2 + 1e-6, 0.02, 0.5
    t = torch.zeros((), dtype=torch.float64)
    a, b, c = affine(lambda x, z: langevin_step(score, x, t, torch.tensor(e), z, temperature))
    assert b / (1 - a) == pytest.approx(MEAN, rel=1e-6)
    assert c**2 / (1 - a**2) == pytest.approx(temperature * v / (1 - e / (2 * v)), rel=1e-6)


@pytest.mark.parametrize("kind", CORRECTORS, ids=lambda c: c.__name__)
def test_correctors_stay_on_the_marginal(noise_process, kind):
    """A small step keeps mean and variance up to the predicted bias e/(2 v)."""
    corrector = kind(0.01) if kind is Langevin else kind(1e-6)
    score = gaussian(noise_process)
    times = torch.tensor([0.5, 0.495], dtype=torch.float64)
    t, s = times
    state = corrector.init(noise_process, times)
    a, b, c = affine(lambda x, z: corrector.step(score, x, t, s, z, state)[0])
    v = float(noise_process.alpha(t)) ** 2 * STD**2 + float(noise_process.sigma(t)) ** 2
    e = c**2 / 2
    assert 0 < e < 0.1 * v
    assert b / (1 - a) == pytest.approx(float(noise_process.alpha(t)) * MEAN, rel=1e-5)
    assert c**2 / (1 - a**2) == pytest.approx(v / (1 - e / (2 * v)), rel=1e-5)


def test_langevin_corrector_formula():
    """e = 2 alpha_c (snr sigma)^2 with alpha_c = 1 - beta_i (score SDE, Algorithm 5 without the norms)."""
    process, corrector = BetaTable(), Langevin(0.16)
    score, times = gaussian(process), process.table_times()
    _, _, c = affine(lambda x, z: corrector.step(score, x, times[400], times[399], z, None)[0])
    expected = 2 * (1 - process.betas[400]) * (0.16 * process.sigma(times[400])) ** 2
    assert c**2 / 2 == pytest.approx(float(expected), rel=1e-6)


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


@pytest.mark.parametrize("kind", GRIDS, ids=lambda c: c.__name__)
def test_grids_decrease_from_noise_to_data(noise_process, kind):
    if kind is Table and not isinstance(noise_process, (BetaTable, SigmaTable)):
        with pytest.raises(InputError, match="has no table"):
            kind()(noise_process)
        return
    times = kind()(noise_process)
    assert times.dtype == torch.float64 and float(times[0]) == 1 and bool((times.diff() < 0).all())
    assert float(times[-1]) == (0 if kind is Table else pytest.approx(noise_process.t_min))


def test_grid_formulas():
    process = VE(0.002, 80.0)
    steps = torch.arange(19, dtype=torch.float64) / 18
    karras = (80 ** (1 / 7) + steps * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(process.sigma(Karras(18)(process)), karras)
    geometric = 80 * (0.002 / 80) ** steps
    torch.testing.assert_close(process.sigma(Geometric(18)(process)), geometric)


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


class TestPeers:
    """The same numbers as diffusers, given the same noise."""

    def setup_method(self):
        torch.manual_seed(0)
        self.x, self.z, self.output = torch.randn(3, 4, 3, 8, 8)
        self.process = BetaTable()

    def score(self):
        from lightning_score.parametrization import Noise
        from lightning_score.score import ScoreFunction

        class Net(torch.nn.Module):
            def forward(_, x, label, cond=None):
                return self.output

        return ScoreFunction(Net(), self.process, Noise())

    @pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
    @pytest.mark.parametrize("clip", [True, False])
    def test_ddpm(self, monkeypatch, variance, clip):
        from diffusers import DDPMScheduler
        from diffusers.schedulers import scheduling_ddpm

        from lightning_score.score import ClippedScore

        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *a, **k: self.z)
        peer = DDPMScheduler(variance_type=variance, clip_sample=clip)
        peer.betas = self.process.betas  # theirs cancel in single precision
        peer.alphas_cumprod = torch.cumprod(1 - peer.betas, 0)
        score = ClippedScore(self.score(), -1, 1) if clip else self.score()
        times = self.process.table_times()
        for i in (999, 500, 1):
            expected = peer.step(self.output, i, self.x).prev_sample
            ours, _ = Ancestral(variance == "fixed_large").step(score, self.x, times[i], times[i - 1], Given(self.z), None)
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
    def test_ddim(self, eta):
        from diffusers import DDIMScheduler

        peer = DDIMScheduler(clip_sample=False)
        peer.set_timesteps(50)
        times = self.process.table_times()
        expected = peer.step(self.output, 500, self.x, eta=eta, variance_noise=self.z if eta else None).prev_sample
        ours, _ = DDIM(eta).step(self.score(), self.x, times[500], times[480], Given(self.z), None)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)

    def test_reverse_diffusion_is_line_three_of_algorithm_three(self):
        beta = np.linspace(1e-4, 0.02, 1000)[700]
        times, score = self.process.table_times(), self.score()
        ours, _ = ReverseDiffusion().step(score, self.x, times[700], times[699], Given(self.z), None)
        expected = (2 - math.sqrt(1 - beta)) * self.x + beta * score(self.x, times[700]) + math.sqrt(beta) * self.z
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


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
