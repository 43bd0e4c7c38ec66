"""Figures of sweeps: parallel coordinates, heat maps of two parameters, and the charts of `sweep.charts`."""

import math
from itertools import combinations
from typing import Any

from lightning_score.report.figures import COLORS, axis, figure_of, heat_map, horizontal_line, rounded, text
from lightning_score.report.tables import cell, plain, table
from lightning_score.sweep.charts import FEW, PARETO, Axis, Chart, charts, is_wide, values_of
from lightning_score.sweep.results import Results, Row, difference, format_number, numeric, setting_text, short_name

MAPS = 6
"""Maximal number of heat maps of a sweep."""


def views(found: Results) -> dict[str, dict[str, Any]]:
    """All figures of a sweep by name; none for fewer than two complete trials."""
    rows = found.ranked
    if len(rows) < 2:
        return {}
    named = {"parallel coordinates": _parallel(found, rows)}
    varied = sorted((name for name in found.varied if len(values_of(rows, name)) > 1), key=lambda n: not numeric(rows, n))
    for one, other in list(combinations(varied, 2))[:MAPS]:
        named[f"{short_name(one)} x {short_name(other)}"] = _map(found, rows, one, other)
    for name, chart in charts(found).items():
        named["Pareto front" if name == PARETO else name] = _from_chart(found, chart)
    return named


def _parallel(found: Results, rows: list[Row]) -> dict[str, Any]:
    """A line per trial through its settings and its results; dragging along an axis selects trials."""
    dimensions: list[dict[str, Any]] = []
    for name in found.varied:
        choices = values_of(rows, name)
        if len(choices) > 1 and numeric(rows, name) and len(choices) > FEW:
            values = [row.settings[name] for row in rows]
            dimensions.append(_dimension(short_name(name), values, is_wide(values, 20)))
        elif len(choices) > 1:
            places = [choices.index(row.text(name)) for row in rows]
            ticks = {"tickvals": list(range(len(choices))), "ticktext": [text(_brief(choice)) for choice in choices]}
            dimensions.append({"label": text(short_name(name)), "values": places, **ticks})
    if any(math.isfinite(row.nfe) for row in rows):
        dimensions.append({"label": "NFE", "values": rounded(row.nfe for row in rows)})
    values = [row.value for row in rows]
    dimensions.append(_dimension(found.metric, values, is_wide(values)))
    shade = {"colorscale": "Viridis", "reversescale": found.maximize, "showscale": True}
    lines = {"type": "parcoords", "dimensions": dimensions, "line": {"color": dimensions[-1]["values"], **shade}}
    return figure_of([{**lines, "labelside": "top"}], margin={"l": 90, "r": 40, "t": 60, "b": 30})


def _dimension(label: str, values: list[float], wide: bool) -> dict[str, Any]:
    """An axis of numbers, or of their logarithms if they are wide."""
    shown = [math.log10(value) for value in values] if wide else values
    return {"label": text(f"log10 {label}" if wide else label), "values": rounded(shown)}


def _brief(value: str) -> str:
    """A short form of a value."""
    try:
        return f"{float(value):.4g}" if len(value) > 8 else value
    except ValueError:
        return value if len(value) <= 28 else f"{value[:27]}…"


def _map(found: Results, rows: list[Row], one: str, other: str) -> dict[str, Any]:
    """The metric over two parameters, the best over all others."""
    columns, lines = values_of(rows, one), values_of(rows, other)
    best: dict[tuple[str, str], Row] = {}
    for row in rows:  # the best first
        best.setdefault((row.text(other), row.text(one)), row)
    cells = [[best.get((line, column)) for column in columns] for line in lines]
    wide = is_wide([row.value for row in best.values()])
    heat = {
        "type": "heatmap", "x": [_brief(column) for column in columns], "y": [_brief(line) for line in lines],
        "z": [[row and (math.log10(row.value) if wide else row.value) for row in line] for line in cells],
        "text": [[_with_error(row) if row else "" for row in line] for line in cells],
        "customdata": [[row.number if row else "" for row in line] for line in cells],
        "texttemplate": "%{text}", "hovertemplate": "%{text}, trial %{customdata}<extra></extra>", "colorscale": "Viridis",
        "reversescale": not found.maximize, "showscale": False,
    }  # fmt: skip
    over = [short_name(name) for name in found.varied if name not in (one, other) and len(values_of(rows, name)) > 1]
    note = f"{found.metric} ± 2 standard errors" + (f", the best over {', '.join(over)}" if over else "")
    return heat_map(heat, short_name(one), short_name(other), note)


def _with_error(row: Row) -> str:
    return format_number(row.value) + (f" ± {format_number(2 * row.error)}" if math.isfinite(row.error) else "")


def _from_chart(found: Results, chart: Chart) -> dict[str, Any]:
    """A chart for Plotly: lines of points, the Pareto front and the floor."""
    traces: list[dict[str, Any]] = [{
        "x": line.places, "y": rounded(line.values), "mode": "lines+markers" if chart.connected else "markers",
        "error_y": {"type": "data", "array": rounded(line.errors), "thickness": 1},
        "marker": {"color": COLORS[i % len(COLORS)], "size": 8}, "line": {"width": 1.5}, "name": text(line.label),
        "text": [_hover(found, row) for row in line.rows], "hovertemplate": "%{text}<extra></extra>",
    } for i, line in enumerate(chart.lines)]  # fmt: skip
    if chart.front:
        traces.append({
            "x": [row.nfe for row in chart.front], "y": rounded(row.value for row in chart.front), "mode": "lines+text",
            "hoverinfo": "skip", "name": "Pareto front", "line": {"shape": "hv", "color": COLORS[1]},
            "textposition": "top right", "text": [f"trial {row.number}" for row in chart.front],
        })  # fmt: skip
    if chart.floor is not None:
        traces.append(horizontal_line([place for line in chart.lines for place in line.places], *chart.floor, []))
    if chart.sideways:
        swapped = {"x": "y", "y": "x", "error_y": "error_x"}
        traces = [{swapped.get(key, key): value for key, value in trace.items()} for trace in traces]
    axes = [_axis(chart.across), _axis(chart.metric)]
    xaxis, yaxis = reversed(axes) if chart.sideways else axes
    return figure_of(traces, xaxis=xaxis, yaxis=yaxis)


def _hover(found: Results, row: Row) -> str:
    result = f"trial {row.number}: {_with_error(row)} at NFE {format_number(row.nfe)}"
    return "<br>".join([result, *map(text, row.texts(found.varied))])


def _axis(of: Axis) -> dict[str, Any]:
    ticks = {"tickvals": of.ticks, "ticktext": [text(_brief(each)) for each in of.texts]} if of.ticks else {}
    return axis(of.label, **({"type": "log"} if of.log else {}), **ticks)


def trials_table(found: Results) -> dict[str, Any]:
    """All trials, the best first."""
    ranked = found.ranked
    rows = [*ranked, *(row for row in found.rows if row not in ranked)]
    titles = ["trial", *map(short_name, found.varied)]
    titles += [found.metric, "± 2 s.e.", "to the best", "± 2 s.e.", "NFE", "seconds", "state"]
    lines = []
    for row in rows:
        settings = [row.settings.get(name, "") for name in found.varied]
        shown = [[value if numeric(rows, name) else setting_text(value), setting_text(value)]
                 for name, value in zip(found.varied, settings, strict=True)]  # fmt: skip
        gap, error = difference(row, ranked[0]) if ranked else (math.nan, math.nan)
        numbers = [cell(value) for value in (row.value, 2 * row.error, gap, 2 * error, row.nfe, row.seconds)]
        state = plain(row.state + (f": {row.message}" if row.message else ""))
        lines.append([plain(row.number), *shown, *numbers, state])
    return table(titles, lines)
