"""Time grids: the decreasing times at which a sampler works; and warnings of times between the levels of training."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from lightning_score.errors import InputError, require, require_passes
from lightning_score.process import NoiseProcess
from lightning_score.score.function import ScoreField

TOLERANCE = 0.03
"""The mean distance in log(sigma/alpha) above which there is a warning: that of all times to levels of ratio 1.13."""
FIRST_LEVEL = 100.0
"""sigma/alpha after the first step from noise alone, from which on a grid is spread by sigma/alpha."""
STAY = (
    "; predictors of fixed steps stay on the levels of a table with --model.sampler.grid ProcessTable, or with Snapped for "
    "those nearest to another grid"
)


class TimeGrid(ABC):
    """Decreasing times from 1 (noise) towards 0 (data)."""

    learns: bool = False
    """Whether the times are learned from the model."""

    @abstractmethod
    def __call__(self, process: NoiseProcess) -> Tensor:
        """The N + 1 times of N steps, decreasing, float64."""

    def discretized(self, process: NoiseProcess) -> NoiseProcess:
        """The process whose coefficients the steps on the grid use; by default the process itself."""
        return process

    def view(self, score: ScoreField) -> ScoreField:
        """The score that the steps on the grid use, of the process `discretized`."""
        return score


class ProcessTable(TimeGrid):
    """Entries of the process's table, largest first, then clean data at t = 0 (DDPM's chain, NCSN's ladder).

    A sub-sequence of N steps has the entries round(L (1 - i/N)), i = 0..N, of the L entries: evenly strided from the last
    entry down to clean data, so that the smallest entry is the one nearest to L/N (Song et al. 2020, 2010.02502, D.2; also
    called trailing).

    Args:
        steps: N, the number of steps, at most L; null: all L entries.

    Raises:
        InputError: the process has no table, or fewer entries than steps.
    """

    def __init__(self, steps: int | None = None):
        require(steps is None or steps >= 1, f"steps={steps}: must be at least 1, as in steps=100, or null")
        require_passes(steps=steps or 0)
        self.steps = steps

    def __call__(self, process: NoiseProcess) -> Tensor:
        times = process.table_times()
        entries, steps = len(times), self.steps or len(times)
        require(
            steps <= entries,
            f"steps={steps}: the table of {type(process).__name__} has {entries} entries; need at most {entries} steps, "
            "or another grid (Uniform, Geometric, Karras)",
        )
        kept = torch.linspace(entries, 0, steps + 1, dtype=torch.float64, device=times.device).round().long()
        return torch.cat([times.new_zeros(1), times])[kept]


class _SteppedGrid(TimeGrid, ABC):
    """A grid of a chosen number of steps from t = 1 to t_min."""

    def __init__(self, steps: int = 1000, t_min: float | None = None):
        require(steps >= 1, f"steps={steps}: must be at least 1, as in steps=100")
        require_passes(steps=steps)
        require(t_min is None or 0 <= t_min < 1, f"t_min={t_min}: must lie in [0, 1), as in 1.0e-3, or be null")
        self.steps, self.t_min = steps, t_min

    def _ends(self, process: NoiseProcess) -> Tensor:
        return torch.tensor([1.0, process.t_min if self.t_min is None else self.t_min], dtype=torch.float64)

    def _ramp(self) -> Tensor:
        return torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)


class Uniform(_SteppedGrid):
    """t_i = 1 + i/N (t_min - 1).

    Args:
        steps: N, the number of steps.
        t_min: last time; null: that of the process.
    """

    def __call__(self, process: NoiseProcess) -> Tensor:
        first, last = self._ends(process)
        return torch.lerp(first, last, self._ramp())


class Quadratic(_SteppedGrid):
    """sqrt(t) falls linearly from t = 1 to t_min, so that steps are shorter near the data.

    Song et al. 2020 (2010.02502), D.2: DDIM's quadratic sub-sequence.

    Args:
        steps: N, the number of steps.
        t_min: last time; null: that of the process.
    """

    def __call__(self, process: NoiseProcess) -> Tensor:
        ends = self._ends(process)
        first, last = ends.sqrt()
        return _pinned(torch.lerp(first, last, self._ramp()) ** 2, ends)


class Geometric(_SteppedGrid):
    """sigma/alpha falls geometrically from t = 1 to t_min: equal steps of log SNR.

    Where alpha(1) = 0 the first step goes from there to sigma/alpha = 100.

    Args:
        steps: N, the number of steps.
        t_min: last time; null: that of the process.
    """

    def __call__(self, process: NoiseProcess) -> Tensor:
        return _from_signal(_geometric, process, self._ends(process), self.steps)


class Karras(_SteppedGrid):
    """(sigma/alpha)^(1/rho) falls linearly from t = 1 to t_min (Karras et al. 2022, 2206.00364, eq. 5).

    The paper also counts the step from t_min to clean data, which on VE is the final denoise Tweedie: its N is N - 1 here.
    Where alpha(1) = 0 the first step goes from there to sigma/alpha = 100.

    Args:
        steps: N, the number of steps.
        t_min: last time; null: that of the process.
        rho: 1 is uniform in sigma, infinity geometric; the paper takes 7.
    """

    def __init__(self, steps: int = 18, t_min: float | None = None, rho: float = 7.0):
        super().__init__(steps, t_min)
        require(rho > 0, f"rho={rho}: must be above 0, as in 7")
        self.rho = rho

    def __call__(self, process: NoiseProcess) -> Tensor:
        return _from_signal(partial(karras_times, rho=self.rho), process, self._ends(process), self.steps)


def _from_signal(
    spread: Callable[[NoiseProcess, Tensor, int], Tensor], process: NoiseProcess, ends: Tensor, steps: int
) -> Tensor:
    """N + 1 times between two ends, (2,), spread by sigma/alpha; from noise alone the first step goes to `FIRST_LEVEL`."""
    if not process.is_noise(ends[0]):
        return spread(process, ends, steps)
    level = torch.maximum(process.noise_level(ends[1]) * 2, torch.full_like(ends[1], FIRST_LEVEL))
    first = process.time_of(level)
    return torch.cat([ends[:1], spread(process, torch.stack([first, ends[1]]), steps - 1)]) if steps > 1 else ends


def _geometric(process: NoiseProcess, ends: Tensor, steps: int) -> Tensor:
    """N + 1 times between two ends, (2,), at which sigma/alpha falls geometrically."""
    first, last = process.log_snr(ends)
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return _pinned(process.inverse_log_snr(torch.lerp(first, last, ramp)), ends)


def karras_times(process: NoiseProcess, ends: Tensor, steps: int, rho: float = 7.0) -> Tensor:
    """N + 1 times between two ends, (2,), at which (sigma/alpha)^(1/rho) is linear (Karras et al. 2022, eq. 5)."""
    first, last = (-process.log_snr(ends) / (2 * rho)).exp()  # (sigma/alpha)^(1/rho)
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return _pinned(process.inverse_log_snr(-2 * rho * torch.lerp(first, last, ramp).log()), ends)


class Snapped(TimeGrid):
    """Another grid on the entries of the process's table: each time becomes the entry of nearest log(sigma/alpha).

    For models that were trained only at a few such entries (`TableTimes`). Times of clean data stay, and no entry repeats.

    Args:
        grid: the other grid; `Karras` by default.
    """

    def __init__(self, grid: TimeGrid | None = None):
        self.grid = grid or Karras()
        require(
            not self.grid.learns, f"grid={type(self.grid).__name__}: learns which levels to use; give it without Snapped"
        )

    def __call__(self, process: NoiseProcess) -> Tensor:
        times, entries = self.grid(process), process.table_times()
        noisy = process.sigma(times) > 0
        log_snr, known = (process.log_snr(process.with_signal(each)) for each in (times[noisy], entries))
        gaps = (log_snr[:, None] - known).abs()
        return torch.cat([entries[gaps.argmin(1)].unique().flip(0), times[~noisy]])


class Given(TimeGrid):
    """Times that are typed in, as times or as noise levels: any published schedule.

    Args:
        times: decreasing times, from 1 (or a time of practically the same noise) down to 0 at the least.
        sigmas: the same as decreasing sigma/alpha, in the units of the data; a first .inf is noise alone, and a last 0 is
            clean data.

    Raises:
        InputError: they do not fall, leave the range of the process, or start with much less noise than the samples have.
    """

    def __init__(self, times: Sequence[float] | None = None, sigmas: Sequence[float] | None = None):
        require(
            (times is None) != (sigmas is None),
            f"times={times}, sigmas={sigmas}: both set the grid; give exactly one of them",
        )
        self._name, values = ("times", times) if times is not None else ("sigmas", sigmas)
        values = list(values or [])
        falling = len(values) >= 2 and all(math.inf >= a > b >= 0 for a, b in pairwise(values))
        require(
            falling, f"{self._name}={values}: must be two or more numbers that fall from noise to data, the last at least 0"
        )
        require(times is None or values[0] <= 1, f"times={values}: must lie between 1 (noise) and 0 (data)")
        require_passes(steps=len(values) - 1)
        self._values = values

    def __call__(self, process: NoiseProcess) -> Tensor:
        values = torch.tensor(self._values, dtype=torch.float64)
        times = values if self._name == "times" else times_of_levels(process, values, "sigmas")
        first, largest = process.sigma(times[0]), process.sigma(torch.ones_like(times[0]))
        require(
            float(first / largest) > 0.9,
            f"{self._name}={self._values}: must start where samples do, at time 1, where sigma/alpha is "
            f"{float(process.noise_level(torch.ones_like(first))):.6g}",
        )
        return times


def times_of_levels(process: NoiseProcess, levels: Tensor, name: str) -> Tensor:
    """The times (N,) at which sigma/alpha has the given values (N,), which `name` stands for in errors; that of 0 is 0.

    Raises:
        InputError: the process does not have one of them.
    """
    times = torch.where(levels > 0, process.time_of(levels.clamp(min=1e-30)), 0.0)
    found = torch.where(process.sigma(times) > 0, process.noise_level(times), 0.0)
    wrong = (found / levels - 1).abs() > 1e-3  # NaN, for 0 and for inf that are there, is not
    if bool(wrong.any()):
        raise InputError(
            f"{name}={float(levels[wrong][0]):.6g}: {type(process).__name__} does not have this noise level (sigma/alpha); "
            f"the nearest is {float(found[wrong][0]):.4g}"
        )
    return times


def _pinned(times: Tensor, ends: Tensor) -> Tensor:
    """The grid with exact ends."""
    return torch.cat([ends[:1], times[1:-1], ends[1:]])


def distance_to_levels(process: NoiseProcess, levels: Tensor, times: Tensor) -> float:
    """Mean over the times of noise of the distance to the nearest level in log(sigma/alpha); 0 if there are none.

    Args:
        process: the noise process.
        levels: the times of the levels, (L,).
        times: the times, (N,); those of clean data are left out.
    """
    noisy = times[process.sigma(times) > 0]
    log_snr, known = (process.log_snr(process.with_signal(each)) for each in (noisy, levels.to(noisy)))
    gaps = (log_snr[:, None] - known).abs() / 2
    return float(gaps.amin(1).mean()) if len(noisy) > 0 else 0.0


def warn_between_levels(name: str, process: NoiseProcess, levels: Tensor | None, times: Tensor, advice: str = STAY) -> None:
    """Warns if scores are evaluated between the levels at which a model was trained.

    Args:
        name: what evaluates them.
        process: the noise process.
        levels: the times of the levels, (L,); None if the model was trained at all times.
        times: the times at which scores are evaluated, (N,).
        advice: what to do.
    """
    if levels is None:
        return
    distance = distance_to_levels(process, levels, times)
    if distance > TOLERANCE:
        few = "one noise level" if len(levels) == 1 else f"{len(levels)} noise levels"
        warnings.warn(
            f"{name}: the model was trained at {few} only, and its score is evaluated between them, "
            f"{math.expm1(distance):.0%} of sigma away on average, where it can be wrong{advice}",
            stacklevel=2,
        )
