"""Checks a sweep before its first trial."""

import difflib
import json
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from lightning_score.callbacks.pictures import pictured
from lightning_score.commands.arguments import Arguments
from lightning_score.errors import InputError, require
from lightning_score.sweep.construct import Constructors, refusing
from lightning_score.sweep.draws import Plan
from lightning_score.sweep.loaded import LoadedCommand
from lightning_score.sweep.logged import logged_metrics
from lightning_score.sweep.macros import as_text
from lightning_score.sweep.results import flat_settings
from lightning_score.sweep.spec import Sweep
from lightning_score.sweep.trials import arguments_of, only_samples

COMBINATIONS = 100
"""Maximal number of combinations of values that are checked, evenly spaced among the planned ones."""


def check_settings(sweep: Sweep, plan: Plan) -> LoadedCommand:
    """Checks every value of every parameter, and combinations of values, with the parser and the constructors of the command
    line, and checks that the trials log the metric.

    Args:
        sweep: the sweep.
        plan: its planned trials.

    Returns:
        The command of the first trial.

    Raises:
        InputError: a value is invalid, or the metric is not logged.
    """
    first = plan.settings[0]
    try:
        command = refusing(lambda: LoadedCommand(arguments_of(sweep, first)))
        require(
            sweep.hyperband is None or command.command == "fit",
            f"early_terminate: `{command.command}` measures only once, at its end; leave early_terminate out",
        )
        trial = _Trial(sweep, command, Arguments.parse(arguments_of(sweep, first)).get("--ckpt_path"))
        trial.check(first)
    except InputError as error:
        raise InputError(f"sweep {sweep.name}: {_describe(sweep, first)}{error}") from error
    seen: dict[str, dict[str, str]] = {}
    for name, value, settings in sweep.examples():
        try:
            parsed = trial.check(settings)
        except InputError as error:
            raise InputError(f"sweep {sweep.name}: {name}={as_text(value)}: {error}") from error
        other = seen.setdefault(name, {}).setdefault(parsed, repr(value))
        require(
            other == repr(value), f"sweep {sweep.name}: {name}: {other} and {value!r} give the same trial; leave one out"
        )
    for settings in _spread(plan.settings):
        try:
            trial.check(settings)
        except InputError as error:
            raise InputError(f"sweep {sweep.name}: {_describe(sweep, settings)}{error}") from error
    return command


def _describe(sweep: Sweep, settings: dict[str, Any]) -> str:
    """The values of the parameters that vary, or of all parameters if none varies."""
    flat = flat_settings(settings)
    names = [name for name in sweep.varied if name in flat] or [*flat]
    return f"{', '.join(f'{name}={as_text(flat[name])}' for name in names)}: "


def _spread(settings: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    count = min(len(settings), COMBINATIONS)
    yield from (settings[round(i * (len(settings) - 1) / max(count - 1, 1))] for i in range(count))


class _Trial:
    """Checks the settings of trials, each only once.

    Args:
        sweep: the sweep.
        command: the command of its first trial.
        paths: the checkpoint of that command, if it has one.
    """

    def __init__(self, sweep: Sweep, command: LoadedCommand, paths: list[str]):
        self._sweep, self._command = sweep, command
        self._only_samples = only_samples(sweep, command.command)
        self._constructors, self._paths = Constructors(command), paths
        self._known: dict[str, str] = {}
        self._unknown: set[str] = set()

    def check(self, settings: dict[str, Any]) -> str:
        """Raises `InputError` for invalid settings; returns the resulting configuration as JSON."""
        arguments = arguments_of(self._sweep, settings)
        key = json.dumps(arguments)
        if key not in self._known:
            self._known[key] = self._check(arguments)
        return self._known[key]

    def _check(self, arguments: list[str]) -> str:
        command = self._command
        another = Arguments.parse(arguments).get("--ckpt_path") != self._paths
        if another:
            command = refusing(lambda: LoadedCommand(arguments))
        if another or self._only_samples:
            refusing(lambda: command.take(arguments))
            given = command.config
            evaluate, callbacks = command.evaluate, command.made["trainer"]["callbacks"]
        else:
            command.parse(arguments)
            refusing(command.cli.before_instantiate_classes)
            given = command.config
            parts = self._constructors.make(given)
            evaluate, callbacks = parts["evaluate"], parts["trainer"]["callbacks"]
        self._check_metric(given["trainer"], evaluate, callbacks or [])
        settings = {name: value for name, value in given.as_dict().items() if name not in ("output", "runs", "name")}
        return json.dumps(settings, default=str, sort_keys=True)  # these do not change results

    def _check_metric(self, trainer: Any, evaluate: Any, callbacks: Any) -> None:
        """Raises `InputError` if the metric is not logged; what callbacks from other packages log is unknown."""
        metric, command = self._sweep.metric, self._command.command
        if metric is None:
            return
        require(not trainer["fast_dev_run"], "--trainer.fast_dev_run true: saves no results; leave it out of a sweep")
        idle = trainer["limit_val_batches"] == 0 and metric.startswith("val/")
        require(not idle, f"--trainer.limit_val_batches 0: there is no validation, so {metric} is not logged; leave it out")
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        known, strangers = logged_metrics(command, evaluate, callbacks, pictured(self._command.datamodule))
        if any(fnmatchcase(metric, name) for name in known):
            return
        names = sorted({type(callback).__name__ for callback in strangers})
        near = difflib.get_close_matches(metric, known, 1, 0.3)
        hint = f"; did you mean {near[0]}?" if near else f"; it logs {', '.join(sorted(known))}"
        require(bool(names), f"metric {metric}: not logged by `{command}`{hint}")
        if not self._unknown & {*names}:
            print(f"metric {metric}: not checked, because only {', '.join(names)} may log it{hint}", file=sys.stderr)
        self._unknown |= {*names}
