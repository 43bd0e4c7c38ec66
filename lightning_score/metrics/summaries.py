"""What distances are computed from: summaries of the data, computed once, and of samples, on any number of processes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_score.errors import Unmeasurable, require
from lightning_score.metrics.channels import Channels
from lightning_score.metrics.distances import ROOM, Curves, Distance
from lightning_score.metrics.frechet import Estimate

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
        room = min(distance.most, ROOM // length)
        large = f"{type(distance).__name__}: keeps {length} numbers of each example of shape {shape}, too many; leave it out"
        require(room >= 4, large)
        require(min(n, len(some)) >= 2, f"{type(distance).__name__}: needs 2 samples and 2 examples")
        whole = distance.all_summaries(some[:room], channels)
        found.append(Summaries(distance, channels, shape, whole, min(n, room), distance.floor(whole, min(n, room))))
    return found


class DistanceTotals:
    """The summaries of an evaluation's samples.

    Args:
        references: the data as each distance sees them.
    """

    def __init__(self, references: Sequence[Summaries]) -> None:
        self.references = references
        self.kept = [torch.zeros(each.n, each.data.shape[1]) for each in references]

    def update(self, numbers: Sequence[int], samples: Tensor) -> None:
        """Adds the samples with these numbers.

        Raises:
            Unmeasurable: they are not finite.
        """
        rows = torch.as_tensor(numbers)
        for reference, kept in zip(self.references, self.kept, strict=True):
            first = rows < len(kept)
            if first.any():
                found = reference.distance.all_summaries(samples[first.to(samples.device)], reference.channels)
                if not found.isfinite().all():
                    raise Unmeasurable(f"{reference.distance.name}: samples are NaN or infinite, or of enormous values")
                kept[rows[first]] = found.float().cpu()

    def measure(self, device: torch.device) -> dict[str, Estimate]:
        """The distances by name, computed on a device."""
        return {
            reference.distance.name: reference.distance.estimate(kept.to(device), reference.data.to(device))
            for reference, kept in zip(self.references, self.kept, strict=True)
        }

    def reduce(self, trainer: Trainer, device: torch.device) -> None:
        """Sums over all processes, on each of them."""
        self.kept = [trainer.strategy.reduce(kept.to(device), reduce_op="sum").cpu() for kept in self.kept]

    def state_dict(self) -> list[Tensor]:
        """All summaries."""
        return self.kept

    def load_state_dict(self, state: Sequence[Tensor]) -> None:
        """Resumes from saved summaries."""
        self.kept = [kept.clone() for kept in state]
