"""The times of the grid `Learned`: learned for the weights of a model, cached, and refused for other weights."""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from filelock import FileLock

from lightning_score.errors import require
from lightning_score.files import cache_folder, replace_text, tolerating_full_disk
from lightning_score.runs.records import digest_of, settings_of
from lightning_score.sampling import Given, Learned, Sampler
from lightning_score.sampling.exact_ends import Latents, check_learnable
from lightning_score.sampling.learning import check_steps, learn
from lightning_score.score.function import ScoreField
from lightning_score.training.inference import inference

if TYPE_CHECKING:
    from lightning_score.training.model import ScoreModel

VERSION = 1
CHECKED = 8
"""Latents whose samples are compared with the cached ones: settings do not cover code."""


def check_grid(model: "ScoreModel", sampler: Sampler) -> None:
    """Raises `InputError` if the times of the sampler must be learned but cannot be."""
    if sampler.grid.learns:
        process = model.score_function.process
        check_learnable(sampler, process)
        check_steps(cast(Learned, sampler.grid).steps, model.objective.levels(process))


@torch.inference_mode()
def learn_times(model: "ScoreModel", sampler: Sampler, progress: bool = False) -> bool:
    """Gives a grid that learns the times for the present weights, unless it has them: from the cache or, in seconds, anew.

    Returns:
        Whether they were learned anew.

    Raises:
        InputError: the times of a config were learned for another model or solver.
    """
    if not sampler.grid.learns:
        return False
    grid = cast(Learned, sampler.grid)
    with inference(model, eagerly=True), torch.autocast(model.device.type, enabled=False):
        key = fingerprint(model, sampler)
        if grid.learned_for == key:
            return False
        require(not grid.given, "model.sampler.grid.times: were learned for another checkpoint or another solver; "
                "learn them anew: --model.sampler.grid Learned")  # fmt: skip
        evaluations = model.score_function.evaluations
        file = cache_folder() / "learned_times" / f"{key}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):  # other processes wait, and have the same times
            anew = not _read(file, model, sampler, key)
            if anew:
                check_grid(model, sampler)
                levels = model.objective.levels(model.score_function.process)
                draw = Drawn(model)
                times = learn(sampler, model.score_function.process, draw, grid.steps, grid.t_min, levels, progress)
                grid.keep(times, key)
                content = {"times": grid.times, "sizes": _sizes(model, sampler)}
                with tolerating_full_disk(file):
                    replace_text(file, json.dumps(content))
        model.score_function.evaluations = evaluations  # those of the samples alone are counted
    return anew


def require_own_times(model: "ScoreModel") -> None:
    """Raises `InputError` if the sampler's times are those of a config, and were learned for another model or solver."""
    if model.sampler.grid.learns and cast(Learned, model.sampler.grid).given:
        learn_times(model, model.sampler)


def fingerprint(model: "ScoreModel", sampler: Sampler) -> str:
    """A hash of all that learned times depend on: weights, process, parametrization, guidance, solver and steps."""
    score, grid = model.score_function, cast(Learned, sampler.grid)
    parts = {**vars(sampler), "grid": None}
    settings = [settings_of(part, private=True) for part in (parts, model.guidance, score.process, score.parametrization)]
    labels = [model.conditional, model.num_classes, model.shape, str(model.dtype)]
    levels = settings_of(model.objective.levels(score.process))
    depends = [VERSION, type(sampler).__name__, settings, labels, levels, grid.steps, grid.t_min]
    digest = digest_of(score.network.state_dict())
    digest.update(json.dumps(depends, default=str, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _sizes(model: "ScoreModel", sampler: Sampler) -> list[float]:
    """The norms of a few samples."""
    score, latents = Drawn(model)(range(CHECKED))
    norms: list[float] = sampler(score, latents).x.flatten(1).double().norm(dim=1).tolist()
    return norms


def _read(file: Path, model: "ScoreModel", sampler: Sampler, key: str) -> bool:
    """Whether the grid has taken times from the cache, with which the samples are as large as they were."""
    grid = cast(Learned, sampler.grid)
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(file.read_text(encoding="utf-8"))
        Given(content["times"])
        if len(content["times"]) == grid.steps + 1:
            grid.keep(torch.tensor(content["times"], dtype=torch.float64), key)
            close = [math.isclose(a, b, rel_tol=1e-2) for a, b in zip(content["sizes"], _sizes(model, sampler), strict=True)]
            return all(close)
    return False


class Drawn:
    """The score that samples of a model follow, and their latents, by number."""

    def __init__(self, model: "ScoreModel"):
        self._model = model

    def __call__(self, numbers: Sequence[int]) -> tuple[ScoreField, Latents]:
        model = self._model
        score = model.sampled_score(torch.as_tensor(numbers, device=model.device), None)
        return score, Latents(numbers, model.shape, model.device, model.dtype)
