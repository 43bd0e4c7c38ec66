"""Queries that read like Python, as those of the page: `config.model.sampler.steps < 50 and fid < 2 and "ncsn" in name`.

A value that a run lacks is unknown; so is what is computed from it, and the run does not match.
"""

import ast
import difflib
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from lightning_score.errors import InputError, one_line, require, user_mistake

TOKEN = re.compile(
    r"""[ \t\r\n]*((?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.])|"[^"\\\n]*"|'[^'\\\n]*'"""
    r"""|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*|[<>=!]=|[<>()\[\],-])""",
    re.ASCII,
)
"""The words of a query, as in query.js."""
FIELDS = {"name": "name", "state": "state", "note": "note", "notes": "notes", "archived": "archived", "tag": "tags"}
"""Names of a query, and what the page calls them; any tag is compared."""
UNKNOWN = object()
ORDERS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
NEGATED: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.NotEq: ast.Eq, ast.NotIn: ast.In}


class _Tags(list[str]):
    """The tags of a run: a comparison holds if it holds for one of them."""


class Query:
    """Selects runs.

    Args:
        text: the query.
        runs: all runs, as the page's data have them, whose names it may contain.

    Raises:
        InputError: it cannot be read, or has a name that no run has.
    """

    def __init__(self, text: str, runs: Iterable[Mapping[str, Any]]):
        self._names = _names_of(runs)
        words, end = [], 0
        while text[end:].strip():
            found = TOKEN.match(text, end)
            if found is None:
                raise InputError(f"--query: cannot be read from {text[end:].strip()[:30]}")
            words.append(f"{found[1]}.0" if found[1].isdigit() else found[1])
            end = found.end()
        quoted = [word[0] in "\"'" for word in words]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call = ast.parse(f"f({' '.join(words)})", mode="eval").body
            arguments = call.args if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else []
            joined = (True, True) in pairwise(quoted)
            require(len(arguments) == 1 and words[-1] != "," and not joined,
                    "--query: must be one condition, as in 'fid < 2 and \"ncsn\" in name'")  # fmt: skip
            self._tree = arguments[0]
            self._compute(self._tree, None)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise user_mistake(error) or InputError(f"--query: cannot be read ({_reason(error)})") from error

    def matches(self, run: Mapping[str, Any]) -> bool:
        """Whether a run is selected."""
        return _truth(self._compute(self._tree, run)) is True

    def _compute(self, node: ast.expr, run: Mapping[str, Any] | None) -> Any:
        """The value of a part of the query; without a run all its parts and names are only checked."""
        match node:
            case ast.BoolOp(op, parts):
                return _joined([_truth(self._compute(part, run)) for part in parts], isinstance(op, ast.Or))
            case ast.UnaryOp(ast.Not(), part):
                return _opposite(self._compute(part, run))
            case ast.UnaryOp(ast.USub(), part):
                value = self._compute(part, run)
                return -value if isinstance(value, (int, float)) else UNKNOWN
            case ast.Compare(left, signs, parts) if all(type(sign) in {*ORDERS, *NEGATED, ast.Eq, ast.In} for sign in signs):
                values = [self._compute(part, run) for part in (left, *parts)]
                pairs = zip(signs, values, values[1:], strict=False)
                return _joined([_compared(type(sign), a, b) for sign, a, b in pairs], False)
            case ast.List(parts) | ast.Tuple(parts):
                return [self._compute(part, run) for part in parts]
            case ast.Constant(value):
                return value
            case ast.Name() | ast.Attribute():
                return self._named(ast.unparse(node), run)
        raise InputError(f"--query: {ast.unparse(node)} is not allowed; use names, values, comparisons, and, or, not")

    def _named(self, name: str, run: Mapping[str, Any] | None) -> Any:
        if name not in self._names:
            near = difflib.get_close_matches(name, self._names, cutoff=0.4)
            raise InputError(f"--query: no run has {name}" + (f"; near: {', '.join(near)}" if near else ""))
        part, key = self._names[name]
        if run is None:
            return UNKNOWN
        return _Tags(run[key]) if name == "tag" else (run[part] if part else run).get(key, UNKNOWN)


def _reason(error: BaseException) -> str:
    return getattr(error, "msg", "") or one_line(error, 100)


def _names_of(runs: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Where the value of each name is in a run: settings, values or the run itself, and its key."""
    names = {name: ("", key) for name, key in FIELDS.items()}
    for run in runs:
        for key in run["values"]:
            names.setdefault(key, ("values", key))
        for key in run["settings"]:
            names[f"config.{re.sub(r'[^a-zA-Z0-9_.]', '_', key)}"] = "settings", key
    return names


def _truth(value: Any) -> Any:
    return value if value is UNKNOWN else bool(value)


def _opposite(value: Any) -> Any:
    return value if value is UNKNOWN else not value


def _joined(values: Sequence[Any], decides: bool) -> Any:
    """Values joined by `or` (True decides) or `and` (False decides), in Kleene's logic of three values."""
    return decides if any(value is decides for value in values) else UNKNOWN if UNKNOWN in values else not decides


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _equal(a: Any, b: Any) -> bool:
    if _is_number(a) and _is_number(b):
        return float(a) == float(b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return type(a) is type(b) and not isinstance(a, (list, dict)) and bool(a == b)


def _compared(sign: type[ast.cmpop], a: Any, b: Any) -> Any:
    """A comparison; values of different types have no order."""
    if sign in NEGATED:
        return _opposite(_compared(NEGATED[sign], a, b))
    if a is UNKNOWN or b is UNKNOWN:
        return UNKNOWN
    if isinstance(a, _Tags):
        return any(_compared(sign, each, b) is True for each in a)
    if isinstance(b, _Tags):
        return any(_compared(sign, a, each) is True for each in b)
    if sign is ast.Eq:
        return _equal(a, b)
    if sign is ast.In:
        if isinstance(b, list):
            return any(_equal(a, each) for each in b)
        return a in b if isinstance(a, str) and isinstance(b, str) else UNKNOWN
    if _is_number(a) and _is_number(b):
        return ORDERS[sign](float(a), float(b))
    return ORDERS[sign](a, b) if isinstance(a, str) and isinstance(b, str) else UNKNOWN
