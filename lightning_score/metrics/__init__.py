"""Metrics: feature extractors, the distances of samples from data in them, and the sums they are computed from."""

import lightning_score.lean_imports  # noqa: F401

from lightning_score.estimates import Estimate, jackknife_error, student
from lightning_score.metrics.calibration import Coverage, RankHistogram, sbc_ranks, tarp, z_scores
from lightning_score.metrics.classifiers import DigitFeatures, FashionFeatures
from lightning_score.metrics.distances import Distance, EnergyDistance, SlicedWasserstein
from lightning_score.metrics.ensembles import EnsembleScores, fair_crps
from lightning_score.metrics.features import Activations, Features, InceptionFeatures, ModuleFeatures, RawFeatures
from lightning_score.metrics.fields import Histogram, PowerSpectrum
from lightning_score.metrics.frechet import frechet_distance, frechet_estimate, frechet_infinity, real_floor
from lightning_score.metrics.manifold import Manifold, clip_distance, clip_floor, inception_score, kernel_distance, manifold
from lightning_score.metrics.neighbors import Neighbors, nearest_neighbors
from lightning_score.metrics.published import CLIPFeatures, DINOv2Features, SpatialFeatures
from lightning_score.metrics.statistics import FeatureSums, KeptFeatures, ReferenceFile, Statistics, block_of, fit

__all__ = ["Activations", "CLIPFeatures", "Coverage", "DINOv2Features", "DigitFeatures", "Distance", "EnergyDistance",
           "EnsembleScores", "Estimate", "FashionFeatures", "FeatureSums", "Features", "Histogram", "InceptionFeatures",
           "KeptFeatures", "Manifold", "ModuleFeatures", "Neighbors", "PowerSpectrum", "RankHistogram", "RawFeatures",
           "ReferenceFile", "SlicedWasserstein", "SpatialFeatures", "Statistics", "block_of", "clip_distance", "clip_floor",
           "fair_crps", "fit", "frechet_distance", "frechet_estimate", "frechet_infinity", "inception_score",
           "jackknife_error", "kernel_distance", "manifold", "nearest_neighbors", "real_floor", "sbc_ranks", "student",
           "tarp", "z_scores"]  # fmt: skip
