"""Notices samples that explode, and says where."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_score.errors import Unmeasurable
from lightning_score.sampling.sampler import Move, Observer
from lightning_score.score.function import ScoreField

BOUND = 1e6
"""How many times larger than the data and the noise samples may become."""


class Diverged(Unmeasurable):
    """Samples have become too large, or are no numbers.

    Attributes:
        indices: their numbers.
        x: all samples of the batch after that move, (B, ...).
        level: the noise level sigma/alpha of that move.
    """

    def __init__(self, indices: Sequence[int], x: Tensor, level: float, move: int, peak: float) -> None:
        self.indices, self.x, self.level = list(indices), x, level
        named = ", ".join(map(str, self.indices[:5])) + (", ..." if len(self.indices) > 5 else "")
        super().__init__(
            f"{len(self.indices)} of {len(x)} samples diverged (number {named}): |x| is {peak:.3g} after move {move}, at "
            f"the noise level sigma/alpha {level:.3g}; take a smaller step size, more steps, or train with a smaller "
            "learning rate"
        )


class DivergenceMonitor:
    """Told every move of a sampler, it looks at the largest |x|: at once on a CPU; on a GPU, which is not to wait, in
    `check`.

    Args:
        indices: the numbers of the samples.
        also: another observer.
    """

    def __init__(self, indices: Sequence[int], also: Observer | None = None) -> None:
        self._indices, self._also = indices, also
        self._peaks: list[Tensor] = []
        self._stages: list[Move] = []
        self._bound = 0.0
        self._score: ScoreField | None = None

    def __call__(self, score: ScoreField, stage: Move, before: Tensor, after: Tensor, state: Any) -> None:
        if self._score is None:
            self._score, self._bound = score, BOUND * (1 + float(score.process.sigma(stage.t)))
        self._stages.append(stage)
        self._peaks.append(torch.linalg.vector_norm(after, float("inf")))
        if after.device.type == "cpu":
            self._look(len(self._peaks) - 1, float(self._peaks[-1]), after)
        if self._also is not None:
            self._also(score, stage, before, after, state)

    def check(self, x: Tensor) -> None:
        """Looks at all moves.

        Args:
            x: the samples in the end, (B, ...).

        Raises:
            Diverged: at the first move after which a sample was too large.
        """
        if x.device.type != "cpu" and self._peaks:
            for move, peak in enumerate(torch.stack(self._peaks).tolist()):
                self._look(move, peak, x)

    def _look(self, move: int, peak: float, x: Tensor) -> None:
        if peak <= self._bound:  # false for NaN
            return
        rows = ~(x.flatten(1).abs().amax(1) <= self._bound)
        bad = [index for index, row in zip(self._indices, rows.tolist(), strict=True) if row]
        level = float((-self._score.process.log_snr(self._stages[move].t) / 2).exp())
        raise Diverged(bad or self._indices, x, level, move + 1, peak)
