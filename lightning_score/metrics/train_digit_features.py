"""Trains the classifier behind `DigitFeatures`: `python -m lightning_score.metrics.train_digit_features`.

Deterministic on one machine, half a minute on one core. It sees only the training split of `Digits`, bent and mixed, so
that digits which it never saw have features distributed like those it did see: else a sampler that copies its training
data would score better than new handwriting.
"""

import argparse
import math

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from lightning_score.data.base import Examples
from lightning_score.data.images import Digits
from lightning_score.metrics.features import DIGIT_WEIGHTS, DigitClassifier
from lightning_score.utils import expand


def augment(images: Tensor) -> Tensor:
    """Turns, slants, stretches and shifts each image a little and adds noise: bytes in, floats in 0..255 out."""

    def uniform(width: float) -> Tensor:
        return width * (2 * torch.rand(len(images)) - 1)

    angle, slant = uniform(0.25), uniform(0.25)
    row_x = torch.stack([angle.cos() * (1 + uniform(0.12)), slant - angle.sin(), uniform(0.25)], dim=-1)
    row_y = torch.stack([angle.sin(), angle.cos() * (1 + uniform(0.12)), uniform(0.25)], dim=-1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(images.shape), align_corners=False)
    warped = F.grid_sample(images.float(), grid, align_corners=False)
    return warped + 255 * expand(0.1 * torch.rand(len(images)), warped) * torch.randn_like(warped)


def mixup_loss(classifier: DigitClassifier, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy on `u x + (1 - u) x'` with both labels, weighted u and 1 - u, u ~ U[0, 1].

    Zhang et al. 2018, "mixup: beyond empirical risk minimization", arXiv:1710.09412.
    """
    share, partner = torch.rand(len(images)), torch.randperm(len(images))
    logits = classifier(expand(share, images) * images + expand(1 - share, images) * images[partner])
    own = F.cross_entropy(logits, labels, reduction="none")
    other = F.cross_entropy(logits, labels[partner], reduction="none")
    return (share * own + (1 - share) * other).mean()


def train(examples: Examples, epochs: int, seed: int = 0) -> DigitClassifier:
    """A classifier trained on `examples` by AdamW with a one-cycle learning rate, in evaluation mode."""
    batch_size, learning_rate = 64, 3e-3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = DigitClassifier()
        optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=1e-3)
        steps = epochs * math.ceil(len(examples.x) / batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(examples.x)).split(batch_size):
                loss = mixup_loss(classifier, augment(examples.x[rows]), examples.y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return classifier.eval()


@torch.no_grad()
def accuracy(classifier: DigitClassifier, examples: Examples) -> float:
    """The fraction of `examples` that is classified rightly."""
    return float((classifier(examples.x).argmax(-1) == examples.y).float().mean())


def main() -> None:
    """Trains, prints the accuracies, and writes the weights with their provenance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=str(DIGIT_WEIGHTS), help="where the weights go (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the training digits (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums over threads depend on their number
    splits = Digits().splits
    classifier = train(splits.train, options.epochs, options.seed)
    provenance = {
        "data": "scikit-learn digits, 8x8",
        "split": f"{len(splits.train.x)} train, {len(splits.held_out.x)} held out, lightning_score.data.Digits",
        "train_accuracy": f"{accuracy(classifier, splits.train):.4f}",
        "held_out_accuracy": f"{accuracy(classifier, splits.held_out):.4f}",
        "epochs": str(options.epochs),
        "seed": str(options.seed),
        "torch": torch.__version__,
    }
    save_file(classifier.state_dict(), options.output, metadata=provenance)
    print("\n".join(f"{key}: {value}" for key, value in provenance.items()))
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
