"""Times learned from a score: those with which a solver of few steps ends nearest to the exact probability flow.

The solver carries latents from noise to data; so does an accurate one, once. Least squares then moves the times until the
distance of the two ends is smallest. The distance is that of the whole solver, its final denoise included, so that no model
of its error is needed, and any deterministic predictor can be learned for.
"""

import math
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from lightning_score.errors import require
from lightning_score.process import NoiseProcess
from lightning_score.sampling.exact_ends import Draw, Group, allowed, ends_early, group_of
from lightning_score.sampling.grid import Karras
from lightning_score.sampling.sampler import Sampler

Row = NDArray[np.float64]
RHOS, SHARES = (2.0, 4.0, 7.0, 12.0, 30.0), (0.5, 0.65, 0.8)
"""Exponents of the grids from which the fit may start, and the shares of the whole way in log(sigma/alpha) that they go."""
KNOTS = 9
"""Free parameters at most: the logarithms of the steps are linear between so many of them."""
SMOOTH = 1e-4
"""Error per value below which the sum of errors turns into that of their squares."""
ITERATIONS = 15
"""Of the fit, at most."""
EXHAUSTIVE = 256
"""Choices of levels up to which all are tried."""
DIFFERENCE = 3e-3
"""In the parameters, for derivatives."""


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
        logs = process.noise_level(process.with_signal(start)).log()
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
    from scipy.optimize import least_squares  # takes a second to import

    grid = LogSteps(process, start)

    def derivatives(parameters: Row) -> Row:
        here = trials.residuals(grid(parameters), chosen=False)
        moved = [trials.residuals(grid(parameters + unit), chosen=False) for unit in DIFFERENCE * np.eye(len(parameters))]
        return np.nan_to_num(np.stack([(there - here) / DIFFERENCE for there in moved], 1), posinf=0.0, neginf=0.0)

    def residuals(parameters: Row) -> Row:
        return trials.residuals(grid(parameters))

    least_squares(residuals, grid.zero, derivatives, max_nfev=ITERATIONS, ftol=1e-3, xtol=1e-3)


def fit_levels(trials: Trials, levels: Tensor, start: Tensor, moves_end: bool) -> None:
    """Chooses the times after the first among levels: tries all choices, if they are few, and else moves one time after the
    other to higher and lower levels, first by many at once, where that makes the grid better.

    Args:
        trials: the grids that are tried.
        levels: the levels, ascending, (L,).
        start: a grid of levels, (N + 1,).
        moves_end: whether the last time may be another than the lowest level.
    """
    chosen, last = torch.searchsorted(levels, start).tolist(), len(start) - (not moves_end)
    if math.comb(len(levels) - 1 - (not moves_end), last - 1) <= EXHAUSTIVE:
        for inner in combinations(range(len(levels) - 2, -moves_end, -1), last - 1):
            trials.value(levels[[chosen[0], *inner, *chosen[last:]]])
        return
    least, stride = trials.value(start), max(1, len(levels) // (2 * len(start)))
    while stride:
        better = False
        for i, move in ((i, move) for i in range(1, last) for move in (stride, -stride)):
            moved = [*chosen[:i], chosen[i] + move, *chosen[i + 1 :]]
            falls = moved[-1] >= 0 and all(a > b for a, b in pairwise(moved))
            if falls and (found := trials.value(levels[moved])) < least:
                chosen, least, better = moved, found, True
        stride = max(stride // 2, int(better))


def starts(process: NoiseProcess, steps: int, t_min: float | None, moves_end: bool) -> list[Tensor]:
    """The grids from which the fit may start: those of `Karras`, (N + 1,); if the last time is free, with earlier ends, too,
    and with t_min after it, (N + 2,).
    """
    ends = Karras(1, t_min)(process)
    if not moves_end:
        return [Karras(steps, t_min, rho)(process) for rho in RHOS]
    top, low = process.noise_level(process.with_signal(ends)).log()
    lasts = process.time_of(torch.lerp(top, low, torch.tensor(SHARES, dtype=torch.float64)).exp()).tolist()
    early = [torch.cat([Karras(steps, last, rho)(process), ends[1:]]) for last in lasts for rho in RHOS]
    return [Karras(steps + 1, t_min, rho)(process) for rho in RHOS] + early


def starts_of_levels(process: NoiseProcess, steps: int, levels: Tensor) -> list[Tensor]:
    """The same for levels (L,): those nearest to `Karras`, where they are as many, and evenly spaced ones, (N + 1,)."""
    nearest = [allowed(process, levels, Karras(steps, rho=rho)) for rho in RHOS]
    even = levels[torch.linspace(len(levels) - 1, 0, steps + 1).round().long()]
    return [even, *(grid for grid in nearest if len(grid) == steps + 1)]


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
    moves_end = ends_early(sampler, process)
    fit, choice = (group_of(sampler, draw, number, t_min, levels) for number in range(2))
    grids = starts(process, steps, t_min, moves_end) if levels is None else starts_of_levels(process, steps, levels)
    with tqdm(desc="learning times", unit="grid", leave=False, disable=not progress) as bar:
        trials = Trials(fit, choice, steps, bar)
        trials.value(allowed(process, levels, Karras(steps, t_min)))
        start = min(grids, key=trials.value)
        require(math.isfinite(trials.least), f"model.sampler={type(sampler).__name__}: its samples are not finite")
        if levels is None:
            fit_steps(trials, process, start)
        else:
            fit_levels(trials, levels, start, moves_end)
    return trials.best
