"""Small classifiers of digits and of clothing, shipped with the package, and their features."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_score.metrics.features import Activations, Features

DIGIT_WEIGHTS = Path(__file__).with_name("digit_features.safetensors")
FASHION_WEIGHTS = Path(__file__).with_name("fashion_features.safetensors")


class Classifier(nn.Module):
    """A convolutional classifier of gray images, from bytes to logits (N, 10), with nonnegative features.

    Each stage is a 3x3 convolution with batch normalization and a ReLU, with or without pooling; dropout, a
    linear layer and a ReLU give the features, and another linear layer the logits.

    Args:
        channels: channels of each stage.
        pools: whether a 2x2 max pooling follows each stage.
        pixels: number of pixels after all stages.
        num_features: length of a feature vector.
    """

    def __init__(self, channels: Sequence[int], pools: Sequence[bool], pixels: int, num_features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, pool in zip([1, *channels[:-1]], channels, pools, strict=True):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if pool else []
        dense = nn.Linear(channels[-1] * pixels, num_features)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), dense, nn.ReLU())
        self.head = nn.Linear(num_features, 10)

    def features(self, images: Tensor) -> Tensor:
        """The features (N, num_features) of bytes (N, 1, H, W)."""
        return self.body(images.to(self.head.weight.dtype) / 255)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class DigitClassifier(Classifier):
    """A classifier of 8x8 digits with 64 features; 0.07 M parameters."""

    def __init__(self) -> None:
        super().__init__([32, 64, 64], [False, True, True], pixels=4, num_features=64)


class FashionClassifier(Classifier):
    """A classifier of 28x28 clothing with 128 features; 0.17 M parameters."""

    def __init__(self) -> None:
        super().__init__([32, 64, 64, 64], [True, True, False, True], pixels=9, num_features=128)


class ClassifierFeatures(Features):
    """Features of a classifier that is shipped with the package.

    Args:
        classifier: the network.
        weights: the file of its weights.
    """

    num_logits = 10
    in_double = True

    def __init__(self, classifier: Classifier, weights: Path) -> None:
        super().__init__()
        self.classifier = classifier
        self.classifier.load_state_dict(load_file(weights))
        self.num_features = classifier.head.in_features
        self.freeze()

    def extract(self, x: Tensor) -> Tensor:
        return self.activations(x).features

    def activations(self, x: Tensor) -> Activations:
        features = self.classifier.features(self.prepared(x))
        return Activations(features, self.classifier.head(features))

    @abstractmethod
    def prepared(self, x: Tensor) -> Tensor:
        """Images in the form that the classifier needs.

        Raises:
            InputError: the images are of another kind.
        """


class DigitFeatures(ClassifierFeatures):
    """64 features of a small digit classifier, shipped with the package; 99.72 % accurate on the held-out digits.

    They differ from Inception's: a `fid_digits` is comparable only with another `fid_digits`. The classifier was trained
    only on the training split of `Digits`, by `tests/support/train_features.py digits`.
    """

    name = "digits"

    def __init__(self) -> None:
        super().__init__(DigitClassifier(), DIGIT_WEIGHTS)

    def prepared(self, x: Tensor) -> Tensor:
        self.require_form(x, tuple(x.shape[1:]) == (1, 8, 8) and x.dtype == torch.uint8, "8x8 digits, uint8 (1, 8, 8)")
        return x


class FashionFeatures(ClassifierFeatures):
    """128 features of a small classifier of clothing, shipped with the package; 90.61 % accurate on the test images.

    They differ from Inception's: a `fid_fashion` is comparable only with another `fid_fashion` of images of the same size.
    Images of other sizes are resized to 28x28; reduced to 16x16, 89.52 % of the test images are classified correctly. The
    classifier was trained on the 60 000 training images of Fashion-MNIST, full, reduced, mirrored and mixed, by
    `tests/support/train_features.py fashion`.
    """

    name = "fashion"
    resize = "28x28, bilinear"

    def __init__(self) -> None:
        super().__init__(FashionClassifier(), FASHION_WEIGHTS)

    def prepared(self, x: Tensor) -> Tensor:
        gray = x.ndim == 4 and x.shape[1] == 1 and x.dtype == torch.uint8
        self.require_form(x, gray, "gray clothing, uint8 (1, H, W)")
        return to_28(x)


def to_28(x: Tensor) -> Tensor:
    """Images as floats, resized to 28x28."""
    same = x.shape[-2:] == (28, 28)
    return x.float() if same else F.interpolate(x.float(), (28, 28), mode="bilinear", antialias=True)
