"""Guidance by observations y = A(x_0) with noise: approximations of p(y given x_t)."""

from abc import ABC
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import cast

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.guidance.base import ModelFacts
from lightning_score.guidance.observed import At, LikelihoodGuidance, gaussian_variance
from lightning_score.observations import GaussianNoise, LinearOperator
from lightning_score.score.trace import inner
from lightning_score.tensors import broadcast_to, combine

LARGEST = 5.0
"""The longest step of the denoised image in `NetworkGradient`, in standard deviations."""


@dataclass(eq=False, repr=False)
class PseudoInverse(LikelihoodGuidance):
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
        backprop: take J from the network.

    Raises:
        InputError: a number is out of range; in `check`: operator, observation and samples do not fit.
    """

    operator: LinearOperator
    _: KW_ONLY
    noise: GaussianNoise | None = None
    data_std: float = 0.5
    noise_std: float = 0.0
    backprop: bool = False

    linear = True

    def __post_init__(self) -> None:
        self.differentiates = self.backprop
        require(self.data_std > 0, f"data_std={self.data_std}: must be above 0, as in 0.5")
        require(self.noise_std >= 0, f"noise_std={self.noise_std}: must be 0 (exact observations) or more, as in 0.1")
        require(
            self.noise is None or self.noise_std == 0,
            f"noise_std={self.noise_std}: the noise is given by noise already; leave one of them out",
        )
        self.noise = self.noise or GaussianNoise(self.noise_std)
        super().__post_init__()

    def check(self, trained: ModelFacts) -> None:
        require(
            isinstance(self.noise, GaussianNoise) and self.noise.std is not None,
            f"guidance={type(self).__name__}: needs Gaussian noise of a known std, as noise_std=0.1; or take MomentMatching",
        )
        super().check(trained)

    def likelihood(self, at: At) -> tuple[Tensor, Tensor]:
        d, s = self.data_std, cast(float, cast(GaussianNoise, self.noise).std)
        observed = self.operator.apply(at.denoised)
        r2 = gaussian_variance(d, at.alpha, at.sigma)
        residual = at.observation.y - observed
        weighted = self.operator.gram_solve(residual, r2, s**2)
        if self.backprop:
            (gradient,) = torch.autograd.grad(observed, at.x, weighted, create_graph=at.keep)
        else:
            gradient = combine((at.alpha * r2 / at.sigma**2, self.operator.adjoint(weighted, at.x.shape[1:])))
        return gradient, -inner(residual, weighted) / 2


@dataclass(eq=False, repr=False)
class NetworkGradient(LikelihoodGuidance, ABC):
    """Guidance by the network's derivative, which is far off where alpha is small.

    There noise of the network, a hundredth of that of x_t, is larger than the data. So the step of the denoised image,
    sigma^2/alpha grad log q, is kept below `LARGEST` r for each number in the root mean square, r the standard deviation of
    x_0 given x_t for Gaussian data.

    Args:
        data_std: d, the standard deviation of the data about their mean, of which r is made.
    """

    _: KW_ONLY
    data_std: float = 0.5

    differentiates = needs_noise = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.data_std > 0, f"data_std={self.data_std}: must be above 0, as in 0.5")

    def limited(self, gradient: Tensor, at: At) -> Tensor:
        r = gaussian_variance(self.data_std, at.alpha, at.sigma).sqrt()
        bound = LARGEST * at.alpha * r / at.sigma**2 * at.x[0].numel() ** 0.5
        norm = gradient.flatten(1).norm(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
        return broadcast_to((broadcast_to(bound, norm) / norm).clamp(max=1), gradient) * gradient


@dataclass(eq=False, repr=False)
class DPS(NetworkGradient):
    """Diffusion posterior sampling: x_0 given x_t is taken as the denoised image, q(y given x_t) = p(y given denoised).

    Chung, Kim, McCann, Klasky and Ye 2023 (2209.14687), eq. 11, for any operator and noise. Their algorithm divides by the
    residual's norm and by the step of their sampler; here noise of unknown std, GaussianNoise(null), does the like for any
    step: then grad log q = -d grad |r|/|r|, r = y - A(denoised) of d numbers. With small known noise it needs small steps.
    """

    def likelihood(self, at: At) -> tuple[Tensor, Tensor]:
        value = at.observation.log_prob(at.denoised)
        (gradient,) = torch.autograd.grad(value.sum(), at.x, create_graph=at.keep)
        return gradient, value


@dataclass(eq=False, repr=False)
class MomentMatching(NetworkGradient):
    """Moment-matching posterior sampling: x_0 given x_t is taken as N(denoised, C), C = sigma^2/alpha d denoised/dx_t.

    grad log q = J^T H^T (V + H C H^T)^-1 (y - A(denoised)), J = d denoised/dx_t, H the derivative of A at the denoised image
    (A itself if it is linear) and V the variance of the noise (Rozet, Andry, Lanusse and Louppe 2024, 2405.13712, MMPS). C
    is the covariance of x_0 given x_t, so that it is exact for Gaussian data of any covariance. The system is solved by
    conjugate gradients, of which every iteration is a backward pass through the network. log q leaves out the determinant,
    and its gradient the derivative of C.

    Args:
        iterations: of conjugate gradients; as many as y has numbers are exact.

    Raises:
        InputError: a number is out of range; in `check`: operator, noise, observation, samples and network do not fit.
    """

    _: KW_ONLY
    iterations: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.iterations <= 1000, f"iterations={self.iterations}: must lie between 1 and 1000, as in 3")

    def likelihood(self, at: At) -> tuple[Tensor, Tensor]:
        operator, noise, y = at.observation
        observed = operator.apply(at.denoised)
        system = y - observed, noise.variance(y, observed)
        residual, variance = system if at.keep else (part.detach() for part in system)  # without the graph of the network
        probe = torch.zeros_like(observed).requires_grad_()
        (adjoint,) = torch.autograd.grad(observed, at.denoised, probe, create_graph=True)  # H^T probe, linear in probe
        factor = broadcast_to(at.sigma**2 / at.alpha, at.x)

        def pull(v: Tensor) -> Tensor:
            """J^T H^T v."""
            return torch.autograd.grad(observed, at.x, v, retain_graph=True, create_graph=at.keep)[0]

        def push(u: Tensor) -> Tensor:
            """H C' u, C' = sigma^2/alpha."""
            return torch.autograd.grad(adjoint, probe, factor * u, retain_graph=True, create_graph=at.keep)[0]

        weighted, gradient = conjugate_gradients(pull, lambda v, u: variance * v + push(u), residual, self.iterations)
        return gradient, -inner(residual, weighted) / 2


def conjugate_gradients(
    pull: Callable[[Tensor], Tensor], product: Callable[[Tensor, Tensor], Tensor], b: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """The solution v of M v = b for each row, and pull(v), by conjugate gradients from v = 0 (Hestenes and Stiefel 1952).

    A row stops by itself where it has converged, or where M is not positive.

    Args:
        pull: a linear map.
        product: (v, pull(v)) -> M v.
        b: (B, ...).
        iterations: at most.
    """
    residual, direction, square = b, b, inner(b, b)
    least = torch.finfo(b.dtype).eps ** 2 * square
    v, total = torch.zeros_like(b), b.new_zeros(())
    for _ in range(iterations):
        pulled = pull(direction)
        image = product(direction, pulled)
        curvature = inner(direction, image)
        going = (square > least) & (curvature > 0)
        step = torch.where(going, square, 0) / torch.where(going, curvature, 1)
        v, residual = v + broadcast_to(step, b) * direction, residual - broadcast_to(step, b) * image
        total = total + broadcast_to(step, pulled) * pulled
        before, square = torch.where(going, square, 1), torch.where(going, inner(residual, residual), 0)
        direction = residual + broadcast_to(square / before, b) * direction
    return v, total


class NoisyLikelihood(LikelihoodGuidance):
    """The likelihood of the noisy sample itself, for annealed MCMC: q(y given x_t) = p(y given x_0 = x_t/alpha)^b.

    b = V/(V + (sigma/alpha)^2), V the mean variance of the noise, so that Gaussian noise is widened by the level of x_t
    (Jalal et al. 2021, 2108.01368, eq. 3; Song, Shen, Xing and Ermon 2022, 2111.08005). It is no approximation of
    p(y given x_t) but a path to the posterior, which it meets as t goes to 0: correctors that converge at every level draw
    from the posterior, predictors do not. It takes no gradient of the network.
    """

    needs_noise = True

    def likelihood(self, at: At) -> tuple[Tensor, Tensor]:
        operator, noise, y = at.observation
        alpha, level = broadcast_to(at.alpha, at.x), (at.sigma / at.alpha) ** 2
        observed = operator.apply(at.x / alpha)
        variance = noise.variance(y, observed).detach().flatten(1).mean(1)
        value = variance / (variance + broadcast_to(level, variance)) * noise.log_prob(y, observed)
        (gradient,) = torch.autograd.grad(value.sum(), at.x, create_graph=at.keep)
        return gradient, value
