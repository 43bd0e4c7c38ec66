"""The noise ladder and its Langevin step size from the data: techniques 1, 2 and 4 of Song and Ermon 2020 (2006.09011).

Levels sigma_1 > ... > sigma_L fall by the factor gamma = sigma_{i-1}/sigma_i > 1; every level takes T Langevin steps of size
e_i = step_size sigma_i^2/sigma_min^2, so that u = step_size/sigma_min^2 is the same at all of them.
"""

import math

from lightning_score.utils import require


def variance_ratio(step_size: float, sigma_min: float, gamma: float, steps: int, before: float = 1.0) -> float:
    """r = q (gamma^2 r' - k) + k, the sample variance over sigma_i^2 after level i, with q = (1 - u)^(2T), k = 2/(2 - u).

    Song and Ermon 2020 (2006.09011), Proposition 3 and technique 4 (r' = 1), for data at one point; with
    u = step_size/sigma_min^2, so that k is the paper's 2 epsilon/(sigma_L^2 - sigma_L^2 (1 - epsilon/sigma_L^2)^2).

    Args:
        step_size: epsilon, in squared units of the data, below 2 sigma_min^2.
        sigma_min: the smallest level, in the units of the data.
        gamma: the ratio of two adjacent levels, at least 1.
        steps: T, Langevin steps per level.
        before: r', the ratio after the level before.

    Raises:
        InputError: these are not a ladder and a step size.
    """
    q, k = _coefficients(step_size, sigma_min, gamma, steps)
    return q * (gamma**2 * before - k) + k


def variance_limit(step_size: float, sigma_min: float, gamma: float, steps: int) -> float:
    """k (1 - q)/(1 - q gamma^2), the fixed point of `variance_ratio`, at which a long ladder settles.

    Song and Ermon 2020 (2006.09011), Proposition 3.

    Args:
        step_size: epsilon, in squared units of the data, below 2 sigma_min^2.
        sigma_min: the smallest level, in the units of the data.
        gamma: the ratio of two adjacent levels, at least 1.
        steps: T, Langevin steps per level.

    Raises:
        InputError: q gamma^2 >= 1, where the ratio grows from level to level without a bound.
    """
    q, k = _coefficients(step_size, sigma_min, gamma, steps)
    require(
        q * gamma**2 < 1,
        f"step_size={step_size}, steps={steps}: the sample variance grows without bound down a ladder of gamma={gamma:.4g} "
        f"(q gamma^2 = {q * gamma**2:.4g}, must be below 1); try step_size={choose_step_size(sigma_min, gamma, steps):.3g} "
        f"and more steps or levels",
    )
    return k * (1 - q) / (1 - q * gamma**2)


def choose_step_size(sigma_min: float, gamma: float, steps: int) -> float:
    """The step size in (0, 2 sigma_min^2) whose variance ratio r is closest to 1.

    r - 1 = q (gamma^2 - 1) + (1 - q) h with h = k - 1 = u/(2 - u) is positive, and u and 2 - u have the same q, so the
    smallest r stands at u <= 1. There its derivative, q' (gamma^2 - 1 - h) + (1 - q) h', changes its sign once, because
    (1 - q) h'/(-q') grows with u; bisection finds where. Song and Ermon 2020 (2006.09011), technique 4.

    Args:
        sigma_min: the smallest level, in the units of the data.
        gamma: the ratio of two adjacent levels, above 1.
        steps: T, Langevin steps per level.

    Raises:
        InputError: these are not a ladder.
    """
    _coefficients(sigma_min**2, sigma_min, gamma, steps)
    require(gamma > 1, f"gamma={gamma}: with a single level there is nothing to descend; give the step size yourself")

    def rises(u: float) -> bool:
        h, h_slope = u / (2 - u), 2 / (2 - u) ** 2
        q_slope = -2 * steps * (1 - u) ** (2 * steps - 1)
        covered = -math.expm1(2 * steps * math.log1p(-u))
        return q_slope * ((gamma - 1) * (gamma + 1) - h) + covered * h_slope > 0

    return sigma_min**2 * _bisect(rises, 0.0, 1.0)


def _bisect(above, low: float, high: float) -> float:
    """The point between `low` and `high` from which on `above` holds, to the last digit."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if above(middle) else (middle, high)
    return high


def _coefficients(step_size: float, sigma_min: float, gamma: float, steps: int) -> tuple[float, float]:
    """(q, k) = ((1 - u)^(2T), 2/(2 - u))."""
    require(0 < sigma_min < math.inf, f"sigma_min={sigma_min}: must be above 0, as in 0.01")
    require(1 <= gamma < math.inf, f"gamma={gamma}: must be above 1, the larger of two adjacent levels over the smaller")
    require(steps >= 1, f"steps={steps}: need at least one Langevin step per level, as in steps=5")
    u = step_size / sigma_min**2
    require(0 < u < 2, f"step_size={step_size}: must lie between 0 and 2 sigma_min^2 = {2 * sigma_min**2:.3g}")
    return (1 - u) ** (2 * steps), 2 / (2 - u)
