"""Batches from memory, compared with a loader that makes them image by image: an epoch of 2000 images of 28x28."""

import lightning_score.lean_imports  # noqa: F401

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lightning_score import ImageData
from lightning_score.data import Examples, Splits
from lightning_score.memory import retain_freed_memory


class Noise(ImageData):
    """2500 images of noise, 2000 to train on."""

    shape = (1, 28, 28)

    def load(self):
        images, labels = torch.randint(256, (2500, 1, 28, 28), dtype=torch.uint8), torch.zeros(2500, dtype=torch.long)
        return Splits(Examples(images[:2000], labels[:2000]), Examples(images[2000:], labels[2000:]))


class OneByOne(Dataset):
    """The same images, each transformed separately, as torchvision's data sets are."""

    transform = transforms.Compose(
        [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
    )

    def __init__(self, images):
        self.images = images.squeeze(1).numpy()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), 0


def test_batches_from_memory(compare):
    retain_freed_memory()  # as a model does
    data = Noise(batch_size=100, flip=True, data_range=(-1, 1))
    ours, theirs = data.train_dataloader(), DataLoader(OneByOne(data.splits.train.x), batch_size=100, shuffle=True)
    compare(
        "an epoch of 2000 images, 28x28", lambda: list(ours), {"Dataset + DataLoader, image by image": lambda: list(theirs)}
    )
