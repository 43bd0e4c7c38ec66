"""The probability-flow ODE, dx = [f x - g^2 score/2] dt, whose solutions have the marginals p_t of the process.

Song et al. 2021 (2011.13456), eq. 13; the same is d(x/alpha) = noise d(sigma/alpha), noise = -sigma score.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.process import NoiseProcess
from lightning_score.sampling.dormand_prince import DormandPrince
from lightning_score.sampling.ends import FinalDenoise, Initial, KeepNoise, Prior
from lightning_score.sampling.grid import TimeGrid, Uniform
from lightning_score.sampling.predictor import Predictor
from lightning_score.sampling.sampler import Move, Sampler
from lightning_score.score.function import ScoreField
from lightning_score.tensors import broadcast_to, combine


class RK45(Predictor):
    """Integrates d(x/alpha) = noise d(sigma/alpha), noise = -sigma score, with errors below a tolerance for every sample.

    Dormand and Prince 1980, as in Song et al. 2021 (2011.13456), appendix D.4, but in the variables of Karras et al. 2022
    (2206.00364), eq. 4, in which the coefficients of a tabulated process do not jump. On any grid it takes what it needs,
    1 + 6 evaluations per step and step sizes of each sample's own; samples that are done wait for the slowest, and what
    they make the network see meanwhile counts. One interval from 1 to t_min, `Uniform(1)`, is the usual grid.

    Args:
        rtol: tolerated error of a step relative to x/alpha.
        atol: tolerated error of a step in the units of the data.
    """

    adaptive, order, calls = True, 5, 7

    def __init__(self, rtol: float = 1e-5, atol: float = 1e-5):
        self.solver = DormandPrince(rtol, atol)

    def check(self, process, times):
        require(
            float(process.sigma(times[-1])) > 0,
            f"predictor=RK45: the grid ends at clean data (t={float(times[-1]):g}), where there is no score; "
            "use a grid that ends at t_min > 0, as in Uniform(1, 1.0e-3)",
        )

    def evaluated(self, process, times):
        first, last = process.log_snr(times[[0, -1]])
        return process.inverse_log_snr(torch.lerp(first, last, torch.linspace(0, 1, 1000).to(times)))

    def step(self, score, x, t, s, noise, state):
        process = score.process

        def slope(y: Tensor, ratio: Tensor) -> Tensor:
            time = process.inverse_log_snr(-2 * ratio.log())
            return score.noise(combine((process.alpha(time), y.view_as(x))), time).flatten(1)

        y = self.solver(
            slope, (x / broadcast_to(process.alpha(t), x)).flatten(1), noise_ratio(process, t), noise_ratio(process, s)
        )
        return combine((process.alpha(s), y.view_as(x))), state


def noise_ratio(process: NoiseProcess, t: Tensor) -> Tensor:
    """sigma/alpha, the clock of the flow, float64."""
    return (-process.log_snr(torch.as_tensor(t).double()) / 2).exp()


class NoDraws:
    """In place of random numbers, for what must be deterministic: any draw is an error."""

    def normal(self) -> Tensor:
        """Raises `InputError`."""
        raise InputError(
            "ProbabilityFlow: the predictor draws noise, but encoding and decoding are deterministic; "
            "use RK45, Heun, Euler or DPMSolver2M"
        )

    uniform = normal


class _NoScore(ScoreField):
    """A score of zero, to try a predictor with."""

    evaluations = 0

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)


class ProbabilityFlow(Sampler):
    """Deterministic sampling by the probability-flow ODE, a one-to-one map between noise and data.

    Song et al. 2021 (2011.13456), section 4.3. For the score of a conditional model wrap it in `Conditioned`.

    Args:
        predictor: a deterministic numerical method; RK45 with tolerances 1e-5 by default.
        grid: the times; the single interval from 1 to t_min by default, which only RK45 can do well.
        denoise: what happens to the noise that is left in samples; it stays by default.
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
        self._move(_NoScore(process), times.new_zeros(1, self.predictor.min_dimension), times)

    def encode(self, score: ScoreField, x: Tensor) -> Tensor:
        """The noise at t = 1 to which the flow carries data x (B, ...) at t_min; no gradients are kept.

        Raises:
            InputError: the predictor draws noise or cannot run from data to noise.
        """
        latent = self._move(score, x, self.grid(score.process).flip(0))
        require(
            bool(latent.isfinite().all()) or not bool(x.isfinite().all()),
            f"ProbabilityFlow: {type(self.predictor).__name__} gave values that are not finite on its way from data to "
            "noise; use RK45, Heun or Euler, and a grid that ends at t_min > 0",
        )
        return latent

    def decode(self, score: ScoreField, latent: Tensor) -> Tensor:
        """The data at t_min to which the flow carries noise (B, ...) at t = 1, without final denoise: `encode`'s inverse."""
        return self._move(score, latent, self.grid(score.process))

    def interpolate(self, score: ScoreField, x0: Tensor, x1: Tensor, n: int) -> Tensor:
        """n images on the way from x0 to x1, both (B, ...) and included: (n, B, ...).

        Their latents are interpolated on the sphere: [sin((1 - w) theta) z0 + sin(w theta) z1]/sin(theta), theta the angle
        between z0 and z1 (Shoemake 1985; Song et al. 2021, appendix D.4).
        """
        require(n >= 2, f"n={n}: need at least the two ends, n=2")
        z0, z1 = self.encode(score, x0), self.encode(score, x1)
        return torch.stack([self.decode(score, slerp(z0, z1, w)) for w in torch.linspace(0, 1, n).tolist()])

    @torch.no_grad()
    def _move(self, score: ScoreField, x: Tensor, times: Tensor) -> Tensor:
        """The flow along a grid of times in either direction."""
        times = times.cpu()
        state = self.predictor.init(score.process, times)
        with evaluating(score), score.process.at_hand(times):
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
