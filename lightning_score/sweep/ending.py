"""When a sweep ends before all its planned trials have run."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from lightning_score.sweep.objectives import Objective

ENDED_BY = "ended"
"""Attribute of a study: why it ended before all planned trials."""
NO_MORE = "the study of `optimizer` has no more trials"


def reached_target(objectives: Sequence[Objective], trials: Sequence[FrozenTrial]) -> str:
    """Says that a trial has reached the target of the first objective; an empty text if none has.

    Args:
        objectives: those of the sweep.
        trials: its trials, also those that still run and have reported values.
    """
    for objective in objectives[:1]:
        for trial in trials:
            if objective.is_reached([*(trial.values or [])[:1], *trial.intermediate_values.values()]):
                return f"a trial has reached the target {objective.target:g} of {objective.name}"
    return ""
