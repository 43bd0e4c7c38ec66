"""Guidance: scores that lead samples to a label, or to an observation of them."""

from lightning_score.guidance.base import Composed, Guidance, ModelFacts
from lightning_score.guidance.inverse import PseudoInverse
from lightning_score.guidance.labels import ClassifierFree, ClassifierGuidance
from lightning_score.guidance.observed import ObservationGuidance, Observed
from lightning_score.guidance.restoration import Colorization, Inpainting, Restoration, SuperResolution
from lightning_score.observations import BlockMean, Gray, LinearOperator, Mask, Matrix

__all__ = ["BlockMean", "ClassifierFree", "ClassifierGuidance", "Colorization", "Composed", "Gray", "Guidance",
           "Inpainting", "LinearOperator", "Mask", "Matrix", "ModelFacts", "ObservationGuidance", "Observed",
           "PseudoInverse", "Restoration", "SuperResolution"]  # fmt: skip
