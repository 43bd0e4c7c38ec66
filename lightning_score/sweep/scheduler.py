"""W&B's `scheduler` in a sweep file: the engine that draws the settings of trials, and the user's own Python code for it."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import BaseTrial

from lightning_score.errors import InputError, one_line, require
from lightning_score.sweep.macros import flatten
from lightning_score.sweep.parameters import check_keys, check_plain, naming

if TYPE_CHECKING:
    from wandb.sdk.sweeps.scheduler.optuna import OptunaOptimizer

METHODS = {"wandb": ("grid", "random", "bayes"), "optuna": ("custom",)}
"""The methods of each engine, as W&B requires them."""
AX = "not run here, because Ax is not installed with lightning_score; use engine optuna, or `wandb sweep-scheduler`"
DRAW = "draw"
"""Attribute of a trial that the user's study has drawn: the order of the draw, and what the study knew; or an error."""
EXAMPLES = 100
"""Number of trials that are drawn from a search space for the checks and for the names of its settings."""


class SearchEnded(Exception):
    """The user's study has no more trials."""


@dataclass(frozen=True)
class Scheduler:
    """Who draws the settings of a sweep's trials, as W&B's own scheduler reads it.

    Attributes:
        engine: wandb or optuna.
        name: the sweep's name.
        config: the entries of the sweep file, which the user's functions are given.
        source: the path of the user's Python file, or an empty text.
        optimizer: its function that makes an Optuna study, or an empty text.
        search_space: its function that draws the settings of an Optuna trial, or an empty text.
    """

    engine: str
    name: str
    config: dict[str, Any]
    source: str = ""
    optimizer: str = ""
    search_space: str = ""

    @property
    def text(self) -> str:
        """The engine for a message, as `by study and space of own.py`."""
        functions = " and ".join(name for name in (self.optimizer, self.search_space) if name)
        return f"by {functions} of {Path(self.source).name}" if functions else f"by engine {self.engine}"

    @property
    def code(self) -> str:
        """The user's file as comments of a sweep file, so that a sweep is known by both."""
        if not Path(self.source).is_file():
            return ""
        lines = Path(self.source).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n" + "".join(f"# {line}".rstrip() + "\n" for line in [f"{Path(self.source).name}:", *lines])

    def optuna(self) -> "OptunaOptimizer":
        """W&B's optimizer with a new study, in memory, that the user's function `optimizer` makes.

        Raises:
            InputError: the function fails, or its study does not fit the sweep's metrics.
        """
        from wandb.sdk.sweeps.scheduler.optuna import build_optuna_optimizer
        from wandb.sdk.sweeps.sweep_info import SweepInfo

        entity, project = (str(self.config.get(key) or "") for key in ("entity", "project"))
        config = {**self.config, "scheduler": {**self.config["scheduler"], "source": self.source}}
        with self.naming(self.optimizer):
            return build_optuna_optimizer(SweepInfo(self.name, self.name, entity, project, config, ""))

    def space(self, trial: BaseTrial) -> dict[str, Any]:
        """The settings of an Optuna trial that the user's function `search_space` draws, by their dotted names.

        Raises:
            InputError: the function fails, or returns something else than settings.
        """
        with self.naming(self.search_space):
            drawn: Any = _constructor(self.source, self.search_space)(trial)
            require(isinstance(drawn, Mapping) and len(drawn) > 0, f"returned {drawn!r}: must be a dict of settings")
            for name, value in drawn.items():
                with naming(str(name)):
                    check_plain(value)
            return dict(flatten(json.loads(json.dumps(drawn))))  # as it reaches an agent

    def settings(self, trial: BaseTrial) -> dict[str, Any]:
        """The settings of a trial whose parameters the user's study has drawn.

        Raises:
            InputError: the user's study or search space failed.
            SearchEnded: the user's study has no more trials.
        """
        require("error" not in trial.user_attrs.get(DRAW, {}), str(trial.user_attrs.get(DRAW, {}).get("error")))
        if not trial.params:
            raise SearchEnded
        return self.space(trial) if self.search_space else dict(flatten(trial.params))

    def drawn(self) -> list[dict[str, Any]]:
        """Settings from all over the user's search space, always the same ones."""
        study = optuna.create_study(sampler=RandomSampler(seed=0))
        return [self.space(study.ask()) for _ in range(EXAMPLES)]

    @contextmanager
    def naming(self, function: str) -> Iterator[None]:
        """Within it, an error of the user's code is an `InputError` that names its file and function."""
        place = f"scheduler: {self.source}: {function or 'parameters'}"
        require(not self.source or Path(self.source).is_file(), f"scheduler: source={self.source}: there is no such file")
        try:
            yield
        except (Exception, SystemExit) as error:  # the user's own code may raise anything
            if isinstance(error, InputError) and str(error).startswith("scheduler: "):
                raise
            inside = isinstance(error, InputError) or type(error).__module__.startswith("wandb.")
            raise InputError(f"{place}: {'' if inside else f'{type(error).__name__}: '}{one_line(error, 500)}") from error


@cache
def _constructor(source: str, name: str) -> Callable[[Any], Any]:
    """The user's function `search_space`, which W&B loads and tries."""
    from wandb.sdk.sweeps.scheduler.optuna import load_trial_constructor

    return load_trial_constructor(source, name)


def read_scheduler(entries: Mapping[str, Any], name: str, folder: Path) -> Scheduler | None:
    """The scheduler of a sweep file; None in a file without one. The user's code is not run.

    Args:
        entries: those of the file.
        name: the sweep's name.
        folder: the file's; `source` is looked for in the current folder, here and one folder above.

    Raises:
        InputError: W&B refuses it, too, or the engine is not run here.
    """
    given, method = entries.get("scheduler"), entries.get("method")
    if given is None:
        needs = "method custom needs 'scheduler: {engine: optuna}'; see the section on W&B's scheduler in sweeps/README.md"
        require(method != "custom", needs)
        return None
    require(isinstance(given, Mapping), f"scheduler={given!r}: must be a mapping, as {{engine: optuna}}")
    with naming("scheduler"):
        check_keys(given, {"engine", "source", "optimizer", "search_space"})
        engine = given.get("engine")
        require(engine != "ax", f"engine=ax: {AX}")
        require(engine in METHODS, f"engine={engine!r}: must be wandb or optuna")
        methods = METHODS[str(engine)]
        require(method in methods, f"engine={engine}: method={method}: must be {', '.join(methods)}")
        require("early_terminate" not in entries, "excludes early_terminate; give the study of `optimizer` a pruner")
        local = isinstance(entries.get("controller"), Mapping) and entries["controller"].get("type") == "local"
        require(not local, "excludes 'controller: {type: local}'; leave the controller out")
        words = {key: given.get(key) or "" for key in ("source", "optimizer", "search_space")}
        for key, value in words.items():
            require(isinstance(value, str), f"{key}={value!r}: must be text")
            useless = engine == "wandb" and bool(value)
            require(not useless, f"{key}: engine wandb does not use it; use engine optuna, or leave it out")
            has_source = key == "source" or not value or bool(words["source"])
            require(has_source, f"{key}={value}: needs source, the Python file of this function")
        extra = bool(words["search_space"]) and bool(entries.get("parameters"))
        require(not extra, "search_space draws all settings, so that parameters are not used; return them from its function")
    for place in (Path(), folder, folder.parent) if words["source"] else ():
        if (place / words["source"]).is_file():
            words["source"] = str((place / words["source"]).resolve())
    return Scheduler(str(engine), name, dict(entries), **words)
