"""Draws the settings of a sweep's trials."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState

from lightning_score.errors import InputError, require
from lightning_score.sweep.attempts import SETTINGS, SLOT
from lightning_score.sweep.spec import Sweep
from lightning_score.sweep.users_study import DrawnBefore, UsersStudy

KNOWN = 1000
"""Maximal number of random trials that are drawn for the checks."""
LEARNED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
"""States of trials that the estimator learns from."""
AGAIN, AT_RANDOM = 20, 500
"""How often settings are drawn again that another trial has: by the estimator, and then at random."""


def make_sampler(sweep: Sweep, seed: int) -> BaseSampler:
    """The sampler of settings when a worker takes a trial; grids and random trials are drawn before and queued."""
    if sweep.scheduler is not None and sweep.scheduler.optimizer:
        return UsersStudy(sweep.scheduler)
    return SeededBayes(sweep, seed) if sweep.follows_results else RandomSampler(seed=seed)


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
    if sweep.follows_results and sweep.takes_seed and total is not None:  # it draws no combination twice
        total = min(total, _combinations(sweep, total))
    if total is None:
        raise InputError(f"method {sweep.method} has no end: give --count 20, or run_cap in the file")
    if sweep.follows_results:
        return Plan(total, sweep.drawn or [settings for _, _, settings in sweep.examples()], seed or 0)
    values = known_values(sweep, total if grid else min(total, KNOWN), seed or 0)
    return Plan(total, [sweep.settings(FixedTrial(each)) for each in values], seed or 0)


def _combinations(sweep: Sweep, otherwise: int) -> int:
    """The number of combinations of the parameters' values; another number if it is not known, or trials may repeat."""
    if sweep.scheduler is None or not (sweep.scheduler.optimizer or sweep.scheduler.search_space):
        with suppress(InputError):
            return len(sweep.grid())
    return otherwise


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


class SeededBayes(DrawnBefore):
    """The tree-structured Parzen estimator of all parameters together (Bergstra et al. 2011; Falkner et al. 2018).

    With several objectives the best trials are those that add most to the hypervolume of the front (Ozaki et al. 2022).
    Trials that violate a constraint are worse than all others.

    The draws depend only on the seed, the trial's place in the queue, and the places and results of the trials that have
    ended: a single worker draws the same trials again, even if the sweep is interrupted and resumed. With several workers
    the first ten, which are random, are the same; the draws after them depend on which trials end first. No trial has the
    settings of another one while there are others left.

    Args:
        sweep: the sweep.
        seed: the seed.
    """

    def __init__(self, sweep: Sweep, seed: int):
        self._sweep, self._seed = sweep, seed

    def draw(self, study: Study, trial: FrozenTrial) -> None:
        """Draws the parameters of a trial, and stores its settings."""
        others = [each for each in study.get_trials(deepcopy=False) if each.number != trial.number]
        drawn, settings = self._draw(study, others, trial.user_attrs.get(SLOT, trial.number))
        trial.params, trial.distributions = drawn.params, drawn.distributions
        study._storage.set_trial_user_attr(trial._trial_id, SETTINGS, settings)  # for the worker that draws next

    def _draw(self, study: Study, others: Sequence[FrozenTrial], slot: int) -> tuple[Trial, dict[str, Any]]:
        """A trial of a new study in memory, which knows the other trials in the order of the queue, and its settings."""
        settings: dict[str, Any] = {}
        known = sorted((each for each in others if each.state in LEARNED), key=lambda each: each.user_attrs.get(SLOT, -1))
        seen = {_as_json(each.user_attrs.get(SETTINGS)) for each in others}
        seed = int(np.random.SeedSequence([self._seed, slot]).generate_state(1)[0])
        copy = optuna.create_study(directions=study.directions, sampler=self._sampler(seed))
        copy.add_trials(map(_copy_of, known))
        for repeats in range(AGAIN + AT_RANDOM):
            drawn = copy.ask()
            try:
                settings = self._sweep.settings(drawn)
            except InputError:  # of the user's search space; it is raised again when the trial runs
                break
            if _as_json(settings) not in seen:
                break
            if repeats == AGAIN:
                copy.sampler = RandomSampler(seed=seed)
        return drawn, settings

    def _sampler(self, seed: int) -> TPESampler:
        conditional = self._sweep.scheduler is not None and bool(self._sweep.scheduler.search_space)
        return TPESampler(multivariate=True, group=conditional, constant_liar=True, seed=seed)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draws what the user's search space asks for only at the second time."""
        return RandomSampler(seed=self._seed).sample_independent(study, trial, param_name, param_distribution)


def _copy_of(trial: FrozenTrial) -> FrozenTrial:
    """What the estimator uses of a trial."""
    ended = trial.state == TrialState.COMPLETE
    return optuna.create_trial(
        state=trial.state,
        values=trial.values if ended else None,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=trial.intermediate_values,
        constraints=trial.constraints,
    )


def _as_json(settings: Any) -> str:
    return json.dumps(settings, sort_keys=True)
