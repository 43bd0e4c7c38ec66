"""Messages have one grammar: `name=value: what is allowed; the fix`, or `--name value: ...` for options."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_score"
ERRORS = {"require", "InputError", "Unmeasurable"}
REFUSED = {
    "a sentence in place of name=value": r"\b(is|are) \{[^}]*\}[,;]? (\w+ )?must\b|^\w+ (is|are) \{[^}]*\}[,;]",
    "name value without --": r"^(?!sweep|metric)([a-z]\w*) \{(list\()?(self\.)?\1\b",
    "a period at the end": r"(?<!\.)\.$",
    "is no, are no": r"(?<!there )\b(is|are) no\b|\bis none\b",
    "nobody, nothing comes to": r"\bnobody\b|\bcomes? to (nothing|the end)\b",
    "a sentence in place of must be": r"\}: (an?|the) [\w ]+ (needs?|must be) at least",
    "goes on": r"\bgoes on\b|\bgo on\b",
}


def text(node):
    """The text of a string in the source, with what is filled in in braces."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    return text(node.left) + text(node.right) if isinstance(node, ast.BinOp) else f"{{{ast.unparse(node)}}}"


@cache
def messages():
    """Every message of the package, with its place."""
    return [
        (f"{path.relative_to(PACKAGE)}:{node.lineno}", text(node.args[-1]))
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS and node.args
    ]


def test_every_message_is_read():
    found = dict(messages())
    assert len(found) > 400 and any(message.startswith("batch_size={batch_size}: must") for message in found.values())


@pytest.mark.parametrize("kind", REFUSED)
def test_the_grammar_of_messages(kind):
    wrong = [f"{place}: {message}" for place, message in messages() if re.search(REFUSED[kind], message)]
    assert wrong == []
