"""Samples that another program drew, as the source of an evaluation."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor, nn

from lightning_score.callbacks.pictures import sample_picture
from lightning_score.callbacks.sampling_pass import Source
from lightning_score.data import ScoreData
from lightning_score.sampling.sampler import Samples


class GivenSamples(Source):
    """Samples 0 to N - 1, of any seed.

    Args:
        samples: in the form of the data's `reference()`, (N, *shape).
        data: the data.
        origin: where they are from.
        device: where they are measured.
    """

    weights = "given"
    evaluations = 0

    def __init__(self, samples: Tensor, data: ScoreData, origin: str, device: torch.device | str = "cpu") -> None:
        self.samples, self.data, self.origin, self.device = samples, data, origin, device

    def draw(self, numbers: Sequence[int], seed: int) -> Samples:
        found = self.samples[torch.as_tensor(numbers)].to(self.device)
        return Samples(found, found, 0.0, None)

    def to_reference(self, x: Tensor) -> Tensor:
        return x

    @property
    def settings(self) -> dict[str, Any]:
        return {"class": type(self).__name__, "file": self.origin, "hash": self.digest(len(self.samples))[:16]}

    def digest(self, n: int) -> str:
        return hashlib.sha256(self.samples[:n].contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()

    def picture(self, samples: Tensor) -> Image.Image:
        return sample_picture(self.data, samples)


class NoModel(LightningModule):
    """Takes the place of a model in a test that measures given samples alone."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))

    def test_step(self, *batch: Any) -> None:
        """Does nothing."""
