"""Makes the parts of a trial without running it: what its constructors refuse is found before the sweep begins."""

import json
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_score.commands.base import GROUPS
from lightning_score.commands.parser import Parser, UsageError
from lightning_score.data import ScoreData
from lightning_score.errors import InputError
from lightning_score.sweep.loaded import LoadedCommand


class Constructors:
    """Makes the parts of configurations; a part that is the same as before is not made again.

    Args:
        command: the loaded command of the first trial, whose data serve all trials that do not vary them.
    """

    def __init__(self, command: LoadedCommand):
        self._command, self._known = command, {}
        self._data = json.dumps(_plain(command.config["data"]), default=str, sort_keys=True)
        self._parsers: dict[str, Parser] = {}
        for name, owner in GROUPS.items():
            self._parsers[name] = Parser()
            self._parsers[name].add_lightning_class_args(owner, name)
        self._parsers["data"] = Parser()
        self._parsers["data"].add_subclass_arguments(ScoreData, "data")

    def make(self, given: Any) -> dict[str, Any]:
        """The parts of a configuration by the names of their groups: the arguments of the trainer, the others as objects.

        Raises:
            InputError: a constructor refuses its values.
        """
        plain = {name: _plain(given[name]) for name in self._parsers}
        data = self._command.datamodule
        if json.dumps(plain["data"], default=str, sort_keys=True) != self._data:
            data = self._one("data", plain["data"])
        plain["model"] |= {"shape": list(data.shape), "num_classes": data.num_classes}
        return {"data": data, **{name: self._one(name, plain[name]) for name in GROUPS}}

    def _one(self, name: str, plain: Mapping[str, Any]) -> Any:
        key = name + json.dumps(plain, default=str, sort_keys=True)
        if key not in self._known:
            self._known[key] = refusing(lambda: self._made(name, plain))
        return self._known[key]

    def _made(self, name: str, plain: Mapping[str, Any]) -> Any:
        parser = self._parsers[name]
        part = parser.instantiate_classes(parser.parse_object({name: plain}))[name]
        if name == "trainer":
            Trainer(**{**part, "logger": False})
        return None if name == "model" else part  # networks take memory


def refusing(call: Any) -> Any:
    """What a call returns.

    Raises:
        InputError: it raises an error, as a trial would.
    """
    try:
        return call()
    except UsageError as refusal:
        raise InputError(refusal.message) from refusal
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ArithmeticError, OSError, LookupError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, InputError):  # the parser wraps what constructors raise
            cause = cause.__cause__
        raise InputError(" ".join(str(cause).split())[:600] or type(cause).__name__) from error


def _plain(part: Any) -> Any:
    return part.as_dict() if hasattr(part, "as_dict") else part
