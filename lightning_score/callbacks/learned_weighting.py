"""Pictures of what a weighting with parameters has learned."""

from typing import TYPE_CHECKING

from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_score.callbacks.base import writes_files
from lightning_score.callbacks.pictures import figure_picture, publish
from lightning_score.training.model import ScoreModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LearnedWeighting(Callback):
    """Draws at every validation what a weighting with parameters (`Uncertainty`) has learned, as the picture `weighting`:
    the mean squared error of the predicted noise that it expects at each noise level, and the weight that follows. `fit`
    adds this callback; with another weighting it does nothing.
    """

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Draws within validation, where the model holds the averaged weights."""
        if trainer.sanity_checking or not writes_files(trainer):
            return
        learned = pl_module.objective.learned_levels(pl_module.score_function.process)
        if learned is not None:
            publish(trainer, "weighting", figure_picture(_figure(*learned)), f"step {trainer.global_step}")


def _figure(sigma: Tensor, error: Tensor) -> "Figure":
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    expected, weights = figure.subplots(1, 2, sharex=True)
    expected.plot(sigma, error, color="tab:green")
    expected.set(ylabel=r"$E\,\|\sigma\,s + z\|^2/D$", title="learned: error of the predicted noise")
    weights.plot(sigma, 1 / error, color="tab:green", label="learned")
    weights.axhline(1, color="black", ls="--", label=r"constant, $\lambda = \sigma^2$")
    weights.set(ylabel=r"$\lambda/\sigma^2$", title="weight of the predicted noise")
    weights.legend()
    for axes in (expected, weights):
        axes.set(xscale="log", yscale="log", xlabel=r"noise level $\sigma/\alpha$ (units of the data)")
        axes.grid(alpha=0.3)
    return figure
