"""Observations: what is measured of a sample, y = A(x) with noise."""

from lightning_score.observations.files import StoredObservation, read_observation, write_observation
from lightning_score.observations.noise import GaussianNoise, ObservationNoise, PoissonNoise
from lightning_score.observations.observation import Observation
from lightning_score.observations.operators import BlockMean, Gray, LinearOperator, Mask, Matrix, Operator

__all__ = ["BlockMean", "GaussianNoise", "Gray", "LinearOperator", "Mask", "Matrix", "Observation", "ObservationNoise",
           "Operator", "PoissonNoise", "StoredObservation", "read_observation", "write_observation"]  # fmt: skip
