"""The data's side of a distance: computed once over the whole un-augmented data set, and kept on disk."""

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from lightning_score.errors import require
from lightning_score.files import cache_folder, replacing, tolerating_full_disk
from lightning_score.metrics.features import Features
from lightning_score.metrics.frechet import floor_of_subsets
from lightning_score.metrics.statistics import FeatureSums, Statistics

KEPT = 20_000
"""Most feature vectors of the data that are kept, for the metrics that need them."""
VERSION = 4


@dataclass(frozen=True)
class Reference:
    """Statistics of the data's features, and some of the features themselves.

    Attributes:
        statistics: of all examples.
        kept: features of at most `KEPT` random ones, (M, D); none where statistics were read from a file.
        floor: what a perfect model scores: the mean Frechet distance of `floor_n` samples of the data's law from these data
            (`metrics.real_floor`). None where statistics were read from a file: mean and covariance alone do not tell it.
        floor_n: the number of samples.
    """

    statistics: Statistics
    kept: Tensor
    floor: float | None
    floor_n: int | None

    def to(self, device: torch.device | str) -> "Reference":
        """The same on a device."""
        n, mean, covariance, _ = self.statistics
        statistics = Statistics(n, mean.to(device), covariance.to(device))
        return Reference(statistics, self.kept.to(device), self.floor, self.floor_n)


def check_fit(features: Features, examples: Tensor, statistics: Statistics | None, file: str | None) -> None:
    """Raises `InputError` unless the features of examples can be found, and statistics of a file, if any, are of as many."""
    features.check(examples)
    there = features.num_features if statistics is None else len(statistics.mean)
    require(
        there == features.num_features,
        f"reference={file}: of {there} features, but {features.name} has {features.num_features}; give statistics of these "
        "features, or null for those of the data",
    )


def reference(
    data_hash: str, examples: Callable[[], Tensor], features: Features, n: int, device: torch.device | str = "cpu"
) -> Reference:
    """The reference of a data set, from the cache or computed and put there.

    Whoever comes while another process computes it waits and reads; a file that cannot be read is ignored with a warning
    and replaced.

    Args:
        data_hash: of the examples: all that the reference depends on besides the features and n.
        examples: gives them, as stored, (N, *shape).
        features: the extractor.
        n: number of samples beside which the floor is to stand.
        device: where the extractor is.
    """
    depends = [VERSION, KEPT, data_hash, features.name, features.fingerprint, n, *(["double"] if features.doubled else [])]
    key = hashlib.sha256(json.dumps(depends).encode())
    path = cache_folder() / "reference" / f"{features.name}-{key.hexdigest()[:16]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        found = _read(path)
        if found is None or not _is_of(found, examples(), features, device):
            found = compute(examples(), features, n, device)
            _write(path, found)
    return found


def compute(examples: Tensor, features: Features, n: int, device: torch.device | str = "cpu") -> Reference:
    """The reference of examples (N, *shape), streamed through the extractor."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
    rank = order.argsort()  # place of every example in a random order
    sums = FeatureSums(features.num_features, sync_on_compute=False).to(device)
    kept = torch.zeros(min(len(examples), KEPT), features.num_features)
    numbers = torch.arange(len(examples)).split(features.chunk)
    for rows in tqdm(numbers, "features of the data", unit="batch", disable=None if len(numbers) > 8 else True, leave=False):
        vectors, place = features(examples[rows].to(device)).features, rank[rows]
        sums.update(vectors)
        chosen = place < len(kept)
        kept[place[chosen]] = vectors[chosen.to(device)].float().cpu()
    n_all, mean, covariance, _ = sums.compute()
    floor = floor_of_subsets(sums.to("cpu"), kept, n) if n >= 2 and n_all >= 4 else None
    return Reference(Statistics(n_all, mean.cpu(), covariance.cpu()), kept, floor, n)


def _is_of(found: Reference, examples: Tensor, features: Features, device: torch.device | str) -> bool:
    """Whether the features of a few examples are those that are kept: the fingerprint tells weights apart, not code."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
    now, kept = features(examples[order[:8]].to(device)).features.float().cpu(), found.kept[:8]
    return now.shape == kept.shape and bool((now - kept).norm() <= 0.01 * kept.norm())


def _write(path: Path, found: Reference) -> None:
    tensors = {"mean": found.statistics.mean, "covariance": found.statistics.covariance, "kept": found.kept}
    numbers = {"n": found.statistics.n, "floor": found.floor, "floor_n": found.floor_n}
    with tolerating_full_disk(path), replacing(path) as temporary:
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(whole, temporary, {"numbers": json.dumps(numbers)})


def _read(path: Path) -> Reference | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            numbers = json.loads(file.metadata()["numbers"])
            mean, covariance, kept = (file.get_tensor(name) for name in ("mean", "covariance", "kept"))
        return Reference(Statistics(numbers["n"], mean, covariance), kept, numbers["floor"], numbers["floor_n"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        warnings.warn(f"{path}: not readable ({error}); the data's statistics are computed anew", stacklevel=2)
        return None
