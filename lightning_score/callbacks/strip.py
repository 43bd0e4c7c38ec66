"""Progressive sampling: the same samples at several times, from noise to image."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lightning_score.callbacks.pictures import drawable, strip_picture
from lightning_score.data import ScoreData
from lightning_score.sampling import Samples
from lightning_score.sampling.sampler import Move
from lightning_score.score.function import ScoreField
from lightning_score.training.model import ScoreModel

MOMENTS = 9
"""Columns of the picture: the start, the samples after equal numbers of moves, and the result."""


class Strip:
    """Observes a sampler and keeps the first samples at a few moves; its picture has a row for each sample.

    Args:
        model: the model that draws with its own sampler.
        data: its data, which are images.
        rows: number of samples.
    """

    def __init__(self, model: ScoreModel, data: ScoreData, rows: int = 8):
        self._process, self._data, self._rows = model.score_function.process, data, rows
        moves = len(model.sampler.plan(self._process, model.sampler.grid(self._process)))
        self._kept = set(torch.linspace(0, moves, MOMENTS).round().long().tolist()[1:-1]) - {0, moves}
        self._move, self._moves = 0, moves
        self._columns: list[Tensor] = []

    def __call__(self, score: ScoreField, move: Move, before: Tensor, after: Tensor, state: Any) -> None:
        if self._move == 0:
            self._keep(before, move.t)
        self._move += 1
        if self._move in self._kept:
            self._keep(after, move.end)

    def _keep(self, x: Tensor, t: Tensor) -> None:
        """x/alpha, its contrast reduced where the noise would leave the range of the data."""
        low, high = self._data.data_range
        middle, sigma = (low + high) / 2, float(self._process.noise_level(t))
        contrast = min(1.0, (high - low) / (4 * sigma)) if sigma > 0 else 1.0
        shown = (x[: self._rows] / float(self._process.alpha(t)) - middle) * contrast + middle
        self._columns.append(drawable(self._data, self._data.to_reference(shown.float())))

    def picture(self, samples: Samples) -> Image.Image:
        """The picture, with the result as its last column."""
        return strip_picture([*self._columns, drawable(self._data, self._data.to_reference(samples.x[: self._rows]))])
