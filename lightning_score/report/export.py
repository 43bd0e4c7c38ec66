"""All runs and sweeps as plain data for programs: `report --json` and `report --csv`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_score.files import csv_text
from lightning_score.report.finding import Reader
from lightning_score.report.query import Query
from lightning_score.report.reading import Run, folder_name
from lightning_score.report.sweeps import recording_problem
from lightning_score.report.values import entry_of
from lightning_score.runs.folders import LEADS_OUT, leads_out
from lightning_score.runs.records import Record, finite
from lightning_score.sweep.folds import folded
from lightning_score.sweep.results import TABLE, Results, read_csv
from lightning_score.sweep.rows import Row

FORMAT = 1
"""Of the JSON; another number means that the meaning of a field has changed, new fields do not change it."""


def exported(root: Path, query: str = "") -> dict[str, Any]:
    """All runs, the newest first, and all sweeps below a folder; unknown numbers are None.

    Args:
        root: the folder of all runs.
        query: only these runs, if it is given.

    Raises:
        InputError: the query cannot be read, or names what no run has.
    """
    reader = Reader(root).look()
    runs = [_run(run) for run in reader.runs]
    if query and runs:
        wanted = Query(query, runs)
        runs = [run for run in runs if wanted.matches(run)]
    sweeps = [_sweep(folder, root) for folder in reader.sweeps]
    plain: dict[str, Any] = finite({"format": FORMAT, "root": str(root.absolute()), "runs": runs, "sweeps": sweeps})
    return plain


def _run(run: Run) -> dict[str, Any]:
    return entry_of(run) | {
        "started": run.started,
        "seconds": run.seconds,
        "step": run.step,
        "measurements": [_record(record) for record in run.records],
        "tests": [_record(record) for record in run.tests],
    }


def _record(record: Record) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name != "versions"}


def _sweep(folder: Path, root: Path) -> dict[str, Any]:
    """A sweep; trials that differ only in their seed of training are one row."""
    entry: dict[str, Any] = {
        "name": folder_name(folder, root), "folder": str(folder.absolute()), "problem": "", "objectives": [],
        "constraints": [], "parameters": [], "trials": [], "best": None, "front": [],
    }  # fmt: skip
    if any(leads_out(folder / name, root) for name in (TABLE, "sweep.yaml")):
        return entry | {"problem": f"a file of it {LEADS_OUT}"}
    with recording_problem(entry):
        entry |= _results(folded(read_csv(folder)))
    return entry


def _results(found: Results) -> dict[str, Any]:
    return {
        "objectives": [
            {"name": each.name, "goal": "maximize" if each.maximize else "minimize"} for each in found.objectives
        ],
        "constraints": [str(each) for each in found.constraints],
        "parameters": found.varied,
        "trials": [_trial(row) for row in found.rows],
        "best": next((row.number for row in found.ranked), None),
        "front": [row.number for row in found.front()],
    }


def _trial(row: Row) -> dict[str, Any]:
    names = ("number", "state", "message", "settings", "values", "value", "error", "spread", "feasible", "floor", "n", "nfe",
             "seconds", "folder")  # fmt: skip
    return {name: getattr(row, name) for name in names} | {"seeds": [*row.seeds], "n": row.n or None}


def table_of(runs: Sequence[dict[str, Any]]) -> str:
    """A CSV table with a row per run: its state, its numbers, and its settings as `config.name`."""
    columns = ["name", "state", "step", "seconds", "tags", "archived"]
    numbers = sorted({name for run in runs for name in run["values"]} - {*columns})
    settings = sorted({name for run in runs for name in run["settings"]})
    lines = [[*columns, *numbers, *(f"config.{name}" for name in settings)]]
    for run in runs:
        own = [" ".join(run["tags"]) if name == "tags" else run[name] for name in columns]
        lines.append([*own, *map(run["values"].get, numbers), *map(run["settings"].get, settings)])
    return csv_text(lines)
