"""The reference statistics of a data set: computed once over all of its un-augmented examples, and cached on disk."""

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

from lightning_score.errors import InputError, require
from lightning_score.files import cache_folder, replacing, tolerating_full_disk
from lightning_score.metrics.features import Features
from lightning_score.metrics.frechet import floor_of_subsets
from lightning_score.metrics.statistics import FeatureSums, ReferenceFile, Statistics

KEPT = 20_000
"""Most feature vectors of the data that are stored, for the metrics that need them."""
VERSION = 4


@dataclass(frozen=True)
class Reference:
    """Statistics of the data's features, and some of the features themselves.

    Attributes:
        statistics: of all examples.
        kept: features of at most `KEPT` random examples, (M, D); empty if the statistics come from a file.
        floor: the score of a perfect model: the mean Frechet distance of `floor_n` samples of the data's law from these data
            (`metrics.real_floor`). None if the statistics come from a file: it does not follow from mean and covariance.
        floor_n: number of samples for the floor.
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


def check_fit(features: Features, examples: Tensor, file: ReferenceFile | None) -> None:
    """Raises `InputError` unless the features can be computed, also of a file's images, and its statistics have as many."""
    features.check(examples)
    if file is None:
        return
    if file.images is not None:
        given, needed = (f"{each.shape[-2]}x{each.shape[-1]}" for each in (file.images, examples))
        require(given == needed, f"reference={file.path}: has images of {given}, and the samples have {needed}")
        features.check(file.images[:2])
    require(
        file.images is not None or file.statistics(features.ending, features.num_features) is not None,
        f"reference={file.path}: has {' and '.join(map(str, file.lengths))} features, but {features.name} has "
        f"{features.num_features}; give statistics of these features, or null for those of the data",
    )


def reference_of_file(file: ReferenceFile, features: Features, n: int, device: torch.device | str = "cpu") -> Reference:
    """The reference of a file: its statistics of these features, if it has any, and features of its images.

    Args:
        file: the file.
        features: the extractor.
        n: number of samples for the floor, which is known where the statistics are those of the images.
        device: where the extractor is.
    """
    images, statistics = file.images, file.statistics(features.ending, features.num_features)
    if images is not None:
        found = reference_statistics(file.hash, lambda: images, features, n, device)
        return found if statistics is None else Reference(statistics, found.kept, None, None)
    if statistics is None:
        raise InputError(f"{file.path}: has no statistics of {features.name}")
    return Reference(statistics, torch.zeros(0, features.num_features), None, None)


def reference_statistics(
    data_hash: str, examples: Callable[[], Tensor], features: Features, n: int, device: torch.device | str = "cpu"
) -> Reference:
    """The reference of a data set, from the cache, or computed and cached.

    Other processes that need it while it is computed wait and read it; an unreadable file is replaced with a warning.

    Args:
        data_hash: hash of the examples, on which the reference depends along with the features and n.
        examples: returns them, as stored, (N, *shape).
        features: the extractor.
        n: number of samples for the floor.
        device: where the extractor is.
    """
    depends = [VERSION, KEPT, data_hash, features.name, features.fingerprint, n, *(["double"] if features.doubled else [])]
    key = hashlib.sha256(json.dumps(depends).encode())
    path = cache_folder() / "reference" / f"{features.name}-{key.hexdigest()[:16]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)

    def known() -> Reference | None:
        found = _read(path)
        return found if found is not None and _is_of(found, examples(), features, device) else None

    found = known()  # without the lock, for which hundreds of processes would queue
    if found is None:
        with FileLock(f"{path}.lock"):
            found = known()
            if found is None:
                found = compute(examples(), features, n, device)
                _write(path, found)
    return found


def compute(examples: Tensor, features: Features, n: int, device: torch.device | str = "cpu") -> Reference:
    """The reference of examples (N, *shape), streamed through the extractor."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
    rank = order.argsort()  # the position of every example in a random order
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
    """Whether the features of a few examples equal the stored ones: fingerprints do not cover code."""
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
        warnings.warn(f"{path}: not readable ({error}); the statistics are computed again", stacklevel=2)
        return None
