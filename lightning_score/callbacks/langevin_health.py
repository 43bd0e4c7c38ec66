"""Statistics of Langevin dynamics at each noise level, and what theory predicts for them."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_score.callbacks.base import data_of, fast_dev_run
from lightning_score.callbacks.loss_guard import measuring
from lightning_score.callbacks.pictures import figure_picture, publish
from lightning_score.data import Examples, ScoreData
from lightning_score.errors import InputError, require
from lightning_score.memory import require_room
from lightning_score.process.ladder import variance_ratio
from lightning_score.runs.folders import LANGEVIN
from lightning_score.runs.records import append_line
from lightning_score.sampling import LangevinCorrector
from lightning_score.sampling.step import Move
from lightning_score.score.function import Conditioned, ScoreField
from lightning_score.seeds import seeded
from lightning_score.training.model import ScoreModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    "Langevin steps": {"step_size": "step size $e$ (squared units)", "snr": "signal-to-noise ratio of a step"},
    "root mean square per dimension": {
        "sample_norm": "samples",
        "data_norm": "data with the level's noise",
        "score_norm": r"$\sigma$ score",
    },
    "variance ratio after the level": {"variance_ratio": "measured", "predicted_ratio": "recursion of technique 4"},
}
"""The panels of the picture: their titles, and the fields of `LevelHealth` in them with their labels."""
DASHED = ("data_norm", "predicted_ratio")
"""The fields with which others are compared."""


class LevelHealth(NamedTuple):
    """One noise level of a sampler with Langevin steps.

    Fields: sigma (sigma/alpha), steps (Langevin steps), step_size (e, in squared units of the data), snr (of a step,
    e ||s|| / (sqrt(2 e T) sqrt(D))), score_norm (sigma ||s|| / sqrt(D), which is 1 for noise alone), sample_norm
    (||x/alpha|| / sqrt(D)) with data_norm (that of training data with the level's noise), variance_ratio (E ||s||^2 at the
    samples over that at training data with the level's noise: the samples' variance over sigma^2 where the data are one
    point) and predicted_ratio (by technique 4's recursion; NaN where it does not hold), all after the level's last step.
    """

    sigma: float
    steps: int
    step_size: float
    snr: float
    score_norm: float
    sample_norm: float
    data_norm: float
    variance_ratio: float
    predicted_ratio: float


class _Level(NamedTuple):
    """The Langevin steps of a sampler at one time.

    Fields: t (the time), steps (their number), size (e, averaged over the samples), temperature, samples and score (the mean
    squares of x and of the score after the last step), first_score (that of the score before the first step of all levels).
    """

    t: Tensor
    steps: int
    size: float
    temperature: float
    samples: float
    score: float
    first_score: float


class LevelRecorder:
    """Observes a sampler and records each level of Langevin steps; it costs one more evaluation per level."""

    def __init__(self) -> None:
        self.levels: list[_Level] = []
        self.ladder = True  # only Langevin steps, and moves that only change the level
        self._open: tuple[ScoreField, LangevinCorrector, Move, Any] | None = None  # the first step of this level
        self._steps, self._x, self._first_score = 0, torch.zeros(0), 0.0

    def __call__(self, score: ScoreField, move: Move, before: Tensor, after: Tensor, state: Any) -> None:
        if self._open is not None and (move.method, move.t) != self._open[2][:2]:
            self.close()
        if not isinstance(move.method, LangevinCorrector):
            self.ladder &= move.method.evaluations == 0
            return
        if self._open is None:
            self._open, self._steps, self._first_score = (score, move.method, move, state), 0, 0.0
            if self.levels and move.t > self.levels[-1].t:  # samples drawn in parts: only the last part is kept
                self.levels = []
            if not self.levels:
                self._first_score = mean_square(score(before, move.t))
        self._steps, self._x = self._steps + 1, after

    def close(self) -> None:
        """Ends the current level."""
        if self._open is None:
            return
        (score, method, (_, t, s, _), state), x = self._open, self._x
        gradient = score(x, t)
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)  # instead of the noise of the step
        size = method.size(score.process, t, s, state, gradient, z).double().mean() / score.process.alpha(t).double() ** 2
        squares = mean_square(x), mean_square(gradient), self._first_score
        self.levels.append(_Level(t, self._steps, float(size), method.temperature, *squares))
        self._open = None


class LangevinHealth(Callback):
    """Measures the sampler's Langevin steps at every validation: writes a line of `langevin.jsonl`, with the fields of
    `LevelHealth` for every level, publishes a picture `langevin`, and logs `val/langevin_variance_ratio`, that of the last
    level, and `val/langevin_snr`, the mean over the levels. Without Langevin steps it does nothing.

    Technique 4 of Song and Ermon 2020 (2006.09011) chooses the step size so that the variance ratio stays near 1: above 1,
    noise of earlier levels is left by too small steps, or added by too large ones; below 1, samples have lost variety.

    Args:
        num_samples: number of samples, and of training examples to compare with.
        seed: seed of the samples and of the noise on the data.
    """

    def __init__(self, num_samples: int = 64, seed: int = 0):
        require(num_samples >= 1, f"num_samples={num_samples}: must be at least 1, as in 64")
        require_room(64 * num_samples, f"num_samples={num_samples}", "take fewer")
        self.num_samples, self.seed = num_samples, seed
        self.last: list[LevelHealth] | None = None

    def setup(self, trainer: Trainer, pl_module: ScoreModel, stage: str) -> None:
        """Refuses a fit without a data module, before anything is computed."""
        data_of(trainer, "LangevinHealth")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Measures within validation, where the model holds the averaged weights."""
        if not trainer.sanity_checking and trainer.is_global_zero:
            with measuring(trainer, pl_module, "Langevin health"):
                self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        recorder = LevelRecorder()
        pl_module.draw(range(4 if fast_dev_run(trainer) else self.num_samples), self.seed, observe=recorder)
        recorder.close()
        if not recorder.levels:
            return
        with torch.inference_mode():
            noisy_data = examples_with_noise(pl_module, data_of(trainer), self.num_samples, self.seed)
            self.last = compare(recorder, *noisy_data)
        pl_module.log("val/langevin_variance_ratio", self.last[-1].variance_ratio, rank_zero_only=True)
        pl_module.log("val/langevin_snr", sum(level.snr for level in self.last) / len(self.last), rank_zero_only=True)
        if fast_dev_run(trainer):
            return
        columns = dict(zip(LevelHealth._fields, map(list, zip(*self.last, strict=True)), strict=True))
        entries = {"step": trainer.global_step, "time": time.time(), "n": self.num_samples, **columns}
        append_line(Path(trainer.default_root_dir) / LANGEVIN, entries)
        caption = f"step {trainer.global_step}, {self.num_samples} samples"
        publish(trainer, "langevin", figure_picture(_figure(self.last)), caption)


def examples_with_noise(
    model: ScoreModel, data: ScoreData, n: int, seed: int
) -> tuple[ScoreField, Callable[[Tensor], Tensor]]:
    """The score of a model at training examples, and what returns these examples with the noise of a time, (N, ...).

    Args:
        model: the model.
        data: the data.
        n: number of examples, of at most all.
        seed: of the choice and the noise.
    """
    generator, process = torch.Generator().manual_seed(seed), model.score_function.process
    rows = torch.randperm(len(data.splits.train.x), generator=generator)[: max(n, 2)]
    with seeded(seed):  # of dequantization
        x, y = (part.to(model.device) for part in data.pairs(Examples(*(part[rows] for part in data.splits.train))))
    x = x.to(model.dtype)
    score: ScoreField = model.score_function
    if model.conditional:
        score = Conditioned(score, y)

    def noisy(t: Tensor) -> Tensor:
        return process.perturb(x, t.to(x.dtype), torch.randn(x.shape, generator=generator).to(x))

    return score, noisy


def mean_square_at_data(score: ScoreField, noisy: Callable[[Tensor], Tensor], t: Tensor) -> tuple[float, float]:
    """The mean squares of training data with the noise of a time, and of the score there."""
    x = noisy(t)
    return mean_square(x), mean_square(score(x, t.to(x.dtype)))


def compare(recorder: LevelRecorder, score: ScoreField, noisy: Callable[[Tensor], Tensor]) -> list[LevelHealth]:
    """Compares the levels of a sampler with the data.

    Args:
        recorder: has observed the sampler.
        score: the score.
        noisy: returns training data with the noise of a time, (N, ...).
    """
    found: list[LevelHealth] = []
    for level in recorder.levels:
        alpha, sigma = float(score.process.alpha(level.t)), float(score.process.noise_level(level.t))
        data, at_data = mean_square_at_data(score, noisy, level.t)
        before = found[-1].predicted_ratio if found else level.first_score / at_data
        predicted = math.nan
        if recorder.ladder and level.temperature == 1:
            with suppress(InputError):  # a step size for which technique 4 does not hold
                gamma = found[-1].sigma / sigma if found else 1.0
                predicted = variance_ratio(level.size, sigma, gamma, level.steps, before)
        health = LevelHealth(
            sigma=sigma,
            steps=level.steps,
            step_size=level.size,
            snr=math.sqrt(level.size / 2 / level.temperature * level.score) * alpha if level.temperature > 0 else math.inf,
            score_norm=math.sqrt(level.score) * sigma * alpha,
            sample_norm=math.sqrt(level.samples) / alpha,
            data_norm=math.sqrt(data) / alpha,
            variance_ratio=level.score / at_data,
            predicted_ratio=predicted,
        )
        found.append(health)
    return found


def mean_square(v: Tensor) -> float:
    """The mean of the squares of all entries."""
    return float(v.double().square().mean())


def _figure(levels: Sequence[LevelHealth]) -> "Figure":
    from matplotlib.figure import Figure  # takes a second to import

    figure, sigmas = Figure(figsize=(13, 3.8), layout="constrained"), [level.sigma for level in levels]
    for axes, (title, fields) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for field, label in fields.items():
            style = {"color": "black", "ls": "--"} if field in DASHED else {"marker": "."}
            axes.plot(sigmas, [getattr(level, field) for level in levels], label=label, lw=1, **style)
        xlabel = r"noise level $\sigma/\alpha$ (units of the data)"
        axes.set(title=title, xlabel=xlabel, xscale="log", yscale="linear" if "variance_ratio" in fields else "log")
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure
