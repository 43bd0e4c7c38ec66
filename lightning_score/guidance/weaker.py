"""Guidance by a weaker version of the model."""

from collections.abc import Callable, Sequence

from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.files import CheckpointPath
from lightning_score.guidance.base import LARGEST, Guidance, OtherModel, checked
from lightning_score.score.function import ScoreField
from lightning_score.score.guided import Evaluate, Extrapolated
from lightning_score.tensors import Scale


class Autoguidance(Guidance):
    """Away from the errors that a weaker version of the model makes more strongly: weak(x) + scale (score(x) - weak(x)).

    Karras et al. 2024 (2406.02507), eq. 2, which also takes models without conditions. The weaker model is an earlier
    checkpoint, or a shorter or smaller training, of the same process, data and conditions (or of none); it is called with
    the conditions of the samples, and its evaluations are counted, too. After a ClassifierFree it pulls that score away from
    weak(x given y).

    Args:
        model: the weaker model: its checkpoint or bundle, whose averaged weights are taken, or the name of a trained model.
        scale: 0 or more; 1 is no guidance, and costs nothing.
        interval: noise levels sigma/alpha between which it guides, and the weaker model is evaluated; null: at all.

    Raises:
        InputError: scale or interval is out of range; in `load_models`: the model cannot be loaded, or has another process,
            shape or condition; in `check_range`: it was trained on data of another range.
    """

    def __init__(self, model: CheckpointPath, scale: float = 1.5, interval: Sequence[float] | None = None):
        require(0 <= scale <= LARGEST, f"scale={scale}: must be 0 (the weaker model) or more, up to {LARGEST:g}")
        self.model, self.scale, self.interval = model, scale, checked(interval)
        self.weak: ScoreField | None = None
        self._data_range: tuple[float, float] | None = None

    def load_models(self, load: Callable[[str], OtherModel]) -> None:
        self.weak, self._data_range = load(self.model)

    def check_range(self, data_range: tuple[float, float] | None) -> None:
        own = self._data_range
        require(
            own is None or data_range is None or tuple(own) == tuple(data_range),
            f"guidance.model={self.model}: was trained on data from {own}, and these are from {data_range}; give another",
        )

    def guide(self, score: ScoreField, indices: Tensor) -> ScoreField:
        if self.scale == 1:
            return score
        if self.weak is None:
            raise InputError("guidance=Autoguidance: its model is not loaded; give the guidance to a ScoreModel")
        like = next(score.parameters(), None)
        weak = self.weak.to(indices.device, None if like is None else like.dtype)
        return self.within(score, _AutoguidedScore(score, weak, self.scale))


class _AutoguidedScore(Extrapolated):
    """weak + scale (score - weak)."""

    def __init__(self, score: ScoreField, weak: ScoreField, scale: float):
        super().__init__(score, scale)
        self.weak = weak

    def both(self, evaluate: Evaluate, x: Tensor, t: Tensor, cond: Tensor | None, *scales: Scale) -> list[Tensor]:
        before = self.weak.evaluations
        weak = evaluate(self.weak, x, t, cond, *scales)
        self.evaluations += self.weak.evaluations - before
        return [weak, evaluate(self.score, x, t, cond, *scales)]
