"""Twisted sequential Monte Carlo: samples of a posterior that become exact as their number grows."""

import math
import warnings
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lightning_score.errors import require, require_passes
from lightning_score.process import NoiseProcess
from lightning_score.sampling.ends import FinalDenoise, Initial, LastMean, Prior
from lightning_score.sampling.grid import Geometric, TimeGrid
from lightning_score.sampling.noise import NoiseSource, NoiseStream
from lightning_score.sampling.predictor import Ancestral, Predictor
from lightning_score.sampling.sampler import Sampler
from lightning_score.sampling.step import Move, SamplerStep
from lightning_score.score.function import Conditioned, ScoreField
from lightning_score.score.posterior import PosteriorScore, posterior_of
from lightning_score.score.trace import inner
from lightning_score.tensors import combine

COLLAPSED = 2.0
"""The effective sample size below which nearly all samples of a group descend from one."""


class _Known(ScoreField):
    """A score of given values."""

    def __init__(self, process: NoiseProcess, value: Tensor):
        super().__init__(process)
        self.value = value

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.value


class _KnownNoise(NoiseSource):
    """Given values in place of all draws."""

    def __init__(self, value: Tensor):
        self.value = value

    def normal(self) -> Tensor:
        return self.value

    uniform = acceptance = normal


def transition(predictor: Predictor, process: NoiseProcess, t: Tensor, s: Tensor) -> tuple[float, float, float] | None:
    """(a, b, c) of a predictor's step x_s = a x_t + b score + c z, read off steps with known score and noise; None if it has
    another form.

    Args:
        predictor: a predictor without state that takes one evaluation.
        process: the noise process.
        t: time, ().
        s: a smaller time, ().
    """
    x, value, z = torch.cat([torch.eye(3), torch.tensor([[0.0] * 3, [1.0, -2.0, 3.0]])]).double().unsqueeze(2).unbind(1)
    found, _ = predictor.step(_Known(process, value), x, t, s, _KnownNoise(z), None)
    a, b, c, zero, mixed = found.flatten().tolist()
    affine = abs(zero) + abs(mixed - (a - 2 * b + 3 * c)) < 1e-6 * (abs(a) + abs(b) + abs(c))
    return (a, b, c) if affine else None


class Weighted(NamedTuple):
    """Weighted samples.

    Fields: log_weight (B,), log_likelihood (the log q(y given x_t) in it, (B,)), ess (the least effective sample size of
    each group so far, (groups,), at levels of less noise than data).
    """

    log_weight: Tensor
    log_likelihood: Tensor
    ess: Tensor


def resample(
    log_weight: Tensor, noise: NoiseSource, particles: int, threshold: float = math.inf
) -> tuple[Tensor, Tensor, Tensor]:
    """Systematic resampling (Kitagawa 1996) within groups of particles, each by random numbers of its own.

    Args:
        log_weight: (B,).
        noise: the random numbers.
        particles: P, the samples of a group.
        threshold: groups are resampled whose effective sample size, 1/sum w^2, is below this share of P.

    Returns:
        The ancestor of each row, (B,), its new log weight, (B,), and the effective sample size of each group.
    """
    w = log_weight.reshape(-1, particles).softmax(1)
    ess = 1 / w.square().sum(1)
    offset = noise.acceptance()[::particles].to(w)
    here = torch.arange(particles, device=w.device)
    total = w.cumsum(1)
    chosen = torch.searchsorted(total / total[:, -1:], (here + offset[:, None]) / particles, right=True)
    due = (ess < threshold * particles)[:, None]
    ancestors = torch.where(due, chosen.clamp(max=particles - 1), here)
    return _rows(ancestors), torch.where(due, 0.0, w.log()).flatten(), ess


def _rows(places: Tensor) -> Tensor:
    """The rows (B,) of places within groups, (groups, P)."""
    groups, particles = places.shape
    return (places + particles * torch.arange(groups, device=places.device)[:, None]).flatten()


class _TwistedStep(SamplerStep):
    """Weights the samples of time t, resamples them, and moves them to s by the predictor's step of the posterior score."""

    evaluations = 1
    batch_independent, needs_observation = False, True

    def __init__(self, predictor: Predictor, particles: int, threshold: float):
        self.predictor, self.particles, self.threshold = predictor, particles, threshold

    def check(self, process: NoiseProcess, times: Tensor) -> None:
        name = type(self.predictor).__name__
        simple = self.predictor.evaluations == 1 and self.predictor.init(process, times) is None
        simple &= all([move.method for move in moves] == [self.predictor] for moves in self.predictor.plan(process, times))
        require(
            simple,
            f"predictor={name}: twisted SMC needs one evaluation per step and no memory of earlier ones; give Ancestral, "
            "ReverseDiffusion, EulerMaruyama, or DDIM with eta=1",
        )
        found = transition(self.predictor, process, *process.with_signal(times[:2]))
        require(
            found is not None and found[2] > 0,
            f"predictor={name}: twisted SMC needs a predictor that draws noise; give Ancestral, or DDIM with eta=1",
        )

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        posterior = posterior_of(score, "TwistedSMC")
        if state is None:
            self.check_rows(score, posterior, x)
        prior, gradient, log_likelihood = posterior.twisted(x, t)
        log_likelihood = log_likelihood.double()
        full = log_likelihood.new_full((len(x) // self.particles,), float(self.particles))
        before = Weighted(0 * log_likelihood, 0 * log_likelihood, full) if state is None else state
        log_weight, least = before.log_weight + log_likelihood - before.log_likelihood, before.ess
        if noise.std:  # not at the last move, after which all are resampled
            rows, log_weight, ess = resample(log_weight, noise, self.particles, self.threshold)
            x, prior, gradient, log_likelihood = (each[rows] for each in (x, prior, gradient, log_likelihood))
            if score.process.log_snr(t) > 0:  # at more noise than data copies part again
                least = torch.minimum(ess, least)
        a, b, c = cast(tuple[float, float, float], self._transition(score.process, t, s))
        if c * noise.std == 0:  # a point, which the observation cannot move
            return combine((a, x), (b, prior)), Weighted(log_weight, log_likelihood, least)
        z = noise.normal()
        shift = (b / c) * gradient.double()
        log_weight = log_weight - inner(shift, shift) / 2 - inner(shift, z)
        return combine((a, x), (b, prior + gradient), (c, z)), Weighted(log_weight, log_likelihood, least)

    def _transition(self, process: NoiseProcess, t: Tensor, s: Tensor) -> tuple[float, float, float] | None:
        """That of the predictor, and from noise alone that of `Ancestral`, whose step may be long there."""
        from_noise = process.t_signal < 1 and t >= process.t_signal
        return transition(Ancestral() if from_noise else self.predictor, process, t, s)

    def check_rows(self, score: ScoreField, posterior: PosteriorScore, x: Tensor) -> None:
        """Raises `InputError` unless rows come in groups, each with one observation that has a density."""
        p = self.particles
        require(len(x) % p == 0, f"particles={p}: {len(x)} samples do not divide into groups of this size; draw a multiple")
        posterior.observation.log_prob(x)
        wrappers = [part for part in score.modules() if isinstance(part, Conditioned)]
        for name, given in (("observation", posterior.observation.y), *(("condition", part.cond) for part in wrappers)):
            groups = given.reshape(-1, p, *given.shape[1:])
            require(
                bool((groups == groups[:, :1]).all()),
                f"particles={p}: the samples of a group must have the same {name}; give one to all, or make "
                f"samples_per_observation a multiple of {p}",
            )


class TwistedSMC(Sampler):
    """Twisted sequential Monte Carlo: groups of samples that follow p_0(x given y) as their number `particles` grows.

    Wu, Trippe, Naesseth, Blei and Cunningham 2023 (2306.17775), Algorithm 1. x_s is drawn from the predictor's transition
    p(x_s given x_t) = N(a x_t + b score, c^2 I) with the score of the guidance, score + gradient of log q(y given x_t), and
    weighted by p(x_s given x_t) q(y given x_s) over this proposal's density and q(y given x_t); at the end the exact
    p(y given x_0) takes the place of q. A network call per step serves both. Whatever q is, the error falls as
    1/particles; a better q needs fewer particles. The samples of a group depend on one another, and some may be equal.

    Args:
        predictor: draws noise and takes one evaluation per step: `Ancestral` (the default), `ReverseDiffusion`,
            `EulerMaruyama`, or `DDIM` with eta 1.
        particles: samples of a group, which are weighted against one another.
        threshold: a group is resampled when its effective sample size falls below this share of `particles`; 1: always.
        grid: the times; 200 steps, even in log(sigma/alpha), by default.
        denoise: what happens to the remaining noise; the noise-free mean of the last move is returned by default.
        initial: where sampling starts; the process's prior by default.
    """

    def __init__(
        self,
        predictor: Predictor | None = None,
        particles: int = 32,
        threshold: float = 0.5,
        grid: TimeGrid | None = None,
        denoise: FinalDenoise | None = None,
        initial: Initial | None = None,
    ):
        require(particles >= 2, f"particles={particles}: must be at least 2, as in 32; alone a sample cannot be weighted")
        require(0 < threshold <= 1, f"threshold={threshold}: must lie in (0, 1], as in 0.5; 1 resamples at every step")
        require_passes(particles=particles)
        super().__init__(grid or Geometric(200), denoise or LastMean(), initial or Prior(), None)
        self.predictor, self.particles, self.threshold = predictor or Ancestral(), particles, threshold
        self._step = _TwistedStep(self.predictor, particles, threshold)

    def plan(self, process: NoiseProcess, times: Tensor) -> list[Move]:
        require_passes(moves=len(times) - 1)
        return [Move(self._step, t, s, s) for t, s in pairwise(process.with_signal(times))]

    def finish(
        self, score: ScoreField, x: Tensor, t: Tensor, noise: NoiseStream, state: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weights by the exact likelihood of the results, under the prior alone, and resamples them."""
        posterior = posterior_of(score, "TwistedSMC")
        result = self.denoise.finish(posterior.score, x, t)
        exact = posterior.observation.log_prob(result).double()
        rows, _, ess = resample(state.log_weight + exact - state.log_likelihood, noise, self.particles)
        order = noise.acceptance().reshape(-1, self.particles).argsort(1)
        rows, ess = rows[_rows(order)], torch.minimum(ess, state.ess)
        collapsed = int((ess < COLLAPSED).sum())
        if collapsed:
            warnings.warn(
                f"TwistedSMC: in {collapsed} of {len(ess)} groups the effective sample size fell to {float(ess.min()):.3g} "
                f"of particles={self.particles}, so that their samples descend from a few and vary too little; give more "
                "particles, more steps, or a guidance nearer to p(y given x_t)",
                stacklevel=2,
            )
        return result[rows], x[rows], ess.repeat_interleave(self.particles)
