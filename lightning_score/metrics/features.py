"""Feature extractors: the frozen networks through which a Frechet distance sees samples and data."""

import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_score.utils import InputError, require

DIGIT_WEIGHTS = Path(__file__).with_name("digit_features.safetensors")
INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_WEIGHTS}"
INCEPTION_VARIABLE = "LIGHTNING_SCORE_INCEPTION"


class Features(nn.Module, ABC):
    """A frozen map to feature vectors, (N, num_features), from examples in the form of a data module's `reference()`.

    It stays in evaluation mode and has no gradients. An extractor defines `extract`, and calls `freeze` once built.

    Attributes:
        name: the metric is called `fid_<name>`, so that nobody takes these features for others.
        num_features: length of a feature vector.
        chunk: how many examples go through the network at once, whatever the number given.
    """

    name: str
    num_features: int
    chunk: int = 1024

    @abstractmethod
    def extract(self, x: Tensor) -> Tensor:
        """The features of at most `chunk` examples, float (N, num_features)."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.extract(part) for part in x.split(self.chunk)])

    def freeze(self) -> None:
        """Takes the parameters out of any training, for good."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Features":
        """Stays in evaluation mode, whatever `mode` is asked for."""
        return super().train(False)


class RawFeatures(Features):
    """The coordinates or bytes themselves, flattened, as floats: for toys, and as a baseline on images.

    Args:
        shape: of one example.
    """

    name = "raw"

    def __init__(self, shape: Sequence[int] = (2,)) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.num_features = prod(self.shape)
        self.freeze()

    def extract(self, x: Tensor) -> Tensor:
        require(
            tuple(x.shape[1:]) == self.shape,
            f"RawFeatures got examples of shape {tuple(x.shape[1:])}, but was made for {self.shape}: set its `shape`.",
        )
        return x.flatten(1).float()


class DigitClassifier(nn.Module):
    """A small convolutional classifier of 8x8 digits, bytes in and logits (N, 10) out, by way of 64 features.

    Three 3x3 convolutions with batch normalisation, two poolings and a linear layer with a ReLU give the features (not
    negative, like Inception's); one more linear layer gives the logits. 0.07 M parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, 64), nn.ReLU()),
        )
        self.head = nn.Linear(64, 10)

    def features(self, images: Tensor) -> Tensor:
        """The features (N, 64) of bytes (N, 1, 8, 8)."""
        return self.body(images.float() / 255)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class DigitFeatures(Features):
    """64 features of a small digit classifier, shipped with the package; 99.72 % accurate on the held-out digits.

    They are not Inception's: a `fid_digits` compares only with another `fid_digits`. The classifier was trained on the
    training split of `Digits` alone, by `python -m lightning_score.metrics.train_digit_features`.
    """

    name = "digits"
    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.classifier = DigitClassifier()
        self.classifier.load_state_dict(load_file(DIGIT_WEIGHTS))
        self.freeze()

    def extract(self, x: Tensor) -> Tensor:
        require(
            tuple(x.shape[1:]) == (1, 8, 8) and x.dtype == torch.uint8,
            f"DigitFeatures got {x.dtype} examples of shape {tuple(x.shape[1:])}, but knows only 8x8 digits, uint8 "
            "(1, 8, 8): take InceptionFeatures for other images and RawFeatures for toys.",
        )
        return self.classifier.features(x)


class InceptionFeatures(Features):
    """2048 features (pool3) of Inception v3 as in published FIDs: TensorFlow's weights of 2015 and its resize.

    Heusel et al. 2017, arXiv:1706.08500; the network is torch-fidelity's. Images are bytes of any size; grey ones are
    repeated to three channels.

    Args:
        weights: path of weights-inception-2015-12-05-6726825d.pth. If null, the path in the environment variable
            LIGHTNING_SCORE_INCEPTION, or else the file that torch-fidelity keeps in torch's hub folder and downloads
            (95 MB) if it is not there.

    Raises:
        InputError: if the weights cannot be had.
    """

    name = "inception"
    num_features = 2048
    chunk = 64

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        self.network = _load_inception(weights or os.environ.get(INCEPTION_VARIABLE) or None)
        self.network.to(memory_format=torch.channels_last)
        self.freeze()

    def extract(self, x: Tensor) -> Tensor:
        require(
            x.ndim == 4 and x.shape[1] in (1, 3) and x.dtype == torch.uint8,
            f"InceptionFeatures got {x.dtype} examples of shape {tuple(x.shape[1:])}; it takes images, uint8 (1, H, W) "
            "or (3, H, W): take RawFeatures for toys.",
        )
        (features,) = self.network(x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last))
        return features


def _load_inception(path: str | None) -> nn.Module:
    """torch-fidelity's Inception with the weights at `path`, or those of its own download if None."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # takes seconds to import

    try:
        if path is not None:
            torch.load(path, weights_only=True)  # refuses code, which torch-fidelity's own loading would run
        return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=path)
    except (OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
        where = path or f"{torch.hub.get_dir()}/checkpoints/{INCEPTION_WEIGHTS} (nor downloaded)"
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"Inception's weights could not be read from {where}: {reason}. Download {INCEPTION_URL} and give its path "
            f"as the option `weights` of InceptionFeatures or in the environment variable {INCEPTION_VARIABLE}."
        ) from error
