"""Pictures of a sweep: the metric against each parameter, and against network evaluations with the Pareto front."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_score.sweep.results import Results, Row, floors_of, numeric, short, shown

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
MARKERS = "osD^vP*X"
STYLES = ("-", "--", ":", "-.")
MOST = 8
"""Most lines that have a color of their own."""


def draw(results: Results, folder: Path) -> list[Path]:
    """Draws what the results allow; returns the files.

    Args:
        results: with at least two complete trials for any picture.
        folder: for the pictures.
    """
    rows = results.ranked
    files = []
    if len(rows) < 2:
        return files
    for name in results.varied:
        if len({shown(row.settings.get(name)) for row in rows}) > 1:
            file = folder / f"{name.replace('.', '_')}.png"
            _against(results, rows, name).savefig(file, dpi=120)
            files.append(file)
    if len({row.nfe for row in rows if math.isfinite(row.nfe)}) > 1:
        _pareto(results, rows).savefig(folder / "pareto.png", dpi=120)
        files.append(folder / "pareto.png")
    return files


def _against(results: Results, rows: list[Row], name: str) -> Any:
    """The metric against one parameter: a line for each setting of the others, with two standard errors."""
    if not numeric(rows, name):
        return _among(results, rows, name)
    figure, axes = _axes(results, rows, short(name))
    others = _others(results, rows, name)
    lines = _lines(rows, others)
    connected = len(lines) < len(rows)
    for key, members in lines:
        members = sorted(members, key=lambda row: row.settings[name])
        look = _look(rows, others, key) | ({} if connected else {"linestyle": "none"})
        _errorbar(axes, [row.settings[name] for row in members], members, look)
    _scale(axes, "x", [row.settings[name] for row in rows])
    _tick_at(axes, sorted({row.settings[name] for row in rows}))
    if connected and others:
        _legend(axes, rows, others)
    return figure


def _among(results: Results, rows: list[Row], name: str) -> Any:
    """The metric for each of some choices, the best at the top, with two standard errors; one point per trial."""
    best = {shown(row.settings.get(name)): row for row in reversed(rows)}
    places = sorted(best, key=lambda place: rows.index(best[place]), reverse=True)
    figure, axes = _axes(results, rows, short(name), sideways=True)
    figure.set_size_inches(6.0 + 0.06 * max(map(len, places)), 1.6 + 0.3 * len(places))
    others = _others(results, rows, name)
    lines = _lines(rows, others)
    for i, (key, members) in enumerate(lines):
        apart = 0.6 * ((i + 0.5) / len(lines) - 0.5)  # or points of one choice would cover each other
        at = [places.index(shown(row.settings.get(name))) + apart for row in members]
        _errorbar(axes, at, members, _look(rows, others, key) | {"linestyle": "none"}, sideways=True)
    axes.set_yticks(range(len(places)), places, fontsize=8)
    axes.set_ylim(-0.6, len(places) - 0.4)
    if others and len(lines) < len(rows):
        _legend(axes, rows, others)
    return figure


def _others(results: Results, rows: list[Row], name: str) -> list[str]:
    """The other parameters that vary."""
    return [other for other in results.varied if other != name and _count(rows, other) > 1]


def _lines(rows: list[Row], others: list[str]) -> list[tuple[tuple[str, ...], list[Row]]]:
    """The trials that share the settings of the others, in the order of these."""
    lines: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        lines.setdefault(tuple(shown(row.settings.get(other)) for other in others), []).append(row)
    return sorted(lines.items(), key=lambda item: _order(item[0]))


def _pareto(results: Results, rows: list[Row]) -> Any:
    """The metric against counted network evaluations, with those trials joined that none beats."""
    figure, axes = _axes(results, rows, "network evaluations per sample (NFE)")
    known = [row for row in rows if math.isfinite(row.nfe)]
    parts = sorted((name for name in results.varied if 1 < _count(rows, name) <= MOST), key=lambda name: numeric(rows, name))
    parts = parts[:2]
    for row in known:
        key = tuple(shown(row.settings.get(name)) for name in parts)
        _errorbar(axes, [row.nfe], [row], _look(rows, parts, key) | {"linestyle": "none"})
    front = results.front()
    label = "Pareto front"
    axes.step(
        [row.nfe for row in front], [row.value for row in front], where="post", color="0.4", lw=1, zorder=0, label=label
    )
    for row in front:
        axes.annotate(str(row.number), (row.nfe, row.value), (5, 5), textcoords="offset points", fontsize=8, color="0.3")
    _scale(axes, "x", [row.nfe for row in known])
    _legend(axes, rows, parts)
    if len(results.varied) == 1 and not numeric(rows, results.varied[0]):
        names = "\n".join(f"{row.number}: {shown(row.settings[results.varied[0]])}" for row in front)
        figure.supxlabel(names, x=0.02, ha="left", fontsize=8, color="0.3")
    return figure


def _axes(results: Results, rows: list[Row], label: str, sideways: bool = False) -> tuple[Any, Any]:
    """A figure with the metric upwards, or sideways, and the floor as a line."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    labels = (results.metric, label) if sideways else (label, results.metric)
    axes = figure.add_subplot(xlabel=labels[0], ylabel=labels[1], title=f"{results.name}: {len(rows)} trials")
    floors = floors_of(rows)
    if len(floors) == 1:
        line = axes.axvline if sideways else axes.axhline
        line(floors[0][0], color="black", ls=(0, (1, 2)), lw=1, label=floors[0][1])
    _scale(axes, "x" if sideways else "y", [row.value for row in rows])
    axes.grid(alpha=0.3)
    return figure, axes


def _scale(axes: Any, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis where values lie far apart, marked with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = min(values), max(values)
    if low > 0 and high / low >= 4:
        axes.set(**{f"{which}scale": "log"})
        axis = getattr(axes, f"{which}axis")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
        axis.set_major_formatter(StrMethodFormatter("{x:.4g}"))
        axis.set_minor_formatter(NullFormatter())


def _tick_at(axes: Any, values: list[float]) -> None:
    """Marks the values that were tried, where they are few."""
    if len(values) <= MOST:
        axes.set_xticks(values, [f"{value:.4g}" for value in values])
        axes.set_xticks([], minor=True)


def _errorbar(axes: Any, at: list[float], rows: list[Row], look: dict[str, Any], sideways: bool = False) -> None:
    errors = [2 * row.error if math.isfinite(row.error) else 0.0 for row in rows]
    values = [row.value for row in rows]
    places = {"x": values, "y": at, "xerr": errors} if sideways else {"x": at, "y": values, "yerr": errors}
    axes.errorbar(**places, capsize=2, lw=1.2, ms=5, elinewidth=0.8, **look)


def _look(rows: list[Row], names: list[str], key: tuple[str, ...]) -> dict[str, Any]:
    """The color of the first parameter's value, the marker and the style of the second's."""
    look: dict[str, Any] = {"color": COLORS[0], "marker": MARKERS[0]}
    for place, (name, value) in enumerate(zip(names, key, strict=True)):
        i = _values(rows, name).index(value)
        if place == 0:
            look["color"] = COLORS[i % len(COLORS)]
        elif place == 1:
            look |= {"marker": MARKERS[i % len(MARKERS)], "linestyle": STYLES[i % len(STYLES)]}
        elif place == 2:
            look["fillstyle"] = ("full", "none", "left", "right")[i % 4]
    return look


def _legend(axes: Any, rows: list[Row], names: list[str]) -> None:
    """Explains colors, markers and fillings, one entry for each value, beside the picture."""
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    for place, name in enumerate(names[:3]):
        for value in _values(rows, name)[:MOST]:
            key = tuple(value if other == name else _values(rows, other)[0] for other in names[: place + 1])
            look = _look(rows, names[: place + 1], key)
            if place:
                look["color"] = "0.3"
            handles.append(Line2D([], [], **look))
            labels.append(f"{short(name)} {value}")
    axes.figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)


def _values(rows: list[Row], name: str) -> list[str]:
    """The values of a parameter in their order, as text."""
    values = {shown(row.settings.get(name)): row.settings.get(name) for row in rows}
    return sorted(values, key=lambda text: (values[text], text) if numeric(rows, name) else (0, text))


def _count(rows: list[Row], name: str) -> int:
    return len(_values(rows, name))


def _order(key: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple((float(text), text) if text.replace(".", "", 1).replace("-", "").isdigit() else (0.0, text) for text in key)
