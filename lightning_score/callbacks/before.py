"""What a command finds out about its data before anything is computed or written."""

from collections.abc import Mapping
from typing import Any

from lightning_score.callbacks.bits import BitsPerDim
from lightning_score.callbacks.evaluate import Evaluate
from lightning_score.data import ScoreData
from lightning_score.utils import require


def check_data(command: str, data: ScoreData, trainer: Mapping[str, Any], evaluate: Evaluate) -> None:
    """Loads the data, and so compares them with what is declared, and lets those that measure look at them.

    Args:
        command: fit, validate, test, or predict, which needs no data.
        data: the data module.
        trainer: the trainer's options.
        evaluate: the measurement that every command has.

    Raises:
        InputError: something does not fit.
    """
    if command == "predict":
        return
    if command == "fit":
        data.train_dataloader()
    else:
        limit = f"limit_{'val' if command == 'validate' else 'test'}_batches"
        require(trainer[limit] != 0, f"--trainer.{limit} {trainer[limit]}: {command} would measure nothing; leave it out")
    data.val_dataloader()
    callbacks = trainer["callbacks"] if isinstance(trainer["callbacks"], list) else [trainer["callbacks"]]
    for callback in (evaluate, *callbacks):
        if isinstance(callback, Evaluate | BitsPerDim):
            callback.check(data)
