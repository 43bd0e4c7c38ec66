"""Images that are streamed from chunks, on a disk or in a bucket: data sets of millions, larger than memory."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader
from tqdm import tqdm

from lightning_score.data.base import ScoreData
from lightning_score.data.batches import Examples, Splits
from lightning_score.data.check import check_examples
from lightning_score.data.files import ImageFiles
from lightning_score.errors import require
from lightning_score.files import LocalPath
from lightning_score.memory import require_room
from lightning_score.seeds import derive_seed


class ImageStream(ImageFiles):
    """Images that Lightning's LitData streams from chunks, in a new order in every epoch; further arguments as in
    `ImageFiles`.

    Every process and worker reads its own chunks in random order, and the images of each chunk in random order. An
    interrupted run resumes with the next image.

    A folder of images is packed into chunks once, in random order and in the model's size; unreadable images are left out
    and counted. Chunks written by `litdata.optimize` are used unchanged: each item must be a mapping or a tuple with an
    image, as bytes (C, H, W) or (H, W, C) or as a PIL image, and may have an integer label.

    The first images are held out and kept in memory for validation and test. A part of the others is kept in memory, too,
    for comparison with samples.

    Args:
        path: a folder of images; or chunks, in a folder or a bucket (s3://, gs://), with labels below `num_classes`.
        held_out: number of images held out, at most a tenth of all.
        in_memory: number of training images kept in memory for references of metrics, `auto`, and nearest neighbors.
        num_workers: number of loader processes.

    Raises:
        InputError: an argument is out of range, or litdata is not installed; when the images are first needed: there are
            none, or they differ from the arguments.
    """

    reference_split = "a part of train, and held out"

    def __init__(
        self,
        path: LocalPath,
        shape: Sequence[int] = (3, 32, 32),
        held_out: int = 5000,
        in_memory: int = 50_000,
        num_workers: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(path, shape, num_workers=num_workers, **options)
        from lightning_score.data import chunks  # noqa: F401  # needs litdata, which is optional and slow to import

        require(held_out > 0, f"held_out={held_out}: must be a number of images above 0, as in 5000")
        require(in_memory > 0, f"in_memory={in_memory}: must be a number of images above 0, as in 50000")
        self.held_out, self.in_memory = held_out, in_memory

    @cached_property
    def chunks(self) -> str:
        """The folder of the chunks; packs them if necessary."""
        if "://" in self.path or (self.folder / "index.json").exists():
            return self.path
        self._share_held_out(len(self.files))
        from lightning_score.data.packing import pack, pack_once

        labels = self.labels()
        packed = self.in_cache(self.hashed(self.shape, self.crop, self.num_classes))
        pack_once(packed, lambda: pack(self, labels, packed))
        left_out = json.loads((packed / "left_out.json").read_text())
        if left_out:
            rank_zero_warn(f"{self.summary(left_out)}; all are listed in {packed / 'left_out.json'}")
        return str(packed)

    def _rows(self, first: int = 0, last: int | None = None) -> Any:
        """A StreamingDataset of this process, of the images from `first` to `last`."""
        from lightning_score.data.chunks import Images

        scale = None if self.gray_range is None else {"any": self.gray_range}
        return Images(self.chunks, self.shape, self.num_classes, scale, self.pixel).subset(slice(first, last))

    @cached_property
    def _held_out(self) -> int:
        """The number of images held out."""
        return self._share_held_out(len(self._rows()))

    def _share_held_out(self, n: int) -> int:
        held_out = min(self.held_out, n // 10)
        require(held_out > 0, f"{self.path}: only {n} images, of which at most a tenth is held out; give more")
        return held_out

    def load(self) -> Splits:
        """The images in memory."""
        held_out, end = self._held_out, self._held_out + self.in_memory
        train, held = self._rows(held_out, end), self._rows(0, held_out)
        require_room(
            (len(train) + len(held)) * self.item_bytes,
            f"{len(train) + len(held)} images of shape {list(self.shape)}",
            "use a smaller in_memory or held_out",
        )
        return Splits(in_memory(train), in_memory(held))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the arguments that select images, and of the first held-out images."""
        depth = () if self.levels == 256 else (self.levels,)
        chosen = repr((self._held_out, self.in_memory, self.shape, self.num_classes, *depth))
        first = self.splits.held_out.x[:256].numpy().tobytes()
        return hashlib.sha256(chosen.encode() + first).hexdigest()[:16]

    def train_dataloader(self) -> DataLoader[Any]:
        """All images that are not held out, shuffled, augmented, and without incomplete batches.

        Raises:
            InputError: the training images of one process and worker do not fill a batch.
        """
        check_examples(self, "train", *in_memory(self._rows(self._held_out, self._held_out + 8)))
        return chunk_loader(self, self._rows(self._held_out))


def chunk_loader(data: ScoreData, stream: Any) -> DataLoader[Any]:
    """Batches of a stream, shuffled, augmented, and without incomplete ones.

    Raises:
        InputError: the examples of one process and worker do not fill a batch.
    """
    from lightning_score.data.chunks import Batched, ChunkLoader

    data.require_batch(len(stream), max(data.num_workers, 1))
    return ChunkLoader(
        stream,
        batch_size=data.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=Batched(data.inputs(train=True), data.finish(train=True)),
        generator=torch.Generator().manual_seed(derive_seed()),  # only for seeds that are not used
        num_workers=data.num_workers,
        pin_memory=torch.cuda.is_available(),
    )


def in_memory(stream: Any) -> Examples:
    """All items of a stream, with a progress bar."""
    found: list[Any] = []
    for row in tqdm(range(len(stream)), "reading", unit="example", disable=None, leave=False):
        example = [np.asarray(part) for part in stream[row]]
        if not found:
            found = [np.empty((len(stream), *part.shape), part.dtype) for part in example]
        for rows, part in zip(found, example, strict=True):
            rows[row] = part  # litdata's memory is read-only
    return Examples(*map(torch.from_numpy, found))
