"""The commands `validate` and `test`: what a checkpoint and its samples measure."""

from typing import Any

from lightning_score.commands.summary import print_evaluation
from lightning_score.commands.trainer import TrainerCommand
from lightning_score.errors import InputError


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
    """Measures a checkpoint in full: loss, FID, KID, precision, recall, copies."""

    command = "test"
