"""A sweep's trials in a database: queued once, taken by any number of workers on any number of machines, never lost."""

import math
import os
import socket
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url

from lightning_score.sweep.spec import Sweep
from lightning_score.utils import InputError, require

SLOT, WORKER, ERROR, METRICS, SETTINGS, SURPLUS = "slot", "worker", "error", "metrics", "settings", "surplus"
"""Attributes of a trial: its place in the queue; who runs it; why it failed; what it measured; its settings; not needed."""
INTERRUPTED = "interrupted"
"""Attribute of a trial that was stopped from outside."""
HEARTBEAT, GRACE = 10, 60
"""Seconds between two signs of life of a worker, and without one until its trial is another's."""
RETRIES = 3
"""How often a trial is begun again after its worker died: one that kills its workers is given up then."""
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

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
        make: whether to make database and study where they are not there.

    Raises:
        InputError: the database cannot be reached, or holds another sweep under this name.
    """

    def __init__(self, sweep: Sweep, url: str, name: str, make: bool = False):
        self.sweep, self.url, self.name = sweep, url, name
        for wait in (0.5, 1.5, None) if make else (None,):  # two machines that make the tables at once disturb each other
            try:
                self._study = self._open(make)
                break
            except Exception as error:  # SQLAlchemy's, the driver's and Optuna's own
                if wait is not None:
                    time.sleep(wait)
                    continue
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                reason = "pip install 'psycopg[binary]'" if isinstance(error.__cause__ or error, ImportError) else reason
                address = _without_password(url)
                raise InputError(f"--storage {address}: this database cannot be used ({reason})") from error
        known = self._study.user_attrs.get("sweep")
        if known is None:
            self._study.set_user_attr("sweep", sweep.text)
        require(
            known is None or known == sweep.text,
            f"the sweep {name} was begun with another version of its file; give a new --name, or the old file",
        )

    def _open(self, make: bool) -> optuna.Study:
        settings = {"connect_args": {"timeout": 60}} if self.url.startswith("sqlite") else {"pool_pre_ping": True}
        storage = RDBStorage(
            _with_driver(self.url),
            engine_kwargs=settings,
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=self._requeue,
            skip_table_creation=not make,
        )
        if not make:
            return optuna.load_study(storage=storage, study_name=self.name, sampler=self._sampler())
        return optuna.create_study(
            storage=storage, study_name=self.name, sampler=self._sampler(), direction=self._direction, load_if_exists=True
        )

    @property
    def _direction(self) -> str:
        return "maximize" if self.sweep.maximize else "minimize"

    def _sampler(self) -> optuna.samplers.BaseSampler:
        """Grids and random draws are queued with their values; the others are chosen when a worker takes them."""
        if self.sweep.method == "bayes":
            return optuna.samplers.TPESampler(multivariate=True, constant_liar=True)
        return optuna.samplers.RandomSampler()

    def remember(self, key: str, value: Any) -> Any:
        """What was said under a key first, for ever."""
        known = self._study.user_attrs.get(key)
        if known is None:
            self._study.set_user_attr(key, value)
        return value if known is None else known

    def queue(self, count: int) -> int:
        """Queues trials until there are `count` in all; returns how many are new."""
        there = {trial.user_attrs[SLOT] for trial in self.trials() if SLOT in trial.user_attrs}
        new = [slot for slot in range(count) if slot not in there]
        values = self._values(count) if new else []
        for slot in new:
            self._study.enqueue_trial(values[slot], user_attrs={SLOT: slot})
        return len(new)

    def _values(self, count: int) -> list[dict[str, Any]]:
        """The parameters of the first `count` trials, as far as they are known beforehand."""
        if self.sweep.method == "grid":
            return self.sweep.grid()
        if self.sweep.method == "bayes":
            return [{} for _ in range(count)]
        drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        trials = [drawn.ask() for _ in range(count)]
        for trial in trials:
            self.sweep.settings(trial)
        return [trial.params for trial in trials]

    def trials(self) -> list[FrozenTrial]:
        """All trials that count: not those that were begun again, nor those that were not needed."""
        found = self._study.get_trials(deepcopy=False)
        again = {number for trial in found for number in trial.system_attrs.get("retry_history", [])}
        return [trial for trial in found if trial.number not in again and SURPLUS not in trial.user_attrs]

    def left(self) -> int:
        """The number of trials that wait or run."""
        return sum(trial.state not in ENDED for trial in self.trials())

    def release(self, dead: Callable[[int], bool] | None = None) -> None:
        """Gives back the trials of workers that died on this machine, and of those elsewhere that are silent; and those that
        ended without a word, because their worker was stopped before it could give them back itself.

        Args:
            dead: whether a process of this machine, by its number, is dead.
        """
        host = socket.gethostname()
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            where, _, process = str(trial.user_attrs.get(WORKER, "")).rpartition(":")
            if where == host and (dead or _is_dead)(int(process)):
                self._again(trial)
        optuna.storages.fail_stale_trials(self._study)
        for trial in self.trials():
            if trial.state == TrialState.FAIL and ERROR not in trial.user_attrs:
                self._requeue(self._study, trial)

    def _requeue(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Lets a trial wait again with its values, unless it has killed its workers too often."""
        history = [*trial.system_attrs.get("retry_history", []), trial.number]
        known = study.get_trials(deepcopy=False)
        if sum(not known[number].user_attrs.get(INTERRUPTED) for number in history) <= RETRIES:
            RetryHeartbeatStaleTrialCallback()(study, deepcopy(trial))  # it writes into what it is given

    def _again(self, trial: FrozenTrial) -> None:
        with suppress(Exception):  # another worker was quicker
            self._study.tell(trial.number, state=TrialState.FAIL)
            self._requeue(self._study, trial)

    def work(self, objective: Objective) -> None:
        """Takes trials from the queue until none are left.

        Args:
            objective: what a trial measures, from this study, the trial and its settings.
        """
        self.release()
        while self.left():
            if self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                self._one(objective)
            else:
                time.sleep(0.5)  # others are at work; should one of them die, its trial comes back
            self.release()

    def _one(self, objective: Objective) -> None:
        """Runs the next trial; one that is interrupted goes back into the queue."""
        numbers: list[int] = []
        try:
            self._study.optimize(lambda trial: self._run(trial, objective, numbers), n_trials=1, catch=(Exception,))
        except KeyboardInterrupt:
            for number in numbers:
                self._requeue(self._study, self._study.trials[number])
            raise

    def _run(self, trial: Trial, objective: Objective, numbers: list[int]) -> float:
        if SLOT not in trial.user_attrs or self._is_taken(trial):
            trial.set_user_attr(SURPLUS, True)
            raise _Surplus
        numbers.append(trial.number)
        trial.set_user_attr(WORKER, f"{socket.gethostname()}:{os.getpid()}")
        settings = self.sweep.settings(trial)
        trial.set_user_attr(SETTINGS, settings)
        trial.set_user_attr(INTERRUPTED, False)
        try:
            value = objective(self, trial, settings)
            require(not math.isnan(value), f"{self.sweep.metric} is not a number")
        except optuna.TrialPruned:
            raise
        except KeyboardInterrupt:
            trial.set_user_attr(INTERRUPTED, True)
            raise
        except Exception as error:
            trial.set_user_attr(ERROR, " ".join(str(error).split())[:500] or type(error).__name__)
            raise
        return value

    def _is_taken(self, trial: Trial) -> bool:
        """Whether an earlier trial has the same place in the queue: two machines queued it at once."""
        slot = trial.user_attrs[SLOT]
        return any(
            other.number < trial.number and other.user_attrs.get(SLOT) == slot and SURPLUS not in other.user_attrs
            for other in self.trials()
        )

    def stops(self, trial: Trial) -> bool:
        """Whether early termination ends a trial, by what it has reported so far."""
        if self.sweep.hyperband is None:
            return False
        sign = -1 if self.sweep.maximize else 1
        histories = {
            other.number: [sign * value for _, value in sorted(other.intermediate_values.items())] for other in self.trials()
        }
        return self.sweep.hyperband.stops(histories[trial.number], [values for values in histories.values() if values])

    def importances(self) -> dict[str, float]:
        """The share of each parameter in the variance of the results (functional ANOVA, Hutter et al. 2014).

        Empty with fewer than four results, or where they do not differ.
        """
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
            return {}
        with suppress(ValueError, RuntimeError):
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            return optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {}


def _with_driver(url: str) -> str:
    """PostgreSQL's usual address with the name of the driver, which SQLAlchemy's versions choose differently."""
    for usual in ("postgresql://", "postgres://"):
        if url.startswith(usual):
            return f"postgresql+psycopg://{url.removeprefix(usual)}"
    return url


def _without_password(url: str) -> str:
    """A database's address for the eyes of others."""
    with suppress(Exception):
        return make_url(url).render_as_string(hide_password=True)
    return "(not an address)"


def _is_dead(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _is_zombie(process)


def _is_zombie(process: int) -> bool:
    """Whether a process has ended, though its parent has not noticed (Linux)."""
    with suppress(OSError), open(f"/proc/{process}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"
    return False
