"""Conditions: what a model is given besides noisy data."""

from lightning_score.conditions.kinds import Array, ClassLabel, Condition, Known, Several, Vector, condition_of

__all__ = ["Array", "ClassLabel", "Condition", "Known", "Several", "Vector", "condition_of"]
