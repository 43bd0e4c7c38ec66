"""Detects samples that diverge."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_score.errors import Unmeasurable
from lightning_score.process import NoiseProcess
from lightning_score.sampling.sampler import Observer
from lightning_score.sampling.step import Move
from lightning_score.score.function import ScoreField

BOUND = 1e6
"""The largest |x| allowed, in units of 1 + sigma of the first move."""


class Diverged(Unmeasurable):
    """Samples have become too large, or are NaN.

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
    """Checks the largest |x| after every move of a sampler: at once on a CPU; on a GPU in `check`, so that it need not wait.

    Args:
        indices: the numbers of the samples.
        also: another observer to call.
    """

    def __init__(self, indices: Sequence[int], also: Observer | None = None) -> None:
        self._indices, self._also = indices, also
        self._count, self._bound = 0, 0.0
        self._peaks: list[tuple[Move, Tensor]] = []  # on a GPU
        self._process: NoiseProcess

    def __call__(self, score: ScoreField, move: Move, before: Tensor, after: Tensor, state: Any) -> None:
        if not self._count:
            self._process, self._bound = score.process, BOUND * (1 + float(score.process.sigma(move.t)))
        self._count += 1
        peak = torch.linalg.vector_norm(after, float("inf"))
        if after.device.type == "cpu":
            self._check_move(self._count, move, float(peak), after)
        else:
            self._peaks.append((move, peak))
        if self._also is not None:
            self._also(score, move, before, after, state)

    def check(self, x: Tensor) -> None:
        """Checks all moves on a GPU.

        Args:
            x: the final samples, (B, ...).

        Raises:
            Diverged: at the first move after which a sample was too large.
        """
        if self._peaks:
            moves, peaks = zip(*self._peaks, strict=True)
            for number, (move, peak) in enumerate(zip(moves, torch.stack(peaks).tolist(), strict=True), start=1):
                self._check_move(number, move, peak, x)

    def _check_move(self, number: int, move: Move, peak: float, x: Tensor) -> None:
        if peak <= self._bound:  # false for NaN
            return
        rows = ~(x.flatten(1).abs().amax(1) <= self._bound)
        bad = [index for index, row in zip(self._indices, rows.tolist(), strict=True) if row]
        raise Diverged(bad or self._indices, x, float(self._process.noise_level(move.t)), number, peak)
