"""The probability-flow ODE, dx = [f x - g^2 score/2] dt, whose solutions have the marginals p_t of the process.

Song et al. 2021 (2011.13456), eq. 13; the same is d(x/alpha) = noise d(sigma/alpha), noise = -sigma score.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.process import NoiseProcess
from lightning_score.sampling.dormand_prince import DormandPrince
from lightning_score.sampling.ends import FinalDenoise, Initial, KeepNoise, Prior
from lightning_score.sampling.grid import TimeGrid, Uniform
from lightning_score.sampling.noise import NoiseSource
from lightning_score.sampling.predictor import Predictor
from lightning_score.sampling.sampler import Move, Sampler
from lightning_score.score.function import ScoreField
from lightning_score.tensors import broadcast_to, combine


class RK45(Predictor):
    """Integrates d(x/alpha) = noise d(sigma/alpha), noise = -sigma score, with errors below a tolerance for every sample.

    Dormand and Prince 1980, as in Song et al. 2021 (2011.13456), appendix D.4, but in the variables of Karras et al. 2022
    (2206.00364), eq. 4, in which the coefficients of a tabulated process do not jump. It takes 1 evaluation per interval of
    the grid and 6 per step, with step sizes chosen for each sample; finished samples wait for the slowest, and the network
    evaluations of theirs in the meantime count. One interval from 1 to t_min, `Uniform(1)`, is the usual grid.

    Args:
        rtol: tolerated error of a step relative to x/alpha.
        atol: tolerated error of a step in the units of the data.
    """

    adaptive, order, evaluations = True, 5, 7

    def __init__(self, rtol: float = 1e-5, atol: float = 1e-5):
        self.solver = DormandPrince(rtol, atol)

    def check(self, process: NoiseProcess, times: Tensor) -> None:
        require(
            float(process.sigma(times[-1])) > 0,
            f"predictor=RK45: the grid ends at clean data (t={float(times[-1]):g}), where there is no score; "
            "use a grid that ends at t_min > 0, as in Uniform(1, 1.0e-3)",
        )

    def evaluated(self, process: NoiseProcess, times: Tensor) -> Tensor:
        first, last = process.log_snr(times[[0, -1]])
        return process.inverse_log_snr(torch.lerp(first, last, torch.linspace(0, 1, 1000).to(times)))

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        process = score.process

        def slope(y: Tensor, level: Tensor) -> Tensor:
            time = process.time_of(level)
            return score.noise(combine((process.alpha(time), y.view_as(x))), time).flatten(1)

        start, end = process.noise_level(t.double()), process.noise_level(s.double())
        y = self.solver(slope, (x / broadcast_to(process.alpha(t), x)).flatten(1), start, end)
        return combine((process.alpha(s), y.view_as(x))), state


class NoDraws(NoiseSource):
    """In place of random numbers, where a step must be deterministic: a draw raises `InputError`."""

    def normal(self) -> Tensor:
        raise InputError(
            "ProbabilityFlow: the predictor draws noise, but encoding and decoding are deterministic; "
            "use RK45, Heun, Euler or DPMSolver2M"
        )

    uniform = acceptance = normal


class _NoScore(ScoreField):
    """A score of zero, with which `check` tries the predictor."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)


class ProbabilityFlow(Sampler):
    """Deterministic sampling by the probability-flow ODE, a one-to-one map between noise and data.

    Song et al. 2021 (2011.13456), section 4.3. For the score of a conditional model wrap it in `Conditioned`.

    Args:
        predictor: a deterministic numerical method; RK45 with tolerances 1e-5 by default.
        grid: the times; the single interval from 1 to t_min by default, which suits RK45 alone.
        denoise: what happens to the remaining noise of samples; it stays by default.
        initial: where sampling starts; the process's prior by default.
        clip: [low, high], to which the denoised image is clipped when sampling; null: not at all.

    Raises:
        InputError: the predictor draws noise.
    """

    def __init__(
        self,
        predictor: Predictor | None = None,
        grid: TimeGrid | None = None,
        denoise: FinalDenoise | None = None,
        initial: Initial | None = None,
        clip: Sequence[float] | None = None,
    ):
        super().__init__(grid or Uniform(1), denoise or KeepNoise(), initial or Prior(), clip)
        self.predictor = predictor or RK45()

    def plan(self, process: NoiseProcess, times: Tensor) -> list[Move]:
        return [Move(self.predictor, t, s, s) for t, s in pairwise(times)]

    def check(self, process: NoiseProcess) -> None:
        super().check(process)
        times = self.grid(process)
        self._integrate(_NoScore(process), times.new_zeros(1, self.predictor.min_dimension), times)

    def encode(self, score: ScoreField, x: Tensor) -> Tensor:
        """The noise at t = 1 to which the flow carries data x (B, ...) at t_min; no gradients are kept.

        Raises:
            InputError: the predictor draws noise or cannot run from data to noise.
        """
        latent = self._integrate(score, x, self.grid(score.process).flip(0))
        require(
            bool(latent.isfinite().all()) or not bool(x.isfinite().all()),
            f"predictor={type(self.predictor).__name__}: the latents of ProbabilityFlow are not finite; use RK45, Heun or "
            "Euler, and a grid that ends at t_min > 0",
        )
        return latent

    def decode(self, score: ScoreField, latent: Tensor) -> Tensor:
        """The data at t_min to which the flow carries noise (B, ...) at t = 1, without final denoise: `encode`'s inverse."""
        return self._integrate(score, latent, self.grid(score.process))

    def interpolate(self, score: ScoreField, x0: Tensor, x1: Tensor, n: int) -> Tensor:
        """n images from x0 to x1, both (B, ...) and included: (n, B, ...).

        Their latents are interpolated on the sphere: [sin((1 - w) theta) z0 + sin(w theta) z1]/sin(theta), theta the angle
        between z0 and z1 (Shoemake 1985; Song et al. 2021, appendix D.4).
        """
        require(n >= 2, f"n={n}: must be at least 2, the number of ends")
        z0, z1 = self.encode(score, x0), self.encode(score, x1)
        return torch.stack([self.decode(score, slerp(z0, z1, w)) for w in torch.linspace(0, 1, n).tolist()])

    @torch.no_grad()
    def _integrate(self, score: ScoreField, x: Tensor, times: Tensor) -> Tensor:
        """The flow along a grid of times in either direction."""
        times = times.cpu()
        state = self.predictor.init(score.process, times)
        with evaluating(score), score.process.cached_at(times):
            for t, s in pairwise(times):
                x, state = self.predictor.step(score, x, t, s, NoDraws(), state)
        return x


def slerp(z0: Tensor, z1: Tensor, w: float) -> Tensor:
    """Spherical interpolation, z0 (B, ...) at w = 0 and z1 at w = 1; a straight line between parallel rows."""
    angle = torch.cosine_similarity(z0.flatten(1).double(), z1.flatten(1).double()).clamp(-1, 1).acos()
    curved = angle.sin() > 1e-4
    theta = torch.where(curved, angle, 1.0)
    weights = (torch.where(curved, (v * theta).sin() / theta.sin(), v) for v in (1 - w, w))
    return combine(*zip(weights, (z0, z1), strict=True))


@contextmanager
def evaluating(score: ScoreField) -> Iterator[None]:
    """Within, every module of the score is in evaluation mode: no dropout."""
    modes = {module: module.training for module in score.modules()}
    score.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
