"""The results of a sweep: its trials as rows, differences with their errors, the Pareto front, tables."""

import csv
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from lightning_score.metrics import jackknife_error
from lightning_score.runs.records import SUBSET, Record, floor_name
from lightning_score.runs.status import STOPPED_EARLY
from lightning_score.sweep.macros import as_text
from lightning_score.sweep.processes import is_dead

TABLE = "trials.csv"
"""The table of trials in a sweep's folder."""
COLUMNS = ("error", "floor", "n", "nfe", "seconds", "folder", "message", "without", "paired", "worker", "floor_kind")
"""Columns after trial, state, settings and metric: fields of a row, `without` is the jackknife; old tables lack the last."""
ENDED = ("complete", STOPPED_EARLY, "failed")
"""States of trials that have ended."""
SILENCE = 120.0
"""Seconds without an update of its table after which a sweep counts as dead."""


@dataclass(frozen=True)
class Row:
    """A trial.

    Attributes:
        number: its place in the queue.
        state: complete, stopped early (by early termination), failed, running, interrupted or waiting.
        settings: by their dotted names.
        value: of the metric, NaN without one.
        error: its standard error, NaN if unknown.
        floor: the value of a perfect model, NaN if unknown.
        n: number of samples, 0 if unknown.
        nfe: network evaluations per sample, NaN if unknown.
        seconds: duration of the trial.
        jackknife: the value without each part of the samples.
        paired: data, features and seeds; the samples of two trials are paired if these are equal.
        folder: the folder of its results.
        message: why it failed.
        worker: the process that ran it, as `host:1234`.
        floor_kind: the kind of floor, as in a `Record`; empty if unknown, for example on W&B.
    """

    number: int
    state: str
    settings: dict[str, Any]
    value: float = math.nan
    error: float = math.nan
    floor: float = math.nan
    n: int = 0
    nfe: float = math.nan
    seconds: float = math.nan
    jackknife: tuple[float, ...] = ()
    paired: str = ""
    folder: str = ""
    message: str = ""
    worker: str = ""
    floor_kind: str = ""

    def text(self, name: str) -> str:
        """A setting as text."""
        return setting_text(self.settings.get(name))

    def texts(self, names: Sequence[str]) -> list[str]:
        """Settings with their names, as `steps=10`."""
        return [f"{short_name(name)}={self.text(name)}" for name in names]


def metric_fields(metrics: Mapping[str, float], metric: str) -> dict[str, Any]:
    """The fields of a row for one metric, from all metrics of a trial."""
    prefix = metric.partition("/")[0]
    return {
        "value": metrics.get(metric, math.nan),
        "error": metrics.get(f"{metric}_error", math.nan),
        "floor": metrics.get(f"{metric}_floor", math.nan),
        "n": int(metrics.get(f"{metric}_n", 0)),
        "nfe": metrics.get(f"{prefix}/nfe", math.nan),
    }


def floors_of(rows: Sequence[Row]) -> list[tuple[float, str]]:
    """The different floors of trials, with their names."""
    return sorted({(row.floor, floor_name(row.floor_kind)) for row in rows if math.isfinite(row.floor)})


@dataclass
class Results:
    """All rows of a sweep.

    Attributes:
        name: of the sweep.
        metric: the metric to optimize.
        maximize: whether larger values are better.
        varied: the names of the parameters with more than one value.
        rows: the trials.
        importances: each parameter's share of the variance of the metric.
        again: the command that runs the best trial again.
    """

    name: str
    metric: str
    maximize: bool
    varied: list[str]
    rows: list[Row]
    importances: dict[str, float] = field(default_factory=dict)
    again: str = ""

    @property
    def ranked(self) -> list[Row]:
        """The complete trials with a finite value, the best first."""
        rows = [row for row in self.rows if row.state == "complete" and math.isfinite(row.value)]
        return sorted(rows, key=lambda row: -row.value if self.maximize else row.value)

    def front(self) -> list[Row]:
        """The Pareto front: no other trial is better or equal in both the metric and network evaluations."""
        found: list[Row] = []
        known = [row for row in self.ranked if math.isfinite(row.nfe)]
        for row in sorted(known, key=lambda row: row.nfe):  # which keeps the best first among equals
            if not found or (row.value > found[-1].value if self.maximize else row.value < found[-1].value):
                found.append(row)
        return found

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Titles and lines: complete trials, the best first, then the others."""
        ranked = self.ranked
        titles = ["trial", *map(short_name, self.varied), self.metric, "+-", "to the best", "+-", "NFE", "seconds", "state"]
        lines = []
        for row in [*ranked, *(row for row in self.rows if row not in ranked)]:
            gap, error = difference(row, ranked[0]) if ranked and row is not ranked[0] else (math.nan, math.nan)
            numbers = map(format_number, (row.value, 2 * row.error, gap, 2 * error, row.nfe, row.seconds))
            state = row.state + (f": {row.message}" if row.message else "")
            lines.append(
                [str(row.number), *(setting_text(row.settings.get(name, "")) for name in self.varied), *numbers, state]
            )
        return titles, lines

    def result(self, row: Row) -> str:
        """The metric of a trial with two standard errors."""
        error = f" +- {format_number(2 * row.error)}" if math.isfinite(row.error) else ""
        return f"{self.metric}={format_number(row.value)}{error}"

    def notes(self) -> list[str]:
        """Lines below the table: importances, the Pareto front, the best trial and its command, and the failures."""
        lines, front, failed = [], self.front(), sum(row.state == "failed" for row in self.rows)
        if self.importances:
            shares = ", ".join(f"{name} {share:.0%}" for name, share in self.importances.items())
            lines.append(f"importance: {shares}")
        if len(front) > 1:
            points = ", ".join(
                f"trial {row.number} ({format_number(row.value)} at {format_number(row.nfe)})" for row in front
            )
            lines.append(f"Pareto front of {self.metric} and network evaluations: {points}")
        for best in self.ranked[:1]:
            floor = f", {floor_name(best.floor_kind)} {format_number(best.floor)}" if math.isfinite(best.floor) else ""
            lines.append(f"best: {self.result(best)}{floor} with {', '.join(best.texts(self.varied))}")
            lines.append(f"again: {self.again}")
        if failed:
            lines.append(f"{failed} of {len(self.rows)} trials failed; --retry_failed runs them again")
        return lines

    def markdown(self) -> str:
        """The results as Markdown."""
        titles, lines = self.table()
        rows = ["| " + " | ".join(cells) + " |" for cells in [titles, ["---"] * len(titles), *lines]]
        errors = "Errors are two standard errors; differences are paired if seeds are equal."
        return "\n\n".join([f"# {self.name}", "\n".join(rows), errors, "\n".join(["```", *self.notes(), "```"])]) + "\n"

    def csv(self) -> str:
        """All rows with all settings as CSV."""
        names = sorted({name for row in self.rows for name in row.settings})
        lines: list[list[Any]] = [["trial", "state", *names, self.metric, *COLUMNS]]
        for row in self.rows:
            fields = {**vars(row), "without": as_text(list(row.jackknife))}
            settings = [as_text(row.settings.get(name, "")) for name in names]
            lines.append([row.number, row.state, *settings, row.value, *(fields[column] for column in COLUMNS)])
        text = io.StringIO()
        csv.writer(text).writerows(lines)
        return text.getvalue()


def read_csv(folder: Path) -> Results:
    """Reads the results from a folder's `trials.csv` and `sweep.yaml`; running trials with dead workers are `interrupted`.

    Raises:
        ValueError: the file is not a table of trials.
        OSError: the file cannot be read.
    """
    with (folder / TABLE).open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        columns = list(table.fieldnames or [])
        after = columns.index("error") if "error" in columns else 0
        if columns[:2] != ["trial", "state"] or after < 3 or not {*COLUMNS[:-3]} <= {*columns}:
            raise ValueError("not a table of trials")
        names, metric = columns[2 : after - 1], columns[after - 1]
        silent = time.time() - (folder / TABLE).stat().st_mtime > SILENCE
        rows = [_from_cells(cells, names, metric, silent) for cells in table]
    maximize = False
    with suppress(OSError, yaml.YAMLError, AttributeError, KeyError, TypeError):
        maximize = yaml.safe_load((folder / "sweep.yaml").read_text(encoding="utf-8"))["metric"].get("goal") == "maximize"
    varied = [name for name in names if len({as_text(row.settings[name]) for row in rows}) > 1]
    return Results(folder.name, metric, maximize, varied, rows)


def _from_cells(cells: Mapping[str, str], names: Sequence[str], metric: str, silent: bool) -> Row:
    value, error, floor, n, nfe, seconds = (
        float(cells[name] or "nan") for name in (metric, "error", "floor", "n", "nfe", "seconds")
    )
    settings = {name: _from_text(cells[name]) for name in names}
    jackknife = tuple(map(float, json.loads(cells.get("without") or "[]")))  # tables of older versions have none
    texts = (cells.get("paired") or "", cells["folder"], cells["message"], cells.get("worker") or "")
    state = STOPPED_EARLY if cells["state"] == "early" else cells["state"]  # the name in older versions
    if state == "running" and (silent or is_dead(texts[-1])):
        state = "interrupted"
    kind = cells.get("floor_kind", SUBSET) or ""
    return Row(int(cells["trial"]), state, settings, value, error, floor, int(n), nfe, seconds, jackknife, *texts, kind)


def _from_text(text: str) -> Any:
    """The inverse of `as_text`, except for strings that are valid JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def leave_one_out(records: Sequence[Record], metric: str) -> tuple[tuple[float, ...], str]:
    """A trial's last value without each part of its samples, and a key that is equal for paired trials.

    The parts are the tenths of the samples of each seed; the value is the mean over seeds.
    """
    found = [r for r in records if r.metric == metric and r.jackknife and r.weights == "ema" and r.denoised]
    if not found:
        return (), ""
    found = [record for record in found if record.step == found[-1].step]
    common = str((*found[0].axis, [record.seed for record in found], found[0].weights))
    if len(found) == 1:
        return tuple(found[0].jackknife), common
    value = fmean(record.value for record in found)
    changes = [(part - fmean(record.jackknife)) / len(found) for record in found for part in record.jackknife]
    return tuple(value + change for change in changes), common


def difference(row: Row, other: Row) -> tuple[float, float]:
    """The difference of two values and its standard error.

    Samples of the same seed use the same random numbers, so much of their errors cancels, and the standard error is the
    jackknife's of the differences. Otherwise the samples are independent.
    """
    gap = row.value - other.value
    if row.jackknife and len(row.jackknife) == len(other.jackknife) and row.paired == other.paired:
        return gap, jackknife_error([one - two for one, two in zip(row.jackknife, other.jackknife, strict=True)])
    return gap, math.hypot(row.error, other.error)


def short_name(name: str) -> str:
    """The last part of a parameter's name, or the last two of a deeper one, such as `grid.steps`."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if len(parts) > 3 else parts[-1]


def setting_text(value: Any) -> str:
    """A setting as short text; a part as its class and arguments: PredictorCorrector(Heun, Karras(steps=9))."""
    if not isinstance(value, Mapping):
        return as_text(value)
    name = str(value.get("class_path", "")).rpartition(".")[2]
    settings = [_argument(argument, part) for argument, part in value.get("init_args", {}).items()]
    return f"{name}({', '.join(settings)})" if settings else name


def _argument(name: str, value: Any) -> str:
    """An argument: numbers with their names, parts without."""
    return f"{name}={as_text(value)}" if isinstance(value, (int, float, list, type(None))) else setting_text(value)


def format_number(value: float) -> str:
    """Three digits, or nothing for NaN."""
    return "" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def format_duration(seconds: float) -> str:
    """42 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def numeric(rows: Sequence[Row], name: str) -> bool:
    """Whether a parameter's values are numbers."""
    values = [row.settings.get(name) for row in rows]
    return bool(values) and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
