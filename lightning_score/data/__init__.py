"""Data modules: what a score model is trained on and compared with."""

import lightning_score.lean_imports  # noqa: F401

from lightning_score.data.array_augmentation import ArrayAugmentation, Dequantize, Flips, GaussianNoise, Rolls, Rotations
from lightning_score.data.array_stream import ArrayStream
from lightning_score.data.arrays import Arrays
from lightning_score.data.base import ScoreData
from lightning_score.data.batches import Batches, Examples, Splits, split_indices
from lightning_score.data.files import ImageFiles
from lightning_score.data.folder import ImageFolder
from lightning_score.data.images import Digits, ImageData, from_uint8, to_uint8
from lightning_score.data.public import CIFAR10, MNIST, FashionMNIST
from lightning_score.data.standardize import Asinh, AsStored, Constants, Log, MeanStd, MinMax, Standardization
from lightning_score.data.stream import ImageStream
from lightning_score.data.toy import GaussianMixture, Mixture, MixturePosterior

__all__ = ["CIFAR10", "MNIST", "ArrayAugmentation", "ArrayStream", "Arrays", "AsStored", "Asinh", "Batches", "Constants",
           "Dequantize", "Digits", "Examples", "FashionMNIST", "Flips", "GaussianMixture", "GaussianNoise", "ImageData",
           "ImageFiles", "ImageFolder", "ImageStream", "Log", "MeanStd", "MinMax", "Mixture", "MixturePosterior", "Rolls",
           "Rotations", "ScoreData", "Splits", "Standardization", "from_uint8", "split_indices", "to_uint8"]  # fmt: skip
