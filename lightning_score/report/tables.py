"""The tables of the report: runs with their best and last distances, and evaluations after training."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lightning_score.report.figures import axis_labels, by_axis_of_runs
from lightning_score.report.reading import Run
from lightning_score.report.sweeps import cell
from lightning_score.runs.records import PERFECT, Record
from lightning_score.sweep.macros import as_text
from lightning_score.sweep.results import format_duration, format_number

SHOWN = 8
"""Number of differing settings in the table at first; other columns are hidden."""
PRIVATE = ("output", "runs", "name", "ckpt_path", "config")
"""Settings of files and names, which do not change results."""


def differences(runs: Sequence[Run]) -> list[str]:
    """Settings in which runs differ: the model's first, and the most frequent first."""
    values: dict[str, set[str]] = {}
    counts: Counter[str] = Counter()
    for run in runs:
        for name, value in run.settings.items():
            if name not in PRIVATE:
                values.setdefault(name, set()).add(_setting(value))
                counts[name] += 1
    differing = [name for name, found in values.items() if len(found) > 1]
    parts = ("model", "data", "ema", "trainer", "seed_everything")

    def rank(name: str) -> tuple[Any, ...]:
        part = name.partition(".")[0]
        return parts.index(part) if part in parts else len(parts), -counts[name], name.count("."), name

    return sorted(differing, key=rank)


def _setting(value: Any) -> str:
    return as_text(value) if isinstance(value, (str, int, float, bool, type(None), list, dict)) else str(value)


def runs_table(runs: Sequence[Run]) -> dict[str, Any]:
    """Titles with explanations, and a row of cells per run, each with a sort key and a text."""
    axes = by_axis_of_runs(runs)
    labels = axis_labels(axes)
    differing = differences(runs)
    columns = [
        ("run", "the run folder"),
        ("state", "the state of the run"),
        ("steps", "training steps done"),
        ("hours", "duration"),
        ("measure", "only values of the same measure are comparable"),
        ("best", "the lowest during training, of averaged weights, with two standard errors"),
        ("at step", "step of the best"),
        ("last", "the last during training, with two standard errors"),
        (
            "floor",
            "the value of a perfect model; *: of an older version, a subset of the data against the rest",
        ),
        ("n", "samples"),
        ("NFE", "network evaluations per sample"),
        ("sampling s", "seconds for all n samples"),
        ("bits/dim", "bits per dimension of held-out data, with two standard errors"),
        *((name, "a setting in which runs differ") for name in differing),
    ]
    rows = [[*_facts(run), *_distances(i, run, axes, labels), _bits(run), *_settings(run, differing)]
            for i, run in enumerate(runs)]  # fmt: skip
    used = [any(row[j][1] for row in rows) for j in range(len(columns))]
    titles = [
        {"title": title, "hint": hint, "number": any(isinstance(row[j][0], (int, float)) for row in rows),
         "hidden": not used[j] or j >= len(columns) - len(differing) + SHOWN}
        for j, (title, hint) in enumerate(columns)
    ]  # fmt: skip
    return {"columns": titles, "rows": rows}


def _facts(run: Run) -> list[list[Any]]:
    known, hours = math.isfinite(run.seconds), run.seconds / 3600
    return [[run.name, run.name], [run.state, run.state], [run.step, f"{run.step:,}"],
            [hours if known else None, format_duration(run.seconds) if known else ""]]  # fmt: skip


def _distances(i: int, run: Run, axes: dict[Any, Any], labels: dict[Any, str]) -> list[list[Any]]:
    """The cells of the run's first measure, in the order of importance."""
    for axis, records in axes.items():
        own = [record for j, record in records if j == i and record.weights == "ema" and record.denoised]
        own = sorted((record for record in own if math.isfinite(record.value)), key=lambda record: record.step)
        if own:
            best, last = min(own, key=lambda record: record.value), own[-1]
            numbers = [_floor(best), *(cell(value) for value in (best.n, best.nfe, last.seconds))]
            return [
                [labels[axis], labels[axis]],
                with_error(best),
                [best.step, f"{best.step:,}"],
                with_error(last),
                *numbers,
            ]
    return [["", ""], *([None, ""] for _ in range(7))]


def _floor(record: Record) -> list[Any]:
    """The cell of a floor; floors of older versions, which are higher, have an asterisk."""
    found = cell(record.floor if isinstance(record.floor, (int, float)) else math.nan)
    return found if record.floor_kind == PERFECT or not found[1] else [found[0], f"{found[1]}*"]


def with_error(record: Record) -> list[Any]:
    """A cell with a value and two standard errors."""
    error = record.error if isinstance(record.error, (int, float)) else math.nan
    return [record.value if math.isfinite(record.value) else None, with_two_errors(record.value, error)]


def with_two_errors(value: float, error: float) -> str:
    """A value with two standard errors as text."""
    return format_number(value) + (f" ± {2 * error:.{2 if 2 * error < 100 else 3}g}" if math.isfinite(error) else "")


def _bits(run: Run) -> list[Any]:
    found = [record for record in run.tests if record.metric == "bits_per_dim"]
    return with_error(max(found, key=lambda record: record.time)) if found else [None, ""]


def _settings(run: Run, names: Sequence[str]) -> list[list[Any]]:
    cells = []
    for name in names:
        value = run.settings.get(name, "")
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        cells.append([value if numeric else _setting(value), _setting(value)])
    return cells


def tests_table(runs: Sequence[Run]) -> dict[str, Any]:
    """Evaluations after training, a row per value."""
    titles = [
        "run",
        "measure",
        "value",
        "floor",
        "n",
        "NFE",
        "weights",
        "denoised",
        "sampler",
        "seed",
        "sampling s",
        "step",
        "when",
    ]
    rows = []
    for run in runs:
        for record in sorted(run.tests, key=lambda record: record.time, reverse=True):
            rows.append([
                [run.name, run.name], [record.metric, record.metric], with_error(record),
                _floor(record), *(cell(value) for value in (record.n, record.nfe)),
                *([each, each] for each in (record.weights, "yes" if record.denoised else "no", _sampler(record.sampler))),
                [record.seed, str(record.seed)], cell(record.seconds), [record.step, f"{record.step:,}"],
                [record.time, str(record.time).replace("T", " ").rstrip("Z")],
            ])  # fmt: skip
    columns = [{"title": title, "number": any(isinstance(row[j][0], (int, float)) for row in rows)}
               for j, title in enumerate(titles)]  # fmt: skip
    return {"columns": columns, "rows": rows}


def _sampler(settings: dict[str, Any]) -> str:
    """A sampler's class with its parts and numbers as text."""
    parts = []
    for name, value in settings.items():
        if isinstance(value, dict) and "class" in value:
            parts.append(_sampler(value))
        elif name != "class" and isinstance(value, (int, float)) and not isinstance(value, bool):
            parts.append(f"{name}={value:g}")
    name = str(settings.get("class", ""))
    return f"{name}({', '.join(parts)})" if parts else name
