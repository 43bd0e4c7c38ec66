"""Unambiguous YAML: duplicate keys are errors, and plain values are read as in YAML 1.2."""

import re
import sys
from pathlib import Path
from typing import Any, ClassVar

import yaml
from jsonargparse import _typehints, set_loader
from jsonargparse._common import parent_parser
from jsonargparse._loaders_dumpers import load_basic, not_loaded

from lightning_score.errors import InputError, require
from lightning_score.runs.old_names import with_new_names

MODE = "unambiguous_yaml"
"""The name of `load` in jsonargparse."""
KEEP = "+"
"""Before the name of a class: keep the current values of parameters that it has too."""
NO_FUNCTION = "takes a function, but a config makes only classes; write a class of your own, as my_parts.MySchedule"
"""The error for the name of a function."""
LARGEST = 100_000
"""Most values in a file; an alias counts wherever it is used."""
DEEPEST = 100
"""Most levels of nesting."""
PLAIN = "tag:yaml.org,2002:"
RESOLVED = {
    "null": ([*"~nN", ""], "~|null|Null|NULL|"),
    "merge": ("<", "<<"),
    "bool": ("tTfF", "true|True|TRUE|false|False|FALSE"),
    "int": ("-+0123456789", r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)"),
    "float": (
        "-+.0123456789",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    ),
}
"""Plain values that are not text, by their first letter and form: as in YAML 1.2, so yes, no, on, off and 1:30 are text."""


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the quicker one, if it is there
    """A safe loader that refuses duplicate keys and numbers with leading zeros."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping without duplicate keys."""
        seen: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                line = key.start_mark.line + 1
                if key.value in seen:
                    raise yaml.YAMLError(f"{key.value} is given twice, in lines {seen[key.value]} and {line}; keep one")
                seen[key.value] = line
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """An integer; `010` is refused, for it is 8 in YAML 1.1 and 10 in YAML 1.2."""
        if re.fullmatch(r"[-+]?0[0-9_]+", node.value):
            plain = node.value.replace("_", "").lstrip("+-0") or "0"
            raise yaml.YAMLError(
                f"line {node.start_mark.line + 1}: {node.value}: a number with a leading zero is octal for some readers; "
                f"write {plain}, or '{node.value}' in quotes for text"
            )
        found = super().construct_yaml_int(node)
        if abs(found) > sys.float_info.max:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a number of more than 308 digits")
        return found


for _name, (_letters, _pattern) in RESOLVED.items():
    Loader.add_implicit_resolver(f"{PLAIN}{_name}", re.compile(f"^(?:{_pattern})$"), list(_letters))
Loader.add_constructor(f"{PLAIN}int", Loader.construct_yaml_int)


def load(text: str) -> Any:
    """The content of YAML text.

    Raises:
        yaml.YAMLError: it is not YAML, ambiguous, or too large.
    """
    try:
        _check_depth(text)
        content = yaml.load(text, Loader)  # noqa: S506 - a safe loader
        _check_size(content)
    except ValueError as error:  # such as a number of 5000 digits
        raise yaml.YAMLError(str(error)) from error
    return with_new_names(content, options=False)


def _check_depth(text: str) -> None:
    """Refuses nesting that would exhaust the stack of the C parser."""
    depth = 0
    for event in yaml.parse(text, Loader) if len(text) > DEEPEST else ():
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"nested more than {DEEPEST} times")


def _check_size(content: Any) -> None:
    """Refuses more than `LARGEST` values."""
    left, seen = [content], 0
    while left:
        value, seen = left.pop(), seen + 1
        if seen > LARGEST:
            raise yaml.YAMLError(f"more than {LARGEST} values, its aliases followed, or an alias inside its own anchor")
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def read_mapping(path: str | Path, kind: str, example: str) -> tuple[dict[str, Any], str]:
    """The content and the text of a file.

    Args:
        path: of the file.
        kind: the expected kind of file, for errors.
        example: the beginning of such a file.

    Raises:
        InputError: it is not text, not YAML, or not a mapping.
    """
    raw, wrong = Path(path).read_bytes(), f"{path}: not a {kind}"
    try:
        text = raw.decode("utf-8")
        require("\0" not in text, f"{wrong}: it is not text, for it has zero bytes")
        content = load(text)
    except UnicodeDecodeError as error:
        known = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding, or not text at all"
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{wrong} in UTF-8 (line {line} has bytes of {known}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise InputError(f"{wrong}: {place}{' '.join(problem.split())}") from error
    found = {"NoneType": "empty", "list": "a list", "str": "text"}.get(type(content).__name__, f"the value {content}")
    require(isinstance(content, dict), f"{wrong}: it is {found}, and not a mapping like '{example}'")
    strange = [key for key in content if not isinstance(key, str)]
    require(not strange, f"{wrong}: {strange[:1]}: the names in it must be text")
    return content, text


def _text_of_number(text: str) -> Any:
    """The value of plain text: read by `load` for our parsers, as jsonargparse does for others."""
    parser = parent_parser.get()
    if parser is None or parser.parser_mode != MODE:
        return _original_text_of_number(text)
    found = load_basic(text)
    return load(text) if found is not_loaded else found


set_loader(MODE, load, exceptions=(yaml.YAMLError,))
_original_text_of_number = _typehints.basic_json_or_yaml_load  # type: ignore[attr-defined]
_typehints.basic_json_or_yaml_load = _text_of_number  # type: ignore[attr-defined]
