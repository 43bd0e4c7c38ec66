"""Which file, and which of its lines, a value comes from that an error names."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import yaml

CONFIG = ("-c", "--config")


def origin(arguments: Sequence[str], message: str) -> str:
    """` (FILE, line N)` for the first value named in an error, or nothing where it comes from no config.

    Args:
        arguments: the command line, with the paths of its configs.
        message: the error, as `steps=0: ...` or `Option 'model.stepz' ...`.
    """
    options = [argument.partition("=")[0].removeprefix("--") for argument in arguments if argument.startswith("--")]
    words = [word.strip(".").replace(".init_args", "") for word in re.findall(r"[\w.+-]+", message)]
    words = [word.removesuffix(".class_path") for word in words]
    values = {_plain(word) for word in words}
    files = [Path(text) for text in _configs(arguments)]
    entries = [(file, *entry) for file in reversed(files) for entry in _entries(file)]
    for word in words:
        if any(option == word or option.endswith(f".{word}") for option in options):
            return ""
        for file, path, value, line in entries:
            has_value = value is not None and value in values and f".{path}".endswith(f".{word}")
            if has_value or (path == word and "." in word):
                return f" ({file}, line {line})"
    return ""


def _configs(arguments: Sequence[str]) -> Iterator[str]:
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in CONFIG:
            yield from [value] if equals else arguments[i + 1 : i + 2]


def _plain(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _entries(file: Path) -> Iterator[tuple[str, float | str | None, int]]:
    """Dotted names, without `init_args` and `class_path`, values, and lines of a YAML file; of no file, nothing."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        yield from _inside(yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader), "")


def _inside(node: yaml.Node | None, place: str) -> Iterator[tuple[str, float | str | None, int]]:
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name = place if key.value in ("init_args", "class_path") else f"{place}.{key.value}".removeprefix(".")
        yield name, _plain(value.value) if isinstance(value, yaml.ScalarNode) else None, key.start_mark.line + 1
        yield from _inside(value, name)
