"""W&B's macros in the command of a sweep, and settings as command-line options."""

import ast
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_score.errors import require

DEFAULT = ("${env}", "${interpreter}", "${program}", "${args}")
"""W&B's command for a sweep file without a command."""
ARGS = "${args}"
"""Where the settings of a trial go in a command."""
VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


def options(settings: Mapping[str, Any]) -> list[str]:
    """`--name=value` for each setting; a part always precedes the options inside it.

    Args:
        settings: values by dotted names, or nested.
    """
    flat = sorted(flatten(settings), key=lambda item: item[0].count("."))
    return [f"--{name}={as_text(value)}" for name, value in flat]


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by dotted names; a mapping with a `class_path` is one value."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value and "class_path" not in value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def as_text(value: Any) -> str:
    """A value in the parser's notation: null, true, 0.1, unchanged text, and JSON for lists and mappings."""
    return value if isinstance(value, str) else json.dumps(value)


def from_agent(arguments: Sequence[str]) -> list[str]:
    """Arguments from a W&B agent, rewritten for the parser.

    `${args}` writes Python's names (`--model.guidance=None`) and nested parameters as one dictionary, and the order is that
    of the server, while a part must precede its options; `--config ${args_json_file}` names a file of dotted keys.
    """
    others, given = split_options(arguments)
    return others + options(given)


def split_options(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The arguments whose order matters (the command, `--config`, options after a `+=`), and the other options by name."""
    given: dict[str, Any] = {}
    others: list[str] = []
    lists: set[str] = set()  # options with `+=`: later options inside them belong to the part added last
    rest = list(_without_files(arguments))
    while rest:
        argument = rest.pop(0)
        name, equals, text = argument.partition("=")
        if name.endswith("+"):
            lists.add(f"{name[:-1]}.")
            others += [argument] if equals else [argument, *rest[:1]]
            rest = rest if equals else rest[1:]
        elif not name.startswith("--") or name == "--config":
            others.append(argument)
        elif equals or (rest and not rest[0].startswith("--")):
            setting = {name.removeprefix("--"): _value(text if equals else rest.pop(0))}
            if name.startswith(tuple(lists)):
                others += options(setting)
            else:
                given |= flatten(setting)
        else:
            others.append(argument)
    return others, given


def _without_files(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments, with JSON files of dotted keys turned into options."""
    rest = iter(arguments)
    for argument in rest:
        name, equals, text = argument.partition("=")
        if name != "--config":
            yield argument
            continue
        path = text if equals else next(rest, "")
        settings = _dotted(Path(path))
        yield from ["--config", path] if settings is None else options(settings)


def _dotted(path: Path) -> dict[str, Any] | None:
    """The settings in a JSON file of an agent; None for any other file."""
    if path.suffix != ".json" or not path.is_file():
        return None
    settings = json.loads(path.read_text(encoding="utf-8"))
    return settings if isinstance(settings, dict) and any("." in key for key in settings) else None


def _value(text: str) -> Any:
    """The value of Python's names, dictionaries and lists; other text is unchanged."""
    if text in ("None", "True", "False") or text.startswith(("{", "[")):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
    return text


def expand_macros(command: Sequence[str], program: str | None) -> list[str]:
    """A sweep's command with W&B's macros replaced as its agent does it, but with `ARGS` where the settings go.

    W&B removes unknown macros; macros that write settings in a form that the parser does not read are removed, too.

    Args:
        command: the words of the command.
        program: the sweep's program.

    Raises:
        InputError: `${args_json_file}` does not follow `--config`.
    """
    macros = {
        "${env}": ["/usr/bin/env"] if os.name == "posix" else [],
        "${interpreter}": [sys.executable],
        "${program}": [program or ""],
        ARGS: [ARGS],
        "${args_no_equals}": [ARGS],
    }
    words: list[str] = []
    for chunk in command:
        if chunk == "${args_json_file}":
            require(bool(words) and words[-1] in ("-c", "--config"), f"command: {chunk} must follow --config")
            words[-1] = ARGS
        elif re.fullmatch(r"\$\{\w+\}", chunk):
            words += macros.get(chunk, [])
        else:
            words.append(VARIABLE.sub(lambda match: os.environ.get(match[1], match[1]), chunk))
    return words
