"""Checks before anything is computed or written: whether the data fit, and what the samples cost."""

import time
from math import prod
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from lightning_score.callbacks.base import as_list, fast_dev_run
from lightning_score.callbacks.bits_per_dim import LikelihoodCallback
from lightning_score.callbacks.distances import measures
from lightning_score.callbacks.ensembles import EnsembleCallback
from lightning_score.callbacks.evaluate import Evaluate
from lightning_score.callbacks.posterior import Posterior
from lightning_score.data import ScoreData
from lightning_score.errors import require
from lightning_score.memory import require_room
from lightning_score.training.inference import inference
from lightning_score.training.model import ScoreModel

COMMANDS = {"fit": "each validation", "validate": "the validation", "test": "the test", "predict": "the prediction"}
"""What draws the samples of each command."""
LONG = 300.0
"""Seconds of sampling from which a command announces them."""
MOST_EVALUATIONS = 1e13
"""Most network evaluations that are accepted: at a microsecond each they take four months."""
TIMED = 16
"""Samples in the batch that is timed."""
SLOW = 0.5
"""Seconds for one sample from which no more are timed."""


def check_data(command: str, data: ScoreData, config: Any) -> None:
    """Loads the data, which checks them, and lets the callbacks that measure check them, too.

    Args:
        command: fit, validate, test, or predict, which needs no data.
        data: the data module.
        config: the command's options, instantiated.

    Raises:
        InputError: something does not fit.
    """
    if command == "predict":
        return
    if command == "fit":
        data.train_dataloader()
    data.val_dataloader()
    config["model"].check_missing(data.missing)
    for callback in (config["evaluate"], *as_list(config["trainer"]["callbacks"])):
        if isinstance(callback, Evaluate | EnsembleCallback | LikelihoodCallback):
            callback.check(data)
        if isinstance(callback, EnsembleCallback):
            callback.check_model(config["model"])


class SamplingCost(Callback):
    """Refuses samples that cannot be drawn, and announces before the start how long they take.

    Args:
        command: fit, validate, test or predict.
        model: the model.
        config: the command's options, instantiated.
        data: the data, which say whether anything is measured.

    Raises:
        InputError: they do not fit into memory, would take years, or lack an observation.
    """

    def __init__(self, command: str, model: ScoreModel, config: Any, data: ScoreData):
        evaluate, samples, size = config["evaluate"], config["samples"], 16 * prod(model.shape)
        measured = evaluate.num_samples * (evaluate.repeats if command == "test" else 1) * measures(evaluate, data)
        grid = samples.num_samples * (command != "test")
        drawn = {"--evaluate.num_samples": measured, "--samples.num_samples": grid}
        kept = min(evaluate.neighbors, measured) * (command == "test")
        at_once = {"--evaluate.batch_size": min(evaluate.batch_size, measured)}
        callbacks = as_list(config["trainer"]["callbacks"])
        for each in callbacks:
            if isinstance(each, EnsembleCallback) and (each.in_fit or command == "test"):
                name, n = f"{type(each).__name__}, {each.conditions} x {each.members}:", each.conditions * each.members
                drawn[name], at_once[f"{name} batch_size={each.batch_size}:"] = n, min(each.batch_size, n)
        at_once |= {"--samples.num_samples": grid, "--evaluate.neighbors": kept}
        if command == "predict":
            drawn = at_once = {"--num_samples": config["num_samples"]}
        for option, n in at_once.items():
            require_room(n * size, f"{option} {n}: samples of shape {list(model.shape)}")
        self.command, self.model, self.n, self._announced = command, model, sum(drawn.values()), False
        self.evaluations = model.sampler.evaluations(model.score_function.process)
        observes = any(isinstance(each, Posterior) for each in callbacks)  # examples, for all samples
        for part in model.guidance.observing() if model.guidance and self.n and not observes else []:
            part.given()
        options, total = " and ".join(f"{option} {n}" for option, n in drawn.items() if n), self.n * self.evaluations
        cost = f"at {self.evaluations} network evaluations each, these are {total:.1e}, which would take months"
        require(total <= MOST_EVALUATIONS, f"{options}: {cost}; give fewer samples, or the sampler fewer steps")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Announces once how long the samples take, if that is long."""
        if self._announced or trainer.world_size > 1 or not self.n or fast_dev_run(trainer):
            return
        self._announced = True
        seconds = self.n * self.evaluations * _seconds_per_evaluation(self.model)
        if seconds > LONG:
            hours = f"{seconds / 3600:.3g} hours" if seconds > 3600 else f"{seconds / 60:.0f} minutes"
            drawn = f"{self.n} samples at {self.evaluations} network evaluations each: about {hours}"
            tqdm.write(f"{COMMANDS[self.command]} draws {drawn}; fewer samples or sampler steps take less")

    on_validation_start = on_test_start = on_predict_start = on_fit_start


@torch.inference_mode()
def _seconds_per_evaluation(model: ScoreModel) -> float:
    """The time of one sample in a small batch, the least of three, or alone if that is slow; without compilation."""
    t, times = torch.tensor(0.5, device=model.device), []
    with inference(model, eagerly=True):
        for n in (1, TIMED, TIMED, TIMED):  # the first warms up
            x = torch.zeros(n, *model.shape, device=model.device).to(model.dtype)
            given = model.conditions.given
            cond = None if given is None else given.empty(n, model.device)
            start = time.monotonic()
            model.score_function(x, t, cond).sum().item()
            times.append((time.monotonic() - start) / n)
            if times[0] > SLOW:
                break
    return min(times)
