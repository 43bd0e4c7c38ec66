"""The denoising loss at each noise level, and the lowest possible one on the training data."""

import math
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from tqdm import tqdm

from lightning_score.callbacks.base import data_of, writes_files
from lightning_score.callbacks.pictures import figure_picture, publish
from lightning_score.data import Examples, ScoreData
from lightning_score.errors import InputError, require, require_passes
from lightning_score.objective import DenoisingScoreMatching, LogNormalTimes, SigmaSquared
from lightning_score.process import NoiseProcess
from lightning_score.score.empirical import EmpiricalScore
from lightning_score.score.function import ScoreField
from lightning_score.seeds import seeded
from lightning_score.tensors import without_missing
from lightning_score.training.model import ScoreModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LevelLosses(NamedTuple):
    """Mean denoising losses, lambda = sigma^2, at K noise levels, each float64 (K,).

    Fields: sigma (sigma/alpha, ascending), train and held_out (the model's), train_floor and held_out_floor (those of the
    training data's `EmpiricalScore` on the same examples and noise).
    """

    sigma: Tensor
    train: Tensor
    held_out: Tensor
    train_floor: Tensor
    held_out_floor: Tensor

    def displacement(self, data_std: float) -> Tensor:
        """2 e s^2 d^2/(s^2 + d^2), (K,), for the excess e on training examples at noise level s, and d = data_std: the mean
        squared displacement of samples by the errors of the score per unit of ln s, by the probability flow.

        The denoised image errs by 2 e s^2, and the flow dx/ds = (x - denoised)/s of N(0, d^2 I) shrinks what that changes at
        s by d^2/(s^2 + d^2) until the end.
        """
        s = self.sigma
        return 2 * (self.train - self.train_floor).clamp(min=0) * s**2 * data_std**2 / (s**2 + data_std**2)

    def times(self, data_std: float) -> LogNormalTimes | None:
        """A law of times with mean and deviation of the displacement as a density of ln s; None if there is no excess.

        Were the displacement at a level c/p for a share p of the times, its sum would be least for p proportional to
        sqrt(c), where the displacement is proportional to p: so p is taken from the measured one. The excess itself, without
        the factor, is largest at the smallest noise, where it is what a network would have to memorize, and hardly moves
        samples.
        """
        density = self.displacement(data_std)
        return LogNormalTimes.fitted(self.sigma.log(), density) if int((density > 0).sum()) > 1 else None


class LossFloor(Callback):
    """Measures how far the denoising loss is above its floor, E sigma^2 1/2 ||score + z/sigma||^2 of the model minus
    that of the training data's `EmpiricalScore`, which is the minimum on the training data.

    On training examples the excess is sigma^2 1/2 E||score - empirical score||^2, so the part that is not learned yet
    (or, at small noise, not memorized); on held-out ones it is negative where the model generalizes better. It logs
    `val/loss_train/<sigma>`, `val/loss_held_out/<sigma>`, `val/excess_loss_train/<sigma>` and
    `val/excess_loss_held_out/<sigma>` by sigma/alpha, the means of the last two over the levels without `/<sigma>`, and a
    picture `loss_per_sigma`, which also shows the loss that a learned weighting expects. Examples and noise are the same at
    every validation; dequantized data are drawn once.

    It also fits a law of times to the excess, prints the option that trains with it, and logs `val/fitted_times_mean` and
    `val/fitted_times_std` of ln(sigma/alpha) (see `LevelLosses.times`).

    Args:
        levels: number of noise levels, evenly spaced in log_snr; for a table, the nearest entries.
        num_examples: training and held-out examples measured at each level, or all if there are fewer.
        batch_size: examples per network evaluation; it changes the memory needed, not the losses.
        seed: seed of the choice of examples and of the noise.
    """

    def __init__(self, levels: int = 8, num_examples: int = 512, batch_size: int = 512, seed: int = 0):
        require(levels >= 2, f"levels={levels}: need at least 2 noise levels, as in 8")
        require_passes(levels=levels)
        require(num_examples >= 1, f"num_examples={num_examples}: must be at least 1, as in 512")
        require(batch_size >= 1, f"batch_size={batch_size}: must be at least 1")
        self.levels, self.num_examples, self.batch_size, self.seed = levels, num_examples, batch_size, seed
        self.last: LevelLosses | None = None
        self._data_std = math.nan  # of the training data
        self._prepared: list[tuple[Examples, Tensor]] | None = None  # examples of each split, and their floor

    def setup(self, trainer: Trainer, pl_module: ScoreModel, stage: str) -> None:
        """Refuses a fit without a data module, or with conditions other than labels; drops the floor of another model."""
        data_of(trainer, "LossFloor")
        why = "the lowest loss is known for class labels only, and this model has other conditions"
        require(not pl_module.conditional or pl_module.num_classes > 0, f"LossFloor: {why}; leave it out")
        self._prepared = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Measures within validation, where the model holds the averaged weights."""
        if trainer.sanity_checking:
            return
        sigma, train, held_out, train_floor, held_out_floor = self.last = self.measure(pl_module, data_of(trainer))
        for split, loss, floor in (("train", train, train_floor), ("held_out", held_out, held_out_floor)):
            pl_module.log(f"val/excess_loss_{split}", float((loss - floor).mean()), sync_dist=True)
            for name, values in ((f"val/loss_{split}", loss), (f"val/excess_loss_{split}", loss - floor)):
                levels = zip(sigma.tolist(), values.tolist(), strict=True)
                pl_module.log_dict({f"{name}/{level:.3g}": value for level, value in levels}, sync_dist=True)
        law = self.last.times(self._data_std)
        if law is not None:
            fit = {"val/fitted_times_mean": law.mean, "val/fitted_times_std": law.std}
            pl_module.log_dict(fit, sync_dist=True)
        if writes_files(trainer):
            if law is not None:
                tqdm.write(
                    "LossFloor: to train where errors displace samples most: --model.objective.times LogNormalTimes "
                    f"--model.objective.times.mean {law.mean:.2f} --model.objective.times.std {law.std:.2f}"
                )
            learned = pl_module.objective.learned_levels(pl_module.score_function.process)
            picture = figure_picture(_figure(self.last, math.prod(pl_module.shape), law, learned))
            publish(trainer, "loss_per_sigma", picture, f"step {trainer.global_step}")

    @torch.inference_mode()
    def measure(self, pl_module: ScoreModel, data: ScoreData) -> LevelLosses:
        """The losses with the weights that the model holds; the floors are computed only once."""
        score = pl_module.score_function
        times = level_times(score.process, self.levels, pl_module.device)
        if self._prepared is None:
            self._prepared = self._prepare(pl_module, data, times)
        (train, train_floor), (held_out, held_out_floor) = self._prepared
        losses = [self._losses(score, pl_module, examples, times) for examples in (train, held_out)]
        return LevelLosses(score.process.noise_level(times).cpu(), losses[0], losses[1], train_floor, held_out_floor)

    def _prepare(self, pl_module: ScoreModel, data: ScoreData, times: Tensor) -> list[tuple[Examples, Tensor]]:
        """The examples of both splits that are measured, and the losses on them of the training data's score."""
        with seeded(self.seed):  # of dequantization
            splits = [Examples(*data.pairs(split, filled=False)) for split in data.splits]
        generator = torch.Generator().manual_seed(self.seed)
        chosen = [torch.randperm(len(split.y), generator=generator)[: self.num_examples] for split in splits]
        train = Examples(*(field.to(pl_module.device) for field in splits[0]))
        floor = EmpiricalScore(pl_module.score_function.process, train.x, train.y if pl_module.conditional else None)
        self._data_std = float(train.x[~train.x.isnan()].double().std())
        measured = [Examples(split.x[rows], split.y[rows]) for split, rows in zip(splits, chosen, strict=True)]
        return [(examples, self._losses(floor, pl_module, examples, times)) for examples in measured]

    def _losses(self, score: ScoreField, pl_module: ScoreModel, examples: Examples, times: Tensor) -> Tensor:
        """The mean loss at each time, float64 (K,); the noise of an example depends only on the seed and the level."""
        generator = torch.Generator().manual_seed(self.seed)
        objective, means, missing = DenoisingScoreMatching(), [], bool(examples.x.isnan().any())
        for t in times.to(pl_module.dtype):
            noise = torch.randn(examples.x.shape, generator=generator)
            total = 0.0
            for x, y, z in zip(*(part.split(self.batch_size) for part in (*examples, noise)), strict=True):
                x, y, z = x.to(pl_module.device, pl_module.dtype), y.to(pl_module.device), z.to(pl_module.device, x.dtype)
                x, known = without_missing(x) if missing else (x, None)
                x_t, cond = score.process.perturb(x, t, z), y if pl_module.conditional else None
                losses = objective.of_known(score, x_t, t, z, cond, known)
                total += float((SigmaSquared()(score.process, t) * losses).double().sum())
            means.append(total / len(examples.x))
        return torch.tensor(means, dtype=torch.float64)


def level_times(process: NoiseProcess, levels: int, device: torch.device | str = "cpu") -> Tensor:
    """Times between t_min and 1, evenly spaced in log_snr, ascending, float64; of a table, the nearest entries."""
    ends = process.with_signal(torch.tensor([process.t_min, 1.0], dtype=torch.float64))
    first, last = process.log_snr(ends).tolist()
    t = process.inverse_log_snr(torch.linspace(first, last, levels, dtype=torch.float64))  # on the CPU, as a table is
    with suppress(InputError):  # a continuous process
        t = process.table_times().cpu()[process.index(t).cpu() - 1].unique()
    return t.to(device)


def _figure(
    losses: LevelLosses, dimension: int, law: LogNormalTimes | None, learned: tuple[Tensor, Tensor] | None
) -> "Figure":
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel=r"noise level $\sigma/\alpha$ (units of the data)")
    axes.set(ylabel=r"$\frac{1}{2} E\,\|\sigma\,s + z\|^2$ (nats)", title="denoising loss per noise level")
    axes.plot(losses.sigma, losses.held_out, "o-", color="tab:orange", label="model, held-out data")
    axes.plot(losses.sigma, losses.train, "o-", color="tab:blue", label="model, training data")
    axes.plot(losses.sigma, losses.train_floor, "--", color="black", label="floor: the training data's own score")
    axes.plot(losses.sigma, losses.held_out_floor, ":", color="gray", label="the same on held-out data")
    if learned is not None:
        axes.plot(learned[0], dimension / 2 * learned[1], color="tab:green", label="expected by the learned weighting")
    if law is not None:
        twin, sigma = axes.twinx(), losses.sigma[0] * (losses.sigma[-1] / losses.sigma[0]) ** torch.linspace(0, 1, 200)
        density = torch.exp(-(((sigma.log() - law.mean) / law.std) ** 2) / 2)
        twin.fill_between(sigma, density, color="tab:purple", alpha=0.12, lw=0)
        twin.set(ylim=(0, 4), yticks=[])
        label = f"fitted law of times: mean {law.mean:.2f}, std {law.std:.2f}"
        axes.fill_between([], [], color="tab:purple", alpha=0.12, label=label)
    highest = float(torch.cat([losses.train, losses.held_out]).max())
    axes.set_ylim(0, 1.1 * max(min(highest, dimension), dimension / 2))  # 1/2 per dimension is the loss of a zero score
    axes.legend()
    return figure
