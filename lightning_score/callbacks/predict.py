"""Writes what `predict` draws."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_score.callbacks.pictures import sample_picture
from lightning_score.data import ScoreData
from lightning_score.model import ScoreModel
from lightning_score.sampling.sampler import Samples

IN_PICTURE = 400


class SampleWriter(Callback):
    """Collects the samples of `predict` and writes `samples.npz` and `samples.png` into the run folder.

    The NPZ holds `x`, float32 (n, *shape) in the range of the data, `images`, uint8 (n, H, W, C) if they are images, `seed`
    and `nfe`, network evaluations per sample; and `raw`, like `x`, the samples before the final denoise where they differ
    (the denoise Tweedie; LastMean has no other samples). The picture shows the first 400.

    Args:
        data: the data module, which knows the form of the data.
    """

    def __init__(self, data: ScoreData):
        self._data = data
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._nfe, self._seed = 0.0, 0

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: ScoreModel,
        outputs: Samples,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the samples with their numbers, in main memory."""
        x = outputs.x.float().cpu()
        raw = x if outputs.raw is outputs.x else outputs.raw.float().cpu()
        self._parts.append((batch[0].cpu(), x, raw))
        self._nfe, self._seed = outputs.nfe, int(batch[1][0])

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Gathers the samples of all processes in their order; the first process writes."""
        parts = [self._parts]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            dist.all_gather_object(parts, self._parts)
        if not trainer.is_global_zero:
            return
        indices, x, raw = (torch.cat(tensors) for tensors in zip(*chain.from_iterable(parts), strict=True))
        order = indices.argsort()
        x, raw = x[order], raw[order]
        images = self._data.to_reference(x)
        folder = Path(trainer.default_root_dir)
        arrays = {"images": images.permute(0, 2, 3, 1).numpy()} if images.ndim == 4 else {}
        arrays |= {} if torch.equal(raw, x) else {"raw": raw.numpy()}
        np.savez_compressed(folder / "samples.npz", x=x.numpy(), seed=self._seed, nfe=self._nfe, **arrays)
        sample_picture(images[:IN_PICTURE]).save(folder / "samples.png")
