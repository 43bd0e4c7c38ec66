"""The charts of a sweep as picture files."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning_score.sweep.charts import FEW, Axis, Chart, Line, charts
from lightning_score.sweep.history import HYPERVOLUME, hypervolume_chart
from lightning_score.sweep.results import Results

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
MARKERS = "osD^vP*X"


def draw(found: Results, folder: Path) -> list[Path]:
    """Draws all charts of a sweep with two standard errors; returns the files.

    Args:
        found: the results.
        folder: for the files.
    """
    of, named = "settings" if found.folds else "trials", charts(found, colored=True)
    if (volume := hypervolume_chart(found)) is not None:
        named[HYPERVOLUME] = volume
    return draw_charts(named, f"{found.name}: {len(found.ranked)} {of}", found.varied, folder)


def draw_charts(named: Mapping[str, Chart], title: str, varied: Sequence[str], folder: Path) -> list[Path]:
    """Draws charts; returns the files.

    Args:
        named: the charts by name.
        title: of all of them.
        varied: the parameters that are shown for the trials of a front.
        folder: for the files.
    """
    from matplotlib import rc_context  # takes a second to import

    files = []
    with rc_context({"text.parse_math": False}):  # names and settings may hold dollar signs
        for name, chart in named.items():
            files.append(folder / (re.sub(r"[\W_]+", "_", name) + ".png"))
            _figure(chart, title, varied).savefig(files[-1], dpi=120)
    return files


def _figure(chart: Chart, title: str, varied: Sequence[str]) -> Any:
    from matplotlib.figure import Figure

    height = 1.6 + 0.3 * len(chart.across.ticks) if chart.sideways else 4.6
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.add_subplot(title=title)
    across, value = "yx" if chart.sideways else "xy"
    for i, line in enumerate(chart.lines):
        _draw_line(axes, line, i, chart)
    if any(not row.feasible for line in chart.lines for row in line.rows):
        axes.plot([], [], "o", color="white", mec="0.4", ms=5, label="violates a constraint")
    if chart.floor is not None:
        level = axes.axvline if chart.sideways else axes.axhline
        level(chart.floor[0], color="black", ls=":", lw=1, label=chart.floor[1])
    if chart.front:
        _draw_front(axes, chart)
        names = [f"{row.number}: {', '.join(row.texts(varied))}" for row in chart.front[:FEW]]
        figure.supxlabel("\n".join(names), x=0.02, ha="left", fontsize=7, color="0.3")
    _set(axes, across, chart.across)
    _set(axes, value, chart.metric)
    axes.grid(alpha=0.3)
    if len(chart.lines) <= 2 * FEW and axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _draw_line(axes: Any, line: Line, i: int, chart: Chart) -> None:
    """The points of a line with their errors; hollow where a constraint is violated, small ones for training seeds."""
    across, value = "yx" if chart.sideways else "xy"
    color, marker = COLORS[i % len(COLORS)], MARKERS[i // len(COLORS) % len(MARKERS)]
    points: dict[str, Any] = {across: line.places, value: line.values, f"{value}err": line.errors, "label": line.label}
    if any(line.widths):
        points[f"{across}err"] = line.widths
    style = f"{marker}{'-' if chart.connected else ''}"
    axes.errorbar(**points, fmt=style, color=color, capsize=2, lw=1.2, ms=5, elinewidth=0.8)
    for place, row in zip(line.places, line.rows, strict=True):
        seeds = {across: [place] * len(row.of_seeds), value: row.of_seeds}
        axes.scatter(seeds["x"], seeds["y"], s=8, color=color, alpha=0.4, linewidths=0)
        if not row.feasible:
            point = {across: [place], value: [row.value]}
            axes.plot(point["x"], point["y"], marker, color="white", mec=color, ms=5, zorder=3)


def _draw_front(axes: Any, chart: Chart) -> None:
    """The front as steps, dashed where neighbors do not differ by more than two standard errors."""
    points = list(zip(chart.front_places, chart.front, strict=True))
    parts = zip(pairwise(points), chart.alike, strict=True)
    for ((place, row), (next_place, other)), same in parts:
        corner = [place, next_place, next_place], [row.value, row.value, other.value]
        axes.plot(*corner, color="0.4", lw=1, ls="--" if same else "-", zorder=0)
    axes.plot([], [], color="0.4", lw=1, label="Pareto front")
    if any(chart.alike):
        axes.plot([], [], color="0.4", lw=1, ls="--", label="within two s.e.")
    for place, row in points:
        axes.annotate(str(row.number), (place, row.value), (5, 5), textcoords="offset points", fontsize=8)


def _set(axes: Any, which: str, axis: Axis) -> None:
    """Label, scale and ticks of an axis, within the limits that the points have set."""
    axes.set(**{f"{which}label": axis.label, f"{which}scale": "log" if axis.log else "linear"})
    if axis.ticks:
        limits = getattr(axes, f"get_{which}lim")()
        set_ticks = getattr(axes, f"set_{which}ticks")
        set_ticks(axis.ticks, axis.texts, fontsize=8)
        set_ticks([], minor=True)
        axes.set(**{f"{which}lim": limits})
