"""One pass over many samples: draws them on any number of processes, sums their features up, resumes when interrupted."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from tqdm import tqdm

from lightning_score.data import ScoreData
from lightning_score.errors import InputError, Unmeasurable
from lightning_score.files import cache_folder, read_tensors, replacing, tolerating_full_disk
from lightning_score.metrics import Features
from lightning_score.metrics.totals import MetricTotals
from lightning_score.runs.records import settings_of
from lightning_score.sampling.sampler import Samples
from lightning_score.training.model import ScoreModel

SAVE_EVERY = 60.0
"""Seconds of work that an interruption loses at most."""


@dataclass
class SamplingResult:
    """Sums over samples 0 to n - 1 of a seed.

    Attributes:
        seed: the seed.
        n: the number of samples.
        totals: of the final samples (True) and, on request, of those before the last noise is removed (False).
        images: the first samples, in the form of the data's `reference()`.
        done: samples drawn on this process.
        evaluations: network evaluations that these took.
        seconds: time that these took.
    """

    seed: int
    n: int
    totals: dict[bool, MetricTotals]
    images: Tensor
    done: int = 0
    evaluations: int = 0
    seconds: float = 0.0

    @property
    def nfe(self) -> float:
        """Network evaluations per sample."""
        return self.evaluations / max(self.done, 1)

    @torch.inference_mode()
    def add(self, numbers: Sequence[int], samples: Samples, features: Features, data: ScoreData) -> None:
        """Adds the samples of these numbers; on a GPU, in a CUDA stream of its own."""
        rows = torch.as_tensor(numbers)
        with _separate_stream(samples.x):
            for denoised, totals in self.totals.items():
                images = data.to_reference(samples.x if denoised else samples.raw)
                totals.update(numbers, features(images))
                if denoised and len(self.images):
                    first = rows < len(self.images)
                    self.images[rows[first]] = images[first.to(images.device)].cpu()

    def reduce(self, trainer: Trainer, device: torch.device) -> None:
        """Sums over all processes, on each of them."""
        for totals in self.totals.values():
            totals.reduce(trainer)
        if len(self.images):
            self.images = trainer.strategy.reduce(self.images.to(device), reduce_op="sum").cpu()

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted pass resumes from."""
        totals = {str(denoised): totals.state_dict() for denoised, totals in self.totals.items()}
        progress = {"done": self.done, "evaluations": self.evaluations, "seconds": self.seconds}
        return {"totals": totals, "images": self.images, **progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a saved state."""
        for denoised, totals in self.totals.items():
            totals.load_state_dict(state["totals"][str(denoised)])
        self.images, self.done = state["images"], state["done"]
        self.evaluations, self.seconds = state["evaluations"], state["seconds"]


class SamplingPass:
    """Draws the samples of an evaluation and sums their features up; each process takes its share.

    Args:
        trainer: the trainer, with the data.
        pl_module: the model, which holds the weights to measure.
        features: the feature extractor.
        n: number of samples.
        batch_size: samples that each process draws at once.
        before_denoising: also sum up the samples before the final denoising step.
        shown: how many samples to keep as images.
        resumable: save the sums every minute, and resume from them after an interruption.

    On a GPU the features of a batch are computed, in a separate stream, while the next batch is drawn.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: ScoreModel,
        features: Features,
        n: int,
        batch_size: int,
        before_denoising: bool = False,
        shown: int = 0,
        resumable: bool = False,
    ) -> None:
        self.trainer, self.model, self.features, self.n = trainer, pl_module, features, n
        self.batch_size, self.before_denoising, self.shown, self.resumable = batch_size, before_denoising, shown, resumable
        self.overlapping = pl_module.device.type == "cuda"

    def run(self, seed: int) -> SamplingResult:
        """The sums over the samples of a seed, of all processes."""
        mine = range(self.trainer.global_rank, self.n, self.trainer.world_size)
        found = self._begin(seed)
        path = self._path(seed) if self.resumable else None
        self._resume(path, found)
        resumed, start = found.done, time.monotonic() - found.seconds
        saved = found.seconds
        with (
            tqdm(total=len(mine), initial=resumed, **self._bar()) as bar,
            ThreadPoolExecutor(1) as pool,
            self._fail_together(),
        ):
            adding = pool.submit(lambda: None)
            for numbers, samples in self._draw(mine[resumed:], found):
                adding.result()
                adding = pool.submit(found.add, numbers, samples, self.features, self.trainer.datamodule)
                if not self.overlapping:
                    adding.result()
                bar.update(len(numbers))
                spent, found.seconds = found.seconds, time.monotonic() - start
                if found.done == resumed + len(numbers):
                    self._announce((found.seconds - spent) / len(numbers), len(mine) - found.done)
                if path is not None and found.seconds - saved > SAVE_EVERY:
                    adding.result()
                    _save(path, found)
                    saved = found.seconds
            adding.result()
        found.seconds = time.monotonic() - start
        found.reduce(self.trainer, self.model.device)
        if path is not None:
            path.unlink(missing_ok=True)
        return found

    def _begin(self, seed: int) -> SamplingResult:
        kinds = [True, False] if self.before_denoising else [True]
        totals = {denoised: MetricTotals(self.features, self.n, self.model.device) for denoised in kinds}
        stored = self.trainer.datamodule.splits.train.x if self.shown else torch.zeros(0)
        return SamplingResult(seed, self.n, totals, stored.new_zeros(min(self.n, self.shown), *stored.shape[1:]))

    def _draw(self, numbers: Sequence[int], found: SamplingResult) -> Iterator[tuple[Sequence[int], Samples]]:
        """Draws and counts the samples of these numbers, batch by batch."""
        for first in range(0, len(numbers), self.batch_size):
            batch, before = numbers[first : first + self.batch_size], self.model.score_function.evaluations
            samples = self.model.draw(batch, found.seed)
            found.evaluations += self.model.score_function.evaluations - before
            found.done += len(batch)
            yield batch, samples

    @contextmanager
    def _fail_together(self) -> Iterator[None]:
        """If sampling fails on one process, it fails on all: none waits for the sums of the others."""
        failure: Unmeasurable | None = None
        try:
            yield
        except Unmeasurable as error:
            failure = error
        if self.trainer.world_size > 1 and self.trainer.strategy.reduce_boolean_decision(failure is not None, all=False):
            raise failure or Unmeasurable("the samples of another process cannot be measured")
        if failure is not None:
            raise failure

    def _bar(self) -> dict[str, Any]:
        shown = self.resumable and self.trainer.is_global_zero
        return {"desc": "evaluating", "unit": "sample", "leave": False, "disable": None if shown else True}

    def _announce(self, seconds: float, remaining: int) -> None:
        """Prints after the first batch how long the pass takes, if that is long."""
        left = seconds * remaining
        if self.trainer.is_global_zero and left > 60:
            tqdm.write(f"evaluation: {self.n} samples, {seconds:.3g} s each: about {left / 60:.0f} minutes left")

    def _path(self, seed: int) -> Path:
        """The file of an interrupted pass, named by all that its sums depend on."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        model, score, data = self.model, self.model.score_function, self.trainer.datamodule
        parts = (model.sampler, model.guidance, score.process, score.parametrization)
        settings = [*map(settings_of, parts), model.conditional, self.trainer.precision]
        options = [self.n, seed, self.before_denoising, self.shown, self.trainer.global_rank, self.trainer.world_size]
        depends = [settings, self.features.fingerprint, data.fingerprint, *options, 3]
        digest.update(json.dumps(depends, default=str).encode())
        return cache_folder() / "evaluations" / f"{digest.hexdigest()[:24]}.pt"

    def _resume(self, path: Path | None, found: SamplingResult) -> None:
        """Continues an earlier pass that was interrupted."""
        if path is None or not path.exists():
            return
        try:
            found.load_state_dict(read_tensors(path))
        except InputError:  # an incomplete file costs time only
            return
        if self.trainer.is_global_zero:
            tqdm.write(f"evaluation: resumes after {found.done} samples of an earlier one that was interrupted")


def _save(path: Path, found: SamplingResult) -> None:
    with tolerating_full_disk(path), replacing(path) as temporary, temporary.open("wb") as stream:
        torch.save(found.state_dict(), stream)


@contextmanager
def _separate_stream(x: Tensor) -> Iterator[None]:
    """A CUDA stream that begins when x is ready and is synchronized at the end; does nothing on other devices."""
    if x.device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(x.device)
    stream.wait_stream(torch.cuda.default_stream(x.device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()
