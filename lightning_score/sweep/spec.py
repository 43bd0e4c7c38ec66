"""A sweep file in W&B's format, read and checked."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import BaseTrial

from lightning_score.commands.arguments import Arguments
from lightning_score.errors import require
from lightning_score.runs.folders import check_name
from lightning_score.runs.yaml_files import read_mapping
from lightning_score.sweep.macros import ARGS, DEFAULT, as_text, expand_macros, flatten, options, split_options
from lightning_score.sweep.objectives import EXAMPLE, Constraint, Objective, read_constraints, read_objectives
from lightning_score.sweep.parameters import LARGEST, Parameter, check_keys, naming, parameter
from lightning_score.sweep.scheduler import Scheduler, read_scheduler

METHODS = ("grid", "random", "bayes", "custom")
KNOWN = {"program", "method", "metric", "metrics", "metric_constraints", "parameters", "command", "name", "description",
         "project", "entity", "run_cap", "early_terminate", "controller", "apiVersion", "kind", "settings", "imageuri",
         "image_uri", "job", "scheduler"}  # fmt: skip
COMMANDS = ("fit", "validate", "test")
"""The commands that trials may run."""
PYTHON = re.compile(r"(.*/)?(env|python[\d.]*|-\w+)")
"""Words before the name of the program."""


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
        text: the file, and the file that its scheduler names, as comments.
        method: grid, random, bayes or custom.
        objectives: the metrics to optimize; none in a file without a metric.
        constraints: bounds on metrics that the result must satisfy.
        parameters: by their names in Optuna's database, where NUL joins the keys of a nested one; a key may hold dots.
        command: the words of a trial's command, with W&B's macros.
        program: W&B's `program`.
        run_cap: maximal number of trials, or None.
        hyperband: early termination, or None.
        scheduler: who draws the settings, or None.
    """

    name: str
    text: str
    method: str
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    parameters: dict[str, Parameter]
    command: tuple[str, ...]
    program: str | None
    run_cap: int | None
    hyperband: Hyperband | None
    scheduler: Scheduler | None = None

    def grid(self) -> list[dict[str, Any]]:
        """All combinations, as Optuna's parameters; the last parameter changes fastest.

        Raises:
            InputError: a parameter's values cannot be listed, or the grid is too large.
        """
        lists: dict[str, Any] = {}
        for name, law in self.parameters.items():
            values = law.grid()
            if values is None and len(law.examples()) == 1:
                continue
            takes = "method grid takes value, values, int_uniform or q_uniform; use random or bayes"
            require(values is not None, f"{dotted(name)}: {takes}")
            lists[name] = values
        size = math.prod(len(values) for values in lists.values())
        require(size <= LARGEST, f"a grid of {size} trials: at most {LARGEST}; give fewer values, or method random")
        return [dict(zip(lists, each, strict=True)) for each in itertools.product(*lists.values())]

    def settings(self, trial: BaseTrial) -> dict[str, Any]:
        """The settings of an Optuna trial by their dotted names."""
        if self.scheduler is not None and self.scheduler.optimizer:
            return self.scheduler.settings(trial)
        if self.scheduler is not None and self.scheduler.search_space:
            return self.scheduler.space(trial)
        return _settings({name: law.suggest(trial, name) for name, law in self.parameters.items()})

    def examples(self) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        """Every parameter and value to check, with the settings of a trial that has this value."""
        base = {name: law.examples()[0] for name, law in self.parameters.items()}
        for name, law in self.parameters.items():
            for value in law.examples():
                yield dotted(name), value, _settings({**base, name: value})

    @property
    def metric(self) -> str | None:
        """The first metric to optimize; None in a file without a metric."""
        return self.objectives[0].name if self.objectives else None

    @property
    def maximize(self) -> bool:
        """Whether larger values of the first metric are better."""
        return bool(self.objectives) and self.objectives[0].maximize

    @cached_property
    def drawn(self) -> list[dict[str, Any]]:
        """Settings from all over a search space that a function draws; empty for a fixed list of parameters."""
        return self.scheduler.drawn() if self.scheduler is not None and self.scheduler.search_space else []

    @property
    def search(self) -> str:
        """The method for a message, and who draws the settings."""
        if self.scheduler is None:
            return self.method
        seedless = self.scheduler.engine == "wandb" and self.method != "grid"
        note = ", drawn here with a seed, which W&B's engine has not" if seedless else ""
        return f"{self.method} {self.scheduler.text}{note}"

    @property
    def takes_seed(self) -> bool:
        """Whether settings are drawn here, with a seed; the user's own study has its own."""
        return self.method != "grid" and (self.scheduler is None or not self.scheduler.optimizer)

    @property
    def takes_steps(self) -> bool:
        """Whether values are reported at optimizer steps, as W&B gives them to the user's pruner, or are counted."""
        return self.scheduler is not None and bool(self.scheduler.optimizer)

    @property
    def follows_results(self) -> bool:
        """Whether the settings of a trial depend on the results of those before it, so that they are not known before."""
        return self.method in ("bayes", "custom")

    @cached_property
    def varied(self) -> list[str]:
        """The dotted names of the settings with more than one value; a setting that some trials lack has two."""
        if self.drawn:
            names = dict.fromkeys(name for settings in self.drawn for name in settings)
            return [name for name in names if len({as_text(settings.get(name)) for settings in self.drawn}) > 1]
        return [dotted(name) for name, law in self.parameters.items() if len(law.examples()) > 1]

    def arguments(self, settings: Mapping[str, Any]) -> Arguments:
        """A trial's command with the options of its settings.

        Raises:
            InputError: the sweep runs another program, or a setting does not reach it.
        """
        words = expand_macros(self.command, self.program)
        names = [i for i, word in enumerate(words) if Path(word).name in ("lightning_score", "__main__.py")]
        before, after = (words[: names[0]], words[names[0] + 1 :]) if names else (words, [""])
        ours = after[:1] != [] and after[0] in COMMANDS and all(PYTHON.fullmatch(word) for word in before)
        must = f"must run `python -m lightning_score` with {', '.join(COMMANDS)}"
        fix = "wandb agent runs other programs, and sets variables"
        require(ours, f"command: {' '.join(self.command)}: {must}; {fix}")
        end = after.index(ARGS) if ARGS in after else len(after)
        rest = after[end + 1 :]
        ordered, fixed = split_options(Arguments.without_command(after[1:end] + rest))
        _, last = split_options(Arguments.without_command(rest))
        reached = {option.name: option for option in options({**(settings if ARGS in after else {}), **last})}
        for wanted in options(settings):
            found = reached.get(wanted.name)
            instead = f" but {found.words()[0]}" if found else ""
            lost = f"command: does not give {wanted.words()[0]}{instead} to the program"
            require(found == wanted, f'{lost}: end it with "${{args}}", and leave {wanted.name} out of it')
        merged = {**fixed, **settings}
        if "ckpt_path" in merged:  # `latest` may point to another run before the sweep ends
            from lightning_score.runs.pretrained import pinned  # takes seconds to import, with torch

            merged["ckpt_path"] = pinned(as_text(merged["ckpt_path"]))
        return Arguments(after[0], (*ordered, *options(merged)))


def dotted(name: str) -> str:
    """The dotted name of a parameter of Optuna's database, as on the command line."""
    return name.replace("\0", ".")


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(flatten({dotted(name): value for name, value in values.items()}))


def read_sweep_file(path: str) -> Sweep:
    """Reads a sweep file.

    Raises:
        InputError: it is missing, invalid, or has keys that W&B does not know.
    """
    file = Path(path)
    require(file.is_file(), f"{path}: there is no such sweep file; an example is sweeps/eps.yaml")
    _, text = read_mapping(path, "sweep file", "method: grid")
    sweep = from_entries(yaml.safe_load(text), path, text, file.stem)  # like W&B, which reads 1e-3 as text
    code = "" if sweep.scheduler is None else sweep.scheduler.code
    return replace(sweep, text=text.removesuffix(code) + code)  # the file in the folder of a sweep has the code already


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
    with naming(path):
        require(isinstance(entries, dict), "not a sweep file; it must be a mapping with method and parameters")
        check_keys(entries, KNOWN)
        method, given = entries.get("method"), entries.get("parameters")
        require(method in METHODS, f"method={method!r}: choose one of {', '.join(METHODS)}")
        name, command = str(entries.get("name") or name), entries.get("command")
        check_name(name, "name")
        scheduler = read_scheduler(entries, name, Path(path).parent)
        given = {} if given is None and scheduler is not None and scheduler.search_space else given
        example = "parameters: {model.sampler.steps: {values: [5]}}"
        listed = isinstance(given, dict) and (len(given) > 0 or (scheduler is not None and bool(scheduler.search_space)))
        require(listed, f"needs parameters, as '{example}'")
        objectives = read_objectives(entries)
        laws = dict(sorted(_parameters(given)))
        if scheduler is not None and scheduler.engine == "wandb" and method == "grid":
            laws = {name: law.listed() for name, law in laws.items()}
        needs = method in ("bayes", "custom") and not objectives
        require(not needs, f"method={method}: needs a metric, as 'metric: {EXAMPLE}'")
        listed = command is None or (isinstance(command, list) and len(command) > 0)
        require(listed, f"command={command!r}: must be a list of words")
        return Sweep(
            name=name,
            text=text,
            method=method,
            objectives=objectives,
            constraints=read_constraints(entries.get("metric_constraints")),
            parameters=laws,
            command=tuple(map(str, command or DEFAULT)),
            program=entries.get("program"),
            run_cap=_count("run_cap", entries.get("run_cap")),
            hyperband=_hyperband(entries.get("early_terminate"), len(objectives)),
            scheduler=scheduler,
        )


def _parameters(given: Mapping[str, Any], parents: str = "") -> Iterator[tuple[str, Parameter]]:
    for key, entry in given.items():
        name = f"{parents}{key}"
        if isinstance(entry, Mapping) and set(entry) == {"parameters"} and isinstance(entry["parameters"], Mapping):
            yield from _parameters(entry["parameters"], f"{name}\0")
        else:
            yield name, parameter(dotted(name), entry)


def _count(name: str, value: Any) -> int | None:
    fine = value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)
    require(fine, f"{name}={value!r}: must be an integer of at least 1")
    return value


def _hyperband(given: Any, metrics: int) -> Hyperband | None:
    if given is None:
        return None
    hyperband = isinstance(given, dict) and given.get("type") == "hyperband"
    require(hyperband, f"early_terminate={given!r}: type must be hyperband")
    with naming("early_terminate"):
        check_keys(given, {"type", "min_iter", "max_iter", "s", "eta", "strict"})
        require(metrics > 0, "needs a metric")
        fix = "leave it out, or give metric instead of metrics"
        require(metrics == 1, f"compares trials by one metric, not by {metrics}; {fix}")
        strict, eta = given.get("strict", False), given.get("eta", 3)
        require(isinstance(strict, bool), f"strict={strict!r}: must be true or false")
        require(isinstance(eta, (int, float)) and eta > 1, f"eta={eta!r}: must be above 1, as 3")
        low, high = (_count(name, given.get(name)) for name in ("min_iter", "max_iter"))
        if high is not None:
            brackets = _count("s", given.get("s"))
            require(brackets is not None, "max_iter needs s, the number of bands below it")
            bands = [high / eta**k for k in range(1, (brackets or 0) + 1)]
        else:
            require(low is not None, "needs min_iter or max_iter, a number of measurements")
            bands = [(low or 0) * eta**k for k in range(64)]
        whole = {int(band) for band in bands if 1 <= band < 1e9}
        require(len(whole) > 0, "has no band; raise max_iter or lower eta")
        return Hyperband(tuple(sorted(whole)), float(eta), strict)
