"""Writes the samples of `predict`."""

import math
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_score.callbacks.pictures import Strip, drawable, in_pixels, sample_picture, save_picture
from lightning_score.callbacks.posterior_pictures import Posteriors, posterior_picture
from lightning_score.data import ScoreData
from lightning_score.errors import require
from lightning_score.files import replacing
from lightning_score.guidance.observed import ObservationGuidance
from lightning_score.sampling.sampler import Samples
from lightning_score.training.conditions import in_turn
from lightning_score.training.model import ScoreModel

IN_PICTURE = 400


class SampleWriter(Callback):
    """Collects the samples of `predict` and writes `samples.npz` and `samples.png` into the run folder.

    The NPZ holds `x`, float32, or float64 in double precision, (n, *shape), in the range of the data, or in their units if
    they are stored as floats; `images`, uint8, or uint16 if the data are, (n, H, W, C) if they are images; `labels`, int64
    (n,), or `condition` (n, ...), in the units of the data, if there are any; `seed` and `nfe`, network evaluations per
    sample; and `raw`, like `x`, the samples before the final denoise where they differ (with Tweedie; LastMean has none).
    The picture shows the first 400. On request `progress.png` shows the first few, drawn again, on their way from noise to
    data.

    Args:
        data: the data module.
        progressive: number of samples in `progress.png`.
        labels: number of labels, which the samples have in turn; 0 for none or other conditions.
        given: the conditions of the samples, in turn, in the units of the data; None: those of the model are converted.
        observed: the guidance by the observations of the samples, of which `posterior.png` is drawn and the NPZ also holds
            `observation` (n,) (the number of each sample's), `y`, `mean`, `std` and `quantiles` (of 5, 50 and 95 %).
    """

    def __init__(
        self,
        data: ScoreData,
        progressive: int = 0,
        labels: int = 0,
        given: Tensor | None = None,
        observed: ObservationGuidance | None = None,
    ):
        self._data, self._progressive, self._labels, self._given, self._observed = data, progressive, labels, given, observed
        self._parts: list[tuple[Tensor, ...]] = []
        self._seed = 0

    def on_predict_start(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Refuses more samples than fit on the disk, before any is drawn.

        Raises:
            InputError: the samples, compressed to half their bytes, do not fit.
        """
        parts = getattr(trainer.predict_dataloaders, "dataset", [])
        n, folder = len(parts) * pl_module.sampler.particles, trainer.default_root_dir
        size, free = 2 * n * math.prod(pl_module.shape) / 1e9, shutil.disk_usage(folder).free / 1e9
        require(
            size <= free,
            f"--num_samples {n}: takes about {size:.3g} GB on the disk of {folder}, and {free:.3g} are free; draw fewer",
        )

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: ScoreModel, outputs: Samples, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps the samples with their numbers, in main memory."""
        x = _storable(outputs.x)
        raw = x if outputs.raw is outputs.x else _storable(outputs.raw)
        nfe = torch.full((len(x),), outputs.nfe, dtype=torch.float64)
        self._parts.append((batch[0].cpu(), x, raw, nfe, *(cond.cpu() for cond in batch[2:])))
        self._seed = int(batch[1][0])
        if self._progressive and batch_idx == 0 and trainer.is_global_zero:
            indices, cond = batch[0][: self._progressive], batch[2][: self._progressive] if len(batch) > 2 else None
            strip = Strip(pl_module, self._data, self._progressive)
            samples = pl_module.draw(indices.tolist(), self._seed, cond, observe=strip)
            caption = f"from noise to data, seed {self._seed}, NFE {samples.nfe:g}"
            save_picture(strip.picture(samples), Path(trainer.default_root_dir) / "progress.png", caption)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Gathers the samples of all processes in their order; the first process writes."""
        parts = [self._parts] * trainer.world_size
        if trainer.world_size > 1:
            dist.gather_object(self._parts, parts if trainer.is_global_zero else None)
        if not trainer.is_global_zero:
            return
        indices, *drawn = (torch.cat(tensors) for tensors in zip(*chain.from_iterable(parts), strict=True))
        x, raw, nfe, *cond = (tensor[indices.argsort()] for tensor in drawn)
        stored = self._data.to_reference(x)
        if stored.is_floating_point():
            x, raw = stored.to(x.dtype), self._data.to_reference(raw).to(x.dtype)
        folder = Path(trainer.default_root_dir)
        arrays: dict[str, Any] = {"x": x.numpy(), "seed": self._seed, "nfe": float(nfe.mean())}
        if in_pixels(self._data):
            images = stored if stored.dtype == torch.uint16 else drawable(self._data, stored)
            arrays["images"] = images.permute(0, 2, 3, 1).numpy()
        arrays |= {} if torch.equal(raw, x) else {"raw": raw.numpy()}
        labeled = pl_module.num_classes > 0
        if cond:
            units = cond[0] if labeled else self._data.from_condition(cond[0])
            asked = units if self._given is None else in_turn(self._given, indices.sort().values)  # not converted twice
            arrays["labels" if labeled else "condition"] = asked.numpy()
        if observed := self._observed:
            index, y = observed.numbers_of(indices.sort().values), observed.given()
            found = Posteriors.of(x, index, len(y))  # in the units of x
            of_observations = {"observation": index, "y": y, **found._asdict()}
            arrays |= {name: values.numpy() for name, values in of_observations.items()}
        with replacing(folder / "samples.npz") as temporary:
            np.savez_compressed(temporary, **arrays)
        how = f"seed {self._seed}, NFE {arrays['nfe']:g}"
        if observed:
            caption = f"posteriors of {len(y)} observations, {observed.samples_per_observation} samples each, {how}"
            save_picture(posterior_picture(self._data, observed, found, x, index), folder / "posterior.png", caption)
        given = cond[0][:IN_PICTURE] if cond and not labeled else None
        picture = sample_picture(self._data, stored[:IN_PICTURE], self._labels, given)
        save_picture(picture, folder / "samples.png", f"{min(len(x), IN_PICTURE)} samples, {how}")


def _storable(x: Tensor) -> Tensor:
    """A tensor in main memory, at least in single precision: NumPy has no bfloat16."""
    return x.cpu() if x.dtype == torch.float64 else x.float().cpu()
