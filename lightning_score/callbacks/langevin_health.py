"""Statistics of Langevin dynamics at each noise level, and what theory predicts for them."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_score.callbacks.guard import measuring
from lightning_score.callbacks.pictures import figure_picture, publish
from lightning_score.data import ScoreData
from lightning_score.errors import InputError, require
from lightning_score.memory import require_room
from lightning_score.process import NoiseProcess
from lightning_score.process.ladder import variance_ratio
from lightning_score.runs.records import append_line
from lightning_score.sampling import LangevinCorrector
from lightning_score.sampling.sampler import Move
from lightning_score.score.function import Conditioned, ScoreField
from lightning_score.seeds import seeded
from lightning_score.training.model import ScoreModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "langevin.jsonl"
"""The name of the file of levels in a run folder, one line per validation."""


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
    """The Langevin steps of a sampler at one time: their number, their last samples, and their size."""

    t: Tensor
    steps: int
    x: Tensor
    score: Tensor
    first_score: Tensor | None
    size: float
    temperature: float


class LevelRecorder:
    """Observes a sampler and records each level of Langevin steps; it costs one more evaluation per level."""

    def __init__(self) -> None:
        self.levels: list[_Level] = []
        self.ladder = True  # only Langevin steps, and moves that only change the level
        self._open: tuple[ScoreField, Move, Any] | None = None
        self._steps = 0
        self._last: Tensor | None = None
        self._first_score: Tensor | None = None

    def __call__(self, score: ScoreField, move: Move, before: Tensor, after: Tensor, state: Any) -> None:
        if self._open is not None and (move.method, move.t) != (self._open[1].method, self._open[1].t):
            self.close()
        if not isinstance(move.method, LangevinCorrector):
            self.ladder &= move.method.evaluations == 0
            return
        if self._open is None:
            self._open, self._steps = (score, move, state), 0
            if self.levels and move.t > self.levels[-1].t:  # samples drawn in parts: only the last part is kept
                self.levels = []
            if not self.levels:
                self._first_score = score(before, move.t)
        self._steps, self._last = self._steps + 1, after

    def close(self) -> None:
        """Ends the current level."""
        if self._open is None:
            return
        (score, (method, t, s, _), state), x = self._open, self._last
        gradient = score(x, t)
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)  # instead of the noise of the step
        size = method.size(score.process, t, s, state, gradient, z).double().mean() / score.process.alpha(t).double() ** 2
        first = self._first_score if not self.levels else None
        self.levels.append(_Level(t, self._steps, x, gradient, first, float(size), method.temperature))
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
        require(
            isinstance(trainer.datamodule, ScoreData),
            "LangevinHealth compares with training data: give the trainer a data module, "
            "trainer.fit(model, datamodule=...), or remove the callback",
        )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Measures within validation, where the model holds the averaged weights."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        with measuring(trainer, pl_module, "Langevin health"):
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        recorder = LevelRecorder()
        pl_module.draw(range(4 if trainer.fast_dev_run else self.num_samples), self.seed, observe=recorder)
        recorder.close()
        if not recorder.levels:
            return
        self.last = self._compare(recorder, pl_module, trainer)
        pl_module.log("val/langevin_variance_ratio", self.last[-1].variance_ratio, rank_zero_only=True)
        pl_module.log("val/langevin_snr", sum(level.snr for level in self.last) / len(self.last), rank_zero_only=True)
        if trainer.fast_dev_run:
            return
        columns = dict(zip(LevelHealth._fields, map(list, zip(*self.last, strict=True)), strict=True))
        entries = {"step": trainer.global_step, "time": time.time(), "n": self.num_samples, **columns}
        append_line(Path(trainer.default_root_dir) / FILE, entries)
        caption = f"step {trainer.global_step}, {self.num_samples} samples"
        publish(trainer, "langevin", figure_picture(_figure(self.last)), caption)

    @torch.inference_mode()
    def _compare(self, recorder: LevelRecorder, pl_module: ScoreModel, trainer: Trainer) -> list[LevelHealth]:
        """Compares every level with training data at its noise."""
        data, process = trainer.datamodule, pl_module.score_function.process
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randperm(len(data.splits.train.x), generator=generator)[: max(self.num_samples, 2)]
        with seeded(self.seed):  # of dequantization
            x = data.transform(train=False)(data.splits.train.x[rows]).to(pl_module.device, pl_module.dtype)
        score: ScoreField = pl_module.score_function
        if pl_module.conditional:
            score = Conditioned(score, data.splits.train.y[rows].to(pl_module.device))
        found: list[LevelHealth] = []
        for level in recorder.levels:
            t = level.t.to(pl_module.dtype)
            noisy = process.perturb(x, t, torch.randn(x.shape, generator=generator).to(x))
            at_data = _mean_square(score(noisy, t))
            found.append(_health(level, process, noisy, at_data, found, recorder.ladder))
        return found


def _health(
    level: _Level, process: NoiseProcess, noisy: Tensor, at_data: float, above: Sequence[LevelHealth], ladder: bool
) -> LevelHealth:
    alpha, sigma = float(process.alpha(level.t)), float(process.noise_level(level.t))
    square = _mean_square(level.score)
    before = above[-1].predicted_ratio if above else _mean_square(level.first_score) / at_data
    gamma = above[-1].sigma / sigma if above else 1.0
    return LevelHealth(
        sigma=sigma,
        steps=level.steps,
        step_size=level.size,
        snr=math.sqrt(level.size / 2 / level.temperature * square) * alpha if level.temperature > 0 else math.inf,
        score_norm=math.sqrt(square) * sigma * alpha,
        sample_norm=math.sqrt(_mean_square(level.x)) / alpha,
        data_norm=math.sqrt(_mean_square(noisy)) / alpha,
        variance_ratio=square / at_data,
        predicted_ratio=_predicted(level, sigma, gamma, before) if ladder else math.nan,
    )


def _predicted(level: _Level, sigma: float, gamma: float, before: float) -> float:
    """The recursion of technique 4, or NaN where its assumptions do not hold."""
    try:
        return variance_ratio(level.size, sigma, gamma, level.steps, before) if level.temperature == 1 else math.nan
    except InputError:
        return math.nan


def _mean_square(v: Tensor) -> float:
    return float(v.double().square().mean())


def _figure(levels: Sequence[LevelHealth]) -> "Figure":
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    sizes, norms, ratios = figure.subplots(1, 3)
    sigma, style = [level.sigma for level in levels], {"marker": ".", "lw": 1}

    def column(name: str) -> list[float]:
        return [getattr(level, name) for level in levels]

    sizes.semilogy(sigma, column("step_size"), color="tab:orange", label="step size $e$ (squared units)", **style)
    sizes.semilogy(sigma, column("snr"), color="tab:blue", label="signal-to-noise ratio of a step", **style)
    sizes.set(title="Langevin steps")
    norms.loglog(sigma, column("sample_norm"), label="samples", **style)
    norms.loglog(sigma, column("data_norm"), "k--", lw=1, label="data with the level's noise")
    norms.loglog(sigma, column("score_norm"), color="tab:red", label=r"$\sigma$ score", **style)
    norms.set(title="root mean square per dimension")
    ratios.plot(sigma, column("variance_ratio"), color="tab:green", label="measured", **style)
    ratios.plot(sigma, column("predicted_ratio"), "k--", lw=1, label="recursion of technique 4")
    ratios.set(title="variance ratio after the level")
    for axes in (sizes, norms, ratios):
        axes.set(xscale="log", xlabel=r"noise level $\sigma/\alpha$ (units of the data)")
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure
