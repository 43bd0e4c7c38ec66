"""Checks a sweep before its first trial, and estimates its cost."""

import lightning_score.lean_imports  # noqa: F401

import difflib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer

from lightning_score.callbacks import Evaluate, Posterior
from lightning_score.callbacks.base import as_list
from lightning_score.callbacks.sampling_cost import SamplingCost
from lightning_score.commands.arguments import Arguments
from lightning_score.commands.base import GROUPS
from lightning_score.commands.parser import Parser
from lightning_score.data import ScoreData
from lightning_score.errors import InputError, one_line, require
from lightning_score.sweep.draws import Plan
from lightning_score.sweep.folds import SEED
from lightning_score.sweep.loaded import LoadedCommand
from lightning_score.sweep.logged import logged_metrics
from lightning_score.sweep.macros import as_text
from lightning_score.sweep.rows import metric_names
from lightning_score.sweep.spec import Sweep
from lightning_score.sweep.trials import only_samples

COMBINATIONS = 100
"""Maximal number of combinations of values that are checked and counted, evenly spaced among the planned ones."""
PLACES = ("output", "runs", "name")
"""Options that do not change results."""


def check_settings(sweep: Sweep, plan: Plan) -> str:
    """Checks every value of every parameter, and combinations of values, with the parser and the constructors of the command
    line, and checks that the trials log all metrics that are optimized or bounded.

    Args:
        sweep: the sweep.
        plan: its planned trials.

    Returns:
        The cost of the sweep in samples and network evaluations.

    Raises:
        InputError: a value is invalid, or a metric is not logged.
    """
    first = plan.settings[0]
    with _refusing(sweep, _describe(sweep, first)):
        command = LoadedCommand(sweep.arguments(first))
        name = command.cli.command
        early = sweep.hyperband is not None and name != "fit"
        require(not early, f"early_terminate: `{name}` measures only once, at its end; leave early_terminate out")
        idle = name != "fit" and SEED in sweep.varied
        fix = "vary evaluate.seed, or set evaluate.repeats"
        require(not idle, f"{SEED}: changes nothing in `{name}`, which trains nothing; {fix}")
        checks = _Checks(sweep, command, sweep.arguments(first))
        checks.check(first)
    seen: dict[str, dict[str, str]] = {}
    for name, value, settings in sweep.examples():
        with _refusing(sweep, f"{name}={as_text(value)}"):
            parsed = checks.check(settings).config
        other = seen.setdefault(name, {}).setdefault(parsed, repr(value))
        with _refusing(sweep, name):
            require(other == repr(value), f"{other} and {value!r} give the same trial; leave one out")
    checked = []
    for i in np.linspace(0, len(plan.settings) - 1, min(len(plan.settings), COMBINATIONS)).round().astype(int):
        with _refusing(sweep, _describe(sweep, plan.settings[i])):
            checked.append(checks.check(plan.settings[i]))
    return _cost(plan.count, checked, command.cli.command == "fit")


class _Checked(NamedTuple):
    """A trial that was checked: its configuration as JSON, its number of samples, and network evaluations for each of them.

    The evaluations of a guidance, if it has one, are not counted.
    """

    config: str
    samples: int
    evaluations: int
    guided: bool


def _cost(count: int, checked: list[_Checked], training: bool) -> str:
    """The cost of a number of trials, given some of them."""
    samples = round(sum(trial.samples for trial in checked) * count / len(checked))
    if not samples:
        return f"{count} trials, no samples"
    each = sorted({trial.evaluations for trial in checked if trial.samples})
    evaluations = f"{each[0]} to {each[-1]}" if len(each) > 1 else f"{each[0]}"
    guidance = ", without those of guidance" if any(trial.guided for trial in checked) else ""
    period = " per validation" if training else ""
    return f"{count} trials, {samples} samples at {evaluations} network evaluations each{guidance}{period}"


def _describe(sweep: Sweep, settings: dict[str, Any]) -> str:
    """The values of the parameters that vary, or of all parameters if none varies."""
    names = [name for name in sweep.varied if name in settings] or [*settings]
    return ", ".join(f"{name}={as_text(settings[name])}" for name in names)


@contextmanager
def _refusing(sweep: Sweep, place: str) -> Iterator[None]:
    """Within it, what a trial would refuse is an `InputError` that names the sweep and the place in it."""
    try:
        yield
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ArithmeticError, OSError, LookupError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, InputError):  # the parser wraps what constructors raise
            cause = cause.__cause__
        raise InputError(f"sweep {sweep.name}: {place}: {one_line(cause, 1000)}") from error


class _Constructors:
    """Makes the parts of configurations; a part that is the same as before is not made again.

    Args:
        command: the loaded command of the first trial, whose data serve all trials that do not vary them.
    """

    def __init__(self, command: LoadedCommand):
        self._made = {f"data {_as_json(command.config['data'].as_dict())}": command.datamodule}
        self._parsers = {name: Parser() for name in ("data", "posterior", *GROUPS)}
        for part, base in (("data", ScoreData), ("posterior", Posterior)):
            self._parsers[part].add_subclass_arguments(base, part)
        for name, owner in GROUPS.items():
            self._parsers[name].add_lightning_class_args(owner, name)

    def make(self, config: Namespace) -> tuple[Evaluate, Any]:
        """Makes all parts of a configuration; returns what measures the samples, and the trainer's callbacks."""
        data, model = self._one("data", config["data"]), config["model"].clone()
        model["shape"], model["num_classes"], model["condition"] = list(data.shape), data.num_classes, data.condition
        made = {name: self._one(name, model if name == "model" else config[name]) for name in GROUPS}
        evaluate, callbacks = copy(made["evaluate"]), as_list(made["trainer"]["callbacks"])
        if config.get("posterior") is not None:
            callbacks = self._one("posterior", config["posterior"]).alone(evaluate, callbacks)
        return evaluate, callbacks

    def _one(self, name: str, part: Namespace) -> Any:
        key = f"{name} {_as_json(part.as_dict())}"
        if key not in self._made:
            made = self._parsers[name].instantiate_classes(Namespace({name: part}))[name]
            if name == "trainer":
                Trainer(**{**made, "logger": False})
            self._made[key] = None if name == "model" else made  # networks take memory
        return self._made[key]


class _Checks:
    """Checks the settings of trials, each only once.

    Args:
        sweep: the sweep.
        command: the command of its first trial.
        arguments: the arguments of its first trial.
    """

    def __init__(self, sweep: Sweep, command: LoadedCommand, arguments: Arguments):
        self._sweep, self._command = sweep, command
        self._only_samples = only_samples(sweep, command.cli.command)
        self._constructors, self._paths = _Constructors(command), arguments.get("--ckpt_path")
        self._known: dict[Arguments, _Checked] = {}
        self._unknown: set[tuple[str, str]] = set()

    def check(self, settings: dict[str, Any]) -> _Checked:
        """Raises `InputError` for invalid settings, and for samples that do not fit into memory or would take months."""
        arguments = self._sweep.arguments(settings)
        if arguments not in self._known:
            self._known[arguments] = self._check(arguments)
        return self._known[arguments]

    def _check(self, arguments: Arguments) -> _Checked:
        another = arguments.get("--ckpt_path") != self._paths
        command = LoadedCommand(arguments) if another else self._command
        if another or self._only_samples:
            command.take(arguments)
            evaluate, callbacks = command.made["evaluate"], command.made["trainer"]["callbacks"]
        else:
            command.parse(arguments)
            command.cli.before_instantiate_classes()
            evaluate, callbacks = self._constructors.make(command.config)
        config = command.config
        for metric in metric_names(self._sweep.objectives, self._sweep.constraints):
            self._check_metric(metric, config["trainer"], evaluate, as_list(callbacks))
        drawing = {**vars(config), "evaluate": evaluate, "trainer": {"callbacks": as_list(callbacks)}}
        cost = SamplingCost(command.cli.command, command.model, drawing, command.datamodule)
        plain = _as_json({name: value for name, value in config.as_dict().items() if name not in PLACES})
        return _Checked(plain, cost.n, cost.evaluations, config["model"]["guidance"] is not None)

    def _check_metric(self, metric: str, trainer: Namespace, evaluate: Evaluate, callbacks: list[Callback]) -> None:
        """Raises `InputError` if the metric is not logged; what callbacks from other packages log is unknown."""
        command = self._command.cli.command
        require(not trainer["fast_dev_run"], "--trainer.fast_dev_run true: saves no results; leave it out of a sweep")
        idle = trainer["limit_val_batches"] == 0 and metric.startswith("val/")
        require(not idle, f"--trainer.limit_val_batches 0: there is no validation, so {metric} is not logged; leave it out")
        known, strangers = logged_metrics(command, evaluate, callbacks, self._command.datamodule)
        if any(fnmatchcase(metric, name) for name in known):
            return
        names = sorted({type(callback).__name__ for callback in strangers})
        near = difflib.get_close_matches(metric, known, 1, 0.3)
        hint = f"; did you mean {near[0]}?" if near else f"; it logs {', '.join(sorted(known))}"
        require(bool(names), f"metric {metric}: not logged by `{command}`{hint}")
        if not self._unknown & {(metric, name) for name in names}:
            print(f"metric {metric}: not checked, because only {', '.join(names)} may log it{hint}", file=sys.stderr)
        self._unknown |= {(metric, name) for name in names}


def _as_json(values: dict[str, Any]) -> str:
    return json.dumps(values, default=str, sort_keys=True)
