"""Packs images and arrays into chunks for Lightning's LitData."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from errno import ENOSPC
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from litdata import optimize
from tqdm import tqdm

from lightning_score.data.batches import Splits
from lightning_score.data.files import ImageFiles
from lightning_score.errors import InputError, require
from lightning_score.files import made_once, replace_text, replacing

CHUNK = 64 << 20
"""Maximal size of a chunk in bytes; a chunk is read as a whole."""


def pack_once(packed: Path, pack: Callable[[], None]) -> None:
    """Packs chunks into a folder of the cache unless they are there; one of several processes does it.

    Raises:
        InputError: there is no space, or no permission.
    """
    try:
        with made_once(packed):
            if not packed.exists():
                pack()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"--data.cache {packed.parent}: the chunks cannot be written there ({reason}); give another folder"
        ) from error


def pack(data: ImageFiles, labels: Sequence[int], out: Path) -> None:
    """Packs image files into chunks for `ImageStream`, and lists the unreadable ones in `left_out.json`.

    Args:
        data: the image files.
        labels: their labels.
        out: folder of the chunks, created at the end.

    Raises:
        InputError: no image can be read.
        OSError: there is no space for the chunks.
    """
    data.require_space(out.parent)
    n, label = len(data.files), dict(zip(data.files, labels, strict=True))

    def items(left_out: str) -> Iterator[dict[str, Any]]:
        skipped: dict[str, str] = {}
        with suppress(InputError):  # none is readable
            for file, image in data.decoded(skipped):
                yield {"x": image, "y": label[file]}
        replace_text(Path(left_out), json.dumps(skipped, indent=1))

    with replacing(out) as chunks:
        left_out = chunks / "left_out.json"
        _write(items, str(left_out), chunks, n, data.item_bytes)
        skipped = json.loads(left_out.read_text())
        require(len(skipped) < n, data.summary(skipped) if skipped else "")


def _write(items: Callable[[str], Iterator[dict[str, Any]]], argument: str, out: Path, n: int, item_bytes: int) -> None:
    """Writes the items that a function makes, about n, into chunks."""
    with isolate_rng():  # litdata sets all global seeds
        optimize(
            items,
            [argument],  # one process, which reads in threads
            output_dir=str(out),
            chunk_size=max(1, min(CHUNK // item_bytes, max(n // 256, 64))),
            num_workers=1,
            start_method="fork",
            verbose=False,
        )


def pack_arrays(splits: Splits, description: Mapping[str, Any], out: Path) -> None:
    """Packs held-out examples, and training ones in random order, into chunks for `ArrayStream`.

    Args:
        splits: the examples, with conditions as the model takes them.
        description: plain values that are kept with the chunks.
        out: folder of the chunks, created at the end.

    Raises:
        OSError: there is no space for the chunks.
    """
    n, item_bytes = sum(len(part.x) for part in splits), splits.train.x[:1].nbytes + splits.train.y[:1].nbytes
    if shutil.disk_usage(out.parent).free < n * item_bytes:
        raise OSError(ENOSPC, f"{n * item_bytes / 1e9:.3g} GB are needed, more than is free")
    train = torch.randperm(len(splits.train.x), generator=torch.Generator().manual_seed(0))

    def items(_: str) -> Iterator[dict[str, Any]]:
        for part, order in ((splits.held_out, torch.arange(len(splits.held_out.x))), (splits.train, train)):
            with tqdm(total=len(order), desc="packing", unit="example", disable=None) as bar:
                for rows in order.split(256):
                    for x, y in zip(part.x[rows].numpy(), part.y[rows].numpy(), strict=True):
                        yield {"x": x, "y": np.atleast_1d(y)}
                    bar.update(len(rows))

    with replacing(out) as chunks:
        _write(items, "", chunks, n, item_bytes)
        index = chunks / "index.json"
        content = json.loads(index.read_text())
        content["config"]["arrays"] = {**description, "scalar": splits.train.y.ndim == 1}
        index.write_text(json.dumps(content))
