"""The parser of commands with classes: a named class starts from its own defaults."""

from typing import Any

from lightning_score.commands.plain_parser import PlainParser
from lightning_score.errors import InputError
from lightning_score.metrics import Features
from lightning_score.runs.trust import ClassParser


class Refused(BaseException):
    """Carries a mistake past the parser, which keeps only the text of errors in the elements of a list."""

    def __init__(self, mistake: InputError):
        super().__init__(str(mistake))
        self.mistake = mistake


class Parser(PlainParser, ClassParser):
    """A parser that makes classes, and whose errors are one line with the fix."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_instantiator(_make, Features)

    def instantiate_classes(self, *args: Any, **settings: Any) -> Any:
        """Makes the classes of a configuration.

        Raises:
            InputError: one of them refuses its arguments.
        """
        try:
            return super().instantiate_classes(*args, **settings)
        except Refused as error:
            raise error.mistake from None


def _make(kind: type, *args: Any, **settings: Any) -> Any:
    """Makes an instance of a class."""
    try:
        return kind(*args, **settings)
    except InputError as mistake:
        raise Refused(mistake) from mistake
