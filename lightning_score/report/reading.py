"""Reads run folders: finished, running, crashed, empty, from older versions, or with damaged files."""

import csv
import json
import math
import re
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_score.errors import one_line
from lightning_score.report.notes import FILE as NOTES, Notes, read_notes
from lightning_score.report.states import state_of
from lightning_score.runs.console import shown
from lightning_score.runs.folders import CONSOLE, LANGEVIN, LEADS_OUT, SYSTEM, leads_out
from lightning_score.runs.records import FILE as RECORDS, Record, as_number, finite, read_records
from lightning_score.runs.status import STATUS, row_steps
from lightning_score.runs.yaml_files import load

LINES, LONGEST, TAIL = 200, 1000, 200_000
"""How much of a console is shown: lines, letters of one, and bytes of the end of the file that are read."""


class Curve(NamedTuple):
    """A metric over training: steps, seconds since 1970 (NaN if unknown) and values."""

    steps: list[int]
    times: list[float]
    values: list[float]


class Picture(NamedTuple):
    """A picture of a run: its step and its file."""

    step: int
    file: Path


@dataclass
class Run:
    """A training run, or a checkpoint that was only evaluated.

    Attributes:
        folder: the run folder.
        name: its path relative to the folder of all runs.
        state: running, finished, interrupted, failed, stopped early (by a sweep), crashed (it was killed), empty, measured
            (only evaluated here) or unknown.
        note: details of the state.
        problems: messages about files that could not be read.
        config: its configuration as text.
        settings: the configuration by dotted names; the value of a part is its class.
        status: the content of `run.json`.
        curves: by metric.
        records: evaluations during training.
        evaluations: the records of each evaluation after training.
        langevin: lines of `langevin.jsonl`.
        pictures: by kind, in the order of steps.
        notes: tags and notes of a person.
        console: the last lines of `console.log`.
        system: curves of `system.csv`: processors, memory and the like.
        order: its index among all runs, the oldest first, which selects its color.
        computed: what has been computed from its own files alone, by name; it is kept as long as they do not change.
    """

    folder: Path
    name: str
    state: str = "unknown"
    note: str = ""
    problems: list[str] = field(default_factory=list)
    config: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    evaluations: list[list[Record]] = field(default_factory=list)
    langevin: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)
    console: list[str] = field(default_factory=list)
    system: dict[str, Curve] = field(default_factory=dict)
    order: int = 0
    computed: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, compute: Callable[["Run"], Any]) -> Any:
        """A result of the run's own files (not of its tests, state or order), which is computed once while they stay."""
        if name not in self.computed:
            self.computed[name] = compute(self)
        return self.computed[name]

    @property
    def tests(self) -> list[Record]:
        """The records of all evaluations after training."""
        return [record for records in self.evaluations for record in records]

    @property
    def started(self) -> float:
        """Start time in seconds since 1970; NaN if unknown."""
        if "started" in self.status:
            return as_number(self.status["started"])
        with suppress(ValueError, OverflowError):
            return time.mktime(time.strptime(self.folder.name[:19], "%Y-%m-%d_%H-%M-%S"))
        return min(self._times, default=math.nan)

    @property
    def seconds(self) -> float:
        """Duration of the run, or NaN."""
        if "seconds" in self.status:
            return as_number(self.status["seconds"])
        return max(self._times, default=math.nan) - self.started

    @property
    def _times(self) -> list[float]:
        return [t for curve in self.curves.values() for t in curve.times if math.isfinite(t)]

    @property
    def step(self) -> int:
        """The last known training step."""
        seen = [curve.steps[-1] for curve in self.curves.values()]
        return max(int(as_number(self.status.get("step"), 0)), *seen, *(record.step for record in self.records), 0)


def folder_name(folder: Path, root: Path) -> str:
    """The path of a folder relative to that of all runs; for the latter its name."""
    if folder == root:
        return folder.resolve().name
    return str(folder.relative_to(root) if folder.is_relative_to(root) else folder)


def read_run(folder: Path, root: Path) -> Run:
    """Reads a run folder; damaged files become problems of the run."""
    files = ("config.yaml", "metrics.csv", STATUS, RECORDS, LANGEVIN, NOTES, CONSOLE, SYSTEM)
    run = Run(folder, folder_name(folder, root))
    run.problems += [f"{name}: {LEADS_OUT}" for name in files if leads_out(folder / name, root)]
    if run.problems:
        return run
    with _recording_problems(run, "config.yaml"):
        run.config = (folder / "config.yaml").read_text(encoding="utf-8")
        run.settings = dict(flat_config(load(run.config)))
    with _recording_problems(run, STATUS):
        run.status = dict(finite(json.loads((folder / STATUS).read_text(encoding="utf-8"))))
    with _recording_problems(run, "metrics.csv"):
        run.curves = _curves(folder / "metrics.csv", row_steps(folder), run.problems)
    with _recording_problems(run, RECORDS), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.records = [record for record in read_records(folder / RECORDS) if _is_valid(record)]
        run.problems += [str(warning.message).replace(f"{folder}/", "") for warning in caught]
    with _recording_problems(run, LANGEVIN):
        run.langevin = list(_langevin_lines(folder / LANGEVIN, run.problems))
    with _recording_problems(run, CONSOLE):
        run.console = last_lines(folder / CONSOLE)
    with _recording_problems(run, SYSTEM):
        run.system = _curves(folder / SYSTEM, lambda step, validation: step, run.problems)
    with _recording_problems(run, NOTES):
        run.notes = read_notes(folder)
    for file in sorted(folder.glob("*/step_*.png")):
        if (step := re.fullmatch(r"step_(\d+)\.png", file.name)) and leads_out(file, root):
            run.problems.append(f"{file.parent.name}/{file.name}: {LEADS_OUT}")
        elif step:
            run.pictures.setdefault(file.parent.name, []).append(Picture(int(step[1]), file))
    run.state, run.note = run_state(run)
    return run


def run_state(run: Run) -> tuple[str, str]:
    """The state of a run now and details."""
    logged = run.curves or run.records or run.pictures
    return state_of(run.status, run.step, as_number(run.settings.get("trainer.max_steps"), -1), not logged)


def last_lines(file: Path) -> list[str]:
    """The last lines of the text that a terminal would show of a file: without colors and overwritten progress bars."""
    with file.open("rb") as lines:
        lines.seek(max(file.stat().st_size - TAIL, 0))
        text = lines.read().decode("utf-8", errors="replace")
    return [line[:LONGEST] for line in map(shown, text.split("\n")) if line][-LINES:]


@contextmanager
def _recording_problems(run: Run, name: str) -> Iterator[None]:
    """Adds an unreadable file to the problems of the run; a missing file is not a problem."""
    try:
        yield
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, AttributeError, KeyError, csv.Error, yaml.YAMLError, RecursionError) as error:
        run.problems.append(f"{name}: cannot be read ({one_line(error, 160)})")


def _curves(file: Path, steps: Callable[[int, bool], int], problems: list[str]) -> dict[str, Curve]:
    """The metrics of a run; cells that are not numbers are left out and counted."""
    found: dict[str, Curve] = defaultdict(lambda: Curve([], [], []))
    wrong = 0
    with file.open(newline="", encoding="utf-8", errors="replace") as lines:
        table = csv.DictReader(line.replace("\0", "") for line in lines)
        if file.stat().st_size and "step" not in (table.fieldnames or []):
            problems.append(f"{file.name}: has no column `step`; left out")
            return {}
        for row in table:
            try:
                step, when = int(float(row.pop("step"))), float(row.pop("time", "") or "nan")
            except (TypeError, ValueError, OverflowError):
                wrong += 1
                continue
            cells = {name: text for name, text in row.items() if name and text}
            step = steps(step, any(name.startswith("val/") for name in cells))
            for name, text in cells.items():
                try:
                    value = float(text)
                except ValueError:
                    wrong += 1
                    continue
                found[name].steps.append(step)
                found[name].times.append(when)
                found[name].values.append(value)
    if wrong:
        problems.append(f"{file.name}: {wrong} lines or cells are not numbers; left out")
    return dict(found)


def _is_valid(record: Record) -> bool:
    """Whether the fields that are drawn have the right types."""
    numbers = [record.value, record.n, record.step, record.nfe, record.seconds, record.seed]
    texts = (record.metric, record.features_hash, record.resize, record.data_hash, record.split)
    with suppress(TypeError):  # of what is not a list
        numbers += [*record.shape, *record.jackknife]
        are_typed = all(isinstance(value, (int, float)) for value in numbers) and all(
            isinstance(text, str) for text in texts
        )
        return are_typed and isinstance(record.sampler, dict)
    return False


def _langevin_lines(file: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Lines of JSON with lists of one value per noise level."""
    for i, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        with suppress(ValueError, TypeError, KeyError, OverflowError):
            entries = json.loads(line)
            if len({len(entries[name]) for name in ("sigma", "step_size", "snr", "variance_ratio")}) == 1:
                yield entries | {"step": int(entries["step"])}
                continue
        problems.append(f"{file.name}, line {i}: cannot be read; left out")


def flat_config(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A configuration by dotted names; the value of a part is its class name, and its settings are below it."""
    for key, value in config.items() if isinstance(config, dict) else ():
        name = f"{prefix}{key}"
        if name == "trainer.callbacks" and isinstance(value, list):
            yield name, ", ".join(map(_class_name, value))
        elif isinstance(value, dict) and "class_path" in value:
            yield name, _class_name(value)
            yield from flat_config(value.get("init_args"), f"{name}.")
        elif isinstance(value, dict) and value:
            yield from flat_config(value, f"{name}.")
        else:
            yield name, value


def _class_name(part: Any) -> str:
    return str(part["class_path"] if isinstance(part, dict) else part).rpartition(".")[2]
