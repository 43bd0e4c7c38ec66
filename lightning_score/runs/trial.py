"""The W&B run of this process, and the trial of a W&B sweep that it may be; imports W&B only where there is one."""

import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_score.errors import one_line

if TYPE_CHECKING:
    from wandb import Run

SETTINGS: dict[str, Any] = {
    "silent": True,
    "init_timeout": 15.0,
    "finish_timeout": 60.0,
    "finish_timeout_raises": True,
}  # WANDB_SILENT=false, ... beat these
TERMINATED = 143
"""The exit code of a process that SIGTERM has ended, as a shell reports it."""
started: set[str] = set()  # ids of the W&B runs that this process started


def in_trial() -> bool:
    """Whether this process is a trial of a sweep that a W&B agent runs."""
    return "WANDB_SWEEP_ID" in os.environ


@cache
def stopped_by_wandb() -> bool:
    """Whether W&B has asked for the end of this trial, as early termination does; else another signal has ended it, as when
    SLURM preempts a job, and W&B must hand the trial out again. True if W&B does not say.
    """
    import wandb

    query = (
        "query Stopped($e: String, $p: String, $r: String!) {"
        " project(name: $p, entityName: $e) { run(name: $r) { stopped } } }"
    )
    try:
        run = wandb.run
        names = {"e": run.entity, "p": run.project, "r": run.id} if run else {}
        found: Any = wandb.Api()._service_api.execute_graphql(query, variables=names)
        return bool(found["project"]["run"]["stopped"])
    except Exception:
        return True


def fail_trial(message: str, code: int, terminated: bool = False) -> None:
    """Marks the W&B run of a trial that failed before training as failed, with the error; does nothing outside of a sweep.

    Args:
        message: the error.
        code: exit code of the process.
        terminated: whether SIGTERM has ended it; W&B hands it out again unless it sent the signal itself.
    """
    if not in_trial():
        return
    import lightning_score.lean_imports  # noqa: F401

    import wandb
    from lightning.pytorch.utilities import rank_zero_only

    if vars(rank_zero_only)["rank"]:
        return

    if terminated and started and wandb.run is None:  # its logger has finished it
        return
    with suppress(Exception):  # the error itself is printed in any case
        run = wandb.run or wandb.init(settings=wandb.Settings(**SETTINGS))
        if terminated and not stopped_by_wandb():
            run.mark_preempting()
        else:
            run.summary["error"] = message
        run.finish(exit_code=code)


def finish_run(code: int | None = None) -> None:
    """Finishes the W&B run of this process, if it is open; prints how to upload it if that fails.

    Args:
        code: exit code of the process; None: as W&B knows it.
    """
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None or wandb.run.id not in started:
        return
    again = upload_command(wandb.run)
    try:
        wandb.run.finish(exit_code=code)
    except Exception as error:
        print_line(f"the run is not uploaded ({one_line(error, 160)}); to upload it later: {again}")


def upload_command(run: "Run") -> str:
    """The command that uploads a run later; its folder as an absolute or relative path, whichever is shorter."""
    folder = Path(run.dir).parent
    online = "" if run.offline else "--no-skip-online "  # a run that began online, which `wandb sync` alone leaves out
    return f"wandb sync {online}{min(str(folder), os.path.relpath(folder), key=len)}"


def print_line(message: str) -> None:
    """One line on the standard error."""
    print(f"W&B: {message}", file=sys.stderr)
