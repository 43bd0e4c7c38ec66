"""The interface of objectives, and the weighted average of a loss over noise levels."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_score.errors import require
from lightning_score.objective.times import TimeDistribution, UniformTimes
from lightning_score.objective.weighting import SigmaSquared, Weighting
from lightning_score.process import NoiseProcess
from lightning_score.score.function import ScoreField, ScoreFunction, ScoreWrapper
from lightning_score.tensors import broadcast_to

if TYPE_CHECKING:
    from lightning_score.data import ScoreData


def outside_training() -> int | None:
    """No optimizer steps, where no model is trained."""
    return None


class Objective(ABC):
    """A loss whose minimizer is the score."""

    needs_data: bool = False  # whether `prepare` must be given the training data before the first call
    differentiates_score: bool = False  # with respect to x, within the loss
    leaves_out_missing: bool = False  # whether it can be called with `known`, a mask that is True where x is known
    refines: bool = False  # whether it needs the model from which training starts, and examples not augmented
    learned: nn.Module | None = (
        None  # parameters of the objective itself, which are trained, averaged and saved with the model
    )

    steps_done: Callable[[], int | None] = staticmethod(outside_training)
    """The optimizer steps done; None except in training. `ScoreModel` sets it before `begin`."""

    @abstractmethod
    def __call__(self, score: ScoreField, x: Tensor, cond: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        """The loss of each example of data x (B, ...): (B,); of the entries that are `known`, which is only given where
        data are missing and then like x, which is 0 elsewhere.
        """

    def check(self, process: NoiseProcess) -> None:
        """Raises `InputError` if the objective cannot be used with the process."""

    def levels(self, process: NoiseProcess) -> Tensor | None:
        """The only times at which the score is trained, ascending, (L,); None for all times."""
        return None

    def receive(self, data: "ScoreData | None") -> None:
        """Receives the data module of a fit, None without one, before `begin`."""

    def learned_levels(self, process: NoiseProcess) -> tuple[Tensor, Tensor] | None:
        """Noise levels sigma/alpha that are trained, ascending, and what the objective has learned of the mean squared error
        of the predicted noise there, E ||sigma score + z||^2/D, each (K,); None if it learns no such thing.
        """
        return None

    def begin(self, score: ScoreFunction) -> None:
        """Receives the score function that is trained, with the weights from which it starts (also in a run that resumes),
        before the first call.
        """

    def prepare(self, data: Tensor, labels: Tensor | None = None) -> None:
        """Receives the training data in the range of the model, not augmented, (M, ...), before the first call, and their
        labels (M,).
        """


class LevelwiseObjective(Objective, ABC):
    """E_t lambda(t) J(t) with x_t = alpha x_0 + sigma z, for a loss J(t) whose minimizer is the score of p_t.

    Where entries of x_0 are missing, they are 0 in x_t before the noise, and J(t) is computed from `known score` and
    `known z`, so that it has no terms of theirs; times D over the number of known entries it is as large as that of complete
    examples (Ouyang et al. 2023, 2307.00467, but for that factor). The minimizer's entry i is then the score of the noisy
    filled data in which i is known, E[-z_i/sigma given x_t, i known]. Entries that are independent, and missing at random,
    have their own score. Other data are shrunk towards the filled value as far as missing entries hide what entry i depends
    on; a network that is given the mask, as an array condition, learns the score of the law of the known entries instead.

    Args:
        weighting: lambda(t); sigma^2 by default.
        times: the law of t; uniform by default.
    """

    def __init__(self, weighting: Weighting | None = None, times: TimeDistribution | None = None):
        self.weighting = weighting or SigmaSquared()
        self.times = times or UniformTimes()
        self.learned = self.weighting.learned
        require(
            self.learned is None or not self.differentiates_score,
            f"weighting={type(self.weighting).__name__}: learns from losses that are squares, and those of "
            f"{type(self).__name__} may be negative; use DenoisingScoreMatching, or a weighting without parameters",
        )

    leaves_out_missing = True

    @abstractmethod
    def at(self, score: ScoreField, x_t: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """J(t) of each example, (B,), at x_t (B, ...), which was perturbed by `noise`, and t, () or (B,)."""

    def __call__(self, score: ScoreField, x: Tensor, cond: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        process = score.process
        t = self.times.sample(process, x)
        z = torch.randn_like(x)
        importance = self.times.importance(process, t)
        weight = self.weighting(process, t) * importance
        loss = weight.to(x.dtype) * self.of_known(score, process.perturb(x, t, z), t, z, cond, known)
        if self.learned is None:
            return loss
        return loss + (importance * self.weighting.penalty(process, t)).to(x.dtype) * self.unit(x)

    def unit(self, x: Tensor) -> float:
        """J(t) of a squared residual of 1 in each entry of an example of x (B, ...): half the number of entries."""
        return x[0].numel() / 2

    def of_known(
        self, score: ScoreField, x_t: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None, known: Tensor | None
    ) -> Tensor:
        """J(t) of each example, (B,), from its known entries alone where some are missing."""
        if known is None:
            return self.at(score, x_t, t, noise, cond)
        share = known.flatten(1).float().mean(1).clamp(min=1 / known[0].numel())
        return self.at(KnownEntries(score, known), x_t, t, noise * known, cond) / share

    def learned_levels(self, process: NoiseProcess) -> tuple[Tensor, Tensor] | None:
        if self.learned is None:
            return None
        device = next(self.learned.parameters()).device
        t = self.times.quantile(process, torch.linspace(0.001, 0.999, 201, device=device))  # others are too rare to learn
        return process.noise_level(t).cpu(), self.weighting.noise_error(process, t).detach().cpu()

    def check(self, process: NoiseProcess) -> None:
        self.times.check(process)

    def levels(self, process: NoiseProcess) -> Tensor | None:
        return self.times.levels(process)


class KnownEntries(ScoreWrapper):
    """A score with zeros at the entries that are missing in the data.

    Args:
        score: the score function.
        known: where entries are known, (B, ...), for x of every later call.
    """

    def __init__(self, score: ScoreField, known: Tensor):
        super().__init__(score)
        self.known = known

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.score(x, t, cond) * self.known

    def denoised(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        unknown = x / broadcast_to(self.process.alpha(self.process.with_signal(t)), x)
        return torch.where(self.known > 0, self.score.denoised(x, t, cond), unknown)
