"""The time grids of published code: diffusers' spacings, and the steps of score SDE."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from lightning_score.errors import require, require_passes
from lightning_score.process import NoiseProcess
from lightning_score.process.cache import CoefficientCache
from lightning_score.sampling.grid import TimeGrid
from lightning_score.score.function import ArgumentWrapper, ScoreField


class _Spacing(TimeGrid, ABC):
    """Entries of the process's table, spaced as diffusers does."""

    def __init__(self, steps: int, to_data: bool, skip_last: bool):
        require(steps >= 2, f"steps={steps}: must be at least 2, as in steps=50: the only step would start near the data")
        require_passes(steps=steps)
        self.steps, self.to_data, self.skip_last = steps, to_data, skip_last

    @abstractmethod
    def _spaced(self, entries: int, n: int) -> Tensor:
        """n numbers of entries, ascending and counted from 0."""

    def __call__(self, process: NoiseProcess) -> Tensor:
        times = process.table_times()
        entries, n = len(times), self.steps + self.skip_last
        require(
            n <= entries,
            f"steps={self.steps}: the table of {type(process).__name__} has {entries} entries; need at most "
            f"{entries - self.skip_last} steps, or another grid (Uniform, Geometric, Karras)",
        )
        kept = times[self._spaced(entries, n)[int(self.skip_last) :]].flip(0)
        end = torch.zeros(1, dtype=times.dtype) if self.to_data else times[:1]
        return torch.cat([kept, end[end < kept[-1]]])


class Leading(_Spacing):
    """diffusers' timestep spacing `leading`: every floor(L/N)-th of the L entries of the process's table, from the smallest.

    DDIM's linear sub-sequence (Song et al. 2020, 2010.02502, D.2). It begins below t = 1, though with the law of t = 1 (Lin
    et al. 2023, 2305.08891, table 2); `ProcessTable` is the spacing `trailing`.

    Args:
        steps: N, from 2 to the number of entries.
        offset: `steps_offset`, added to the number of each entry; Stable Diffusion takes 1.
        to_data: the last step goes to clean data (`set_alpha_to_one`, `final_sigmas_type: zero`); false: to the smallest
            entry (`set_alpha_to_one: false`, `final_sigmas_type: sigma_min`), and there is none if it would start there.
        skip_last: space N + 1 entries and leave out the smallest, as DPMSolverMultistep, UniPC, DEIS and SASolver do; false:
            as DDIM, DDPM and PNDM do.
    """

    def __init__(self, steps: int = 50, offset: int = 0, to_data: bool = True, skip_last: bool = False):
        super().__init__(steps, to_data, skip_last)
        require(offset >= 0, f"offset={offset}: must be at least 0, as in 1")
        self.offset = offset

    def _spaced(self, entries: int, n: int) -> Tensor:
        numbers = torch.arange(n) * (entries // n) + self.offset
        require(
            int(numbers[-1]) < entries,
            f"offset={self.offset}: the first of {self.steps} steps would start at entry {int(numbers[-1]) + 1} of "
            f"{entries}; need at most {self.offset - int(numbers[-1]) + entries - 1}",
        )
        return numbers


class Linspace(_Spacing):
    """diffusers' timestep spacing `linspace`: N entries of the process's table, evenly from the largest to the smallest.

    Lin et al. 2023 (2305.08891), table 2. DDIM takes their times, but steps of floor(L/N) entries as for `leading`, so that
    each of its steps but the last lands beside the next time; here every step lands on it.

    Args:
        steps: N, from 2 to the number of entries.
        to_data: the last step goes to clean data (`set_alpha_to_one`, `final_sigmas_type: zero`); false: to the smallest
            entry (`set_alpha_to_one: false`, `final_sigmas_type: sigma_min`), and there is none if it would start there.
        skip_last: space N + 1 entries and leave out the smallest, as DPMSolverMultistep, UniPC, DEIS and SASolver do; false:
            as DDIM, DDPM and PNDM do.
    """

    def __init__(self, steps: int = 50, to_data: bool = True, skip_last: bool = False):
        super().__init__(steps, to_data, skip_last)

    def _spaced(self, entries: int, n: int) -> Tensor:
        return torch.from_numpy(np.linspace(0, entries - 1, n).round()).long()


class ScoreSDESteps(TimeGrid):
    """The N steps of score SDE's code, which reproduces its samplers as they stand.

    The score is evaluated at the times linspace(1, t_min, N), and every step has the length 1/N: for `EulerMaruyama` with f
    and g at that time, for `ReverseDiffusion`, `Ancestral` and the Langevin correctors with the coefficients of the chain of
    N entries, or Euler's if there is none, as for subVP. Song et al. 2021 (2011.13456), appendices B and G, and the authors'
    `sampling.py`. The times of the grid itself are i/N, down to clean data at 0.

    Args:
        steps: N.
        t_min: last time at which the score is evaluated; the authors take 1e-3 for VP and subVP, 1e-5 for VE. null: that of
            the process.
    """

    def __init__(self, steps: int = 1000, t_min: float | None = None):
        require(steps >= 2, f"steps={steps}: must be at least 2, as in steps=1000")
        require_passes(steps=steps)
        require(t_min is None or 0 < t_min < 1, f"t_min={t_min}: must lie in (0, 1), as in 1.0e-3, or be null")
        self.steps, self.t_min = steps, t_min

    def __call__(self, process: NoiseProcess) -> Tensor:
        return torch.arange(self.steps, -1, -1, dtype=torch.float64) / self.steps

    def discretized(self, process: NoiseProcess) -> "_Discretized":
        return _Discretized(process, self.steps, process.t_min if self.t_min is None else self.t_min)

    def view(self, score: ScoreField) -> ScoreField:
        return _DiscretizedScore(score, self.discretized(score.process))


class _Discretized(NoiseProcess):
    """A process as score SDE's code discretizes it in N steps, where i/N stands for t_min + (i - 1)(1 - t_min)/(N - 1)."""

    def __init__(self, process: NoiseProcess, steps: int, t_min: float):
        super().__init__()
        self.process, self.entries, self.steps, self.first = process, process.chain(steps), steps, t_min
        self.t_min = 1 / steps

    def log_alpha(self, t: Tensor) -> Tensor:
        return self.entries.log_alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.entries.sigma(t)

    def drift(self, t: Tensor) -> Tensor:
        return self.process.drift(self.time(t))

    def diffusion(self, t: Tensor) -> Tensor:
        return self.process.diffusion(self.time(t))

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return self.entries.inverse_log_snr(log_snr)

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.entries is not self.process:
            return super().transition(s, t)
        return 1 + self.drift(t) * (t - s), self.diffusion(t) * (t - s).sqrt()

    def time(self, t: Tensor) -> Tensor:
        """The time at which the score is evaluated."""
        return self.cached("time", self._time, t)

    def _time(self, t: Tensor) -> Tensor:
        return torch.lerp(torch.full_like(t, self.first), torch.ones_like(t), (t * self.steps - 1) / (self.steps - 1)).clamp(
            self.first, 1
        )

    @contextmanager
    def cached_at(self, times: Tensor, kept: CoefficientCache | None = None) -> Iterator[None]:
        with super().cached_at(times, kept), self.process.cached_at(self.time(times)):
            yield


class _DiscretizedScore(ArgumentWrapper):
    """A score evaluated at the times for which those of a discretized process stand."""

    process: _Discretized

    def __init__(self, score: ScoreField, process: _Discretized):
        super().__init__(score)
        self.process = process

    def arguments(self, t: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.process.time(t), cond

    def around(self, score: ScoreField) -> "_DiscretizedScore":
        return _DiscretizedScore(score, self.process)

    def denoised(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """By alpha and sigma of the discretized process, where x still holds data."""
        return super().denoised(x, t, cond) if t > self.process.t_signal else ScoreField.denoised(self, x, t, cond)
