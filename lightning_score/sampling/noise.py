"""The random numbers of a sampling run: one stream per sample."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class NoiseStream:
    """Independent random streams, one per sample, so that sample k is the same in any batch and on any process.

    Stream k is the counter-based generator Philox keyed by (seed, k) (Salmon et al. 2011), run on the CPU in single
    precision: every device and every precision sees the same numbers.

    Args:
        seed: seed of the run, 0 or more.
        indices: the number k of each sample in the batch, (B,).
        shape: shape of one sample.
        device: where the draws are wanted.
        dtype: precision in which they are wanted.
    """

    def __init__(
        self,
        seed: int,
        indices: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.shape, self.device, self.dtype = (len(indices), *shape), device, dtype
        self._generators = [np.random.Generator(np.random.Philox(key=[seed, int(k)])) for k in indices]
        numel = int(np.prod(shape))
        self._buffer = np.empty((len(indices), max(1, 4096 // numel), numel), dtype=np.float32)
        self._next = self._buffer.shape[1]

    def normal(self) -> Tensor:
        """Standard normal draws (B, *shape)."""
        if self._next == self._buffer.shape[1]:  # drawn many steps at a time: small draws are all overhead
            for generator, block in zip(self._generators, self._buffer, strict=True):
                generator.standard_normal(out=block, dtype=np.float32)
            self._next = 0
        draws = self._buffer[:, self._next].copy()
        self._next += 1
        return self._deliver(draws)

    def uniform(self) -> Tensor:
        """Draws uniform in [0, 1), (B, *shape)."""
        return self._deliver(np.stack([g.random(self._buffer.shape[2], dtype=np.float32) for g in self._generators]))

    def acceptance(self) -> Tensor:
        """One draw per sample, uniform in [0, 1), (B,): a proposal is accepted with probability p if the draw is below p."""
        draws = np.array([generator.random(dtype=np.float32) for generator in self._generators])
        return torch.from_numpy(draws).to(self.device, self.dtype)

    def sized(self) -> tuple[Tensor, Tensor]:
        """Normal draws whose norm sets the size of a step, and the noise that the step adds: the same draws."""
        draws = self.normal()
        return draws, draws

    def _deliver(self, draws: np.ndarray) -> Tensor:
        return torch.from_numpy(draws).reshape(self.shape).to(self.device, self.dtype)


class NoNoise:
    """Zeros in place of normal draws: a stochastic step becomes its noise-free mean."""

    def __init__(self, stream: NoiseStream):
        self._stream = stream

    def normal(self) -> Tensor:
        """Zeros (B, *shape)."""
        return torch.zeros(self._stream.shape, device=self._stream.device, dtype=self._stream.dtype)

    def uniform(self) -> Tensor:
        """Draws uniform in [0, 1), (B, *shape)."""
        return self._stream.uniform()

    def acceptance(self) -> Tensor:
        """Zeros (B,): every proposal is accepted."""
        return torch.zeros(self._stream.shape[0], device=self._stream.device, dtype=self._stream.dtype)

    def sized(self) -> tuple[Tensor, Tensor]:
        """Normal draws whose norm sets the size of a step, and zeros, the noise that the step adds."""
        return self._stream.normal(), self.normal()
