"""Figures of runs for Plotly: traces and layout as plain dictionaries, with the number of the run in `meta`.

Plotly's Python classes check every property and need a minute for the figures of 200 runs; only the tests use them.
"""

import calendar
import html
import math
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from lightning_score.report.reading import Curve, Run
from lightning_score.runs.records import Record, by_axis, floor_name
from lightning_score.sweep.charts import log_ticks

COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
LEVEL = re.compile(r"val/(excess_loss|loss)_(train|held_out)/([-+.\deE]+)$")
"""Metrics of one noise level: loss or excess loss, the split, and sigma/alpha."""
HIDDEN = re.compile(r".*(_error|_floor|_n|/lr|/lr-.*)$")
"""Metrics that belong to another metric."""
MOST = 400
"""Maximal number of points of a curve."""
FEW = 100
"""Maximal number of points of a curve for many runs."""


def text(value: Any) -> str:
    """Text for Plotly, which interprets some HTML."""
    return html.escape(str(value), quote=False)


def color(run: Run) -> str:
    """The color of a run in all figures."""
    return COLORS[run.order % len(COLORS)]


def figure_of(traces: list[dict[str, Any]], **layout: Any) -> dict[str, Any]:
    """A figure; the page adds template and colors."""
    return {"data": traces, "layout": {"margin": {"l": 60, "r": 20, "t": 30, "b": 50}, **layout}}


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """An axis with a plain-text title."""
    return {"title": {"text": text(title)}, **more}


def rounded(values: Iterable[float]) -> list[float | None]:
    """Values with five digits; NaN and infinity become gaps."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def thinned(curve: Curve, most: int = MOST) -> Curve:
    """A curve with at most `most` points, evenly spaced, including the first and the last."""
    n = len(curve.steps)
    if n <= most:
        return curve
    kept = [round(i * (n - 1) / (most - 1)) for i in range(most)]
    return Curve(*([column[i] for i in kept] for column in curve))


def by_axis_of_runs(runs: Sequence[Run]) -> dict[tuple[Any, ...], list[tuple[int, Record]]]:
    """Records of all runs that may share an axis, with the run's number; FID first, then the most frequent."""
    numbers = {id(record): i for i, run in enumerate(runs) for record in run.records}
    groups = by_axis(record for run in runs for record in run.records)
    named = {axis: [(numbers[id(record)], record) for record in records] for axis, records in groups.items()}
    return dict(sorted(named.items(), key=lambda item: (not item[0][0].startswith("fid"), -len(item[1]), str(item[0]))))


def axis_labels(axes: Iterable[tuple[Any, ...]]) -> dict[tuple[Any, ...], str]:
    """A name for each axis: its metric and, if several axes have this metric, what differs."""
    axes = list(axes)
    labels: dict[tuple[Any, ...], str] = {}
    for axis in axes:
        metric, n, features, resize, data, split, shape = axis
        rivals = [other for other in axes if other[0] == metric]
        parts = {"n": n, "features": features[:6], "resize": resize, "data": data[:6], "split": split,
                 "shape": "x".join(map(str, shape))}  # fmt: skip
        telling = [f"{name} {part}" for place, (name, part) in enumerate(parts.items(), start=1)
                   if len({other[place] for other in rivals}) > 1]  # fmt: skip
        labels[axis] = ", ".join([metric, *telling])
    return labels


def line_kind(record: Record) -> str:
    """What differs in a line of a run from averaged weights and denoised samples."""
    return ", ".join(["raw weights"] * (record.weights != "ema") + ["not denoised"] * (not record.denoised))


def measurements(runs: Sequence[Run], records: Sequence[tuple[int, Record]], label: str) -> dict[str, Any]:
    """A measurement over training with two standard errors, a line per run and kind, and the latest floor of each kind."""
    traces: list[dict[str, Any]] = []
    lines: dict[tuple[int, str], list[Record]] = {}
    for i, record in records:
        lines.setdefault((i, line_kind(record)), []).append(record)
    for (i, kind), members in lines.items():
        members = sorted(members, key=lambda record: record.step)
        hours = runs[i].hours([_seconds(record.time) for record in members])
        errors = rounded(2 * record.error if isinstance(record.error, (int, float)) else 0.0 for record in members)
        traces.append({
            "x": [record.step for record in members],
            "y": rounded(record.value for record in members),
            "error_y": {"type": "data", "array": errors, "thickness": 1},
            "mode": "lines+markers",
            "line": {"color": color(runs[i]), "dash": "dot" if kind else "solid"},
            "name": text(f"{runs[i].name} {kind}".strip()),
            "customdata": [[record.n, record.nfe] for record in members],
            "hovertemplate": "%{y:.4g}, step %{x}, n %{customdata[0]}, NFE %{customdata[1]}<extra>%{fullData.name}</extra>",
            "meta": {"run": i, "hours": rounded(hours)},
        })  # fmt: skip
    floors = {str(r.floor_kind): r.floor for _, r in sorted(records, key=_time) if isinstance(r.floor, (int, float))}
    for kind, floor in floors.items():
        steps = [record.step for _, record in records]
        hours = [hour for trace in traces for hour in trace["meta"]["hours"] if hour is not None]
        traces.append(horizontal_line(steps, floor, floor_name(kind), [min(hours, default=0), max(hours, default=0)]))
    values = [record.value for _, record in records if math.isfinite(record.value)] + list(floors.values())
    return figure_of(traces, yaxis=axis(label, **scale(values)), xaxis=axis("training steps"))


def _time(entry: tuple[int, Record]) -> str:
    return str(entry[1].time)


def horizontal_line(x: Sequence[float], value: float, name: str, hours: list[float]) -> dict[str, Any]:
    """A dashed horizontal line."""
    return {
        "x": [min(x), max(x)], "y": rounded([value] * 2), "mode": "lines", "name": name, "meta": {"hours": hours},
        "line": {"color": "gray", "dash": "dash", "width": 1.5}, "hovertemplate": f"{name}: {value:.4g}<extra></extra>",
    }  # fmt: skip


def scale(values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis with plain numbers at its ticks, where values are far apart."""
    ticks = log_ticks(values)
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]} if ticks else {}


def _seconds(stamp: Any) -> float:
    """Seconds since 1970 of a record's time in UTC."""
    try:
        return float(calendar.timegm(time.strptime(str(stamp), "%Y-%m-%dT%H:%M:%SZ")))
    except ValueError:
        return math.nan


def metrics(runs: Sequence[Run]) -> list[str]:
    """Metrics with their own figure, losses first."""
    names = {name for run in runs for name, curve in run.curves.items() if not HIDDEN.match(name) and not LEVEL.match(name)}
    first = ["train/loss", "val/loss", "val/excess_loss_held_out", "val/excess_loss_train"]
    return [name for name in first if name in names] + sorted(names - set(first))


def curves(runs: Sequence[Run], name: str) -> dict[str, Any]:
    """A metric over training, a line per run."""
    traces: list[dict[str, Any]] = []
    values: list[float] = []
    for i, run in enumerate(runs):
        if name not in run.curves:
            continue
        curve = thinned(run.curves[name], FEW if len(runs) > 30 else MOST)
        values += [value for value in curve.values if math.isfinite(value)]
        traces.append({
            "x": curve.steps, "y": rounded(curve.values), "mode": "lines" if len(curve.steps) > 30 else "lines+markers",
            "line": {"color": color(run), "width": 1.5}, "name": text(run.name),
            "hovertemplate": "%{y:.4g}, step %{x}<extra>%{fullData.name}</extra>",
            "meta": {"run": i, "hours": rounded(run.hours(curve.times))},
        })  # fmt: skip
    return figure_of(traces, yaxis=axis(name, **scale(values)), xaxis=axis("training steps"))


def levels(run: Run) -> dict[str, dict[str, Any]]:
    """Heat maps of loss and excess loss per noise level over training, by their names."""
    found: dict[tuple[str, str], dict[str, Curve]] = {}
    for name, curve in run.curves.items():
        match = LEVEL.match(name)
        if match:
            found.setdefault((match[1], match[2]), {})[match[3]] = thinned(curve, FEW)
    named = {}
    for (quantity, split), rows in sorted(found.items()):
        title = f"{'excess loss' if quantity == 'excess_loss' else 'loss'}, {split.replace('_', ' ')} data"
        named[title] = _heat(rows, excess=quantity == "excess_loss", title=title)
    return named


def _heat(rows: dict[str, Curve], excess: bool, title: str) -> dict[str, Any]:
    """Noise levels over training steps; colors are in asinh if losses are far apart."""
    sigmas = sorted(rows, key=float)
    steps = sorted({step for curve in rows.values() for step in curve.steps})
    z = []
    for sigma in sigmas:
        at = dict(zip(rows[sigma].steps, rounded(rows[sigma].values), strict=True))
        z.append([at.get(step) for step in steps])
    known = sorted(value for row in z for value in row if value is not None) or [0.0, 1.0]
    largest = max(abs(known[0]), abs(known[-1]))
    wide = largest > 3
    ticks = [0, *(sign * 10**k for k in range(7) for sign in (-1, 1) if known[0] <= sign * 10**k <= known[-1])]
    bar = {"tickvals": [math.asinh(tick) for tick in ticks], "ticktext": [f"{tick:g}" for tick in ticks]} if wide else {}
    limit = math.asinh(largest) if wide else largest
    scale = {"colorscale": "RdBu", "zmid": 0, "zmin": -limit, "zmax": limit}
    heat = {
        "type": "heatmap", "x": [str(step) for step in steps], "y": sigmas, "customdata": z,
        "z": [[None if value is None else round(math.asinh(value) if wide else value, 4) for value in row] for row in z],
        "colorbar": {"title": {"text": "nats"}, **bar}, **(scale if excess else {"colorscale": "Viridis"}),
        "hovertemplate": "%{customdata:.4g} at sigma %{y}, step %{x}<extra></extra>",
    }  # fmt: skip
    return figure_of(
        [heat],
        xaxis=axis("training steps", type="category"),
        yaxis=axis("noise level sigma/alpha", type="category"),
        title={"text": text(title), "font": {"size": 14}},
    )


PANELS = (
    ("step size e (squared units)", [("step_size", "step size", COLORS[1])]),
    ("signal-to-noise ratio of a step", [("snr", "signal-to-noise ratio", COLORS[0])]),
    ("root mean square per dimension", [("sample_norm", "samples", COLORS[2]), ("data_norm", "data with the noise", "gray"),
                                        ("score_norm", "sigma x score", COLORS[3])]),
    ("variance ratio after the level", [("variance_ratio", "measured", COLORS[4]),
                                        ("predicted_ratio", "recursion of technique 4", "gray")]),
)  # fmt: skip
"""The panels of Langevin dynamics, row by row: a title, and lines with field, name and color."""


def langevin(entries: dict[str, Any]) -> dict[str, Any]:
    """Langevin dynamics at each noise level: step size, signal-to-noise ratio, norms and variance ratio."""
    traces, layout, titles = [], {}, []
    for i, (title, lines) in enumerate(PANELS):
        number = "" if i == 0 else str(i + 1)
        left, bottom = 0.54 * (i % 2), 0.6 * (i < 2)
        log = {"type": "log", "exponentformat": "power", "dtick": 1}
        layout[f"xaxis{number}"] = axis("noise level sigma/alpha" if i > 1 else "", autorange="reversed",
                                        domain=[left, left + 0.46], anchor=f"y{number}", **log)  # fmt: skip
        layout[f"yaxis{number}"] = axis(domain=[bottom, bottom + 0.4], anchor=f"x{number}", **(log if i in (0, 2) else {}))
        place = {"xref": "paper", "yref": "paper", "x": left + 0.23, "y": bottom + 0.42, "yanchor": "bottom"}
        titles.append({"text": title, "showarrow": False, **place})
        for field, name, shade in lines:
            values = entries.get(field)
            if isinstance(values, list):
                traces.append({
                    "x": rounded(entries["sigma"]), "y": rounded(math.nan if value is None else value for value in values),
                    "name": name, "mode": "lines+markers", "marker": {"size": 4},
                    "xaxis": f"x{number}", "yaxis": f"y{number}",
                    "line": {"color": shade, "dash": "dash" if shade == "gray" else "solid"},
                    "hovertemplate": "%{y:.4g} at sigma %{x:.4g}<extra>%{fullData.name}</extra>",
                })  # fmt: skip
    return figure_of(traces, annotations=titles, height=620, **layout)
