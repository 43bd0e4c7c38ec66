"""W&B's macros in the command of a sweep, and settings as command-line options."""

import ast
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_score.commands.arguments import CONFIG, Arguments, Option
from lightning_score.errors import require

DEFAULT = ("${env}", "${interpreter}", "${program}", "${args}")
"""W&B's command for a sweep file without a command."""
ARGS = "${args}"
"""Where the settings of a trial go in a command."""
VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


def options(settings: Mapping[str, Any]) -> list[Option]:
    """`--name=value` for each setting; a part always precedes the options inside it.

    Args:
        settings: values by dotted names.
    """
    names = sorted(settings, key=lambda name: name.count("."))
    return [Option(f"--{name}", (as_text(settings[name]),), True) for name in names]


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


def from_agent(arguments: Arguments) -> Arguments:
    """The arguments of a W&B agent, rewritten for the parser.

    `${args}` writes Python's names (`--model.guidance=None`) and nested parameters as one dictionary, and the order is that
    of the server, while a part must precede its options; `--config ${args_json_file}` names a file of dotted keys.
    """
    ordered, settings = split_options(arguments)
    return replace(arguments, options=(*ordered, *options(settings)))


def split_options(arguments: Arguments) -> tuple[list[Option], dict[str, Any]]:
    """The options whose order matters (`--config`, options without a value, a part that `+=` adds to a list and the options
    inside it), and the settings of the others by dotted names.
    """
    ordered: list[Option] = []
    settings: dict[str, Any] = {}
    added: tuple[str, ...] = ()
    for option in arguments.options:
        name, text = option.name.removeprefix("--"), " ".join(option.values)
        found = _settings_file(Path(text)) if option.name == CONFIG else dict(flatten({name: _value(text)}))
        if name.endswith("+"):
            added += (f"{name[:-1]}.",)
        if found is None or not name or name.endswith("+") or not option.values:
            ordered.append(option)
        elif name.startswith(added):
            ordered += options(found)
        else:
            settings |= found
    return ordered, settings


def _settings_file(path: Path) -> dict[str, Any] | None:
    """The settings in an agent's JSON file of dotted keys; None for any other config."""
    if path.suffix != ".json" or not path.is_file():
        return None
    settings = json.loads(path.read_text(encoding="utf-8"))
    return dict(flatten(settings)) if isinstance(settings, dict) and any("." in key for key in settings) else None


def _value(text: str) -> Any:
    """The value of Python's names, dictionaries and lists; other text is unchanged."""
    if text in ("None", "True", "False") or text.startswith(("{", "[")):
        with suppress(ValueError, SyntaxError):
            return ast.literal_eval(text)
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
