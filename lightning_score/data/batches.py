"""Stored examples, their split, and a dataset that makes a whole batch of them in one vectorized step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_score.conditions import Condition
from lightning_score.data.array_augmentation import ArrayAugmentation
from lightning_score.data.observed import Observed
from lightning_score.seeds import derive_seed, seeded

Transform = Callable[[Tensor], Tensor]

CPU = torch.device("cpu")


class Examples(NamedTuple):
    """Stored data `x` (N, *shape) and labels `y`, int64 (N,), zeros for unlabeled data."""

    x: Tensor
    y: Tensor


class Splits(NamedTuple):
    """The training examples, and the examples held out for validation and test."""

    train: Examples
    held_out: Examples


class Finish(NamedTuple):
    """What is done to a batch (x, y) after the transform.

    Fields: given (what x is conditioned on instead of its label), augment (changes of x), condition (of y, changed alike).
    """

    given: Observed | None = None
    augment: Sequence[ArrayAugmentation] = ()
    condition: Condition | None = None

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        for each in self.augment:
            drawn = each.draw(len(x), x.shape[1:], x.device)
            if drawn is not None:
                change = partial(each.change, drawn=drawn)
                x, y = change(x), y if self.condition is None else self.condition.moved(y, change)
        return x, y if self.given is None else self.given(x)


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Examples in memory, indexed and transformed one whole batch at a time.

    torch's loader calls `__getitems__` if it exists, so samplers of single examples also work.

    Args:
        examples: the stored examples.
        transform: maps stored examples, (B, *shape), to inputs of the model.
        device: the device of the batches, to which the examples are copied.
        finish: augments the batch, and makes what it is conditioned on.
        random: whether these draw random numbers, for which each batch has a seed.
    """

    def __init__(
        self,
        examples: Examples,
        transform: Transform,
        device: torch.device = CPU,
        finish: Finish | None = None,
        random: bool = True,
    ) -> None:
        self.examples = Examples(*(field.to(device) for field in examples))
        self.transform, self.finish = transform, finish or Finish()
        self.device, self.random = device, random

    def __len__(self) -> int:
        return len(self.examples.x)

    def __getitem__(self, index: int | Sequence[int]) -> tuple[Tensor, Tensor]:
        """One example, or the batch of a list of indices, which may be empty."""
        if isinstance(index, int):
            x, y = self.__getitems__([index])
            return x[0], y[0]
        x, y = self.__getitems__(index if len(index) else [0])
        return x[: len(index)], y[: len(index)]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(np.array(indices, np.int64))  # five times as fast as from the list
        there = rows.to(self.device, non_blocking=True)
        x, y = (field.index_select(0, there) for field in self.examples)  # ten times faster than x[rows]
        if not self.random:
            return self.finish(self.transform(x), y)
        seed = getattr(indices, "seed", 0) if len(rows) == 1 else 0  # a batch of one is the same rows in every epoch
        parts = [crc32(rows.numpy().tobytes()), *([seed] if seed else [])]
        with seeded(derive_seed(*parts), self.device):  # the same batch in any process
            return self.finish(self.transform(x), y)


def split_indices(n: int, held_out: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A fixed random split of 0..n-1, not stratified: the first part of a seeded permutation is for training.

    The stream of numpy's `RandomState` never changes (NEP 19), so the split is the same on every machine.

    Args:
        n: number of examples.
        held_out: fraction held out; the number is rounded up.
        seed: the seed of the permutation.
    """
    order = np.random.RandomState(seed).permutation(n)
    num_train = int(n * (1 - held_out))
    return order[:num_train], order[num_train:]
