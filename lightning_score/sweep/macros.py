"""The command of a sweep's trial: W&B's macros, and settings as options of our command line."""

import ast
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_score.commands.arguments import CONFIG, Arguments
from lightning_score.errors import require

DEFAULT = ("${env}", "${interpreter}", "${program}", "${args}")
"""What W&B runs where a sweep file has no command."""
VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


def options(settings: Mapping[str, Any]) -> list[str]:
    """`--name=value` for each setting, a part always before the options inside it, whatever the order of the settings.

    Args:
        settings: values by dotted names, or nested.
    """
    flat = sorted(flatten(settings), key=lambda item: item[0].count("."))
    return [f"--{name}={as_text(value)}" for name, value in flat]


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by dotted names; a part that is given with its class stays whole."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value and "class_path" not in value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def as_text(value: Any) -> str:
    """A value as the parser reads it: null, true, 0.1, text as it is, and JSON for lists and mappings."""
    return value if isinstance(value, str) else json.dumps(value)


def from_agent(words: Sequence[str]) -> list[str]:
    """Arguments as a W&B agent writes them, as our parser reads them.

    `${args}` writes Python's names (`--model.guidance=None`) and nested parameters as one dictionary, and the order is that
    of the server, while a part has to stand before its options; `--config ${args_json_file}` names a file of dotted keys.
    """
    given: dict[str, Any] = {}
    others: list[str] = []
    lists: set[str] = set()  # options that `+=` has added to: what follows inside them is of the part added last
    arguments = Arguments.parse(words)
    for option in arguments.options:
        name, text = option.name.removeprefix("--"), " ".join(option.values)
        settings = _dotted(Path(text)) if option.name == CONFIG else {name: _value(text)}
        if name.endswith("+"):
            lists.add(f"{name[:-1]}.")
        if settings is None or name.endswith("+") or not name or not option.values:
            others += option.words()
        elif name.startswith(tuple(lists)):
            others += options(settings)
        else:
            given |= settings
    return [arguments.command, *others, *options(given)]


def _dotted(path: Path) -> dict[str, Any] | None:
    """The settings in a JSON file of an agent; None for any other file."""
    if path.suffix != ".json" or not path.is_file():
        return None
    settings = json.loads(path.read_text(encoding="utf-8"))
    return settings if isinstance(settings, dict) and any("." in key for key in settings) else None


def _value(text: str) -> Any:
    """What Python's names, dictionaries and lists mean; other text as it is."""
    if text in ("None", "True", "False") or text.startswith(("{", "[")):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
    return text


def expand(command: Sequence[Any], program: str | None, settings: Mapping[str, Any]) -> list[str]:
    """A sweep's command with W&B's macros replaced, as its agent does it; unknown macros vanish there, and here.

    Where the agent writes a file of settings for `--config ${args_json_file}`, these are options here: no file is written.

    Args:
        command: the words of the command.
        program: the sweep's program.
        settings: of the trial, by their names; nested ones are dictionaries.

    Raises:
        InputError: `${args_json_file}` does not follow `--config`.
    """
    hyphened = [f"--{name}={value}" for name, value in settings.items()]
    macros = {
        "env": ["/usr/bin/env"] if os.name == "posix" else [],
        "interpreter": [sys.executable],
        "program": [program or ""],
        "args": hyphened,
        "args_no_hyphens": [argument.removeprefix("--") for argument in hyphened],
        "args_no_equals": [word for name, value in settings.items() for word in (f"--{name}", str(value))],
        "args_no_boolean_flags": [
            f"--{name}" if value is True else f"--{name}={value}" for name, value in settings.items() if value is not False
        ],
        "args_json": [json.dumps(dict(settings))],
    }
    words: list[str] = []
    for chunk in command:
        if chunk == "${args_json_file}":
            require(bool(words) and words[-1] in ("-c", "--config"), f"command: {chunk} must follow --config")
            words[-1:] = options(settings)
            continue
        word = VARIABLE.sub(lambda match: os.environ.get(match[1], match[1]), str(chunk))
        macro = re.fullmatch(r"\$\{(\w+)\}", word)
        words += macros.get(macro[1], []) if macro else [word]
    return words
