"""Arrays that are streamed from chunks, on a disk or in a bucket: data sets larger than memory."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from math import isnan, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_score.data.arrays import Arrays
from lightning_score.data.batches import Examples, Splits, Transform
from lightning_score.data.stream import chunk_loader, in_memory
from lightning_score.errors import InputError, require
from lightning_score.files import LocalPath, cache_folder, new_folder_if_kept
from lightning_score.memory import require_room


@dataclass(frozen=True)
class WithGaps:
    """A transform of numbers as they are in chunks, with NaN where they have the value of missing ones."""

    missing: float | None
    then: Transform

    def __call__(self, x: Tensor) -> Tensor:
        x = x if x.is_floating_point() else x.float()
        gaps = self.missing is not None and not isnan(self.missing)
        return self.then(x.masked_fill(x.eq(self.missing or 0), torch.nan) if gaps else x)


class ArrayStream(Arrays):
    """Arrays that Lightning's LitData streams from chunks, in a new order in every epoch; further arguments as in `Arrays`.

    Every process and worker reads its own chunks in random order, and the examples of each chunk in random order. An
    interrupted run resumes with the next example.

    Files that `Arrays` reads are packed into chunks once, with their conditions and the constants of the standardization,
    which are found in the same pass. Such chunks can be moved, as into a bucket. In chunks that `litdata.optimize` wrote
    otherwise each item must be an array, or a mapping or tuple with one; they have no conditions, the first examples are
    held out, and the constants are those of the training examples in memory.

    Args:
        path: as in `Arrays`; or chunks, in a folder or a bucket (s3://, gs://).
        kept: number of training examples kept in memory, for references of metrics and for nearest neighbors.
        num_workers: number of loader processes.

    Raises:
        InputError: an argument is out of range, or litdata is not installed; when the data are first needed: as `Arrays`.
    """

    reference_split = "a part of train, and held out"

    def __init__(self, path: LocalPath, kept: int = 10_000, num_workers: int = 2, **options: Any) -> None:
        super().__init__(path, num_workers=num_workers, **options)
        from lightning_score.data import chunks  # noqa: F401  # needs litdata, which is optional and slow to import

        require(kept > 0, f"kept={kept}: must be a number of examples above 0, as in 10000")
        self.path, self.kept = path, kept
        self.how_standardized = repr([(type(how).__name__, vars(how)) for how in (self.standardize, self.how) if how])
        self._is_chunks = "://" in path.removeprefix("package://") or Path(path, "index.json").exists()
        self.foreign = self._is_chunks and self._describe()

    def _describe(self) -> bool:
        """Takes shape, conditions and constants from chunks; returns whether they were written otherwise."""
        from lightning_score.data.chunks import description_of

        known = description_of(self.path)
        if known is not None:
            self.load_state_dict(known["state"])
            return False
        require(not self.conditions, f"condition: {self.path}: chunks that were packed otherwise have no conditions")
        x, _ = self._rows()[0]
        self.__dict__ |= {"shape": x.shape, "integers": str(x.dtype) if x.dtype.kind in "biu" else "", "names": []}
        return True

    @cached_property
    def chunks(self) -> str:
        """The folder of the chunks; packs them if necessary."""
        if self._is_chunks:
            return self.path
        from lightning_score.data.chunks import description_of
        from lightning_score.data.packing import lock_of, pack_arrays

        cache = Path(self.cache) if self.cache else cache_folder()
        key = hashlib.sha256(repr((self._hash_of_files(), self.how_standardized)).encode()).hexdigest()[:16]
        packed = cache / f"chunks-{key}"
        try:
            with new_folder_if_kept(cache), lock_of(packed):  # one of several processes packs
                if not packed.exists():
                    splits = super().load()
                    pack_arrays(splits, {"held_out": len(splits.held_out.x), "state": self.state_dict()}, packed)
        except OSError as error:  # a full disk, or no permission
            raise InputError(
                f"--data.cache {cache}: the chunks cannot be written there ({error.strerror or error}); give another folder"
            ) from error
        if not self._state:
            self.__dict__.pop("stored_condition", None)  # that has no constants
            self.load_state_dict(description_of(str(packed))["state"])  # type: ignore[index]
        return str(packed)

    def _rows(self, first: int = 0, last: int | None = None) -> Any:
        """A StreamingDataset of this process, of the examples from `first` to `last`."""
        from lightning_score.data.chunks import ArrayItems

        whole = ArrayItems(self.path if self._is_chunks else self.chunks, self.__dict__.get("shape"))
        return whole.subset(slice(first, last)) if (first, last) != (0, None) else whole

    @cached_property
    def _held_out(self) -> int:
        """The number of examples held out, the first ones."""
        from lightning_score.data.chunks import description_of

        known = description_of(self.chunks)
        if known is not None:
            return int(known["held_out"])
        require(not isinstance(self.held_out, str), f"held_out={self.held_out}: must be a fraction for these chunks")
        n = len(self._rows())
        return min(max(1, round(float(self.held_out) * n)), n - 1)

    def load(self) -> Splits:
        """The held-out examples, and a part of the others, in memory."""
        held_out = self._held_out
        train, held = self._rows(held_out, held_out + self.kept), self._rows(0, held_out)
        n = len(train) + len(held)
        require_room(4 * n * prod(self.shape), f"{n} examples of shape {list(self.shape)}", "use a smaller kept or held_out")
        splits = Splits(in_memory(train), in_memory(held))
        if self.foreign:
            gaps = WithGaps(self.fill, torch.nn.Identity())
            splits = Splits(*(Examples(gaps(x), y) for x, y in splits))
        self._fit(splits.train.x)
        return splits

    def transform(self, train: bool) -> Transform:
        return WithGaps(self.fill, self.standardize) if self.foreign else self.standardize

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the chunks or files, and of the number of examples in memory."""
        first = self._rows()[0][0].tobytes() if self._is_chunks else self._hash_of_files().encode()
        return hashlib.sha256(repr((self.path, self.kept)).encode() + first).hexdigest()[:16]

    def train_dataloader(self) -> DataLoader[Any]:
        """All examples that are not held out, shuffled, augmented, and without incomplete batches.

        Raises:
            InputError: the training examples of one process and worker do not fill a batch.
        """
        self.splits  # noqa: B018  # finds the constants
        return chunk_loader(self, self._rows(self._held_out))
