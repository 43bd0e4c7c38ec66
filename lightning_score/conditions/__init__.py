"""Conditions: what a model is given besides noisy data."""

from lightning_score.conditions.kinds import Array, ClassLabel, Condition, Known, Several, Vector, condition_of
from lightning_score.conditions.operators import BlockMean, Gray, LinearOperator, Mask, Matrix

__all__ = ["Array", "BlockMean", "ClassLabel", "Condition", "Gray", "Known", "LinearOperator", "Mask", "Matrix", "Several",
           "Vector", "condition_of"]  # fmt: skip
