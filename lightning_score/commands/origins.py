"""The file and line of the value that an error names."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import yaml

from lightning_score.commands.arguments import Arguments


def origin(arguments: Arguments, message: str) -> str:
    """` (FILE, line N)` for the first value named in an error; empty if it is not from a config.

    Args:
        arguments: the command line, with its configs as files.
        message: the error, as `steps=0: ...` or `Option 'model.stepz' ...`.
    """
    options = [option.name.removeprefix("--") for option in arguments.options]
    words = [word.strip(".").replace(".init_args", "") for word in re.findall(r"[\w.+-]+", message)]
    words = [word.removesuffix(".class_path") for word in words]
    values = {_plain(word) for word in words}
    files = [Path(file) for file in arguments.files]
    entries = [(file, *entry) for file in reversed(files) for entry in _entries(file)]
    for word in words:
        if any(option == word or option.endswith(f".{word}") for option in options):
            return ""
        for file, path, value, line in entries:
            has_value = value is not None and value in values and f".{path}".endswith(f".{word}")
            if has_value or (path == word and "." in word):
                return f" ({file}, line {line})"
    return ""


def _plain(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _entries(file: Path) -> Iterator[tuple[str, float | str | None, int]]:
    """Dotted names, without `init_args` and `class_path`, values, and lines of a YAML file; none if it cannot be read."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        yield from _inside(yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader), "")


def _inside(node: yaml.Node | None, place: str) -> Iterator[tuple[str, float | str | None, int]]:
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name = place if key.value in ("init_args", "class_path") else f"{place}.{key.value}".removeprefix(".")
        yield name, _plain(value.value) if isinstance(value, yaml.ScalarNode) else None, key.start_mark.line + 1
        yield from _inside(value, name)
