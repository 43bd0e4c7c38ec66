"""Restart: on the way from noise to data back to more noise and down again, several times."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lightning_score.errors import require, require_passes
from lightning_score.process import NoiseProcess
from lightning_score.sampling.grid import karras_times, times_of_levels
from lightning_score.sampling.noise import NoiseSource
from lightning_score.sampling.predictor import Heun, Predictor
from lightning_score.sampling.step import Affine, AffineStep, Move, SamplerStep
from lightning_score.score.function import ScoreField


class Restart(Predictor):
    """Another predictor, whose samples at sigma_min go `repeats` times back to sigma_max by noise and down again.

    Xu et al. 2023 (2306.14878), Algorithm 1 and equation 3: the noise of the process's own transition contracts the errors
    that were made before, and the steps back, at equal distances of (sigma/alpha)^(1/7), add little of their own. The way
    starts at the time of the grid nearest to sigma_min, as in the authors' code. After each restart a multistep predictor
    begins anew, with no step to remember. Each setting is a number or, for several intervals, a list of one per interval;
    levels are sigma/alpha, in the units of the data.

    Args:
        predictor: the other predictor; `Heun` by default.
        sigma_min: lower end of the interval; the paper takes 0.06 for CIFAR-10.
        sigma_max: upper end; the paper takes 0.3.
        steps: steps from sigma_max back to sigma_min; the paper counts their times, one more (its N_Restart).
        repeats: K, how often.
        restart_noise: a factor on the noise added (S_noise of the authors' code); 1 is exact, the authors take 1.003.
    """

    order, evaluations = 2, 2

    def __init__(
        self,
        predictor: Predictor | None = None,
        sigma_min: float | Sequence[float] = 0.06,
        sigma_max: float | Sequence[float] = 0.3,
        steps: int | Sequence[int] = 2,
        repeats: int | Sequence[int] = 1,
        restart_noise: float = 1.0,
    ):
        self.predictor = predictor or Heun()
        self.order, self.evaluations, self.adaptive = (
            self.predictor.order,
            self.predictor.evaluations,
            self.predictor.adaptive,
        )
        self.batch_independent, self.min_dimension = self.predictor.batch_independent, self.predictor.min_dimension
        require(self.evaluations > 0, "predictor=NoPredictor: Restart needs one that moves samples along the ODE, as Heun")
        settings = {"sigma_min": sigma_min, "sigma_max": sigma_max, "steps": steps, "repeats": repeats}
        lists = {name: list(v) if isinstance(v, Sequence) else [v] for name, v in settings.items()}
        n = max(map(len, lists.values()))
        for name, values in lists.items():
            require(len(values) in (1, n) and n > 0, f"{name}={values}: need one number, or one for each of {n} intervals")
        self._intervals = list(zip(*(v * (n if len(v) == 1 else 1) for v in lists.values()), strict=True))
        for low, high, count, times in self._intervals:
            require(
                0 < low < high < math.inf,
                f"sigma_min={low}, sigma_max={high}: need 0 < sigma_min < sigma_max, as in 0.06 and 0.3",
            )
            require(count >= 1, f"steps={count}: need at least one step from sigma_max back to sigma_min, as in steps=2")
            require(times >= 1, f"repeats={times}: need at least one; without a restart give its predictor alone")
        require(restart_noise > 0, f"restart_noise={restart_noise}: must be above 0, as in 1 or 1.003")
        require_passes(**{"steps x repeats": sum(count * times for *_, count, times in self._intervals)})
        self._renoise = Renoise(restart_noise)

    def plan(self, process: NoiseProcess, times: Tensor) -> list[list[Move]]:
        restarts = self._restarts(process, times)
        plan: list[list[Move]] = []
        start = 0
        for stop in [*sorted(restarts), len(times) - 1]:
            plan += _afresh(self.predictor, process, times[start : stop + 1])
            start = stop
            for back, repeats in restarts.get(stop, ()):
                for _ in range(repeats):
                    up = Move(self._renoise, back[-1], back[0], back[0])
                    plan[-1] += [up, *chain(*_afresh(self.predictor, process, back))]
        return plan

    def _restarts(self, process: NoiseProcess, times: Tensor) -> dict[int, list[tuple[Tensor, int]]]:
        """The decreasing times back and the number of repeats of every restart, by the position of its start on the grid."""
        levels = torch.where(process.sigma(times) > 0, process.noise_level(times), 0.0)
        found: dict[int, list[tuple[Tensor, int]]] = {}
        for low, high, steps, repeats in self._intervals:
            ends = torch.tensor([high, low], dtype=torch.float64)
            top = times_of_levels(process, ends[:1], "sigma_max")
            times_of_levels(process, ends[1:], "sigma_min")
            near = 1 + int((levels[1:].log() - ends[1].log()).abs().argmin())
            require(
                float(levels[near]) < high and low > 0.99 * float(levels[-1]),
                f"sigma_min={low}, sigma_max={high}: must hold the grid's level nearest to sigma_min, which is "
                f"{float(levels[near]):.4g}, below sigma_max; give the grid more steps, or another interval",
            )
            back = karras_times(process, torch.cat([top, times[near : near + 1]]), steps)
            found.setdefault(near, []).append((back, repeats))
        return found

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        """A step of the other predictor."""
        return self.predictor.step(score, x, t, s, noise, state)


def _afresh(predictor: Predictor, process: NoiseProcess, times: Tensor) -> list[list[Move]]:
    """The moves of a predictor over each interval of its own part of the grid, where it starts with no step to remember."""
    if len(times) < 2:
        return []
    parts: dict[SamplerStep, _Part] = {}
    plan = predictor.plan(process, times)
    return [
        [move._replace(method=parts.setdefault(move.method, _Part(move.method, times))) for move in moves] for moves in plan
    ]


class _Part(SamplerStep):
    """A method on its own part of the grid."""

    def __init__(self, method: SamplerStep, times: Tensor):
        self.method, self.times = method, times
        self.evaluations, self.needs_observation = method.evaluations, method.needs_observation

    def check(self, process: NoiseProcess, times: Tensor) -> None:
        self.method.check(process, self.times)

    def evaluated(self, process: NoiseProcess, times: Tensor) -> Tensor:
        return self.method.evaluated(process, self.times)

    def init(self, process: NoiseProcess, times: Tensor) -> Any:
        return self.method.init(process, self.times)

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        return self.method.step(score, x, t, s, noise, state)


class Renoise(AffineStep):
    """x <- a x + b z, the transition of the process from t to s > t."""

    evaluations = 0

    def __init__(self, factor: float):
        self.factor = factor

    def coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor, state: Any) -> Affine:
        a, b = process.transition(t, s)
        return Affine(a, 0.0, self.factor * b)
