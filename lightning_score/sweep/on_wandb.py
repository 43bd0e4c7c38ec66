"""A sweep that W&B has run: its trials as rows, and what they tell, back on W&B."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_score.runs import check_name
from lightning_score.sweep.results import Results, Row, measured
from lightning_score.sweep.spec import Sweep, from_entries
from lightning_score.utils import InputError, require

STATES = {"finished": "complete", "running": "running", "pending": "waiting"}
"""What W&B's states of a run are here; every other one is a failure."""


def fetch(path: str) -> tuple[Sweep, Results]:
    """The sweep of an address, and its trials so far.

    Args:
        path: `entity/project/sweep`.

    Raises:
        InputError: the address is no such, or the server has no such sweep.
    """
    require(path.count("/") == 2, f"--wandb {path}: must be ENTITY/PROJECT/SWEEP, as `wandb sweep` prints it")
    check_name(path.rpartition("/")[2], "--wandb ENTITY/PROJECT/SWEEP:")
    import wandb

    try:
        found = wandb.Api().sweep(path)
        entries, runs = dict(found.config), list(found.runs)
    except Exception as error:  # the server's, the network's and W&B's own
        raise InputError(f"--wandb {path}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    sweep = from_entries(entries, path, "", path.rpartition("/")[2])
    require(sweep.metric is not None, f"--wandb {path}: this sweep has no metric, and so no results")
    rows = [_row(sweep, number, run) for number, run in enumerate(runs)]
    return sweep, Results(sweep.name, sweep.metric, sweep.maximize, sweep.varied, rows)


def _row(sweep: Sweep, number: int, run: Any) -> Row:
    summary = {key: value for key, value in dict(run.summary).items() if isinstance(value, (int, float))}
    fields = measured(summary, sweep.metric)
    state = STATES.get(run.state, "failed")
    if state == "complete" and not math.isfinite(fields["value"]):
        state = "failed"
    settings = {name: _setting(run.config, name) for name in sweep.varied}
    message = str(dict(run.summary).get("error", run.state)) if state == "failed" else ""
    return Row(number, state, settings, seconds=summary.get("_runtime", math.nan), folder=run.url, message=message, **fields)


def _setting(config: dict[str, Any], name: str) -> Any:
    """A setting by its dotted name, which W&B keeps whole, or nested for nested parameters."""
    if name in config:
        return config[name]
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def publish(found: Results, files: Sequence[Path], path: str) -> None:
    """Puts table and figures into a run of their own beside the trials.

    Args:
        found: the results.
        files: the figures.
        path: `entity/project/sweep`.
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
