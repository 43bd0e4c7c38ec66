"""The data of the figures of runs; the page draws them."""

import calendar
import math
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from lightning_score.report.reading import Curve, Run
from lightning_score.runs.records import Record, as_number, by_axis, floor_name

COLORS = ("#3890b0", "#f86010", "#00a860", "#9800f8", "#a05000", "#c02070", "#a878f8", "#7058b0")
"""Colors of lines: a contrast of 3:1 with the light and with the dark page, and distinct without red-green vision."""
LEVEL = re.compile(r"val/(excess_loss|loss)_(train|held_out)/([-+.\deE]+)$")
"""Metrics of one noise level: loss or excess loss, the split, and sigma/alpha."""
HIDDEN = re.compile(r"epoch$|.*(_error|_floor|_n)$")
"""Metrics that belong to another metric."""
MOST = {"points": (600, 60), "validations": (100, 5), "stages": (12, 1), "levels": (64, 16)}
"""Maximal numbers for up to 32 runs, and for very many: points of a curve, validations of the losses per noise level, and
validations and noise levels of Langevin dynamics.
"""
LANGEVIN = ("sigma", "step_size", "snr", "sample_norm", "data_norm", "score_norm", "variance_ratio", "predicted_ratio")
"""The lists of a line of `langevin.jsonl`, one value per noise level."""
FIRST = ("fid", "fid_infinity", "sliced_wasserstein", "power_spectrum", "histogram", "energy_distance", "bits_per_dim",
         "nats", "crps")  # fmt: skip
"""Kinds of measures in the order of importance; others follow."""
LOSS = ("model.objective", "model.process", "data")
"""Settings that decide which losses are comparable."""


def rounded(values: Iterable[Any]) -> list[float | None]:
    """Values with five digits; NaN, infinity and what is not a number become gaps."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in map(as_number, values)]


def evenly(n: int, most: int) -> list[int]:
    """At most `most` of n indices, evenly spaced, including the first and the last."""
    return list(range(n)) if n <= most else [round(i * (n - 1) / (most - 1)) for i in range(most)]


def data_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What the figures show of each run: its order, curves, measures, Langevin dynamics and what its losses depend on."""
    share = min(1.0, 32 / 2 ** math.ceil(math.log2(max(len(runs), 1))))  # does not change with every run
    most = {name: max(round(few * share), many) for name, (few, many) in MOST.items()}
    found: list[dict[str, list[Record]]] = [defaultdict(list) for _ in runs]
    for label, records in measures(runs).items():
        for i, record in records:
            found[i][label].append(record)
    return [
        {"order": run.order, "objective": objective, "epoch_steps": steps_per_epoch(run),
         "curves": run.once(f"curves {most}", lambda run: curves(run, most)),
         "langevin": run.once(f"langevin {most}", lambda run: langevin(run, most)),
         "measures": {label: lines_of(run, records) for label, records in own.items()}}
        for run, objective, own in zip(runs, objectives(runs), found, strict=True)
    ]  # fmt: skip


def curves(run: Run, most: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The curves of a run by metric: steps, hours since its start and values; those of many points are thinned and have the
    means between their points, too. Those of noise levels are thinned evenly, so that they keep their common steps.
    """
    made = {}
    for name, curve in run.curves.items():
        if LEVEL.match(name):
            made[name] = points(run, curve, evenly(len(curve.steps), most["validations"]))
        elif not HIDDEN.match(name):
            made[name] = thinned(run, curve, most["points"])
    return made


def points(run: Run, curve: Curve, kept: Iterable[int]) -> dict[str, Any]:
    """The points of a curve at some indices."""
    kept = list(kept)
    return {"steps": [curve.steps[i] for i in kept], "values": rounded(curve.values[i] for i in kept),
            "hours": hours(run, (curve.times[i] for i in kept))}  # fmt: skip


def hours(run: Run, times: Iterable[float]) -> list[float | None]:
    """Times in hours since the start of a run."""
    started = run.started
    return rounded((when - started) / 3600 for when in times)


def thinned(run: Run, curve: Curve, most: int) -> dict[str, Any]:
    """A curve with at most `most` points: its ends, and from each of (most - 2)/3 equal parts the smallest value, the
    largest, and one that is not finite. Its `means` are those of the finite values of a point's part.
    """
    values = np.asarray(curve.values, dtype=float)
    if len(values) <= most:
        return points(run, curve, range(len(values)))
    known = np.isfinite(values)
    low, high = np.where(known, values, np.inf), np.where(known, values, -np.inf)
    means = {0: math.nan, len(values) - 1: math.nan}
    for part in np.array_split(np.arange(len(values)), max((most - 2) // 3, 1)):
        kept = {part[low[part].argmin()], part[high[part].argmax()], part[known[part].argmin()]} | means.keys() & {
            *part.tolist()
        }
        finite = values[part][known[part]]
        means |= dict.fromkeys(map(int, kept), float(finite.mean()) if len(finite) else math.nan)
    return points(run, curve, sorted(means)) | {"means": rounded(means[i] for i in sorted(means))}


def steps_per_epoch(run: Run) -> float | None:
    """Training steps of an epoch, the most that a row of metrics shows; None if unknown."""
    curve = run.curves.get("epoch", Curve([], [], []))
    found = [step / (epoch + 1) for step, epoch in zip(curve.steps, curve.values, strict=True) if epoch >= 0]
    return rounded([max(found, default=math.nan)])[0] or None


def objectives(runs: Sequence[Run]) -> list[str]:
    """What the loss of each run depends on, as far as runs differ in it: the objective, the process and the data."""

    def part(run: Run) -> dict[str, Any]:
        return {name: value for name, value in run.settings.items() if name in LOSS or name.startswith(f"{LOSS[0]}.")}

    parts = [part(run) for run in runs]
    known = [each for each in parts if each]
    names = sorted({name for each in known for name in each}, key=lambda name: (name.count("."), name))
    differing = [name for name in names if len({str(each.get(name)) for each in known}) > 1]
    return [", ".join(_brief_setting(name, each[name]) for name in differing if name in each) for each in parts]


def _brief_setting(name: str, value: Any) -> str:
    return str(value) if isinstance(value, str) else f"{name.rpartition('.')[2]} {value}"


def measures(runs: Sequence[Run]) -> dict[str, list[tuple[int, Record]]]:
    """Records of all runs that may share an axis, with the run's number, by the axis's name.

    FID is first, then distances without features, those of the most runs, those of the most samples. The name is the metric
    and, if several axes have this metric, what differs.
    """
    numbers = {id(record): i for i, run in enumerate(runs) for record in run.records}
    groups = by_axis(record for run in runs for record in run.records)
    shared = {axis: len({numbers[id(record)] for record in records}) for axis, records in groups.items()}
    axes = sorted(groups, key=lambda axis: (importance(axis[0]), -shared[axis], -axis[1], str(axis)))
    return {_name_of_axis(axis, axes): [(numbers[id(record)], record) for record in groups[axis]] for axis in axes}


def importance(metric: str) -> int:
    """The place of a metric, or of its kind, in the order of importance."""
    return max((place for place, kind in enumerate(FIRST) if metric.startswith(kind)), default=len(FIRST))


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
    weights = {"ema": [], "raw": ["raw weights"]}.get(record.weights, [record.weights])
    return ", ".join(weights + ["not denoised"] * (not record.denoised))


def lines_of(run: Run, records: Sequence[Record]) -> list[dict[str, Any]]:
    """The lines of one measure of a run over training, a line per kind: values with two standard errors, n and NFE."""
    lines: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.step):
        lines[line_kind(record)].append(record)
    return [{
        "kind": kind,
        "steps": [record.step for record in members],
        "hours": hours(run, (_seconds(record.time) for record in members)),
        "values": rounded(record.value for record in members),
        "errors": rounded(2 * as_number(record.error, 0.0) for record in members),
        "n": [record.n for record in members],
        "nfe": rounded(record.nfe for record in members),
    } for kind, members in lines.items()]  # fmt: skip


def floors(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The measures in the order of importance, each with the latest floor of each kind."""
    found = []
    for label, records in measures(runs).items():
        by_time = sorted((record for _, record in records), key=lambda record: str(record.time))
        latest = {str(each.floor_kind): as_number(each.floor) for each in by_time if as_number(each.floor) < math.inf}
        named = [{"name": floor_name(kind), "value": rounded([floor])[0]} for kind, floor in latest.items()]
        found.append({"label": label, "floors": named})
    return found


def _seconds(stamp: Any) -> float:
    """Seconds since 1970 of a record's time in UTC."""
    with suppress(ValueError):
        return float(calendar.timegm(time.strptime(str(stamp), "%Y-%m-%dT%H:%M:%SZ")))
    return math.nan


def langevin(run: Run, most: Mapping[str, int]) -> list[dict[str, Any]]:
    """Langevin dynamics of some validations, the last one included: a list per quantity, by noise level."""
    kept = reversed(evenly(len(run.langevin), most["stages"])) if most["stages"] > 1 else [-1]
    stages = [run.langevin[k] for k in kept] if run.langevin else []
    return [{"step": entries["step"], **{
        name: rounded(entries[name][k] for k in evenly(len(entries[name]), most["levels"]))
        for name in LANGEVIN if isinstance(entries.get(name), list)
    }} for entries in stages]  # fmt: skip


def student(runs: int) -> list[float]:
    """Quantiles of 97.5 % of Student's t distribution for 1, 2, ... degrees of freedom, as the means of some runs need."""
    from scipy.special import stdtrit

    return [round(float(value), 4) for value in stdtrit(np.arange(1, max(runs, 2)), 0.975)]
