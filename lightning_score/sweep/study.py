"""A sweep's trials in a database: a queue for any number of workers on any number of machines."""

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, cast

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url

from lightning_score.errors import InputError, one_line, require
from lightning_score.runs.status import STOPPED_EARLY
from lightning_score.sweep.draws import known_values, make_sampler
from lightning_score.sweep.objectives import directions
from lightning_score.sweep.processes import Stopped, identity, in_turn, is_dead
from lightning_score.sweep.spec import Sweep

SLOT, WORKER, ERROR, METRICS, SETTINGS, SURPLUS = "slot", "worker", "error", "metrics", "settings", "surplus"
"""Attributes of a trial: place in the queue; worker; error message; metrics; settings; whether it is not needed."""
RETRIED = "retry_history"
"""Optuna's attribute of a trial that repeats others: their numbers."""
CONSTRAINTS = "constraints"
"""How the names of Optuna's attributes with the constraints of a trial begin."""
INTERRUPTED, DEATHS = "interrupted", "deaths"
"""Attributes of a trial: stopped by a signal; the number of workers that have died at earlier attempts."""
HEARTBEAT, GRACE = 10, 60
"""Seconds between two heartbeats of a worker, and without heartbeat until its trial is put back into the queue."""
RETRIES = 3
"""How often a trial is restarted after its worker died; then it has failed."""
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: STOPPED_EARLY, TrialState.FAIL: "failed",
          TrialState.WAITING: "waiting"}  # fmt: skip


Objective = Callable[["Study", Trial, dict[str, Any]], float | Sequence[float]]


class Study:
    """The trials of a sweep.

    Args:
        sweep: the sweep.
        url: the database's, as `sqlite:///runs/sweeps/eps/study.db` or `postgresql://user@host/name`.
        name: of the study in the database.
        create: whether to create the database and the study if they do not exist.
        seed: the seed of draws; None: the study's own, 0 in a new one.

    Raises:
        InputError: the database cannot be used, or its sweep of this name has another file or another seed.
    """

    def __init__(self, sweep: Sweep, url: str, name: str, create: bool = False, seed: int | None = None):
        self.sweep, self.url, self.name = sweep, url, name
        self._study = self._opened(create)
        require(
            self._study.user_attrs.get("sweep", sweep.text) == sweep.text,
            f"the sweep {name} was started with another version of its file; give a new --name, or the old file",
        )
        known = self._study.user_attrs.get("seed", 0)
        changes = seed is not None and seed != known and len(self.trials()) > 0
        require(not changes, f"--seed {seed}: the sweep {name} was started with seed {known}")
        self.seed = known if seed is None else seed
        if create:
            self.store_once("sweep", sweep.text)
            self._study.set_user_attr("seed", self.seed)  # it may change as long as nothing is queued
        self._study.sampler = make_sampler(sweep, self.seed)
        self._study._pop_waiting_trial_id = self._take_next  # type: ignore[method-assign]
        if url.startswith("sqlite"):  # which cannot lock the row of a trial that a worker takes
            folder = os.path.dirname(make_url(url).database or "") or "."
            self._study.ask = in_turn(folder, self._study.ask)  # type: ignore[method-assign]

    def _opened(self, create: bool) -> optuna.Study:
        """Opens the study, several times, for two machines may create the tables at the same time."""
        for wait in (0.5, 1.5) if create else ():
            with suppress(Exception):
                return self._open(create)
            time.sleep(wait)
        try:
            return self._open(create)
        except Exception as error:  # from SQLAlchemy, the driver or Optuna
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            reason = "pip install 'psycopg[binary]'" if isinstance(error.__cause__ or error, ImportError) else reason
            address = re.sub("(//[^:/@]*):.*@", r"\1:***@", self.url)  # without the password
            raise InputError(f"--storage {address}: this database cannot be used ({reason})") from error

    def _open(self, create: bool) -> optuna.Study:
        sqlite = self.url.startswith("sqlite")
        if sqlite and not create and not os.path.isfile(make_url(self.url).database or ""):  # SQLite would create one
            raise FileNotFoundError("there is no such file")
        storage = RDBStorage(
            re.sub("^postgres(ql)?://", "postgresql+psycopg://", self.url),  # SQLAlchemy's usual driver has changed
            engine_kwargs={"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            skip_table_creation=not create,
        )
        if not create:
            return optuna.load_study(storage=storage, study_name=self.name)
        wanted = directions(self.sweep.objectives) or ["minimize"]
        return optuna.create_study(storage=storage, study_name=self.name, directions=wanted, load_if_exists=True)

    def store_once(self, key: str, value: Any) -> Any:
        """Stores a value unless the key has one; returns the stored value."""
        known = self._study.user_attrs.get(key)
        if known is None:
            self._study.set_user_attr(key, value)
        return value if known is None else known

    def queue(self, count: int, stop: Callable[[], bool] = lambda: False) -> int:
        """Queues trials until there are `count` or `stop` returns true, and removes surplus ones from the queue; returns the
        number of new trials.
        """
        for trial in self.trials():
            if trial.state == TrialState.WAITING and trial.user_attrs.get(SLOT, 0) >= count:
                self._storage.set_trial_user_attr(trial._trial_id, SURPLUS, True)
                self._end(trial)
        there = {trial.user_attrs[SLOT] for trial in self.trials() if SLOT in trial.user_attrs}
        new = [slot for slot in range(count) if slot not in there]
        values = known_values(self.sweep, count, self.seed) if new else []
        for slot in new:
            if stop():
                break
            self._study.enqueue_trial(values[slot], user_attrs={SLOT: slot})
        return len(new)

    def _take_next(self) -> int | None:
        """Takes the waiting trial that is the first in the queue, as an interrupted one; Optuna would take it last."""
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        for trial in sorted(waiting, key=lambda each: each.user_attrs.get(SLOT, each.number)):
            with suppress(UpdateFinishedTrialError):  # another worker has taken and ended it
                if self._storage.set_trial_state_values(trial._trial_id, state=TrialState.RUNNING):
                    return trial._trial_id
        return None

    def retry(self) -> int:
        """Puts the failed trials back into the queue with their values; returns their number."""
        failed = [trial for trial in self.trials() if trial.state == TrialState.FAIL]
        for trial in failed:
            self._put_back(trial, deaths=0)
        return len(failed)

    def trials(self) -> list[FrozenTrial]:
        """The trials that count: without restarted and surplus ones, and only the first for each place in the queue, which
        two processes may fill at the same time.
        """
        found = self._study.get_trials(deepcopy=False)
        again = {number for trial in found for number in trial.system_attrs.get(RETRIED, [])}
        known: dict[int, FrozenTrial] = {}
        for trial in found:
            if trial.number not in again and SURPLUS not in trial.user_attrs:
                known.setdefault(trial.user_attrs.get(SLOT, -1 - trial.number), trial)
        return list(known.values())

    def remaining(self) -> int:
        """The number of trials that are waiting, running, or will be put back into the queue."""
        return sum(trial.state not in ENDED or self._comes_back(trial) for trial in self.trials())

    @property
    def _storage(self) -> _CachedStorage:
        return cast(_CachedStorage, self._study._storage)

    def state(self, trial: FrozenTrial) -> str:
        """The state of a trial for tables; `interrupted` if its worker has died."""
        if trial.state != TrialState.RUNNING:
            return STATES[trial.state]
        if WORKER not in trial.user_attrs:  # a worker has only just taken it
            return "waiting"
        return "interrupted" if self._is_lost(trial, self._silent()) else "running"

    def _silent(self) -> set[int]:
        """The ids of the trials whose workers, on any machine, have sent no heartbeat for `GRACE` seconds."""
        return set(self._storage._get_stale_trial_ids(self._study._study_id))

    @staticmethod
    def _is_lost(trial: FrozenTrial, silent: set[int]) -> bool:
        """Whether the worker of a running trial is dead: its process has ended, or on another machine its heartbeat."""
        if WORKER not in trial.user_attrs:  # it was killed before its first heartbeat
            return (datetime.now() - (trial.datetime_start or datetime.now())).total_seconds() > GRACE
        return trial._trial_id in silent or is_dead(trial.user_attrs[WORKER])

    def release(self) -> None:
        """Puts back into the queue the trials of dead workers, and trials that ended without a result or an error because
        their worker was killed.
        """
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        silent = self._silent() if running else set()
        for trial in running:
            if self._is_lost(trial, silent):
                self._end(trial)
        for trial in self.trials():
            if self._comes_back(trial):
                self._put_back(trial, _deaths(trial))

    @staticmethod
    def _comes_back(trial: FrozenTrial) -> bool:
        """Whether a trial ended without a result or an error, and its workers died at most `RETRIES` times."""
        return trial.state == TrialState.FAIL and ERROR not in trial.user_attrs and _deaths(trial) <= RETRIES

    def _put_back(self, trial: FrozenTrial, deaths: int) -> None:
        """Queues a new trial with the values of one that has ended, in the same place and without its metrics."""
        kept = {name: value for name, value in trial.system_attrs.items() if not name.startswith(CONSTRAINTS)}
        again = optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={SLOT: trial.user_attrs[SLOT], DEATHS: deaths},
            system_attrs={**kept, RETRIED: [*trial.system_attrs.get(RETRIED, []), trial.number]},
        )
        self._study.add_trial(again)

    def _end(self, trial: FrozenTrial | Trial) -> None:
        with suppress(UpdateFinishedTrialError):  # another worker has already ended it
            self._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)

    def work(self, objective: Objective, stop: Callable[[], bool] = lambda: False) -> None:
        """Runs trials from the queue until it is empty.

        Args:
            objective: returns the value of each objective, given this study, the trial and its settings; the metrics of
                constraints are read from the trial's attribute METRICS.
            stop: whether this worker must stop; it is called between trials.
        """
        while not stop():
            self.release()
            left = {trial.state for trial in self.trials()} - {*ENDED}
            if not left:
                return
            if TrialState.WAITING in left:
                self._run_next(objective, stop)
            else:
                time.sleep(0.5)  # if another worker dies, its trial returns to the queue

    def _run_next(self, objective: Objective, stop: Callable[[], bool]) -> None:
        """Runs the next trial; an interrupted trial returns to the queue."""
        try:
            self._study.optimize(lambda trial: self._run(trial, objective, stop), n_trials=1, catch=(Exception,))
        except Stopped:
            self.release()
            raise

    def _run(self, trial: Trial, objective: Objective, stop: Callable[[], bool]) -> Sequence[float]:
        if SLOT not in trial.user_attrs or self._is_taken(trial):
            trial.set_user_attr(SURPLUS, True)
            raise RuntimeError("another worker has this trial")
        trial.set_user_attr(WORKER, identity())
        settings = self.sweep.settings(trial)
        trial.set_user_attr(SETTINGS, settings)
        try:
            if stop():
                raise Stopped
            measured = objective(self, trial, settings)
            values = [measured] if isinstance(measured, (int, float)) else measured
            for name, value in zip([each.name for each in self.sweep.objectives] or ["result"], values, strict=True):
                require(math.isfinite(value), f"{name} is {value}")
            self._set_constraints(trial)
            return values
        except optuna.TrialPruned:
            raise
        except Stopped:
            trial.set_user_attr(INTERRUPTED, True)
            self._end(trial)
            raise
        except Exception as error:
            trial.set_user_attr(ERROR, one_line(error, 500))
            raise

    def _set_constraints(self, trial: Trial) -> None:
        """Stores how far a trial's metrics are beyond the bounds of the sweep."""
        metrics = trial.user_attrs.get(METRICS, {}) if self.sweep.constraints else {}
        for number, bound in enumerate(self.sweep.constraints):
            value = metrics.get(bound.name, math.nan)
            require(not math.isnan(value), f"{bound.name} is {value}, which {bound} needs")
            trial.set_constraint(str(number), bound.violation(value))

    def _is_taken(self, trial: Trial) -> bool:
        """Whether an earlier trial has the same place in the queue, because two machines queued it at the same time."""
        slot = trial.user_attrs[SLOT]
        return any(other.number < trial.number and other.user_attrs.get(SLOT) == slot for other in self.trials())

    def should_stop(self, trial: Trial) -> bool:
        """Whether early termination stops a trial, given the values that it has reported."""
        if self.sweep.hyperband is None:
            return False
        sign = -1 if self.sweep.maximize else 1
        histories = {
            other.number: [sign * value for _, value in sorted(other.intermediate_values.items())] for other in self.trials()
        }
        return self.sweep.hyperband.should_stop(histories[trial.number], [values for values in histories.values() if values])

    def importances(self, number: int = 0) -> dict[str, float]:
        """Each parameter's share of the variance of an objective (functional ANOVA, Hutter et al. 2014).

        Empty for fewer than four results, or if all are equal.

        Args:
            number: of the objective.
        """

        def value(trial: FrozenTrial) -> float:
            return trial.values[number]

        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(complete) < 4 or len({*map(value, complete)}) < 2:
            return {}
        with suppress(ValueError, RuntimeError):
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            return optuna.importance.get_param_importances(self._study, evaluator=evaluator, target=value)
        return {}


def _deaths(trial: FrozenTrial) -> int:
    """The number of workers that have died at an ended trial without an error, or at its earlier attempts."""
    return trial.user_attrs.get(DEATHS, 0) + (not trial.user_attrs.get(INTERRUPTED))
