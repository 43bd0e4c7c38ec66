"""A sweep's trials in a database: a queue for any number of workers on any number of machines."""

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, cast

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url

from lightning_score.errors import InputError, one_line, require
from lightning_score.runs.status import STOPPED_EARLY, is_dead
from lightning_score.sweep import attempts
from lightning_score.sweep.attempts import ERROR, FAILED, INTERRUPTED, RETRIES, SETTINGS, SLOT, SURPLUS, comes_back, deaths
from lightning_score.sweep.draws import known_values, make_sampler
from lightning_score.sweep.ending import ENDED_BY, NO_MORE, is_poor, reached_target
from lightning_score.sweep.objectives import directions
from lightning_score.sweep.processes import Killed, Stopped, identity, in_turn
from lightning_score.sweep.scheduler import SearchEnded
from lightning_score.sweep.spec import Sweep
from lightning_score.sweep.users_study import UsersStudy

WORKER, METRICS = "worker", "metrics"
"""Further attributes of a trial: its worker, its metrics."""
HEARTBEAT, GRACE = 10, 60
"""Seconds between two heartbeats of a worker, and without heartbeat until its trial is put back into the queue."""
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: STOPPED_EARLY, TrialState.FAIL: FAILED,
          TrialState.WAITING: "waiting"}  # fmt: skip

RunTrial = Callable[["Study", Trial, dict[str, Any]], float | Sequence[float]]


class Unusable(InputError):
    """A database that cannot be used, or has no study of this name."""


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
        other = f"the sweep {name} was started with another version of its file; give a new --name, or the old file"
        require(self._study.user_attrs.get("sweep", sweep.text) == sweep.text, other)
        known = self._study.user_attrs.get("seed", 0)
        changes = seed is not None and seed != known and len(self.trials()) > 0
        require(not changes, f"--seed {seed}: the sweep {name} was started with seed {known}")
        self.seed = known if seed is None else seed
        if create:
            self.store_once("sweep", sweep.text)
            self._study.set_user_attr("seed", self.seed)  # it may change as long as nothing is queued
        self._study.sampler = make_sampler(sweep, self.seed)
        self._study._pop_waiting_trial_id = partial(attempts.take_first, self._study)  # type: ignore[method-assign]
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
            raise Unusable(f"--storage {address}: this database cannot be used ({reason})") from error

    def _open(self, create: bool) -> optuna.Study:
        sqlite = self.url.startswith("sqlite")
        if sqlite and not create and not os.path.isfile(make_url(self.url).database or ""):  # SQLite would create one
            raise FileNotFoundError("there is no such file")
        url = re.sub("^postgres(ql)?://", "postgresql+psycopg://", self.url)  # SQLAlchemy's usual driver has changed
        engine: dict[str, Any] = {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True}
        storage = RDBStorage(url, engine, heartbeat_interval=HEARTBEAT, grace_period=GRACE, skip_table_creation=not create)
        if not create:
            return optuna.load_study(storage=storage, study_name=self.name)
        wanted = directions(self.sweep.objectives) or ["minimize"]
        return optuna.create_study(storage=storage, study_name=self.name, directions=wanted, load_if_exists=True)

    def store_once(self, key: str, value: Any) -> Any:
        """Stores a value unless the key has one; returns the stored value."""
        if key not in self._study.user_attrs:
            self._study.set_user_attr(key, value)
        return self._study.user_attrs[key]

    def queue(self, count: int, stop: Callable[[], bool] = lambda: False) -> int:
        """Queues trials until there are `count` or `stop` returns true, and removes surplus ones from the queue; returns the
        number of new trials.
        """
        self._remove_from(count)
        if self.ended:
            return 0
        there = {trial.user_attrs[SLOT] for trial in self.trials() if SLOT in trial.user_attrs}
        new = [slot for slot in range(count) if slot not in there]
        values = known_values(self.sweep, count, self.seed) if new else []
        for slot in new:
            if stop():
                break
            self._study.enqueue_trial(values[slot], user_attrs={SLOT: slot})
        return len(new)

    def _remove_from(self, count: int, reason: str = "") -> None:
        """Removes the waiting trials at place `count` of the queue and after it; with a reason, the sweep has ended."""
        if reason:
            self.store_once(ENDED_BY, reason)
        for trial in self.trials():
            if trial.state == TrialState.WAITING and trial.user_attrs.get(SLOT, 0) >= count:
                self._storage.set_trial_user_attr(trial._trial_id, SURPLUS, True)
                self._end(trial)

    ended = property(lambda self: str(self._study.user_attrs.get(ENDED_BY, "")))
    """Why the sweep has ended before all planned trials; an empty text if it has not."""

    def retry(self, which: str = FAILED) -> int:
        """Puts failed trials, all or those of some numbers, back into the queue with their values; returns how many."""
        wanted = attempts.failed_trials(self.trials(), which)
        reason = reached_target(self.sweep.objectives, self.trials())
        require(not reason, f"--retry {which}: {reason}, after which no trial starts; leave it out")
        for trial in wanted:
            self._study.add_trial(attempts.next_attempt(trial, killed=0))
        return len(wanted)

    def trials(self) -> list[FrozenTrial]:
        """The trials that count: the last attempt for each place in the queue."""
        return attempts.last_attempts(self._study.get_trials(deepcopy=False))

    def remaining(self) -> int:
        """The number of trials that are waiting, running, or will be put back into the queue."""
        return sum(trial.state not in ENDED or comes_back(trial) for trial in self.trials())

    def waiting(self) -> int:
        """The number of trials that are in the queue or will be put back into it."""
        return sum(trial.state == TrialState.WAITING or comes_back(trial) for trial in self.trials())

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
            if comes_back(trial):
                self._study.add_trial(attempts.next_attempt(trial, deaths(trial)))

    def _end(self, trial: FrozenTrial | Trial) -> None:
        with suppress(UpdateFinishedTrialError):  # another worker has already ended it
            self._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)

    def work(self, objective: RunTrial, stop: Callable[[], bool] = lambda: False, leaves: bool = False) -> None:
        """Runs trials from the queue until all have ended.

        Args:
            objective: returns the value of each objective, given this study, the trial and its settings; the metrics of
                constraints are read from the trial's attribute METRICS.
            stop: whether this worker must stop; it is called between trials.
            leaves: whether it ends as soon as no trial waits, while others are running.
        """
        while not stop():
            self.release()
            if reason := reached_target(self.sweep.objectives, self.trials()):
                self._remove_from(0, reason)
            left = {trial.state for trial in self.trials()} - {*ENDED}
            if not left:
                return
            if TrialState.WAITING in left:
                self._run_next(objective, stop)
            elif leaves:
                return
            else:
                time.sleep(0.5)  # if another worker dies, its trial returns to the queue

    def _run_next(self, objective: RunTrial, stop: Callable[[], bool]) -> None:
        """Runs the next trial; an interrupted trial returns to the queue."""
        try:
            self._study.optimize(lambda trial: self._run(trial, objective, stop), n_trials=1, catch=(Exception,))
        except Stopped:
            self.release()
            raise

    def _run(self, trial: Trial, objective: RunTrial, stop: Callable[[], bool]) -> Sequence[float]:
        if SLOT not in trial.user_attrs or self._is_taken(trial):
            trial.set_user_attr(SURPLUS, True)
            raise RuntimeError("another worker has this trial")
        trial.set_user_attr(WORKER, identity())
        try:
            settings = self.sweep.settings(trial)
            trial.set_user_attr(SETTINGS, settings)
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
        except SearchEnded:
            trial.set_user_attr(SURPLUS, True)
            self._remove_from(0, NO_MORE)
            raise
        except Stopped:
            trial.set_user_attr(INTERRUPTED, True)
            self._end(trial)
            raise
        except Exception as error:
            if not isinstance(error, Killed) or deaths(trial) > RETRIES:
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
        if isinstance(self._study.sampler, UsersStudy):
            self._study.pruner = self._study.sampler.pruner
            return trial.should_prune()
        return is_poor(self.sweep, trial.number, self.trials())
