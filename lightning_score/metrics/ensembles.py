"""How well ensembles of samples predict the truth of their conditions: CRPS, rank histogram, spread."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_score.metrics.calibration import RankHistogram, histogram_deviation, rank_counts, rank_histogram
from lightning_score.metrics.frechet import Estimate, jackknife_error
from lightning_score.metrics.statistics import BLOCKS, block_of


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


class EnsembleScores:
    """The scores of K conditions, with M samples each; rows that another process adds are 0 here, until `reduce`.

    Args:
        conditions: K, at least 2.
        members: M, at least 2.
        seed: of the ties.
        device: of the sums.
    """

    def __init__(self, conditions: int, members: int, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.conditions, self.members, self.seed = conditions, members, seed
        names = ("crps", "climatology", "squared_error", "variance", "squared_residual")
        self.sums = {name: torch.zeros(conditions, dtype=torch.float64, device=device) for name in names}
        self.sums["ranks"] = torch.zeros(conditions, members + 1, members + 1, dtype=torch.float64, device=device)

    def add(self, k: int, members: Tensor, truth: Tensor, climatology: tuple[Tensor, Tensor], residual: float = 0.0) -> None:
        """Adds the ensemble of condition k; each score is the mean over the known entries of the truth.

        Args:
            k: the number of the condition.
            members: its samples, (M, ...), in the units of the data.
            truth: what they predict, (...), NaN where it is not known.
            climatology: samples without a condition, (L, ...), and their `half_distance`.
            residual: mean square of the difference between the samples' observations and the condition.
        """
        members, truth = members.double(), truth.double()
        error = members.mean(0) - truth
        known = ~truth.flatten().isnan()
        ties = torch.Generator().manual_seed(self.seed * 1_000_003 + k)
        ranks = rank_counts(members.flatten(1)[:, known], truth.flatten()[known], ties).double()
        found: dict[str, Tensor | float] = {
            "crps": fair_crps(members, truth).nanmean(),
            "climatology": fair_crps(climatology[0], truth, climatology[1]).nanmean(),
            "squared_error": error.square().nanmean(),
            "variance": members.var(0).flatten()[known].mean(),
            "squared_residual": residual,
            "ranks": ranks / ranks[0].sum(),
        }
        for name, value in found.items():
            self.sums[name][k] = value

    def reduce(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replaces each of the sums by its total over all processes."""
        self.sums = {name: total(value) for name, value in self.sums.items()}

    def crps(self) -> Estimate:
        """The mean over conditions."""
        return self._estimate(lambda means: means["crps"])

    def skill(self) -> Estimate:
        """1 - CRPS / CRPS of the climatology: 1 for a perfect prediction, 0 for that of a model without conditions."""
        return self._estimate(lambda means: 1 - means["crps"] / means["climatology"])

    def spread_skill(self) -> Estimate:
        """The spread of the members over the error of their mean, 1 if calibrated, less if they are too much alike:

        `((M + 1)/M mean variance / mean (mean of members - y)^2)^(1/2)` (Fortin et al. 2014, J. Hydrometeorol. 15).
        """
        more = 1 + 1 / self.members
        return self._estimate(lambda means: (more * means["variance"] / means["squared_error"]).sqrt())

    def residual(self, spread: float) -> Estimate:
        """The root mean square of the residual in units of `spread`."""
        return self._estimate(lambda means: means["squared_residual"].sqrt() / spread)

    def deviation(self) -> Estimate:
        """The deviation of the rank histogram from a uniform one."""
        return self._estimate(lambda means: histogram_deviation(means["ranks"][..., 0, :]))

    def histogram(self) -> RankHistogram:
        """The rank histogram, over the band of calibrated models."""
        return rank_histogram(self.sums["ranks"], self.seed)

    def _estimate(self, score: Callable[[dict[str, Tensor]], Tensor]) -> Estimate:
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
