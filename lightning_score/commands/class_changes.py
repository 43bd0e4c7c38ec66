"""A class named in a configuration starts from its own defaults, whichever class it replaces.

jsonargparse keeps the arguments of the former class that the new one has too. Here a value with a class (`VP`, or a mapping
with `class_path`) replaces the current value; one without (`--model.process.beta_max 10`, or a mapping without `class_path`)
changes the current class; and `+VP` keeps the current arguments that VP has too.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pydoc import locate
from typing import Any

from jsonargparse import Namespace
from jsonargparse._common import lenient_check, parent_parser
from jsonargparse._typehints import ActionTypeHint, get_help_types, is_subclass_spec, sub_defaults
from jsonargparse._util import NestedArg, parse_value_or_config

from lightning_score.commands.arguments import Arguments
from lightning_score.commands.class_names import class_mistake, misplaced
from lightning_score.commands.total_steps import marked
from lightning_score.runs.yaml_files import KEEP


@dataclass
class Change:
    """A class that was replaced.

    Attributes:
        old: its values, layer after layer.
        new: the new value.
        keeps: whether the new class keeps common arguments.
    """

    old: list[Namespace]
    new: Namespace
    keeps: bool

    def line(self, place: str) -> str:
        """A line with the dropped and kept values; empty if there are none."""
        lost = {name: value for old in self.old for name, value in _lost(old, self.new)}
        before, after = _arguments(self.old[-1]), _arguments(self.new)
        kept = {name: value for name, value in after.items() if self.keeps and before.get(name) == value}
        old, new = (spec["class_path"].rpartition(".")[2] for spec in (self.old[0], self.new))
        parts = [
            f"{word} {', '.join(f'{name}={_shown(value)}' for name, value in values.items())}"
            for word, values in (("dropped", lost), ("kept", kept))
            if values
        ]
        if lost:
            again = f", or write {KEEP}{new}" if lost.keys() & _defaults(self.new).keys() and not self.keeps else ""
            parts.append(f"give them again to keep them{again}")
        return f"{place}: {f'{old} -> {new}' if old != new else f'{new} given again'}; {'; '.join(parts)}" if parts else ""


@dataclass
class Changes:
    """The changes of classes while a command line is parsed.

    Attributes:
        place: the dotted name of the option that is being parsed.
        found: the changes by their places.
        classes: the class paths by their places.
        arguments: the command line.
    """

    place: str = ""
    found: dict[str, Change] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    arguments: Arguments = field(default_factory=Arguments)

    def lines(self) -> list[str]:
        """One line for each change that dropped or kept values."""
        return [line for place, change in self.found.items() if (line := change.line(place))]

    def add(self, before: Namespace, after: Namespace, replaces: bool, keeps: bool) -> None:
        """Records the change of the value at the current place."""
        known = self.found.get(self.place)
        if replaces:
            self.found = {place: change for place, change in self.found.items() if not place.startswith(f"{self.place}.")}
            known = Change([*(known.old if known else []), before.clone()], after, keeps)
        if known:
            self.found[self.place] = Change(known.old, after.clone(), known.keeps)


_changes: ContextVar[Changes | None] = ContextVar("changes", default=None)
recording = _changes.get
"""The changes that the enclosing `recorded` collects, else None."""


@contextmanager
def recorded(arguments: Arguments) -> Iterator[Changes]:
    """Within it, a named class starts from its own defaults, and the changes are collected."""
    token = _changes.set(changes := Changes(arguments=arguments))
    try:
        yield changes
    finally:
        _changes.reset(token)


def _lost(old: Namespace, new: Namespace) -> Iterator[tuple[str, Any]]:
    """The dropped arguments that matter: those that differ from the defaults of the old or the new class."""
    before, after = _arguments(old), _arguments(new)
    old_defaults, new_defaults = _defaults(old), _defaults(new)
    for name, value in before.items():
        if name in after:
            if is_subclass_spec(value) and is_subclass_spec(after[name]):
                yield from ((f"{name}.{part}", lost) for part, lost in _lost(value, after[name]))
        elif value != old_defaults.get(name, ...) or value != new_defaults.get(name, value):
            yield name, value


def _arguments(spec: Namespace) -> dict[str, Any]:
    return vars(spec.get("init_args") or Namespace())


def _defaults(spec: Namespace) -> dict[str, Any]:
    try:
        parameters = inspect.signature(locate(spec["class_path"])).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return {}
    return {name: parameter.default for name, parameter in parameters.items()}


def _shown(value: Any) -> str:
    """A value as short text."""
    if is_subclass_spec(value):
        inside = ", ".join(f"{name}={_shown(each)}" for name, each in _arguments(value).items())
        return value["class_path"].rpartition(".")[2] + (f"({inside})" if inside else "")
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _read(action: ActionTypeHint, value: Any, append: bool) -> tuple[Any, bool, bool]:
    """A value without `KEEP`; whether it replaces the current one; and whether it had `KEEP`."""
    if append or isinstance(value, NestedArg):
        return value, False, False
    content = value
    if isinstance(value, str):
        with suppress(Exception):  # not YAML, which the parser reports
            content, _ = parse_value_or_config(value, enable_path=action._enable_path)
    content = vars(content) if isinstance(content, Namespace) else content
    spec = content if isinstance(content, dict) else {"class_path": content}
    name = spec.get("class_path")
    if isinstance(name, str) and name.startswith(KEEP) and get_help_types(action._typehint):
        return {**spec, "class_path": name.removeprefix(KEEP)}, True, True
    return value, "class_path" in spec, False


def _check_type(self: ActionTypeHint, value: Any, append: bool = False, cfg: Any = None, mode: str | None = None) -> Any:
    """Checks a value together with the current one if it changes that, and alone if it replaces it."""
    changes = recording()
    if changes is None:
        return _original_check(self, value, append, cfg, mode)
    outer, changes.place = changes.place, f"{changes.place}.{self.dest}".removeprefix(".")
    try:
        if sub_defaults.get() or not lenient_check.get():  # the value is complete by now
            return _original_check(self, value, append, cfg, mode)
        return _check_change(self, value, append, cfg, mode, changes)
    finally:
        changes.place = outer


def _check_change(self: ActionTypeHint, value: Any, append: bool, cfg: Any, mode: str | None, changes: Changes) -> Any:
    before: Any = cfg.get(self.dest) if cfg else None
    value = marked(value) if changes.place == "model.lr_scheduler" else value
    value, replaces, keeps = _read(self, value, append)
    present = Namespace()
    if keeps or not replaces:
        present[self.dest] = before.clone() if isinstance(before, Namespace) else before
    _refuse(misplaced(self._typehint, changes.place, value))
    try:
        result = _original_check(self, value, append, present, mode)
    except (TypeError, ValueError):
        _refuse(class_mistake(self._typehint, changes.place, value))
        raise
    if is_subclass_spec(result):
        changes.classes[changes.place] = result["class_path"]
    if is_subclass_spec(before) and is_subclass_spec(result):
        if not replaces and "dict_kwargs" in before and "dict_kwargs" not in result:
            result["dict_kwargs"] = before["dict_kwargs"]
        changes.add(before, result, replaces, keeps)
        cfg.pop(self.dest)  # so that the checked value, which is complete, is not merged into it
    return result


def _refuse(mistake: str) -> None:
    """Ends the parsing with a message, unless that is empty."""
    parser = parent_parser.get()
    if mistake and parser is not None:
        parser.error(mistake)


def _discard(parser_or_action: Any, present: Any, given: Any) -> None:
    """Before a config is merged into another: its values with a class are complete, and replace the current ones."""
    if recording() is None or isinstance(present, dict):
        return _original_discard(parser_or_action, present, given)
    for key in list(present.keys(branches=True)):
        if is_subclass_spec(present.get(key)) and is_subclass_spec((given or Namespace()).get(key)):
            present.pop(key)


_original_check = ActionTypeHint._check_type
_original_discard = ActionTypeHint.discard_init_args_on_class_path_change
ActionTypeHint._check_type = _check_type  # type: ignore[method-assign]
ActionTypeHint.discard_init_args_on_class_path_change = staticmethod(_discard)  # type: ignore[method-assign]
