"""What a sweep optimizes: W&B's `metric`, or several by `metrics`, and the bounds of `metric_constraints`."""

import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.exceptions import ExperimentalWarning

from lightning_score.errors import InputError, require
from lightning_score.sweep.parameters import check_keys, naming

CONSTRAINT = re.compile(r"\s*(\S+?)\s*(<=|>=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
Direction = Literal["minimize", "maximize"]
EXAMPLE = "{name: val/loss, goal: minimize}"

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=ExperimentalWarning)


@dataclass(frozen=True)
class Objective:
    """A metric to optimize.

    Attributes:
        name: the name under which it is logged.
        maximize: whether larger values are better.
        target: the sweep ends once a trial has reached it; None: it does not end early.
    """

    name: str
    maximize: bool = False
    target: float | None = None

    def is_reached(self, values: Iterable[float]) -> bool:
        """Whether one of the values of a trial has reached the target."""
        if self.target is None:
            return False
        return any(value >= self.target if self.maximize else value <= self.target for value in values)


@dataclass(frozen=True)
class Constraint:
    """A bound on a metric, as in `test/fid <= 2`.

    Attributes:
        name: the metric.
        sign: 1 for an upper bound, -1 for a lower one.
        bound: the bound.
    """

    name: str
    sign: int
    bound: float

    def violation(self, value: float) -> float:
        """How far a value is beyond the bound; positive where it is violated."""
        return self.sign * (value - self.bound)

    def __str__(self) -> str:
        return f"{self.name} {'<=' if self.sign > 0 else '>='} {self.bound:g}"


def read_objectives(entries: Mapping[str, Any]) -> tuple[Objective, ...]:
    """The objectives of a sweep file; none in a file without `metric` and `metrics`.

    Raises:
        InputError: an entry is invalid, or the file has both keys.
    """
    one, several, bayes = entries.get("metric"), entries.get("metrics"), entries.get("method") == "bayes"
    require(one is None or several is None, "metric and metrics: give one of them; metrics takes several objectives")
    if several is None:
        return () if one is None else (_objective("metric", one, bayes),)
    listed = isinstance(several, Sequence) and not isinstance(several, str) and len(several) > 1
    require(listed, f"metrics={several!r}: must be a list of at least two, as [{EXAMPLE}, ...]; metric takes one")
    found = tuple(_objective(f"metrics[{i}]", entry, bayes) for i, entry in enumerate(several))
    names = [objective.name for objective in found]
    require(len({*names}) == len(names), f"metrics: {', '.join(names)}: names must differ")
    aimed = [objective.name for objective in found if objective.target is not None]
    require(not aimed, f"metrics: {', '.join(aimed)}: target ends a sweep of one metric; leave it out")
    return found


def _objective(place: str, given: Any, bayes: bool) -> Objective:
    named = isinstance(given, Mapping) and isinstance(given.get("name"), str)
    require(named, f"{place}={given!r}: must have a name, as {EXAMPLE}")
    with naming(place):
        check_keys(given, {"name", "goal", "target", "impute", "impute_while_running"})
        for key in ("impute", "impute_while_running") if bayes else ():
            require(key not in given, f"{key}: method bayes learns nothing from trials without a result here; leave it out")
        goal = given.get("goal", "minimize")
        require(goal in ("minimize", "maximize"), f"goal={goal!r}: must be minimize or maximize")
        target = given.get("target")
        number = isinstance(target, (int, float)) and not isinstance(target, bool) and math.isfinite(target)
        require(target is None or number, f"target={target!r}: must be a number")
    return Objective(given["name"], goal == "maximize", None if target is None else float(target))


def read_constraints(given: Any) -> tuple[Constraint, ...]:
    """The bounds of `metric_constraints`, a list as ["test/fid <= 2"].

    Raises:
        InputError: an entry is no bound.
    """
    listed = given is None or (isinstance(given, Sequence) and not isinstance(given, str))
    require(listed, f"metric_constraints={given!r}: must be a list, as ['test/fid <= 2']")
    return tuple(map(_constraint, given or ()))


def _constraint(text: Any) -> Constraint:
    if match := CONSTRAINT.fullmatch(str(text)):
        return Constraint(match[1], 1 if match[2] == "<=" else -1, float(match[3]))
    raise InputError(f"metric_constraints: {text!r}: must be a metric, <= or >=, and a number, as 'test/fid <= 2'")


def directions(objectives: Sequence[Objective]) -> list[Direction]:
    """Optuna's name for the goal of each objective."""
    return ["maximize" if objective.maximize else "minimize" for objective in objectives]


def hypervolume_history(
    values: Sequence[Sequence[float]], directions: Sequence[Direction], reference: Sequence[float]
) -> list[float]:
    """The volume between a reference point and the Pareto front after each trial (Zitzler and Thiele 1998).

    `vol(union over trials of the box from the trial to the reference)`; a trial that is not better than the reference in
    every objective adds nothing.

    Args:
        values: of each trial, one for each objective; all finite.
        directions: minimize or maximize, for each objective.
        reference: the reference point.
    """
    from optuna.visualization import plot_hypervolume_history  # takes a second to import

    study = optuna.create_study(directions=directions)
    study.add_trials(optuna.create_trial(values=each) for each in values)
    return [*map(float, plot_hypervolume_history(study, reference).data[0].y)]


def reference_point(
    values: Sequence[Sequence[float]], objectives: Sequence[Objective], constraints: Sequence[Constraint] = ()
) -> list[float]:
    """The reference point of a hypervolume: the bound of an objective where a constraint gives one, else its worst value.

    Args:
        values: of each trial, one for each objective; at least one trial.
        objectives: the objectives.
        constraints: bounds on metrics.
    """
    bounds = {(each.name, each.sign): each.bound for each in constraints}
    columns = zip(objectives, zip(*values, strict=True), strict=True)
    worst = [min(column) if one.maximize else max(column) for one, column in columns]
    return [bounds.get((one.name, -1 if one.maximize else 1), value) for one, value in zip(objectives, worst, strict=True)]
