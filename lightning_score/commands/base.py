"""LightningCLI for a score model on its data, with the callbacks of every run: what commands with a model share."""

import lightning_score.lean_imports  # noqa: F401

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.memory import is_oom_error
from torch import Tensor

from lightning_score.callbacks import EMA, Evaluate, LossGuard, SampleGrid
from lightning_score.commands.arguments import Arguments
from lightning_score.commands.mistakes import check_config, make_paths_absolute
from lightning_score.commands.parser import Parser
from lightning_score.commands.refusals import TRAINER_DEFAULTS, check_trainer, of_lightning, of_options
from lightning_score.data import ScoreData
from lightning_score.data.check import declared_shape
from lightning_score.errors import InputError, one_line, require, user_mistake
from lightning_score.training.model import ScoreModel

GROUPS = {"trainer": Trainer, "model": ScoreModel, "ema": EMA, "samples": SampleGrid, "evaluate": Evaluate,
          "guard": LossGuard}  # fmt: skip
"""The parameters that every command has, by their names."""


class ExperimentCLI(LightningCLI):
    """Makes model, data, trainer and the named callbacks from options.

    Args:
        arguments: the options.
        settings: further settings of LightningCLI.

    Attributes:
        checkpoint: the checkpoint that it works on, if any.
    """

    checkpoint: dict[str, Any] | None = None

    def __init__(self, arguments: Arguments | list[str], **settings: Any):
        super().__init__(
            ScoreModel,
            ScoreData,
            subclass_mode_data=True,
            seed_everything_default=0,
            parser_class=Parser,
            auto_configure_optimizers=False,
            trainer_defaults=TRAINER_DEFAULTS,
            args=arguments,  # type: ignore[arg-type]  # which goes to `parse_arguments`
            run=False,
            **settings,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links the shape of the data to the model, and adds the callbacks of every run as groups of options."""
        parser.link_arguments("data", "model.shape", self.shape_of, apply_on="instantiate")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.condition", "model.condition", apply_on="instantiate")
        for name in ("ema", "samples", "evaluate", "guard"):
            parser.add_lightning_class_args(GROUPS[name], name)
        parser.add_argument("--name", type=str, default="run", help="Name of the run; that of its config by default.")

    def shape_of(self, data: ScoreData) -> tuple[int, ...]:
        """The shape of data, which first get their state in the checkpoint, so that samples can be drawn without files."""
        state = (self.checkpoint or {}).get(type(data).__qualname__)
        if state is not None:
            require(isinstance(state, dict), "--ckpt_path: the checkpoint's state of the data is damaged")
            data.load_state_dict(state)
        return declared_shape(data)

    def parse_arguments(  # type: ignore[override]
        self, parser: LightningArgumentParser, args: Arguments | list[str]
    ) -> None:
        """Parses the given arguments, never those of the process, and checks the configuration that they make."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]  # a `Parser` takes both
        self.config.pop("trust", None)  # is of this command alone
        check_config(self.config, GROUPS)
        check_trainer(self.config.get("trainer") or {})
        make_paths_absolute(self.config, GROUPS)

    def instantiate_classes(self) -> None:
        """Makes model, data and trainer.

        Raises:
            InputError: they refuse their options.
        """
        with self.explaining():
            super().instantiate_classes()

    def load_state(self, weights: Mapping[str, Tensor]) -> None:
        """Gives the model weights.

        Raises:
            InputError: they do not fit its network, or its objective, if that has parameters.
        """
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            part, fix = "network", ""
            if "learned." in str(error):
                part, fix = (
                    "objective",
                    "; keep its model.objective.weighting, or train anew from its model.start_from weights",
                )
            raise InputError(
                f"the checkpoint's weights do not fit the {part} of the options{fix}: {one_line(error)}"
            ) from error

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Within it, what Lightning or torch refuses is an error that names the trainer's options.

        Raises:
            InputError: in place of the error.
        """
        try:
            yield
        except Exception as error:
            mistake = isinstance(error, ValueError | MemoryError) or is_oom_error(error) or of_lightning(error)
            if not mistake or user_mistake(error):
                raise
            raise InputError(of_options(error, self.config["trainer"])) from error


class IdleExperiment(ExperimentCLI):
    """Model and data from options, with a trainer that runs nothing and writes nothing.

    Args:
        arguments: the options.
    """

    def __init__(self, arguments: Arguments | list[str]):
        super().__init__(arguments, save_config_callback=None)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer for one process on the CPU."""
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        return super().instantiate_trainer(**quiet, devices=1, max_steps=0, **kwargs)
