"""Mean and covariance of features, accumulated in blocks, and statistics from published files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_score.errors import InputError, require
from lightning_score.files import file_hash, read_arrays

BLOCKS = 10
"""Blocks of samples, or of conditions, that are left out in turn for an error bar."""


class Statistics(NamedTuple):
    """A Gaussian fitted to features: their number, mean (D,) and unbiased covariance (D, D), in float64.

    The number is 0 if it is unknown. A factor A, (D, rank), of the covariance `A A^T` may be known.
    """

    n: int
    mean: Tensor
    covariance: Tensor
    factor: Tensor | None = None


class FeatureSums(Metric):
    """Number, sum and sum of outer products of features, in float64, for each block of examples.

    They add up over batches and processes, and memory does not grow with the number of examples. Blocks give an error bar:
    the distance without each of them.

    Args:
        num_features: length D of a feature vector.
        blocks: number of blocks.
    """

    full_state_update = False
    is_differentiable = False
    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, num_features: int, blocks: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_features, self.blocks = num_features, blocks
        sizes = {"count": (), "total": (num_features,), "outer": (num_features, num_features)}
        with torch.inference_mode(False):
            for name, size in sizes.items():
                self.add_state(name, torch.zeros(blocks, *size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Tensor, block: Tensor | None = None) -> None:
        """Adds features (N, D) of examples to their blocks (N,), by default to the first one.

        Raises:
            InputError: they have another length, or are not finite.
        """
        require_features(features, self.num_features)
        features = features.double()
        block = torch.zeros(len(features), dtype=torch.long) if block is None else block
        block = block.to(features.device)
        for b in block.unique().tolist():
            mine = features[block == b]
            self.count[b] += len(mine)
            self.total[b] += mine.sum(0)
            self.outer[b] += mine.mT @ mine

    def reset(self) -> None:
        """Sets the sums to 0, as ordinary tensors even in inference mode, so that they can be updated outside of it."""
        with torch.inference_mode(False):
            super().reset()

    def compute(self) -> Statistics:
        """The statistics of all examples."""
        return self.statistics(range(self.blocks))

    def statistics(self, blocks: Iterable[int]) -> Statistics:
        """The statistics of the examples in some blocks.

        Raises:
            InputError: there are fewer than 2.
        """
        chosen = list(blocks)
        return _statistics(self.count[chosen].sum(), self.total[chosen].sum(0), self.outer[chosen].sum(0))

    def without(self, features: Tensor) -> Statistics:
        """The statistics of all examples except some, whose features (N, D) are given.

        Raises:
            InputError: there are fewer than 2 others.
        """
        features = features.double()
        total, outer = self.total.sum(0) - features.sum(0), self.outer.sum(0) - features.mT @ features
        return _statistics(self.count.sum() - len(features), total, outer)


def _statistics(count: Tensor, total: Tensor, outer: Tensor) -> Statistics:
    n = int(count)
    require(n >= 2, f"the Frechet distance got {n} examples on one side; it needs at least 2 on each")
    mean = total / n
    return Statistics(n, mean, (outer - n * torch.outer(mean, mean)) / (n - 1))


def block_of(numbers: Tensor, n: int, blocks: int) -> Tensor:
    """The block of each example by its number below n: consecutive numbers share a block, so that every block has all
    classes where the classes of examples alternate.
    """
    return numbers * blocks // n


class KeptFeatures:
    """The features themselves in blocks, instead of their sums: faster and more exact for few examples.

    Args:
        features: (N, D).
        blocks: number of blocks.
    """

    def __init__(self, features: Tensor, blocks: int) -> None:
        self.features, self.blocks = features, blocks
        self._block = block_of(torch.arange(len(features)), len(features), blocks).to(features.device)
        self.count = self._block.bincount(minlength=blocks)

    def compute(self) -> Statistics:
        """The statistics of all examples."""
        return fit(self.features)

    def statistics(self, blocks: Iterable[int]) -> Statistics:
        """The statistics of the examples in some blocks."""
        return fit(self.features[torch.isin(self._block, torch.tensor(list(blocks), device=self._block.device))])


def fit(features: Tensor) -> Statistics:
    """The Gaussian of features (N, D), with a factor of its covariance where they are fewer than D."""
    n, dimension = features.shape
    require(n >= 2, f"the Frechet distance got {n} examples on one side; it needs at least 2 on each")
    require_features(features, dimension)
    features = features.double()
    mean = features.mean(0)
    factor = (features - mean).mT / (n - 1) ** 0.5
    return Statistics(n, mean, factor @ factor.mT, factor if n <= dimension else None)


class ReferenceFile:
    """An NPZ with what samples are compared with: statistics of features in the format of pytorch-fid, images, or both, as
    the reference batches of ADM's evaluator have.

    Its arrays are `mu` (D,) and `sigma` (D, D), of `SpatialFeatures` `mu_s` and `sigma_s`, and images `arr_0`, uint8
    (N, H, W, C).

    Args:
        path: the file.

    Attributes:
        path: the file.
        images: uint8 (N, C, H, W); None without any.
        hash: of the file.

    Raises:
        InputError: there is no such file, or it lacks these arrays.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        require(self.path.is_file(), f"{path}: must be a file of statistics that exists")
        try:
            arrays = read_arrays(self.path)
            missing = ", ".join(sorted({"mu", "sigma"} - arrays.keys()))
            lacks = f"lacks {missing}; it holds {', '.join(arrays) or 'nothing'}"
            require(not missing or "arr_0" in arrays, lacks)
            self._arrays = {name: np.asarray(each) for name, each in arrays.items() if name != "arr_0"}
            self.images = _images(np.asarray(arrays["arr_0"])) if "arr_0" in arrays else None
            found = [self.statistics(ending) for ending in ("", "_s")]
        except (InputError, ValueError, TypeError) as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise InputError(f"{path}: not a file of statistics, .npz with mu and sigma: {reason}") from error
        self.lengths = [len(each.mean) for each in found if each is not None]
        self.hash = file_hash(self.path)[:16]

    def statistics(self, ending: str, length: int | None = None) -> Statistics | None:
        """The statistics in the arrays with these endings, if there are any, of features of this length.

        Raises:
            InputError: they are of other shapes, or not finite.
        """
        if not {f"mu{ending}", f"sigma{ending}"} <= self._arrays.keys():
            return None
        arrays = (self._arrays[f"{name}{ending}"].astype(np.float64) for name in ("mu", "sigma"))
        mean, covariance = map(torch.from_numpy, arrays)
        require(
            mean.ndim == 1 and covariance.shape == (len(mean), len(mean)),
            f"mu is {tuple(mean.shape)} and sigma {tuple(covariance.shape)}; they must be (D,) and (D, D)",
        )
        finite = bool(mean.isfinite().all() and covariance.isfinite().all())
        require(finite, f"mu{ending} or sigma{ending} has NaN or infinity")
        return Statistics(0, mean, covariance) if length in (None, len(mean)) else None


def _images(found: np.ndarray) -> Tensor:
    fits = found.ndim == 4 and found.dtype == np.uint8 and found.shape[3] in (1, 3) and len(found) > 1
    require(fits, f"arr_0 is {found.dtype} {found.shape}; it must be images, uint8 (N, H, W, 3)")
    return torch.from_numpy(found).permute(0, 3, 1, 2)


def require_features(features: Tensor, num_features: int) -> None:
    """Raises `InputError` for features of another length, or that are not finite."""
    require(
        features.ndim == 2 and features.shape[1] == num_features,
        f"features of shape {tuple(features.shape)}: must be (N, {num_features})",
    )
    require(
        bool(features.isfinite().all()),
        "features are NaN or infinite: the model or its sampler diverged; use a smaller step size or learning rate",
    )
