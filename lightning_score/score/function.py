"""Score functions: the gradient of log p_t(x) as samplers and objectives see it."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lightning_score.conditions import Condition, condition_of
from lightning_score.process import NoiseProcess
from lightning_score.score.parametrization import Coefficients, Parametrization
from lightning_score.tensors import Scale, combine, number


class ScoreField(nn.Module, ABC):
    """grad_x log p_t(x) of a noise process; the interface for samplers and objectives.

    Args:
        process: the noise process with the marginals p_t.
        num_classes: number of classes it can be conditioned on; the label num_classes means "no class".
        condition: any other condition; None for the class, or for none.
    """

    def __init__(self, process: NoiseProcess, num_classes: int = 0, condition: Condition | None = None):
        super().__init__()
        self.process, self.condition = process, condition_of(num_classes, condition)
        self.num_classes = self.condition.num_classes if self.condition else 0

    evaluations: int
    """Rows evaluated by the network so far: NFE is their increase per sample. A score that wraps no other one counts them,
    from 0.
    """

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The score at x (B, ...) and time t, () or (B,); `cond` (B, ...) holds conditions or is None."""

    def combination(self, x: Tensor, t: Tensor, cond: Tensor | None = None, *, x_scale: Scale, score_scale: Scale) -> Tensor:
        """x_scale x + score_scale score: the form of every step of a sampler."""
        return combine((x_scale, x), (score_scale, self(x, t, cond)))

    def log_density(self, x: Tensor, t: Tensor) -> Tensor | None:
        """log p_t(x) up to a constant, (B,); None if only its gradient is known, as from a network."""
        return None

    def denoised(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """E[x_0 given x_t] = (x + sigma^2 score)/alpha (Tweedie's formula); where alpha = 0, of x taken for one at the last
        time with signal, unless the coefficients of the denoised image are known.
        """
        t = self.process.with_signal(t)
        alpha = self.process.alpha(t)
        return self.combination(x, t, cond, x_scale=1 / alpha, score_scale=self.process.sigma(t) ** 2 / alpha)

    def noise(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """E[z given x_t] = -sigma score."""
        return self.combination(x, t, cond, x_scale=0.0, score_scale=-number(self.process.sigma(t)))


class ScoreFunction(ScoreField):
    """A network seen through a process and a parametrization: score = c_skip x + c_out F(c_in x, c_noise).

    Args:
        network: called `network(x, noise_label, cond)` with noise_label (B,), and cond (B, ...) or None; returns the shape
            of x.
        process: the noise process.
        parametrization: what the network predicts.
        num_classes: number of classes that the network is conditioned on; 0 for none.
        condition: any other condition of the network; None for the class, or for none.

    Raises:
        InputError: the parametrization divides by alpha, and the process has alpha(1) = 0.
    """

    evaluations = 0

    def __init__(
        self,
        network: nn.Module,
        process: NoiseProcess,
        parametrization: Parametrization,
        num_classes: int = 0,
        condition: Condition | None = None,
    ):
        parametrization.check(process)
        super().__init__(process, num_classes, condition)
        self.network = network
        self.parametrization = parametrization

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.combination(x, t, cond, x_scale=0.0, score_scale=1.0)

    def combination(self, x: Tensor, t: Tensor, cond: Tensor | None = None, *, x_scale: Scale, score_scale: Scale) -> Tensor:
        return self._scaled(self.parametrization(self.process, t), x, cond, x_scale, score_scale)

    def denoised(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self._scaled(self.parametrization.of_denoised(self.process, t), x, cond, 0.0, 1.0)

    def _scaled(self, coefficients: Coefficients, x: Tensor, cond: Tensor | None, x_scale: Scale, scale: Scale) -> Tensor:
        """x_scale x + scale (c_skip x + c_out F(c_in x, c_noise)), from one evaluation of the network."""
        rows = x.shape[0]
        object.__setattr__(self, "evaluations", self.evaluations + rows)  # that of modules is slow
        c_in, c_skip, c_out, c_noise = coefficients
        x_scale, scale, c_noise = number(x_scale), number(scale), number(c_noise)
        label = x.new_full((rows,), c_noise) if isinstance(c_noise, float) else c_noise.to(x).expand(rows)
        output = self.network(combine((c_in, x)), label, cond).to(x.dtype)
        result = combine((x_scale + scale * c_skip, x), (scale * c_out, output))
        return result.clone() if result is output else result  # a CUDA graph overwrites its output at the next call


class ScoreWrapper(ScoreField, ABC):
    """A score made from another one, whose evaluations it counts.

    Args:
        score: the score function that is wrapped.
    """

    def __init__(self, score: ScoreField):
        super().__init__(score.process, condition=score.condition)
        self.score = score

    @property
    def evaluations(self) -> int:
        return self.score.evaluations

    @evaluations.setter
    def evaluations(self, count: int) -> None:  # by wrappers that evaluate another network, too
        self.score.evaluations = count


class ArgumentWrapper(ScoreWrapper, ABC):
    """Another score called at other times or with other conditions, whatever x is."""

    @abstractmethod
    def arguments(self, t: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The time, () or (B,), and the conditions with which the score is called."""

    @abstractmethod
    def around(self, score: ScoreField) -> "ArgumentWrapper":
        """The same for another score of the same process and condition."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.score(x, *self.arguments(t, cond))

    def combination(self, x: Tensor, t: Tensor, cond: Tensor | None = None, *, x_scale: Scale, score_scale: Scale) -> Tensor:
        return self.score.combination(x, *self.arguments(t, cond), x_scale=x_scale, score_scale=score_scale)

    def denoised(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.score.denoised(x, *self.arguments(t, cond))


class Conditioned(ArgumentWrapper):
    """The score of p_t(x given y) for a fixed condition per sample, so that samplers need none.

    Args:
        score: the score function to condition.
        cond: conditions (B, ...), one per row of every later call.
    """

    def __init__(self, score: ScoreField, cond: Tensor):
        super().__init__(score)
        self.cond = cond

    def arguments(self, t: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return t, self.cond

    def around(self, score: ScoreField) -> "Conditioned":
        return Conditioned(score, self.cond)


class ClippedScore(ScoreWrapper):
    """The score that belongs to the denoised image clipped to a range, as DDPM's sampler does at every step.

    score = (alpha clip(denoised) - x)/sigma^2 (Ho et al. 2020, the authors' code: `clip_denoised`).

    Args:
        score: the score function to clip.
        low: lower end of the data range.
        high: upper end of the data range.
    """

    def __init__(self, score: ScoreField, low: float, high: float):
        super().__init__(score)
        self.low, self.high = low, high

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.combination(x, t, cond, x_scale=0.0, score_scale=1.0)

    def combination(self, x: Tensor, t: Tensor, cond: Tensor | None = None, *, x_scale: Scale, score_scale: Scale) -> Tensor:
        scale = number(score_scale) / number(self.process.sigma(t)) ** 2
        return combine((x_scale - scale, x), (scale * number(self.process.alpha(t)), self.denoised(x, t, cond)))

    def denoised(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.score.denoised(x, t, cond).clamp(self.low, self.high)


class PriorScore(ScoreWrapper):
    """-x/(alpha^2 std^2 + sigma^2) at the first time of sampling, where x is nearly noise alone, without an evaluation.

    The score of N(0, alpha^2 std^2 + sigma^2): the analytic first step of Dockhorn et al. 2022 (2210.05475) and of
    diff-sampler. At smaller times, and at times (B,), it is the score that is wrapped.

    Args:
        score: the score function that is wrapped.
        first: the first time, ().
        std: standard deviation of the data.
    """

    def __init__(self, score: ScoreField, first: Tensor, std: float):
        super().__init__(score)
        self.first, self.std = first, std

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.combination(x, t, cond, x_scale=0.0, score_scale=1.0)

    def combination(self, x: Tensor, t: Tensor, cond: Tensor | None = None, *, x_scale: Scale, score_scale: Scale) -> Tensor:
        if t.ndim > 0 or t < self.first:
            return self.score.combination(x, t, cond, x_scale=x_scale, score_scale=score_scale)
        return combine((x_scale - score_scale / self._variance(t), x))

    def denoised(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if t.ndim > 0 or t < self.first:
            return self.score.denoised(x, t, cond)
        return combine((self.process.alpha(t) * self.std**2 / self._variance(t), x))

    def _variance(self, t: Tensor) -> Tensor:
        return (self.process.alpha(t) * self.std) ** 2 + self.process.sigma(t) ** 2
