"""The grid whose times are learned from the model."""

from collections.abc import Sequence

from torch import Tensor

from lightning_score.errors import require, require_passes
from lightning_score.process import NoiseProcess
from lightning_score.sampling.grid import Given, Karras, TimeGrid


class Learned(TimeGrid):
    """The times with which the sampler's own solver ends nearest to the exact flow of the model.

    A `ScoreModel` learns them from its present weights before it draws samples (`sampling.learning`), and again when the
    weights have changed: in `fit` at every evaluation, elsewhere once. The cache keeps them by all that they depend on. The
    predictor must be deterministic, and there is no corrector. Where the model was trained at a few levels only, the times
    are some of these. Until they are learned, and without a ScoreModel, the grid is that of `Karras`.

    Args:
        steps: N, the number of steps.
        t_min: the last time at most; null: that of the process. Where the sampler ends with Tweedie it may be larger.
        times: times that were learned before, as config.yaml keeps them, (N + 1,); null: learn them.
        learned_for: the model and solver of these times, as config.yaml keeps it; another one is refused.

    Raises:
        InputError: only one of `times` and `learned_for` is given, or the times do not fall.
    """

    learns = True

    def __init__(
        self,
        steps: int = 10,
        t_min: float | None = None,
        times: Sequence[float] | None = None,
        learned_for: str | None = None,
    ):
        require(steps >= 1, f"steps={steps}: must be at least 1, as in steps=10")
        require_passes(steps=steps)
        require(t_min is None or 0 < t_min < 1, f"t_min={t_min}: must lie between 0 and 1, as in 1.0e-3, or be null")
        require(
            (times is None) == (learned_for is None),
            f"times={times}, learned_for={learned_for}: times are kept with what they were learned for; give both, or none",
        )
        require(
            times is None or len(times) == steps + 1,
            f"times={times}: must be {steps + 1} for steps={steps}; give times=null to learn them anew",
        )
        self.steps, self.t_min, self.learned_for = steps, t_min, learned_for
        self.times = None if times is None else list(times)
        self.given = times is not None
        """Whether the times come from a config, and so must be those of the model."""
        if times is not None:
            Given(times)

    def __call__(self, process: NoiseProcess) -> Tensor:
        if self.times is None:
            return Karras(self.steps, self.t_min)(process)
        return Given(self.times)(process)

    def keep(self, times: Tensor, learned_for: str) -> None:
        """Takes learned times (N + 1,)."""
        self.times, self.learned_for, self.given = times.tolist(), learned_for, False
