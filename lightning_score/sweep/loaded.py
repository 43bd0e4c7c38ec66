"""A command of ours that is parsed again and again, and whose model stays loaded."""

import lightning_score.torchvision_guard  # noqa: F401

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Any

from lightning_score.callbacks import Evaluate
from lightning_score.commands.configs import with_checkpoint_config, with_found_configs
from lightning_score.commands.parser import Parser, UsageError
from lightning_score.commands.resume import prepared
from lightning_score.commands.trainer import ScoreCLI
from lightning_score.errors import InputError
from lightning_score.guidance import Guidance
from lightning_score.sampling import Sampler


class ParsedCommand(ScoreCLI):
    """A command that is only parsed: with many options, one after the other.

    Args:
        arguments: the command and its options.

    Raises:
        InputError: they are not accepted, or there is no such checkpoint or config.
    """

    def __init__(self, arguments: Sequence[str]):
        self._starting = True
        with io.StringIO() as said, redirect_stderr(said):
            try:
                super().__init__(*prepared(list(arguments)))
            except UsageError as refusal:
                raise InputError(refusal.message) from refusal
        self._starting = False

    def parse(self, arguments: Sequence[str]) -> Any:
        """The configuration that other options make with the same checkpoint.

        Raises:
            InputError: the parser refuses them; the message is its own.
        """
        arguments = with_found_configs(list(arguments))
        if self.checkpoint is not None:
            arguments = with_checkpoint_config(arguments, self.checkpoint)
        with io.StringIO() as said, redirect_stderr(said):
            try:
                self.parse_arguments(self.parser, arguments)
            except UsageError as refusal:
                raise InputError(refusal.message) from refusal
            self.said = said.getvalue()
        return self.config[self.command]

    def instantiate_classes(self) -> None:
        """Nothing is made."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


class LoadedCommand(ParsedCommand):
    """A command with model and data that stay, for one sampler after the other.

    Args:
        arguments: the command and its options; nothing is run yet.
    """

    def __init__(self, arguments: Sequence[str]):
        super().__init__(arguments)
        self._parts = Parser()
        self._parts.add_subclass_arguments(Sampler, "sampler", required=False)
        self._parts.add_subclass_arguments(Guidance, "guidance", required=False)
        self._parts.add_class_arguments(Evaluate, "evaluate")
        self._evaluated = self.config[self.command]["evaluate"]

    @property
    def evaluate(self) -> Evaluate:
        """What measures."""
        return self.config_init[self.command]["evaluate"]

    def instantiate_classes(self) -> None:
        """Model and data; each run has a trainer of its own."""
        super(ParsedCommand, self).instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None at first, while model and data are made."""
        return None if self._starting else super().instantiate_trainer(**kwargs)

    def run(self, arguments: Sequence[str]) -> dict[str, float]:
        """Runs the command with other options and returns all numbers."""
        self.take(arguments)
        sys.stderr.write(self.said)
        self.trainer = self.instantiate_trainer()
        getattr(self, self.command)(self.model, self.datamodule, "")
        return {name: float(value) for name, value in self.trainer.callback_metrics.items()}

    def take(self, arguments: Sequence[str]) -> None:
        """Gives the model the sampler and the guidance of other options, and takes their evaluation."""
        given = self.parse(arguments)
        self.before_instantiate_classes()
        wanted = {name: given["model"][name] for name in ("sampler", "guidance")}
        changed = given["evaluate"] != self._evaluated
        if changed:
            wanted["evaluate"] = self._evaluated = given["evaluate"]
        plain = {name: value.as_dict() for name, value in wanted.items() if value is not None}
        parts = self._parts.instantiate_classes(self._parts.parse_object(plain))
        self.model.use(parts.sampler, parts.guidance)
        mine = self.config_init[self.command]
        mine["output"] = given["output"]
        if changed:
            mine["evaluate"] = parts.evaluate
