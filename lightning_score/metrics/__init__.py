"""Metrics: feature extractors, and the Frechet distance between the features of samples and of data."""

import lightning_score.torchvision_guard  # noqa: F401

from lightning_score.metrics.features import DigitFeatures, Features, InceptionFeatures, RawFeatures
from lightning_score.metrics.frechet import FrechetDistance, frechet_distance, real_floor

__all__ = [
    "DigitFeatures",
    "Features",
    "FrechetDistance",
    "InceptionFeatures",
    "RawFeatures",
    "frechet_distance",
    "real_floor",
]
