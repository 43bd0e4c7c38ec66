"""`max_steps` in place of a number of a learning-rate schedule: the number follows `trainer.max_steps`."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml
from jsonargparse import Namespace

from lightning_score.errors import require

WORD = "max_steps"
STAND_IN = 2**52 + 2**20
"""Stands for the word while the parser checks types; a schedule of so many steps would take a million years."""
TOTALS = ("T_max", "total_iters", "total_steps")
"""Names of numbers of steps, by which a 1 is known to be one."""
_WORD = re.compile(rf"\b{WORD}\b(?!\s*:)")


def marked(text: str) -> str:
    """The text of a config, with the word in its `lr_scheduler` replaced by the number that stands for it."""
    if "lr_scheduler" not in text or not _WORD.search(text):
        return text
    try:
        found = sorted(_places(yaml.compose(text, yaml.SafeLoader), False), reverse=True)
    except yaml.YAMLError:  # the parser reports it
        return text
    for start, end in found:
        text = f"{text[:start]}{STAND_IN}{text[end:]}"
    return text


def _places(node: yaml.Node | None, inside: bool) -> Iterator[tuple[int, int]]:
    """Where the word stands in the text, for each time that it does."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _places(value, inside or key.value == "lr_scheduler")
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _places(value, inside)
    elif inside and isinstance(node, yaml.ScalarNode) and node.value == WORD:
        yield node.start_mark.index, node.end_mark.index


def marked_arguments(arguments: list[str]) -> list[str]:
    """The same for options, as `--model.lr_scheduler.T_max max_steps`."""
    changed, before = [], ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--model.lr_scheduler") and equals:
            argument = f"{name}={_WORD.sub(str(STAND_IN), value)}"
        elif before.startswith("--model.lr_scheduler") and "=" not in before:
            argument = _WORD.sub(str(STAND_IN), argument)
        changed.append(argument)
        before = argument
    return changed


def resolve(config: Any) -> None:
    """Replaces the stand-in in a parsed config by `trainer.max_steps`.

    Raises:
        InputError: there is a stand-in, and training has no largest number of steps.
    """
    model = config.get("model")
    schedule = model.get("lr_scheduler") if model else None
    if schedule is None:
        return
    steps = config.get("trainer.max_steps")

    def number(path: str) -> int:
        require(
            isinstance(steps, int) and steps >= 0,
            f"model.lr_scheduler{path}={WORD}: follows trainer.max_steps, which is {steps}; give --trainer.max_steps, or a "
            f"number in its place",
        )
        return max(steps, 1)

    model["lr_scheduler"] = _replaced(schedule, lambda value, path: value == STAND_IN, number)


def linked(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schedule of a run's configuration, with the word in place of each number that equals the run's own
    `trainer.max_steps`; None if there is no such number.
    """
    schedule = (config.get("model") or {}).get("lr_scheduler")
    steps = (config.get("trainer") or {}).get("max_steps")
    if not isinstance(schedule, Mapping) or not isinstance(steps, int) or steps < 0:
        return None

    def follows(value: Any, path: str) -> bool:
        return isinstance(value, int) and value == max(steps, 1) and (steps > 1 or path.endswith(TOTALS))

    found = _replaced(schedule, follows, lambda path: WORD)
    return None if found == schedule else {"model": {"lr_scheduler": found}}


def _replaced(part: Any, chosen: Callable[[Any, str], bool], new: Callable[[str], Any], path: str = "") -> Any:
    """A part of a configuration with some of its values replaced."""
    if isinstance(part, list):
        return [_replaced(value, chosen, new, f"{path}[{i}]") for i, value in enumerate(part)]
    if isinstance(part, Mapping | Namespace):
        items = part.items() if isinstance(part, Mapping) else vars(part).items()
        return type(part)({name: _replaced(value, chosen, new, f"{path}.{name}") for name, value in items})
    return new(path.replace(".init_args", "")) if not isinstance(part, bool) and chosen(part, path) else part
