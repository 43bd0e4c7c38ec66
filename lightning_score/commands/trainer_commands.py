"""The commands with a trainer, by their names."""

from lightning_score.commands.evaluate import Test, Validate
from lightning_score.commands.fit import Fit
from lightning_score.commands.predict import Predict
from lightning_score.commands.trainer import TrainerCommand

TRAINER_COMMANDS: dict[str, type[TrainerCommand]] = {each.command: each for each in (Fit, Validate, Test, Predict)}
