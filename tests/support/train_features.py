"""Trains the classifiers behind `DigitFeatures` and `FashionFeatures`: `python tests/support/train_features.py digits`.

Deterministic on one machine: half a minute on one core for digits, 25 minutes for clothing. Each is trained on the
training split, distorted and mixed, so that features of held-out images are distributed like those of training images:
otherwise a sampler that copies training images would score better than new images.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from lightning_score.data.base import Examples
from lightning_score.data.images import Digits, ImageData
from lightning_score.data.public import FashionMNIST, resized
from lightning_score.metrics.classifiers import (
    DIGIT_WEIGHTS,
    FASHION_WEIGHTS,
    Classifier,
    DigitClassifier,
    FashionClassifier,
    to_28,
)
from lightning_score.tensors import broadcast_to


def augment(images: Tensor) -> Tensor:
    """Slightly rotates, shears, scales and shifts each image and adds noise: bytes in, floats in 0..255 out."""

    def uniform(width: float) -> Tensor:
        return width * (2 * torch.rand(len(images)) - 1)

    angle, slant = uniform(0.25), uniform(0.25)
    row_x = torch.stack([angle.cos() * (1 + uniform(0.12)), slant - angle.sin(), uniform(0.25)], dim=-1)
    row_y = torch.stack([angle.sin(), angle.cos() * (1 + uniform(0.12)), uniform(0.25)], dim=-1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(images.shape), align_corners=False)
    warped = F.grid_sample(images.float(), grid, align_corners=False)
    return warped + 255 * broadcast_to(0.1 * torch.rand(len(images)), warped) * torch.randn_like(warped)


def mixup_loss(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy on `u x + (1 - u) x'` with both labels, weighted u and 1 - u, u ~ U[0, 1].

    Zhang et al. 2018, "mixup: beyond empirical risk minimization", arXiv:1710.09412.
    """
    share, partner = torch.rand(len(images)), torch.randperm(len(images))
    logits = classifier(broadcast_to(share, images) * images + broadcast_to(1 - share, images) * images[partner])
    own = F.cross_entropy(logits, labels, reduction="none")
    other = F.cross_entropy(logits, labels[partner], reduction="none")
    return (share * own + (1 - share) * other).mean()


def shift_and_shrink(images: Tensor) -> Tensor:
    """Shifts images by up to two pixels, flips half of them, reduces half to 16x16 and back, and adds noise: floats out."""
    right, down = (int(torch.randint(-2, 3, ())) for _ in range(2))
    moved = F.pad(images, (2 + right, 2 - right, 2 + down, 2 - down))[..., 2:-2, 2:-2]
    either = torch.rand(len(images), 1, 1, 1)
    moved = torch.where(either < 0.5, moved, moved.flip(-1))
    shrunk = to_28(resized(moved, 16))
    mixed = torch.where(torch.rand_like(either) < 0.5, moved.float(), shrunk)
    return mixed + 255 * 0.05 * torch.rand_like(either) * torch.randn_like(mixed)


@dataclass(frozen=True)
class Recipe:
    """What a classifier is made of and trained on.

    Attributes:
        make: makes it.
        data: makes the data module.
        augment: bytes to floats in 0..255.
        weights: the file of its weights in the package.
        batch_size: images per step.
        epochs: passes over the training split.
    """

    make: Callable[[], Classifier]
    data: Callable[[], ImageData]
    augment: Callable[[Tensor], Tensor]
    weights: Path
    batch_size: int
    epochs: int


RECIPES = {
    "digits": Recipe(DigitClassifier, Digits, augment, DIGIT_WEIGHTS, 64, 40),
    "fashion": Recipe(FashionClassifier, FashionMNIST, shift_and_shrink, FASHION_WEIGHTS, 256, 20),
}


def train(recipe: Recipe, examples: Examples, epochs: int, seed: int = 0) -> Classifier:
    """A classifier trained on `examples` by AdamW with a one-cycle learning rate, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = recipe.make()
        optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=1e-3)
        steps = epochs * math.ceil(len(examples.x) / recipe.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(examples.x)).split(recipe.batch_size):
                loss = mixup_loss(classifier, recipe.augment(examples.x[rows]), examples.y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return classifier.eval()


@torch.no_grad()
def accuracy(classifier: Classifier, examples: Examples) -> float:
    """The fraction of `examples` that is classified correctly."""
    guesses = torch.cat([classifier(part).argmax(-1) for part in examples.x.split(1000)])
    return float((guesses == examples.y).float().mean())


def main() -> None:
    """Trains, prints the accuracies, and writes the weights with their provenance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=RECIPES, help="which classifier")
    parser.add_argument("--output", help="file for the weights (default: in the package)")
    parser.add_argument("--epochs", type=int, help="passes over the training images")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums over threads depend on their number
    recipe = RECIPES[options.kind]
    epochs, output = options.epochs or recipe.epochs, options.output or str(recipe.weights)
    data = recipe.data()
    classifier = train(recipe, data.splits.train, epochs, options.seed)
    provenance = {
        "data": f"{type(data).__name__}, {' x '.join(map(str, data.shape))}",
        "split": f"{len(data.splits.train.x)} train, {len(data.splits.held_out.x)} held out",
        "train_accuracy": f"{accuracy(classifier, data.splits.train):.4f}",
        "held_out_accuracy": f"{accuracy(classifier, data.splits.held_out):.4f}",
        "epochs": str(epochs),
        "seed": str(options.seed),
        "torch": torch.__version__,
    }
    save_file(classifier.state_dict(), output, metadata=provenance)
    print("\n".join(f"{key}: {value}" for key, value in provenance.items()))
    print(f"written: {output}")


if __name__ == "__main__":
    main()
