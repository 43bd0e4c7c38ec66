"""Batches from memory beside a loader that makes them image by image: `python tests/benchmarks/loader.py`.

Prints the seconds of an epoch of 2000 images of 28x28 on either way, the best of interleaved runs, and their ratio.
"""

import lightning_score.torchvision_guard  # noqa: F401

import time

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lightning_score import ImageData
from lightning_score.data import Examples, Splits


class Noise(ImageData):
    """2500 images of noise, 2000 to train on."""

    shape = (1, 28, 28)

    def load(self):
        images, labels = torch.randint(256, (2500, 1, 28, 28), dtype=torch.uint8), torch.zeros(2500, dtype=torch.long)
        return Splits(Examples(images[:2000], labels[:2000]), Examples(images[2000:], labels[2000:]))


class OneByOne(Dataset):
    """The same images, each transformed by itself, as torchvision's data sets are."""

    transform = transforms.Compose(
        [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
    )

    def __init__(self, images):
        self.images = images.squeeze(1).numpy()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), 0


def seconds(loader):
    """Of one epoch."""
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


if __name__ == "__main__":
    data = Noise(batch_size=100, flip=True, data_range=(-1, 1))
    loaders = {
        "image by image": DataLoader(OneByOne(data.splits.train.x), batch_size=100, shuffle=True),
        "whole batches": data.train_dataloader(),
    }
    best = dict.fromkeys(loaders, float("inf"))
    for _ in range(5):
        for name, loader in loaders.items():
            best[name] = min(best[name], seconds(loader))
    for name, value in best.items():
        print(f"{name:<15} {1000 * value:8.1f} ms")
    print(f"{'ratio':<15} {best['image by image'] / best['whole batches']:8.1f}")
