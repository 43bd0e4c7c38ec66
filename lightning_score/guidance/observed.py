"""The bases of guidances by observations y = A(x_0) with noise, and one that only carries the observation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor
from typing_extensions import Self

from lightning_score.errors import InputError, require
from lightning_score.files import LocalPath
from lightning_score.guidance.base import Guidance, ModelFacts, checked
from lightning_score.observations import GaussianNoise, LinearOperator, Observation, ObservationNoise, Operator
from lightning_score.observations.files import read_observation, to_floats
from lightning_score.score.function import ScoreField
from lightning_score.score.posterior import PosteriorScore, Twisted
from lightning_score.tensors import broadcast_to, combine, differentiated

if TYPE_CHECKING:
    Given = Tensor | LocalPath
else:
    Given = LocalPath  # on the command line, whose help would list all classes of tensors


@dataclass(eq=False, repr=False)
class ObservationGuidance(Guidance, ABC):
    """Guidance by observations y = A(x_0) with noise: sample k has the observation (k // samples_per_observation) mod n.

    Args:
        operator: A.
        observation: y, (n, ...), or the path of a PNG, NPY or NPZ that holds them; null: none yet.
        noise: the law of y given A(x_0); null: y is exact.
        samples_per_observation: how many samples in a row share an observation.
        interval: noise levels sigma/alpha between which it guides; null: at all.

    Raises:
        InputError: a number is out of range or a file cannot be read; in `check`: operator, noise, observation, samples,
            network and method do not fit.
    """

    operator: Operator
    observation: Given | None = None
    _: KW_ONLY
    noise: ObservationNoise | None = None
    samples_per_observation: int = 1
    interval: Sequence[float] | None = None

    linear = False
    """Whether the operator must be linear."""

    needs_noise = False
    """Whether the noise must have a variance above 0."""

    differentiates = False
    """Whether it differentiates the network."""

    def __post_init__(self) -> None:
        self._require_count(self.samples_per_observation)
        checked(self.interval)
        if isinstance(self.observation, str):
            stored = read_observation(self.observation)
            self.observation = to_floats(stored.y, stored.data_range, self.observation, "write_observation(data_range)")
        self.noise = self.noise or GaussianNoise(0.0)

    @abstractmethod
    def posterior(self, score: ScoreField, observation: Observation) -> PosteriorScore:
        """The guided score, for the observation of each row."""

    def guide(self, score: ScoreField, indices: Tensor) -> ScoreField:
        rows = self.given()[self.numbers_of(indices).cpu()].to(indices.device)
        observation = Observation(self.operator, cast(ObservationNoise, self.noise), rows)
        return self.within(score, self.posterior(score, observation))

    def given(self) -> Tensor:
        """y, (n, ...); raises `InputError` if there is none."""
        if not isinstance(self.observation, Tensor):
            raise InputError(
                f"guidance={type(self).__name__}: has no observation; give predict --observation y.npz, test --posterior, "
                "or observe_with(y)"
            )
        return self.observation

    def numbers_of(self, indices: Tensor) -> Tensor:
        """The number of the observation of each sample k, (B,)."""
        return indices // self.samples_per_observation % len(self.given())

    def observing(self) -> "list[ObservationGuidance]":
        return [self]

    def observe_with(self, y: Tensor, samples_per_observation: int = 1) -> Self:
        """A copy with other observations.

        Args:
            y: (n, ...), in the model's units.
            samples_per_observation: how many samples in a row share an observation.
        """
        self._require_count(samples_per_observation)
        other = copy(self)
        other.observation, other.samples_per_observation = y, samples_per_observation
        return other

    def check(self, trained: ModelFacts) -> None:
        name, noise = type(self).__name__, cast(ObservationNoise, self.noise)
        require(
            not self.linear or isinstance(self.operator, LinearOperator),
            f"guidance={name}: needs a linear operator, and {type(self.operator).__name__} is not; take MomentMatching",
        )
        expected = self.operator.observed_shape(trained.shape)
        require(
            not (trained.compiled and self.differentiates),
            f"guidance={name}: differentiates the network, which compile does not allow; set compile: null",
        )
        zeros = torch.zeros(1, *expected)
        require(
            not self.needs_noise or bool((noise.variance(zeros, zeros + 1) > 0).all()),
            f"guidance={name}: needs noise above 0; give that of the observation, as noise=GaussianNoise with std=0.1",
        )
        if self.observation is None:
            return
        y = self.given()
        require(
            expected == tuple(y.shape[1:]) and len(y) > 0,
            f"observation of shape {list(y.shape)}: must be [n, {', '.join(map(str, expected))}], n at least 1, for samples "
            f"of shape {list(trained.shape)}",
        )
        require(bool(y.isfinite().all()), "observation: holds NaN or infinity at known pixels; mask them")
        noise.check(y)

    @staticmethod
    def _require_count(count: int) -> None:
        require(count >= 1, f"samples_per_observation={count}: must be at least 1")


def only_observing(guidance: Guidance | None, option: str) -> ObservationGuidance:
    """The guidance by observations in another one; raises `InputError` with the option unless there is one."""
    found = guidance.observing() if guidance else []
    require(len(found) == 1, f"{option}: needs one guidance by observations; give --model.guidance, as MomentMatching")
    return found[0]


class At(NamedTuple):
    """What an approximation q of p(y given x_t) is computed from.

    Fields: x (x_t, (B, ...)), denoised (E[x_0 given x_t], like x), alpha and sigma (() or (B,)), observation (of each row),
    keep (whether the caller differentiates the result).
    """

    x: Tensor
    denoised: Tensor
    alpha: Tensor
    sigma: Tensor
    observation: Observation
    keep: bool


def gaussian_variance(data_std: float, alpha: Tensor, sigma: Tensor) -> Tensor:
    """r^2 = d^2 sigma^2/(alpha^2 d^2 + sigma^2), the variance of x_0 given x_t for Gaussian data of variance d^2."""
    return (data_std * sigma) ** 2 / ((alpha * data_std) ** 2 + sigma**2)


@dataclass(eq=False, repr=False)
class LikelihoodGuidance(ObservationGuidance):
    """Guidance by an approximation q of p(y given x_t): score + strength grad log q(y given x_t).

    Args:
        strength: 1 is the approximation as derived.
    """

    _: KW_ONLY
    strength: float = 1.0  # not named scale, because the command line keeps the scale of a guidance that this one replaces

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.strength >= 0, f"strength={self.strength}: must be 0 (no guidance) or more, as in 1")

    @abstractmethod
    def likelihood(self, at: At) -> tuple[Tensor, Tensor]:
        """The gradient (B, ...) and the value (B,) of log q(y given x_t)."""

    def limited(self, gradient: Tensor, at: At) -> Tensor:
        """The gradient as it is used."""
        return gradient

    def posterior(self, score: ScoreField, observation: Observation) -> PosteriorScore:
        return _LikelihoodScore(score, observation, self)


class _LikelihoodScore(PosteriorScore):
    """score + strength grad log q(y given x_t)."""

    def __init__(self, score: ScoreField, observation: Observation, guidance: LikelihoodGuidance):
        super().__init__(score, observation)
        self.guidance = guidance

    def twisted(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Twisted:
        keep, strength = differentiated(x), self.guidance.strength
        with torch.inference_mode(False):
            # clones, because autograd accepts no tensors of inference mode
            x_t, t, cond = x.clone().requires_grad_(), t.clone(), None if cond is None else cond.clone()
            alpha, sigma = self.process.alpha(t), self.process.sigma(t)
            with torch.set_grad_enabled(keep or self.guidance.differentiates):
                score = self.score(x_t, t, cond)
                denoised = (x_t + broadcast_to(sigma, x) ** 2 * score) / broadcast_to(alpha, x)
            with torch.enable_grad():
                observation = self.observation._replace(y=self.observation.y.clone().to(x))
                at = At(x_t, denoised.requires_grad_(), alpha, sigma, observation, keep)
                gradient, value = self.guidance.likelihood(at)
                gradient = self.guidance.limited(strength * gradient, at)
        found = Twisted(score, gradient, strength * value)
        return found if keep else Twisted(*(part.detach() for part in found))


class Observed(ObservationGuidance):
    """Adds nothing to the score and only carries the observation, for samplers that use it themselves."""

    def posterior(self, score: ScoreField, observation: Observation) -> PosteriorScore:
        return _ObservedScore(score, observation)


class _ObservedScore(PosteriorScore):
    """The prior's score; q(y given x_t) = p(y given x_0 = denoised), whose gradient is taken as 0."""

    def twisted(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Twisted:
        score = self.score(x, t, cond)
        denoised = combine((1 / self.process.alpha(t), x), (self.process.sigma(t) ** 2 / self.process.alpha(t), score))
        return Twisted(score, torch.zeros_like(x), self.observation.log_prob(denoised))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.score(x, t, cond)
