"""The base class of all data modules."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from inspect import Parameter, Signature, signature
from math import prod
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_score.conditions import Condition, condition_of
from lightning_score.data.array_augmentation import ArrayAugmentation
from lightning_score.data.batches import CPU, Batches, Examples, Finish, Splits, Transform, split_indices
from lightning_score.data.check import check_splits
from lightning_score.data.observed import Observed
from lightning_score.data.order import InTurn, Loader, Shuffled
from lightning_score.errors import require
from lightning_score.memory import require_room
from lightning_score.observations import LinearOperator, Observation
from lightning_score.seeds import counted_seed, derive_seed, seeded

__all__ = ["Batches", "Examples", "ScoreData", "Splits", "Transform", "split_indices"]

IN_TURN = 1024
"""Held-out examples whose observations samples get in turn."""
ROOM_ON_GPU = 2 << 30
"""Maximal size in bytes of a data set that is copied to the GPU, where its batches are made; CIFAR-10 has a twelfth."""


class ScoreData(LightningDataModule, ABC):
    """Data for a score model: pairs (x, y), x float32 (B, *shape), y int64 (B,).

    A data set defines `load`, `transform` and `to_reference`. The attributes are valid after construction, before the data
    are loaded.

    Attributes:
        shape: the shape of one example.
        num_classes: number of classes, 0 for unlabeled data.
        data_range: lowest and highest value of `x`, or None if unbounded.
        levels: number of evenly spaced gray levels in the data range, or None for continuous data.
        dequantize: whether `transform` adds uniform noise within a gray level.
        reference_split: the name of the part of the data that `reference()` returns.
        stored_dtype: dtype of the examples that `load` returns, or None for any.
        missing: whether entries of `x` may be missing: NaN, as stored and as input of the model.
        random: whether `transform` draws random numbers.
        units: the units of the stored data, for pictures.
        names: the names of the channels, or of the columns of a table; empty: none.

    Args:
        batch_size: examples per batch and process.
        num_workers: number of loader processes; 0 is fastest for data in memory.
        given: what the model is given of every example, in place of its label: as BlockMean, for super-resolution; null: the
            label, or what else the data hold.
        given_noise: standard deviation of noise that is added to it, in the units of the model.
        augment: random changes of the training examples, and noise that becomes a part of the data; null: none.

    Raises:
        InputError: batch_size < 1, or num_workers < 0; given_noise < 0, or without given.
    """

    shape: tuple[int, ...]
    num_classes: int = 0
    data_range: tuple[float, float] | None = None
    levels: int | None = None
    dequantize: bool = False
    reference_split: str = "train and held out"
    stored_dtype: torch.dtype | None = None
    missing: bool = False
    random: bool = True
    units: str = ""
    names: Sequence[str] = ()
    __signature__: Signature

    def __init_subclass__(cls, **settings: Any) -> None:
        """Replaces the `**options` of a constructor by the parameters of the base class in the signature of the class."""
        super().__init_subclass__(**settings)
        _, *shown = signature(cls.__init__).parameters.values()
        if shown and shown[-1].kind is Parameter.VAR_KEYWORD:
            base = next(kind for kind in cls.__mro__[1:] if issubclass(kind, ScoreData))
            names = [each.name for each in shown]
            inherited = (each for each in signature(base).parameters.values() if each.name not in names)
            shown[-1:] = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in inherited]
        cls.__signature__ = Signature(shown)

    def __init__(
        self,
        batch_size: int = 128,
        num_workers: int = 0,
        given: LinearOperator | None = None,
        given_noise: float = 0.0,
        augment: list[ArrayAugmentation] | None = None,
    ) -> None:
        super().__init__()
        require(batch_size >= 1, f"batch_size={batch_size}: must be at least 1")
        require(num_workers >= 0, f"num_workers={num_workers}: must be at least 0 (load in the main process)")
        require(given_noise >= 0, f"given_noise={given_noise}: must be 0 (exact observations) or more, as in 0.1")
        require(given is not None or not given_noise, f"given_noise={given_noise}: is of observations; set given, too")
        by_command_line = _given_hyperparameters.get() is not None
        objects = ["given", "augment", "standardize", "standardize_condition"]
        self.save_hyperparameters(ignore=[] if by_command_line else objects, logger=False)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.given = None if given is None else Observed(given, given_noise)
        self.augment = augment or []

    @abstractmethod
    def load(self) -> Splits:
        """Reads the stored data; called once, when they are first needed."""

    @abstractmethod
    def transform(self, train: bool) -> Transform:
        """The map from stored examples to inputs of the model; augments only if `train`."""

    @abstractmethod
    def to_reference(self, x: Tensor) -> Tensor:
        """Samples of a model, (N, *shape), in the format of `reference()`, with which metrics compare them."""

    def log_det(self, x: Tensor) -> Tensor:
        """`log |d transform / d stored|` of each example, without missing entries, (B,): 0 unless `transform` rescales.

        Args:
            x: inputs of the model, as `transform` gives them, (B, *shape).
        """
        return x.new_zeros(len(x))

    def posterior(self, observation: Observation) -> Callable[[int, torch.Generator], Tensor] | None:
        """What draws n examples of the exact law of x given one observation, (n, *shape) as the model sees them; None where
        that is not known.
        """
        return None

    @property
    def condition(self) -> Condition | None:
        """What kind of condition `y` is, known before the data are loaded; None for unlabeled data."""
        return condition_of(self.num_classes) if self.given is None else self.given.condition(self.shape)

    def to_condition(self, values: Tensor) -> Tensor:
        """Conditions in the units of the stored data, as a user gives them, in those of the model, (B, *condition.shape).

        Raises:
            InputError: observations in these units do not determine those in the model's.
        """
        if self.given is None:
            return values
        self.given.require_units(values, self)
        return self.given.from_units(values, self)

    def from_condition(self, y: Tensor) -> Tensor:
        """The inverse of `to_condition`."""
        return y if self.given is None else self.given.to_units(y, self)

    def pairs(self, examples: Examples, filled: bool = True) -> tuple[Tensor, Tensor]:
        """Stored examples as a batch (x, y) for the model, without augmentation; missing entries are filled by default."""
        return Finish(self.given)(self.as_input(examples.x, filled), examples.y)

    def filled(self, x: Tensor) -> Tensor:
        """Stored examples with the value that the model sees as 0 in place of missing entries."""
        if not self.missing:
            return x
        zeros = self.to_reference(torch.zeros(1, *self.shape, device=x.device))
        return x.where(~x.isnan(), zeros.to(x.dtype))

    def as_input(self, x: Tensor, filled: bool = True) -> Tensor:
        """Stored examples as inputs of the model, not augmented; missing entries are filled or, on request, stay NaN."""
        return self.inputs(train=False)(self.filled(x) if filled else x)

    def inputs(self, train: bool) -> Transform:
        """`transform`, after the noise that is a part of the data."""
        then = self.transform(train)
        if not self.augment:
            return then
        from torchvision.transforms import Compose  # takes a second to import

        return Compose([*(each.noisy for each in self.augment), then])

    def finish(self, train: bool) -> Finish:
        """What is done to transformed batches."""
        return Finish(self.given, self.augment if train else (), None if self.given else self.condition)

    def held_out_conditions(self) -> Tensor:
        """The conditions of the held-out examples in order, which samples get in turn, (n, *condition.shape)."""
        return self.splits.held_out.y if self.given is None else self._observations

    @cached_property
    def _observations(self) -> Tensor:
        with seeded(derive_seed()):  # of dequantization and of the noise of observations
            return self.pairs(Examples(*(part[:IN_TURN] for part in self.splits.held_out)), filled=False)[1]

    @cached_property
    def splits(self) -> Splits:
        """The checked and cached result of `load`.

        Raises:
            InputError: it differs from the declared attributes.
        """
        loaded = self.load()
        check_splits(self, loaded)
        return Splits(*(Examples(*examples) for examples in loaded))

    def reference(self) -> Tensor:
        """The whole data set, training and held-out examples, as stored, filled and without augmentation, (N, *shape)."""
        return self.filled(torch.cat([self.splits.train.x, self.splits.held_out.x]))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the whole stored data set, equal for references of the same data."""
        stored = self.reference().contiguous()
        digest = hashlib.sha256(f"{stored.dtype} {tuple(stored.shape)}".encode())
        digest.update(stored.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def train_dataloader(self) -> DataLoader[Any]:
        """The training examples, shuffled, augmented, and without incomplete batches.

        Raises:
            InputError: the training examples of one process do not fill a batch.
        """
        train = self.splits.train
        place = (len(train.x), self.batch_size, *self._place())
        self.require_batch(len(train.x))
        if self.trainer is None:
            return self._loader(Loader, train, Shuffled(*place), train=True)
        if self.trainer.overfit_batches:  # type: ignore[attr-defined]
            return self._loader(DataLoader, train, InTurn(*place), train=True)
        draws = getattr(self.trainer.lightning_module, "draws", None)
        fixed = None if draws is None else draws.seed
        seed = None if fixed is None else counted_seed(fixed, self.trainer.current_epoch)
        shuffled = Shuffled(*place, self.trainer.accumulate_grad_batches, seed, self.trainer.strategy.broadcast)
        shuffled.chained = seed is not None or draws is None
        return self._loader(Loader, train, shuffled, train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The held-out examples, in order, each once; with several processes some may get an empty last batch."""
        held_out = self.splits.held_out
        return self._loader(DataLoader, held_out, InTurn(len(held_out.x), self.batch_size, *self._place()), train=False)

    def test_dataloader(self) -> DataLoader[Any]:
        """The held-out examples, in order."""
        return self.val_dataloader()

    def require_batch(self, n: int, workers: int = 1) -> None:
        """Raises `InputError` unless the share of each process and worker in n training examples fills a batch."""
        available = n // self._place()[1] // workers
        more, fix = (" and worker", ", or fewer num_workers") if workers > 1 else ("", "")
        require(
            self.batch_size <= available,
            f"batch_size={self.batch_size}: there are only {available} training examples per process{more}, and incomplete "
            f"batches are dropped; choose batch_size <= {available}{fix}",
        )

    def _place(self) -> tuple[int, int]:
        """The rank of this process and the number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, kind: type[DataLoader[Any]], examples: Examples, sampler: InTurn, train: bool) -> DataLoader[Any]:
        rows = min(self.batch_size, len(examples.x))
        require_room(8 * rows * prod(self.shape), f"batch_size={rows} of shape {list(self.shape)}", "use a smaller one")
        device = self._device(examples)
        random = self.random or bool(self.augment) or self.given is not None
        unused = torch.Generator().manual_seed(derive_seed()) if self.num_workers else None  # else it draws from torch's
        return kind(
            Batches(examples, self.inputs(train), device, self.finish(train), random),
            sampler=sampler,
            batch_size=None,  # the sampler returns whole batches
            collate_fn=tuple,
            generator=unused,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available() and device == CPU,
        )

    def _device(self, examples: Examples) -> torch.device:
        """The device of the batches: the GPU of this process, if the examples fit there."""
        device = CPU if self.trainer is None else self.trainer.strategy.root_device
        small = sum(field.nbytes for field in examples) <= ROOM_ON_GPU
        return device if device.type == "cuda" and small and self.num_workers == 0 else CPU
