"""What callbacks share: a count of validations, and what they ask of the trainer."""

from typing import Any, TypeVar

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_score.data import ScoreData
from lightning_score.errors import require

T = TypeVar("T", bound=Callback)


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


def callbacks_of(trainer: Trainer, kind: type[T]) -> list[T]:
    """The trainer's callbacks of a class."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]


def find_callback(trainer: Trainer, kind: type[T]) -> T | None:
    """The trainer's first callback of a class, or None."""
    return next(iter(callbacks_of(trainer, kind)), None)


def as_list(chosen: Any) -> list[Any]:
    """What may be given as one, as several or not at all, as a list."""
    return [] if chosen is None else list(chosen) if isinstance(chosen, list | tuple) else [chosen]


def data_of(trainer: Trainer, user: str = "a callback") -> ScoreData:
    """The trainer's data module.

    Args:
        trainer: the trainer.
        user: who needs it, for the message.

    Raises:
        InputError: it has none.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    fix = "give the trainer a data module, trainer.fit(model, datamodule=...), or remove the callback"
    require(isinstance(data, ScoreData), f"{user} needs the training data: {fix}")
    return data


def fast_dev_run(trainer: Trainer) -> bool:
    """Whether the trainer only tries every part once, and writes nothing."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def writes_files(trainer: Trainer) -> bool:
    """Whether this process writes files: the first one does, except in `fast_dev_run`."""
    return trainer.is_global_zero and not fast_dev_run(trainer)
