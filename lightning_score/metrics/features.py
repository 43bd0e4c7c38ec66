"""Feature extractors: the frozen networks whose features metrics compare."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_score.errors import InputError, require
from lightning_score.files import LocalPath, read_tensors
from lightning_score.memory import require_room
from lightning_score.metrics.weights import WeightsFile

INCEPTION = WeightsFile(
    "Inception",
    "InceptionFeatures",
    "LIGHTNING_SCORE_INCEPTION",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)


class Activations(NamedTuple):
    """Feature vectors (N, D), and the logits (N, K) of a classifier on them; K = 0 without one."""

    features: Tensor
    logits: Tensor


class Features(nn.Module, ABC):
    """A frozen map to feature vectors, (N, num_features), from examples in the form of a data module's `reference()`.

    It stays in evaluation mode and has no gradients. An extractor defines `extract`, or `activations` if it classifies as
    well, and calls `freeze` once built.

    Attributes:
        name: the name of the features, as in `fid_<name>`.
        num_features: length of a feature vector.
        num_logits: number of classes of its classifier; 0 without one.
        resize: how images are resized.
        chunk: number of examples per network evaluation.
        in_double: whether double precision is supported: in single precision the last digits depend on the number of
            examples per network evaluation, and so on the number of processes.
        in_bytes: whether images of 16 bits become bytes first.
        measured: the kinds of metrics that `fit` measures in these features, the main one first.
        ending: of the names of their statistics in files, as in `mu_s`.
    """

    name: str
    num_features: int
    num_logits: int = 0
    resize: str = "none"
    chunk: int = 1024
    in_double: bool = False
    in_bytes: bool = True
    measured: tuple[str, ...] = ("fid",)
    ending: str = ""

    @abstractmethod
    def extract(self, x: Tensor) -> Tensor:
        """The features of at most `chunk` examples, float (N, num_features)."""

    def activations(self, x: Tensor) -> Activations:
        """The features of at most `chunk` examples, with the logits of the classifier, if any."""
        features = self.extract(x)
        return Activations(features, features.new_zeros(len(features), 0))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Activations:
        if self.in_bytes and x.dtype == torch.uint16:
            x = (x.float() / 257).round().to(torch.uint8)
        parts = [self.activations(part) for part in x.split(self.chunk)]
        features, logits = (torch.cat(columns) for columns in zip(*parts, strict=True))
        require(
            features.shape == (len(x), self.num_features) and logits.shape == (len(x), self.num_logits),
            f"{type(self).__name__}: returns features and logits of shapes {tuple(features.shape)} and "
            f"{tuple(logits.shape)} for examples of shape {tuple(x.shape)}, but num_features={self.num_features} and "
            f"num_logits={self.num_logits} are declared",
        )
        return Activations(features, logits)

    def move_to(self, module: nn.Module) -> "Features":
        """Moves to the device of a model, and to its precision if that is double."""
        weight = next(module.parameters())
        return self.to(weight.device, torch.promote_types(weight.dtype, torch.float32) if self.in_double else None)

    @property
    def doubled(self) -> bool:
        """Whether the features are computed in double precision."""
        return self.in_double and next(self.parameters()).dtype == torch.float64

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the class, its resize and all its weights."""
        digest = hashlib.sha256(f"{type(self).__qualname__} {self.num_features} {self.resize}".encode())
        for name, tensor in sorted(self.state_dict().items()):
            tensor = tensor.float() if tensor.dtype == torch.float64 and self.in_double else tensor  # as they were stored
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def check(self, examples: Tensor) -> None:
        """Raises `InputError` unless the features of examples, in the form of `reference()`, can be computed."""
        name = type(self).__name__
        sums = f"{name}: the sums of outer products of {self.num_features} features, in ten blocks"
        require_room(88 * self.num_features**2, sums, "use fewer features, as InceptionFeatures")
        given = f"examples of {examples.dtype} and shape {tuple(examples.shape[1:])}"
        device = next((tensor.device for tensor in self.state_dict().values()), examples.device)
        try:
            found = self(examples.to(device))
        except InputError:
            raise
        except Exception as error:  # of any module
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{name}: cannot be computed from {given}: {type(error).__name__}: {reason}") from error
        require(bool(found.features.isfinite().all()), f"{name}: returns NaN or infinity for {given}")

    def require_form(self, x: Tensor, fits: bool, form: str) -> None:
        """Raises `InputError` unless examples have the form that the features need."""
        require(
            fits,
            f"{type(self).__name__} got {x.dtype} examples of shape {tuple(x.shape[1:])}, but needs {form}: use "
            "InceptionFeatures for other images and RawFeatures for other data, with its `shape`",
        )

    def freeze(self) -> None:
        """Excludes the parameters from training."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Features":
        """Stays in evaluation mode, whatever the `mode`."""
        return super().train(False)


class RawFeatures(Features):
    """The coordinates or bytes themselves, flattened, as floats: for toys, and as a baseline on images.

    Args:
        shape: of one example.
    """

    name = "raw"
    in_bytes = False

    def __init__(self, shape: Sequence[int] = (2,)) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.num_features = prod(self.shape)
        self.freeze()

    def extract(self, x: Tensor) -> Tensor:
        self.require_form(x, tuple(x.shape[1:]) == self.shape, f"shape {self.shape}")
        return x.flatten(1).float()


class ModuleFeatures(Features):
    """The output of any module, flattened, as features.

    Args:
        module: its input are examples in the form of the data module's `reference()`, uint8 (N, C, H, W) for images.
        num_features: number of outputs per example.
        name: name of the features, as in `fid_<name>`.
    """

    def __init__(self, module: nn.Module, num_features: int, name: str = "module") -> None:
        super().__init__()
        require(num_features >= 1, f"num_features={num_features}: must be at least 1")
        self.module, self.num_features, self.name = module, num_features, name
        self.freeze()

    def extract(self, x: Tensor) -> Tensor:
        return self.module(x).flatten(1).float()


class ImageFeatures(Features):
    """Features of a published network of color images: bytes of any size, gray ones repeated to three channels."""

    in_double = True
    chunk = 64

    def colors(self, x: Tensor) -> Tensor:
        """Images of three channels.

        Raises:
            InputError: these are no images of bytes with one or three channels.
        """
        images = x.ndim == 4 and x.shape[1] in (1, 3) and x.dtype == torch.uint8
        self.require_form(x, images, "images, uint8 (1, H, W) or (3, H, W)")
        return x.expand(-1, 3, -1, -1)


class InceptionFeatures(ImageFeatures):
    """2048 features (pool3) of Inception v3 as in published FIDs: TensorFlow's weights of 2015 and its resize.

    Heusel et al. 2017, arXiv:1706.08500; the network is torch-fidelity's.

    Args:
        weights: path of weights-inception-2015-12-05-6726825d.pth. null: the path in the environment variable
            LIGHTNING_SCORE_INCEPTION, or the file in torch's hub folder, which is downloaded (95 MB) if it is missing.

    Raises:
        InputError: the weights cannot be read.
    """

    name = "inception"
    num_features = 2048
    num_logits = 1008
    resize = "299x299, bilinear as TensorFlow 1, without antialiasing (torch-fidelity, pytorch-fid)"
    layers: tuple[str, ...] = ("2048", "logits_unbiased")
    """What torch-fidelity's network is asked for."""

    def __init__(self, weights: LocalPath | None = None) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # takes seconds to import

        with INCEPTION.explaining(weights):
            path = INCEPTION.find(weights)
            read_tensors(path)  # refuses code, which torch-fidelity's own loading would run
            settings = {"feature_extractor_weights_path": str(path)}
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", [*self.layers], **settings)
        self.network.to(memory_format=torch.channels_last)
        self.freeze()

    def extract(self, x: Tensor) -> Tensor:
        return self.activations(x).features

    def activations(self, x: Tensor) -> Activations:
        return Activations(*self.outputs(x))

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """The `layers` of the network."""
        images = self.colors(x).contiguous(memory_format=torch.channels_last)
        self.network.feature_extractor_internal_dtype = torch.float64 if self.doubled else torch.float32
        found: tuple[Tensor, ...] = self.network(images)
        return found
