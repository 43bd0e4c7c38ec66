"""Attempts at a trial: one that was interrupted, killed, or failed and is retried, is another trial of Optuna's database in
the same place of the queue, and resumes from the checkpoint in the same folder.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from lightning_score.errors import require
from lightning_score.runs.checkpoints import last_saved

SLOT, SETTINGS, ERROR, FOLDER = "slot", "settings", "error", "folder"
"""Attributes of a trial: place in the queue; settings; error message; the folder of its results."""
INTERRUPTED, DEATHS = "interrupted", "deaths"
"""Attributes of a trial: stopped by a signal; how often earlier attempts were killed."""
SURPLUS, RETRIED = "surplus", "retry_history"
"""Attributes of a trial: whether it is not needed; Optuna's, with the numbers of the earlier attempts."""
CONSTRAINTS = "constraints"
"""How the names of Optuna's attributes with the constraints of a trial begin; they can be set only once."""
FAILED = "failed"
"""The state of a failed trial, and all of them in `--retry`."""
RETRIES = 3
"""How often a trial that was killed, or its worker, returns to the queue without a new checkpoint; then it has failed."""


def last_attempts(found: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count: the last attempts, without surplus ones, and only the first for each place in the queue, which
    two processes may fill at the same time.
    """
    again = {number for trial in found for number in trial.system_attrs.get(RETRIED, [])}
    known: dict[int, FrozenTrial] = {}
    for trial in found:
        if trial.number not in again and SURPLUS not in trial.user_attrs:
            known.setdefault(trial.user_attrs.get(SLOT, -1 - trial.number), trial)
    return list(known.values())


def failed_trials(found: Sequence[FrozenTrial], which: str = FAILED) -> list[FrozenTrial]:
    """Those of the trials that count that have failed.

    Args:
        found: the trials that count.
        which: `failed` for all, or numbers with commas.

    Raises:
        InputError: a number is that of another trial.
    """
    failed = {trial.user_attrs.get(SLOT): trial for trial in found if trial.state == TrialState.FAIL}
    wanted = [*failed] if which == FAILED else sorted({int(number) for number in which.split(",")})
    for number in wanted:
        numbers = ", ".join(map(str, failed)) or "none"
        require(number in failed, f"--retry {which}: trial {number} has not failed; those that have: {numbers}")
    return [failed[number] for number in wanted]


def next_attempt(trial: FrozenTrial, killed: int) -> FrozenTrial:
    """A waiting trial with the values of one that has ended, its folder, and the measurements reported so far.

    Args:
        trial: the one that has ended.
        killed: how often it was killed.
    """
    kept = {name: trial.user_attrs[name] for name in (SLOT, FOLDER) if name in trial.user_attrs}
    system = {name: value for name, value in trial.system_attrs.items() if not name.startswith(CONSTRAINTS)}
    return optuna.create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=trial.intermediate_values,
        user_attrs={**kept, DEATHS: killed},
        system_attrs={**system, RETRIED: [*trial.system_attrs.get(RETRIED, []), trial.number]},
    )


def comes_back(trial: FrozenTrial) -> bool:
    """Whether a trial ended without a result or an error, and was killed at most `RETRIES` times."""
    return trial.state == TrialState.FAIL and ERROR not in trial.user_attrs and deaths(trial) <= RETRIES


def deaths(trial: FrozenTrial | Trial) -> int:
    """How often an ended trial without an error, or earlier attempts, were killed since the last checkpoint was written."""
    begun = 0.0 if trial.datetime_start is None else trial.datetime_start.timestamp()
    if FOLDER in trial.user_attrs and last_saved(Path(trial.user_attrs[FOLDER])) > begun:
        return 0
    return trial.user_attrs.get(DEATHS, 0) + (not trial.user_attrs.get(INTERRUPTED))


def take_first(study: optuna.Study) -> int | None:
    """Takes the first waiting trial of the queue and returns its id; Optuna would take an interrupted one last."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    for trial in sorted(waiting, key=lambda each: each.user_attrs.get(SLOT, each.number)):
        with suppress(UpdateFinishedTrialError):  # another worker has taken and ended it
            if study._storage.set_trial_state_values(trial._trial_id, state=TrialState.RUNNING):
                return trial._trial_id
    return None
