"""Conditions: what a model is given besides noisy data."""

from lightning_score.conditions.embedding import Known, VectorEmbedding
from lightning_score.conditions.kinds import Array, ClassLabel, Condition, Several, Vector, condition_of
from lightning_score.conditions.operators import BlockMean, Gray, LinearOperator, Mask, Matrix

__all__ = ["Array", "BlockMean", "ClassLabel", "Condition", "Gray", "Known", "LinearOperator", "Mask", "Matrix", "Several",
           "Vector", "VectorEmbedding", "condition_of"]  # fmt: skip
