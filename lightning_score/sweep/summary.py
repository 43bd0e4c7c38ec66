"""The results of a sweep as they come in: a live table while it runs, then tables and figures in its folder."""

import math
import os
import shlex
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from optuna.trial import FrozenTrial
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from lightning_score.files import replace_text
from lightning_score.runs.records import SUBSET
from lightning_score.sweep.attempts import ERROR, FOLDER, SETTINGS, SLOT
from lightning_score.sweep.drawing import draw
from lightning_score.sweep.folder import FILE, check_folder, folder_of, make_folder
from lightning_score.sweep.folds import MEANS, SEED, folded, means_csv
from lightning_score.sweep.importance import importances
from lightning_score.sweep.macros import flatten
from lightning_score.sweep.notes import markdown, notes
from lightning_score.sweep.on_wandb import fetch, publish
from lightning_score.sweep.results import ENDED, TABLE, Results
from lightning_score.sweep.rows import Row, format_duration, format_number, measured_fields
from lightning_score.sweep.spec import Sweep, dotted
from lightning_score.sweep.study import METRICS, WORKER, Study
from lightning_score.sweep.trials import MEASURES, SECONDS

SHOWN = 12
"""Number of trials in the live table."""
OF_METRIC = (("jackknife", "without", ()), ("paired", "paired", ""), ("floor_kind", "floor_kind", SUBSET))
"""The same as in MEASURES for the first metric, in attributes of older versions, and what even older ones had."""
LONG = 48
"""Maximal width of a column; longer text is folded."""


def console() -> Console:
    """A console that prints brackets and colons of names and messages as they are, and is wide unless it is a terminal."""
    return Console(width=None if os.isatty(1) else 160, markup=False, emoji=False)


class LiveTable:
    """Shows the best and the running trials; without a terminal, prints a line for every trial that ends.

    Args:
        source: returns the results.

    Attributes:
        live: in which it is refreshed.
    """

    def __init__(self, source: Callable[[], Results]):
        self._source, shown = source, console()
        self.live = Live(console=shown, auto_refresh=False, transient=True) if shown.is_terminal else nullcontext()
        self._printed: set[int] | None = None

    def refresh(self) -> None:
        """Updates the table, or prints the trials that have ended since the last call."""
        found = self._source()
        if isinstance(self.live, Live):
            self.live.update(Group(_table(folded(found), SHOWN), _counts(found)), refresh=True)
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
    result = found.result(row) if row.state != "failed" else f"failed: {row.message}"
    parts = [f"{ended}/{len(found.rows)} trial {row.number}", " ".join(row.texts(found.varied)), result]
    return f"{': '.join(filter(None, parts))} ({format_number(row.seconds)} s)"


def _table(found: Results, most: int | None = None) -> Table:
    """The table of trials; at most so many rows: the best trials and all running ones."""
    titles, lines = found.table()
    table = Table(header_style="bold")
    for i, title in enumerate(titles):
        if i == len(titles) - 1 or max((len(cells[i]) for cells in lines), default=0) > LONG:
            table.add_column(title, max_width=LONG, overflow="fold")
        else:
            table.add_column(title, justify="right", no_wrap=True)
    if most is not None:
        running = [cells for cells in lines if cells[-1].startswith("running")]
        rest = [cells for cells in lines if not cells[-1].startswith(("running", "waiting"))]
        lines = rest[: max(most - len(running), 3)] + running
    for cells in lines:
        table.add_row(*cells)
    return table


def summarize(spec: Sweep, study: Study, folder: Path) -> None:
    """Writes tables and figures into the folder and prints the summary."""
    found = collect_results(spec, study)
    write_summary(found, concluded(spec, found), folder)
    replace_text(folder / FILE, spec.text)


def summarize_wandb(path: str, runs: str) -> None:
    """Does the same for a sweep that W&B has run, in `runs/sweeps/<its id>` and in a new run on W&B."""
    spec, found = fetch(path)
    folder = folder_of(runs, path.rpartition("/")[2])
    check_folder(folder, spec.text, shared=True)
    means = concluded(spec, found)
    make_folder(folder)
    replace_text(folder / FILE, spec.text)
    publish(means, write_summary(found, means, folder), path, folder)


def write_summary(
    found: Results, means: Results, folder: Path, draw: Callable[[Results, Path], list[Path]] = draw
) -> list[Path]:
    """Writes tables and figures and prints the summary; returns the figures.

    Args:
        found: the trials.
        means: the same with one row for all training seeds.
        folder: for the files.
        draw: draws the figures.
    """
    files = {"summary.md": markdown(means), TABLE: found.csv(), **({MEANS: means_csv(means)} if means.folds else {})}
    for name, text in files.items():
        replace_text(folder / name, text)
    drawn = draw(means, folder)
    console().print(_table(means))
    names = ", ".join([*files, *(file.name for file in drawn)])
    print(*notes(means), f"written to {shlex.quote(os.path.relpath(folder))}: {names}", sep="\n", flush=True)
    return drawn


def collect_results(spec: Sweep, study: Study) -> Results:
    """The trials so far."""
    rows = sorted((_row(spec, trial, study.state(trial)) for trial in study.trials()), key=lambda row: row.number)
    return Results.of(spec, rows, study.seed if spec.takes_seed else None)


def concluded(spec: Sweep, found: Results) -> Results:
    """The results with one row for all training seeds, importances and the command of the best trial, which take time."""
    means = folded(found)
    if means.ranked:
        means.importances_of = {each.name: importances(means.by(each)) for each in means.objectives}
        best = means.ranked[0]
        seed = {SEED: best.seeds[0]} if best.seeds else {}
        command = spec.arguments({**best.settings, **seed}).command_line()
        means.again = f"python -m lightning_score {shlex.join(command)}"
    return means


def _row(spec: Sweep, trial: FrozenTrial, state: str) -> Row:
    attributes = trial.user_attrs
    settings = attributes.get(SETTINGS) or {dotted(name): value for name, value in trial.params.items()}
    known = measured_fields(attributes.get(METRICS, {}), spec.objectives, spec.constraints)
    older = {spec.metric: {name: attributes.get(key, default) for name, key, default in OF_METRIC}}
    kept = older | attributes.get(MEASURES, {})
    for name, fields in known["measures"].items():
        fields |= kept.get(name, {})
        fields["jackknife"] = tuple(fields["jackknife"])
    known |= known["measures"].get(spec.metric, {})
    known |= {name: attributes[name] for name in (SECONDS, FOLDER, WORKER) if name in attributes}
    known["started"] = trial.datetime_start.timestamp() if trial.datetime_start else math.nan
    known["message"] = attributes.get(ERROR, "its workers died") if state == "failed" else ""
    return Row(attributes.get(SLOT, trial.number), state, dict(flatten(settings)), **known)
