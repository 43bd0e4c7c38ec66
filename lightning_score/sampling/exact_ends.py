"""The ends to which the exact probability flow carries latents, and the distances of a solver's samples from them."""

import math
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.process import NoiseProcess
from lightning_score.sampling.exponential import UniPC
from lightning_score.sampling.flow import NoScore
from lightning_score.sampling.from_noise import FROM_NOISE, states_of
from lightning_score.sampling.grid import Karras, Snapped, TimeGrid
from lightning_score.sampling.noise import NoiseStream
from lightning_score.sampling.predictor import Predictor
from lightning_score.sampling.sampler import PredictorCorrector, Sampler, Samples
from lightning_score.score.function import ScoreField

SEED = 8128
"""Of the latents; that of no other samples by default."""
ROWS = 64
"""Latents of a group."""
NOISE = "the sampler draws noise"
EXACT_STEPS = 100
"""Of the accurate solver, UniPC of order 3: on the exact score of digits its mean error per value is 1e-4."""


class Latents(NoiseStream):
    """The draws with which sampling starts, the same at every run; later draws are refused: they would need a path each.

    Args:
        numbers: the number of each latent, (B,).
        shape: of one sample.
        device: of the draws.
        dtype: of the draws.
    """

    def __init__(self, numbers: Sequence[int], shape: Sequence[int], device: Any = "cpu", dtype: Any = torch.float32):
        super().__init__(SEED, numbers, shape, device, dtype)
        self._first: dict[str, Tensor] = {}
        self._drawn = False

    def again(self) -> "Latents":
        """The same latents, from the start."""
        self._drawn = False
        return self

    def normal(self) -> Tensor:
        return self._once("normal", super().normal)

    def uniform(self) -> Tensor:
        return self._once("uniform", super().uniform)

    def acceptance(self) -> Tensor:
        return self._once("acceptance", super().acceptance)

    def _once(self, kind: str, draw: Callable[[], Tensor]) -> Tensor:
        if self._drawn:
            raise InputError(NOISE)
        self._drawn = True
        if kind not in self._first:
            self._first[kind] = draw()
        return self._first[kind]


class _Fixed(TimeGrid):
    """The given times (N + 1,)."""

    def __init__(self, times: Tensor):
        self._times = times

    def __call__(self, process: NoiseProcess) -> Tensor:
        return self._times


def check_learnable(sampler: Sampler, process: NoiseProcess) -> None:
    """Raises `InputError` unless times can be learned for the sampler: it is deterministic and makes steps of a grid."""
    advice = "learn for a deterministic solver: --model.sampler +PredictorCorrector --model.sampler.corrector null "
    advice += "--model.sampler.predictor IPNDM (Langevin samplers: the command tune)"
    methods = {move.method for move in sampler.plan(process, sampler.grid(process))}
    names = ", ".join(sorted(type(method).__name__ for method in methods - {FROM_NOISE} or methods))
    which = f"model.sampler={type(sampler).__name__} ({names})"
    solvers = [method for method in methods if isinstance(method, Predictor)]
    require(not any(solver.adaptive for solver in solvers), f"{which}: chooses its own times, by its tolerances; {advice}")
    dimension = max(method.min_dimension for method in methods)
    try:
        sampler(NoScore(process), Latents([0], [dimension], dtype=torch.float64))
    except InputError as error:
        if str(error) != NOISE:
            raise
        reason = "draws noise, so that its samples have no exact end to be compared with"
        raise InputError(f"{which}: {reason}; {advice}") from error
    require(any(solver.evaluations for solver in solvers), f"{which}: has no solver; {advice}")


class Group:
    """Latents and the ends to which the exact flow carries them.

    Args:
        sampler: the sampler; its grid is not used.
        score: the score of the latents, guided and given their labels.
        latents: where sampling starts.
        exact: times of the accurate solver, (M + 1,).
    """

    def __init__(self, sampler: Sampler, score: ScoreField, latents: Latents, exact: Tensor):
        self._sampler, self._score, self._latents, self._times = sampler, score, latents, exact
        self._accurate = PredictorCorrector(UniPC(3), denoise=sampler.denoise, initial=sampler.initial, clip=sampler.clip)
        self._exact = _ends(self._run(self._accurate, exact))
        self.nfe = 0.0  # of the last run

    def _run(self, sampler: Sampler, times: Tensor, trajectory: bool = False) -> Samples:
        at_times = copy(sampler)
        at_times.grid = _Fixed(times)
        drawn = at_times(self._score, self._latents.again(), trajectory=trajectory)
        self.nfe = drawn.nfe
        return drawn

    @property
    def spread(self) -> float:
        """The standard deviation of the exact ends, the root mean square over their values."""
        return float(self._exact.var(dim=0).mean().sqrt())

    def differences(self, times: Tensor) -> Tensor:
        """The ends on a grid of times minus the exact ends, over the root of the dimension, (B, D)."""
        found = _ends(self._run(self._sampler, times)) - self._exact
        return (found / math.sqrt(found.shape[1])).nan_to_num(torch.inf)

    def errors(self, times: Tensor) -> Tensor:
        """The root mean square over the values of a sample of its distance from the exact end, (B,)."""
        return self.differences(times).norm(dim=1)

    def local_errors(self, times: Tensor) -> list[float]:
        """The root mean square error of every step on a grid of times, (N,), in x/alpha: each begins on the exact path."""
        process = self._score.process
        score = self._sampler.view(self._score, times)
        joined = torch.cat([self._times[self._times > times[-1]], times]).unique().flip(0)
        path = self._run(self._accurate, joined, trajectory=True).trajectory or []
        exact = [path[int((joined == t).nonzero()[0])] for t in times]
        moves, errors = self._sampler.plan(process, times), list[float]()
        states = states_of({move.method for move in moves}, process, times)
        for i, (method, t, s, _) in enumerate(moves):
            x, states[method] = method.step(score, exact[i], t, s, self._latents, states[method])
            errors.append(float((x - exact[i + 1]).double().square().mean().sqrt() / process.alpha(s)))
        return errors


def _ends(drawn: Samples) -> Tensor:
    """The samples in double precision, (B, D)."""
    return drawn.x.flatten(1).double().cpu()


Draw = Callable[[Sequence[int]], tuple[ScoreField, Latents]]
"""The score and the latents of some numbers."""


def allowed(process: NoiseProcess, levels: Tensor | None, grid: TimeGrid) -> Tensor:
    """The times of a grid, or of the levels (L,) those that are nearest."""
    return (grid if levels is None else Snapped(grid))(process)


def group_of(sampler: Sampler, draw: Draw, number: int, t_min: float | None, levels: Tensor | None) -> Group:
    """The group of latents of a number; groups 0 and 1 are those of the fit."""
    score, latents = draw(range(number * ROWS, (number + 1) * ROWS))
    return Group(sampler, score, latents, allowed(score.process, levels, Karras(EXACT_STEPS, t_min)))


def ends_early(sampler: Sampler, process: NoiseProcess) -> bool:
    """Whether the sampler may end at a larger time than asked for, because its final denoise makes up for it."""
    x, t = torch.ones(1, 1, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    return sampler.denoise.finish(NoScore(process), x, t) is not x
