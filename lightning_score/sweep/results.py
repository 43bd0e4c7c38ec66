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
from typing import Any

import yaml

from lightning_score.runs.records import SUBSET, floor_name
from lightning_score.runs.status import STOPPED_EARLY
from lightning_score.sweep.macros import as_text
from lightning_score.sweep.objectives import Constraint, Objective, read_constraints, read_objectives
from lightning_score.sweep.processes import is_dead
from lightning_score.sweep.rows import (
    Row,
    difference,
    floors_of,
    format_duration,
    format_number,
    leave_one_out,
    metric_fields,
    metric_names,
    numeric,
    satisfied,
    setting_text,
    short_name,
)

__all__ = ["COLUMNS", "ENDED", "SILENCE", "TABLE", "Results", "Row", "difference", "floors_of", "format_duration",
           "format_number", "leave_one_out", "metric_fields", "numeric", "read_csv", "setting_text",
           "short_name"]  # fmt: skip
TABLE = "trials.csv"
"""The table of trials in a sweep's folder."""
COLUMNS = ("error", "floor", "n", "nfe", "seconds", "folder", "message", "without", "paired", "worker", "floor_kind")
"""Columns after trial, state, settings and metric: fields of a row, `without` is the jackknife; old tables lack the last."""
FURTHER = ("error", "floor", "without", "paired")
"""Columns of each further metric, after its own, as `val/loss_error`."""
ENDED = ("complete", STOPPED_EARLY, "failed")
"""States of trials that have ended."""
SILENCE = 120.0
"""Seconds without an update of its table after which a sweep counts as dead."""


@dataclass
class Results:
    """All rows of a sweep.

    Attributes:
        name: of the sweep.
        metric: the first metric to optimize.
        maximize: whether larger values of it are better.
        varied: the names of the parameters with more than one value.
        rows: the trials.
        importances: each parameter's share of the variance of the metric.
        again: the command that runs the best trial again.
        objectives: all metrics to optimize; by default the first alone.
        constraints: bounds on metrics.
    """

    name: str
    metric: str
    maximize: bool
    varied: list[str]
    rows: list[Row]
    importances: dict[str, float] = field(default_factory=dict)
    again: str = ""
    objectives: tuple[Objective, ...] = ()
    constraints: tuple[Constraint, ...] = ()

    def __post_init__(self) -> None:
        self.objectives = self.objectives or (Objective(self.metric, self.maximize),)
        for row in self.rows:
            row.values.setdefault(self.metric, row.value)

    @property
    def ranked(self) -> list[Row]:
        """The complete trials with a finite value, the best first, those that satisfy the constraints before the others.

        As long as no row for several training seeds is complete: those that have a value.
        """
        known = [row for row in self.rows if math.isfinite(row.value)]
        rows = [row for row in known if row.state == "complete"] or [row for row in known if row.seeds]
        return sorted(rows, key=lambda row: (not row.feasible, -row.value if self.maximize else row.value))

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
        others = metric_names(self.objectives, self.constraints)[1:]
        added = [f"{name}{end}" for name in others for end in ("", *(f"_{part}" for part in FURTHER))]
        added += ["feasible"] if self.constraints else []
        lines: list[list[Any]] = [["trial", "state", *names, self.metric, *COLUMNS, *added]]
        for row in self.rows:
            settings = [as_text(row.settings.get(name, "")) for name in names]
            more = [cell for name in others for cell in (row.values.get(name, ""), *_cells(row.of(name), FURTHER))]
            more += [row.feasible] if self.constraints else []
            lines.append([row.number, row.state, *settings, row.value, *_cells(row, COLUMNS), *more])
        text = io.StringIO()
        csv.writer(text).writerows(lines)
        return text.getvalue()


def _cells(row: Row, columns: Sequence[str]) -> list[Any]:
    fields = {**vars(row), "without": as_text(list(row.jackknife))}
    return [fields[column] for column in columns]


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
        objectives, constraints = _aims(folder, metric)
        silent = time.time() - (folder / TABLE).stat().st_mtime > SILENCE
        others = metric_names(objectives, constraints)[1:]
        rows = [_from_cells(cells, names, [metric, *others], silent, constraints) for cells in table]
    varied = [name for name in names if len({as_text(row.settings[name]) for row in rows}) > 1]
    maximize = bool(objectives) and objectives[0].maximize
    return Results(folder.name, metric, maximize, varied, rows, objectives=objectives, constraints=constraints)


def _aims(folder: Path, metric: str) -> tuple[tuple[Objective, ...], tuple[Constraint, ...]]:
    """Objectives and constraints of the sweep file in a folder; where it is not usable, the metric alone is minimized."""
    with suppress(OSError, yaml.YAMLError, ValueError, AttributeError):
        entries = yaml.safe_load((folder / "sweep.yaml").read_text(encoding="utf-8"))
        objectives = read_objectives(entries)
        if objectives and objectives[0].name == metric:
            return objectives, read_constraints(entries.get("metric_constraints"))
    return (Objective(metric),), ()


def _from_cells(
    cells: Mapping[str, str], names: Sequence[str], metrics: Sequence[str], silent: bool, constraints: Sequence[Constraint]
) -> Row:
    numbers, worker = _numbers(cells, metrics[0], ""), cells.get("worker") or ""
    state = STOPPED_EARLY if cells["state"] == "early" else cells["state"]  # the name in older versions
    if state == "running" and (silent or is_dead(worker)):
        state = "interrupted"
    values = {name: float(cells.get(name) or "nan") for name in metrics}
    return Row(
        int(cells["trial"]),
        state,
        {name: _from_text(cells[name]) for name in names},
        **numbers,
        seconds=float(cells["seconds"] or "nan"),
        folder=cells["folder"],
        message=cells["message"],
        worker=worker,
        floor_kind=cells.get("floor_kind", SUBSET) or "",
        values=values,
        further={name: _numbers(cells, name, f"{name}_") for name in metrics[1:]},
        feasible=satisfied(values, constraints),
    )


def _numbers(cells: Mapping[str, str], metric: str, prefix: str) -> dict[str, Any]:
    """The fields of a row for one metric; older tables lack the jackknife."""
    value, error, floor = (float(cells.get(name) or "nan") for name in (metric, f"{prefix}error", f"{prefix}floor"))
    jackknife = tuple(map(float, json.loads(cells.get(f"{prefix}without") or "[]")))
    n, nfe, paired = int(float(cells["n"] or 0)), float(cells["nfe"] or "nan"), cells.get(f"{prefix}paired") or ""
    return {"value": value, "error": error, "floor": floor, "n": n, "nfe": nfe, "jackknife": jackknife, "paired": paired}


def _from_text(text: str) -> Any:
    """The inverse of `as_text`, except for strings that are valid JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text
