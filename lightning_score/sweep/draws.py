"""Draws the settings of a sweep's trials."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FixedTrial, FrozenTrial

from lightning_score.errors import require
from lightning_score.sweep.spec import Sweep

KNOWN = 1000
"""Maximal number of random trials that are drawn for the checks."""


def make_sampler(sweep: Sweep, seed: int) -> BaseSampler:
    """The sampler of settings when a worker takes a trial; grids and random trials are drawn before and queued."""
    return SeededBayes(seed) if sweep.method == "bayes" else RandomSampler(seed=seed)


@dataclass(frozen=True)
class Plan:
    """The planned trials of a sweep.

    Attributes:
        count: their number.
        settings: their settings if known in advance; for bayes, examples.
    """

    count: int
    settings: list[dict[str, Any]]


def plan_trials(sweep: Sweep, count: int | None, seed: int | None) -> Plan:
    """Plans the trials of a sweep.

    Args:
        sweep: the sweep.
        count: `--count`.
        seed: `--seed`.

    Raises:
        InputError: the number is missing or above the file's `run_cap`; a grid is too large; a grid with a seed.
    """
    cap = sweep.run_cap
    require(not (count and cap and count > cap), f"--count {count}: run_cap in the file allows {cap}")
    if sweep.method == "grid":
        require(seed is None, f"--seed {seed}: method grid draws nothing; leave it out")
        known = sweep.grid()
        total = min(count or len(known), cap or len(known), len(known))
        return Plan(total, [sweep.settings(FixedTrial(values)) for values in known[:total]])
    total = count or cap
    require(total is not None, f"method {sweep.method} has no end: give --count 20, or run_cap in the file")
    if sweep.method == "random":
        drawn = draw(sweep, min(total, KNOWN), seed or 0)
        return Plan(total, [sweep.settings(FixedTrial(values)) for values in drawn])
    return Plan(total, [settings for _, _, settings in sweep.examples()])


def draw(sweep: Sweep, count: int, seed: int) -> list[dict[str, Any]]:
    """The first random trials as Optuna's parameters; a larger count only appends trials."""
    study = optuna.create_study(sampler=RandomSampler(seed=seed))
    trials = [study.ask() for _ in range(count)]
    for trial in trials:
        sweep.settings(trial)
    return [trial.params for trial in trials]


class SeededBayes(BaseSampler):
    """The tree-structured Parzen estimator of all parameters together (Bergstra et al. 2011; Falkner et al. 2018).

    The draws depend only on the seed, the trial's place in the queue and the trials that have ended: a single worker draws
    the same trials again, even if the sweep is interrupted and resumed. With several workers the first ten trials are the
    same; the draws after them depend on which trials end first.

    Args:
        seed: the seed.
    """

    def __init__(self, seed: int):
        self._seed = seed
        self._sampler: BaseSampler = TPESampler(seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Reseeds for each trial, so that two workers do not draw the same values."""
        parts = [self._seed, trial.user_attrs.get("slot", trial.number)]
        seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
        self._sampler = TPESampler(multivariate=True, constant_liar=True, seed=seed)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: Any, values: Any) -> None:
        self._sampler.after_trial(study, trial, state, values)
