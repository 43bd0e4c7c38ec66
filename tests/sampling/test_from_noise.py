"""Processes that end in noise alone, alpha(1) = 0: flows, and chains of zero terminal signal-to-noise ratio."""

import math
import warnings
from itertools import pairwise

import pytest
import torch
from conftest import CORRECTORS, PREDICTORS, MixtureScore, QuickNoise
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from laws import MEAN, STD, gaussian, moments
from posteriors import LawScore, gaussian as linear_problem
from torch import nn

from lightning_score.data import Mixture
from lightning_score.guidance import MomentMatching, Observed, PseudoInverse
from lightning_score.process import BetaTable, Linear, ScaledLinearBetas
from lightning_score.sampling import (
    DDIM,
    AnnealedLangevin,
    ConsistentAnnealedLangevin,
    DiffPIR,
    Euler,
    Geometric,
    Given,
    Heun,
    Karras,
    KeepNoise,
    NoPredictor,
    PredictorCorrector,
    ProbabilityFlow,
    ProcessTable,
    Restart,
    TwistedSMC,
    Uniform,
)
from lightning_score.sampling.flow import DormandPrince
from lightning_score.sampling.from_noise import states_of
from lightning_score.sampling.likelihood import log_likelihood
from lightning_score.score import Flow, Velocity
from lightning_score.score.function import ScoreFunction
from lightning_score.score.trace import ExactTrace

CHAIN = BetaTable(5e-4, 0.1, 200, zero_snr=True)
EVERY = pytest.mark.parametrize("process", [Linear(), CHAIN], ids=lambda p: type(p).__name__)
MIXTURE = Mixture([[2.0, 0.0], [-1.0, 1.0], [0.0, -1.5]], [0.5, 0.4, 0.3], [0.5, 0.3, 0.2])


def deviation(sampler, process, draws=None):
    """Errors of mean and standard deviation at the sampler's end, relative to the latter, and their law there."""
    sampler.check(process)
    times, moves = sampler.grid(process), sampler.moves(process)
    states = states_of({move.method for move in moves}, process, times)
    mean, variance = moments(gaussian(process), moves, states, 0.0, float(process.sigma(times[0])) ** 2)
    alpha, sigma = float(process.alpha(times[-1])), float(process.sigma(times[-1]))
    std = math.sqrt(alpha**2 * STD**2 + sigma**2)
    return abs(mean - alpha * MEAN) / std + abs(math.sqrt(variance) / std - 1)


@pytest.mark.parametrize(
    ("process", "t_min"), [(Linear(), 0.4), (BetaTable(0.05, 0.3, 5, zero_snr=True), 0.805)], ids=["flow", "chain"]
)
@pytest.mark.parametrize(
    "predictor",
    [p() for p in PREDICTORS if p().order and not p.adaptive],
    ids=lambda predictor: type(predictor).__name__,
)
def test_every_predictor_keeps_its_order_from_noise_up_to_two(predictor, process, t_min):
    errors = [deviation(PredictorCorrector(predictor, grid=Uniform(n, t_min)), process) for n in (100, 200)]
    assert max(errors) < 1e-6 or math.log2(errors[0] / errors[1]) > min(predictor.order, 2) - 0.3, errors
    assert errors[1] < 0.03


@EVERY
@pytest.mark.parametrize("kind", [c for c in CORRECTORS if c.min_dimension == 1 and not c.rejects], ids=lambda c: c.__name__)
def test_correctors_leave_out_noise_alone_and_keep_the_law(kind, process):
    for predict_first in (True, False):
        grid = Uniform(20, 0.2)
        sampler = PredictorCorrector(Heun(), kind(), 2, predict_first, grid)
        assert all(move.t < 1 for move in sampler.moves(process) if isinstance(move.method, kind))
        n = 20_000
        drawn = sampler(MixtureScore(process), QuickNoise((n, 2)))
        t = grid(process)[-1]
        exact = process.alpha(t) * torch.tensor([0.5, -1.0]), (process.alpha(t) ** 2 * 0.25 + process.sigma(t) ** 2).sqrt()
        assert float(((drawn.raw.mean(0) - exact[0]) / exact[1]).abs().max()) < 0.03
        assert float((drawn.raw.std(0) / exact[1] - 1).abs().max()) < 0.08
        assert drawn.nfe == sampler.evaluations(process)


@EVERY
@pytest.mark.parametrize(
    ("make", "bound"),
    [
        (lambda level: AnnealedLangevin("auto", 20, grid=Geometric(30, 0.02)), 0.1),
        (lambda level: ConsistentAnnealedLangevin(0.05 * level**2, Geometric(300, 0.02), KeepNoise()), 0.015),
        (lambda level: PredictorCorrector(NoPredictor(), grid=Geometric(1, 0.02)), 3.0),
        (lambda level: PredictorCorrector(Restart(Heun(), 0.1, 0.6, 4, 2), grid=Karras(30, 0.02)), 0.02),
    ],
    ids=["annealed", "consistent", "none", "restart"],
)
def test_langevin_samplers_start_at_the_first_level_of_data(make, bound, process):
    """With the errors that they have on VP, 0.08, 0.012 and 0.015; without a predictor and corrector, with scaled noise."""
    sampler = make(float(process.noise_level(torch.tensor(0.02))))
    assert deviation(sampler, process) < bound
    moves = [move for move in sampler.moves(process) if move.method.evaluations]
    assert sum(float(move.t) == 1 for move in moves) == isinstance(getattr(sampler, "predictor", None), Restart)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_encode_and_decode_are_inverses(process, dtype):
    x = MIXTURE.sample(5, torch.Generator().manual_seed(0)).to(dtype)
    for flow, bound in ((ProbabilityFlow(), 1e-4), (ProbabilityFlow(Heun(), Uniform(200)), 1e-4)):
        flow.check(process)
        score = MixtureScore(process, MIXTURE)
        latent = flow.encode(score, x)
        assert not torch.allclose(latent, x) and float(latent.abs().max()) < 5
        torch.testing.assert_close(flow.decode(score, latent), x, rtol=0, atol=bound * (1 if dtype == torch.float64 else 20))


@EVERY
def test_the_likelihood_is_that_of_the_law(process):
    """To 1e-5 nats, by the prior N(0, sigma(1)^2 I), which is the law at t = 1, so that nothing warns of it."""
    warnings.simplefilter("error")
    t = torch.tensor(process.t_min, dtype=torch.float64)
    for law in (Mixture([[0.5, -1.0]], [0.5]), *[MIXTURE] * (process is not CHAIN)):
        x = law.sample(6, torch.Generator().manual_seed(0)).double()
        means, weights = process.alpha(t) * law.means.double(), law.weights.double()
        std = (process.alpha(t) ** 2 * law.stds.double() ** 2 + process.sigma(t) ** 2).sqrt()
        each = torch.distributions.Normal(means, std.unsqueeze(1)).log_prob(x.unsqueeze(1)).sum(2)
        found = log_likelihood(MixtureScore(process, law), x, trace=ExactTrace(), solver=DormandPrince(1e-8, 1e-8))
        torch.testing.assert_close(found.value, (each + weights.log()).logsumexp(1), rtol=0, atol=1e-5)


class Affine(nn.Module):
    """A network without meaning, which remembers its labels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 3)

    def forward(self, x, label, cond=None):
        self.label = label
        return self.layer(x).tanh() + 0.1 * label.unsqueeze(1)


def test_euler_is_the_sampler_of_flow_matching():
    """diffusers' FlowMatchEulerDiscreteScheduler, which knows the velocity alone: the first step, from noise, too."""
    score, (x,) = ScoreFunction(Affine(), Linear(), Flow()), torch.randn(1, 4, 3, dtype=torch.float64)
    score = score.double()
    times = [1.0, 0.8, 0.55, 0.3, 0.1, 0.01]
    for predictor in (Euler(), DDIM()):
        sampler = PredictorCorrector(predictor, grid=Given(times))
        drawn, found = x, sampler.moves(score.process)
        for method, t, s, _ in found:
            drawn, _ = method.step(score, drawn, t, s, None, None)
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=times)
        peer = x
        for i, t in enumerate(times[:-1]):
            label = score.parametrization.noise_label(score.process, torch.tensor(t, dtype=torch.float64))
            velocity = score.network(peer, label.expand(4))
            peer = scheduler.step(velocity, scheduler.timesteps[i], peer).prev_sample
        torch.testing.assert_close(drawn, peer, rtol=1e-5, atol=1e-5)  # its times are in single precision


def test_ddim_on_a_chain_to_noise_is_that_of_diffusers():
    """Lin et al. 2023 (2305.08891): rescaled betas, v-prediction, and steps that begin at the last entry (trailing)."""
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True,
        prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False,
    )  # fmt: skip
    process = ScaledLinearBetas(zero_snr=True)
    score = ScoreFunction(Affine(), process, Velocity())
    sampler = PredictorCorrector(DDIM(), grid=ProcessTable(20))
    drawn = peer = torch.randn(4, 3)
    for method, t, s, _ in sampler.moves(process):
        drawn, _ = method.step(score, drawn, t, s, None, None)
    scheduler.set_timesteps(20)
    assert int(scheduler.timesteps[0]) == 999
    for (t, _), step in zip(pairwise(sampler.grid(process)), scheduler.timesteps, strict=True):
        label = score.parametrization.noise_label(process, t)
        peer = scheduler.step(score.network(peer, label.float().expand(4)), step, peer).prev_sample
    torch.testing.assert_close(drawn, peer, rtol=2e-4, atol=2e-4)  # its products of betas are in single precision


@EVERY
def test_guidance_is_exact_from_noise_alone(process):
    """By moment matching, on Gaussian data: with the same random numbers the samples are those of the exact posterior."""
    problem, generator = linear_problem(), torch.Generator().manual_seed(3)
    y = problem.observe(problem.prior.sample(1, generator), generator)
    sampler = PredictorCorrector(Heun(), grid=Karras(20, 1e-3))
    guidance = MomentMatching(problem.operator, noise=problem.noise, iterations=6)
    rows = torch.arange(64)
    guided = sampler(guidance.observe_with(y).guide(LawScore(process, problem.prior), rows), QuickNoise((64, 16)))
    exact = sampler(LawScore(process, problem.posterior(y[0])), QuickNoise((64, 16)))
    torch.testing.assert_close(guided.x, exact.x, rtol=0, atol=1e-4)


@pytest.mark.slow
@EVERY
def test_methods_of_posteriors_start_from_noise_alone(process):
    """Twisted SMC has the posterior's moments along its axes, within the errors of 24 groups, and DiffPIR its mean."""
    problem, generator, (particles, groups) = linear_problem(), torch.Generator().manual_seed(3), (64, 24)
    y = problem.observe(problem.prior.sample(1, generator), generator)
    law = problem.posterior(y[0])
    whitening = torch.linalg.inv(torch.linalg.cholesky(law.covariance))

    def standardized(guidance, sampler, n):
        score = guidance(problem.operator, noise=problem.noise).observe_with(y)
        drawn = sampler(score.guide(LawScore(process, problem.prior), torch.arange(n)), QuickNoise((n, 16)))
        return (drawn.x - law.mean) @ whitening.mT

    x = standardized(PseudoInverse, TwistedSMC(particles=particles, grid=Geometric(200, 1e-3)), particles * groups)
    for found, expected in ((x, 0.0), (x.square(), 1.0)):
        means = found.reshape(groups, particles, 16).mean(1)
        error = means.std(0) / groups**0.5
        assert ((means.mean(0) - expected).abs() < 3 * error + 0.06 * expected).double().mean() > 0.9
    x = standardized(Observed, PredictorCorrector(DiffPIR(1.0, 1.0), grid=Geometric(200, 1e-3)), 1024)
    assert float(x.mean(0).abs().max()) < 0.1
