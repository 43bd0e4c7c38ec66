"""What a sweep will cost, before it begins."""

import lightning_score.torchvision_guard  # noqa: F401

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_score.sampling import NoiseStream
from lightning_score.score.function import Conditioned, ScoreField
from lightning_score.sweep.loaded import LoadedCommand
from lightning_score.sweep.results import duration
from lightning_score.tensors import broadcast_to
from lightning_score.training.model import ScoreModel

MOST = 24
"""Settings whose evaluations are counted; the others are taken to be like them."""
BATCH = 256


@dataclass(frozen=True)
class Cost:
    """The cost of a sweep.

    Attributes:
        trials: how many.
        samples: drawn to measure, in all.
        evaluations: of the network per sample, the least and the most.
        seconds: of work on this machine, with all its processors.
    """

    trials: int
    samples: int
    evaluations: tuple[float, float]
    seconds: float

    def __str__(self) -> str:
        low, high = self.evaluations
        each = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        drawn = f", {self.samples} samples at {each} network evaluations each" if self.samples else ""
        return f"{self.trials} trials{drawn}: about {duration(self.seconds)}"


class _Counter(ScoreField):
    """The score of standard normal data, which costs nothing, in the place of the network: it counts evaluations."""

    def __init__(self, model: ScoreModel):
        super().__init__(model.score_function.process, model.score_function.num_classes)
        self._evaluations = 0

    @property
    def evaluations(self) -> int:
        return self._evaluations

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self._evaluations += len(x)
        return -x / broadcast_to(self.process.alpha(t) ** 2 + self.process.sigma(t) ** 2, x)


def estimate(command: LoadedCommand, trials: Sequence[list[str]], count: int) -> Cost:
    """Estimates by counting the evaluations of some settings and timing the network and, in training, a step.

    Args:
        command: of the first trial.
        trials: the arguments of some trials.
        count: number of trials in all.
    """
    model, training = command.model, command.command == "fit"
    chosen = [trials[round(i * (len(trials) - 1) / max(MOST - 1, 1))] for i in range(MOST)] if len(trials) > MOST else trials
    nfe, samples = [], []
    for arguments in chosen:
        if training:
            given = command.parse(arguments)
        else:
            command.take(arguments)
            given = command.config
        nfe.append(_evaluations(model))
        samples.append(_samples(command, given, training))
    of_network = _seconds_per_evaluation(model) if any(samples) else 0.0
    seconds = [n * each * of_network for n, each in zip(samples, nfe, strict=True)]
    if training:
        step = _seconds_per_step(command)
        seconds = [one + step * given_steps(command, arguments) for one, arguments in zip(seconds, chosen, strict=True)]
        seconds = [one + 12 for one in seconds]  # to begin a program
    mean = count / len(chosen)
    return Cost(count, round(sum(samples) * mean), (min(nfe), max(nfe)), sum(seconds) * mean)


def given_steps(command: LoadedCommand, arguments: list[str]) -> int:
    """Training steps of a trial."""
    trainer = command.parse(arguments)["trainer"]
    epoch = max(len(command.datamodule.splits.train.y) // command.datamodule.batch_size, 1)
    by_epochs = (trainer["max_epochs"] or 1000) * epoch
    steps = trainer["max_steps"] or -1
    return steps if steps > 0 else by_epochs


def _samples(command: LoadedCommand, given: Any, training: bool) -> int:
    """Samples that the measurements of a trial need."""
    evaluate = given["evaluate"]
    if not evaluate["features"]:
        return 0
    if not training:
        return evaluate["num_samples"] * (evaluate["repeats"] if command.command == "test" else 1)
    trainer = given["trainer"]
    every = trainer["val_check_interval"] or 1.0
    steps = trainer["max_steps"] if (trainer["max_steps"] or -1) > 0 else 0
    times = max(steps // every, 1) if isinstance(every, int) and steps else (trainer["max_epochs"] or 1)
    return evaluate["num_samples"] * max(int(times) // evaluate["every_n_validations"], 1)


@torch.inference_mode()
def _evaluations(model: ScoreModel) -> float:
    """Network evaluations per sample, with the model's sampler and guidance."""
    counter = _Counter(model)
    score: ScoreField = counter
    if model.guidance is not None:
        score = model.guidance.guide(score, torch.zeros(1, dtype=torch.long))
    if model.takes_labels:
        score = Conditioned(score, torch.zeros(1, dtype=torch.long))
    model.sampler(score, NoiseStream(0, [0], model.shape))
    return counter.evaluations


@torch.inference_mode()
def _seconds_per_evaluation(model: ScoreModel) -> float:
    """Of one sample, in a large batch."""
    x = torch.randn(BATCH, *model.shape, device=model.device)
    t = torch.tensor(0.5, device=model.device)
    cond = torch.zeros(BATCH, dtype=torch.long, device=model.device) if model.conditional else None
    model.eval()
    return min(_timed(lambda: model.score_function(x, t, cond)) for _ in range(3)) / BATCH


def _seconds_per_step(command: LoadedCommand) -> float:
    """Of one training step, at the batch size of the data."""
    model, data = command.model, command.datamodule
    batch = next(iter(data.train_dataloader()))
    model.train()
    if model.objective.needs_data:
        model.objective.prepare(data.transform(train=False)(data.splits.train.x))
    configured = model.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured

    def step() -> None:
        optimizer.zero_grad()
        model.loss(tuple(batch)).backward()
        optimizer.step()

    return min(_timed(step) for _ in range(3))


def _timed(call: Any) -> float:
    start = time.monotonic()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - start
