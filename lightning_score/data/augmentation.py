"""Non-leaky augmentation: random changes of images, which are inputs of the network and are zero for sampling."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_score.errors import require


class Augmentation(ABC):
    """Random changes of images and their labels.

    Attributes:
        labels: number of labels per image; all are 0 without a change.
    """

    labels: int

    @abstractmethod
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The changed images, like x (B, C, H, W), and their labels, (B, labels)."""

    def check(self, network_labels: int) -> None:
        """Raises `InputError` unless a network takes this number of augmentation labels."""
        require(
            network_labels == self.labels or self.labels == 0,
            f"augmentation {type(self).__name__}: needs a network with augmentation labels, as DDPMpp or NCSNpp with "
            f"--model.network.augmentations {self.labels}; this one has {network_labels}",
        )


class Changes(NamedTuple):
    """The changes of n images, each (n,) and 0 for no change.

    `mirror` and `flip` are 1 for an image turned left to right and upside down; then it is scaled by `2^(0.2 scale)`,
    turned by `angle` (radians, clockwise), stretched by `2^(0.2 stretch)` along the axis at angle `axis` and by its inverse
    across, and shifted by `0.125 right` of its width and `0.125 down` of its height.
    """

    mirror: Tensor
    flip: Tensor
    scale: Tensor
    angle: Tensor
    stretch: Tensor
    axis: Tensor
    right: Tensor
    down: Tensor

    def labels(self) -> Tensor:
        """The nine labels of EDM's networks, (n, 9)."""
        turned, along = (self.angle.cos() - 1, self.angle.sin()), (self.axis.cos(), self.axis.sin())
        stretched = [self.stretch * part for part in along]
        return torch.stack([self.mirror, self.flip, self.scale, *turned, *stretched, self.right, self.down], 1)

    def inverse(self, aspect: float) -> Tensor:
        """Where in an image the points of its changed, unmirrored version come from, in halves of width and height.

        Args:
            aspect: width over height.

        Returns:
            affine maps, (n, 2, 3).
        """
        smaller, narrower = 2 ** (-0.2 * self.scale), 2 ** (-0.2 * self.stretch)
        stretches = rotation(self.axis) @ torch.stack([narrower, 1 / narrower], 1).diag_embed() @ rotation(-self.axis)
        linear = smaller[:, None, None] * rotation(-self.angle) @ stretches
        square = torch.tensor([[1.0, 1 / aspect], [aspect, 1.0]], device=linear.device)  # turns happen in pixels
        linear = linear * square
        shift = 2 * 0.125 * torch.stack([self.right, self.down], 1)[..., None]
        return torch.cat([linear, -linear @ shift], dim=2)


class GeometricAugmentation(Augmentation):
    """Mirrors, scales, turns, stretches and shifts images (Karras et al. 2022, 2206.00364, appendix F.2).

    Half of the images are mirrored left to right. Each other change happens with the given probability, and is drawn anew
    for every image: turned upside down or not, scaled by a log-normal factor, turned by any angle, stretched along the
    horizontal or, as often, along any axis, shifted by a normal share of the size. Beyond its edges an image is reflected.

    Args:
        probability: of each change but the first.

    Raises:
        InputError: for a probability outside [0, 1].
    """

    labels = 9

    def __init__(self, probability: float = 0.12):
        require(0 <= probability <= 1, f"probability={probability}: must be in [0, 1]; 0.12 is usual")
        self.probability = probability

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        changes = self.draw(len(x), x.device)
        return changed(x, changes), changes.labels().to(x.dtype)

    def draw(self, n: int, device: torch.device | str = "cpu") -> Changes:
        """Random changes of n images."""

        def sometimes(values: Tensor, probability: float) -> Tensor:
            return torch.where(torch.rand(n, device=device) < probability, values, 0.0)

        def normal() -> Tensor:
            return torch.randn(n, device=device)

        def angle() -> Tensor:
            return (2 * torch.rand(n, device=device) - 1) * math.pi

        shifted = sometimes(torch.ones(n, device=device), self.probability)
        return Changes(
            mirror=torch.randint(2, (n,), device=device).float(),
            flip=sometimes(torch.randint(2, (n,), device=device).float(), self.probability),
            scale=sometimes(normal(), self.probability),
            angle=sometimes(angle(), self.probability),
            stretch=sometimes(normal(), self.probability),
            axis=sometimes(angle(), 0.5),
            right=shifted * normal(),
            down=shifted * normal(),
        )


def rotation(angle: Tensor) -> Tensor:
    """Matrices (n, 2, 2) that turn (right, down) clockwise by angles (n,)."""
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack([cosine, -sine, sine, cosine], 1).unflatten(1, (2, 2))


def changed(x: Tensor, changes: Changes) -> Tensor:
    """Images with the changes made; images that are only mirrored keep their pixels.

    The others are interpolated at twice the resolution and then averaged, against aliasing.

    Args:
        x: images (B, C, H, W).
        changes: of B images.
    """
    for done, axis in ((changes.mirror, 3), (changes.flip, 2)):
        x = torch.where(done[:, None, None, None] > 0, x.flip(axis), x)
    moves = torch.stack([changes.scale, changes.angle, changes.stretch, changes.right, changes.down])
    moved = (moves != 0).any(0).nonzero()[:, 0]
    if len(moved) == 0:
        return x
    height, width = x.shape[2:]
    inverse = Changes(*(part[moved] for part in changes)).inverse(width / height).to(x.dtype)
    grid = F.affine_grid(inverse, [len(moved), x.shape[1], 2 * height, 2 * width], align_corners=False)
    finer = F.grid_sample(x[moved], grid, "bicubic", "reflection", align_corners=False)
    return x.index_copy(0, moved, F.avg_pool2d(finer, 2))
