"""Guidance: scores that lead samples to a label, or to an observation of them."""

from lightning_score.guidance.base import Chain, Guidance, Trained
from lightning_score.guidance.inverse import InverseProblem, PseudoInverse
from lightning_score.guidance.labels import ClassifierFree, ClassifierGuidance
from lightning_score.guidance.operators import Downsample, Grey, LinearOperator, Mask, Matrix
from lightning_score.guidance.restoration import Colourisation, Inpainting, Restoration, SuperResolution

__all__ = [
    "Chain",
    "ClassifierFree",
    "ClassifierGuidance",
    "Colourisation",
    "Downsample",
    "Grey",
    "Guidance",
    "Inpainting",
    "InverseProblem",
    "LinearOperator",
    "Mask",
    "Matrix",
    "PseudoInverse",
    "Restoration",
    "SuperResolution",
    "Trained",
]
