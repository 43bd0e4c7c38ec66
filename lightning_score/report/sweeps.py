"""Figures of sweeps: parallel coordinates, heat maps of two parameters, and the Pareto front of metric and evaluations."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from lightning_score.report.figures import COLORS, axis, figure_of, level, rounded, scale, text
from lightning_score.sweep.results import Results, Row, difference, floors_of, number, numeric, short, shown

MAPS = 6
"""Most heat maps of a sweep."""


def views(found: Results) -> dict[str, dict[str, Any]]:
    """All figures that the trials allow, by their names; none with fewer than two complete trials."""
    rows = found.ranked
    if len(rows) < 2:
        return {}
    named = {"parallel coordinates": _parallel(found, rows)}
    varied = sorted((name for name in found.varied if _count(rows, name) > 1), key=lambda name: not numeric(rows, name))
    for one, other in list(combinations(varied, 2))[:MAPS]:
        named[f"{short(one)} x {short(other)}"] = _map(found, rows, one, other)
    if len({row.nfe for row in rows if math.isfinite(row.nfe)}) > 1:
        named["Pareto front"] = _pareto(found, rows)
    return named


def _choices(rows: Sequence[Row], name: str) -> list[Any]:
    """The values of a parameter, numbers in their order."""
    values = {shown(row.settings.get(name)): row.settings.get(name) for row in rows}
    return sorted(values, key=lambda value: values[value] if numeric(rows, name) else value)


def _count(rows: Sequence[Row], name: str) -> int:
    return len(_choices(rows, name))


def _parallel(found: Results, rows: list[Row]) -> dict[str, Any]:
    """A line per trial through its settings and what it came to; drag along an axis to choose."""
    dimensions = []
    for name in found.varied:
        choices = _choices(rows, name)
        if len(choices) < 2:
            continue
        if numeric(rows, name) and len(choices) > 8:
            values = [row.settings[name] for row in rows]
            wide = min(values) > 0 and max(values) / min(values) > 20
            label = f"log10 {short(name)}" if wide else short(name)
            dimensions.append({"label": text(label), "values": [math.log10(v) if wide else v for v in values]})
            continue
        places = [choices.index(shown(row.settings.get(name))) for row in rows]
        ticks = {"tickvals": list(range(len(choices))), "ticktext": [text(_brief(choice)) for choice in choices]}
        dimensions.append({"label": text(short(name)), "values": places, **ticks})
    values = [row.value for row in rows]
    if any(math.isfinite(row.nfe) for row in rows):
        dimensions.append({"label": "NFE", "values": rounded(row.nfe for row in rows)})
    wide = min(values) > 0 and max(values) / min(values) > 4
    shade = [math.log10(value) for value in values] if wide else values
    label = f"log10 {found.metric}" if wide else found.metric
    dimensions.append({"label": text(label), "values": rounded(shade)})
    line = {"color": rounded(shade), "colorscale": "Viridis", "reversescale": found.maximize, "showscale": True}
    lines = {"type": "parcoords", "dimensions": dimensions, "line": line, "labelside": "top"}
    return figure_of([lines], margin={"l": 90, "r": 40, "t": 60, "b": 30})


def _brief(value: str) -> str:
    """A value where there is little room."""
    try:
        return f"{float(value):.4g}" if len(value) > 8 else value
    except ValueError:
        return value if len(value) <= 28 else f"{value[:27]}…"


def _map(found: Results, rows: list[Row], one: str, other: str) -> dict[str, Any]:
    """The metric over two parameters; over all others the best."""
    columns, lines = _choices(rows, one), _choices(rows, other)
    best: dict[tuple[str, str], Row] = {}
    for row in rows:  # the best first
        best.setdefault((shown(row.settings.get(other)), shown(row.settings.get(one))), row)
    cells = [[best.get((line, column)) for column in columns] for line in lines]
    values = [row.value for row in best.values()]
    wide = min(values) > 0 and max(values) / min(values) > 4
    heat = {
        "type": "heatmap", "x": [_brief(column) for column in columns], "y": [_brief(line) for line in lines],
        "z": [[None if row is None else math.log10(row.value) if wide else row.value for row in line] for line in cells],
        "text": [["" if row is None else _with_error(row) for row in line] for line in cells],
        "customdata": [["" if row is None else row.number for row in line] for line in cells],
        "texttemplate": "%{text}", "hovertemplate": "%{text}, trial %{customdata}<extra></extra>", "colorscale": "Viridis",
        "reversescale": not found.maximize, "showscale": False,
    }  # fmt: skip
    over = [short(name) for name in found.varied if name not in (one, other) and _count(rows, name) > 1]
    note = f"{found.metric} ± 2 standard errors" + (f", the best over {', '.join(over)}" if over else "")
    return figure_of(
        [heat],
        xaxis=axis(short(one), type="category"),
        yaxis=axis(short(other), type="category", automargin=True),
        title={"text": text(note), "font": {"size": 14}},
    )


def _with_error(row: Row) -> str:
    return number(row.value) + (f" ± {number(2 * row.error)}" if math.isfinite(row.error) else "")


def _settings(found: Results, row: Row) -> str:
    return "<br>".join(text(f"{short(name)} = {shown(row.settings.get(name))}") for name in found.varied)


def _pareto(found: Results, rows: list[Row]) -> dict[str, Any]:
    """The metric against counted network evaluations, with those trials joined that none beats."""
    known, front = [row for row in rows if math.isfinite(row.nfe)], found.front()
    errors = rounded(2 * row.error if math.isfinite(row.error) else 0 for row in known)
    trials = {
        "x": [row.nfe for row in known], "y": rounded(row.value for row in known), "mode": "markers", "name": "trials",
        "error_y": {"type": "data", "array": errors, "thickness": 1}, "marker": {"color": COLORS[0], "size": 8},
        "text": [_settings(found, row) for row in known], "customdata": [row.number for row in known],
        "hovertemplate": "trial %{customdata}: %{y:.4g} at NFE %{x}<br>%{text}<extra></extra>",
    }  # fmt: skip
    joined = {
        "x": [row.nfe for row in front], "y": rounded(row.value for row in front), "mode": "lines+text", "hoverinfo": "skip",
        "name": "Pareto front", "line": {"shape": "hv", "color": COLORS[1]}, "textposition": "top right",
        "text": [f"trial {row.number}" for row in front],
    }  # fmt: skip
    floors = floors_of(known)
    lines = [level([row.nfe for row in known], floor, name, []) for floor, name in floors[:1] if len(floors) == 1]
    return figure_of(
        [trials, joined, *lines],
        xaxis=axis("network evaluations per sample (NFE)", **scale([row.nfe for row in known])),
        yaxis=axis(found.metric, **scale([row.value for row in known] + [floor for floor, _ in floors])),
    )


def table(found: Results) -> dict[str, Any]:
    """All trials, the best first: titles, and rows of cells with what sorts and what is read."""
    ranked = found.ranked
    rows = [*ranked, *(row for row in found.rows if row not in ranked)]
    titles = [
        "trial",
        *map(short, found.varied),
        found.metric,
        "± 2 s.e.",
        "to the best",
        "± 2 s.e.",
        "NFE",
        "seconds",
        "state",
    ]
    lines = []
    for row in rows:
        settings = [row.settings.get(name, "") for name in found.varied]
        cells: list[Any] = [[row.number, str(row.number)]]
        cells += [[value if numeric(rows, name) else shown(value), shown(value)]
                  for name, value in zip(found.varied, settings, strict=True)]  # fmt: skip
        gap, error = difference(row, ranked[0]) if ranked else (math.nan, math.nan)
        cells += [cell(value) for value in (row.value, 2 * row.error, gap, 2 * error, row.nfe, row.seconds)]
        state = row.state + (f": {row.message}" if row.message else "")
        lines.append([*cells, [state, state]])
    return {"titles": titles, "rows": lines}


def cell(value: float) -> list[Any]:
    """What sorts a number's cell, and what is read in it; unknown numbers come last."""
    return [float(f"{value:.6g}"), number(value)] if math.isfinite(value) else [None, ""]
