"""The random numbers of a sampling run: one stream per sample."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

THREADS = min(8, os.cpu_count() or 1)


class NoiseSource(ABC):
    """The random numbers of a batch of B samples, as steps draw them."""

    indices: Sequence[int]
    """The number k of each sample, (B,)."""

    std: float = 1.0
    """Standard deviation of the normal draws; 0 where the noise is left out."""

    @abstractmethod
    def normal(self) -> Tensor:
        """Standard normal draws (B, *shape)."""

    @abstractmethod
    def uniform(self) -> Tensor:
        """Draws uniform in [0, 1), (B, *shape)."""

    @abstractmethod
    def acceptance(self) -> Tensor:
        """One draw per sample, uniform in [0, 1), (B,): a proposal is accepted with probability p if the draw is below p."""

    def drawn_and_added(self) -> tuple[Tensor, Tensor]:
        """Normal draws whose norm sets the size of a step, and the noise that the step adds: the same draws."""
        draws = self.normal()
        return draws, draws


class NoiseStream(NoiseSource):
    """Independent random streams, one per sample, so that sample k is the same in any batch and on any process.

    Stream k is the counter-based generator Philox keyed by (seed, k) (Salmon et al. 2011), run on the CPU in single
    precision: the numbers are the same on every device and in every precision. Normal and uniform draws come from two halves
    of its counter. For a GPU the next normal draws are made and copied while it computes.

    Args:
        seed: seed of the run, 0 or more.
        indices: the number k of each sample in the batch, (B,).
        shape: shape of one sample.
        device: of the draws.
        dtype: of the draws.
    """

    def __init__(
        self,
        seed: int,
        indices: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.shape, self.device, self.dtype = (len(indices), *shape), torch.device(device), dtype
        self.indices = indices
        self._keys = [[seed, int(k)] for k in indices]
        self._normals = _generators(self._keys, half=0)
        self._uniforms: list[np.random.Generator] = []
        self._prefetches = self.device.type == "cuda"
        self._numel = math.prod(shape)
        self._draws = 1  # of the next block; doubled for each block, because small draws are mostly overhead
        self._ready = list[Tensor]()  # of a block, the next one last
        self._spare, self._ahead = torch.empty(len(indices), 0), 1  # uniform draws made together, for the same reason
        self._coming: tuple[Tensor, Iterator[None]] | None = None

    def normal(self) -> Tensor:
        if not self._ready:
            block, parts = self._coming or self._begin_block()
            for _ in parts:  # draws them, or waits for the threads
                pass
            drawn = block.to(self.device, non_blocking=True).transpose(0, 1).contiguous().to(self.dtype)
            self._ready = [*drawn.view(-1, *self.shape)][::-1]
            self._coming = self._begin_block() if self._prefetches else None
        return self._ready.pop()

    def uniform(self) -> Tensor:
        return self._uniform(self._numel).reshape(self.shape)

    def acceptance(self) -> Tensor:
        return self._uniform(1).reshape(-1)

    def _uniform(self, numel: int) -> Tensor:
        self._uniforms = self._uniforms or _generators(self._keys, half=1)
        missing = numel - self._spare.shape[1]
        if missing > 0:
            draws = self._empty(max(missing, self._ahead))
            self._ahead = min(2 * self._ahead, 256)
            for generator, row in zip(self._uniforms, draws.numpy(), strict=True):
                generator.random(out=row, dtype=np.float32)
            self._spare = torch.cat([self._spare, draws], 1)
        drawn, self._spare = self._spare[:, :numel], self._spare[:, numel:]
        return drawn.to(self.device, self.dtype, non_blocking=True)

    def _empty(self, *shape: int) -> Tensor:
        """Memory for draws of every sample, float32."""
        pinned = self.device.type == "cuda"
        return torch.empty(len(self._keys), *shape, dtype=torch.float32, pin_memory=pinned)

    def _begin_block(self) -> tuple[Tensor, Iterator[None]]:
        """The next block of normal draws, and its parts, each of which is drawn when the iterator has passed it. For a GPU
        threads begin at once, with larger blocks, because every row of a block waits for the interpreter's lock.
        """
        block = self._empty(self._draws, self._numel)
        most = 65536 if self._prefetches else 4096
        self._draws = max(1, min(2 * self._draws, most // self._numel))
        draw_all = _threads().map if self._prefetches else map
        share = max(1, -(-len(block) // THREADS))
        parts = [slice(start, start + share) for start in range(0, len(block), share)]
        return block, draw_all(_fill, [self._normals[part] for part in parts], [block[part].numpy() for part in parts])


@cache
def _threads() -> ThreadPoolExecutor:
    """The threads that draw for a GPU: numpy releases the interpreter's lock while it draws."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="noise")


def _generators(keys: Sequence[Sequence[int]], half: int) -> list[np.random.Generator]:
    """Stream (seed, k) of each key, from the first (0) or the second (1) half of its counter of 256 bits."""
    return [np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, half << 63])) for key in keys]


def _fill(generators: Sequence[np.random.Generator], rows: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    for generator, row in zip(generators, rows, strict=True):
        generator.standard_normal(out=row, dtype=np.float32)


class NoNoise(NoiseSource):
    """Zeros in place of normal draws: a stochastic step becomes its noise-free mean."""

    std = 0.0

    def __init__(self, stream: NoiseStream):
        self._stream = stream

    def normal(self) -> Tensor:
        """Zeros (B, *shape)."""
        return torch.zeros(self._stream.shape, device=self._stream.device, dtype=self._stream.dtype)

    def uniform(self) -> Tensor:
        return self._stream.uniform()

    def acceptance(self) -> Tensor:
        """Zeros (B,): every proposal is accepted."""
        return torch.zeros(self._stream.shape[0], device=self._stream.device, dtype=self._stream.dtype)

    def drawn_and_added(self) -> tuple[Tensor, Tensor]:
        """Normal draws whose norm sets the size of a step, and zeros, the noise that the step adds."""
        return self._stream.normal(), self.normal()
