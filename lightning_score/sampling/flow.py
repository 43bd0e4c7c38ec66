"""The probability-flow ODE, dx = [f x - g^2 score/2] dt, whose solutions have the marginals p_t of the process.

Song et al. 2021 (2011.13456), eq. 13; the same is d(x/alpha) = noise d(sigma/alpha), noise = -sigma score.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.process import NoiseProcess
from lightning_score.sampling.ends import FinalDenoise, Initial, KeepNoise, Prior
from lightning_score.sampling.from_noise import moves_of, states_of
from lightning_score.sampling.grid import TimeGrid, Uniform
from lightning_score.sampling.noise import NoiseSource
from lightning_score.sampling.predictor import Predictor
from lightning_score.sampling.sampler import Sampler
from lightning_score.sampling.step import Move
from lightning_score.score.function import ScoreField
from lightning_score.tensors import broadcast_to, combine

Field = Callable[[Tensor, Tensor], Tensor]
"""dy/dt of y (B, N) at times (B,)."""

NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
SMALLEST_STEP = 1e-12  # of the interval


class DormandPrince:
    """The embedded Runge-Kutta pair 5(4) of Dormand and Prince (1980) with a PI controller per row.

    A step of size h with error e is accepted if r = max over parts of rms(e/(atol + rtol |y|)) <= 1, and followed by one
    of 0.9 r^-0.17 r_last^0.04 h; a rejected one is tried again with 0.9 r^-0.2 h (Hairer, Norsett and Wanner 1993, II.4).
    A step has six evaluations, since its last is the next one's first. Finished rows wait for the others; they are still
    evaluated, but do not change. A row whose step size becomes too small becomes NaN, with a warning.

    Args:
        rtol: tolerated error of a step relative to the size of y; at least ten rounding errors of y's precision are allowed.
        atol: tolerated error of a step in the units of y.
    """

    def __init__(self, rtol: float = 1e-5, atol: float = 1e-5):
        require(0 <= rtol < 1, f"rtol={rtol}: must lie in [0, 1), as in 1.0e-5")
        require(atol > 0, f"atol={atol}: must be above 0, as in 1.0e-5")
        self.rtol, self.atol = rtol, atol

    def __call__(self, field: Field, y: Tensor, t: Tensor, s: Tensor, parts: Sequence[int] | None = None) -> Tensor:
        """y at time s.

        Args:
            field: dy/dt; rows must not depend on one another.
            y: the rows at time t, (B, N).
            t: where to start, ().
            s: where to end, (), before or after t.
            parts: lengths of the parts of a row whose errors are controlled separately; one part by default.
        """
        t, s = (torch.as_tensor(v, dtype=torch.float64, device=y.device) for v in (t, s))
        now, span, parts = t.repeat(len(y)), s - t, parts or [y.shape[1]]
        k = field(y, now)
        step, last = self._first_step(y, k, parts).minimum(span.abs()), torch.ones_like(now)
        running = torch.full_like(now, bool(span), dtype=torch.bool)
        while bool(running.any()):
            arrives = step >= (s - now).abs()
            h = torch.where(running, torch.where(arrives, s - now, step * span.sign()), 0)
            end = torch.where(arrives & running, s, now + h)
            new, error, k_new = self._try(field, y, k, now, h, end)
            ratio = self._norm(error, torch.maximum(y.abs(), new.abs()), parts).nan_to_num(torch.inf)
            accepted = running & (ratio <= 1)
            y, k = (torch.where(broadcast_to(accepted, y) > 0, a, b) for a, b in ((new, y), (k_new, k)))
            now = torch.where(accepted, end, now)
            growth = torch.where(accepted, ratio**-0.17 * last**0.04, (ratio**-0.2).clamp(max=1.0))
            step = h.abs() * (0.9 * growth).clamp(0.2, 10.0)
            last = torch.where(accepted, ratio.clamp(min=1e-4), last)
            lost = running & ~accepted & (step < SMALLEST_STEP * span.abs())
            if bool(lost.any()):
                warnings.warn(
                    f"{int(lost.sum())} of {len(y)} ODEs became NaN at t={now[lost].tolist()[:3]}: the step size became too "
                    "small, because the score is not finite or not smooth there; train longer or raise rtol and atol",
                    stacklevel=2,
                )
                y = torch.where(broadcast_to(lost, y) > 0, torch.nan, y)
            running = running & ~lost & (now != s)
        return y

    def _try(self, field: Field, y: Tensor, k: Tensor, now: Tensor, h: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A step of every row: the new rows, their errors, and the slopes at them."""
        slopes = [k]
        for node, weights in zip(NODES, STAGES, strict=True):
            new = y + broadcast_to(h, y) * combine(*zip(weights, slopes, strict=True))
            slopes.append(field(new, now + node * h if node < 1 else end))
        return new, broadcast_to(h, y) * combine(*zip(ERROR, slopes, strict=True)), slopes[-1]

    def _first_step(self, y: Tensor, k: Tensor, parts: Sequence[int]) -> Tensor:
        """The step in which y moves by a hundredth of its size, or of the tolerance where it is smaller."""
        size, speed = self._norm(y, y.abs(), parts), self._norm(k, y.abs(), parts)
        return 0.01 * size.clamp(min=1.0) / speed

    def _norm(self, v: Tensor, size: Tensor, parts: Sequence[int]) -> Tensor:
        """max over parts of rms(v/(atol + rtol size)), float64 (B,)."""
        rtol = max(self.rtol, 10 * torch.finfo(v.dtype).eps)
        scaled = (v / (self.atol + rtol * size)).double().square().split(list(parts), 1)
        return torch.stack([part.mean(1) for part in scaled]).amax(0).sqrt()


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
        first, last = process.log_snr(process.with_signal(times[[0, -1]]))
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


class NoScore(ScoreField):
    """A score of zero, with which samplers are tried."""

    evaluations = 0

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
        return [move for moves in moves_of(self.predictor, process, times) for move in moves]

    def check(self, process: NoiseProcess) -> None:
        super().check(process)
        times = self.grid(process)
        self._integrate(NoScore(process), times.new_zeros(1, self.predictor.min_dimension), times)

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
        times, score = times.cpu(), self.grid.view(score)
        moves = self.plan(score.process, times)
        states = states_of({move.method for move in moves}, score.process, times)
        with evaluating(score), score.process.cached_at(times):
            for method, t, s, _ in moves:
                x, states[method] = method.step(score, x, t, s, NoDraws(), states[method])
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
