"""What happens at every n-th validation."""

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn


class Periodic(Callback):
    """Counts validations; a run that goes on from a checkpoint goes on counting.

    Attributes:
        every_n_validations: how often something is due.
        validated_at: the training step of the last validation, -1 before the first.
    """

    every_n_validations = 1
    validated_at = -1
    _validations = 0

    def due(self, trainer: Trainer) -> bool:
        """Whether it is due at this validation, which counts from now on; outside of `fit` it always is."""
        if trainer.sanity_checking:
            return False
        self._validations += 1
        self.validated_at = trainer.global_step
        return trainer.state.fn != TrainerFn.FITTING or self._validations % self.every_n_validations == 0

    def state_dict(self) -> dict[str, int]:
        """How many validations there were, and when the last one was."""
        return {"validations": self._validations, "validated_at": self.validated_at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on counting."""
        self._validations, self.validated_at = state["validations"], state["validated_at"]
