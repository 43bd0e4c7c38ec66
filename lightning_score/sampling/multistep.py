"""Multistep predictors: one evaluation per step, and a polynomial through this prediction and those of the steps before.

With rho = sigma/alpha and lambda = log(alpha/sigma) the probability-flow ODE is an integral of what the network predicts:
x_s/alpha_s = x_t/alpha_t + int noise d rho, or x_s/sigma_s = x_t/sigma_t + int denoised d(alpha/sigma). A method replaces
the prediction by a polynomial, whose integral is a sum of predictions with weights that depend on the times alone and are
computed ahead of time. A step to clean data is of first order: it denoises.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_score.errors import require
from lightning_score.process import NoiseProcess
from lightning_score.sampling.noise import NoiseSource
from lightning_score.sampling.predictor import Predictor
from lightning_score.sampling.step import Numbers, Times
from lightning_score.score.function import ScoreField
from lightning_score.tensors import combine

Row = NDArray[np.float64]


class Coefficients(NamedTuple):
    """Of x_s = x_scale x + sum_j weights[j] prediction_j + std z, the newest prediction first."""

    x_scale: float
    weights: list[float]
    std: float


class History(NamedTuple):
    """What a step leaves to the next one."""

    steps: dict[tuple[float, ...], Coefficients]
    """The coefficients by the times of the predictions, the newest first, and the time s at which the step ends."""
    end: float | None = None
    """Where the last step has ended."""
    times: tuple[Tensor, ...] = ()
    """The times of the last predictions, the newest first, each ()."""
    predictions: tuple[Tensor, ...] = ()
    """The last predictions, the newest first, each (B, ...)."""


class Multistep(Predictor, ABC):
    """One step from the predictions at this time and at the `points` - 1 times before it; the first steps have fewer.

    A step that does not begin where the last one has ended starts anew, with one prediction.
    """

    evaluations = 1
    points: int
    """The most predictions in a step."""
    refined_points: int = 0
    """The most predictions, that at the new time included, with which the step before is done again; 0: it is not."""

    @abstractmethod
    def predict(self, score: ScoreField, x: Tensor, t: Tensor) -> Tensor:
        """What is extrapolated, like x (B, ...)."""

    @abstractmethod
    def scales(self, process: NoiseProcess, t: Tensor, s: Tensor) -> tuple[float, float]:
        """The factor of x and the standard deviation of the noise in a step from t to s."""

    @abstractmethod
    def weights(self, process: NoiseProcess, t: Tensor, s: Tensor, nodes: Sequence[Tensor]) -> Row:
        """The weights of predictions at the times `nodes` in a step from t to s, (len(nodes),)."""

    def init(self, process: NoiseProcess, times: Tensor) -> History:
        grid, keys, kept = list(times), times.tolist(), self._kept()
        steps: dict[tuple[float, ...], Coefficients] = {}
        for i, s in enumerate(grid[1:], 1):
            nodes = slice(max(0, i - kept), i)
            key = (*keys[nodes][::-1], keys[i])
            steps[key] = self.coefficients(process, grid[nodes][::-1], s)
        return History(steps)

    def _kept(self) -> int:
        """How many predictions a step needs: to undo the last step, refining takes all of its predictions and a new one."""
        return max(self.points + (self.refined_points > 0), self.refined_points)

    def coefficients(self, process: NoiseProcess, nodes: Sequence[Tensor], s: Tensor) -> Coefficients:
        """The coefficients of a step from nodes[0] to s with the predictions at the times `nodes`, the newest first."""
        t, used = nodes[0], nodes[: self.points]
        require(
            float(process.sigma(t)) > 0,
            f"predictor={type(self).__name__}: cannot begin at clean data (t={float(t):g}), where there is no score; use a "
            "grid that ends at t_min > 0, as in Uniform(1, 1.0e-3)",
        )
        x_scale, std = self.scales(process, t, s)
        weights = np.zeros(self._kept())
        used = used if float(process.sigma(s)) > 0 else used[:1]
        weights[: len(used)] = self.weights(process, t, s, used)
        if self.refined_points and len(nodes) > 1:  # x += sum_j (refined - predicted weight) prediction_j, then the step
            start, refined, predicted = nodes[1], nodes[: self.refined_points], nodes[1 : 1 + self.points]
            weights[: len(refined)] += x_scale * self.weights(process, start, t, refined)
            weights[1 : 1 + len(predicted)] -= x_scale * self.weights(process, start, t, predicted)
        return Coefficients(x_scale, weights.tolist(), std)

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        history = state or History({})
        kept = self._kept() - 1 if history.end == float(t) else 0
        times, before = (t, *history.times[:kept]), history.predictions[:kept]
        found = history.steps.get((*map(float, times), float(s))) or self.coefficients(score.process, times, s)
        z = noise.normal() if found.std else None
        none = [torch.zeros_like(x) for _ in found.weights[len(times) :]]  # of weight 0, so that all steps are one graph
        x, prediction = self.move(score, x, [t], [found.x_scale, found.std, *found.weights], z, *before, *none)
        return x, History(history.steps, float(s), times, (prediction, *before))

    def move(
        self, score: ScoreField, x: Tensor, times: Times, numbers: Numbers, z: Tensor | None, *before: Tensor
    ) -> tuple[Tensor, Tensor]:
        (t,), (x_scale, std, *weights) = times, numbers
        prediction, fresh = self.predict(score, x, t), [] if z is None else [(std, z)]
        return combine((x_scale, x), *zip(weights, (prediction, *before), strict=True), *fresh), prediction


@cache
def quadrature() -> tuple[Row, Row]:
    """Nodes and weights of Gauss-Legendre quadrature on [0, 1], of 64 points."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    return (1 + nodes) / 2, weights / 2


def interpolated(places: Row, moments: Row) -> Row:
    """The weights w with sum_j w_j places_j^k = moments_k for k < len(places): those of the integral of the polynomial.

    Args:
        places: where the polynomial takes its values, (P,), in units of the step.
        moments: the integrals of the powers 0 to P - 1, (P,).
    """
    found: Row = np.linalg.solve(np.vander(places, increasing=True).T, moments)
    return found


def require_order(order: int, most: int, name: str = "order") -> None:
    """Raises `InputError` unless the order is between 1 and the highest one."""
    require(1 <= order <= most, f"{name}={order}: must lie between 1 and {most}")
