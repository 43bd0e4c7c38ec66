"""Observations: what is measured of a sample, y = A(x) with noise."""

from lightning_score.observations.base import LinearOperator, Operator
from lightning_score.observations.deepinv import DeepinvLinearPhysics, DeepinvPhysics
from lightning_score.observations.files import StoredObservation, read_observation, write_observation
from lightning_score.observations.noise import GaussianNoise, Observation, ObservationNoise, PoissonNoise
from lightning_score.observations.operators import BlockMean, Gray, Mask, Matrix
from lightning_score.observations.transforms import Blur, Composition, Fourier, PhaseRetrieval, Radon

__all__ = ["BlockMean", "Blur", "Composition", "DeepinvLinearPhysics", "DeepinvPhysics", "Fourier", "GaussianNoise", "Gray",
           "LinearOperator", "Mask", "Matrix", "Observation", "ObservationNoise", "Operator", "PhaseRetrieval",
           "PoissonNoise", "Radon", "StoredObservation", "read_observation", "write_observation"]  # fmt: skip
