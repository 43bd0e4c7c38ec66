"""The abstract classes of parts that options take, and their concrete classes."""

import inspect
from typing import get_args, get_type_hints


def parts(owner, seen):
    """The parameters that take one of our abstract classes, of a class and, recursively, of its parts."""
    seen.add(owner)
    for name, hint in get_type_hints(owner.__init__).items():
        candidates = [hint, *get_args(hint)]
        for base in candidates:
            if inspect.isclass(base) and inspect.isabstract(base) and base.__module__.startswith("lightning_score"):
                yield name, base
                for part in sorted(descendants(base) - seen, key=lambda part: part.__name__):
                    yield from parts(part, seen)


def descendants(base):
    """All concrete public classes derived from a class."""
    children = {child for direct in base.__subclasses__() for child in {direct, *descendants(direct)}}
    return {child for child in children if not inspect.isabstract(child) and not child.__name__.startswith("_")}
