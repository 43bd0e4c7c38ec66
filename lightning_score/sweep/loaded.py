"""Commands that stay in memory: parsed again with other options, or run again on a model that stays loaded."""

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr

from jsonargparse import Namespace

from lightning_score.callbacks import Evaluate
from lightning_score.commands.arguments import Arguments
from lightning_score.commands.configs import with_found_configs
from lightning_score.commands.parser import Parser
from lightning_score.commands.plain_parser import UsageError
from lightning_score.commands.trainer import TrainerCommand
from lightning_score.commands.trainer_commands import TRAINER_COMMANDS
from lightning_score.errors import InputError
from lightning_score.guidance import Guidance
from lightning_score.sampling import Sampler


class ParsedCommand:
    """A command that is only parsed: with many options, one after the other.

    Args:
        given: the command and its options, or their words.

    Attributes:
        cli: the command.
        messages: the text that the parser printed last.

    Raises:
        InputError: they are refused, or there is no such checkpoint or config.
    """

    def __init__(self, given: Arguments | Sequence[str]):
        arguments = _parsed(given)
        with self._capturing():
            self.cli: TrainerCommand = TRAINER_COMMANDS[arguments.command](arguments)

    @property
    def config(self) -> Namespace:
        """The configuration of the options parsed last."""
        return self.cli.config

    def parse(self, given: Arguments | Sequence[str]) -> Namespace:
        """The configuration that other options make with the same checkpoint.

        Raises:
            InputError: the parser refuses them; the message is its own.
        """
        arguments = self.cli.over_checkpoint(with_found_configs(_parsed(given)))
        with self._capturing():
            self.cli.parse_arguments(self.cli.parser, arguments)
        return self.config

    @contextmanager
    def _capturing(self) -> Iterator[None]:
        with io.StringIO() as printed, redirect_stderr(printed):
            try:
                yield
            except UsageError as refusal:
                raise InputError(refusal.message) from refusal
            finally:
                self.messages = printed.getvalue()


class LoadedCommand(ParsedCommand):
    """A command with model and data that stay, for one sampler after the other.

    Args:
        given: the command and its options, or their words; nothing is run yet.
    """

    def __init__(self, given: Arguments | Sequence[str]):
        super().__init__(given)
        with self._capturing():
            self.cli.make()
        self.model, self.datamodule = self.cli.model, self.cli.datamodule
        self._parts = Parser()
        self._parts.add_subclass_arguments(Sampler, "sampler", required=False)
        self._parts.add_subclass_arguments(Guidance, "guidance", required=False)
        self._parts.add_class_arguments(Evaluate, "evaluate")
        self._evaluated = self.config["evaluate"]

    @property
    def made(self) -> Namespace:
        """The configuration with its parts made."""
        return self.cli.config_init

    def run(self, given: Arguments | Sequence[str]) -> dict[str, float]:
        """Runs the command with other options and returns all numbers."""
        self.take(given)
        sys.stderr.write(self.messages)
        trainer = self.cli.trainer = self.cli.instantiate_trainer()
        self.cli.execute()
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    def take(self, given: Arguments | Sequence[str]) -> None:
        """Gives the model the sampler and the guidance of other options, and takes their evaluation and weights."""
        config = self.parse(given)
        self.cli.before_instantiate_classes()
        wanted = {name: config["model"][name] for name in ("sampler", "guidance")}
        if config["evaluate"] != self._evaluated:
            wanted["evaluate"] = self._evaluated = config["evaluate"]
        parts = self._parts.instantiate_classes(Namespace(wanted))
        self.model.use(parts.sampler, parts.guidance)
        self.made["output"], self.made["ema_length"] = config["output"], config.get("ema_length")
        if "evaluate" in wanted:
            self.made["evaluate"] = parts.evaluate


def _parsed(given: Arguments | Sequence[str]) -> Arguments:
    return given if isinstance(given, Arguments) else Arguments.parse(given)
