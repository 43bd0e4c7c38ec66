"""`max_steps` in a learning-rate schedule stands for the number `trainer.max_steps`."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from jsonargparse import Namespace
from jsonargparse._util import NestedArg

from lightning_score.errors import require

WORD = "max_steps"
STAND_IN = 2**52 + 2**20
"""The number that replaces the word while the parser checks types; no real schedule has so many steps."""
TOTALS = ("T_max", "total_iters", "total_steps")
"""Parameters that are numbers of steps even if they are 1."""
_WORD = re.compile(rf"\b{WORD}\b(?!\s*:)")


def marked(value: Any) -> Any:
    """A value of `lr_scheduler`, as text or as a part of a configuration, with the stand-in in place of the word."""
    if isinstance(value, NestedArg):
        return NestedArg(value.key, marked(value.val))
    if isinstance(value, str):
        return _WORD.sub(str(STAND_IN), value)
    return _replaced(value, lambda part, _: part == WORD, lambda _: STAND_IN)


def resolve_max_steps(config: Any) -> None:
    """Replaces the stand-in in a parsed config by `trainer.max_steps`.

    Raises:
        InputError: there is a stand-in, and `trainer.max_steps` is not set.
    """
    model = config.get("model")
    schedule = model.get("lr_scheduler") if model else None
    if schedule is None:
        return
    steps = config.get("trainer.max_steps")

    def number(path: str) -> int:
        fix = "give --trainer.max_steps, or a number in its place"
        unknown = f"model.lr_scheduler{path}={WORD}: follows trainer.max_steps, which is {steps}; {fix}"
        require(isinstance(steps, int) and steps >= 0, unknown)
        return max(steps, 1)

    model["lr_scheduler"] = _replaced(schedule, lambda value, path: value == STAND_IN, number)


def linked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The schedule of a run's configuration with the word in place of each number equal to the run's `trainer.max_steps`;
    empty if there is none.
    """
    schedule = (config.get("model") or {}).get("lr_scheduler")
    steps = (config.get("trainer") or {}).get("max_steps")
    if not isinstance(schedule, Mapping) or not isinstance(steps, int) or steps < 0:
        return {}

    def follows(value: Any, path: str) -> bool:
        return isinstance(value, int) and value == max(steps, 1) and (steps > 1 or path.endswith(TOTALS))

    found = _replaced(schedule, follows, lambda path: WORD)
    return {} if found == schedule else {"model": {"lr_scheduler": found}}


def _replaced(part: Any, chosen: Callable[[Any, str], bool], new: Callable[[str], Any], path: str = "") -> Any:
    """A part of a configuration with some of its values replaced."""
    if isinstance(part, list):
        return [_replaced(value, chosen, new, f"{path}[{i}]") for i, value in enumerate(part)]
    if isinstance(part, dict | Namespace):
        items = part.items() if isinstance(part, dict) else vars(part).items()
        return type(part)({name: _replaced(value, chosen, new, f"{path}.{name}") for name, value in items})
    return new(path.replace(".init_args", "")) if not isinstance(part, bool) and chosen(part, path) else part
