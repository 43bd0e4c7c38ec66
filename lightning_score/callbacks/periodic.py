"""Callbacks that act at every n-th validation."""

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn


class Periodic(Callback):
    """Counts validations; a resumed run continues the count.

    Attributes:
        every_n_validations: the n.
        validated_at: the training step of the last validation, -1 before the first.
    """

    every_n_validations = 1
    validated_at = -1
    _validations = 0

    def due(self, trainer: Trainer) -> bool:
        """Counts this validation, and returns whether to act at it; outside of `fit`, always."""
        if trainer.sanity_checking:
            return False
        self._validations += 1
        self.validated_at = trainer.global_step
        return trainer.state.fn != TrainerFn.FITTING or self._validations % self.every_n_validations == 0

    def state_dict(self) -> dict[str, int]:
        """How many validations there were, and when the last one was."""
        return {"validations": self._validations, "validated_at": self.validated_at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues the count."""
        self._validations, self.validated_at = state["validations"], state["validated_at"]
