"""How well samples given observations follow the posterior: calibration, errors of their mean, the exact posterior."""

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from lightning_score.metrics.calibration import coverage_deviation, interval_coverage
from lightning_score.metrics.distances import SlicedWasserstein
from lightning_score.metrics.ensembles import EnsembleScores, Score
from lightning_score.metrics.frechet import Estimate

INTERVALS = (50, 90)
"""Credibilities of intervals in percent."""
WINDOW = 11
"""Pixels along the window of SSIM (Wang et al. 2004)."""


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
