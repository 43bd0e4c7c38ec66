"""One pass over many samples: draws them on any number of processes, sums their features up, resumes when interrupted."""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from tqdm import tqdm

from lightning_score.callbacks.base import data_of
from lightning_score.data import ScoreData
from lightning_score.errors import InputError, Unmeasurable
from lightning_score.files import cache_folder, read_tensors, replacing, tolerating_full_disk
from lightning_score.memory import PeakMemory
from lightning_score.metrics import Features
from lightning_score.metrics.summaries import DistanceTotals, Summaries
from lightning_score.metrics.totals import MetricTotals
from lightning_score.runs.records import digest_of, settings_of
from lightning_score.sampling.sampler import Samples
from lightning_score.training.inference import share, whole
from lightning_score.training.model import ScoreModel

SAVE_EVERY = 60.0
"""Seconds of work that an interruption loses at most."""
FORMAT = 5
"""The version of a saved state; those of other versions are not read."""


@dataclass
class SamplingResult:
    """Sums over samples 0 to n - 1 of a seed.

    Attributes:
        seed: the seed.
        n: the number of samples.
        totals: of features, if any, of the final samples (True) and, on request, of those before the last noise is removed
            (False).
        images: the first samples, in the form of the data's `reference()`.
        summaries: the same as `totals` for distances without features.
        done: samples drawn on this process.
        evaluations: network evaluations that these took.
        seconds: time that drawing them took.
        memory: the most memory meanwhile, in 1e9 bytes, by kind; only of a resumable pass.
    """

    seed: int
    n: int
    totals: dict[bool, MetricTotals]
    images: Tensor
    summaries: dict[bool, DistanceTotals] = field(default_factory=dict)
    done: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    memory: dict[str, float] = field(default_factory=dict)

    @property
    def nfe(self) -> float:
        """Network evaluations per sample."""
        return self.evaluations / max(self.done, 1)

    @torch.inference_mode()
    def add(self, numbers: Sequence[int], samples: Samples, features: Features | None, data: ScoreData) -> None:
        """Adds the samples of these numbers; on a GPU, in a separate CUDA stream."""
        rows = torch.as_tensor(numbers)
        with _separate_stream(samples.x):
            for denoised, summaries in self.summaries.items():
                images = data.to_reference(samples.x if denoised else samples.raw)
                if features is not None:
                    self.totals[denoised].update(numbers, features(images))
                summaries.update(numbers, images)
                if denoised and len(self.images):
                    first = rows < len(self.images)
                    self.images[rows[first]] = images[first.to(images.device)].cpu().to(self.images.dtype)

    def reduce(self, trainer: Trainer, device: torch.device) -> None:
        """Sums over all processes, on each of them."""
        for totals in self.totals.values():
            totals.reduce(trainer)
        for summaries in self.summaries.values():
            summaries.reduce(trainer, device)
        if len(self.images):
            self.images = trainer.strategy.reduce(self.images.to(device), reduce_op="sum").cpu()

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted pass resumes from."""
        sums = {name: getattr(self, name).items() for name in ("totals", "summaries")}
        return vars(self) | {name: {which: each.state_dict() for which, each in found} for name, found in sums.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a saved state."""
        for name in ("totals", "summaries"):
            for denoised, sums in getattr(self, name).items():
                sums.load_state_dict(state[name][denoised])
        vars(self).update({**state, "totals": self.totals, "summaries": self.summaries})


class SamplingPass:
    """Draws the samples of an evaluation and sums their features up; each process takes its share.

    Args:
        trainer: the trainer, with the data.
        pl_module: the model, which holds the weights to measure.
        features: the feature extractor, if any.
        batch_size: samples that each process draws at once.
        resumable: save the sums every minute, and resume from them after an interruption.
        references: the data as distances without features see them.

    On a GPU the features of a batch are computed, in a separate stream, while the next batch is drawn.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: ScoreModel,
        features: Features | None,
        batch_size: int,
        resumable: bool = False,
        references: Sequence[Summaries] = (),
    ) -> None:
        self.trainer, self.model, self.features = trainer, pl_module, features
        self.batch_size, self.resumable, self.references = batch_size, resumable, references
        self.data = data_of(trainer)
        self.overlapping = pl_module.device.type == "cuda"

    def run(self, seed: int, n: int, shown: int = 0, before_denoising: bool = False) -> SamplingResult:
        """The sums over samples 0 to n - 1 of a seed, of all processes.

        Args:
            seed: the seed.
            n: number of samples.
            shown: how many samples to keep as images.
            before_denoising: also sum up the samples before the final denoising step.
        """
        kinds = [True, False] if before_denoising else [True]
        features, device = self.features, self.model.device
        totals = {} if features is None else {denoised: MetricTotals(features, n, device) for denoised in kinds}
        summaries = {denoised: DistanceTotals(self.references) for denoised in kinds}
        stored = self.data.splits.train.x if shown else torch.zeros(0)
        dtype = torch.int32 if stored.dtype == torch.uint16 else stored.dtype  # which processes can sum
        images = torch.zeros(min(n, shown), *stored.shape[1:], dtype=dtype)
        found = SamplingResult(seed, n, totals, images, summaries)
        path = self._path(found) if self.resumable else None
        if path is not None:
            self._resume(path, found)
        self._draw(found, path)
        found.reduce(self.trainer, self.model.device)
        if path is not None:
            path.unlink(missing_ok=True)
        return found

    def _draw(self, found: SamplingResult, path: Path | None) -> None:
        """Draws the samples of this process that are not done yet, batch by batch, and adds them."""
        particles = self.model.sampler.particles
        mine = share(found.n, self.trainer.global_rank, self.trainer.world_size, particles)
        saved, peak = time.monotonic(), PeakMemory(self.model.device) if self.resumable else None
        hidden = None if self.resumable and self.trainer.is_global_zero else True
        with (
            tqdm(total=len(mine), initial=found.done, desc="evaluating", unit="sample", leave=False, disable=hidden) as bar,
            ThreadPoolExecutor(1) as pool,
            fail_together(self.trainer),
        ):
            adding = pool.submit(lambda: None)
            while found.done < len(mine):
                numbers = mine[found.done : found.done + whole(self.batch_size, particles)]
                before = self.model.score_function.evaluations
                if peak is not None:
                    peak.begin()
                start = time.monotonic()
                samples = self.model.draw(numbers, found.seed)
                found.seconds += time.monotonic() - start
                for name, used in peak.gigabytes().items() if peak is not None else ():
                    found.memory[name] = max(used, found.memory.get(name, 0.0))
                adding.result()
                found.evaluations += self.model.score_function.evaluations - before
                found.done += len(numbers)
                adding = pool.submit(found.add, numbers, samples, self.features, self.data)
                if not self.overlapping:
                    adding.result()
                bar.update(len(numbers))
                if path is not None and time.monotonic() - saved > SAVE_EVERY:
                    adding.result()
                    _save(path, found)
                    saved = time.monotonic()
            adding.result()

    def _path(self, found: SamplingResult) -> Path:
        """The file of an interrupted pass, named by all that its sums depend on."""
        in_turn = self.model.conditions.in_turn
        digest = digest_of(self.model.state_dict() | ({} if in_turn is None else {"in turn": in_turn[: found.n]}))
        model, score, trainer = self.model, self.model.score_function, self.trainer
        parts = (model.sampler, model.guidance, score.process, score.parametrization)
        settings = [*map(settings_of, parts), model.conditional, trainer.precision]
        options = [found.n, found.seed, len(found.summaries), len(found.images), trainer.global_rank, trainer.world_size]
        features = None if self.features is None else self.features.fingerprint
        distances = [(settings_of(each.distance), each.n) for each in self.references]
        depends = [settings, features, distances, self.data.fingerprint, *options, FORMAT]
        digest.update(json.dumps(depends, default=str).encode())
        return cache_folder() / "evaluations" / f"{digest.hexdigest()[:24]}.pt"

    def _resume(self, path: Path, found: SamplingResult) -> None:
        """Continues an earlier pass that was interrupted, if there is one; an incomplete file costs time only."""
        if path.exists():
            with suppress(InputError):
                found.load_state_dict(read_tensors(path))
        if found.done and self.trainer.is_global_zero:
            tqdm.write(f"evaluation: resumes after {found.done} samples of an earlier one that was interrupted")


@contextmanager
def fail_together(trainer: Trainer) -> Iterator[None]:
    """If sampling fails on one process, it fails on all: none waits for the sums of the others."""
    failure: Unmeasurable | None = None
    try:
        yield
    except Unmeasurable as error:
        failure = error
    if trainer.strategy.reduce_boolean_decision(failure is not None, all=False):
        raise failure or Unmeasurable("the samples of another process cannot be measured")


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
