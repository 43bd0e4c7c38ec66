"""How many nats the prior of a noise process misses of the data's law at t = 1."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_score.process import NoiseProcess

TOLERATED = 1.0
"""Nats per example that the prior may miss without a warning."""
ROWS, NUMBERS = 1024, 1 << 24
"""The most examples whose moments are taken, and the most numbers in them."""


class PriorGap(NamedTuple):
    """`nats` per example that the prior misses; `level`, sigma/alpha at t = 1; `norm`, the root mean square of ||x||."""

    nats: float
    level: float
    norm: float


def prior_gap(process: NoiseProcess, x: Tensor) -> PriorGap:
    """KL(p_1 || prior) for the Gaussian p_1 of the data's moments, below that of any other law with the same moments.

    With L = sigma(1)/alpha(1), the mean m of the data and the eigenvalues l_i of their covariance, it is
    1/2 (|m|^2/L^2 + sum_i r_i - log(1 + r_i)), r_i = l_i/L^2; so much are mean log-likelihoods of an exact score too low.
    Below L = norm it is computed; from there on its bound 1/2 (|m|^2 + sum_i l_i)/L^2, at most 1/2, is returned. The
    covariance is that of the examples, shrunk towards a multiple of the identity for few of them: Chen, Wiesel, Eldar and
    Hero 2010 (0907.4698), equation 23.

    Args:
        process: the noise process.
        x: examples of the model's data (n, ...), n >= 2; NaN where unknown.
    """
    x = x.flatten(1).double().cpu()
    (n, d), mean = x.shape, x.nanmean(0).nan_to_num()
    x = torch.where(x.isnan(), mean, x) - mean
    total = x.square().sum() / (n - 1)
    offset = (mean.square().sum() - total / n).clamp(min=0)  # without the error of the mean
    level = process.noise_level(torch.ones((), dtype=torch.float64)).cpu()
    norm = (offset + total).sqrt()
    if level >= norm:
        return PriorGap(float((norm / level) ** 2 / 2), float(level), float(norm))
    covariance = (x.T @ x if d < n else x @ x.T) / (n - 1)
    eigenvalues = torch.zeros(d, dtype=torch.float64)
    eigenvalues[: len(covariance)] = torch.linalg.eigvalsh(covariance)
    squares = covariance.square().sum()
    spread = (n + 1 - 2 / d) * (squares - total**2 / d)
    shrinkage = min(1.0, float(((1 - 2 / d) * squares + total**2) / spread)) if spread > 0 else 1.0
    r = torch.lerp(eigenvalues, total / d, shrinkage).clamp(min=0) / level**2
    return PriorGap(float(offset / level**2 + (r - r.log1p()).sum()) / 2, float(level), float(norm))


def warn_of_prior(process: NoiseProcess, x: Tensor) -> None:
    """Warns, with the number and what to change, if the prior misses more than `TOLERATED` nats of the data.

    Args:
        process: the noise process.
        x: examples of the model's data (n, ...); of one alone nothing is known.
    """
    if len(x) < 2:
        return
    gap, d = prior_gap(process, x[few(len(x), x[0].numel()).to(x.device)]), x[0].numel()
    if gap.nats > TOLERATED:
        warnings.warn(
            f"{type(process).__name__}: its prior misses the data's law at t = 1 by about {gap.nats:.3g} nats per example, "
            f"{gap.nats / d:.2g} per dimension: log-likelihoods come out so much too low, and samples start from a wrong "
            f"law. sigma/alpha is {gap.level:.3g} at t = 1; make it at least {gap.norm:.3g}, the root mean square norm of "
            "the examples (sigma_max of VE and SigmaTable, beta_max of VP), or center and standardize the data",
            stacklevel=2,
        )


def few(n: int, dimension: int) -> Tensor:
    """The numbers of the examples, of n, whose moments are taken, ascending."""
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return rows[: max(2, min(ROWS, NUMBERS // dimension))].sort().values
