"""A sweep that W&B has run: reads its trials, and logs table and figures on W&B."""

import difflib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_score.errors import InputError, require
from lightning_score.runs.folders import check_name
from lightning_score.runs.status import STOPPED_EARLY
from lightning_score.sweep.macros import flatten
from lightning_score.sweep.results import Results
from lightning_score.sweep.rows import Row, measured_fields
from lightning_score.sweep.spec import Sweep, dotted, from_entries

OF_ANOTHER = ("+-", "spread")
"""Titles of columns that belong to the one before."""
STATES = {"finished": "complete", "running": "running", "pending": "waiting", "preempting": "interrupted",
          "preempted": "waiting"}  # fmt: skip
"""States of a run on W&B and here; any other state on W&B is `failed`."""


def fetch(path: str) -> tuple[Sweep, Results]:
    """The sweep of an address, and its trials so far.

    Args:
        path: `entity/project/sweep`.

    Raises:
        InputError: the address is invalid, or the server cannot read this sweep.
    """
    require(path.count("/") == 2, f"--wandb {path}: must be ENTITY/PROJECT/SWEEP, which `wandb sweep` prints")
    check_name(path.rpartition("/")[2], "--wandb ENTITY/PROJECT/SWEEP:")
    import wandb

    try:
        found = wandb.Api().sweep(path)
        entries, runs = dict(found.config), list(found.runs)
    except Exception as error:  # the server's, the network's and W&B's own
        raise InputError(f"--wandb {path}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    text = f"# W&B: {path}\n{yaml.safe_dump(entries, sort_keys=False)}"
    sweep = from_entries(_without_scheduler(entries, runs), path, text, path.rpartition("/")[2])
    metric = sweep.metric or ""
    require(bool(metric), f"--wandb {path}: this sweep has no metric, so it has no results")
    logged = {name for run in runs for name in _numbers(run)}
    near = difflib.get_close_matches(metric, logged, 1, 0.3)
    hint = f"; did you mean {near[0]}?" if near else ""
    require(metric in logged or not logged, f"--wandb {path}: no trial has logged the metric {metric}{hint}")
    rows = [_row(sweep, number, run) for number, run in enumerate(runs)]
    return sweep, Results.of(sweep, rows)


def _without_scheduler(entries: dict[str, Any], runs: Sequence[Any]) -> dict[str, Any]:
    """The entries of a sweep whose settings W&B's scheduler has drawn, with the values that its trials have had; the user's
    code is not run.
    """
    kept = {name: value for name, value in entries.items() if name != "scheduler"}
    if "scheduler" not in entries:
        return kept
    had: dict[str, dict[str, Any]] = {}
    for run in runs:
        for name, value in run.config.items():
            if "." in name:
                had.setdefault(name, {})[json.dumps(value)] = value
    given = entries.get("parameters") or {name: {"values": [*values.values()]} for name, values in had.items()}
    return {**kept, "method": "random", "parameters": given}


def _numbers(run: Any) -> dict[str, float]:
    """The metrics of a trial."""
    return {name: value for name, value in dict(run.summary).items() if isinstance(value, (int, float))}


def _row(sweep: Sweep, number: int, run: Any) -> Row:
    fields, summary = measured_fields(_numbers(run), sweep.objectives, sweep.constraints), dict(run.summary)
    state = STATES.get(run.state, "failed")
    if state == "complete" and summary.get("state") == STOPPED_EARLY:
        state = STOPPED_EARLY
    elif state == "complete" and not math.isfinite(fields["value"]):
        state = "failed"
    laws = {dotted(name): law for name, law in sweep.parameters.items()}
    given = {name: _setting(run.config, name) if name in sweep.varied else law.examples()[0] for name, law in laws.items()}
    other = [name for name in sweep.varied if given.get(name) is None and name not in run.config]  # of another branch
    given = {name: value for name, value in given.items() if name not in other}
    message = str(summary.get("error", run.state)) if state == "failed" else ""
    seconds = summary.get("_runtime", math.nan)
    return Row(number, state, dict(flatten(given)), seconds=seconds, folder=run.url, message=message, **fields)


def _setting(config: dict[str, Any], name: str) -> Any:
    """A setting by its dotted name; on W&B it is one key, or nested mappings for nested parameters."""
    if name in config:
        return config[name]
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def publish(found: Results, files: Sequence[Path], path: str, folder: Path) -> None:
    """Logs table and figures in a new run of the project.

    Args:
        found: the results.
        files: the figures.
        path: `entity/project/sweep`.
        folder: for W&B's files.
    """
    import wandb

    entity, project, identity = path.split("/")
    titles, lines = found.table()
    settings, name = wandb.Settings(silent=True), f"{found.name} ({identity}) summary"
    with wandb.init(entity, project, str(folder), name=name, job_type="sweep summary", settings=settings) as run:
        pictures = {f"sweep/{file.stem}": wandb.Image(str(file), caption=f"{found.name}: {file.stem}") for file in files}
        columns = [_column(cells) for cells in zip(*lines, strict=True)]
        table = wandb.Table(columns=[*_unique(titles)], data=[[*line] for line in zip(*columns, strict=True)])
        run.log({"sweep/trials": table, **pictures})
        run.summary.update(_summary(found))
        print(f"on W&B: {run.url}")


def _summary(found: Results) -> dict[str, Any]:
    """The best value of each objective, with its standard error and, over training seeds, their spread and number."""
    known: dict[str, Any] = {}
    for objective in found.objectives:
        best = f"best {objective.name}" if len(found.objectives) > 1 else "best"
        for row in found.by(objective).ranked[:1]:
            numbers = {best: row.value, f"{best} error": row.error, f"{best} spread": row.spread}
            known |= {name: value for name, value in numbers.items() if math.isfinite(value)}
            known |= {f"{best} trial": row.folder, **({f"{best} seeds": len(row.seeds)} if row.seeds else {})}
    return known


def _unique(titles: Sequence[str]) -> list[str]:
    """Titles that differ, for a table on W&B: errors and spreads with the name of what they belong to."""
    whole: list[str] = []
    for title in titles:
        owner = next((each for each in reversed(titles[: len(whole)]) if each not in OF_ANOTHER), "")
        whole.append(f"{owner} {title}" if title in OF_ANOTHER else title)
    return whole


def _column(cells: Sequence[str]) -> list[Any]:
    """A column of a table on W&B, which has one type: numbers if all cells are, else text; empty cells are None."""
    try:
        return [float(cell) if cell else None for cell in cells]
    except ValueError:
        return [cell or None for cell in cells]
