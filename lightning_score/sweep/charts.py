"""The charts of a sweep: as data, which the report shows, too, and as picture files."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_score.sweep.results import Results, Row, floors_of, numeric, short_name

PARETO = "pareto"
"""The name of the chart of the metric against network evaluations."""
FEW = 8
"""Most values that are all marked on an axis, or colored."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
MARKERS = "osD^vP*X"


class Axis(NamedTuple):
    """An axis: its label, whether it is logarithmic, and its ticks with their texts; without ticks: automatic ones."""

    label: str
    log: bool
    ticks: list[float]
    texts: list[str]


class Line(NamedTuple):
    """Trials that share all settings but one: a label, their places on the axis of that setting, and the trials."""

    label: str
    places: list[float]
    rows: list[Row]

    @property
    def values(self) -> list[float]:
        """Those of the metric."""
        return [row.value for row in self.rows]

    @property
    def errors(self) -> list[float]:
        """Two standard errors each, 0 where unknown."""
        return [2 * row.error if math.isfinite(row.error) else 0.0 for row in self.rows]


class Chart(NamedTuple):
    """The metric against something.

    Attributes:
        metric: the axis of the metric.
        floor: the value of a perfect model and its name, if all trials have the same.
        across: the axis of a setting, or of network evaluations.
        lines: the points.
        connected: whether the points of a line are joined.
        sideways: whether the metric's axis is the horizontal one.
        front: the trials of the Pareto front, in the order of network evaluations; only in its chart.
    """

    metric: Axis
    floor: tuple[float, str] | None
    across: Axis
    lines: list[Line]
    connected: bool = False
    sideways: bool = False
    front: Sequence[Row] = ()


def charts(found: Results, colored: bool = False) -> dict[str, Chart]:
    """The metric against each parameter that varies, and against network evaluations, by name; none for fewer than two
    complete trials.

    Args:
        found: the results.
        colored: whether the points of the Pareto chart are lines by one setting, which have different colors.
    """
    rows, floors = found.ranked, floors_of(found.ranked)
    if len(rows) < 2:
        return {}
    floor = floors[0] if len(floors) == 1 else None
    metric = axis_of(found.metric, [row.value for row in rows] + ([floor[0]] if floor else []))
    varied = [name for name in found.varied if len(values_of(rows, name)) > 1]
    named = {
        name: Chart(metric, floor, *_against(rows, name, [other for other in varied if other != name])) for name in varied
    }
    known = [row for row in rows if math.isfinite(row.nfe)]
    if len({row.nfe for row in known}) > 1:
        across = axis_of("network evaluations per sample (NFE)", [row.nfe for row in known])
        few = [name for name in varied if colored and len(values_of(rows, name)) <= FEW]
        groups = _grouped(known, sorted(few, key=lambda name: numeric(rows, name))[:1])  # by a choice rather than a number
        lines = [Line(label or "trials", [row.nfe for row in members], members) for label, members in groups.items()]
        named[PARETO] = Chart(metric, floor, across, lines, front=found.front())
    return named


def values_of(rows: Sequence[Row], name: str) -> list[str]:
    """The values of a parameter as text, numbers in ascending order."""
    values: dict[str, Any] = {row.text(name): row.settings.get(name) for row in rows}
    return sorted(values, key=values.__getitem__) if numeric(rows, name) else sorted(values)


def is_wide(values: Sequence[float], ratio: float = 4) -> bool:
    """Whether values are positive and the largest is above `ratio` times the smallest, so that a logarithmic axis fits."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > ratio


def log_ticks(values: Sequence[float]) -> list[float]:
    """The ticks of a logarithmic axis; none where a linear one fits."""
    if not is_wide(values):
        return []
    low, high = math.log10(min(values)), math.log10(max(values))
    digits = (1,) if high - low > 3 else (1, 2, 5)
    return [digit * 10.0**power for power in range(math.floor(low) - 1, math.ceil(high) + 2) for digit in digits]


def axis_of(label: str, values: Sequence[float], every: bool = False) -> Axis:
    """An axis for some values, logarithmic where they are wide; `every` puts the ticks at the values if they are few."""
    ticks = sorted(set(values)) if every and len(set(values)) <= FEW else log_ticks(values)
    return Axis(label, is_wide(values), ticks, [f"{tick:.4g}" for tick in ticks])


def _grouped(rows: list[Row], names: Sequence[str]) -> dict[str, list[Row]]:
    """The trials by their settings of some parameters, in the order of these."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: [values_of(rows, name).index(row.text(name)) for name in names]):
        groups.setdefault(", ".join(row.texts(names)), []).append(row)
    return groups


def _against(rows: list[Row], name: str, varied: list[str]) -> tuple[Axis, list[Line], bool, bool]:
    """The metric against one parameter, a line for each combination of the others; choices are listed, the best on top."""
    groups, lines = _grouped(rows, [other for other in varied if other != name]), []
    if numeric(rows, name):
        for label, members in groups.items():
            members = sorted(members, key=lambda row: row.settings[name])
            lines.append(Line(label, [row.settings[name] for row in members], members))
        return axis_of(short_name(name), [row.settings[name] for row in rows], True), lines, len(groups) < len(rows), False
    choices = list(dict.fromkeys(row.text(name) for row in rows))[::-1]
    for i, (label, members) in enumerate(groups.items()):
        shift = 0.6 * ((i + 0.5) / len(groups) - 0.5)  # points of different lines must not cover each other
        lines.append(Line(label, [choices.index(row.text(name)) + shift for row in members], members))
    return Axis(short_name(name), False, [float(i) for i in range(len(choices))], choices), lines, False, True


def draw(found: Results, folder: Path) -> list[Path]:
    """Draws all charts of a sweep with two standard errors; returns the files.

    Args:
        found: the results.
        folder: for the files.
    """
    files = []
    for name, chart in charts(found, colored=True).items():
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
        points: dict[str, Any] = {across: line.places, value: line.values, f"{value}err": line.errors, "label": line.label}
        style = f"{MARKERS[i // len(COLORS) % len(MARKERS)]}{'-' if chart.connected else ''}"
        axes.errorbar(**points, fmt=style, color=COLORS[i % len(COLORS)], capsize=2, lw=1.2, ms=5, elinewidth=0.8)
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
    if len(chart.lines) <= 2 * FEW and axes.get_legend_handles_labels()[1]:
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
