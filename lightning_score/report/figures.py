"""Figures of runs for Plotly: traces and layout as plain dictionaries, with the number of the run in `meta`.

Plotly's Python classes check every property and need a minute for the figures of 200 runs; only the tests use them.
"""

import calendar
import html
import math
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from lightning_score.report.reading import Curve, Run, as_number
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


def rounded(values: Iterable[Any]) -> list[float | None]:
    """Values with five digits; NaN, infinity and what is not a number become gaps."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in map(as_number, values)]


def evenly(n: int, most: int) -> list[int]:
    """At most `most` of n indices, evenly spaced, including the first and the last."""
    return list(range(n)) if n <= most else [round(i * (n - 1) / (most - 1)) for i in range(most)]


def thinned(curve: Curve, most: int = MOST) -> Curve:
    """A curve with at most `most` points, evenly spaced, including the first and the last."""
    kept = evenly(len(curve.steps), most)
    return Curve([curve.steps[i] for i in kept], [curve.times[i] for i in kept], [curve.values[i] for i in kept])


def measures(runs: Sequence[Run]) -> dict[str, list[tuple[int, Record]]]:
    """Records of all runs that may share an axis, with the run's number, by the axis's name; FID first, then the most
    frequent. The name is the metric and, if several axes have this metric, what differs.
    """
    numbers = {id(record): i for i, run in enumerate(runs) for record in run.records}
    groups = by_axis(record for run in runs for record in run.records)
    axes = sorted(groups, key=lambda axis: (not axis[0].startswith("fid"), -len(groups[axis]), str(axis)))
    return {_name_of_axis(axis, axes): [(numbers[id(record)], record) for record in groups[axis]] for axis in axes}


def _name_of_axis(axis: tuple[Any, ...], axes: Iterable[tuple[Any, ...]]) -> str:
    metric, n, features, resize, data, split, shape = axis
    parts = {"n": n, "features": features[:6], "resize": resize, "data": data[:6], "split": split,
             "shape": "x".join(map(str, shape))}  # fmt: skip
    rivals = [other for other in axes if other[0] == metric]
    telling = [f"{name} {part}" for i, (name, part) in enumerate(parts.items(), start=1)
               if len({other[i] for other in rivals}) > 1]  # fmt: skip
    return ", ".join([metric, *telling])


def line_kind(record: Record) -> str:
    """What differs in a line of a run from averaged weights and denoised samples."""
    return ", ".join(["raw weights"] * (record.weights != "ema") + ["not denoised"] * (not record.denoised))


def _line(i: int, run: Run, curve: Curve, kind: str = "", **style: Any) -> dict[str, Any]:
    """A line of a run over training steps, with the run's number and the hours in `meta`."""
    start = run.started
    return {
        "x": curve.steps, "y": rounded(curve.values), "mode": "lines+markers", "line": {"color": color(run), **style},
        "name": text(f"{run.name} {kind}".strip()),
        "hovertemplate": "%{y:.4g}, step %{x}<extra>%{fullData.name}</extra>",
        "meta": {"run": i, "hours": rounded((when - start) / 3600 for when in curve.times)},
    }  # fmt: skip


def measurements(runs: Sequence[Run], records: Sequence[tuple[int, Record]], label: str) -> dict[str, Any]:
    """A measurement over training with two standard errors, a line per run and kind, and the latest floor of each kind."""
    lines: dict[tuple[int, str], list[Record]] = defaultdict(list)
    for i, record in records:
        lines[i, line_kind(record)].append(record)
    traces = []
    for (i, kind), members in lines.items():
        members.sort(key=lambda record: record.step)
        times, values = [_seconds(record.time) for record in members], [record.value for record in members]
        curve = Curve([record.step for record in members], times, values)
        errors = rounded(2 * as_number(record.error, 0.0) for record in members)
        traces.append(_line(i, runs[i], curve, kind, dash="dot" if kind else "solid") | {
            "error_y": {"type": "data", "array": errors, "thickness": 1},
            "customdata": [[record.n, record.nfe] for record in members],
            "hovertemplate": "%{y:.4g}, step %{x}, n %{customdata[0]}, NFE %{customdata[1]}<extra>%{fullData.name}</extra>",
        })  # fmt: skip
    by_time = sorted((record for _, record in records), key=lambda record: str(record.time))
    steps = [record.step for record in by_time]
    hours = [hour for trace in traces for hour in trace["meta"]["hours"] if hour is not None]
    ends = [min(hours, default=0), max(hours, default=0)]
    floors = {str(record.floor_kind): as_number(record.floor) for record in by_time if as_number(record.floor) < math.inf}
    traces += [horizontal_line(steps, floor, floor_name(kind), ends) for kind, floor in floors.items()]
    return _over_training(traces, label)


def _over_training(traces: list[dict[str, Any]], label: str) -> dict[str, Any]:
    """Lines over training steps; where values are far apart on a logarithmic axis with plain numbers at its ticks."""
    ticks = log_ticks([value for trace in traces for value in trace["y"] if value is not None])
    log = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]} if ticks else {}
    return figure_of(traces, yaxis=axis(label, **log), xaxis=axis("training steps"))


def horizontal_line(x: Sequence[float], value: float, name: str, hours: list[float]) -> dict[str, Any]:
    """A dashed horizontal line."""
    return {
        "x": [min(x), max(x)], "y": rounded([value] * 2), "mode": "lines", "name": name, "meta": {"hours": hours},
        "line": {"color": "gray", "dash": "dash", "width": 1.5}, "hovertemplate": f"{name}: {value:.4g}<extra></extra>",
    }  # fmt: skip


def _seconds(stamp: Any) -> float:
    """Seconds since 1970 of a record's time in UTC."""
    with suppress(ValueError):
        return float(calendar.timegm(time.strptime(str(stamp), "%Y-%m-%dT%H:%M:%SZ")))
    return math.nan


def metrics(runs: Sequence[Run]) -> list[str]:
    """Metrics with their own figure, losses first."""
    names = {name for run in runs for name, curve in run.curves.items() if not HIDDEN.match(name) and not LEVEL.match(name)}
    first = ["train/loss", "val/loss", "val/excess_loss_held_out", "val/excess_loss_train"]
    return [name for name in first if name in names] + sorted(names - set(first))


def curves(runs: Sequence[Run], name: str) -> dict[str, Any]:
    """A metric over training, a line per run."""
    traces = []
    for i, run in enumerate(runs):
        if name in run.curves:
            curve = thinned(run.curves[name], FEW if len(runs) > 30 else MOST)
            mode = "lines" if len(curve.steps) > 30 else "lines+markers"
            traces.append(_line(i, run, curve, width=1.5) | {"mode": mode})
    return _over_training(traces, name)


def levels(run: Run) -> dict[str, dict[str, Any]]:
    """Heat maps of loss and excess loss per noise level over training, by their names."""
    found: dict[str, dict[str, Curve]] = defaultdict(dict)
    for name, curve in run.curves.items():
        if match := LEVEL.match(name):
            found[f"{match[1]}, {match[2]} data".replace("_", " ")][match[3]] = thinned(curve, FEW)
    return {title: _heat(rows, title) for title, rows in sorted(found.items())}


def _heat(rows: dict[str, Curve], title: str) -> dict[str, Any]:
    """Noise levels over training steps; colors are in asinh if losses are far apart."""
    sigmas = sorted(rows, key=float)
    steps = sorted({step for curve in rows.values() for step in curve.steps})
    z = []
    for sigma in sigmas:
        at = dict(zip(rows[sigma].steps, rounded(rows[sigma].values), strict=True))
        z.append([at.get(step) for step in steps])
    known = sorted(value for row in z for value in row if value is not None) or [0.0, 1.0]
    largest = max(abs(known[0]), abs(known[-1]))
    scaled = math.asinh if largest > 3 else float
    ticks = [0, *(sign * 10**k for k in range(7) for sign in (-1, 1) if known[0] <= sign * 10**k <= known[-1])]
    bar = {"tickvals": [math.asinh(tick) for tick in ticks], "ticktext": [f"{tick:g}" for tick in ticks]}
    diverging = {"colorscale": "RdBu", "zmid": 0, "zmin": -scaled(largest), "zmax": scaled(largest)}
    heat = {
        "type": "heatmap", "x": [str(step) for step in steps], "y": sigmas, "customdata": z,
        "z": [[None if value is None else round(scaled(value), 4) for value in row] for row in z],
        "colorbar": {"title": {"text": "nats"}, **(bar if largest > 3 else {})},
        "hovertemplate": "%{customdata:.4g} at sigma %{y}, step %{x}<extra></extra>",
        **(diverging if title.startswith("excess") else {"colorscale": "Viridis"}),
    }  # fmt: skip
    return heat_map(heat, "training steps", "noise level sigma/alpha", title)


def heat_map(heat: dict[str, Any], across: str, up: str, title: str) -> dict[str, Any]:
    """A figure of a heat map over categories."""
    xaxis, yaxis = axis(across, type="category"), axis(up, type="category")
    return figure_of([heat], xaxis=xaxis, yaxis=yaxis, title={"text": text(title), "font": {"size": 14}})


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
    grid = {"rows": 2, "columns": 2, "pattern": "independent", "xgap": 4 / 27, "ygap": 1 / 3}
    layout: dict[str, Any] = {"grid": grid, "annotations": [], "height": 620}
    traces = []
    log: dict[str, Any] = {"type": "log", "exponentformat": "power", "dtick": 1}
    for i, (title, lines) in enumerate(PANELS):
        number = str(i + 1) if i else ""
        layout[f"xaxis{number}"] = axis("noise level sigma/alpha" if i > 1 else "", autorange="reversed", **log)
        layout[f"yaxis{number}"] = axis(**(log if i in (0, 2) else {}))
        place = {"xref": f"x{number} domain", "yref": f"y{number} domain", "x": 0.5, "y": 1.05, "yanchor": "bottom",
                 "xanchor": "right" if i % 2 else "left"}  # fmt: skip
        layout["annotations"].append({"text": title, "showarrow": False, **place})
        for field, name, shade in lines:
            if isinstance(entries.get(field), list):
                traces.append({
                    "x": rounded(entries["sigma"]), "y": rounded(entries[field]), "xaxis": f"x{number}",
                    "yaxis": f"y{number}", "name": name, "mode": "lines+markers", "marker": {"size": 4},
                    "line": {"color": shade, "dash": "dash" if shade == "gray" else "solid"},
                    "hovertemplate": "%{y:.4g} at sigma %{x:.4g}<extra>%{fullData.name}</extra>",
                })  # fmt: skip
    return figure_of(traces, **layout)
