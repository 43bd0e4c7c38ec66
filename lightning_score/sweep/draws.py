"""Draws the settings of a sweep's trials."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FixedTrial, FrozenTrial

from lightning_score.errors import InputError, require
from lightning_score.sweep.spec import Sweep
from lightning_score.sweep.users_study import UsersStudy

KNOWN = 1000
"""Maximal number of random trials that are drawn for the checks."""


def make_sampler(sweep: Sweep, seed: int) -> BaseSampler:
    """The sampler of settings when a worker takes a trial; grids and random trials are drawn before and queued."""
    if sweep.scheduler is not None and sweep.scheduler.optimizer:
        return UsersStudy(sweep.scheduler)
    return SeededBayes(seed) if sweep.follows_results else RandomSampler(seed=seed)


@dataclass(frozen=True)
class Plan:
    """The planned trials of a sweep.

    Attributes:
        count: their number.
        settings: their settings if known in advance; for bayes and custom, examples.
        seed: of the draws.
    """

    count: int
    settings: list[dict[str, Any]]
    seed: int = 0


def plan_trials(sweep: Sweep, count: int | None, seed: int | None) -> Plan:
    """Plans the trials of a sweep.

    Args:
        sweep: the sweep.
        count: `--count`.
        seed: of the draws; None: 0.

    Raises:
        InputError: the number is missing or above the file's `run_cap`; a grid is too large; a grid with a seed.
    """
    grid, cap, total = sweep.method == "grid", sweep.run_cap, count or sweep.run_cap
    require(not (count and cap and count > cap), f"--count {count}: run_cap in the file allows {cap}")
    require(seed is None or not grid, f"--seed {seed}: method grid draws nothing; leave it out")
    if sweep.scheduler is not None and sweep.scheduler.optimizer:
        require(seed is None, f"--seed {seed}: the study of `{sweep.scheduler.optimizer}` has its own seed; leave it out")
        sweep.scheduler.optuna()
    if grid:
        total = len(sweep.grid()[:total])
    if total is None:
        raise InputError(f"method {sweep.method} has no end: give --count 20, or run_cap in the file")
    if sweep.follows_results:
        return Plan(total, sweep.drawn or [settings for _, _, settings in sweep.examples()], seed or 0)
    values = known_values(sweep, total if grid else min(total, KNOWN), seed or 0)
    return Plan(total, [sweep.settings(FixedTrial(each)) for each in values], seed or 0)


def known_values(sweep: Sweep, count: int, seed: int) -> list[dict[str, Any]]:
    """The first trials as Optuna's parameters; a larger count only appends trials.

    Those of methods bayes and custom are empty until they run.

    Args:
        sweep: the sweep.
        count: of trials.
        seed: of the draws.
    """
    if sweep.method == "grid":
        return sweep.grid()[:count]
    if sweep.follows_results:
        return [{} for _ in range(count)]
    study = optuna.create_study(sampler=RandomSampler(seed=seed))
    trials = [study.ask() for _ in range(count)]
    for trial in trials:
        sweep.settings(trial)
    return [trial.params for trial in trials]


class SeededBayes(TPESampler):
    """The tree-structured Parzen estimator of all parameters together (Bergstra et al. 2011; Falkner et al. 2018).

    The draws depend only on the seed, the trial's place in the queue and the trials that have ended: a single worker draws
    the same trials again, even if the sweep is interrupted and resumed. With several workers the first ten trials are the
    same; the draws after them depend on which trials end first.

    Args:
        seed: the seed.
    """

    def __init__(self, seed: int):
        super().__init__(seed=seed)
        self._sweep_seed = seed

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Reseeds for each trial, so that two workers do not draw the same values."""
        parts = [self._sweep_seed, trial.user_attrs.get("slot", trial.number)]
        seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
        super().__init__(multivariate=True, constant_liar=True, seed=seed)
        super().before_trial(study, trial)
