"""Guidance: scores that lead samples to a label, or to an observation of them."""

from lightning_score.guidance.base import Composed, Guidance, ModelFacts, OtherModel
from lightning_score.guidance.inverse import DPS, MomentMatching, NoisyLikelihood, PseudoInverse
from lightning_score.guidance.labels import ClassifierFree, ClassifierGuidance
from lightning_score.guidance.observed import LikelihoodGuidance, ObservationGuidance, Observed
from lightning_score.guidance.restoration import Colorization, Inpainting, Restoration, SuperResolution
from lightning_score.guidance.weaker import Autoguidance
from lightning_score.observations import BlockMean, Gray, LinearOperator, Mask, Matrix

__all__ = ["DPS", "Autoguidance", "BlockMean", "ClassifierFree", "ClassifierGuidance", "Colorization", "Composed",
           "Gray", "Guidance", "Inpainting", "LikelihoodGuidance", "LinearOperator", "Mask", "Matrix", "ModelFacts",
           "MomentMatching", "NoisyLikelihood", "ObservationGuidance", "Observed", "OtherModel", "PseudoInverse",
           "Restoration", "SuperResolution"]  # fmt: skip
