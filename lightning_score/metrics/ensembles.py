"""How well ensembles of samples predict the truth of their conditions, and whether they follow the posterior."""

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_score.estimates import Estimate, jackknife_error
from lightning_score.metrics.calibration import (
    Coverage,
    RankHistogram,
    coverage,
    coverage_deviation,
    histogram_deviation,
    interval_coverage,
    rank_counts,
    rank_histogram,
)
from lightning_score.metrics.distances import SlicedWasserstein
from lightning_score.metrics.statistics import BLOCKS, block_of

INTERVALS = (50, 90)
"""Credibilities of intervals in percent."""
WINDOW = 11
"""Pixels along the window of SSIM (Wang et al. 2004)."""


def half_distance(members: Tensor) -> Tensor:
    """Half the mean distance of two different members, `1/(2 M (M - 1)) sum_ij |x_i - x_j|`, from the M members in their
    order: `1/(M (M - 1)) sum_i (2 i - M - 1) x_(i)`.

    Args:
        members: (M, ...), of which NaN do not count.
    """
    n = (~members.isnan()).sum(0)
    i = torch.arange(1, len(members) + 1, device=members.device).reshape(-1, *[1] * (members.ndim - 1))
    weights = torch.where(i <= n, 2 * i - n - 1, 0)
    return (weights * members.sort(0).values.nan_to_num()).sum(0) / (n * (n - 1))


def fair_crps(members: Tensor, truth: Tensor, half: Tensor | None = None) -> Tensor:
    """The continuous ranked probability score of an ensemble for each entry, without bias for any number of members:

    `1/M sum_i |x_i - y| - 1/(2 M (M - 1)) sum_ij |x_i - x_j|` (Ferro 2014, "Fair scores for ensemble forecasts", Q. J. R.
    Meteorol. Soc. 140; Gneiting and Raftery 2007, J. Am. Stat. Assoc. 102, eq. 21). It is 0 for a perfect prediction, has
    the units of the data, and is the mean absolute error of an ensemble without spread.

    Args:
        members: (M, ...), M at least 2; NaN do not count.
        truth: (...).
        half: `half_distance(members)`, if known.
    """
    return (members - truth).abs().nanmean(0) - (half_distance(members) if half is None else half)


class Score(NamedTuple):
    """A score of all conditions, its mean for a calibrated model (None: 0, or not known), and what that exceeds with 5 %."""

    estimate: Estimate
    floor: float | None = None
    limit: float | None = None


class EnsembleScores:
    """The scores of K conditions, with M samples each; rows that another process adds are 0 here, until `reduce`.

    Args:
        conditions: K, at least 2.
        members: M, at least 2.
        seed: of the ties.
        device: of the sums.
        numbers: the names of further numbers of each condition.
        ranks: the names of further shares of ranks.
    """

    def __init__(
        self,
        conditions: int,
        members: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        numbers: Collection[str] = (),
        ranks: Collection[str] = (),
    ) -> None:
        self.conditions, self.members, self.seed = conditions, members, seed
        names = ("crps", "climatology", "squared_error", "variance", *numbers)
        self.sums = {name: torch.zeros(conditions, dtype=torch.float64, device=device) for name in names}
        for name in ("ranks", *ranks):
            self.sums[name] = torch.zeros(conditions, members + 1, members + 1, dtype=torch.float64, device=device)

    def add(
        self, k: int, members: Tensor, truth: Tensor, climatology: tuple[Tensor, Tensor], **further: Tensor | float
    ) -> None:
        """Adds the ensemble of condition k; each score is the mean over the known entries of the truth.

        Args:
            k: the number of the condition.
            members: its samples, (M, ...), in the units of the data.
            truth: what they predict, (...), NaN where it is not known.
            climatology: samples without a condition, (L, ...), and their `half_distance`.
            further: the further numbers and shares of ranks.
        """
        members, truth = members.double(), truth.double()
        error = members.mean(0) - truth
        known = ~truth.flatten().isnan()
        found: dict[str, Tensor | float] = {
            "crps": fair_crps(members, truth).nanmean(),
            "climatology": fair_crps(climatology[0], truth, climatology[1]).nanmean(),
            "squared_error": error.square().nanmean(),
            "variance": members.var(0).flatten()[known].mean(),
            "ranks": self.rank_shares(k, members.flatten(1)[:, known], truth.flatten()[known]),
            **further,
        }
        for name, value in found.items():
            self.sums[name][k] = value

    def rank_shares(self, k: int, members: Tensor, truth: Tensor) -> Tensor:
        """The shares of ranks of condition k, (M + 1, M + 1), of members (M, D) and truth (D,)."""
        ranks = rank_counts(members, truth, torch.Generator().manual_seed(self.seed * 1_000_003 + k)).double()
        return ranks / ranks[0].sum()

    def reduce(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replaces each of the sums by its total over all processes."""
        self.sums = {name: total(value) for name, value in self.sums.items()}

    def deviation(self, name: str = "ranks") -> Score:
        """The deviation of a rank histogram from a uniform one."""
        histogram = self.histogram(name)
        estimate = self.estimate(lambda means: histogram_deviation(means[name][..., 0, :]))
        return Score(estimate, histogram.calibrated, histogram.limit)

    def found(self) -> dict[str, Score]:
        """The scores by their names.

        `crps_skill` is 1 - CRPS / CRPS of the climatology: 1 for a perfect prediction, 0 for that of a model without
        conditions. `spread_skill` is the spread of the members over the error of their mean, 1 if calibrated, less if they
        are too much alike: `((M + 1)/M mean variance / mean (mean of members - y)^2)^(1/2)` (Fortin et al. 2014, J.
        Hydrometeorol. 15).
        """
        more = 1 + 1 / self.members
        found = {
            "crps": self.mean("crps"),
            "crps_skill": self.estimate(lambda means: 1 - means["crps"] / means["climatology"]),
            "spread_skill": self.estimate(lambda means: (more * means["variance"] / means["squared_error"]).sqrt()),
        }
        if "squared_residual" in self.sums:
            found["residual"] = self.root_mean("squared_residual")
        return {name: Score(estimate) for name, estimate in found.items()} | {"rank_deviation": self.deviation()}

    def histogram(self, name: str = "ranks") -> RankHistogram:
        """The rank histogram of entries, or another one."""
        return rank_histogram(self.sums[name], self.seed)

    def coverage(self, name: str) -> Coverage:
        """The coverage of balls, from ranks of distances."""
        return coverage(self.sums[name], self.seed)

    def mean(self, name: str) -> Estimate:
        """The mean of a number over conditions."""
        return self.estimate(lambda means: means[name])

    def root_mean(self, name: str) -> Estimate:
        """The root of the mean of a square over conditions."""
        return self.estimate(lambda means: means[name].sqrt())

    def estimate(self, score: Callable[[dict[str, Tensor]], Tensor]) -> Estimate:
        """A score of means over conditions, its standard error by the jackknife over conditions, and its values without each
        block of conditions.
        """
        k = self.conditions
        block = block_of(torch.arange(k), k, min(BLOCKS, k))

        def without(block: Tensor) -> Tensor:
            kept = (block != block.unique()[:, None]).double()
            kept = (kept / kept.sum(1, keepdim=True)).to(self.sums["crps"].device)
            return score({name: torch.tensordot(kept, values, dims=1) for name, values in self.sums.items()})

        value = float(score({name: values.mean(0) for name, values in self.sums.items()}))
        return Estimate(value, jackknife_error(without(torch.arange(k)).tolist()), tuple(without(block).tolist()))


class PosteriorScores(EnsembleScores):
    """The scores of K observations, with M samples each. Further numbers are `squared_z` and `squared_residual` and, where
    they are known, those of `image_scores` and of `exact_distances`; further ranks are those of `distances` from reference
    points and, where the noise has a density, of the `likelihood`.
    """

    def found(self) -> dict[str, Score]:
        found, known = super().found(), self.sums.keys()
        of_coverage = self.estimate(lambda means: coverage_deviation(means["distances"][..., 0, :]))
        found["tarp_deviation"] = Score(of_coverage, *self.coverage("distances")[-2:])
        if "likelihood" in known:
            found["likelihood_rank_deviation"] = self.deviation("likelihood")
            found["residual_over_noise"] = found.pop("residual")
        if "distance" in known:
            found["posterior_distance"] = Score(self.mean("distance"), self.mean("perfect_distance").value)
        estimates = {f"interval_{percent}": self._interval(percent / 100) for percent in INTERVALS}
        estimates |= {"z_score": self.root_mean("squared_z"), "rmse": self.root_mean("squared_error")}
        estimates |= {name: self.mean(name) for name in ("psnr", "ssim") if name in known}
        return found | {name: Score(estimate) for name, estimate in estimates.items()}

    def _interval(self, credibility: float) -> Estimate:
        return self.estimate(lambda means: interval_coverage(means["ranks"][..., 0, :], credibility))


def image_scores(mean: Tensor, truth: Tensor, data_range: float) -> dict[str, Tensor]:
    """PSNR of an image (C, H, W) of values in the given range and, where it is larger than its window, SSIM."""
    from torchmetrics.functional.image import (  # takes seconds to import
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    pair = mean.double()[None], truth.double()[None]
    found = {"psnr": peak_signal_noise_ratio(*pair, data_range=data_range)}
    if min(truth.shape[-2:]) >= WINDOW:
        found["ssim"] = torch.as_tensor(structural_similarity_index_measure(*pair, data_range=data_range))
    return found


def exact_distances(samples: Tensor, exact: Tensor) -> dict[str, float]:
    """The sliced Wasserstein distance of samples (M, D) from the exact posterior, and that of as many exact samples.

    Args:
        samples: (M, D).
        exact: samples of the exact posterior, (N, D), N above M: the first M stand for a perfect model.
    """
    distance, n = SlicedWasserstein(standardize=False), len(samples)
    along = distance.directions(samples.shape[1]).double().mT
    projected, of_exact = samples.double() @ along, exact.double() @ along
    compared = {"distance": projected, "perfect_distance": of_exact[:n]}
    return {name: distance.compare(each, of_exact[n:]) for name, each in compared.items()}
