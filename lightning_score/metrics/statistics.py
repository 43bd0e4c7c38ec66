"""Mean and covariance of features, summed up block by block, and those that others have published."""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_score.utils import InputError, require


class Statistics(NamedTuple):
    """A Gaussian fitted to features: their number, mean (D,) and unbiased covariance (D, D), in float64.

    The number is 0 where a file does not say it.
    """

    n: int
    mean: Tensor
    covariance: Tensor


class FeatureSums(Metric):
    """Number, sum and sum of outer products of features, in float64, apart for every block of examples.

    They add up over batches and processes alike, and memory does not grow with the number of examples. Blocks make an error
    bar: what the distance would be without one of them, or with fewer.

    Args:
        num_features: length D of a feature vector.
        blocks: number of blocks; example k belongs to block k modulo this.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, num_features: int, blocks: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_features, self.blocks = num_features, blocks
        sizes = {"count": (), "total": (num_features,), "outer": (num_features, num_features)}
        for name, size in sizes.items():
            self.add_state(name, torch.zeros(blocks, *size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Tensor, numbers: Tensor | None = None) -> None:
        """Adds features (N, D) of the examples of these numbers (N,); all go to the first block without.

        Raises:
            InputError: they have another length, or are not finite.
        """
        require_features(features, self.num_features)
        features = features.double()
        block = torch.zeros(len(features)) if numbers is None else numbers.to(features.device) % self.blocks
        count, total, outer = self.count.clone(), self.total.clone(), self.outer.clone()
        for b in block.unique().long().tolist():
            mine = features[block == b]
            count[b] += len(mine)
            total[b] += mine.sum(0)
            outer[b] += mine.mT @ mine
        # not in place: a state that was reset under torch.inference_mode may be updated outside of it
        self.count, self.total, self.outer = count, total, outer

    def compute(self) -> Statistics:
        """Those of all examples."""
        return self.statistics(range(self.blocks))

    def statistics(self, blocks: Any) -> Statistics:
        """Those of the examples in some blocks.

        Raises:
            InputError: there are fewer than 2.
        """
        chosen = list(blocks)
        n = int(self.count[chosen].sum())
        require(n >= 2, f"the Frechet distance got {n} examples on one side; it needs at least 2 on each.")
        mean = self.total[chosen].sum(0) / n
        covariance = (self.outer[chosen].sum(0) - n * torch.outer(mean, mean)) / (n - 1)
        return Statistics(n, mean, covariance)


def fit(features: Tensor) -> Statistics:
    """The Gaussian of features (N, D)."""
    sums = FeatureSums(features.shape[1], sync_on_compute=False).to(features.device)
    sums.update(features)
    return sums.compute()


def read_npz(path: str | Path) -> Statistics:
    """Statistics as pytorch-fid and the authors of the TTUR save them: arrays `mu` and `sigma`.

    Raises:
        InputError: no such file, or one without these arrays.
    """
    path = Path(path)
    require(path.is_file(), f"{path}: there is no such file of statistics")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = {"mu", "sigma"} - set(file.files)
            require(
                not missing, f"{path}: lacks {', '.join(sorted(missing))}; it holds {', '.join(file.files) or 'nothing'}"
            )
            mean, covariance = (torch.from_numpy(np.asarray(file[name], dtype=np.float64)) for name in ("mu", "sigma"))
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a file of statistics, .npz with mu and sigma ({error})") from error
    require(
        mean.ndim == 1 and covariance.shape == (len(mean), len(mean)),
        f"{path}: mu is {tuple(mean.shape)} and sigma {tuple(covariance.shape)}; they must be (D,) and (D, D)",
    )
    return Statistics(0, mean, covariance)


def require_features(features: Tensor, num_features: int) -> None:
    """Raises `InputError` for features of another length, or that are not finite."""
    require(
        features.ndim == 2 and features.shape[1] == num_features,
        f"features have the shape {tuple(features.shape)}, but the metric was made for (N, {num_features}).",
    )
    require(
        bool(features.isfinite().all()),
        "features hold NaN or infinity: the model or its sampler diverged; take a smaller step size or learning rate.",
    )
