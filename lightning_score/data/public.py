"""Public image data sets from torchvision: CIFAR-10, MNIST and Fashion-MNIST."""

import tempfile
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_score.data.batches import Examples, Splits
from lightning_score.data.images import ImageData
from lightning_score.errors import InputError, require
from lightning_score.files import LocalPath, new_folder_if_kept
from lightning_score.memory import require_room

if TYPE_CHECKING:
    from torchvision import datasets

DATA = LocalPath("data")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""The files of Debian's package dataset-fashion-mnist."""


class PublicData(ImageData):
    """A data set of torchvision's in a folder, into which it is downloaded if it is missing; further arguments as in
    `ImageData`.

    Args:
        root: the folder.
    """

    num_classes = 10
    reference_split = "train"
    title: str
    """The name of the data set in messages."""
    inside: str = ""
    """The folder that torchvision creates in `root`."""

    def __init__(self, root: LocalPath = DATA, **options: Any) -> None:
        super().__init__(**options)
        self.root = root

    @abstractmethod
    def read(self, train: bool) -> "datasets.VisionDataset":
        """torchvision's data set of one split, downloaded if necessary."""

    def load(self) -> Splits:
        """The published split: its training images, and its test images held out.

        Raises:
            InputError: the files are neither in the folder nor can they be downloaded.
        """
        try:
            with new_folder_if_kept(Path(self.root, self.inside)):
                splits = [self.read(train) for train in (True, False)]
        except (RuntimeError, OSError) as error:
            reason = str(error).strip().replace("\n", "; ")
            raise InputError(
                f"{self.title} is not in {Path(self.root).resolve()} and could not be downloaded ({reason}); set "
                "--data.root to a folder in torchvision's layout"
            ) from error
        return Splits(*(self.examples(split) for split in splits))

    def reference(self) -> Tensor:
        """The training images, with which published FIDs compare, as stored and without augmentation, (N, C, H, W)."""
        return self.splits.train.x

    def examples(self, split: "datasets.VisionDataset") -> Examples:
        """The images of a split, uint8 (N, C, H, W), and their labels."""
        images = torch.from_numpy(np.asarray(split.data))
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        return Examples(images, torch.as_tensor(split.targets).long())


class CIFAR10(PublicData):
    """CIFAR-10: 60 000 color photographs of ten classes, 32x32 (Krizhevsky 2009); 50 000 to train on.

    Args:
        root: the folder with torchvision's cifar-10-batches-py, downloaded (163 MB) if it is missing.
    """

    shape = (3, 32, 32)
    title = "CIFAR-10"

    def read(self, train: bool) -> "datasets.CIFAR10":
        from torchvision import datasets  # takes a second to import

        return datasets.CIFAR10(self.root, train, download=True)


class MNIST(PublicData):
    """MNIST: 70 000 handwritten digits, 28x28 (LeCun et al. 1998); 60 000 to train on.

    Args:
        root: the folder with torchvision's MNIST/raw, downloaded (12 MB) if it is missing.
        size: height and width in pixels: 28 as published, more with a black border, less by area (with antialiasing).
    """

    title = "MNIST"
    inside = "MNIST/raw"

    def __init__(self, root: LocalPath = DATA, size: int = 28, **options: Any) -> None:
        require(size >= 1, f"size={size}: must be a positive height and width in pixels, as in 28, 32 or 16")
        super().__init__(root, **options)
        self.shape = (1, size, size)

    def read(self, train: bool) -> "datasets.MNIST":
        from torchvision import datasets  # takes a second to import

        return datasets.MNIST(self.root, train, download=True)

    def examples(self, split: "datasets.VisionDataset") -> Examples:
        x, y = super().examples(split)
        require_room(len(x) * self.shape[1] ** 2, f"size={self.shape[1]}: {len(x)} images", "use a smaller size")
        return Examples(resized(x, self.shape[1]), y)


class FashionMNIST(MNIST):
    """Fashion-MNIST: 70 000 pictures of ten kinds of clothing, 28x28 (Xiao et al. 2017, 1708.07747); 60 000 to train on.

    Uses Debian's package dataset-fashion-mnist if it is installed.

    Args:
        root: the folder with torchvision's FashionMNIST/raw, downloaded (31 MB) if it is missing.
    """

    title = "Fashion-MNIST"
    inside = "FashionMNIST/raw"

    def read(self, train: bool) -> "datasets.FashionMNIST":
        from torchvision import datasets  # takes a second to import
        from torchvision.datasets.utils import extract_archive

        raw = Path(self.root, self.inside)
        archives = sorted(DEBIAN_FASHION_MNIST.glob("*.gz"))
        if len(archives) == 4 and not all((raw / archive.stem).exists() for archive in archives):
            raw.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=raw) as part:  # so that no file is ever incomplete
                for archive in archives:
                    extract_archive(str(archive), part)
                    Path(part, archive.stem).replace(raw / archive.stem)
        return datasets.FashionMNIST(self.root, train, download=True)


def resized(images: Tensor, size: int) -> Tensor:
    """Square images in another size: enlarged by a black border, reduced with antialiasing.

    Args:
        images: uint8 (N, C, H, H).
        size: new height and width.
    """
    before = images.shape[-1]
    if size >= before:
        first = (size - before) // 2
        return F.pad(images, (first, size - before - first) * 2)
    parts = images.split(8192)
    reduced = [F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True) for part in parts]
    return torch.cat([part.round_().clamp_(0, 255).to(torch.uint8) for part in reduced])
