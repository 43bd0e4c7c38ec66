"""Bits per dimension of the held-out images at the end of a test."""

import time
from dataclasses import replace
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from tqdm.auto import tqdm

from lightning_score.callbacks.base import data_of, fast_dev_run, writes_files
from lightning_score.callbacks.measurement import blank_record
from lightning_score.data import Examples, ScoreData
from lightning_score.errors import InputError, require, require_passes
from lightning_score.runs.records import FILE, append_record
from lightning_score.sampling import RK45, NoiseStream, Uniform
from lightning_score.sampling.grid import warn_between_levels
from lightning_score.sampling.likelihood import Bits, Dequantization, example_bits
from lightning_score.score.function import Conditioned
from lightning_score.training.model import ScoreModel


class BitsPerDim(Callback):
    """Measures the bits per dimension of held-out images by the probability-flow ODE, at the end of `test`.

    It logs `test/bits_per_dim`, `test/bits_per_dim_error` (the standard error over examples), `test/bits_per_dim_spread`
    (over draws, if there are two) and `test/bits_per_dim_n`, and adds a line of provenance to `evaluations.jsonl`. In
    `fast_dev_run` it uses four examples.

    Args:
        num_examples: number of held-out examples, the first ones; null: all.
        draws: draws of dequantization noise and of trace probes per example.
        seed: seed of both; the noise of example k does not depend on batches and processes.
        batch_size: examples at once on each device; it changes the memory needed, not the result.

    Raises:
        InputError: the data have no gray levels.
    """

    def __init__(self, num_examples: int | None = None, draws: int = 2, seed: int = 0, batch_size: int = 256):
        require(num_examples is None or num_examples >= 2, f"num_examples={num_examples}: need at least 2 for an error")
        require(draws >= 1, f"draws={draws}: must be at least 1")
        require_passes(draws=draws)
        require(batch_size >= 1, f"batch_size={batch_size}: must be at least 1")
        self.num_examples, self.draws, self.seed, self.batch_size = num_examples, draws, seed, batch_size
        self.last: Bits | None = None

    def setup(self, trainer: Trainer, pl_module: ScoreModel, stage: str) -> None:
        """Refuses continuous data before anything is computed."""
        self.check(data_of(trainer, "BitsPerDim"))
        process = pl_module.score_function.process
        times = RK45().evaluated(process, Uniform(1)(process))
        warn_between_levels("BitsPerDim", process, pl_module.objective.levels(process), times, advice="")

    def check(self, data: ScoreData) -> Dequantization:
        """The dequantization of the data; raises `InputError` if they have no gray levels."""
        if data.levels is None or data.data_range is None:
            raise InputError(
                f"BitsPerDim: {type(data).__name__} has no gray levels, so its examples have a density but no "
                "bits; remove the callback, or use lightning_score.sampling.likelihood.log_likelihood"
            )
        return Dequantization(data.levels, data.data_range, data.dequantize)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Measures within the test, where the model holds the averaged weights."""
        start, before, data = time.monotonic(), pl_module.score_function.evaluations, data_of(trainer)
        self.last = bits = self.measure(trainer, pl_module)
        evaluations = (pl_module.score_function.evaluations - before) * trainer.world_size
        record = replace(
            blank_record(data, trainer.global_step, bits.n),
            metric="bits_per_dim",
            value=bits.mean,
            error=bits.error,
            split="held out",
            sampler={"class": "likelihood by the probability-flow ODE", "draws": self.draws, "dequantize": data.dequantize},
            nfe=evaluations / (bits.n * self.draws),
            seed=self.seed,
            seconds=time.monotonic() - start,
        )
        if writes_files(trainer):
            append_record(Path(trainer.default_root_dir) / FILE, record)
        spread = {"_spread": bits.spread} if self.draws > 1 else {}
        for suffix, value in {"": bits.mean, "_error": bits.error, "_n": float(bits.n), **spread}.items():
            pl_module.log(f"test/bits_per_dim{suffix}", value, prog_bar=not suffix, rank_zero_only=True)

    def measure(self, trainer: Trainer, pl_module: ScoreModel) -> Bits:
        """The bits of all examples; each process computes its share."""
        data, device = data_of(trainer), pl_module.device
        held_out = data.splits.held_out
        n = min(4 if fast_dev_run(trainer) else self.num_examples or len(held_out.x), len(held_out.x))
        dequantization = self.check(data)
        bits = torch.zeros(self.draws, n, dtype=torch.float64, device=device)
        batches = torch.arange(trainer.global_rank, n, trainer.world_size).split(self.batch_size)
        shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
        with tqdm(total=len(batches) * self.draws, desc="likelihood", unit="batch", leave=False, disable=not shown) as bar:
            for rows in batches:
                x, y = (part.to(device) for part in data.pairs(Examples(held_out.x[rows], held_out.y[rows])))
                score = Conditioned(pl_module.score_function, y) if pl_module.conditional else pl_module.score_function
                noise = NoiseStream(self.seed, rows.tolist(), x.shape[1:], device, x.dtype)
                for draw in range(self.draws):
                    bits[draw, rows.to(device)] = example_bits(score, x, dequantization, noise)
                    bar.update()
        return Bits.of(trainer.strategy.reduce(bits, reduce_op="sum"))
