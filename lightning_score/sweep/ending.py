"""When a sweep ends before all its planned trials have run, and a trial before its end."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from lightning_score.sweep.objectives import Objective
from lightning_score.sweep.spec import Sweep

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


def is_poor(sweep: Sweep, number: int, trials: Sequence[FrozenTrial]) -> bool:
    """Whether the early termination of a sweep stops the trial of this number, given the values that all have reported."""
    if sweep.hyperband is None:
        return False
    sign = -1 if sweep.maximize else 1
    histories = {each.number: [sign * value for _, value in sorted(each.intermediate_values.items())] for each in trials}
    return sweep.hyperband.should_stop(histories[number], [values for values in histories.values() if values])
