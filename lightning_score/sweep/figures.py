"""The picture files of a sweep."""

from pathlib import Path
from typing import Any

from lightning_score.sweep.charts import FEW, Axis, Chart, charts
from lightning_score.sweep.results import Results

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
MARKERS = "osD^vP*X"


def draw(found: Results, folder: Path) -> list[Path]:
    """Draws all charts of a sweep with two standard errors; returns the files.

    Args:
        found: the results.
        folder: for the files.
    """
    files = []
    for name, chart in charts(found).items():
        files.append(folder / f"{name.replace('.', '_')}.png")
        _figure(found, chart).savefig(files[-1], dpi=120)
    return files


def _figure(found: Results, chart: Chart) -> Any:
    from matplotlib.figure import Figure  # takes a second to import

    height = 1.6 + 0.3 * len(chart.across.ticks) if chart.sideways else 4.6
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.add_subplot(title=f"{found.name}: {len(found.ranked)} trials")
    across, value = "yx" if chart.sideways else "xy"
    for i, line in enumerate(chart.lines):
        style = {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i // len(COLORS) % len(MARKERS)], "label": line.label}
        places = {across: line.places, value: line.values, f"{value}err": line.errors}
        axes.errorbar(**places, **style, ls="-" if chart.connected else "none", capsize=2, lw=1.2, ms=5, elinewidth=0.8)
    if chart.floor is not None:
        level = axes.axvline if chart.sideways else axes.axhline
        level(chart.floor[0], color="black", ls=":", lw=1, label=chart.floor[1])
    if chart.front:
        nfe, values = [row.nfe for row in chart.front], [row.value for row in chart.front]
        axes.step(nfe, values, where="post", color="0.4", lw=1, zorder=0, label="Pareto front")
        for row in chart.front:
            axes.annotate(str(row.number), (row.nfe, row.value), (5, 5), textcoords="offset points", fontsize=8)
        names = [f"{row.number}: {', '.join(row.texts(found.varied))}" for row in chart.front[:FEW]]
        figure.supxlabel("\n".join(names), x=0.02, ha="left", fontsize=7, color="0.3")
    _set(axes, across, chart.across)
    _set(axes, value, chart.metric)
    axes.grid(alpha=0.3)
    if len(chart.lines) <= 2 * FEW:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _set(axes: Any, which: str, axis: Axis) -> None:
    """Label, scale and ticks of an axis, within the limits that the points have set."""
    axes.set(**{f"{which}label": axis.label, f"{which}scale": "log" if axis.log else "linear"})
    if axis.ticks:
        limits = getattr(axes, f"get_{which}lim")()
        set_ticks = getattr(axes, f"set_{which}ticks")
        set_ticks(axis.ticks, axis.texts, fontsize=8)
        set_ticks([], minor=True)
        axes.set(**{f"{which}lim": limits})
