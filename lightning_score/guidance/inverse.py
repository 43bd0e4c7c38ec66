"""Guidance by observations: linear inverse problems y = A x_0 + s z for any model."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.guidance.base import Guidance, ModelFacts, differentiated
from lightning_score.observations import LinearOperator
from lightning_score.score.function import ScoreField, ScoreWrapper
from lightning_score.tensors import broadcast_to


@dataclass(eq=False, repr=False)
class PseudoInverse(Guidance):
    """Pseudo-inverse guidance: x_0 given x_t is taken as N(denoised, r^2 I), so that y given x_t is Gaussian too.

    score + strength J^T A^T (r^2 A A^T + s^2 I)^-1 (y - A denoised), J = d denoised/dx_t,
    r^2 = d^2 sigma^2/(alpha^2 d^2 + sigma^2), d = data_std (Song, Vahdat, Mardani and Kautz 2023, "Pseudoinverse-guided
    diffusion models for inverse problems", ICLR, eqs. 7 and 8). It is exact for data from N(m, d^2 I) and an approximation
    otherwise; the samples do not follow p_0(x given y) exactly. By default J is that of the same Gaussian, alpha
    r^2/sigma^2 I, with which the denoised image agrees with an exact observation whatever the network. The paper's J is that
    of the network, by a backward pass, which NFE does not count; it needs a network whose denoised image is good even where
    alpha is small: with a poor one sampling diverges.

    Args:
        operator: A.
        observation: y, (n, ...): sample k has the observation k mod n.
        data_std: d, the standard deviation of the data about their mean.
        noise_std: s, the standard deviation of the observation's noise; 0: known exactly.
        strength: 1 is the approximation as derived.
        backprop: take J from the network.

    Raises:
        InputError: a number is out of range; in `check`: operator, observation and samples do not fit.
    """

    operator: LinearOperator
    observation: Tensor
    _: KW_ONLY
    data_std: float = 0.5
    noise_std: float = 0.0
    strength: float = 1.0  # not named scale, because the command line keeps the scale of a guidance that this one replaces
    backprop: bool = False

    def __post_init__(self) -> None:
        require(self.data_std > 0, f"data_std={self.data_std}: must be above 0, as in 0.5")
        require(self.noise_std >= 0, f"noise_std={self.noise_std}: must be 0 (exact observations) or more, as in 0.1")
        require(self.strength >= 0, f"strength={self.strength}: must be 0 (no guidance) or more, as in 1")

    def check(self, trained: ModelFacts) -> None:
        expected, given = self.operator.observed_shape(trained.shape), tuple(self.observation.shape[1:])
        require(
            expected == given and len(self.observation) > 0,
            f"observation of shape {list(self.observation.shape)}: must be [n, {', '.join(map(str, expected))}], n at least "
            f"1, for samples of shape {list(trained.shape)}",
        )
        require(bool(self.observation.isfinite().all()), "observation: holds NaN or infinity at known pixels; mask them")

    def guide(self, score: ScoreField, indices: Tensor) -> ScoreField:
        rows = self.observation[(indices % len(self.observation)).cpu()].to(indices.device)
        return _PseudoInverseScore(score, self, rows)


class _PseudoInverseScore(ScoreWrapper):
    """score + strength J^T A^T (r^2 A A^T + s^2 I)^-1 (y - A denoised)."""

    def __init__(self, score: ScoreField, problem: PseudoInverse, observation: Tensor):
        super().__init__(score)
        self.problem, self.observation = problem, observation

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        keep, problem = differentiated(x), self.problem
        backprop = keep or problem.backprop
        with torch.inference_mode(False):
            # clones, because autograd accepts no tensors of inference mode
            x_t, t, cond = x.clone().requires_grad_(), t.clone(), None if cond is None else cond.clone()
            alpha, sigma = self.process.alpha(t), self.process.sigma(t)
            with torch.set_grad_enabled(backprop):
                score = self.score(x_t, t, cond)
                denoised = (x_t + broadcast_to(sigma, x) ** 2 * score) / broadcast_to(alpha, x)
            with torch.enable_grad():
                observed = problem.operator.apply(denoised.requires_grad_())
            r2 = (problem.data_std * sigma) ** 2 / ((alpha * problem.data_std) ** 2 + sigma**2)
            residual = self.observation.clone().to(x.dtype) - observed
            weighted = problem.operator.gram_solve(residual, r2, problem.noise_std**2)
            seen = x_t if problem.backprop else denoised
            (gradient,) = torch.autograd.grad(observed, seen, weighted, create_graph=keep)
            jacobian = 1.0 if problem.backprop else broadcast_to(alpha * r2 / sigma**2, x)
        guided = score + problem.strength * jacobian * gradient
        return guided if keep else guided.detach()
