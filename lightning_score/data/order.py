"""The order of examples on any number of processes, and a loader that resumes in the middle of an epoch."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from lightning_score.seeds import counted_seed


class Rows(list[int]):
    """The indices of a batch, and the seed of their order, 0 without shuffling."""

    seed = 0


class InTurn(DistributedSampler[list[int]]):
    """The batches of one of N processes, in order: batch k of a single process goes to process k mod N.

    All processes have the same number of batches; the last one of a process may be empty. Lightning does not replace a
    `DistributedSampler`.

    Args:
        n: number of examples.
        batch_size: examples per batch.
        rank: the rank of this process.
        processes: their number N.
    """

    skipped = 0
    """Number of batches to skip in the next epoch."""

    def __init__(self, n: int, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        super().__init__(range(n), num_replicas=processes, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.n, self.batch_size = n, batch_size
        self.batches = -(-n // batch_size)  # of all processes

    def __len__(self) -> int:
        return -(-self.batches // self.num_replicas)

    def order(self) -> Tensor:
        """The indices of an epoch in their order, (n,)."""
        return torch.arange(self.n)

    def __iter__(self) -> Iterator[list[int]]:
        order, skipped, self.skipped = self.order(), self.skipped, 0
        for k in range(skipped, len(self)):
            rows = Rows(order[(k * self.num_replicas + self.rank) * self.batch_size :][: self.batch_size].tolist())
            rows.seed = self.seed
            yield rows


class Shuffled(InTurn):
    """The batches in a new random order in each epoch, with whole optimizer steps only; each epoch drops other examples.

    The seeds of later epochs follow from that of the first.

    Args:
        n: number of examples.
        batch_size: examples per batch.
        rank: the rank of this process.
        processes: their number N.
        accumulated: batches of each process in one optimizer step; too few examples for a step make a smaller step.
        seed: the seed of the first epoch; null: drawn from torch's random numbers.
        agree: broadcasts the seed of the first process.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        rank: int = 0,
        processes: int = 1,
        accumulated: int = 1,
        seed: int | None = None,
        agree: Callable[[int], int] = int,
    ) -> None:
        super().__init__(n, batch_size, rank, processes)
        self.agree, self.seed, self.following = agree, 0, seed
        self.chained = True  # False in runs of earlier versions, which draw each epoch's seed
        batches = n // batch_size
        self.batches = batches // (processes * accumulated) * processes * accumulated or batches // processes * processes

    def order(self) -> Tensor:
        if self.following is None:
            self.following = self.agree(int(torch.empty((), dtype=torch.int64).random_()))
        self.seed = self.following
        self.following = counted_seed(self.seed) if self.chained else None
        return torch.randperm(self.n, generator=torch.Generator().manual_seed(self.seed))


class Loader(DataLoader[Any]):
    """A DataLoader that Lightning can resume in the middle of an epoch by `state_dict`.

    Args:
        dataset: the examples.
        sampler: their order.
        settings: arguments of torch's DataLoader.
    """

    given = 0
    """Number of batches of this epoch that have been returned."""
    _skipped = 0

    def __init__(self, dataset: Dataset[Any], sampler: Shuffled, **settings: Any) -> None:
        super().__init__(dataset, sampler=sampler, **settings)
        self.order = sampler

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.given = self.order.skipped = self._skipped
        self._skipped = 0
        before = torch.get_rng_state()
        batches = super().__iter__()
        if self.given:  # its random number was drawn at the start of the epoch
            torch.set_rng_state(before)
        if self.num_workers == 0 and not self.pin_memory:  # without the costs of torch's loader
            batches = (self.dataset[rows] for rows in self.order)  # type: ignore[assignment]
        for batch in batches:
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The number of batches of this epoch that have been returned, and the seeds of this and the next epoch."""
        state = {"batches": self.given, "seed": self.order.seed}
        return {**state, "following": self.order.following} if self.order.chained else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes at the next `iter`; after all batches of an epoch, with the next epoch."""
        self.order.seed = state["seed"]  # for a checkpoint that is saved before that
        self.given = self._skipped = state["batches"] % len(self)
        self.order.chained = "following" in state
        self.order.following = state["seed"] if self._skipped else state.get("following")
