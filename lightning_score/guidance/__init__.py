"""Guidance: scores that lead samples to a label, or to an observation of them."""

from lightning_score.guidance.base import Composed as Composed, Guidance as Guidance, ModelFacts as ModelFacts
from lightning_score.guidance.inverse import PseudoInverse as PseudoInverse
from lightning_score.guidance.labels import ClassifierFree as ClassifierFree, ClassifierGuidance as ClassifierGuidance
from lightning_score.guidance.operators import (
    BlockMean as BlockMean,
    Gray as Gray,
    LinearOperator as LinearOperator,
    Mask as Mask,
    Matrix as Matrix,
)
from lightning_score.guidance.restoration import (
    Colorization as Colorization,
    Inpainting as Inpainting,
    Restoration as Restoration,
    SuperResolution as SuperResolution,
)
