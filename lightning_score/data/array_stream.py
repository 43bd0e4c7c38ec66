"""Arrays that are streamed from chunks, on a disk or in a bucket: data sets larger than memory."""

import hashlib
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from lightning_score.data.arrays import Arrays
from lightning_score.data.batches import Splits
from lightning_score.data.stream import chunk_loader, in_memory
from lightning_score.errors import require
from lightning_score.files import LocalPath, cache_folder
from lightning_score.memory import require_room


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
        if self._is_chunks:
            self._describe()

    def _describe(self) -> None:
        """Takes shape, conditions and constants from chunks, as far as they have them."""
        chunks = self._rows()
        if chunks.description is not None:
            self.load_state_dict(chunks.description["state"])
            return
        require(not self.conditions, f"condition: {self.path}: chunks that were packed otherwise have no conditions")
        x = chunks.array(0)
        self.__dict__ |= {"shape": x.shape, "integers": str(x.dtype) if x.dtype.kind in "biu" else "", "names": []}

    @cached_property
    def chunks(self) -> str:
        """The folder of the chunks; packs them if necessary."""
        if self._is_chunks:
            return self.path
        from lightning_score.data.chunks import ArrayItems
        from lightning_score.data.packing import pack_arrays, pack_once

        cache = Path(self.cache) if self.cache else cache_folder()
        known = self._state if self._state.get("fingerprint") not in (None, self.fingerprint) else {}  # of other files
        made_by = (self._hash_of_files(), self.how_standardized, self.declared[2], known.get("conditions"))
        packed = cache / f"chunks-{hashlib.sha256(repr(made_by).encode()).hexdigest()[:16]}"

        def pack() -> None:
            splits = Arrays.load(self)
            pack_arrays(splits, {"held_out": len(splits.held_out.x), "state": self.state_dict()}, packed)

        pack_once(packed, pack)
        if not self._state:
            self.load_state_dict(ArrayItems(str(packed)).description["state"])  # type: ignore[index]
        return str(packed)

    def _rows(self, first: int = 0, last: int | None = None) -> Any:
        """A StreamingDataset of this process, of the examples from `first` to `last`."""
        from lightning_score.data.chunks import ArrayItems

        whole = ArrayItems(self.path if self._is_chunks else self.chunks, self.__dict__.get("shape"), self.fill)
        return whole.subset(slice(first, last)) if (first, last) != (0, None) else whole

    @cached_property
    def _held_out(self) -> int:
        """The number of examples held out, the first ones."""
        chunks = self._rows()
        if chunks.description is not None:
            require(
                chunks.description["state"]["conditions"] == self._state["conditions"],
                f"{self.path}: its conditions have other constants than those of the checkpoint; give the files",
            )
            return int(chunks.description["held_out"])
        require(not isinstance(self.held_out, str), f"held_out={self.held_out}: must be a fraction for these chunks")
        n = len(chunks)
        return min(max(1, round(float(self.held_out) * n)), n - 1)

    def load(self) -> Splits:
        """The held-out examples, and a part of the others, in memory."""
        held_out = self._held_out
        train, held = self._rows(held_out, held_out + self.kept), self._rows(0, held_out)
        n = len(train) + len(held)
        require_room(4 * n * prod(self.shape), f"{n} examples of shape {list(self.shape)}", "use a smaller kept or held_out")
        splits = Splits(in_memory(train), in_memory(held))
        self._fit(splits.train.x)
        return splits

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
