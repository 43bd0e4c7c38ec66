"""The tables of the report: runs with their best and last distances, and evaluations after training."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning_score.report.figures import measures
from lightning_score.report.reading import Run
from lightning_score.report.standings import mean_over_seeds
from lightning_score.runs.records import PERFECT, Record, as_number, described
from lightning_score.sweep.rows import format_duration, format_number

Cell = list[Any]
"""What a cell is sorted by, and its text."""
UNKNOWN: Cell = [None, ""]

COLUMNS = {
    "run": "the run folder",
    "state": "the state of the run",
    "steps": "training steps done",
    "duration": "duration of the run; in hours in the CSV file",
}
"""Columns of the table of runs, with explanations; measures come after the state, and settings at the end."""
SHOWN = 8
"""Number of differing settings in the table at first; other columns are hidden."""
MEASURES = 8
"""Number of measures in the table of tests at first."""
PRIVATE = ("output", "runs", "name", "ckpt_path", "config")
"""Settings of files and names, which do not change results."""


def table(titles: Iterable[str], rows: Sequence[Sequence[Cell]]) -> dict[str, Any]:
    """A table for the page; columns with numbers sort as numbers."""
    columns = [{"title": title, "number": any(isinstance(row[j][0], (int, float)) for row in rows)}
               for j, title in enumerate(titles)]  # fmt: skip
    return {"columns": columns, "rows": rows}


def plain(value: Any) -> Cell:
    """A cell of text, or of a number with all digits."""
    return [value, str(value)]


def cell(value: Any, text: str | None = None) -> Cell:
    """A cell of a number, with three digits unless there is another text; unknown numbers sort last."""
    number = as_number(value)
    return [float(f"{number:.6g}"), text or format_number(number)] if math.isfinite(number) else UNKNOWN


def steps(value: int) -> Cell:
    """A cell of training steps."""
    return [value, f"{value:,}"]


def with_two_errors(value: float, error: float) -> str:
    """A value with two standard errors as text."""
    return format_number(value) + (f" ± {2 * error:.{2 if 2 * error < 100 else 3}g}" if math.isfinite(error) else "")


def differences(runs: Sequence[Run]) -> list[str]:
    """Settings in which runs differ: the model's first, and the most frequent first."""
    values: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        for name, value in run.settings.items():
            values[name].append(_setting(value)[1])
    differing = [name for name, found in values.items() if len(set(found)) > 1 and name not in PRIVATE]
    parts = ("model", "data", "ema", "trainer", "seed_everything")

    def rank(name: str) -> tuple[Any, ...]:
        part = name.partition(".")[0]
        return parts.index(part) if part in parts else len(parts), -len(values[name]), name.count("."), name

    return sorted(differing, key=rank)


def _setting(value: Any) -> Cell:
    if isinstance(value, float):
        return [value if math.isfinite(value) else str(value), f"{value:.6g}"]
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return [value if math.isfinite(as_number(value)) else text, text]


def runs_table(runs: Sequence[Run]) -> dict[str, Any]:
    """A row per run; the columns have explanations."""
    differing = differences(runs)
    rows = [
        [plain(run.name), plain(run.state), steps(run.step), cell(run.seconds / 3600, format_duration(run.seconds)),
         *(_setting(run.settings.get(name, "")) for name in differing)]
        for run in runs
    ]  # fmt: skip
    hints = [*COLUMNS.values(), *("a setting in which runs differ" for _ in differing)]
    made = table([*COLUMNS, *differing], rows)
    for j, (column, hint) in enumerate(zip(made["columns"], hints, strict=True)):
        column.update(hint=hint, hidden=j >= len(COLUMNS) + SHOWN)
    made["columns"][3]["csv"] = "hours"
    return made


def _floor(record: Record) -> Cell:
    """The cell of a floor; floors of older versions, which are higher, have an asterisk."""
    key, text = cell(record.floor)
    return [key, text if record.floor_kind == PERFECT or not text else f"{text}*"]


def tests_table(runs: Sequence[Run]) -> dict[str, Any]:
    """A row per evaluation after training, and per weights and denoising in it; a column per measure."""
    groups = measures([replace(run, records=run.tests) for run in runs])
    labels = {id(record): label for label, records in groups.items() for _, record in records}
    rows = [
        (run, [record for record in evaluation if (record.weights, record.denoised) == kind])
        for run in runs for evaluation in run.evaluations
        for kind in dict.fromkeys((record.weights, record.denoised) for record in evaluation)
    ]  # fmt: skip
    rows.sort(key=lambda row: str(row[1][0].time), reverse=True)
    errors = [f"{label} ± 2 s.e." for label in groups]
    titles = ["run", *groups, *errors, "floor", "n", "NFE", "weights", "denoised", "sampler", "seeds", "sampling s", "step",
              "when"]  # fmt: skip
    made = table(titles, [_test_row(run, records, labels, list(groups)) for run, records in rows])
    for j, column in enumerate(made["columns"]):
        column["hidden"] = min(MEASURES, len(groups)) < j <= 2 * len(groups)
    return made


def _test_row(run: Run, records: Sequence[Record], labels: Mapping[int, str], titles: Sequence[str]) -> list[Cell]:
    """The row of an evaluation: the means over its seeds; of several measures, the first has the floor and the seconds."""
    of_label = {title: [record for record in records if labels[id(record)] == title] for title in titles}
    found = {title: mean_over_seeds(each) for title, each in of_label.items() if each}
    values = [
        cell(found[title].value, with_two_errors(*found[title][:2])) if title in found else UNKNOWN for title in titles
    ]
    errors = [cell(2 * found[title].error) if title in found else UNKNOWN for title in titles]
    main = of_label[next(iter(found))]
    first = main[0]
    seeds, seconds = ", ".join(str(record.seed) for record in main), sum(record.seconds for record in main)
    return [
        plain(run.name), *values, *errors, _floor(first), cell(first.n), cell(first.nfe), plain(first.weights),
        plain("yes" if first.denoised else "no"), plain(described(first.sampler)), plain(seeds), cell(seconds),
        steps(first.step), [first.time, str(first.time).replace("T", " ").rstrip("Z")],
    ]  # fmt: skip
