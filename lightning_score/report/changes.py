"""What changes between two versions of the page's data, so that the page needs only that."""

from typing import Any

Change = int | dict[str, Any]
"""0: nothing; {"new": value}: another value; {"set": changes by key, "without": keys}: of a dictionary; {"list": steps}.

The steps go through the old list: n > 0 keeps its next n items, n < 0 skips them, {"add": items} adds items, and a change
is one of its next item. `changed` in state.js applies a change.
"""
NEAR = 64
"""How far an item of a list is looked for."""


def changes(old: Any, new: Any) -> Change:
    """The change from an old value, of JSON, to a new one."""
    if old is new or (type(old) is type(new) and old == new):
        return 0
    if isinstance(old, dict) and isinstance(new, dict):
        found = {key: changes(old[key], value) if key in old else {"new": value} for key, value in new.items()}
        return {"set": {key: change for key, change in found.items() if change}, "without": [*(old.keys() - new.keys())]}
    if isinstance(old, list) and isinstance(new, list) and (len(new) > 4 or any(map(_has_parts, new))):
        return {"list": _steps(old, new)}
    return {"new": new}


def _has_parts(value: Any) -> bool:
    return isinstance(value, (dict, list))


def _steps(old: list[Any], new: list[Any]) -> list[Any]:
    """The steps from an old list to a new one."""
    steps: list[Any] = []
    i = j = 0
    while j < len(new):
        same = 0
        while i + same < len(old) and j + same < len(new) and old[i + same] == new[j + same]:
            same += 1
        if same:
            steps, i, j = [*steps, same], i + same, j + same
            continue
        missing = next((k for k, item in enumerate(old[i : i + NEAR]) if item == new[j]), 0)
        added = next((k for k, item in enumerate(new[j : j + NEAR]) if i < len(old) and item == old[i]), 0)
        if missing and not 0 < added < missing:
            steps, i = [*steps, -missing], i + missing
        elif added or i == len(old) or not (_has_parts(old[i]) and type(old[i]) is type(new[j])):
            count = added or (1 if i < len(old) else len(new) - j)
            skipped = [] if added or i == len(old) else [-1]
            steps, i, j = [*steps, *skipped, {"add": new[j : j + count]}], i + len(skipped), j + count
        else:
            steps, i, j = [*steps, changes(old[i], new[j])], i + 1, j + 1
    return steps
