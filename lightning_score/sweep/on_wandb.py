"""A sweep that W&B has run: reads its trials, and logs table and figures on W&B."""

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_score.errors import InputError, require
from lightning_score.runs.folders import check_name
from lightning_score.runs.status import STOPPED_EARLY
from lightning_score.sweep.results import Results, Row, flat_settings, metric_fields
from lightning_score.sweep.spec import Sweep, dotted, from_entries

STATES = {"finished": "complete", "running": "running", "pending": "waiting"}
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
    sweep = from_entries(entries, path, text, path.rpartition("/")[2])
    require(sweep.metric is not None, f"--wandb {path}: this sweep has no metric, so it has no results")
    logged = {key for run in runs for key, value in dict(run.summary).items() if isinstance(value, (int, float))}
    near = difflib.get_close_matches(sweep.metric, logged, 1, 0.3)
    require(
        sweep.metric in logged or not logged,
        f"--wandb {path}: no trial has logged the metric {sweep.metric}{f'; did you mean {near[0]}?' if near else ''}",
    )
    rows = [_row(sweep, number, run) for number, run in enumerate(runs)]
    return sweep, Results(sweep.name, sweep.metric, sweep.maximize, sweep.varied, rows)


def _row(sweep: Sweep, number: int, run: Any) -> Row:
    summary = dict(run.summary)
    fields = metric_fields({key: value for key, value in summary.items() if isinstance(value, (int, float))}, sweep.metric)
    state = STATES.get(run.state, "failed")
    if state == "complete" and summary.get("state") == STOPPED_EARLY:
        state = STOPPED_EARLY
    elif state == "complete" and not math.isfinite(fields["value"]):
        state = "failed"
    given: dict[str, Any] = {}
    for keys, law in sweep.parameters.items():
        name = dotted(keys)
        given[name] = _setting(run.config, name) if name in sweep.varied else law.examples()[0]
    message = str(summary.get("error", run.state)) if state == "failed" else ""
    seconds = summary.get("_runtime", math.nan)
    return Row(number, state, flat_settings(given), seconds=seconds, folder=run.url, message=message, **fields)


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
    settings = wandb.Settings(silent=True)
    with wandb.init(
        entity=entity,
        project=project,
        name=f"{found.name} ({identity}) summary",
        job_type="sweep summary",
        settings=settings,
        dir=str(folder),
    ) as run:
        pictures = {f"sweep/{file.stem}": wandb.Image(str(file), caption=f"{found.name}: {file.stem}") for file in files}
        table = wandb.Table(columns=titles, data=[[_cell(cell) for cell in line] for line in lines])
        run.log({"sweep/trials": table, **pictures})
        if found.ranked:
            run.summary["best"] = found.ranked[0].value
            run.summary["best trial"] = found.ranked[0].folder
        print(f"on W&B: {run.url}")


def _cell(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text or None
