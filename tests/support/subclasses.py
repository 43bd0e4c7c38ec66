"""Subclasses of the package."""

from inspect import isabstract


def concrete(cls):
    """All subclasses of the package that can be built."""
    for sub in cls.__subclasses__():
        if not isabstract(sub) and sub.__module__.startswith("lightning_score."):
            yield sub
        yield from concrete(sub)
