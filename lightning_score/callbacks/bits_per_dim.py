"""Likelihoods of the held-out examples at the end of a test: bits per dimension of images, nats of continuous data."""

import time
from abc import ABC, abstractmethod
from dataclasses import replace
from math import prod
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from tqdm.auto import tqdm

from lightning_score.callbacks.base import data_of, fast_dev_run
from lightning_score.callbacks.measurement import blank_record, store
from lightning_score.data import Examples, ScoreData
from lightning_score.errors import InputError, require, require_passes
from lightning_score.process import NoiseProcess
from lightning_score.sampling import RK45, NoiseStream, Uniform
from lightning_score.sampling.grid import warn_between_levels
from lightning_score.sampling.likelihood import (
    Dequantization,
    LogLikelihood,
    MeanLikelihood,
    example_bits,
    log_likelihood,
    log_prior,
)
from lightning_score.score.function import Conditioned, ScoreField
from lightning_score.score.trace import Trace
from lightning_score.seeds import counted_seed, seeded
from lightning_score.training.model import ScoreModel
from lightning_score.training.prior import check_prior


class LikelihoodCallback(Callback, ABC):
    """Measures the likelihood of held-out examples by the probability-flow ODE, at the end of `test`.

    Args:
        num_examples: number of held-out examples; null: all.
        draws: draws of trace probes and, for data with noise, of this noise, per example.
        seed: seed of both; the noise of example k does not depend on batches and processes.
        batch_size: examples at once on each device; it changes the memory needed, not the result.
        trace: how the trace of the Jacobian is computed; one random probe by default, `ExactTrace` for few dimensions.

    Raises:
        InputError: the likelihood of such data is measured by another callback.
    """

    metric: str
    """The name of the measured number."""

    def __init__(
        self,
        num_examples: int | None = None,
        draws: int = 2,
        seed: int = 0,
        batch_size: int = 256,
        trace: Trace | None = None,
    ):
        require(num_examples is None or num_examples >= 2, f"num_examples={num_examples}: need at least 2 for an error")
        require(draws >= 1, f"draws={draws}: must be at least 1")
        require_passes(draws=draws)
        require(batch_size >= 1, f"batch_size={batch_size}: must be at least 1")
        self.num_examples, self.draws, self.seed, self.batch_size = num_examples, draws, seed, batch_size
        self.trace = trace
        self.last: MeanLikelihood | None = None

    @abstractmethod
    def check(self, data: ScoreData) -> None:
        """Raises `InputError` if the data have no such likelihood."""
        name = type(self).__name__
        require(not data.missing, f"{name}: examples with missing entries have no such likelihood; remove the callback")

    @abstractmethod
    def values(self, data: ScoreData, score: ScoreField, x: Tensor, noise: NoiseStream) -> Tensor:
        """The number of each of these examples (B, ...) for one draw of the noise, float64 (B,)."""

    def chosen(self, n: int, total: int) -> Tensor:
        """The numbers of the n examples of all: the first ones."""
        return torch.arange(n)

    def scales(self, data: ScoreData) -> dict[str, float]:
        """The names under which the number is logged, each with a factor."""
        return {self.metric: 1.0}

    def setup(self, trainer: Trainer, pl_module: ScoreModel, stage: str) -> None:
        """Refuses data without such a likelihood before anything is computed."""
        data = data_of(trainer, type(self).__name__)
        self.check(data)
        process = pl_module.score_function.process
        times = RK45().evaluated(process, Uniform(1)(process))
        warn_between_levels(type(self).__name__, process, pl_module.objective.levels(process), times, advice="")
        if stage == TrainerFn.TESTING and not pl_module.sampler.initial.is_prior:  # else the model warns
            check_prior(process, data)

    def likelihood(self, score: ScoreField, x: Tensor, noise: NoiseStream) -> LogLikelihood:
        """log p of examples (B, ...) of the model's data."""
        return log_likelihood(score, x, noise, self.trace, prior=log_prior)

    def settings(self, data: ScoreData, process: NoiseProcess) -> dict[str, Any]:
        """What the density is of, and how it is measured."""
        least = float(process.noise_level(torch.tensor(process.t_min, dtype=torch.float64)))
        density = {"dequantize": data.dequantize, "noise": noise_of(data), "sigma_over_alpha": least}
        return {"class": "likelihood by the probability-flow ODE", "draws": self.draws, **density}

    def inputs(self, data: ScoreData, rows: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """Held-out examples and their conditions, for the model, with a draw of the noise of the data, if any."""
        (x, y), pairs = data.splits.held_out, []
        for k in rows.tolist():  # so that the noise of an example, or in its condition, does not depend on its batch
            with seeded(counted_seed(self.seed, draw, k)):
                pairs.append(data.pairs(Examples(x[[k]], y[[k]])))
        return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Measures within the test, where the model holds the averaged weights."""
        start, before, data = time.monotonic(), pl_module.score_function.evaluations, data_of(trainer)
        self.last = found = self.measure(trainer, pl_module)
        if noise_of(data) and trainer.is_global_zero:
            tqdm.write(f"{self.metric}: of the data with {noise_of(data)}, which the model learns")
        evaluations = (pl_module.score_function.evaluations - before) * trainer.world_size
        settings, nfe = self.settings(data, pl_module.score_function.process), evaluations / (found.n * self.draws)
        record = replace(blank_record(data, trainer.global_step, found.n), split="held out", sampler=settings, nfe=nfe)
        record = replace(record, seed=self.seed, seconds=time.monotonic() - start)
        for name, scale in self.scales(data).items():
            store(trainer, replace(record, metric=name, value=scale * found.mean, error=scale * found.error))
            entries = {"": scale * found.mean, "_error": scale * found.error, "_n": float(found.n)}
            entries |= {"_spread": scale * found.spread} if self.draws > 1 else {}
            for suffix, value in entries.items():
                pl_module.log(f"test/{name}{suffix}", value, prog_bar=name + suffix == self.metric, rank_zero_only=True)

    def measure(self, trainer: Trainer, pl_module: ScoreModel) -> MeanLikelihood:
        """The mean over all examples; each process computes its share."""
        data, device = data_of(trainer), pl_module.device
        held_out = data.splits.held_out
        n = min(4 if fast_dev_run(trainer) else self.num_examples or len(held_out.x), len(held_out.x))
        values, chosen = torch.zeros(self.draws, n, dtype=torch.float64, device=device), self.chosen(n, len(held_out.x))
        batches = torch.arange(trainer.global_rank, n, trainer.world_size).split(self.batch_size)
        shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
        with tqdm(total=len(batches) * self.draws, desc="likelihood", unit="batch", leave=False, disable=not shown) as bar:
            for places in batches:
                rows = chosen[places]
                noise = NoiseStream(self.seed, rows.tolist(), data.shape, device, torch.get_default_dtype())
                for draw in range(self.draws):
                    x, y = (part.to(device) for part in self.inputs(data, rows, draw))
                    score = Conditioned(pl_module.score_function, y) if pl_module.conditional else pl_module.score_function
                    values[draw, places.to(device)] = self.values(data, score, x, noise)
                    bar.update()
        return MeanLikelihood.of(trainer.strategy.reduce(values, reduce_op="sum"))


def noise_of(data: ScoreData) -> str:
    """The noise that is a part of the data; nothing if none."""
    return " and ".join(each.noise for each in data.augment if each.noise)


class BitsPerDim(LikelihoodCallback):
    """Measures the bits per dimension of held-out images by the probability-flow ODE, at the end of `test`.

    It logs `test/bits_per_dim`, `test/bits_per_dim_error` (the standard error over examples), `test/bits_per_dim_spread`
    (over draws, if there are two) and `test/bits_per_dim_n`, and adds a line of provenance to `evaluations.jsonl`. In
    `fast_dev_run` it uses four examples.
    """

    metric = "bits_per_dim"

    def check(self, data: ScoreData) -> None:
        super().check(data)
        self.dequantization(data)

    def dequantization(self, data: ScoreData) -> Dequantization:
        """The dequantization of the data; raises `InputError` if they have no gray levels."""
        if data.levels is None or data.data_range is None:
            continuous = f"{type(data).__name__} has no gray levels, so its examples have a density but no bits"
            raise InputError(f"BitsPerDim: {continuous}; use the callback Nats")
        return Dequantization(data.levels, data.data_range, data.dequantize)

    def values(self, data: ScoreData, score: ScoreField, x: Tensor, noise: NoiseStream) -> Tensor:
        return example_bits(score, x, noise, self.dequantization(data), self.likelihood)


class Nats(LikelihoodCallback):
    """Measures the log density of held-out continuous data by the probability-flow ODE, at the end of `test`.

    It logs the mean log-likelihood `test/nats` per example and `test/nats_per_dim`, larger being better, in the units of the
    stored data: log p(T(x)) + log |det dT/dx| with the standardization T; each with `_error` (the standard error over
    examples), `_spread` (over draws, if there are two) and `_n`. It adds lines of provenance to `evaluations.jsonl`. The
    density is that of the data with the noise of t_min and that of `augment`. In `fast_dev_run` it uses four examples.
    """

    metric = "nats"

    def check(self, data: ScoreData) -> None:
        super().check(data)
        discrete = f"{type(data).__name__} has gray levels, so its examples have probabilities but no density"
        require(data.levels is None, f"Nats: {discrete}; use the callback BitsPerDim")

    def scales(self, data: ScoreData) -> dict[str, float]:
        return {"nats": 1.0, "nats_per_dim": 1 / prod(data.shape)}

    def chosen(self, n: int, total: int) -> Tensor:
        """Evenly spaced ones, for the windows of an array are in its order."""
        return torch.arange(n) * total // n

    def values(self, data: ScoreData, score: ScoreField, x: Tensor, noise: NoiseStream) -> Tensor:
        return self.likelihood(score, x, noise).value + data.log_det(x).to(x.device)
