"""Chunks of images for Lightning's LitData: packs them, reads their items, and makes batches."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_score.data.batches import Finish, Transform
from lightning_score.data.files import UNREADABLE, as_bytes
from lightning_score.data.gray import GrayScale, as_levels, is_deep
from lightning_score.data.sixteen_bits import fit, planes_of, values_of
from lightning_score.data.stored import Stored
from lightning_score.errors import InputError, require
from lightning_score.seeds import derive_seed, seeded

try:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.serializers import Serializer
except ImportError as error:
    raise InputError("ImageStream needs litdata: pip install 'lightning_score[stream]'") from error

LABELS = ("y", "label", "class", "target")
"""Usual names of labels."""


class Refusing(Serializer):  # type: ignore[misc]  # litdata has no types
    """Replaces litdata's reader of pickles, which may run any code, by an error."""

    def serialize(self, data: Any) -> tuple[bytes, str | None]:
        raise NotImplementedError

    def deserialize(self, data: bytes) -> Any:
        raise InputError("these chunks contain pickles, which may run any code; write only images, arrays and numbers")

    def can_serialize(self, data: Any) -> bool:
        return False


class Items(StreamingDataset):  # type: ignore[misc]
    """The items of chunks, without any that could run code.

    Args:
        chunks: their folder.
    """

    def __init__(self, chunks: str) -> None:
        super().__init__(
            chunks,
            shuffle=False,
            drop_last=False,
            seed=derive_seed() % 2**31,
            item_shuffle_window="full",
            serializers={"pickle": Refusing(), "graph": Refusing()},
        )


class ArrayItems(Items):
    """Items of chunks as arrays of one shape with conditions, or zeros.

    Args:
        chunks: their folder.
        shape: the shape of an array; None for any.
        missing: the value that becomes NaN.

    Attributes:
        description: what `pack_arrays` kept with the chunks; None for chunks that were written otherwise.
    """

    def __init__(self, chunks: str, shape: Sequence[int] | None = None, missing: float | None = None) -> None:
        super().__init__(chunks)
        self.shape, self.missing = None if shape is None else tuple(shape), missing
        content = json.loads(Path(self.input_dir.path, "index.json").read_text())
        self.description: dict[str, Any] | None = content["config"].get("arrays")

    def __getitem__(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        if self.description is not None:
            item = super().__getitem__(index)
            x, y = np.asarray(item["x"]), np.asarray(item["y"])
            return x, y[0] if self.description["scalar"] else y
        x = self.array(index)
        fits = self.shape is None or x.shape == self.shape
        place = self.input_dir.url or self.input_dir.path
        require(fits, f"{place}: holds arrays of shape {list(x.shape)}, the first is of {list(self.shape or ())}")
        return Stored([x[None]], missing=self.missing)[0].numpy(), np.zeros((), np.int64)

    def array(self, index: Any) -> np.ndarray:
        """The first array of numbers of an item that was written otherwise."""
        item = super().__getitem__(index)
        parts = list(item.values() if isinstance(item, Mapping) else item if isinstance(item, (tuple, list)) else [item])
        arrays = [np.asarray(part) for part in parts if getattr(part, "ndim", 0) > 0]
        place = self.input_dir.url or self.input_dir.path
        require(bool(arrays) and arrays[0].dtype.kind in "biuf", f"{place}: an item of the chunks holds no array of numbers")
        return arrays[0]


class Images(Items):
    """Items of chunks as images of one shape with labels.

    Warns of an unreadable item and returns the previous one instead, so that no process stops.

    Args:
        chunks: their folder.
        shape: the shape of an image.
        num_classes: number of classes, or 0.
        scale: black and white of gray images of more than 8 bits.
        dtype: of the images, uint8 or uint16.
    """

    def __init__(
        self, chunks: str, shape: tuple[int, ...], num_classes: int, scale: GrayScale | None = None, dtype: Any = np.uint8
    ) -> None:
        super().__init__(chunks)
        self.image_shape, self.num_classes, self.scale, self.dtype = shape, num_classes, scale, dtype
        self._before: tuple[np.ndarray, int] | None = None

    def __getitem__(self, index: Any) -> tuple[np.ndarray, int]:
        try:
            item = super().__getitem__(index)
            self._before = as_example(item, self.image_shape, self.num_classes, self.scale, self.dtype)
        except (*UNREADABLE, RuntimeError) as error:
            if isinstance(error, InputError) or self._before is None:
                raise
            warnings.warn(f"{self.input_dir.url or self.input_dir.path}: an image cannot be read: {error}", stacklevel=2)
        return self._before


def as_example(
    item: Any, shape: Sequence[int], num_classes: int = 0, scale: GrayScale | None = None, dtype: Any = np.uint8
) -> tuple[np.ndarray, int]:
    """An item of any chunks as an image, uint8 or uint16 of `shape`, and its label, 0 without classes.

    Raises:
        InputError: it has no image, or no label of a class, or more than 8 bits without a scale.
    """
    named = item if isinstance(item, Mapping) else dict(enumerate(item if isinstance(item, (tuple, list)) else [item]))
    image = next(
        (value for value in named.values() if isinstance(value, Image.Image) or getattr(value, "ndim", 0) > 1), None
    )
    if image is None:
        raise InputError(f"no image in an item of the chunks, which has {', '.join(map(str, named)) or 'nothing'}")
    if not isinstance(image, Image.Image):
        image = np.asarray(image)
    if not (isinstance(image, np.ndarray) and image.shape == tuple(shape) and image.dtype == dtype):
        deep = image.dtype != np.uint8 if isinstance(image, np.ndarray) else is_deep(image)
        require(
            scale is not None or not deep,
            "the chunks contain images of more than 8 bits, which cannot all be read for a common scale; give "
            "--data.gray_range, the values of black and white, as in [0, 65535]",
        )
        levels = 256 ** np.dtype(dtype).itemsize
        if isinstance(image, np.ndarray):
            image = _channels_last(as_levels(image, scale, levels) if deep else image)
        if levels == 256:
            image = fit([as_bytes(_picture(image) if isinstance(image, np.ndarray) else image, shape[0], scale)], shape)
        else:
            image = fit(planes_of(_values(image, scale), shape[0]), shape)
    if not num_classes:
        return image, 0
    label = next((named[name] for name in (*LABELS, 1) if name in named), None)
    number = np.asarray(label)
    require(
        number.size == 1 and number.dtype.kind in "iub" and 0 <= int(number.item()) < num_classes,
        f"num_classes={num_classes}: an item of the chunks has the label {label!r}; labels must be integers, 0 to "
        f"{num_classes - 1}, named {', '.join(LABELS)}, or second in a tuple",
    )
    return image, int(number.item())


def _channels_last(image: np.ndarray) -> np.ndarray:
    """An array (H, W), (H, W, C) or (C, H, W) with channels last, if it has any."""
    first = image.ndim == 3 and image.shape[0] in (1, 3, 4) and image.shape[2] not in (1, 3, 4)
    return image.transpose(1, 2, 0) if first else image


def _values(image: Image.Image | np.ndarray, scale: GrayScale | None) -> np.ndarray:
    """Values (H, W, C) in 0..65535 of an image."""
    if isinstance(image, Image.Image):
        return values_of(image, scale)
    if image.dtype == np.uint16 and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))):
        return image.reshape(*image.shape[:2], -1).astype(float)
    return values_of(_picture(image))


def _picture(image: np.ndarray) -> Image.Image:
    """An array (H, W) or (H, W, C) as a PIL image."""
    shape, of = image.shape, image.dtype
    try:
        return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    except TypeError as error:
        raise InputError(f"an item of the chunks is an array {shape} of {of}, which is not a gray or color image") from error


class ChunkLoader(StreamingDataLoader):  # type: ignore[misc]
    """litdata's loader, which Lightning can resume in the middle of an epoch by `state_dict`, as `Loader`."""

    restore: bool
    given = 0
    """Number of batches of this epoch that have been returned."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.restore:
            self.given = 0
        whole = len(self)
        for batch in super().__iter__():
            self.given += 1
            if self.given == whole:  # litdata does this when it is asked for one more, which Lightning does not do
                self.restore = False
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The number of batches of this epoch that have been returned, and litdata's state."""
        return {"batches": self.given, "stream": super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes at the next `iter`; after all batches of an epoch, with the next epoch."""
        stream, self.given = state["stream"], state["batches"] % len(self)
        if not self.given:  # between two epochs, before or after the first batch of one
            self.current_epoch = max(stream["current_epoch"] - (state["batches"] == 0), 0)
            return
        dataset, yielded = stream["dataset"], self.given * self.batch_size
        left = dataset["num_samples_yielded"] - yielded  # of this process
        in_epoch = dataset["sample_in_epoch"] - left * dataset["world_size"]
        worker = (self.given - 1) % (self.num_workers or 1)
        dataset = {**dataset, "num_samples_yielded": yielded, "sample_in_epoch": in_epoch}
        super().load_state_dict({**stream, "num_samples_yielded": yielded, "latest_worker_idx": worker, "dataset": dataset})


@dataclass(frozen=True)
class Batched:
    """Makes a batch for the model; its random numbers depend only on the images."""

    transform: Transform
    finish: Finish

    def __call__(self, items: Sequence[tuple[np.ndarray, Any]]) -> tuple[Tensor, Tensor]:
        images = np.stack([image for image, _ in items])
        labels = torch.from_numpy(np.stack([label for _, label in items]))
        with seeded(derive_seed(crc32(images.tobytes()))):  # the same batch in a resumed run
            return self.finish(self.transform(torch.from_numpy(images)), labels)
