"""Conditions: what a model is given besides noisy data."""

from lightning_score.conditions.kinds import Array, ClassLabel, Condition, Several, Vector, condition_of

__all__ = ["Array", "ClassLabel", "Condition", "Several", "Vector", "condition_of"]
