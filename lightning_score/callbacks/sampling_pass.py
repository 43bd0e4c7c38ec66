"""One pass over many samples: draws them on any number of processes, sums them up, resumes when interrupted."""

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lightning_score.callbacks.pictures import picture_in_turn
from lightning_score.data import ScoreData
from lightning_score.errors import InputError, Unmeasurable
from lightning_score.files import cache_folder, read_tensors, replacing, tolerating_full_disk
from lightning_score.memory import PeakMemory
from lightning_score.metrics.totals import KeptSamples, Totals
from lightning_score.runs.records import digest_of, settings_of
from lightning_score.sampling.sampler import Samples
from lightning_score.training.inference import share, whole
from lightning_score.training.model import ScoreModel

SAVE_EVERY = 60.0
"""Seconds of work that an interruption loses at most; with more than 8 processes, all of which save, more."""
FORMAT = 6
"""The version of a saved state; those of other versions are not read."""


class Source(ABC):
    """Where the samples of an evaluation come from.

    Attributes:
        weights: "ema", "ema 0.07" or "raw" for those of a model, "given" for others.
        particles: how many samples are drawn together, as they depend on one another.
    """

    weights: str
    particles: int = 1

    @abstractmethod
    def draw(self, numbers: Sequence[int], seed: int) -> Samples:
        """The samples of these numbers."""

    @abstractmethod
    def to_reference(self, x: Tensor) -> Tensor:
        """Drawn samples in the form of the data's `reference()`."""

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Network evaluations so far."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """How they are made, for records."""

    @abstractmethod
    def digest(self, n: int) -> str:
        """A hash of all that the first n samples depend on."""

    @abstractmethod
    def picture(self, samples: Tensor) -> Image.Image:
        """A picture of samples 0 to N - 1."""

    def labels(self, n: int) -> list[int] | None:
        """The class labels of samples 0 to n - 1; None if they have none."""
        return None


class FromModel(Source):
    """Samples of a model.

    Args:
        model: the model, which holds the weights to measure.
        data: its data.
        weights: which ones they are.
        precision: the trainer's.
    """

    def __init__(self, model: ScoreModel, data: ScoreData, weights: str = "ema", precision: str = "32-true") -> None:
        self.model, self.data, self.weights, self.precision = model, data, weights, precision
        self.particles = model.sampler.particles

    def draw(self, numbers: Sequence[int], seed: int) -> Samples:
        return self.model.draw(numbers, seed)

    def to_reference(self, x: Tensor) -> Tensor:
        return self.data.to_reference(x)

    @property
    def evaluations(self) -> int:
        return self.model.score_function.evaluations

    @property
    def settings(self) -> dict[str, Any]:
        return settings_of(self.model.sampler) | {"guidance": settings_of(self.model.guidance)}

    def digest(self, n: int) -> str:
        model, in_turn = self.model, self.model.conditions.in_turn
        found = digest_of(model.state_dict() | ({} if in_turn is None else {"in turn": in_turn[:n]}))
        parts = (model.sampler, model.guidance, model.score_function.process, model.score_function.parametrization)
        settings = [*map(settings_of, parts), model.conditional, self.precision]
        found.update(json.dumps(settings, default=str).encode())
        return found.hexdigest()

    def picture(self, samples: Tensor) -> Image.Image:
        return picture_in_turn(self.model, self.data, samples)

    def labels(self, n: int) -> list[int] | None:
        model = self.model
        labeled = model.num_classes > 0 and model.takes_condition
        return model.conditions.default(torch.arange(n)).tolist() if labeled else None


@dataclass
class SamplingResult:
    """What is kept of samples 0 to n - 1 of a seed.

    Attributes:
        seed: the seed.
        n: the number of samples.
        totals: of the final samples (True) and, on request, of those before the last noise is removed (False).
        shown: the first final samples.
        done: samples drawn on this process.
        evaluations: network evaluations that these took.
        seconds: time that drawing them took.
        memory: the most memory meanwhile, in 1e9 bytes, by kind; only of a resumable pass.
    """

    seed: int
    n: int
    totals: dict[bool, list[Totals]]
    shown: KeptSamples
    done: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    memory: dict[str, float] = field(default_factory=dict)

    @property
    def nfe(self) -> float:
        """Network evaluations per sample."""
        return self.evaluations / max(self.done, 1)

    @property
    def images(self) -> Tensor:
        """The first final samples."""
        return self.shown.samples

    @property
    def all_totals(self) -> list[Totals]:
        """All that is kept."""
        return [self.shown, *(each for totals in self.totals.values() for each in totals)]

    @torch.inference_mode()
    def add(self, numbers: Sequence[int], samples: Samples, to_reference: Callable[[Tensor], Tensor]) -> None:
        """Adds the samples of these numbers; on a GPU, in a separate CUDA stream."""
        with _separate_stream(samples.x):
            for denoised, totals in self.totals.items():
                images = to_reference(samples.x if denoised else samples.raw)
                for each in [*totals, *([self.shown] if denoised else [])]:
                    each.update(numbers, images)

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted pass resumes from."""
        numbers = {name: getattr(self, name) for name in ("done", "evaluations", "seconds", "memory")}
        return numbers | {"totals": [each.state_dict() for each in self.all_totals]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a saved state."""
        for each, saved in zip(self.all_totals, state.pop("totals"), strict=True):
            each.load_state_dict(saved)
        vars(self).update(state)


@dataclass(frozen=True)
class SamplingPass:
    """Draws the samples of an evaluation and sums them up; each process takes its share.

    Args:
        trainer: the trainer.
        source: where the samples come from.
        totals: makes what they are summed up in.
        like: examples in the form of the data's `reference()`.
        batch_size: samples that each process draws at once.
        device: the device of the samples.
        depends: what the sums depend on besides the samples, as plain values, to resume them after an interruption; None:
            they are not saved every minute.

    On a GPU the features of a batch are computed, in a separate stream, while the next batch is drawn.
    """

    trainer: Trainer
    source: Source
    totals: Callable[[], list[Totals]]
    like: Tensor
    batch_size: int
    device: torch.device
    depends: Sequence[Any] | None = None

    @property
    def overlapping(self) -> bool:
        """Whether features are computed while the next batch is drawn."""
        return self.device.type == "cuda"

    def run(self, seed: int, n: int, shown: int = 0, before_denoising: bool = False) -> SamplingResult:
        """The sums over samples 0 to n - 1 of a seed, of all processes.

        Args:
            seed: the seed.
            n: number of samples.
            shown: how many samples to keep.
            before_denoising: also sum up the samples before the final denoising step.
        """
        totals = {denoised: self.totals() for denoised in ([True, False] if before_denoising else [True])}
        found = SamplingResult(seed, n, totals, KeptSamples(min(n, shown), self.like))
        path = self._path(found) if self.depends is not None else None
        if path is not None:
            self._resume(path, found)
        self._draw(found, path)
        for each in found.all_totals:
            each.reduce(self.trainer, self.device)
        if path is not None:
            path.unlink(missing_ok=True)
        return found

    def _draw(self, found: SamplingResult, path: Path | None) -> None:
        """Draws the samples of this process that are not done yet, batch by batch, and adds them."""
        particles = self.source.particles
        mine = share(found.n, self.trainer.global_rank, self.trainer.world_size, particles)
        saved, peak = time.monotonic(), PeakMemory(self.device) if path is not None else None
        every = SAVE_EVERY * max(1.0, self.trainer.world_size / 8)  # so that they do not fill the disk
        hidden = None if path is not None and self.trainer.is_global_zero else True
        with (
            tqdm(total=len(mine), initial=found.done, desc="evaluating", unit="sample", leave=False, disable=hidden) as bar,
            ThreadPoolExecutor(1) as pool,
            fail_together(self.trainer),
        ):
            adding = pool.submit(lambda: None)
            while found.done < len(mine):
                numbers = mine[found.done : found.done + whole(self.batch_size, particles)]
                before = self.source.evaluations
                if peak is not None:
                    peak.begin()
                start = time.monotonic()
                samples = self.source.draw(numbers, found.seed)
                found.seconds += time.monotonic() - start
                for name, used in peak.gigabytes().items() if peak is not None else ():
                    found.memory[name] = max(used, found.memory.get(name, 0.0))
                adding.result()
                found.evaluations += self.source.evaluations - before
                found.done += len(numbers)
                adding = pool.submit(found.add, numbers, samples, self.source.to_reference)
                if not self.overlapping:
                    adding.result()
                bar.update(len(numbers))
                if path is not None and time.monotonic() - saved > every:
                    adding.result()
                    _save(path, found)
                    saved = time.monotonic()
            adding.result()

    def _path(self, found: SamplingResult) -> Path:
        """The file of an interrupted pass, named by all that its sums depend on."""
        options = [found.n, found.seed, len(found.totals), len(found.images)]
        depends = [self.depends, self.source.digest(found.n), *options, self.trainer.global_rank, self.trainer.world_size]
        digest = hashlib.sha256(json.dumps([*depends, FORMAT], default=str).encode())
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
