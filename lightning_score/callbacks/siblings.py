"""How a callback finds another one of its trainer."""

from typing import TypeVar

from lightning.pytorch import Callback, Trainer

T = TypeVar("T", bound=Callback)


def find_callback(trainer: Trainer, kind: type[T]) -> T | None:
    """The trainer's first callback of a class, or None."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)
