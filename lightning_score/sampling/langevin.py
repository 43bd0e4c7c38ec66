"""Langevin samplers: no predictor, only Langevin dynamics at one noise level or down a ladder of them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor

from lightning_score.errors import require, require_passes
from lightning_score.process import NoiseProcess
from lightning_score.process.ladder import choose_step_size
from lightning_score.sampling.corrector import Corrector, FixedLangevin, TimedLangevin, require_temperature
from lightning_score.sampling.ends import FinalDenoise, Initial, KeepNoise, Prior, Tweedie
from lightning_score.sampling.grid import ProcessTable, TimeGrid, times_of_levels
from lightning_score.sampling.metropolis import MALA
from lightning_score.sampling.predictor import NoPredictor
from lightning_score.sampling.sampler import Sampler
from lightning_score.sampling.step import Affine, AffineStep, Move


class SingleLevel(TimeGrid):
    """A single time: the given one, or that at which sigma/alpha has the given value, or the process's t_min."""

    def __init__(self, sigma: float | None, t: float | None):
        self.sigma, self.t = sigma, t

    def __call__(self, process: NoiseProcess) -> Tensor:
        if self.sigma is None:
            return torch.tensor([process.t_min if self.t is None else self.t], dtype=torch.float64)
        return times_of_levels(process, torch.tensor([self.sigma], dtype=torch.float64), "sigma")


class MarkovChain(Sampler):
    """Markov chain Monte Carlo at one noise level, without a ladder: `steps` steps of a corrector.

    Args:
        corrector: the step of the chain; `MALA` with its defaults if null.
        steps: number of steps.
        sigma: the noise level, as sigma/alpha, in the units of the data; null: given by t.
        t: the time of the noise level; null: the process's t_min.
        denoise: what happens to the remaining noise; it stays by default.
        initial: where sampling starts; the process's prior by default.
        clip: [low, high], to which the denoised image is clipped at every evaluation; null: not at all.
    """

    needs_noise = False

    def __init__(
        self,
        corrector: Corrector | None = None,
        steps: int = 1000,
        sigma: float | None = None,
        t: float | None = None,
        denoise: FinalDenoise | None = None,
        initial: Initial | None = None,
        clip: Sequence[float] | None = None,
    ):
        require(steps >= 1, f"steps={steps}: need at least one step, as in steps=1000")
        require_passes(steps=steps)
        require(sigma is None or t is None, f"sigma={sigma}, t={t}: both set the noise level; give one of them")
        require(sigma is None or sigma > 0, f"sigma={sigma}: must be above 0, as in 0.01")
        require(t is None or 0 <= t <= 1, f"t={t}: must lie in [0, 1]")
        super().__init__(SingleLevel(sigma, t), denoise or KeepNoise(), initial or Prior(), clip)
        self.steps, self.sigma, self.t, self.corrector = steps, sigma, t, corrector or MALA()

    def plan(self, process: NoiseProcess, times: Tensor) -> list[Move]:
        level = times[0]
        require(
            float(process.sigma(level)) > 0 and not process.is_noise(level),
            f"t={self.t}: must be a time of both noise and data, because clean data have no score and noise alone knows "
            "nothing of them; give a time between 0 and 1, or sigma",
        )
        return [Move(self.corrector, level, level, level)] * self.steps


class LangevinDynamics(MarkovChain):
    """Langevin dynamics at one noise level, without a ladder: x <- x + e score + sqrt(2 e T) z, of law p_t^(1/T).

    Roberts and Tweedie 1996; Song and Ermon 2019 (1907.05600), section 2.2. It does not mix between separated modes,
    which annealing solves. For processes other than VE it runs on x/alpha.

    Args:
        step_size: e, in squared units of the data. On a Gaussian of variance v it needs e < 2 v, and the variance of the
            samples tends to T v/(1 - e/(2 v)).
        steps: Langevin steps.
        temperature: T; 1 samples p_t, 0 moves to its modes.
        sigma: the noise level, as sigma/alpha, in the units of the data; null: given by t.
        t: the time of the noise level; null: the process's t_min.
        denoise: what happens to the remaining noise; it stays by default.
        initial: where sampling starts; the process's prior by default.
        clip: [low, high], to which the denoised image is clipped at every evaluation; null: not at all.
    """

    def __init__(
        self,
        step_size: float = 1e-5,
        steps: int = 1000,
        temperature: float = 1.0,
        sigma: float | None = None,
        t: float | None = None,
        denoise: FinalDenoise | None = None,
        initial: Initial | None = None,
        clip: Sequence[float] | None = None,
    ):
        super().__init__(FixedLangevin(step_size, temperature), steps, sigma, t, denoise, initial, clip)
        self.step_size, self.temperature = step_size, temperature


class AnnealedLangevinStep(TimedLangevin):
    """x <- x + e score + sqrt(2 e T) z with e = step_size sigma^2/sigma_min^2, where sigma_min is the smallest sigma/alpha.

    Song and Ermon 2019 (1907.05600), Algorithm 1, line 6; for processes other than VE it runs on x/alpha.

    Args:
        step_size: epsilon, the step size at the smallest level, in squared units of the data. This is `step_lr` of the
            authors' code; the epsilon of Algorithm 1 is twice as large.
        temperature: T, of the law p_t^(1/T).
    """

    def __init__(self, step_size: float = 2e-5, temperature: float = 1.0):
        require(step_size > 0, f"step_size={step_size}: must be above 0, as in 2.0e-5")
        require_temperature(temperature)
        self.step_size, self.temperature = step_size, temperature

    def init(self, process: NoiseProcess, times: Tensor) -> Tensor:
        return smallest_level(process, times) ** 2

    def check(self, process: NoiseProcess, times: Tensor) -> None:
        limit = 2 * float(self.init(process, times))
        require(
            self.step_size < limit,
            f"step_size={self.step_size}: Langevin dynamics diverges on this process and grid unless "
            f"step_size < 2 sigma_min^2 = {limit:.3g}; try {limit / 10:.3g}",
        )

    def size_at(self, process: NoiseProcess, t: Tensor, s: Tensor, state: Any) -> Tensor:
        return self.step_size * process.sigma(t) ** 2 / state


def smallest_level(process: NoiseProcess, times: Tensor) -> Tensor:
    """sigma/alpha at the last of the decreasing times (N + 1,) that is not clean data, ()."""
    levels = process.noise_level(times)
    return levels[levels > 0][-1]


def levels_of(process: NoiseProcess, times: Tensor) -> Tensor:
    """The decreasing times (L,) of both noise and data: from noise alone samples go to the first of them without a step."""
    return times[(process.sigma(times) > 0) & (process.alpha(times) > 0)]


class AnnealedLangevin(Sampler):
    """Annealed Langevin dynamics: `steps` Langevin steps at every noise level, the largest level first.

    x <- x + e_i score + sqrt(2 e_i T) z with e_i = step_size sigma_i^2/sigma_min^2: Song and Ermon 2019 (1907.05600),
    Algorithm 1, with T = 1. For processes other than VE it runs on x/alpha. The command `tune` chooses the levels, and a
    step size and steps for each.

    Args:
        step_size: epsilon, the step size at the smallest level, in squared units of the data, below 2 sigma_min^2. This is
            `step_lr` of the authors' code; the epsilon of Algorithm 1 is twice as large. A list: one for every level, the
            largest first, in the same unit, so that e_i = step_size_i sigma_i^2/sigma_min^2. auto: the one for which the
            variance of the samples after every level is closest to sigma_i^2 (technique 4 of Song and Ermon 2020,
            2006.09011).
        steps: Langevin steps per level (the papers' T); a list: those of every level, the largest level first.
        grid: the noise levels; the table of the process by default.
        denoise: what happens to the remaining noise; it stays by default.
        initial: where sampling starts; the process's prior by default.
        clip: [low, high], to which the denoised image is clipped at every evaluation; null: not at all.
        temperature: T, of the laws p_t^(1/T); below 1 fewer and more typical images.
    """

    needs_noise = False

    def __init__(
        self,
        step_size: float | Literal["auto"] | Sequence[float] = 2e-5,
        steps: int | Sequence[int] = 100,
        grid: TimeGrid | None = None,
        denoise: FinalDenoise | None = None,
        initial: Initial | None = None,
        clip: Sequence[float] | None = None,
        temperature: float = 1.0,
    ):
        for count in _listed(steps):
            require(count >= 1, f"steps={steps}: need at least one Langevin step per level, as in steps=100")
            require_passes(steps=count)
        for size in _listed(step_size):
            AnnealedLangevinStep(1.0 if size == "auto" else size, temperature)  # raises an error for invalid ones
        require(
            step_size != "auto" or not isinstance(steps, Sequence),
            f"step_size=auto, steps={steps}: auto is for the same steps at every level; give step sizes, as `tune` does",
        )
        super().__init__(grid or ProcessTable(), denoise or KeepNoise(), initial or Prior(), clip)
        self.step_size, self.steps, self.temperature = step_size, steps, temperature
        self._next_level, self._steps = NoPredictor(), dict[float, AnnealedLangevinStep]()

    def chosen_step_size(self, process: NoiseProcess, levels: Tensor) -> float | Sequence[float]:
        """The step size at the smallest of the decreasing times of noise (L,): the given one, or technique 4's.

        Raises:
            InputError: step_size=auto on levels that are not a geometric ladder of two or more.
        """
        if self.step_size != "auto":
            return self.step_size
        log_ratios = process.log_snr(levels).diff() / 2  # of sigma/alpha, from a level to the next
        require(
            len(log_ratios) > 0 and bool((log_ratios / log_ratios.mean() - 1).abs().max() < 0.01),
            "step_size=auto: needs two or more noise levels in geometric progression, as in SigmaTable or grid=Geometric; "
            "give a number, or such levels",
        )
        gamma, steps = float(log_ratios.mean().exp()), cast(int, self.steps)
        return choose_step_size(float(smallest_level(process, levels)), gamma, steps)

    def plan(self, process: NoiseProcess, times: Tensor) -> list[Move]:
        levels = levels_of(process, times)
        steps = _each("steps", self.steps, len(levels))
        require_passes(**{"levels x steps": sum(steps)})
        sizes = _each("step_size", self.chosen_step_size(process, levels), len(levels))
        for size in {*sizes}:  # the same objects in every draw, so that a compiled step is used again
            self._steps.setdefault(size, AnnealedLangevinStep(size)).temperature = self.temperature
        moves: list[Move] = []
        for t, s, size, count in zip([times[0], *levels], levels, sizes, steps, strict=False):
            moves += [Move(self._next_level, t, s, s)] * bool(t > s) + [Move(self._steps[size], s, t, s)] * count
        return moves


def _listed(given: Any) -> list[Any]:
    """What is given once, or in a list, as a list."""
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def _each(name: str, given: Any, levels: int) -> list[Any]:
    """What is given once for all levels, or in a list for each, as a list."""
    values = _listed(given) if isinstance(given, Sequence) else [given] * levels
    require(
        len(values) == levels,
        f"{name}={values}: a list of {len(values)} for a grid of {levels} noise levels; give one for each, the largest "
        "level first, or a single number for all",
    )
    return values


class _ConsistentStep(AffineStep):
    """x <- (alpha_s/alpha_t) (x + eta sigma_t^2 score) + beta sigma_s z; without noise at the last level, where s = t."""

    evaluations = 1

    def __init__(self, step_size: float):
        self.step_size = step_size

    def init(self, process: NoiseProcess, times: Tensor) -> Tensor:
        return self.step_size / smallest_level(process, times) ** 2

    def check(self, process: NoiseProcess, times: Tensor) -> None:
        smallest = float(smallest_level(process, times)) ** 2
        levels = levels_of(process, times)
        g = float((process.log_snr(levels).diff() / -2).exp().min()) if len(levels) > 1 else 1.0
        low, high = smallest * (1 - g), smallest * (1 + g)
        require(
            low < self.step_size < high,
            f"step_size={self.step_size}: consistent annealed sampling on this process and grid needs "
            f"sigma_min^2 (1 - g) < step_size < sigma_min^2 (1 + g), between {low:.3g} and {high:.3g}, where "
            f"g={g:.4g} is the ratio of a level to the one before; try {low * 1.5 if low * 1.5 < high else smallest:.3g}, "
            "or more levels",
        )

    def coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor, state: Any) -> Affine:
        eta = state
        g = ((process.log_snr(t) - process.log_snr(s)) / 2).exp()  # the ratio of sigma/alpha at s to that at t
        beta = (1 - ((1 - eta) / g) ** 2).sqrt()
        a = (process.log_alpha(s) - process.log_alpha(t)).exp()
        return Affine(a, a * eta * process.sigma(t) ** 2, beta * (process.sigma(s) * (s < t)))


class ConsistentAnnealedLangevin(Sampler):
    """Consistent annealed sampling: one step per level, with as much added noise as gives the samples the next level's.

    x <- x + eta sigma_i^2 score + beta sigma_{i+1} z with eta = step_size/sigma_min^2, beta^2 = 1 - ((1 - eta)/g)^2,
    g = sigma_{i+1}/sigma_i and sigma_{L+1} = 0: Jolicoeur-Martineau et al. 2020 (2009.05475), Algorithm 2. For processes
    other than VE it runs on x/alpha.

    Args:
        step_size: epsilon, in squared units of the data, between sigma_min^2 (1 - g) and sigma_min^2 (1 + g); the paper
            takes 5.6e-6 for CIFAR-10's 232 levels from 50 to 0.01.
        grid: the noise levels; the table of the process by default.
        denoise: what happens to the remaining noise, (1 - eta) sigma_min; Tweedie's formula by default.
        initial: where sampling starts; the process's prior by default.
        clip: [low, high], to which the denoised image is clipped at every evaluation; null: not at all.
    """

    def __init__(
        self,
        step_size: float = 5.6e-6,
        grid: TimeGrid | None = None,
        denoise: FinalDenoise | None = None,
        initial: Initial | None = None,
        clip: Sequence[float] | None = None,
    ):
        require(step_size > 0, f"step_size={step_size}: must be above 0, as in 5.6e-6")
        super().__init__(grid or ProcessTable(), denoise or Tweedie(), initial or Prior(), clip)
        self.step_size = step_size
        self._next_level, self._consistent_step = NoPredictor(), _ConsistentStep(step_size)

    def plan(self, process: NoiseProcess, times: Tensor) -> list[Move]:
        levels = levels_of(process, times)
        step, last = self._consistent_step, levels[-1]
        first = [Move(self._next_level, times[0], levels[0], levels[0])] if times[0] > levels[0] else []
        return [*first, *(Move(step, t, s, s) for t, s in pairwise(levels)), Move(step, last, last, last)]
