"""The commands `validate` and `test`: what a checkpoint and its samples measure."""

import lightning_score.lean_imports  # noqa: F401

from dataclasses import replace
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from lightning_score.callbacks import Posterior
from lightning_score.callbacks.base import as_list
from lightning_score.commands.arguments import Arguments, Option
from lightning_score.commands.summary import print_evaluation
from lightning_score.commands.trainer import TrainerCommand
from lightning_score.errors import InputError, require


class Evaluation(TrainerCommand):
    """Measures a checkpoint and its samples."""

    def load_weights(self, checkpoint: dict[str, Any]) -> None:
        """Also gives `EMA` the weights that are not averaged."""
        super().load_weights(checkpoint)
        self.config_init["ema"].raw_state = checkpoint.get("current_model_state")

    def execute(self) -> None:
        self._restore_step()
        getattr(self.trainer, self.command)(self.model, datamodule=self.datamodule, verbose=False)
        print_evaluation(self.trainer, self.folder)

    def _restore_step(self) -> None:
        """Gives the trainer the training step of the checkpoint, under which results are logged."""
        loops = (self.checkpoint or {}).get("loops", {})
        try:
            self.trainer.fit_loop.load_state_dict(loops["fit_loop"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"--ckpt_path: the checkpoint does not hold the step of its training ({reason})") from error


class Validate(Evaluation):
    """Measures a checkpoint as fit does: held-out loss, samples, FID."""

    command = "validate"


class Test(Evaluation):
    """Measures a checkpoint in full: loss, FID, KID, precision, recall, copies; or samples given observations."""

    command = "test"

    def add_options(self, parser: LightningArgumentParser) -> None:
        super().add_options(parser)
        posterior = (
            "Measure samples given observations of held-out examples in place of all others: true, or its numbers, as "
            "--posterior.observations 64; needs a guidance by observations."
        )
        parser.add_argument("--posterior", type=Posterior | None, default=None, help=posterior)

    def over_checkpoint(self, arguments: Arguments) -> Arguments:
        """Also reads `--posterior`, `--posterior true` and `--posterior false`."""
        return super().over_checkpoint(replace(arguments, options=tuple(map(_switched, arguments.options))))

    def make(self) -> None:
        """Also makes what measures samples given observations the only measure of samples."""
        super().make()
        config = self.config_init
        if config["posterior"] is not None:
            callbacks = as_list(config["trainer"]["callbacks"])
            config["trainer"]["callbacks"] = config["posterior"].alone(config["evaluate"], callbacks)


def _switched(option: Option) -> Option:
    """`--posterior`, or true or false as its value, as the parser takes it."""
    if option.name != "--posterior":
        return option
    value = {"": "{}", "true": "{}", "false": "null"}.get(" ".join(option.values).lower(), " ".join(option.values))
    known = value == "null" or "{" in value or value.endswith("Posterior")
    require(known, f"--posterior {value}: must be true or false; its numbers are options, as --posterior.observations 64")
    return Option(option.name, (value,), True)
