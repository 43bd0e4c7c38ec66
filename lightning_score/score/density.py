"""Densities of one's own, known up to a constant: their score by automatic differentiation, and a few examples."""

import math
import traceback
from abc import ABC
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from lightning_score.errors import InputError, one_line, require
from lightning_score.process import NoiseProcess
from lightning_score.score.function import ScoreField
from lightning_score.tensors import combine


class Density(ABC):
    """An unnormalized density p on x (B, *shape): `log_density(x)` returns log p(x) + constant, (B,), or `score(x)` its
    gradient, like x, or there are both. Every class with one of these methods is one and need not derive from this one.
    """

    shape: Sequence[int] = (2,)
    """Of one sample."""

    methods = ("log_density", "score")
    needs = "with log_density(x) or score(x)"
    """What a class lacks that is none, for the error."""

    @classmethod
    def __subclasshook__(cls, kind: type) -> bool:
        """Whether a class has one of the methods, or, for the examples, derives from one."""
        found = any(callable(getattr(kind, name, None)) for name in Density.methods)
        return found if cls is Density else NotImplemented


class _Temperatures(NoiseProcess):
    """The laws p_t = p^(1/T(t)) with T(t) = cold^(1 - t) hot^t, in place of noise: alpha = 1 and sigma = scale sqrt(T).

    That is the standard deviation of p_t if p is a Gaussian of standard deviation `scale`: the unit of length of correctors.
    """

    t_min = 0.0

    def __init__(self, scale: float, cold: float, hot: float, levels: int):
        super().__init__()
        self.scale, self.cold, self.hot, self.levels = scale, cold, hot, levels

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.scale * math.sqrt(self.cold) * (self.hot / self.cold) ** (t / 2)

    def table_times(self) -> Tensor:
        require(
            self.levels > 1,
            "a density has no noise levels: to cool it down, as AnnealedLangevin does, give its initial_temperature, as 50",
        )
        return torch.linspace(0, 1, self.levels, dtype=torch.float64)[1:]  # t = 0, which a grid adds, is a level, too


class DensityScore(ScoreField):
    """The score of a density without noise, so that samplers of correctors draw from it: of p^(1/T), grad log p(x)/T.

    The gradient of `log_density` is found by automatic differentiation unless the density has a `score`; where it has
    `log_density`, Metropolis correctors take its exact ratios. The first evaluation also checks the density.

    Args:
        density: the density.
        scale: its typical length, in which correctors measure their steps, and the standard deviation of the start.
        temperature: T; 1 samples p.
        initial_temperature: of the first level of `AnnealedLangevin`, which cools down to T; null: no annealing.
        levels: number of temperatures from the initial one to T, in geometric progression.

    Raises:
        InputError: here, a setting is wrong; at the first evaluation, the density has no gradient, returns another shape or
            NaN, or mixes the rows of a batch; at any, it raises an error.
    """

    evaluations = 0

    def __init__(
        self,
        density: Density,
        scale: float = 1.0,
        temperature: float = 1.0,
        initial_temperature: float | None = None,
        levels: int = 10,
    ):
        hot = temperature if initial_temperature is None else initial_temperature
        require(0 < scale < math.inf, f"scale={scale}: must be above 0, as in 1.0")
        require(0 < temperature < math.inf, f"temperature={temperature}: must be above 0; 1 samples the density itself")
        require(
            initial_temperature is None or temperature < hot < math.inf,
            f"initial_temperature={initial_temperature}: must be above the last, {temperature}, as in {50 * temperature:g}",
        )
        require(2 <= levels <= 10_000, f"levels={levels}: must lie between 2 and 10000, as in 10")
        super().__init__(_Temperatures(scale, temperature, hot, 1 if initial_temperature is None else levels))
        self.density, self.scale, self.cools = density, scale, initial_temperature is not None
        shape = getattr(density, "shape", Density.shape)
        require(
            isinstance(shape, Sequence) and len(shape) > 0 and all(isinstance(n, int) and n > 0 for n in shape),
            f"density={_name(density)}: shape={shape} must be that of one sample, as (2,)",
        )
        self.shape = torch.Size(shape)
        self._log_density, self._score = (getattr(density, name, None) for name in Density.methods)
        require(
            callable(self._log_density) or callable(self._score),
            f"density={_name(density)}: has neither log_density(x) nor score(x); define one of them",
        )
        self._known: tuple[Tensor, Tensor] | None = None  # x and log p(x) of the last evaluation
        self._checked = False

    @property
    def has_log_density(self) -> bool:
        """Whether the log density is known, or its gradient alone."""
        return self._log_density is not None

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.evaluations += len(x)
        gradient = self._gradient(x)
        if not self._checked:
            self._check(x, gradient)
        return combine((self._inverse_temperature(t), gradient))

    def log_density(self, x: Tensor, t: Tensor) -> Tensor | None:
        if self._log_density is None:
            return None
        if self._known is None or self._known[0] is not x:
            self.evaluations += len(x)
            with torch.no_grad():
                self._known = x, self._call(self._log_density, x, x.shape[:1])
        return combine((self._inverse_temperature(t), self._known[1]))

    def denoised(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Refused: there is no noise.

        Raises:
            InputError: always.
        """
        raise InputError(f"{_name(self.density)}: a density has no noise to remove; use denoise=KeepNoise and clip=null")

    def _inverse_temperature(self, t: Tensor) -> Tensor:
        return (self.scale / self.process.sigma(t)) ** 2

    def _gradient(self, x: Tensor) -> Tensor:
        """grad log p(x), (B, ...)."""
        if self._score is not None:
            with torch.inference_mode(False), torch.enable_grad():  # it may differentiate by itself
                return self._call(self._score, x.detach().clone(), x.shape).detach().to(x)
        value, gradient = self._differentiated(x)
        if gradient is None:
            raise InputError(
                f"{_name(self.density)}.log_density: its result has no gradient in x; compute it from x by operations of "
                "torch, without detach, numpy or no_grad, or define score(x)"
            )
        self._known = x, value
        return gradient

    def _differentiated(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """log p(x), (B,), and its gradient, like x, or None if it has none."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            value = self._call(self._log_density, leaf, x.shape[:1])
            gradient = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] if value.requires_grad else None
        return value.detach(), gradient

    def _check(self, x: Tensor, gradient: Tensor) -> None:
        """Raises `InputError` for a density that cannot be sampled from the points x (B, ...), given its gradient there."""
        name, found = _name(self.density), {"score" if self._score else "the gradient of log_density": gradient.flatten(1)}
        if self._log_density is not None:
            with torch.no_grad():
                found["log_density"] = self._call(self._log_density, x, x.shape[:1]).unsqueeze(1)
        for what, values in reversed(found.items()):
            bad = x[~values.isfinite().all(1)]
            require(
                len(bad) == 0,
                f"{name}: {what} is NaN or infinite at {len(bad)} of {len(x)} starting points, such as {_shown(bad[:1])}; "
                "correct it, or start where the density is positive and smooth",
            )
        known, alone = self._known, self._gradient(x[:1])
        self._known, self._checked = known, True
        require(
            _alike(alone, gradient[:1], gradient),
            f"{name}: a sample's value depends on the others of its batch; compute each row of the result from its row of x",
        )
        exact = None
        if self._score is not None and self._log_density is not None:
            with suppress(InputError):  # of a log density that cannot be differentiated, and need not
                exact = self._differentiated(x)[1]
        require(
            exact is None or _alike(exact, gradient, gradient),
            f"{name}: score(x) is not the gradient of log_density(x); correct one of them, or leave score out",
        )

    def _call(self, method: Callable[[Tensor], Any] | None, x: Tensor, shape: torch.Size) -> Tensor:
        """The method's result at x, (B, ...), which must have a shape."""
        name = f"{_name(self.density)}.{getattr(method, '__name__', 'log_density')}"
        try:
            value = method(x) if method is not None else None
        except InputError:
            raise
        except Exception as error:  # of the user's code
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
            place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
            raise InputError(f"{name}: {type(error).__name__}: {one_line(error)} ({place})") from error
        given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        if not isinstance(value, Tensor) or value.shape != shape:
            wanted = "one number for each row" if shape == x.shape[:1] else "like x"
            raise InputError(
                f"{name}: returns {given} for x of shape {list(x.shape)}; must be a tensor of shape {list(shape)}, {wanted}"
            )
        return value


def _alike(x: Tensor, y: Tensor, size: Tensor) -> bool:
    """Whether tensors agree to a hundredth, or to a thousandth of the largest entry of another."""
    return torch.allclose(x, y, rtol=1e-2, atol=1e-3 * float(size.abs().max()))


def _name(density: Any) -> str:
    return f"{type(density).__module__}.{type(density).__qualname__}"


def _shown(x: Tensor) -> str:
    return str([float(f"{v:.4g}") for v in x.flatten()[:4].tolist()])


class Mixture(Density):
    """A mixture of isotropic Gaussians, p(x) = sum_k w_k N(x; m_k, s_k^2 I).

    Args:
        means: K centers m_k of D coordinates each.
        stds: K standard deviations s_k.
        weights: K weights w_k with any sum; null: equal weights.
    """

    def __init__(
        self,
        means: Sequence[Sequence[float]] = ((-2.0, 0.0), (2.0, 0.0)),
        stds: Sequence[float] = (0.7, 0.7),
        weights: Sequence[float] | None = None,
    ):
        sizes = {len(mean) for mean in means}
        weights = [1.0] * len(means) if weights is None else weights
        require(len(sizes) == 1 and 0 not in sizes, f"means={means}: must be one or more, with as many coordinates each")
        require(
            len(means) == len(stds) == len(weights) and min(*stds, *weights) > 0,
            f"stds={list(stds)}, weights={list(weights)}: must be one of each per mean, all above 0",
        )
        self.shape = (len(means[0]),)
        parts = Independent(Normal(torch.tensor(means), torch.tensor(stds).unsqueeze(1)), 1)
        self._law = MixtureSameFamily(Categorical(torch.tensor(weights)), parts, validate_args=False)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x), (B,)."""
        return self._law.log_prob(x)


class Banana(Density):
    """A bent Gaussian: x_1 ~ N(0, 1) and x_2 given x_1 ~ N(curvature (x_1^2 - 1), width^2), so that both means are 0.

    Haario et al. 1999.

    Args:
        curvature: of the bend.
        width: standard deviation across it.
    """

    def __init__(self, curvature: float = 0.5, width: float = 0.5):
        require(width > 0, f"width={width}: must be above 0, as in 0.5")
        self.curvature, self.width = curvature, width

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) up to a constant, (B,)."""
        across = (x[:, 1] - self.curvature * (x[:, 0] ** 2 - 1)) / self.width
        return -(x[:, 0] ** 2 + across**2) / 2


class Funnel(Density):
    """Neal's funnel: x_1 = v ~ N(0, std^2) and the other coordinates given v ~ N(0, e^v), whose width varies by orders of
    magnitude. Neal 2003, section 8, with std 3 and 10 coordinates.

    Args:
        std: standard deviation of v.
        dimension: number of coordinates, v included.
    """

    def __init__(self, std: float = 3.0, dimension: int = 2):
        require(std > 0, f"std={std}: must be above 0, as in 3")
        require(2 <= dimension <= 100_000, f"dimension={dimension}: must be at least 2, as in 10")
        self.std, self.shape = std, (dimension,)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) up to a constant, (B,)."""
        v, others = x[:, 0], x[:, 1:]
        return -(v**2) / (2 * self.std**2) - (-v).exp() * others.square().sum(1) / 2 - others.shape[1] * v / 2
