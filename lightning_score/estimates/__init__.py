"""Values with standard errors: what reports and sweeps know of statistics, without torch."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

WITH_DATA = ("kid", "cmmd", "cmmd_infinity", "energy_distance")
"""Kinds of metrics whose error includes that of the data."""


class Estimate(NamedTuple):
    """A value, its standard error (NaN where there is none) and the values without each block (where they are known)."""

    value: float
    error: float
    jackknife: tuple[float, ...] = ()


def jackknife_error(values: Sequence[float]) -> float:
    """The standard error of a value from those without each of B blocks: `((B - 1)/B sum_b (d_b - mean d)^2)^(1/2)`, times
    `student(B - 1)`.
    """
    blocks = len(values)
    mean = sum(values) / blocks
    return math.sqrt((blocks - 1) / blocks * sum((value - mean) ** 2 for value in values)) * student(blocks - 1)


def student(degrees: float) -> float:
    """The factor by which a standard error from few values is widened, so that two of them cover 95 %: half the quantile
    0.975 of Student's t; 1.13 for 10 values, 6.4 for 2, at least 1.

    Args:
        degrees: degrees of freedom; for a mean one less than the number of values.
    """
    from scipy.special import stdtrit

    return max(1.0, float(stdtrit(degrees, 0.975)) / 2)


def pooled(kind: str, values: list[Estimate]) -> Estimate:
    """The mean over seeds with its standard error, or the one value with its own.

    Squared errors of independent samples add up; those of KID and the energy distance include the data, which all seeds
    share, and do not fall. Without errors, the spread over seeds is used.
    """
    if len(values) == 1:
        return values[0]
    each, squares = [value.value for value in values], fmean(value.error**2 for value in values)
    if squares == squares:
        return Estimate(fmean(each), (squares / (1 if kind in WITH_DATA else len(each))) ** 0.5)
    return Estimate(fmean(each), student(len(each) - 1) * stdev(each) / len(each) ** 0.5)
