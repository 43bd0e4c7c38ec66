"""Guidance by observations: linear inverse problems y = A x_0 + s z on a model that knows nothing of them."""

from abc import abstractmethod

import torch
from torch import Tensor

from lightning_score.guidance.base import Guidance, Trained, differentiated, tracked
from lightning_score.guidance.operators import LinearOperator
from lightning_score.score import ScoreField, ScoreWrapper
from lightning_score.utils import expand, require


class InverseProblem(Guidance):
    """Pseudo-inverse guidance: x_0 given x_t is taken as N(denoised, r^2 I), so that y given x_t is Gaussian too.

    score + strength J^T A^T (r^2 A A^T + s^2 I)^-1 (y - A denoised), J = d denoised/dx_t,
    r^2 = d^2 sigma^2/(alpha^2 d^2 + sigma^2), d = data_std (Song, Vahdat, Mardani and Kautz 2023, "Pseudoinverse-guided
    diffusion models for inverse problems", ICLR, eqs. 7 and 8). It is exact for data from N(m, d^2 I) and an approximation
    for all others; the samples do not follow p_0(x given y) exactly. J costs a backward pass through the network, which NFE
    does not count: a step takes two to three times as long. A network that is barely trained makes it diverge.

    Args:
        data_std: d, the standard deviation of the data about their mean.
        noise_std: s, the standard deviation of the observation's noise; 0: known exactly.
        strength: 1 is the approximation as derived.

    Raises:
        InputError: a number is out of range; in `check`: operator, observation and samples do not fit.
    """

    def __init__(self, data_std: float = 0.5, noise_std: float = 0.0, strength: float = 1.0):
        require(data_std > 0, f"data_std={data_std}: must be above 0, as in 0.5")
        require(noise_std >= 0, f"noise_std={noise_std}: must be 0 (exact observations) or more, as in 0.1")
        require(strength >= 0, f"strength={strength}: must be 0 (no guidance) or more; 1 is the approximation as derived")
        # not called scale: a guidance that this one replaces on the command line would leave its own scale behind
        self.data_std, self.noise_std, self.strength = data_std, noise_std, strength

    @property
    @abstractmethod
    def operator(self) -> LinearOperator:
        """A."""

    @property
    @abstractmethod
    def observation(self) -> Tensor:
        """y, (n, ...): sample k has the observation k mod n."""

    def check(self, trained: Trained) -> None:
        expected, given = self.operator.observed_shape(trained.shape), tuple(self.observation.shape[1:])
        require(
            expected == given and len(self.observation) > 0,
            f"observation of shape {list(self.observation.shape)}: must be [n, {', '.join(map(str, expected))}], n at least "
            f"1, for samples of shape {list(trained.shape)}",
        )

    def guide(self, score: ScoreField, indices: Tensor) -> ScoreField:
        rows = self.observation[(indices % len(self.observation)).cpu()].to(indices.device)
        return _PseudoInverseScore(score, self, rows)


class PseudoInverse(InverseProblem):
    """Pseudo-inverse guidance with an operator and observations made in Python.

    score + strength J^T A^T (r^2 A A^T + s^2 I)^-1 (y - A denoised); see InverseProblem.

    Args:
        operator: A.
        observation: y, (n, ...): sample k has the observation k mod n.
        data_std: d, the standard deviation of the data about their mean.
        noise_std: s, the standard deviation of the observation's noise; 0: known exactly.
        strength: 1 is the approximation as derived.

    Raises:
        InputError: a number is out of range; in `check`: operator, observation and samples do not fit.
    """

    operator: LinearOperator = None
    observation: Tensor = None

    def __init__(
        self,
        operator: LinearOperator,
        observation: Tensor,
        data_std: float = 0.5,
        noise_std: float = 0.0,
        strength: float = 1.0,
    ):
        super().__init__(data_std, noise_std, strength)
        self.operator, self.observation = operator, observation


class _PseudoInverseScore(ScoreWrapper):
    """score + strength J^T A^T (r^2 A A^T + s^2 I)^-1 (y - A denoised)."""

    def __init__(self, score: ScoreField, problem: InverseProblem, observation: Tensor):
        super().__init__(score)
        self.problem, self.observation = problem, observation

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        keep, problem = differentiated(x), self.problem
        with torch.inference_mode(False), torch.enable_grad():
            x_t, t, cond = tracked(x).requires_grad_(), tracked(t), tracked(cond)
            alpha, sigma = self.process.alpha(t), self.process.sigma(t)
            score = self.score(x_t, t, cond)
            denoised = (x_t + expand(sigma, x) ** 2 * score) / expand(alpha, x)
            r2 = (problem.data_std * sigma) ** 2 / ((alpha * problem.data_std) ** 2 + sigma**2)
            observed = problem.operator.apply(denoised)
            residual = tracked(self.observation).to(x.dtype) - observed
            weighted = problem.operator.gram_solve(residual, r2, problem.noise_std**2)
            (gradient,) = torch.autograd.grad(observed, x_t, weighted, create_graph=keep)
        guided = score + problem.strength * gradient
        return guided if keep else guided.detach()
