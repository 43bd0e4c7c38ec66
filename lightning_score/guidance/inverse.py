"""Guidance by observations y = A(x_0) with noise: approximations of the score of p_t(x given y)."""

from dataclasses import KW_ONLY, dataclass
from typing import cast

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.guidance.base import ModelFacts
from lightning_score.guidance.observed import ObservationGuidance
from lightning_score.observations import GaussianNoise, LinearOperator, Observation
from lightning_score.score.function import ScoreField
from lightning_score.score.posterior import At, DenoisedPosterior, PosteriorScore
from lightning_score.score.trace import inner
from lightning_score.tensors import broadcast_to


@dataclass(eq=False, repr=False)
class PseudoInverse(ObservationGuidance):
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
        noise: Gaussian noise of a known standard deviation s; null: that of noise_std.
        data_std: d, the standard deviation of the data about their mean.
        noise_std: s, in place of noise; 0: y is exact.
        strength: 1 is the approximation as derived.
        backprop: take J from the network.

    Raises:
        InputError: a number is out of range; in `check`: operator, observation and samples do not fit.
    """

    operator: LinearOperator
    _: KW_ONLY
    noise: GaussianNoise | None = None
    data_std: float = 0.5
    noise_std: float = 0.0
    strength: float = 1.0  # not named scale, because the command line keeps the scale of a guidance that this one replaces
    backprop: bool = False

    linear = True

    def __post_init__(self) -> None:
        require(self.data_std > 0, f"data_std={self.data_std}: must be above 0, as in 0.5")
        require(self.noise_std >= 0, f"noise_std={self.noise_std}: must be 0 (exact observations) or more, as in 0.1")
        require(self.strength >= 0, f"strength={self.strength}: must be 0 (no guidance) or more, as in 1")
        require(
            self.noise is None or self.noise_std == 0,
            f"noise_std={self.noise_std}: the noise is given by noise already; leave one of them out",
        )
        self.noise = self.noise or GaussianNoise(self.noise_std)
        super().__post_init__()

    @property
    def differentiates(self) -> bool:
        return self.backprop

    def check(self, trained: ModelFacts) -> None:
        require(
            isinstance(self.noise, GaussianNoise) and self.noise.std is not None,
            f"guidance={type(self).__name__}: needs Gaussian noise of a known std, as noise_std=0.1; take MomentMatching",
        )
        super().check(trained)

    def posterior(self, score: ScoreField, observation: Observation) -> PosteriorScore:
        return _PseudoInverseScore(score, observation, self)


class _PseudoInverseScore(DenoisedPosterior):
    """score + strength J^T A^T (r^2 A A^T + s^2 I)^-1 (y - A denoised)."""

    def __init__(self, score: ScoreField, observation: Observation, problem: PseudoInverse):
        super().__init__(score, observation)
        self.problem, self.backprop = problem, problem.backprop
        self.s2 = cast(float, cast(GaussianNoise, observation.noise).std) ** 2

    def likelihood(self, at: At) -> tuple[Tensor, Tensor]:
        d, problem = self.problem.data_std, self.problem
        observed = problem.operator.apply(at.denoised)
        r2 = (d * at.sigma) ** 2 / ((at.alpha * d) ** 2 + at.sigma**2)
        residual = at.y - observed
        weighted = problem.operator.gram_solve(residual, r2, self.s2)
        seen = at.x if problem.backprop else at.denoised
        (gradient,) = torch.autograd.grad(observed, seen, weighted, create_graph=at.keep)
        jacobian = 1.0 if problem.backprop else broadcast_to(at.alpha * r2 / at.sigma**2, at.x)
        return problem.strength * jacobian * gradient, -problem.strength / 2 * inner(residual, weighted)
