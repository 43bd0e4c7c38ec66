"""Calibration of samples of posteriors: ranks of the truth, coverage of credible regions, z-scores."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_score.errors import require

RANDOM_HISTOGRAMS = 2000
"""Histograms that a calibrated model could have had, from which the bands come."""


def rank_counts(members: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """How often each of M + 1 vectors has each rank among all of them, (M + 1, M + 1): row 0 for the truth.

    The rank of the truth is uniform if truth and members have the same law (Hamill 2001, "Interpretation of rank
    histograms for verifying ensemble forecasts", Mon. Weather Rev. 129). Ties are broken at random.

    Args:
        members: (M, D).
        truth: (D,).
        generator: of the ties, on the CPU.
    """
    vectors = torch.cat([truth[None], members]).cpu()
    shuffled = torch.rand(vectors.shape, generator=generator).argsort(0)
    order = vectors.gather(0, shuffled).argsort(dim=0, stable=True)
    vector, n = shuffled.gather(0, order), len(vectors)  # of each rank, (M + 1, D)
    return (vector * n + torch.arange(n)[:, None]).flatten().bincount(minlength=n * n).reshape(n, n)


def sbc_ranks(samples: Tensor, truth: Tensor, seed: int = 0) -> Tensor:
    """The ranks of simulation-based calibration: how many of M samples are below the truth, (K, D), each from 0 to M.

    If theta ~ p, y ~ p(y given theta) and the M samples are independent ones of p(theta given y), the rank of any function
    of theta is uniform over 0 to M (Talts, Betancourt, Simpson, Vehtari and Gelman 2018, arXiv:1804.06788, theorem 1). Ties
    are broken at random. Ranks of the likelihood p(y given theta) also tell a posterior from the prior, whose entries have
    uniform ranks, too (Modrak et al. 2023, arXiv:2211.02383).

    Args:
        samples: entries or other functions of them, (K, M, D).
        truth: (K, D).
        seed: of the ties.
    """
    _check(samples, truth)
    below, ties = (samples < truth[:, None]).sum(1), (samples == truth[:, None]).sum(1)
    uniform = torch.rand(ties.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return below + (uniform.to(ties.device) * (ties + 1)).long()


def z_scores(samples: Tensor, truth: Tensor) -> Tensor:
    """How far the truth is from the mean of M samples, in units of its deviation from it, (K, D).

    `(truth - mean) / (s (1 + 1/M)^(1/2))`, s^2 the unbiased variance of the samples: for a Gaussian posterior Student's t
    with M - 1 degrees of freedom, whose variance is (M - 1)/(M - 3).

    Args:
        samples: (K, M, D).
        truth: (K, D).
    """
    _check(samples, truth)
    spread = samples.std(1) * (1 + 1 / samples.shape[1]) ** 0.5
    return (truth - samples.mean(1)) / spread


def squared_z(samples: Tensor, truth: Tensor, directions: Tensor) -> Tensor:
    """The mean square of the z-scores of projections on directions, times (M - 3)/(M - 1): on average 1 for a Gaussian
    posterior, and about 1 for any of many dimensions, whose projections are nearly Gaussian; more if the samples are too
    sure, or biased.

    Args:
        samples: (M, D), M at least 4.
        truth: (D,).
        directions: (P, D).
    """
    along, n = directions.double().mT, len(samples)
    z = z_scores((samples.double() @ along)[None], (truth.double() @ along)[None])
    return z.square().mean() * (n - 3) / (n - 1)


def distances_from(references: Tensor, samples: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """The Euclidean distances of samples (M, D), and of the truth (D,), from R points (R, D): (M, R) and (R,)."""
    vectors = torch.cat([truth[None], samples]).double()
    distances = torch.cdist(vectors, references.double())
    return distances[1:], distances[0]


class RankHistogram(NamedTuple):
    """The shares of the M + 1 ranks of the truth, and where they are for a calibrated model.

    Fields: shares (M + 1,), low and high (M + 1,) (each share of a calibrated model is between them with 95 %), deviation
    (the share of truths whose rank would have to change: half the sum of |share - 1/(M + 1)|), calibrated (its mean for a
    calibrated model), limit (which that exceeds with 5 %).
    """

    shares: Tensor
    low: Tensor
    high: Tensor
    deviation: float
    calibrated: float
    limit: float


class Coverage(NamedTuple):
    """How often credible regions contain the truth, and how often those of a calibrated model do.

    Fields: credibility (M + 2,), 0, 1/(M + 1), ..., 1; coverage (M + 2,), which has this mean for a calibrated model; low
    and high (M + 2,) (each coverage of a calibrated model is between them with 95 %); deviation (the largest |coverage -
    credibility|), calibrated (its mean for a calibrated model), limit (which that exceeds with 5 %).
    """

    credibility: Tensor
    coverage: Tensor
    low: Tensor
    high: Tensor
    deviation: float
    calibrated: float
    limit: float


def tarp(samples: Tensor, truth: Tensor, references: Tensor, seed: int = 0) -> Coverage:
    """Tests of accuracy with random points: a credible region is a ball about a random reference point, through a sample.

    A ball that contains j of the M samples contains the truth with probability j/(M + 1) for all reference points if and
    only if the samples are those of the posterior (Lemos, Coogan, Hezaveh and Perreault-Levasseur 2023, "Sampling-based
    accuracy testing of posterior estimators for general inference", ICML, arXiv:2302.03026, algorithm 2; theorem 3 needs
    reference points that vary with the observation).

    Args:
        samples: M samples given each of K observations, (K, M, D), in units that make distances meaningful.
        truth: (K, D).
        references: R random points, (R, D), or other ones for each observation, (K, R, D); they must not depend on the
            truth, and are best where the posteriors are, as examples of the data.
        seed: of ties and bands.
    """
    _check(samples, truth)
    generator = torch.Generator().manual_seed(seed)
    points = references.expand(len(truth), *references.shape[-2:])
    distances = (distances_from(*each) for each in zip(points, samples, truth, strict=True))
    counts = torch.stack([rank_counts(*each, generator) for each in distances])
    return coverage(counts.double() / references.shape[-2], seed)


def rank_histogram(ranks: Tensor, seed: int = 0) -> RankHistogram:
    """The rank histogram of K truths.

    Args:
        ranks: the shares of `rank_counts` for each truth, (K, M + 1, M + 1).
        seed: of the band.
    """
    return RankHistogram(*_with_band(ranks, lambda shares: shares, histogram_deviation, seed))


def coverage(ranks: Tensor, seed: int = 0) -> Coverage:
    """The coverage of balls, whose radius has a rank among distances.

    Args:
        ranks: the shares of `rank_counts` of distances for each truth, (K, M + 1, M + 1).
        seed: of the band.
    """
    credibility = torch.linspace(0, 1, ranks.shape[-1] + 1, dtype=ranks.dtype)
    return Coverage(credibility, *_with_band(ranks, lambda shares: pad(shares.cumsum(-1), (1, 0)), coverage_deviation, seed))


def histogram_deviation(shares: Tensor) -> Tensor:
    """Half the sum of |share - 1/(M + 1)| over the ranks, (...,), of shares (..., M + 1)."""
    return (shares - 1 / shares.shape[-1]).abs().sum(-1) / 2


def coverage_deviation(shares: Tensor) -> Tensor:
    """The largest |coverage - credibility|, (...,), of shares of ranks (..., M + 1)."""
    return (shares - 1 / shares.shape[-1]).cumsum(-1).abs().amax(-1)


def interval_coverage(shares: Tensor, credibility: float) -> Tensor:
    """The share of truths in the central interval of this credibility, (...,), of shares of ranks (..., M + 1), each of
    which stands for an interval of 1/(M + 1): `credibility` for a calibrated model.
    """
    n = shares.shape[-1]
    ranks = torch.arange(n, device=shares.device)
    below, above = (((1 + sign * credibility) / 2 * n - ranks).clamp(0, 1) for sign in (-1, 1))
    return (shares * (above - below)).sum(-1)


def _with_band(
    ranks: Tensor, curve: Callable[[Tensor], Tensor], deviation: Callable[[Tensor], Tensor], seed: int
) -> tuple[Tensor, Tensor, Tensor, float, float, float]:
    """A curve of the shares of ranks and its band; the deviation of the shares, its mean for a calibrated model, and the
    limit that this exceeds with 5 %.

    If the model is calibrated, truth and members are M + 1 draws of one law: as likely, any other of them was the truth. The
    band is that of such random truths, one for each observation; it holds for entries that depend on each other.
    """
    ranks = ranks.cpu()
    count, n = ranks.shape[:2]
    chosen = torch.randint(n, (count, RANDOM_HISTOGRAMS), generator=torch.Generator().manual_seed(seed))
    random = torch.zeros(RANDOM_HISTOGRAMS, n, dtype=ranks.dtype)
    for each, vectors in zip(ranks, chosen, strict=True):
        random += each[vectors] / count
    low, high = curve(random).quantile(torch.tensor([0.025, 0.975], dtype=random.dtype), dim=0)
    shares, deviations = ranks[:, 0].mean(0), deviation(random)
    return curve(shares), low, high, float(deviation(shares)), float(deviations.mean()), float(deviations.quantile(0.95))


def _check(samples: Tensor, truth: Tensor) -> None:
    require(
        samples.ndim == 3 and truth.shape == samples[:, 0].shape and samples.shape[1] > 1,
        f"samples of shape {list(samples.shape)} and truths of shape {list(truth.shape)}: must be [K, M, D] and [K, D], M "
        "at least 2",
    )
