"""Pictures of Markov chains: traces, autocorrelations, ranks and marginals; and the samples over a density in the plane."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from lightning_score.commands.chains import Chains
from lightning_score.metrics.chains import ChainSummary, autocorrelation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS, TRACES, BINS = 4, 4, 20
CORRELATED = 256
"""Chains for the autocorrelation."""
MASSES = (0.99, 0.9, 0.7, 0.5, 0.3, 0.1)
"""Of the regions of highest density."""
POINTS, GRID = 5000, 300


def draw_chains(chains: Chains, found: Sequence[ChainSummary]) -> "Figure":
    """For the first coordinates and the log density: traces and ranks of a few chains, autocorrelation, and marginal.

    Args:
        chains: have been drawn.
        found: their diagnostics.
    """
    from matplotlib.figure import Figure  # takes a second to import

    shown = [*range(len(found))][: ROWS - 1] + [len(found) - 1] * (len(found) >= ROWS)
    figure = Figure(figsize=(14, 2.6 * len(shown)), layout="constrained")
    kept, steps = chains.kept, chains.kept_steps
    for i, axes in zip(shown, figure.subplots(len(shown), 4, squeeze=False), strict=True):
        x, row = kept[:, :, i], found[i]
        ranks = rankdata(x[:TRACES]).reshape(x[:TRACES].shape)
        for trace, rank in zip(x[:TRACES], ranks, strict=True):
            axes[0].plot(steps, trace, lw=0.7)
            axes[1].hist(rank, BINS, range=(0, ranks.size), histtype="step")
        axes[0].set(title=f"{row.name}: traces of {len(ranks)} chains", xlabel="step")
        axes[1].set(title=f"their ranks, R-hat {row.r_hat:.3f}", xlabel="rank", ylabel="draws")
        axes[1].axhline(len(steps) / BINS, color="gray", lw=0.8, ls="--")
        lags = np.arange(min(len(steps), 100))
        axes[2].vlines(lags * chains.thin, 0, autocorrelation(x[:CORRELATED])[: len(lags)], lw=1)
        axes[2].axhline(0, color="gray", lw=0.8)
        axes[2].set(title=f"autocorrelation, ESS {row.ess_bulk:.0f}", xlabel="lag (steps)", ylim=(-0.3, 1.05))
        axes[3].hist(x.ravel(), 80, range=tuple(np.quantile(x, (0.001, 0.999))), density=True, color="tab:blue", alpha=0.6)
        axes[3].set(title=f"marginal, {row.mean:.3g} $\\pm$ {row.std:.3g}", yticks=[])
    return figure


def draw_cloud(chains: Chains, x: Tensor) -> "Figure":
    """The last states in the plane over the density, in regions of highest density of 10 to 99 % of its mass.

    Args:
        chains: whose density it is.
        x: the states, (chains, 2).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6.4), layout="constrained")
    axes = figure.subplots()
    low, high = np.quantile(x, (0.005, 0.995), axis=0)
    margin = 0.3 * (high - low) + 0.1 * chains.score.scale
    first, second = np.linspace(low - margin, high + margin, GRID).T
    if chains.score.has_log_density:
        grid = torch.from_numpy(np.stack(np.meshgrid(first, second), -1)).reshape(-1, 2).to(x)
        with torch.no_grad():
            values = cast(Tensor, chains.score.log_density(grid, torch.zeros((), dtype=torch.float64)))
        levels, log_density = _regions(values.double().reshape(GRID, GRID).numpy())
        if len(levels) > 1:
            shades = [str(shade) for shade in np.linspace(0.88, 0.5, len(levels) - 1)]
            axes.contourf(first, second, log_density, levels=levels, colors=shades)
    axes.scatter(x[:POINTS, 0].numpy(), x[:POINTS, 1].numpy(), s=4, color="tab:red", alpha=0.6, linewidths=0)
    axes.set(xlim=(first[0], first[-1]), ylim=(second[0], second[-1]), xlabel="x[0]", ylabel="x[1]")
    over = " over the density, in regions of 10, 30, 50, 70, 90 and 99 % of its mass" * chains.score.has_log_density
    axes.set_title(f"{min(len(x), POINTS)} samples{over}", fontsize=10)
    return figure


def _regions(log_density: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The log densities at the borders of the regions, rising, with the highest one; and the field without infinities."""
    field = np.nan_to_num(log_density - np.nanmax(log_density), nan=-np.inf, neginf=-np.inf)
    falling = np.sort(field.ravel())[::-1]
    mass = np.exp(falling).cumsum()
    borders = falling[np.searchsorted(mass, np.array(MASSES) * mass[-1]).clip(max=len(mass) - 1)]
    levels = np.unique([*borders[np.isfinite(borders)], 1e-9])
    return levels, np.maximum(field, 2 * levels[0] - 1)
