"""One pass over many samples: what is kept of them, on any number of processes, and after an interruption."""

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

from lightning_score.errors import InputError, Unmeasurable
from lightning_score.files import cache_folder, read_tensors, replacing, tolerating_full_disk
from lightning_score.metrics import (
    Features,
)
from lightning_score.metrics.totals import MetricTotals
from lightning_score.runs.records import settings_of
from lightning_score.sampling.sampler import Samples
from lightning_score.training.model import ScoreModel

SAVE_EVERY = 60.0
"""Seconds of work that an interruption may cost."""


@dataclass
class SamplingResult:
    """What came of drawing samples 0 to n - 1 of a seed.

    Attributes:
        totals: of the samples as they are, and, where asked for, before the noise that is left was taken away.
        images: the first samples, of all processes, in the form of the data's `reference()`.
        nfe: network evaluations per sample.
        seconds: spent.
    """

    totals: dict[bool, MetricTotals]
    images: Tensor
    nfe: float
    seconds: float


class SamplingPass:
    """Draws the samples of an evaluation and adds them up; each process takes its share.

    Args:
        trainer: with the data.
        pl_module: the model, which holds the weights that are measured.
        features: the extractor.
        n: number of samples.
        batch_size: drawn at once by each process.
        noisy: also add up the samples before the noise that is left is taken away.
        shown: how many samples are kept as images.
        resumable: keep what was done every minute, and go on from there.

    On a GPU the features of a batch are found, on a stream of their own, while the next batch is drawn.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: ScoreModel,
        features: Features,
        n: int,
        batch_size: int,
        noisy: bool = False,
        shown: int = 0,
        resumable: bool = False,
    ) -> None:
        self.trainer, self.model, self.features, self.n = trainer, pl_module, features, n
        self.batch_size, self.noisy, self.shown, self.resumable = batch_size, noisy, shown, resumable
        self.overlapping = pl_module.device.type == "cuda"

    def run(self, seed: int) -> SamplingResult:
        """The samples of a seed, added up over all processes."""
        trainer, model = self.trainer, self.model
        mine = range(trainer.global_rank, self.n, trainer.world_size)
        kinds = [True, False] if self.noisy else [True]
        totals = {denoised: MetricTotals(self.features, self.n, model.device) for denoised in kinds}
        stored = trainer.datamodule.splits.train.x if self.shown else torch.zeros(0)
        found = SamplingResult(totals, stored.new_zeros(min(self.n, self.shown), *stored.shape[1:]), 0.0, 0.0)
        path = self._path(seed) if self.resumable else None
        done, evaluations = self._restore(path, found)
        saved = start = time.monotonic()
        told = False
        with (
            tqdm(total=len(mine), initial=done, **self._bar()) as bar,
            ThreadPoolExecutor(1) as pool,
            self._together(),
        ):
            work = None
            for first in range(done, len(mine), self.batch_size):
                numbers = mine[first : first + self.batch_size]
                before = model.score_function.evaluations
                samples = model.draw(numbers, seed)
                evaluations += model.score_function.evaluations - before
                if work is not None:
                    work.result()
                work = pool.submit(self._add, numbers, samples, found)
                if not self.overlapping:
                    work.result()
                bar.update(len(numbers))
                now = time.monotonic()
                told = told or self._tell(now - start, first + len(numbers) - done, len(mine) - done)
                if path is not None and now - saved > SAVE_EVERY:
                    work.result()
                    self._save(path, found, first + len(numbers), evaluations, now - start)
                    saved = now
            if work is not None:
                work.result()
        found.seconds += time.monotonic() - start
        found.nfe = evaluations / max(len(mine), 1)
        for part in totals.values():
            part.reduce(trainer)
        if self.shown:
            found.images = trainer.strategy.reduce(found.images.to(model.device), reduce_op="sum").cpu()
        if path is not None:
            path.unlink(missing_ok=True)
        return found

    @contextmanager
    def _together(self) -> Iterator[None]:
        """When the samples of one process come to nothing, those of all do: none waits for what it would add."""
        failure: Unmeasurable | None = None
        try:
            yield
        except Unmeasurable as error:
            failure = error
        if self.trainer.world_size > 1 and self.trainer.strategy.reduce_boolean_decision(failure is not None, all=False):
            raise failure or Unmeasurable("the samples of another process cannot be measured")
        if failure is not None:
            raise failure

    @torch.inference_mode()
    def _add(self, numbers: Sequence[int], samples: Samples, found: SamplingResult) -> None:
        """Adds samples to the totals, on a stream of its own where there are streams."""
        data, rows = self.trainer.datamodule, torch.as_tensor(numbers)
        with _own_stream(samples.x):
            for denoised, totals in found.totals.items():
                images = data.to_reference(samples.x if denoised else samples.raw)
                totals.update(numbers, self.features(images))
                if denoised and self.shown:
                    first = rows < len(found.images)
                    found.images[rows[first]] = images[first.to(images.device)].cpu()

    def _bar(self) -> dict[str, Any]:
        shown = self.resumable and self.trainer.is_global_zero
        return {"desc": "evaluating", "unit": "sample", "leave": False, "disable": None if shown else True}

    def _tell(self, seconds: float, done: int, n: int) -> bool:
        """Says once, after the first batch, how long it will take if that is long."""
        left = seconds / done * (n - done)
        if self.trainer.is_global_zero and left > 60:
            tqdm.write(f"evaluation: {self.n} samples, {seconds / done:.3g} s each: about {left / 60:.0f} minutes to go")
        return True

    def _path(self, seed: int) -> Path:
        """Where an interrupted pass is kept, under all that it depends on."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        model, score, data = self.model, self.model.score_function, self.trainer.datamodule
        parts = (model.sampler, model.guidance, score.process, score.parametrization)
        settings = [*map(settings_of, parts), model.conditional, self.trainer.precision]
        world = self.trainer.global_rank, self.trainer.world_size
        depends = [settings, self.features.fingerprint, data.fingerprint, self.n, seed, self.noisy, self.shown, *world, 3]
        digest.update(json.dumps(depends, default=str).encode())
        return cache_folder() / "evaluations" / f"{digest.hexdigest()[:24]}.pt"

    def _save(self, path: Path, found: SamplingResult, done: int, evaluations: int, seconds: float) -> None:
        state = {
            "totals": {str(kind): totals.state_dict() for kind, totals in found.totals.items()},
            "images": found.images,
            "done": done,
            "evaluations": evaluations,
            "seconds": found.seconds + seconds,
        }
        with tolerating_full_disk(path), replacing(path) as temporary, temporary.open("wb") as stream:
            torch.save(state, stream)

    def _restore(self, path: Path | None, found: SamplingResult) -> tuple[int, int]:
        """Samples done by an earlier pass that was interrupted, and its network evaluations."""
        if path is None or not path.exists():
            return 0, 0
        try:
            state = read_tensors(path)
        except InputError:  # half a file is no more than lost time
            return 0, 0
        for kind, totals in found.totals.items():
            totals.load_state_dict(state["totals"][str(kind)])
        found.images, found.seconds = state["images"], state["seconds"]
        if self.trainer.is_global_zero:
            tqdm.write(f"evaluation: goes on after {state['done']} samples of an earlier one that was interrupted")
        return state["done"], state["evaluations"]


@contextmanager
def _own_stream(x: Tensor) -> Iterator[None]:
    """A CUDA stream that begins when x is there and is done at the end; nothing on other devices."""
    if x.device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(x.device)
    stream.wait_stream(torch.cuda.default_stream(x.device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()
