"""How far Markov chains can be trusted: effective sample sizes, R-hat and Monte Carlo errors, by ArviZ."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from arviz_stats.base import array_stats

FEWEST_DRAWS = 4
"""Of a chain, below which nothing can be said."""
MOST_R_HAT, LEAST_ESS = 1.01, 400
"""Vehtari et al. 2021, sections 4 and 6."""
QUANTILES = (0.05, 0.5, 0.95)
Array = np.ndarray[Any, Any]


class ChainSummary(NamedTuple):
    """One coordinate of the draws of several chains.

    Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021 (1903.08008).

    Attributes:
        name: of the coordinate.
        mean: over all draws.
        error: the Monte Carlo standard error of the mean.
        std: standard deviation.
        low: 5 % quantile.
        median: 50 % quantile.
        high: 95 % quantile.
        ess_bulk: effective sample size of the ranks, for means and medians.
        ess_tail: the smaller one of the 5 % and the 95 % quantile.
        r_hat: rank-normalized and folded; 1 where all chains, and their halves, have one law.
    """

    name: str
    mean: float
    error: float
    std: float
    low: float
    median: float
    high: float
    ess_bulk: float
    ess_tail: float
    r_hat: float


def summarize(chains: Array, names: Sequence[str]) -> list[ChainSummary]:
    """The summary of every coordinate.

    Args:
        chains: draws (chains, draws, coordinates).
        names: of the coordinates.
    """
    return [ChainSummary(name, *_numbers(chains[:, :, i].astype(np.float64))) for i, name in enumerate(names)]


def _numbers(x: Array) -> list[float]:
    quantiles = np.quantile(x, QUANTILES).tolist()
    if x.shape[1] < FEWEST_DRAWS or np.ptp(x) == 0:
        return [float(x.mean()), np.nan, float(x.std()), *quantiles, np.nan, np.nan, np.nan]
    with np.errstate(all="ignore"):  # chains that stand still
        error, bulk = array_stats.mcse(x, method="mean"), array_stats.ess(x, method="bulk")
        tail = array_stats.ess(x, method="tail", prob=(QUANTILES[0], QUANTILES[-1]))
        r_hat = array_stats.rhat(x if len(x) > 1 else x[:, : x.shape[1] // 2 * 2].reshape(2, -1), method="rank")
    return [float(v) for v in (x.mean(), error, x.std(ddof=1), *quantiles, bulk, tail, r_hat)]


def autocorrelation(x: Array) -> Array:
    """rho_t = 1 - (W - s_t)/V, the autocorrelation of chains around their common mean at every lag, (draws,).

    s_t is the mean autocovariance of the chains, W their mean variance and V the pooled variance (Vehtari et al. 2021, eq.
    10), so that chains with different means are correlated at every lag.

    Args:
        x: draws of one coordinate, (chains, draws).
    """
    draws = x.shape[1]
    covariance = array_stats.autocov(x.astype(np.float64), axis=-1).mean(0)
    within = covariance[0] * draws / (draws - 1)
    pooled = covariance[0] + (x.mean(1).var(ddof=1) if len(x) > 1 else covariance[0] / (draws - 1))
    rho = 1 - (within - covariance) / pooled
    rho[0] = 1.0
    return rho
