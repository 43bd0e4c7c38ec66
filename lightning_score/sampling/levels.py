"""Warnings about scores that are evaluated between the few noise levels at which a model was trained."""

import math
import warnings

from torch import Tensor

from lightning_score.process import NoiseProcess

TOLERANCE = 0.03
"""The mean distance in log(sigma/alpha) above which there is a warning: that of all times to levels of ratio 1.13."""
STAY = (
    "; predictors of fixed steps stay on the levels of a table with --model.sampler.grid ProcessTable, or with Snapped for "
    "those nearest to another grid"
)


def distance_to_levels(process: NoiseProcess, levels: Tensor, times: Tensor) -> float:
    """Mean over the times of noise of the distance to the nearest level in log(sigma/alpha); 0 if there are none.

    Args:
        process: the noise process.
        levels: the times of the levels, (L,).
        times: the times, (N,); those of clean data are left out.
    """
    noisy = times[process.sigma(times) > 0]
    gaps = (process.log_snr(noisy)[:, None] - process.log_snr(levels.to(noisy))).abs() / 2
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
