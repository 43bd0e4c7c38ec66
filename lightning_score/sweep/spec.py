"""A sweep file in W&B's format, read and checked."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_score.errors import require
from lightning_score.runs.folders import check_name
from lightning_score.runs.yaml_files import read_mapping
from lightning_score.sweep.macros import DEFAULT
from lightning_score.sweep.parameters import LARGEST, Parameter, parameter

METHODS = ("grid", "random", "bayes")
KNOWN = {"program", "method", "metric", "parameters", "command", "name", "description", "project", "entity", "run_cap",
         "early_terminate", "controller", "apiVersion", "kind", "settings", "imageuri", "job"}  # fmt: skip
Keys = tuple[str, ...]
"""The keys of a parameter: one, or those of the mappings around a nested parameter and its own; a key may hold dots."""


@dataclass(frozen=True)
class Hyperband:
    """W&B's early termination: at every band, trials that are not among the best 1/eta are stopped.

    Attributes:
        bands: the numbers of measurements at which trials are compared, ascending.
        eta: a fraction 1/eta of the trials continues.
        strict: compare the value at the band instead of the best value so far.
    """

    bands: tuple[int, ...]
    eta: float
    strict: bool

    def should_stop(self, history: list[float], others: list[list[float]]) -> bool:
        """Whether to stop a trial.

        Args:
            history: its measurements so far; smaller is better.
            others: the measurements of all trials, including this one.
        """
        reached = [band for band in self.bands if band <= len(history)]
        if not reached:
            return False
        band = reached[-1]
        there = sorted(values[band - 1] for values in others if len(values) >= band)
        threshold = there[min(int(len(there) / self.eta), len(there) - 1)] if there else math.inf
        return (history[band - 1] if self.strict else min(history)) > threshold


@dataclass(frozen=True)
class Sweep:
    """A sweep.

    Attributes:
        name: its name.
        text: the file.
        method: grid, random or bayes.
        metric: the metric to optimize; None in a file without a metric.
        maximize: whether larger values are better.
        parameters: by their keys.
        command: the words of a trial's command, with W&B's macros.
        program: W&B's `program`.
        run_cap: maximal number of trials, or None.
        hyperband: early termination, or None.
    """

    name: str
    text: str
    method: str
    metric: str | None
    maximize: bool
    parameters: dict[Keys, Parameter]
    command: tuple[str, ...]
    program: str | None
    run_cap: int | None
    hyperband: Hyperband | None

    def grid(self) -> list[dict[str, Any]]:
        """All combinations, as Optuna's parameters; the last parameter changes fastest.

        Raises:
            InputError: a parameter's values cannot be listed, or the grid is too large.
        """
        lists: dict[str, Any] = {}
        for keys, law in self.parameters.items():
            if len(law.examples()) == 1 and law.grid() is None:
                continue
            values = law.grid()
            require(
                values is not None,
                f"{dotted(keys)}: method grid takes value, values, int_uniform or q_uniform; use random or bayes",
            )
            lists[optuna_name(keys)] = values
        size = math.prod(len(values) for values in lists.values())
        require(size <= LARGEST, f"a grid of {size} trials: at most {LARGEST}; give fewer values, or method random")
        return [dict(zip(lists, each, strict=True)) for each in itertools.product(*lists.values())]

    def settings(self, trial: Any) -> dict[str, Any]:
        """The settings of an Optuna trial; those of nested parameters are in dictionaries, as W&B gives them."""
        return nest({keys: law.suggest(trial, optuna_name(keys)) for keys, law in self.parameters.items()})

    def examples(self) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        """Every parameter and value to check, with the settings of a trial that has this value."""
        base = {keys: law.examples()[0] for keys, law in self.parameters.items()}
        for keys, law in self.parameters.items():
            for value in law.examples():
                yield dotted(keys), value, nest({**base, keys: value})

    @property
    def varied(self) -> list[str]:
        """The dotted names of the parameters with more than one value."""
        return [dotted(keys) for keys, law in self.parameters.items() if len(law.examples()) > 1]


def dotted(keys: Keys) -> str:
    """A parameter's name on the command line."""
    return ".".join(keys)


def optuna_name(keys: Keys) -> str:
    """A parameter's name in Optuna's database."""
    return "\0".join(keys)


def from_optuna(name: str) -> str:
    """The dotted name of a parameter of Optuna's database."""
    return dotted(tuple(name.split("\0")))


def nest(values: Mapping[Keys, Any]) -> dict[str, Any]:
    """Values by their keys as nested dictionaries."""
    nested: dict[str, Any] = {}
    for (*parents, last), value in values.items():
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return nested


def read_sweep_file(path: str) -> Sweep:
    """Reads a sweep file.

    Raises:
        InputError: it is missing, invalid, or has keys that W&B does not know.
    """
    file = Path(path)
    require(file.is_file(), f"{path}: there is no such sweep file; an example is sweeps/eps.yaml")
    _, text = read_mapping(path, "sweep file", "method: grid")
    entries = yaml.safe_load(text)  # like W&B, which reads 1e-3 as text
    return from_entries(entries, path, text, file.stem)


def from_entries(entries: Any, path: str, text: str, name: str) -> Sweep:
    """A sweep from the entries of its file.

    Args:
        entries: the parsed file.
        path: the file's path, for errors.
        text: the file's text.
        name: the name if the entries have none.

    Raises:
        InputError: they are invalid, or have keys that W&B does not know.
    """
    require(isinstance(entries, dict), f"{path}: not a sweep file; it must be a mapping with method and parameters")
    unknown = sorted(map(str, set(entries) - KNOWN))
    require(not unknown, f"{path}: {', '.join(unknown)}: unknown; allowed are {', '.join(sorted(KNOWN))}")
    method = entries.get("method")
    require(method in METHODS, f"{path}: method={method!r}: choose one of {', '.join(METHODS)}")
    given = entries.get("parameters")
    require(
        isinstance(given, dict) and given,
        f"{path}: needs parameters, as 'parameters: {{model.sampler.steps: {{values: [5]}}}}'",
    )
    metric, maximize = _metric(path, entries.get("metric"), method)
    name = str(entries.get("name") or name)
    check_name(name, f"{path}: name")
    return Sweep(
        name=name,
        text=text,
        method=method,
        metric=metric,
        maximize=maximize,
        parameters=dict(sorted(_parameters(given))),
        command=_command(path, entries.get("command")),
        program=entries.get("program"),
        run_cap=_whole(path, "run_cap", entries.get("run_cap"), 1),
        hyperband=_hyperband(path, entries.get("early_terminate"), metric),
    )


def _parameters(given: Mapping[str, Any], parents: Keys = ()) -> Iterator[tuple[Keys, Parameter]]:
    for name, entry in given.items():
        keys = (*parents, str(name))
        if isinstance(entry, Mapping) and set(entry) == {"parameters"} and isinstance(entry["parameters"], Mapping):
            yield from _parameters(entry["parameters"], keys)
        else:
            yield keys, parameter(dotted(keys), entry)


def _metric(path: str, given: Any, method: str) -> tuple[str | None, bool]:
    if given is None:
        require(method != "bayes", f"{path}: method bayes needs a metric, as 'metric: {{name: val/loss, goal: minimize}}'")
        return None, False
    named = isinstance(given, dict) and isinstance(given.get("name"), str)
    require(named, f"{path}: metric={given!r}: must have a name, as {{name: val/loss, goal: minimize}}")
    unknown = sorted(map(str, set(given) - {"name", "goal", "target", "impute", "impute_while_running"}))
    require(not unknown, f"{path}: metric {', '.join(unknown)}: unknown; allowed are name and goal")
    goal = given.get("goal", "minimize")
    require(goal in ("minimize", "maximize"), f"{path}: metric goal={goal!r}: must be minimize or maximize")
    return given["name"], goal == "maximize"


def _command(path: str, given: Any) -> tuple[str, ...]:
    require(
        given is None or (isinstance(given, list) and len(given) > 0), f"{path}: command={given!r}: must be a list of words"
    )
    return tuple(str(word) for word in given or DEFAULT)


def _whole(path: str, name: str, value: Any, least: int) -> int | None:
    fine = value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least)
    require(fine, f"{path}: {name}={value!r}: must be an integer of at least {least}")
    return value


def _hyperband(path: str, given: Any, metric: str | None) -> Hyperband | None:
    if given is None:
        return None
    fine = isinstance(given, dict) and given.get("type") == "hyperband"
    require(fine, f"{path}: early_terminate={given!r}: type must be hyperband")
    unknown = sorted(map(str, set(given) - {"type", "min_iter", "max_iter", "s", "eta", "strict"}))
    require(
        not unknown,
        f"{path}: early_terminate {', '.join(unknown)}: unknown; allowed are type, min_iter, max_iter, s, eta, strict",
    )
    require(metric is not None, f"{path}: early_terminate needs a metric")
    strict = given.get("strict", False)
    require(isinstance(strict, bool), f"{path}: early_terminate strict={strict!r}: must be true or false")
    eta = given.get("eta", 3)
    require(isinstance(eta, (int, float)) and eta > 1, f"{path}: early_terminate eta={eta!r}: must be above 1, as 3")
    low, high = (_whole(path, f"early_terminate {name}", given.get(name), 1) for name in ("min_iter", "max_iter"))
    require(low or high, f"{path}: early_terminate needs min_iter or max_iter, a number of measurements")
    if high is not None:
        brackets = _whole(path, "early_terminate s", given.get("s"), 1)
        require(brackets is not None, f"{path}: early_terminate: max_iter needs s, the number of bands below it")
        bands = [int(high / eta**k) for k in range(1, brackets + 1) if high / eta**k >= 1]
    else:
        bands = [int(low * eta**k) for k in range(64) if low * eta**k < 1e9]
    require(bands, f"{path}: early_terminate has no band; raise max_iter or lower eta")
    return Hyperband(tuple(sorted(set(bands))), float(eta), strict)
