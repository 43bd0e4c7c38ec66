"""The contract of all data modules, and loaders that make a batch in one vectorized step."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from math import prod
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_score.data.check import check_splits
from lightning_score.data.order import InTurn, Loader, Shuffled
from lightning_score.errors import require
from lightning_score.memory import require_room
from lightning_score.seeds import counted_seed, derive_seed, seeded

Transform = Callable[[Tensor], Tensor]

CPU = torch.device("cpu")
ROOM_ON_GPU = 2 << 30
"""Bytes of examples that are copied to a GPU, where their batches are made: all of CIFAR-10 is a twelfth of it."""


class Examples(NamedTuple):
    """Data as they are stored, `x` (N, *shape), with their labels `y`, int64 (N,), zeros where there are none."""

    x: Tensor
    y: Tensor


class Splits(NamedTuple):
    """The examples to train on, and those held out for validation and test."""

    train: Examples
    held_out: Examples


class Batches(Dataset):
    """Examples in memory that hand out whole batches: one indexing and one transform per batch, none per example.

    torch's loader calls `__getitems__` where there is one, so samplers of single examples work, too.

    Args:
        examples: what is stored.
        transform: makes stored examples, (B, *shape), into what the model sees.
        device: where the batches are made; the examples are copied there.
    """

    def __init__(self, examples: Examples, transform: Transform, device: torch.device = CPU) -> None:
        self.examples = Examples(*(field.to(device) for field in examples))
        self.transform = transform
        self.device = device

    def __len__(self) -> int:
        return len(self.examples.x)

    def __getitem__(self, index: int | Sequence[int]) -> tuple[Tensor, Tensor]:
        """An example, or the batch of a list, which may be empty."""
        if isinstance(index, int) or not len(index):
            x, y = self.__getitems__([index or 0])
            return (x[0], y[0]) if isinstance(index, int) else (x[:0], y[:0])
        return self.__getitems__(index)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(indices)
        there = rows.to(self.device, non_blocking=True)
        x, y = (field.index_select(0, there) for field in self.examples)  # ten times as quick as x[rows]
        seed = getattr(indices, "seed", 0) if len(rows) == 1 else 0  # an example alone is a batch in every epoch
        parts = [crc32(rows.numpy().tobytes()), *([seed] if seed else [])]
        with seeded(derive_seed(*parts), self.device):  # a batch is the same in any process
            return self.transform(x), y


def split_indices(n: int, held_out: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A fixed random split of 0..n-1, not stratified: the first of a seeded permutation train, the last are held out.

    The stream of numpy's `RandomState` is frozen for good (NEP 19), so the split is the same on every machine.

    Args:
        n: number of examples.
        held_out: fraction held out; their number is rounded up.
        seed: of the permutation.
    """
    order = np.random.RandomState(seed).permutation(n)
    num_train = int(n * (1 - held_out))
    return order[:num_train], order[num_train:]


def whole_batch(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The identity, as `collate_fn`: `Batches` has put the batch together already."""
    return batch


class ScoreData(LightningDataModule, ABC):
    """Data for a score model: pairs (x, y), x float32 (B, *shape), y int64 (B,).

    A data set defines `load`, `transform` and `to_reference`. The attributes hold right after construction, before
    anything is loaded.

    Attributes:
        shape: of one example.
        num_classes: how many labels there are, 0 for unlabeled data.
        data_range: lowest and highest value of `x`, or None where it is unbounded.
        levels: how many gray levels there are in it, evenly spaced, or None where it is continuous.
        dequantize: whether `transform` adds uniform noise within a gray level.
        reference_split: which part of the data `reference()` is.
        stored_dtype: type in which `load` gives the examples, or None for any.

    Args:
        batch_size: examples per batch and process.
        num_workers: processes that load; data in memory are quickest with 0.

    Raises:
        InputError: if batch_size < 1, or num_workers < 0.
    """

    shape: tuple[int, ...]
    num_classes: int = 0
    data_range: tuple[float, float] | None = None
    levels: int | None = None
    dequantize: bool = False
    reference_split: str = "train and held out"
    stored_dtype: torch.dtype | None = None

    def __init__(self, batch_size: int = 128, num_workers: int = 0) -> None:
        super().__init__()
        require(batch_size >= 1, f"batch_size={batch_size}: must be at least 1")
        require(num_workers >= 0, f"num_workers={num_workers}: must be 0 (load in the main process) or more")
        self.save_hyperparameters(logger=False)
        self.batch_size = batch_size
        self.num_workers = num_workers

    @abstractmethod
    def load(self) -> Splits:
        """Reads the data as they are stored; called once, when they are first needed."""

    @abstractmethod
    def transform(self, train: bool) -> Transform:
        """The map from stored examples to what the model sees; only with `train` does it augment."""

    @abstractmethod
    def to_reference(self, x: Tensor) -> Tensor:
        """Samples of a model, (N, *shape), in the form of `reference()`, so that metrics compare like with like."""

    @cached_property
    def splits(self) -> Splits:
        """What `load` returns, kept.

        Raises:
            InputError: it is not what is declared.
        """
        loaded = self.load()
        check_splits(self, loaded)
        return Splits(*(Examples(*examples) for examples in loaded))

    def reference(self) -> Tensor:
        """The whole data set, train and held out together, as stored and without augmentation, (N, *shape)."""
        return torch.cat([self.splits.train.x, self.splits.held_out.x])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the whole data set as stored, which tells whether two references are of the same data."""
        stored = self.reference().contiguous()
        digest = hashlib.sha256(f"{stored.dtype} {tuple(stored.shape)}".encode())
        digest.update(stored.flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def train_dataloader(self) -> DataLoader:
        """Shuffled, augmented, and without the last incomplete batches.

        Raises:
            InputError: if the training examples (of one process) do not fill a single batch.
        """
        train = self.splits.train
        processes = self._place()[1]
        available = len(train.x) // processes
        require(
            self.batch_size <= available,
            f"batch_size={self.batch_size}: there are {available} training examples per process, and incomplete "
            f"batches are dropped; choose batch_size <= {available}",
        )
        place = (len(train.x), self.batch_size, *self._place())
        if self.trainer is None:
            return self._loader(Loader, train, Shuffled(*place), train=True)
        if self.trainer.overfit_batches:
            return self._loader(DataLoader, train, InTurn(*place), train=True)
        draws = getattr(self.trainer.lightning_module, "draws", None)
        counted = draws is not None and draws.seed is not None
        seed = counted_seed(draws.seed, self.trainer.current_epoch) if counted else None
        strategy = self.trainer.strategy
        shuffled = Shuffled(*place, self.trainer.accumulate_grad_batches, seed, strategy.broadcast)
        shuffled.chained = counted or draws is None
        return self._loader(Loader, train, shuffled, train=True)

    def val_dataloader(self) -> DataLoader:
        """The held-out examples, in order, each once; of several processes some may end with an empty batch."""
        held_out = self.splits.held_out
        return self._loader(DataLoader, held_out, InTurn(len(held_out.x), self.batch_size, *self._place()), train=False)

    def test_dataloader(self) -> DataLoader:
        """The held-out examples, in order."""
        return self.val_dataloader()

    def _place(self) -> tuple[int, int]:
        """The rank of this process and the number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, kind: type[DataLoader], examples: Examples, sampler: InTurn, train: bool) -> DataLoader:
        rows = min(self.batch_size, len(examples.x))
        require_room(8 * rows * prod(self.shape), f"batch_size={rows} of shape {list(self.shape)}", "take a smaller one")
        device = self._device(examples)
        return kind(
            Batches(examples, self.transform(train), device),
            sampler=sampler,
            batch_size=None,  # the sampler gives whole batches
            collate_fn=whole_batch,
            generator=torch.Generator().manual_seed(derive_seed()) if self.num_workers else None,  # of seeds without a use
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available() and device == CPU,
        )

    def _device(self, examples: Examples) -> torch.device:
        """Where batches are made: on the GPU of this process, if the examples may stay there."""
        device = CPU if self.trainer is None else self.trainer.strategy.root_device
        small = sum(field.nbytes for field in examples) <= ROOM_ON_GPU
        return device if device.type == "cuda" and small and self.num_workers == 0 else CPU
