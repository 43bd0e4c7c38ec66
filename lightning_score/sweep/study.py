"""A sweep's trials in a database: a queue for any number of workers on any number of machines."""

import math
import os
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url

from lightning_score.errors import InputError, require
from lightning_score.runs.status import STOPPED_EARLY
from lightning_score.sweep.draws import draw, make_sampler
from lightning_score.sweep.interruption import Stopped
from lightning_score.sweep.processes import identity, in_turn, is_dead
from lightning_score.sweep.spec import Sweep

SLOT, WORKER, ERROR, METRICS, SETTINGS, SURPLUS = "slot", "worker", "error", "metrics", "settings", "surplus"
"""Attributes of a trial: place in the queue; worker; error message; metrics; settings; whether it is not needed."""
INTERRUPTED, FORGIVEN = "interrupted", "forgiven"
"""Attributes of a trial: stopped by a signal; the number of its earlier attempts that do not count as failures."""
HEARTBEAT, GRACE = 10, 60
"""Seconds between two heartbeats of a worker, and without heartbeat until its trial is put back into the queue."""
RETRIES = 3
"""How often a trial is restarted after its worker died; then it has failed."""
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: STOPPED_EARLY, TrialState.FAIL: "failed",
          TrialState.WAITING: "waiting"}  # fmt: skip

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=ExperimentalWarning)


Objective = Callable[["Study", Trial, dict[str, Any]], float]


class _Surplus(Exception):
    """A trial that another worker has taken."""


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
        for wait in (0.5, 1.5, None) if create else (None,):  # two machines may create the tables at the same time
            try:
                self._study = self._open(create)
                break
            except Exception as error:  # from SQLAlchemy, the driver or Optuna
                if wait is not None:
                    time.sleep(wait)
                    continue
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                reason = "pip install 'psycopg[binary]'" if isinstance(error.__cause__ or error, ImportError) else reason
                address = _without_password(url)
                raise InputError(f"--storage {address}: this database cannot be used ({reason})") from error
        require(
            self._study.user_attrs.get("sweep", sweep.text) == sweep.text,
            f"the sweep {name} was started with another version of its file; give a new --name, or the old file",
        )
        known = self._study.user_attrs.get("seed", 0)
        require(
            seed is None or not self.trials() or seed == known,
            f"--seed {seed}: the sweep {name} was started with seed {known}",
        )
        self.seed = known if seed is None else seed
        if create:
            self.store_once("sweep", sweep.text)
            self._study.set_user_attr("seed", self.seed)  # it may change as long as nothing is queued
        self._study.sampler = make_sampler(sweep, self.seed)
        if self.url.startswith("sqlite"):  # which cannot lock the row of a trial that a worker takes
            self._study.ask = in_turn(os.path.dirname(make_url(self.url).database or "") or ".", self._study.ask)

    def _open(self, create: bool) -> optuna.Study:
        file = make_url(self.url).database if self.url.startswith("sqlite") else None
        if file and not create and not os.path.isfile(file):  # SQLite would create an empty one
            raise FileNotFoundError("there is no such file")
        settings = {"connect_args": {"timeout": 60}} if self.url.startswith("sqlite") else {"pool_pre_ping": True}
        storage = RDBStorage(
            _with_driver(self.url),
            engine_kwargs=settings,
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            skip_table_creation=not create,
        )
        if not create:
            return optuna.load_study(storage=storage, study_name=self.name)
        direction = "maximize" if self.sweep.maximize else "minimize"
        return optuna.create_study(storage=storage, study_name=self.name, direction=direction, load_if_exists=True)

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
        values = self._values(count) if new else []
        for slot in new:
            if stop():
                break
            self._study.enqueue_trial(values[slot], user_attrs={SLOT: slot})
        return len(new)

    def _values(self, count: int) -> list[dict[str, Any]]:
        """The parameters of the first `count` trials; empty for bayes."""
        if self.sweep.method == "grid":
            return self.sweep.grid()
        return [{} for _ in range(count)] if self.sweep.method == "bayes" else draw(self.sweep, count, self.seed)

    def retry(self) -> int:
        """Puts the failed trials back into the queue with their values; returns their number."""
        failed = [trial for trial in self.trials() if trial.state == TrialState.FAIL]
        for trial in failed:
            self._put_back(trial, {FORGIVEN: len(trial.system_attrs.get("retry_history", [])) + 1})
        return len(failed)

    def trials(self) -> list[FrozenTrial]:
        """The trials that count: without restarted and surplus ones, and only the first for each place in the queue, which
        two processes may fill at the same time.
        """
        found = self._study.get_trials(deepcopy=False)
        again = {number for trial in found for number in trial.system_attrs.get("retry_history", [])}
        known: dict[int, FrozenTrial] = {}
        for trial in found:
            if trial.number not in again and SURPLUS not in trial.user_attrs:
                known.setdefault(trial.user_attrs.get(SLOT, -1 - trial.number), trial)
        return list(known.values())

    def remaining(self) -> int:
        """The number of trials that are waiting, running, or will be put back into the queue."""
        return sum(trial.state not in ENDED or self._comes_back(trial) for trial in self.trials())

    @property
    def _storage(self) -> RDBStorage:
        return self._study._storage

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
                self._put_back(trial, {FORGIVEN: trial.user_attrs.get(FORGIVEN, 0)})

    def _comes_back(self, trial: FrozenTrial) -> bool:
        """Whether a trial ended without a result or an error, and its workers died at most `RETRIES` times."""
        if trial.state != TrialState.FAIL or ERROR in trial.user_attrs:
            return False
        history = [*trial.system_attrs.get("retry_history", []), trial.number]
        known = self._study.get_trials(deepcopy=False)
        counted = history[trial.user_attrs.get(FORGIVEN, 0) :]
        return sum(not known[number].user_attrs.get(INTERRUPTED) for number in counted) <= RETRIES

    def _put_back(self, trial: FrozenTrial, attributes: dict[str, Any]) -> None:
        """Queues a new trial with the values of one that has ended, in the same place and without its metrics."""
        history = [*trial.system_attrs.get("retry_history", []), trial.number]
        self._study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={SLOT: trial.user_attrs[SLOT], **attributes},
                system_attrs={**trial.system_attrs, "retry_history": history},
            )
        )

    def _end(self, trial: FrozenTrial) -> None:
        with suppress(UpdateFinishedTrialError):  # another worker has already ended it
            self._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)

    def work(self, objective: Objective, stop: Callable[[], bool] = lambda: False) -> None:
        """Runs trials from the queue until it is empty.

        Args:
            objective: returns the metric of a trial, given this study, the trial and its settings.
            stop: whether this worker must stop; it is called between trials.
        """
        self.release()
        while self.remaining() and not stop():
            if self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                self._run_next(objective, stop)
            else:
                time.sleep(0.5)  # if another worker dies, its trial returns to the queue
            self.release()

    def _run_next(self, objective: Objective, stop: Callable[[], bool]) -> None:
        """Runs the next trial; an interrupted trial returns to the queue."""
        taken: list[Trial] = []
        try:
            self._study.optimize(lambda trial: self._run(trial, objective, stop, taken), n_trials=1, catch=(Exception,))
        except Stopped:
            for trial in taken:
                self._end(self._storage.get_trial(trial._trial_id))
            self.release()
            raise

    def _run(self, trial: Trial, objective: Objective, stop: Callable[[], bool], taken: list[Trial]) -> float:
        if SLOT not in trial.user_attrs or self._is_taken(trial):
            trial.set_user_attr(SURPLUS, True)
            raise _Surplus
        taken.append(trial)
        trial.set_user_attr(WORKER, identity())
        settings = self.sweep.settings(trial)
        trial.set_user_attr(SETTINGS, settings)
        try:
            if stop():
                raise Stopped
            value = objective(self, trial, settings)
            require(not math.isnan(value), f"{self.sweep.metric} is NaN")
        except optuna.TrialPruned:
            raise
        except Stopped:
            trial.set_user_attr(INTERRUPTED, True)
            raise
        except Exception as error:
            trial.set_user_attr(ERROR, " ".join(str(error).split())[:500] or type(error).__name__)
            raise
        return value

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

    def importances(self) -> dict[str, float]:
        """Each parameter's share of the variance of the results (functional ANOVA, Hutter et al. 2014).

        Empty for fewer than four results, or if all are equal.
        """
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
            return {}
        with suppress(ValueError, RuntimeError):
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            return optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {}


def _with_driver(url: str) -> str:
    """Adds the driver to an address of PostgreSQL; SQLAlchemy's default driver depends on its version."""
    for usual in ("postgresql://", "postgres://"):
        if url.startswith(usual):
            return f"postgresql+psycopg://{url.removeprefix(usual)}"
    return url


def _without_password(url: str) -> str:
    """A database's address without its password."""
    with suppress(Exception):
        return make_url(url).render_as_string(hide_password=True)
    return "(invalid address)"
