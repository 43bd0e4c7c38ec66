"""Batches of arrays in memory and mapped from a file, compared with a loader that reads the file example by example."""

import lightning_score.lean_imports  # noqa: F401

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_score.data import Arrays
from lightning_score.memory import retain_freed_memory


class OneByOne(Dataset):
    """The same array, each example read and standardized separately."""

    def __init__(self, file, mean, std):
        self.x, self.mean, self.std = np.load(file, mmap_mode="r"), mean, std

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return (torch.from_numpy(self.x[index].astype(np.float32)) - self.mean) / self.std, 0


@pytest.mark.parametrize("shape", [(30,), (1, 128), (1, 28, 28), (3, 32, 32)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_batches_of_arrays(tmp_path, compare, shape, dtype):
    retain_freed_memory()  # as a model does
    x = np.random.default_rng(0).random((4000, *shape)) * 60000
    np.save(tmp_path / "x.npy", x.astype(dtype))
    axes = "NCHW"[: 1 + len(shape)]
    whole, mapped = (Arrays(str(tmp_path / "x.npy"), axes=axes, in_memory=here, batch_size=100) for here in (True, False))
    mean, std = torch.full((shape[0], *[1] * (len(shape) - 1)), 30000.0), 17000.0
    ours, theirs = (
        whole.train_dataloader(),
        DataLoader(OneByOne(tmp_path / "x.npy", mean, std), batch_size=100, shuffle=True),
    )
    from_file = mapped.train_dataloader()
    others = {"mapped from the file": lambda: list(from_file), "Dataset + DataLoader": lambda: list(theirs)}
    compare(f"an epoch of 3600 examples {list(shape)}, {dtype}, in memory", lambda: list(ours), others)
