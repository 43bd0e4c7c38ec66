"""The state of a run now, from its files and from the processes of this machine."""

import math
import socket
import time
from typing import Any

import psutil

from lightning_score.runs.records import as_number
from lightning_score.runs.status import STATUS, STOPPED_EARLY, is_dead
from lightning_score.sweep.results import SILENCE

ENDED = ("finished", "interrupted", "failed", STOPPED_EARLY)
"""States that a run writes itself at its end."""
SKEW = 2.0
"""Seconds by which the start of a process, counted from the start of the machine, may be wrong."""


def state_of(status: dict[str, Any], step: int, max_steps: float, is_empty: bool) -> tuple[str, str]:
    """The state of a run and details.

    Args:
        status: the content of its `run.json`.
        step: its last training step.
        max_steps: of its config, -1 if unknown.
        is_empty: whether nothing has been logged.
    """
    state, message = status.get("state"), str(status.get("message") or "")
    if state == "running":
        return _running(status)
    if state in ENDED:
        return str(state), message
    if is_empty:
        return "empty", "nothing has been logged"
    if 0 < max_steps <= step:
        return "finished", f"according to its last step; there is no {STATUS}"
    return "unknown", f"no readable {STATUS}, as in runs of older versions"


def _running(status: dict[str, Any]) -> tuple[str, str]:
    """Running or crashed: on this machine its process tells, elsewhere the time of its last update."""
    updated = as_number(status.get("updated"))
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(updated)) if 0 < updated < 1e11 else "its start"
    silent = not abs(time.time() - updated) < SILENCE  # also true for NaN, and for clocks that differ
    alive = is_alive(status, updated)
    if alive is False or (alive is None and silent):
        return "crashed", f"no update since {since}"
    return "running", f"no update since {since}, but its process exists" if silent else ""


def is_alive(status: dict[str, Any], updated: float) -> bool | None:
    """Whether the process of a status exists; None if it cannot be known, as for another machine.

    A process that began after the last update is another one with the same number.
    """
    host, process = status.get("host"), str(status.get("pid"))
    if host != socket.gethostname() or not process.isdigit():
        return None
    if is_dead(f"{host}:{process}"):
        return False
    begun = process_start(process)
    return None if math.isnan(begun) or math.isnan(updated) else begun <= updated + SKEW


def process_start(process: str) -> float:
    """When a process of this machine started, in seconds since 1970; NaN if it does not exist."""
    try:
        return psutil.Process(int(process)).create_time()
    except psutil.Error:
        return math.nan
