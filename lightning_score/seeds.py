"""Seeds that follow from numbers, and torch's random numbers within and after a seed."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from lightning_score.tensors import CPU


def seed_of(*parts: int) -> int:
    """A seed for what is told apart by some numbers, each at least 0, and by the seed of the run (`seed_everything`)."""
    run = int(os.environ.get("PL_GLOBAL_SEED", 0))
    return int(np.random.SeedSequence([run, *parts]).generate_state(1, np.uint64)[0])


def counted_seed(*numbers: int) -> int:
    """A seed for what some numbers count, such as a run, an epoch and a batch: 63 bits of a hash of them."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Within it, torch's random numbers on the CPU and on a GPU are those of a seed; after it they continue as before."""
    before = random_state(device)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a hundred times as long
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        take_up(before, device)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's random numbers on the CPU and, if that is where a model is, on a GPU."""
    on_gpu = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **on_gpu}


def take_up(state: dict[str, Tensor], device: torch.device) -> None:
    """Goes on with random numbers from a state, as far as it holds one."""
    if "cpu" in state:
        torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
