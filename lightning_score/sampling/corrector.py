"""Correctors: Markov chain Monte Carlo steps that use the score and leave one marginal p_t invariant."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.process import NoiseProcess
from lightning_score.sampling.noise import NoiseSource
from lightning_score.sampling.step import Affine, AffineStep, SamplerStep
from lightning_score.score.function import ScoreField
from lightning_score.tensors import combine


def snr_step_size(process: NoiseProcess, t: Tensor, s: Tensor, ratio: Tensor) -> Tensor:
    """e = 2 alpha_c ratio^2, alpha_c the ratio of alpha^2 between t and s (1 - beta_i for DDPM's chain, 1 for VE).

    Song et al. 2021 (2011.13456), Algorithms 4 and 5.

    Args:
        process: the noise process.
        t: the time of the marginal, ().
        s: the time next to it on the grid, ().
        ratio: snr ||z||/||score||, () or (B,), in units of x.
    """
    alpha_c = (-2 * (process.log_alpha(t) - process.log_alpha(s)).abs()).exp()
    return 2 * alpha_c.to(ratio.dtype) * ratio**2


Snr = float | Sequence[tuple[float, float]]
"""A signal-to-noise ratio, or pairs [sigma, snr], sigma as sigma/alpha, between which it is linear in log sigma."""


def require_snr(snr: Snr) -> None:
    """Raises `InputError` unless the signal-to-noise ratios, and the noise levels of pairs, are above zero."""
    if isinstance(snr, Sequence):
        fits = len(snr) > 0 and all(len(pair) == 2 and min(pair) > 0 and max(pair) < math.inf for pair in snr)
        require(
            fits, f"snr={snr}: must be a number, or pairs [sigma, snr] of numbers above 0, as in [[0.01, 0.1], [50, 0.2]]"
        )
    else:
        require(snr > 0, f"snr={snr}: must be above 0, as in 0.16")


def snr_at(snr: Snr, process: NoiseProcess, t: Tensor) -> float:
    """The signal-to-noise ratio at a time (); beyond the levels of pairs, that of the nearest."""
    if not isinstance(snr, Sequence):
        return snr
    levels, ratios = zip(*sorted(snr), strict=True)
    return float(np.interp(-float(process.log_snr(t)) / 2, np.log(levels), ratios))


def require_temperature(temperature: float) -> None:
    """Raises `InputError` unless the temperature is at least zero."""
    require(temperature >= 0, f"temperature={temperature}: must be at least 0; 1 samples p, 0 moves to its modes")


class Corrector(SamplerStep, ABC):
    """Moves samples of p_t within p_t; s is the time next to t on the grid."""

    rejects: bool = False
    """Whether a sample stays where it is if its proposal is rejected."""


class LangevinCorrector(Corrector, ABC):
    """A Langevin step, x + e score + sqrt(2 e T) z, whose law tends to p_t^(1/T) as the step size e tends to 0."""

    evaluations = 1
    temperature: float = 1.0
    """T."""

    @abstractmethod
    def size(self, process: NoiseProcess, t: Tensor, s: Tensor, state: Any, gradient: Tensor, z: Tensor) -> Tensor:
        """e in squared units of x, () or (B,). Algorithm 1 of Song and Ermon 2019 writes alpha_i for 2 e.

        Args:
            process: the noise process.
            t: the time of the marginal, ().
            s: the time next to it on the grid, ().
            state: what `init` has returned.
            gradient: the score at x, (B, ...).
            z: standard normal draws, (B, ...).
        """


class TimedLangevin(AffineStep, LangevinCorrector, ABC):
    """A Langevin step whose size depends on the times alone."""

    @abstractmethod
    def size_at(self, process: NoiseProcess, t: Tensor, s: Tensor, state: Any) -> Tensor:
        """e in squared units of x, ()."""

    def size(self, process: NoiseProcess, t: Tensor, s: Tensor, state: Any, gradient: Tensor, z: Tensor) -> Tensor:
        return self.size_at(process, t, s, state)

    def coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor, state: Any) -> Affine:
        e = self.size_at(process, t, s, state)
        return Affine(1.0, e, (2 * e * self.temperature).sqrt())


class SnrLangevin(LangevinCorrector, ABC):
    """Langevin dynamics whose step size is set by a signal-to-noise ratio."""

    def __init__(self, snr: Snr = 0.16):
        require_snr(snr)
        self.snr = snr


class Langevin(TimedLangevin, SnrLangevin):
    """Langevin dynamics with step size e = 2 alpha_c (snr sigma)^2, alpha_c the ratio of alpha^2 between t and s.

    Song et al. 2021 (2011.13456), Algorithms 4 and 5, with the norm of the score replaced by its expectation, 1/sigma
    per dimension, so that a sample does not depend on the others of its batch.

    Args:
        snr: target ratio of the norms of step and noise; the paper takes 0.16. Pairs [sigma, snr]: linear in log sigma
            between these noise levels, sigma as sigma/alpha; the command `tune` finds them.
    """

    def size_at(self, process: NoiseProcess, t: Tensor, s: Tensor, state: Any) -> Tensor:
        return snr_step_size(process, t, s, snr_at(self.snr, process, t) * process.sigma(t))


def _norms(v: Tensor) -> Tensor:
    """||v|| of every sample, (B,)."""
    return torch.linalg.vector_norm(v.flatten(1), dim=1)


class _NormLangevin(SnrLangevin, ABC):
    """Langevin dynamics with step size e = 2 alpha_c (snr ||z||/||score||)^2."""

    @abstractmethod
    def _norm(self, v: Tensor) -> Tensor:
        """The norm of v in the step size, () or (B,)."""

    def size(self, process: NoiseProcess, t: Tensor, s: Tensor, state: Any, gradient: Tensor, z: Tensor) -> Tensor:
        return snr_step_size(process, t, s, snr_at(self.snr, process, t) * self._norm(z) / self._norm(gradient))

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        gradient = score(x, t)
        z, added = noise.drawn_and_added()
        e = self.size(score.process, t, s, state, gradient, z)
        return combine((1.0, x), (e, gradient), ((2 * e).sqrt(), added)), state


class BatchLangevin(_NormLangevin):
    """Langevin dynamics with step size e = 2 alpha_c (snr mean||z||/mean||score||)^2, both means over the batch.

    Song et al. 2021 (2011.13456), the authors' code. A sample then depends on the others of its batch, and so on the batch
    size and on the number of processes. `Langevin` has no such dependence.

    Args:
        snr: target ratio of the norms of step and noise; the paper takes 0.16. Pairs [sigma, snr]: linear in log sigma
            between these noise levels, sigma as sigma/alpha; the command `tune` finds them.
    """

    batch_independent = False

    def _norm(self, v: Tensor) -> Tensor:
        return _norms(v).mean()


class SampleLangevin(_NormLangevin):
    """Langevin dynamics with step size e = 2 alpha_c (snr ||z||/||score||)^2, with the norms of each sample.

    Song et al. 2021 (2011.13456), Algorithms 4 and 5 as written. The step size depends on the noise that it scales, and
    grows without bound where the score vanishes: on N(0, I), with snr 0.16 and 50 steps, the variance becomes 5e7 in one
    dimension, 16 in two and 1.087 in 64; with the means of `BatchLangevin` it is 1.03.

    Args:
        snr: target ratio of the norms of step and noise; the paper takes 0.16. Pairs [sigma, snr]: linear in log sigma
            between these noise levels, sigma as sigma/alpha; the command `tune` finds them.

    Raises:
        InputError: at the first step, samples of fewer than 1000 entries.
    """

    min_dimension = 1000

    def _norm(self, v: Tensor) -> Tensor:
        entries = v.shape[1:].numel()
        require(
            entries >= self.min_dimension,
            f"corrector=SampleLangevin: the samples have {entries} entries; it needs at least {self.min_dimension}, because "
            "the step size from the norms of one small sample makes its variance explode (16 instead of 1 in two "
            "dimensions); use Langevin, which does not depend on the batch either, or BatchLangevin",
        )
        return _norms(v)


class FixedLangevin(TimedLangevin):
    """Langevin dynamics on x/alpha with the same step size at every level: e = step_size alpha^2, law p_t^(1/T).

    Roberts and Tweedie 1996 (unadjusted Langevin algorithm). On a Gaussian of variance v it needs e < 2 v, and its
    variance tends to T v/(1 - e/(2 v)).

    Args:
        step_size: in squared units of the data.
        temperature: T; 1 samples p_t, 0 moves to its modes.
    """

    def __init__(self, step_size: float = 1e-5, temperature: float = 1.0):
        require(step_size > 0, f"step_size={step_size}: must be above 0, as in 1.0e-5")
        require_temperature(temperature)
        self.step_size, self.temperature = step_size, temperature

    def size_at(self, process: NoiseProcess, t: Tensor, s: Tensor, state: Any) -> Tensor:
        return self.step_size * process.alpha(t) ** 2
