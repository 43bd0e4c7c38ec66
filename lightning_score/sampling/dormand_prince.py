"""A solver of one ordinary differential equation per row of a batch, with a step size for each row."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_score.errors import require
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
