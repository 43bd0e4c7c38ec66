"""Times learned from a score: those with which a solver of few steps ends nearest to the exact probability flow.

The solver carries latents from noise to data; so does an accurate one, once. Least squares then moves the times until the
distance of the two ends is smallest. The distance is that of the whole solver, its final denoise included, so that no model
of its error is needed, and any deterministic predictor can be learned for.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from torch import Tensor
from tqdm.auto import tqdm

from lightning_score.errors import InputError, require
from lightning_score.process import NoiseProcess
from lightning_score.sampling.grid import Karras, Snapped, TimeGrid
from lightning_score.sampling.multistep import UniPC
from lightning_score.sampling.noise import NoiseStream
from lightning_score.sampling.predictor import Predictor
from lightning_score.sampling.sampler import PredictorCorrector, Sampler, Samples
from lightning_score.score.function import ClippedScore, ScoreField

Row = NDArray[np.float64]
SEED = 8128
"""Of the latents; that of no other samples by default."""
ROWS = 64
"""Latents to which times are fitted; as many others choose among the fitted grids, and the errors of others are reported."""
EXACT_STEPS = 100
"""Of the accurate solver, UniPC of order 3: on the exact score of digits its mean error per value is 1e-4."""
STARTS = (2.0, 4.0, 7.0, 12.0, 30.0)
"""Exponents rho of the grids from which the fit may start."""
KNOTS = 9
"""Free parameters at most: the logarithms of the steps are linear between so many of them."""
SMOOTH = 1e-4
"""Error per value below which the sum of errors turns into that of their squares."""
ITERATIONS = 20
DIFFERENCE = 3e-3
"""In the parameters, for derivatives."""


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
            raise InputError("it draws noise")
        self._drawn = True
        if kind not in self._first:
            self._first[kind] = draw()
        return self._first[kind]


class Fixed(TimeGrid):
    """The given times (N + 1,)."""

    def __init__(self, times: Tensor):
        self._times = times

    def __call__(self, process: NoiseProcess) -> Tensor:
        return self._times


class _NoScore(ScoreField):
    """A score of zero, with which a sampler is tried."""

    evaluations = 0

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)


def check_learnable(sampler: Sampler, process: NoiseProcess) -> None:
    """Raises `InputError` unless times can be learned for the sampler: it is deterministic and makes steps of a grid."""
    name, advice = type(sampler).__name__, "learn for a deterministic one: "
    advice += "--model.sampler +PredictorCorrector --model.sampler.corrector null --model.sampler.predictor IPNDM"
    methods = {move.method for move in sampler.plan(process, sampler.grid(process))}
    solvers = [method for method in methods if isinstance(method, Predictor)]
    if not solvers:
        raise InputError(f"model.sampler={name}: no steps of a solver, for which times could be learned; {advice}")
    for solver in solvers:
        of = f"predictor={type(solver).__name__}"
        require(not solver.adaptive, f"{of}: chooses its own times by its tolerances; {advice}")
        require(solver.evaluations > 0, f"{of}: makes no use of the score; {advice}")
    dimension = max(method.min_dimension for method in methods)
    try:
        sampler(_NoScore(process), Latents([0], [dimension], dtype=torch.float64))
    except InputError as error:
        if str(error) != "it draws noise":
            raise
        drawing = ", ".join(sorted(type(method).__name__ for method in methods))
        text = f"model.sampler={name} ({drawing}): draws noise, so that its samples have no exact end to be compared with"
        raise InputError(f"{text}; {advice}") from error


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
        at_times.grid = Fixed(times)
        drawn = at_times(self._score, self._latents.again(), trajectory=trajectory)
        self.nfe = drawn.nfe
        return drawn

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
        score = self._score if self._sampler.clip is None else ClippedScore(self._score, *self._sampler.clip)
        joined = torch.cat([self._times[self._times > times[-1]], times]).unique().flip(0)
        path = self._run(self._accurate, joined, trajectory=True).trajectory or []
        exact = [path[int((joined == t).nonzero()[0])] for t in times]
        (method,) = {move.method for move in self._sampler.plan(process, times)}
        state, errors = method.init(process, times), []
        for i, (t, s) in enumerate(pairwise(times)):
            x, state = method.step(score, exact[i], t, s, self._latents, state)
            errors.append(float((x - exact[i + 1]).double().square().mean().sqrt() / process.alpha(s)))
        return errors


def _ends(drawn: Samples) -> Tensor:
    """The samples in double precision, (B, D)."""
    return drawn.x.flatten(1).double().cpu()


class Trials:
    """Grids that are tried: their residuals on the latents of the fit, and the best of them on others.

    Args:
        fit: the latents to which times are fitted.
        choice: those that choose among the grids, so that none is fitted too closely.
        steps: N; of longer grids only the first N + 1 times are used.
        progress: a bar, which counts the grids.
    """

    def __init__(self, fit: Group, choice: Group, steps: int, progress: Any):
        self._fit, self._choice, self._steps, self._progress = fit, choice, steps, progress
        self.best, self.least = torch.empty(0), math.inf

    def residuals(self, times: Tensor, chosen: bool = True) -> Row:
        """Numbers whose squares sum to the mean error of the samples; that of squares would follow the few samples alone
        that any error carries to another mode.
        """
        used = times[: self._steps + 1]
        differences = self._fit.differences(used)
        errors = differences.norm(dim=1, keepdim=True)
        if chosen:
            found = float(self._choice.errors(used).mean())
            if found < self.least:
                self.best, self.least = used, found
        self._progress.update()
        residuals: Row = (differences / (errors + SMOOTH).sqrt()).flatten().numpy() / math.sqrt(len(errors))
        return residuals

    def value(self, times: Tensor) -> float:
        """The mean error of the samples of the fit."""
        return float(np.nan_to_num((self.residuals(times) ** 2).sum(), nan=math.inf))


class LogSteps:
    """Grids by parameters: log(sigma/alpha) falls from end to end in steps whose logarithms are moved by piecewise linear
    functions with at most `KNOTS` values.

    Args:
        process: the noise process.
        start: the grid of parameters zero, (M + 1,).
    """

    def __init__(self, process: NoiseProcess, start: Tensor):
        logs = process.noise_level(start).log()
        self._process, self._ends, self._top = process, start[[0, -1]], float(logs[0])
        falls: Row = -logs.diff().numpy()
        self._total, self._start = float(falls.sum()), np.log(falls)
        knots = min(len(falls), KNOTS)
        places = np.linspace(0, knots - 1, len(falls))
        self._basis: Row = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(knots)))

    @property
    def zero(self) -> Row:
        """The parameters of the start."""
        return np.zeros(self._basis.shape[1])

    def __call__(self, parameters: Row) -> Tensor:
        """The grid of some parameters, (M + 1,)."""
        logs = self._start + self._basis @ parameters
        falls = np.exp(logs - logs.max())
        below = self._top - self._total * np.cumsum(falls / falls.sum())[:-1]
        inner = self._process.time_of(torch.from_numpy(np.exp(below)))
        return torch.cat([self._ends[:1], inner, self._ends[1:]])


def fit_steps(trials: Trials, process: NoiseProcess, start: Tensor) -> None:
    """Gauss-Newton (a trust region, scipy's) from a grid, (M + 1,), with differences as derivatives."""
    grid = LogSteps(process, start)

    def derivatives(parameters: Row) -> Row:
        here = trials.residuals(grid(parameters), chosen=False)
        moved = [trials.residuals(grid(parameters + unit), chosen=False) for unit in DIFFERENCE * np.eye(len(parameters))]
        return np.nan_to_num(np.stack([(there - here) / DIFFERENCE for there in moved], 1), posinf=0.0, neginf=0.0)

    def residuals(parameters: Row) -> Row:
        return trials.residuals(grid(parameters))

    least_squares(residuals, grid.zero, derivatives, max_nfev=ITERATIONS, ftol=1e-3, xtol=1e-3)


def fit_levels(trials: Trials, levels: Tensor, start: Tensor) -> None:
    """Moves one time of a grid after the other, (M + 1,), to higher and lower levels, (L,), while that makes it better; by
    fewer levels at once when nothing does.
    """
    chosen = torch.searchsorted(levels, start).tolist()
    least, stride = trials.value(start), max(1, len(levels) // (2 * len(start)))
    while stride:
        better = False
        for i, move in ((i, move) for i in range(1, len(chosen) - 1) for move in (stride, -stride)):
            moved = [*chosen[:i], chosen[i] + move, *chosen[i + 1 :]]
            if all(a > b for a, b in pairwise(moved)) and (found := trials.value(levels[moved])) < least:
                chosen, least, better = moved, found, True
        stride = stride if better else stride // 2


def _ends_early(sampler: Sampler, process: NoiseProcess) -> bool:
    """Whether the sampler may end at a larger time than asked for, because its final denoise makes up for it."""
    x, t = torch.ones(1, 1, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    return sampler.denoise.finish(_NoScore(process), x, t) is not x


Draw = Callable[[Sequence[int]], tuple[ScoreField, Latents]]
"""The score and the latents of some numbers."""


def allowed(process: NoiseProcess, levels: Tensor | None, grid: TimeGrid) -> Tensor:
    """The times of a grid, or of the levels (L,) those that are nearest."""
    return (grid if levels is None else Snapped(grid))(process)


def group_of(sampler: Sampler, draw: Draw, number: int, t_min: float | None, levels: Tensor | None) -> Group:
    """The group of latents of a number; groups 0 and 1 are those of the fit."""
    score, latents = draw(range(number * ROWS, (number + 1) * ROWS))
    return Group(sampler, score, latents, allowed(score.process, levels, Karras(EXACT_STEPS, t_min)))


def check_steps(steps: int, levels: Tensor | None) -> None:
    """Raises `InputError` if there are fewer levels (L,) than times of so many steps."""
    few = levels is not None and len(levels) <= steps
    at_most = f"; at most {len(levels) - 1}" if levels is not None and len(levels) > 1 else ""
    require(not few, f"steps={steps}: the model was trained at {0 if levels is None else len(levels)} levels{at_most}")


def learn(
    sampler: Sampler,
    process: NoiseProcess,
    draw: Draw,
    steps: int,
    t_min: float | None = None,
    levels: Tensor | None = None,
    progress: bool = False,
) -> Tensor:
    """The learned times of a sampler, (N + 1,).

    Args:
        sampler: a deterministic sampler; its grid is not used.
        process: the noise process.
        draw: the score and the latents of some numbers.
        steps: N, the number of steps.
        t_min: the last time at most; None: that of the process.
        levels: the only allowed times, ascending, (L,); None: all.
        progress: show a progress bar.

    Raises:
        InputError: there are too few levels for the steps, or no grid has finite samples.
    """
    check_steps(steps, levels)
    spare = int(_ends_early(sampler, process))  # the last step of a longer grid is left to the final denoise
    if levels is not None:
        spare = min(spare, len(levels) - 1 - steps)
    fit, choice = (group_of(sampler, draw, number, t_min, levels) for number in range(2))
    grids = [allowed(process, levels, Karras(steps + spare, t_min, rho)) for rho in STARTS]
    if levels is not None:
        grids.append(levels[torch.linspace(len(levels) - 1, 0, steps + spare + 1).round().long()])
    with tqdm(desc="learning times", unit="grid", leave=False, disable=not progress) as bar:
        trials = Trials(fit, choice, steps, bar)
        trials.value(allowed(process, levels, Karras(steps, t_min)))
        start = min((grid for grid in grids if len(grid) == steps + spare + 1), key=trials.value)
        require(math.isfinite(trials.least), f"model.sampler={type(sampler).__name__}: its samples are not finite")
        if levels is None:
            fit_steps(trials, process, start)
        else:
            fit_levels(trials, levels, start)
    return trials.best
