"""The learned score of 2-D data next to the exact one, with the sampler's paths."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_score.callbacks.base import data_of, writes_files
from lightning_score.callbacks.pictures import figure_picture, publish
from lightning_score.data import GaussianMixture, Mixture
from lightning_score.errors import InputError, require
from lightning_score.memory import require_room
from lightning_score.training.model import ScoreModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IN_PATH = 41  # points shown of each path: all of them would be unreadable


class Marginal(NamedTuple):
    """One noise level of a mixture: the time, and the exact p_t."""

    mixture: Mixture
    t: Tensor
    alpha: float
    sigma: float

    def score(self, x: Tensor) -> Tensor:
        """The exact score at x (N, 2)."""
        return self.mixture.score(x, self.alpha, self.sigma)


class ScorePlot(Callback):
    """Draws the exact and the learned score of a `GaussianMixture` in the plane over the contours of its density, and the
    paths that the model's sampler takes; logs `val/score_error`, E ||learned - exact||^2 / E ||exact||^2 under p_t.

    Args:
        sigma: noise level sigma/alpha of picture and error, in the units of the data.
        paths: number of paths drawn.
        arrows: arrows along each axis.
        seed: seed of the paths.
    """

    def __init__(self, sigma: float = 0.2, paths: int = 5, arrows: int = 19, seed: int = 0):
        require(sigma > 0, f"sigma={sigma}: must be above 0, as in 0.2")
        require(paths >= 1 and arrows >= 2, f"paths={paths}, arrows={arrows}: need at least 1 path and 2 arrows")
        require_room(1000 * (arrows**2 + paths), f"paths={paths}, arrows={arrows}", "draw fewer")
        self.sigma, self.paths, self.arrows, self.seed = sigma, paths, arrows, seed

    def setup(self, trainer: Trainer, pl_module: ScoreModel, stage: str) -> None:
        """Refuses data without a known density in the plane, before anything is computed."""
        _mixture(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Measures within validation, where the model holds the averaged weights."""
        if trainer.sanity_checking:
            return
        process = pl_module.score_function.process
        t = process.time_of(torch.tensor(self.sigma, device=pl_module.device))
        marginal = Marginal(_mixture(trainer), t, float(process.alpha(t)), float(process.sigma(t)))
        pl_module.log("val/score_error", self._error(pl_module, marginal), prog_bar=True, sync_dist=True)
        if writes_files(trainer):
            publish(trainer, "score", figure_picture(self._figure(pl_module, marginal)), f"step {trainer.global_step}")

    @torch.no_grad()
    def _error(self, pl_module: ScoreModel, marginal: Marginal) -> Tensor:
        """The relative squared error of the learned score, Monte Carlo over 10 000 fixed draws of p_t."""
        generator = torch.Generator().manual_seed(0)
        x = marginal.mixture.sample(10_000, generator)
        x = marginal.alpha * x + marginal.sigma * torch.randn(x.shape, dtype=x.dtype, generator=generator)
        x = x.to(pl_module.device).to(pl_module.dtype)
        exact = marginal.score(x)
        return (pl_module.score_function(x, marginal.t) - exact).square().sum() / exact.square().sum()

    @torch.no_grad()
    def _figure(self, pl_module: ScoreModel, marginal: Marginal) -> "Figure":
        from matplotlib.figure import Figure  # takes a second to import

        reach = extent(marginal.mixture)
        figure = Figure(figsize=(13, 4.8), layout="constrained")
        exact, learned, paths = figure.subplots(1, 3, sharex=True, sharey=True)

        def learned_score(x: Tensor) -> Tensor:
            return pl_module.score_function(x.to(pl_module.device).to(pl_module.dtype), marginal.t)

        for axes, score, name in ((exact, marginal.score, "exact"), (learned, learned_score, "learned")):
            draw_density(axes, marginal, reach)
            draw_field(axes, score, reach, self.arrows)
            axes.set_title(rf"{name} score, $\sigma$ = {marginal.sigma:.2g}")
        draw_density(paths, marginal, reach)
        trajectory = torch.stack(pl_module.draw(range(self.paths), self.seed, trajectory=True).trajectory or []).cpu()
        shown = torch.linspace(0, len(trajectory) - 1, min(IN_PATH, len(trajectory))).round().long()
        for path in trajectory[shown].unbind(1):
            paths.plot(*path.T, lw=1, marker=".", ms=3, alpha=0.8)
            paths.plot(*path[-1], "o", color="black", ms=5, zorder=3)
        paths.set_title(f"{self.paths} paths, {type(pl_module.sampler).__name__}; dots: ends")
        return figure


def _mixture(trainer: Trainer) -> Mixture:
    """The law of the data.

    Raises:
        InputError: it is not a mixture in the plane.
    """
    data = data_of(trainer, "ScorePlot")
    if isinstance(data, GaussianMixture) and data.shape == (2,):
        return data.mixture
    takes = f"2-D data of a known density (GaussianMixture), not {type(data).__name__} of shape {list(data.shape)}"
    raise InputError(f"ScorePlot draws {takes}: remove the callback or change the data")


def extent(mixture: Mixture) -> float:
    """Half the width of a square around the origin that contains the mixture."""
    return float((mixture.means.abs() + 3 * mixture.stds[:, None]).max())


def draw_field(axes: "Axes", field: Callable[[Tensor], Tensor], reach: float, arrows: int = 19) -> None:
    """Arrows along a vector field, whose lengths grow with the logarithm of its norm."""
    axis = torch.linspace(-reach, reach, arrows)
    points = torch.cartesian_prod(axis, axis)
    vectors = field(points).cpu()
    norm = vectors.norm(dim=1, keepdim=True)
    arrow = vectors * (norm + 1).log1p() / (norm + 1e-9)
    axes.quiver(*points.T, *arrow.T, color="tab:red", width=0.004, pivot="mid")


def draw_density(axes: "Axes", marginal: Marginal, reach: float) -> None:
    """Contours of p_t, shaded."""
    axis = torch.linspace(-reach, reach, 200, dtype=torch.float64)
    density = marginal.mixture.log_prob(torch.cartesian_prod(axis, axis), marginal.alpha, marginal.sigma).exp()
    axes.contourf(axis, axis, density.reshape(200, 200).T, levels=12, cmap="Blues")
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
