"""Pictures of a sweep: the metric against each parameter, and against network evaluations with the Pareto front."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_score.sweep.results import Results, Row, numeric, short, shown

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
MARKERS = "osD^vP*X"
STYLES = ("-", "--", ":", "-.")
MOST = 8
"""Most lines that have a colour of their own."""


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
    figure, axes = _axes(results, rows, short(name))
    others = [other for other in results.varied if other != name and _count(rows, other) > 1]
    lines: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        lines.setdefault(tuple(shown(row.settings.get(other)) for other in others), []).append(row)
    connected = len(lines) < len(rows)
    numbers = numeric(rows, name)
    places = sorted({shown(row.settings.get(name)) for row in rows})
    for i, (key, members) in enumerate(sorted(lines.items(), key=lambda item: _order(item[0]))):
        apart = 0.0 if numbers else 0.6 * ((i + 0.5) / len(lines) - 0.5)  # or points of one choice would cover each other
        points = {row.number: row.settings[name] if numbers else places.index(shown(row.settings[name])) for row in members}
        members = sorted(members, key=lambda row: points[row.number])
        look = _look(rows, others, key) | ({} if connected and numbers else {"linestyle": "none"})
        _errorbar(axes, [points[row.number] + apart for row in members], members, look)
    if numbers:
        _scale(axes, "x", [row.settings[name] for row in rows])
        _tick_at(axes, sorted({row.settings[name] for row in rows}))
    else:
        axes.set_xticks(range(len(places)), places)
        axes.set_xlim(-0.5, len(places) - 0.5)
    if connected and others:
        _legend(axes, rows, others)
    return figure


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
        axes.annotate(_name(results, row), (row.nfe, row.value), (5, 5), textcoords="offset points", fontsize=8, color="0.3")
    _scale(axes, "x", [row.nfe for row in known])
    _legend(axes, rows, parts)
    return figure


def _name(results: Results, row: Row) -> str:
    """What a point of the front is called: its setting where it has but one that is no number, else its trial's number."""
    one = len(results.varied) == 1 and not numeric(results.ranked, results.varied[0])
    return shown(row.settings[results.varied[0]]) if one else str(row.number)


def _axes(results: Results, rows: list[Row], label: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot(xlabel=label, ylabel=results.metric, title=f"{results.name}: {len(rows)} trials")
    floors = {row.floor for row in rows if math.isfinite(row.floor)}
    if len(floors) == 1:
        axes.axhline(floors.pop(), color="black", ls=(0, (1, 2)), lw=1, label="real against real")
    _scale(axes, "y", [row.value for row in rows])
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


def _errorbar(axes: Any, x: list[float], rows: list[Row], look: dict[str, Any]) -> None:
    errors = [2 * row.error if math.isfinite(row.error) else 0.0 for row in rows]
    axes.errorbar(x, [row.value for row in rows], errors, capsize=2, lw=1.2, ms=5, elinewidth=0.8, **look)


def _look(rows: list[Row], names: list[str], key: tuple[str, ...]) -> dict[str, Any]:
    """The colour of the first parameter's value, the marker and the style of the second's."""
    look: dict[str, Any] = {"color": COLOURS[0], "marker": MARKERS[0]}
    for place, (name, value) in enumerate(zip(names, key, strict=True)):
        i = _values(rows, name).index(value)
        if place == 0:
            look["color"] = COLOURS[i % len(COLOURS)]
        elif place == 1:
            look |= {"marker": MARKERS[i % len(MARKERS)], "linestyle": STYLES[i % len(STYLES)]}
        elif place == 2:
            look["fillstyle"] = ("full", "none", "left", "right")[i % 4]
    return look


def _legend(axes: Any, rows: list[Row], names: list[str]) -> None:
    """Explains colours, markers and fillings, one entry for each value, beside the picture."""
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
