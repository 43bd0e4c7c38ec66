"""The results of a sweep: its trials as rows, differences with their errors, the Pareto front, tables."""

import csv
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from lightning_score.files import csv_text
from lightning_score.runs.records import SUBSET
from lightning_score.runs.status import STOPPED_EARLY, is_dead
from lightning_score.sweep.fronts import front_of
from lightning_score.sweep.macros import as_text
from lightning_score.sweep.objectives import Constraint, Objective, read_constraints, read_objectives
from lightning_score.sweep.rows import (
    NFE,
    Row,
    difference,
    format_number,
    metric_names,
    satisfied,
    seeds_text,
    setting_text,
    short_name,
    state_text,
    with_error,
)
from lightning_score.sweep.spec import Sweep

TABLE = "trials.csv"
"""The table of trials in a sweep's folder."""
COLUMNS = ("error", "floor", "n", "nfe", "seconds", "folder", "message", "without", "paired", "worker", "floor_kind",
           "started")  # fmt: skip
"""Columns after trial, state, settings and metric, the fields of a row; old tables lack the last five."""
FURTHER = ("error", "floor", "without", "paired", "floor_kind")
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
        again: the command that runs the best trial again.
        seed: of the draws of the settings; None if none are drawn here.
        objectives: all metrics to optimize; by default the first alone.
        constraints: bounds on metrics.
        importances_of: each parameter's share of the variance of each objective.
        trials: the single trials, if rows are means over training seeds.
    """

    name: str
    metric: str
    maximize: bool
    varied: list[str]
    rows: list[Row]
    again: str = ""
    seed: int | None = None
    objectives: tuple[Objective, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    importances_of: dict[str, dict[str, float]] = field(default_factory=dict)
    trials: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.objectives = self.objectives or (Objective(self.metric, self.maximize),)
        for row in self.rows:
            row.values.setdefault(self.metric, row.value)
            row.measures.setdefault(self.metric, row.measure)

    @classmethod
    def of(cls, sweep: Sweep, rows: list[Row], seed: int | None = None) -> "Results":
        """The results of a sweep."""
        first, aims = (sweep.name, sweep.metric or "", sweep.maximize), (sweep.objectives, sweep.constraints)
        return cls(*first, sweep.varied, rows, "", seed, *aims)

    @property
    def ranked(self) -> list[Row]:
        """The complete trials with a finite value, the best first, those that satisfy the constraints before the others.

        As long as no row for several training seeds is complete: those that have a value.
        """
        known = [row for row in self.rows if math.isfinite(row.value)]
        rows = [row for row in known if row.state == "complete"] or [row for row in known if row.seeds]
        return sorted(rows, key=lambda row: (not row.feasible, -row.value if self.maximize else row.value))

    @property
    def measured(self) -> list[Row]:
        """The ranked trials with a finite value of every objective."""
        names = [objective.name for objective in self.objectives]
        return [row for row in self.ranked if all(math.isfinite(row.of(name).value) for name in names)]

    @property
    def folds(self) -> bool:
        """Whether rows are means over training seeds."""
        return any(row.planned > 1 for row in self.rows)

    @property
    def pairs(self) -> list[tuple[Objective, Objective]]:
        """All pairs of objectives; of one objective and network evaluations if there is only one."""
        return list(combinations(self.objectives if len(self.objectives) > 1 else (*self.objectives, NFE), 2))

    def by(self, objective: Objective) -> "Results":
        """The results with one of the objectives, or network evaluations, as the only one."""
        rows = [row.of(objective.name) for row in self.rows]
        return replace(self, metric=objective.name, maximize=objective.maximize, rows=rows, objectives=(objective,))

    def front(self, *objectives: Objective) -> list[Row]:
        """The Pareto front: the trials that satisfy the constraints and than which no other such trial is better or equal in
        all objectives.

        Args:
            objectives: by default all of the sweep, or the only one and network evaluations.
        """
        chosen = objectives or (self.objectives if len(self.objectives) > 1 else (*self.objectives, NFE))
        return front_of([row for row in self.ranked if row.feasible], chosen)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Titles and lines: complete trials, the best first, then the others; of several objectives the front first."""
        ranked, several, folds = self.ranked, len(self.objectives) > 1, self.folds
        front = self.front() if several else []
        best = ranked[0] if ranked else None
        titles = ["trial", *map(short_name, self.varied)]
        for objective in self.objectives:
            titles += [objective.name, "+-", *(["spread"] if folds else [])]
        titles += [*(["seeds"] if folds else []), *(["front"] if several else ["to the best", "+-"])]
        titles += ["NFE", "seconds", "state"]
        lines = []
        for i, row in enumerate({id(row): row for row in (*front, *ranked, *self.rows)}.values()):
            cells = [str(row.number), *(setting_text(row.settings.get(name, "")) for name in self.varied)]
            for one in (row.of(objective.name) for objective in self.objectives):
                cells += map(format_number, (one.value, 2 * one.error, *([one.spread] if folds else [])))
            cells += [seeds_text(row)] if folds else []
            if several:
                cells += ["yes" if i < len(front) else ""]
            else:
                gap, error = difference(row, best) if best and row is not best else (math.nan, math.nan)
                cells += map(format_number, (gap, 2 * error))
            lines.append([*cells, *map(format_number, (row.nfe, row.seconds)), state_text(row)])
        return titles, lines

    def result(self, row: Row) -> str:
        """The objectives of a trial with two standard errors."""
        return ", ".join(f"{each.name}={with_error(row.of(each.name))}" for each in self.objectives if each.name)

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
        return csv_text(lines)


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
        if columns[:2] != ["trial", "state"] or after < 3 or not {*COLUMNS[:-5]} <= {*columns}:
            raise ValueError("not a table of trials")
        names, metric = columns[2 : after - 1], columns[after - 1]
        objectives, constraints = _aims(folder, metric)
        silent = time.time() - (folder / TABLE).stat().st_mtime > SILENCE
        others = metric_names(objectives, constraints)[1:]
        rows = [_from_cells(cells, names, [metric, *others], silent, constraints) for cells in table]
    drawn = [row for row in rows if any(value != "" for value in row.settings.values())]  # method bayes draws later
    varied = [name for name in names if len({as_text(row.settings[name]) for row in drawn}) > 1]
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
        started=float(cells.get("started") or "nan"),
        values=values,
        measures={metrics[0]: numbers, **{name: _numbers(cells, name, f"{name}_") for name in metrics[1:]}},
        feasible=satisfied(values, constraints),
    )


def _numbers(cells: Mapping[str, str], metric: str, prefix: str) -> dict[str, Any]:
    """The fields of a row for one metric; older tables lack the jackknife."""
    value, error, floor = (float(cells.get(name) or "nan") for name in (metric, f"{prefix}error", f"{prefix}floor"))
    jackknife = tuple(map(float, json.loads(cells.get(f"{prefix}without") or "[]")))
    n, nfe, paired = int(float(cells["n"] or 0)), float(cells["nfe"] or "nan"), cells.get(f"{prefix}paired") or ""
    kind = cells.get(f"{prefix}floor_kind", "" if prefix else SUBSET) or ""
    return {"value": value, "error": error, "floor": floor, "n": n, "nfe": nfe, "jackknife": jackknife, "paired": paired,
            "floor_kind": kind}  # fmt: skip


def _from_text(text: str) -> Any:
    """The inverse of `as_text`, except for strings that are valid JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text
