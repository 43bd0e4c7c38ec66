"""What distances are computed from: summaries of the data, computed once, and of samples, on any number of processes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_score.errors import Unmeasurable, require
from lightning_score.estimates import Estimate
from lightning_score.metrics.channels import Channels
from lightning_score.metrics.distances import ROOM, Curves, Distance
from lightning_score.metrics.totals import Totals

DATA = 1 << 27
"""Most numbers in the examples that represent the data."""
KEPT = 10_000
"""Most examples that represent the data: random ones."""


class Summaries(NamedTuple):
    """The data as a distance sees them.

    Fields: distance, channels and shape of the examples, data (N, F), n (how many samples are compared: the first ones) and
    floor (the mean distance of n samples of the data's law; None if there are too few data).
    """

    distance: Distance
    channels: Channels
    shape: tuple[int, ...]
    data: Tensor
    n: int
    floor: float | None

    def curves(self, summaries: Tensor) -> Curves:
        """The curves of samples or of the data, for a picture."""
        return self.distance.curves(summaries, self.channels, self.shape, min(self.n, len(self.data)))


def summaries_of(distances: Sequence[Distance], data: Tensor, n: int) -> list[Summaries]:
    """The data (N, *shape) as each distance sees them, and how many of n samples it compares.

    Raises:
        InputError: a distance cannot be computed from the data.
    """
    shape = tuple(data.shape[1:])
    most = min(KEPT, max(64, DATA // math.prod(shape)))
    some = data[torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:most]]
    require(
        bool(some.isfinite().all()),
        "distances: the data have NaN or infinite values; remove them, or measure with distances=[]",
    )
    channels, found = Channels.of(some), []
    for distance in distances:
        length = distance.summarize(some[:2], channels).shape[1]
        room = min(distance.max_samples, ROOM // length)
        large = f"{type(distance).__name__}: keeps {length} numbers of each example of shape {shape}, too many; leave it out"
        require(room >= 4, large)
        require(min(n, len(some)) >= 2, f"{type(distance).__name__}: needs 2 samples and 2 examples")
        whole = distance.all_summaries(some[:room], channels)
        found.append(Summaries(distance, channels, shape, whole, min(n, room), distance.floor(whole, min(n, room))))
    return found


class DistanceTotals(Totals):
    """The summaries of an evaluation's samples.

    Args:
        reference: the data as the distance sees them.
    """

    def __init__(self, reference: Summaries) -> None:
        self.reference = reference
        self.kept = torch.zeros(reference.n, reference.data.shape[1])

    def update(self, numbers: Sequence[int], samples: Tensor) -> None:
        """Adds the samples with these numbers.

        Raises:
            Unmeasurable: they are not finite.
        """
        rows = torch.as_tensor(numbers)
        first = rows < len(self.kept)
        if first.any():
            distance = self.reference.distance
            found = distance.all_summaries(samples[first.to(samples.device)], self.reference.channels)
            if not found.isfinite().all():
                raise Unmeasurable(f"{distance.name}: samples are NaN or infinite, or of enormous values")
            self.kept[rows[first]] = found.float().cpu()

    def tensors(self) -> dict[str, Tensor]:
        return {"kept": self.kept}

    def measure(self, device: torch.device) -> Estimate:
        """The distance, computed on a device."""
        return self.reference.distance.estimate(self.kept.to(device), self.reference.data.to(device))
