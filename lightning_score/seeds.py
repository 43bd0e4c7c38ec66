"""Seeds derived from numbers, and the state of torch's generators."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from lightning_score.tensors import CPU


def derive_seed(*parts: int) -> int:
    """A seed for non-negative numbers, and for the seed of the run (`seed_everything`)."""
    run = int(os.environ.get("PL_GLOBAL_SEED", 0))
    return int(np.random.SeedSequence([run, *parts]).generate_state(1, np.uint64)[0])


def counted_seed(*numbers: int) -> int:
    """A seed for numbers such as a run, an epoch and a batch: 63 bits of their hash."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Within it, torch's generators on the CPU and a GPU start from a seed; after it they continue as before."""
    before = random_state(device)
    torch.default_generator.manual_seed(seed)  # a hundred times as fast as torch.manual_seed
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        restore_random_state(before, device)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators on the CPU and, for a GPU, on that device."""
    on_gpu = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **on_gpu}


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restores what `random_state` returned, as far as it holds a state for this device."""
    if "cpu" in state:
        torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
