"""The terminal output of a sweep: a live table while it runs, and the summary."""

import os
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from lightning_score.runs.records import floor_name
from lightning_score.sweep.results import ENDED, Results, Row, format_duration, format_number

SHOWN = 12
"""Number of trials in the live table."""
LONG = 48
"""Maximal width of a column; longer text is folded."""


class LiveTable:
    """Shows the best and the running trials; without a terminal, prints a line for every trial that ends.

    Args:
        source: returns the results.
    """

    def __init__(self, source: Callable[[], Results]):
        self._source, self._console = source, Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=True) if self._console.is_terminal else None
        self._printed: set[int] | None = None

    def __enter__(self) -> "LiveTable":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._live is not None:
            self._live.stop()

    def refresh(self) -> None:
        """Updates the table, or prints the trials that have ended since the last call."""
        found = self._source()
        if self._live is not None:
            self._live.update(Group(_table(found, SHOWN), _counts(found)), refresh=True)
            return
        ended = [row for row in found.rows if row.state in ENDED]
        if self._printed is None:
            self._printed = {row.number for row in ended}
        for row in ended:
            if row.number not in self._printed:
                self._printed.add(row.number)
                print(_line(found, row, len(ended)), flush=True)


def _counts(found: Results) -> str:
    states = Counter(row.state for row in found.rows)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    seconds = [row.seconds for row in found.rows if row.state == "complete"]
    left = states["waiting"] + states["running"] / 2
    if not seconds or not left:
        return counts
    return f"{counts}; about {format_duration(left * sum(seconds) / len(seconds) / max(states['running'], 1))} to go"


def _line(found: Results, row: Row, ended: int) -> str:
    settings = " ".join(row.texts(found.varied))
    error = f" +- {format_number(2 * row.error)}" if format_number(row.error) else ""
    result = f"{found.metric}={format_number(row.value)}{error}" if row.state != "failed" else f"failed: {row.message}"
    return f"{ended}/{len(found.rows)} trial {row.number}: {settings}: {result} ({format_number(row.seconds)} s)"


def _table(found: Results, most: int | None) -> Table:
    titles, lines = found.table()
    table = Table(title=None, header_style="bold")
    for i, title in enumerate(titles):
        if i == len(titles) - 1 or max((len(cells[i]) for cells in lines), default=0) > LONG:
            table.add_column(title, max_width=LONG, overflow="fold")
        else:
            table.add_column(title, justify="right", no_wrap=True)
    for cells in lines if most is None else _top_rows(lines, most):
        table.add_row(*cells)
    return table


def _top_rows(lines: list[list[str]], most: int) -> list[list[str]]:
    """The best trials and all running ones."""
    running = [cells for cells in lines if cells[-1] == "running"]
    rest = [cells for cells in lines if cells[-1] not in ("running", "waiting")]
    return rest[: max(most - len(running), 3)] + running


def print_results(found: Results, folder: Path, drawn: list[str]) -> None:
    """Prints the summary."""
    width = None if os.isatty(1) else 160
    Console(width=width).print(_table(found, None))
    if found.importances:
        print(f"importance: {', '.join(f'{name} {share:.0%}' for name, share in found.importances.items())}")
    front = found.front()
    if len(front) > 1:
        points = ", ".join(f"trial {row.number} ({format_number(row.value)} at {format_number(row.nfe)})" for row in front)
        print(f"Pareto front of {found.metric} and network evaluations: {points}")
    if found.ranked:
        best = found.ranked[0]
        settings = ", ".join(best.texts(found.varied))
        error = f" +- {format_number(2 * best.error)}" if format_number(best.error) else ""
        floor = f", {floor_name(best.floor_kind)} {format_number(best.floor)}" if format_number(best.floor) else ""
        print(f"best: {found.metric}={format_number(best.value)}{error}{floor} with {settings}")
        print(f"again: {found.commands[best.number]}")
    failed = sum(row.state == "failed" for row in found.rows)
    if failed:
        print(f"{failed} of {len(found.rows)} trials failed; --retry_failed runs them again")
    files = ", ".join(["summary.md", "trials.csv", *drawn])
    print(f"written to {shlex.quote(os.path.relpath(folder))}: {files}", flush=True)
