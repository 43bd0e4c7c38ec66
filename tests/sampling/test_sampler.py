"""Samplers: the laws of their samples, their ends, and their random numbers."""

import math
from copy import deepcopy
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from conftest import CORRECTORS, PREDICTORS, ImageScore, MixtureScore, QuickNoise, pairs, quick
from laws import gaussian
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_score.data import Mixture
from lightning_score.errors import InputError
from lightning_score.process import VE, VP, BetaTable, Cosine, SigmaTable
from lightning_score.sampling import (
    DDIM,
    HMC,
    IPNDM,
    MALA,
    RK45,
    Ancestral,
    AnnealedLangevin,
    BatchLangevin,
    ConsistentAnnealedLangevin,
    DPMSolver,
    DPMSolver2M,
    EulerMaruyama,
    Geometric,
    Heun,
    HeunInTime,
    Karras,
    KeepNoise,
    Langevin,
    LastMean,
    Leading,
    NoiseStream,
    NoPredictor,
    PredictorCorrector,
    Prior,
    ProcessTable,
    ReverseDiffusion,
    SASolver,
    ScoreSDESteps,
    StochasticHeun,
    Tweedie,
    UnderdampedLangevin,
    Uniform,
    UniformNoise,
)
from lightning_score.sampling.corrector import FixedLangevin
from lightning_score.sampling.plan import plan_of
from lightning_score.score.function import PriorScore, ScoreFunction
from lightning_score.score.parametrization import EDM, Denoised, Noise, Score, ScoreOverSigma


@pytest.mark.parametrize(
    ("process", "sampler"),
    [
        (VP(), PredictorCorrector(ReverseDiffusion(), Langevin(0.16), grid=Uniform(300, 1e-3))),
        (VE(0.01, 8.0), PredictorCorrector(ReverseDiffusion(), Langevin(0.16), predict_first=False, grid=Uniform(300))),
        (BetaTable(5e-4, 0.1, 200), PredictorCorrector(Ancestral(), grid=ProcessTable())),
        (SigmaTable(0.01, 8.0, 30), AnnealedLangevin(5e-6, 30)),
        (SigmaTable(0.01, 8.0, 300), ConsistentAnnealedLangevin(4e-6)),
        (SigmaTable(0.01, 8.0, 60), PredictorCorrector(NoPredictor(), MALA(0.5), 5, grid=ProcessTable())),
        (VE(0.01, 8.0), PredictorCorrector(NoPredictor(), HMC(0.6, 3), grid=Geometric(150))),
        (VE(0.01, 8.0), PredictorCorrector(NoPredictor(), UnderdampedLangevin(0.5), 3, grid=Geometric(100))),
        (VP(), PredictorCorrector(ReverseDiffusion(), BatchLangevin(0.16), predict_first=False, grid=Uniform(300, 1e-3))),
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


DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.mark.parametrize(("kind", "corrector"), pairs())
def test_every_combination_runs_on_vectors_and_images_and_counts_its_evaluations(coarse_process, kind, corrector):
    """In both orders and both precisions, on every device."""
    steps, calls = 2, corrector.evaluations if corrector else 0
    shapes = {(2,): MixtureScore(coarse_process), (1, 4, 4): ImageScore(coarse_process)}
    if corrector and corrector.min_dimension > 16:
        shapes = dict.fromkeys([(corrector.min_dimension,), (1, 32, 32)], ImageScore(coarse_process))
    for predict_first in (True, False):
        sampler = PredictorCorrector(quick(kind), corrector, 1 + predict_first, predict_first, Uniform(steps, 0.25))
        moves = len(sampler.plan(coarse_process, sampler.grid(coarse_process)))
        alone = coarse_process.t_signal < 1  # the grid begins at noise alone, which needs no correction
        first = alone and kind().evaluations > 0  # a step of its own leads away from it
        predictions = steps * kind().evaluations + first * (1 - kind().evaluations * (not getattr(kind, "adaptive", False)))
        corrections = steps - (alone and not predict_first)
        expected = predictions + corrections * (1 + predict_first) * calls
        for dtype, (shape, score), device in product((torch.float32, torch.float64), shapes.items(), DEVICES):
            result = sampler(score.to(device), NoiseStream(3, range(2), shape, device, dtype), trajectory=True)
            assert result.x.shape == (2, *shape) and result.x.dtype == dtype and result.x.device.type == device
            assert bool(result.x.isfinite().all()) and len(result.trajectory) == 1 + moves
            assert result.nfe >= expected if getattr(kind, "adaptive", False) else result.nfe == expected
        assert sampler.evaluations(coarse_process) == expected


@pytest.mark.parametrize(("kind", "corrector"), pairs(correctors=[c for c in CORRECTORS if c.batch_independent]))
def test_sample_k_is_the_same_in_any_batch(kind, corrector):
    shape = (2,) if corrector is None else (max(2, corrector.min_dimension),)
    score, sampler = ImageScore(SigmaTable(0.1, 1.0, 6)), PredictorCorrector(quick(kind), corrector, grid=Uniform(4, 0.1))
    together = sampler(score, NoiseStream(7, range(4), shape)).x
    apart = torch.cat([sampler(score, NoiseStream(7, part, shape)).x for part in ([0], [1, 2], [3])])
    torch.testing.assert_close(together, apart)
    assert not torch.allclose(together, sampler(score, NoiseStream(8, range(4), shape)).x)


class Same(torch.nn.Module):
    """A network that returns what it is given."""

    def forward(self, x, noise_label, cond=None):
        return x


class Operations(TorchDispatchMode):
    """Counts those that write a tensor of a given shape, and all others."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.large, self.small = torch.Size(shape), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            large = isinstance(result, torch.Tensor) and result.shape == self.shape
            self.large, self.small = self.large + large, self.small + (not large)
        return result


@pytest.mark.parametrize(
    ("process", "parametrization", "sampler", "passes"),
    [
        (BetaTable(), Noise(), PredictorCorrector(Ancestral(), clip=(-1, 1)), 6),  # denoised: 2, clip, mean: 2, noise
        (BetaTable(), Noise(), PredictorCorrector(DDIM()), 3),
        (VP(), Noise(), PredictorCorrector(EulerMaruyama()), 3),
        (VP(), Noise(), PredictorCorrector(DPMSolver2M()), 6),
        (VP(), Noise(), PredictorCorrector(DPMSolver(2)), 2 + 4),
        (VP(), Noise(), PredictorCorrector(DPMSolver(3)), 3 + 10),
        (VP(), Noise(), PredictorCorrector(HeunInTime()), 2 + 9),
        (VE(), EDM(), PredictorCorrector(Heun()), 2 * 2 + 6),
        (VE(), ScoreOverSigma(), PredictorCorrector(ReverseDiffusion(), Langevin()), 3 + 3),
    ],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_a_step_passes_over_memory_a_few_times(process, parametrization, sampler, passes):
    """Passes of the network do not count; the functions of time are computed for all steps at once."""
    counts = {}
    for steps in (10, 30):
        sampler.grid, score = Uniform(steps, 0.1), ScoreFunction(Same(), process, parametrization)
        with torch.inference_mode(), Operations((64, 2, 5)) as count:
            sampler(score, QuickNoise(count.shape, dtype=torch.float32))
        counts[steps] = count
    deterministic = isinstance(sampler.predictor, DDIM | DPMSolver | DPMSolver2M | Heun | HeunInTime)
    draws = 0 if deterministic else 2 if sampler.corrector else 1
    calls = sampler.predictor.evaluations + (sampler.corrector is not None)
    assert (counts[30].large - counts[10].large) / 20 - draws <= passes
    assert (counts[30].small - counts[10].small) / 20 <= 45 * calls


def replaced(sampler, score, name, value):
    """Changes one setting by its path, `score.` or of the sampler."""
    *path, last = name.split(".")
    owner = score if path[:1] == ["score"] else sampler
    for part in path[path[:1] == ["score"] :]:
        owner = getattr(owner, part)
    setattr(owner, last, value)


@pytest.mark.parametrize(
    ("sampler", "name", "value"),
    [
        (partial(PredictorCorrector, NoPredictor(), FixedLangevin(1e-3)), "corrector.step_size", 1e-2),
        (partial(PredictorCorrector, NoPredictor(), FixedLangevin(1e-3)), "corrector", FixedLangevin(1e-2)),
        (partial(PredictorCorrector, DDIM(eta=0.5)), "predictor.eta", 1.0),
        (partial(PredictorCorrector, IPNDM(3)), "predictor", IPNDM(2)),
        (partial(PredictorCorrector, Ancestral(), clip=[-1, 1]), "clip", [-0.5, 0.5]),
        (PredictorCorrector, "grid", Uniform(6, 0.1)),
        (PredictorCorrector, "grid.t_min", 0.2),
        (PredictorCorrector, "score.process", VP(0.1, 10)),
        (PredictorCorrector, "score.process.beta_max", 10.0),
        (PredictorCorrector, "score.parametrization.data_std", 2.0),
        (partial(AnnealedLangevin, 1e-3, 2), "temperature", 0.5),
        (PredictorCorrector, "initial", UniformNoise()),
        (PredictorCorrector, "denoise", Tweedie()),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_settings_that_change_between_draws_count(sampler, name, value):
    """A second draw is that of a new sampler with these settings, and the plan is kept while none changes."""

    def fresh():
        return deepcopy(sampler)(grid=Uniform(5, 0.1)), ScoreFunction(Same(), VP(), EDM())

    def draw(sampler, score):
        with torch.inference_mode():
            return sampler(score, QuickNoise((4, 2, 5), dtype=torch.float32)).x

    first, other = fresh(), fresh()
    before = draw(*first)
    assert plan_of(first[0], first[1].process) is plan_of(first[0], first[1].process)
    assert torch.equal(before, draw(*first))
    for each in (first, other):
        replaced(*each, name, deepcopy(value))
    after = draw(*first)
    assert torch.equal(after, draw(*other)) and not torch.equal(before[:, :1], after[:, :1])


def test_a_plan_is_not_that_of_an_equal_method_that_changes_later():
    """A sampler has another predictor with the same settings; those of its first one then change."""
    first, sampler = SASolver(tau=0.5), PredictorCorrector(SASolver(tau=0.5), grid=Uniform(5, 0.1))
    sampler.predictor, second = first, sampler.predictor
    moves = plan_of(sampler, VP()).moves
    sampler.predictor = second
    assert {move.method for move in moves} == {first} and {move.method for move in plan_of(sampler, VP()).moves} == {second}


def test_settings_that_cannot_be_written_are_planned_anew():
    class Own(Uniform):
        pass

    sampler = PredictorCorrector(grid=Own(5, 0.1))
    assert plan_of(sampler, VP()) is not plan_of(sampler, VP())
    assert len(plan_of(sampler, VP()).moves) == 5


class OnePlace(torch.nn.Module):
    """A network that writes all it returns to the same place, as a CUDA graph does."""

    def __init__(self):
        super().__init__()
        self.place = None

    def forward(self, x, noise_label, cond=None):
        self.place = torch.empty_like(x) if self.place is None else self.place
        return torch.cos(3 * x + noise_label[:, None], out=self.place)


class AnyPlace(OnePlace):
    """The same function."""

    def forward(self, x, noise_label, cond=None):
        return torch.cos(3 * x + noise_label[:, None])


@pytest.mark.parametrize(("kind", "corrector"), pairs([kind for kind in PREDICTORS if kind is not RK45]))
def test_a_network_may_write_over_what_it_returned_before(kind, corrector):
    shape = (4, max(2, corrector.min_dimension if corrector else 2))
    for parametrization in (Noise(), Score(), ScoreOverSigma(), Denoised(), EDM()):
        one, any_ = (
            PredictorCorrector(kind(), corrector, grid=Uniform(4, 0.1))(
                ScoreFunction(network(), VP(), parametrization), QuickNoise(shape, dtype=torch.float32)
            )
            for network in (OnePlace, AnyPlace)
        )
        assert torch.equal(one.x, any_.x), parametrization


def test_draws_prefetched_in_threads_are_the_same():
    """As for a GPU, whose blocks also grow."""
    plain, ahead = (NoiseStream(5, range(9), (2, 700)) for _ in range(2))
    ahead._prefetches = True
    for i in range(130):
        assert torch.equal(plain.normal(), ahead.normal())
        if i % 40 == 0:
            assert torch.equal(plain.uniform(), ahead.uniform())
            assert torch.equal(plain.acceptance(), ahead.acceptance())
    assert ahead._draws > plain._draws


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
    accept = NoiseStream(0, range(4000), (3,)).acceptance()
    assert accept.shape == (4000,) and float(accept.min()) >= 0 and float(accept.max()) < 1
    assert abs(float(accept.mean()) - 0.5) < 0.02 and abs(float(accept.var()) - 1 / 12) < 0.005
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
    def test_corrections_without_a_predictor_are_not_skipped(self, denoise):
        """The last move with an evaluation is then a correction."""
        noisy, clean = (
            PredictorCorrector(NoPredictor(), Langevin(), 3, False, Uniform(20), d)(
                gaussian(self.process), NoiseStream(0, range(50), (1,))
            ).x
            for d in (KeepNoise(), denoise)
        )
        assert not torch.equal(noisy, clean)

    def test_tweedie_refuses_a_grid_that_ends_at_clean_data(self):
        with pytest.raises(InputError, match="ends at clean data"):
            PredictorCorrector(Ancestral(), grid=ProcessTable(), denoise=Tweedie()).check(BetaTable())
        AnnealedLangevin(denoise=Tweedie()).check(SigmaTable())


class TestAnalyticFirstStep:
    def samples(self, process, std, *parts, **settings):
        score = MixtureScore(process, Mixture([[0.0, 0.0]], [0.5]))
        sampler = PredictorCorrector(*parts, **settings, analytic_first_step=std)
        sampler.check(process)
        result = sampler(score, NoiseStream(0, range(3), (2,), dtype=torch.float64))
        assert result.nfe == sampler.evaluations(process)
        return result

    @pytest.mark.parametrize("predict_first", [True, False])
    @pytest.mark.parametrize(
        ("kind", "corrector"), pairs([k for k in PREDICTORS if k().evaluations and not k.adaptive], [HMC, Langevin])
    )
    def test_saves_the_evaluations_at_the_first_time_and_is_exact_for_a_gaussian(self, kind, corrector, predict_first):
        process, grid = BetaTable(5e-4, 0.1, 200), ProcessTable(5)
        plain, analytic = (self.samples(process, std, kind(), corrector, 2, predict_first, grid) for std in (None, 0.5))
        torch.testing.assert_close(analytic.x, plain.x)
        corrections = 0 if corrector is None or predict_first else 2 * corrector.evaluations
        assert plain.nfe - analytic.nfe == 1 + corrections

    @pytest.mark.parametrize("grid", [Leading(5), ScoreSDESteps(50), ProcessTable(1)], ids=lambda g: type(g).__name__)
    def test_whatever_the_first_time(self, grid):
        process = BetaTable(5e-4, 0.1, 200)
        for predictor in (Heun(), StochasticHeun(), DPMSolver(3)):
            plain, analytic = (self.samples(process, std, predictor, grid=grid) for std in (None, 0.5))
            torch.testing.assert_close(analytic.x, plain.x)
            assert plain.nfe - analytic.nfe == 1

    def test_is_that_of_diff_sampler(self):
        """At sigma_max they take x/sqrt(1 + sigma^2) for the noise."""
        process, t = VE(0.002, 80.0), torch.ones((), dtype=torch.float64)
        score, x = PriorScore(MixtureScore(process), t, 1.0), 80 * torch.randn(4, 2, dtype=torch.float64)
        torch.testing.assert_close(score.noise(x, t), x / math.sqrt(1 + 80**2), rtol=1e-4, atol=0)
        assert score.evaluations == 0

    def test_refuses_what_it_cannot_do(self):
        with pytest.raises(InputError, match="analytic_first_step=-1: must be the standard deviation of the data"):
            PredictorCorrector(analytic_first_step=-1)
        with pytest.raises(InputError, match=r"analytic_first_step=0.5: .* adaptive steps"):
            PredictorCorrector(RK45(), analytic_first_step=0.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DDIM(2), "eta=2"),
        (lambda: Uniform(0), "steps=0"),
        (lambda: Uniform(t_min=1.0), "t_min=1.0"),
        (lambda: Karras(rho=0), "rho=0"),
        (lambda: UniformNoise(1, 0), "low=1"),
        (lambda: Prior(0), "std=0"),
        (lambda: PredictorCorrector(clip=[1, -1]), "clip="),
        (lambda: PredictorCorrector(corrector_steps=0), "corrector_steps=0"),
    ],
)
def test_errors_name_the_value(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_uniform_draws_are_those_of_the_stream_in_any_portions():
    """The second half of Philox keyed by (seed, k), drawn one by one, whatever is drawn ahead."""
    stream, other = NoiseStream(3, [7, 9], (5,)), NoiseStream(3, [9], (5,))
    drawn = [stream.uniform()[1], *(stream.acceptance()[1:] for _ in range(40)), stream.uniform()[1]]
    first = [other.acceptance(), other.uniform()[0]]
    generator = np.random.Generator(np.random.Philox(key=[3, 9], counter=[0, 0, 0, 1 << 63]))
    exact = torch.tensor([generator.random(dtype=np.float32) for _ in range(50)])
    assert torch.equal(torch.cat(drawn), exact) and torch.equal(torch.cat(first), exact[:6])
