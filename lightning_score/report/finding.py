"""Finds all runs below a folder, with the evaluations of their checkpoints, and all sweeps."""

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_score.report.reading import Run, folder_name, read_run, run_state
from lightning_score.runs.folders import leads_out
from lightning_score.runs.records import FILE as RECORDS
from lightning_score.runs.status import STATUS

EVALUATIONS = ("test", "validate", "predict", "evaluate")
"""Commands that write their results to a folder next to their checkpoint."""

SWEEP = {"study.db", "trials.csv", "sweep.yaml"}
"""Files that only the folder of a sweep holds."""
READ = (".yaml", ".csv", ".json", ".jsonl", ".png", ".md", ".log", ".db")
"""Endings of the files that are read."""


class Reader:
    """Reads all runs below a folder again and again; a run whose files have not changed is not read again.

    Args:
        root: the folder of all runs.

    Attributes:
        runs: all runs, the newest first, with evaluations of their checkpoints.
        sweeps: the folders of sweeps, with a value that changes with their files, and every minute while trials are running,
            since these may have been silent.
        seen: what differs whenever a file or the state of a run does.
    """

    def __init__(self, root: Path):
        self._root = root
        self.runs: list[Run] = []
        self.sweeps: dict[Path, Any] = {}
        self.seen: Any = None
        self._read: dict[Path, tuple[Any, Run]] = {}
        self._computed: dict[Path, tuple[Any, Any]] = {}
        self._going: dict[Path, tuple[Any, bool]] = {}

    def look(self) -> "Reader":
        """Reads what has changed."""
        runs: dict[Path, Run] = {}
        evaluations: list[Run] = []
        found, minute = _files(self._root), int(time.time() // 60)
        self._read = {folder: read for folder, read in self._read.items() if folder in found}
        self.sweeps = {
            folder: (files, minute if self._is_going(folder, files.get("trials.csv")) else 0)
            for folder, (files, _) in found.items()
            if files.keys() & SWEEP
        }
        for folder, files in found.items():
            if files[0].keys() & {"config.yaml", "metrics.csv", STATUS, RECORDS}:
                run = self._run(folder, files)
                if _command(run) in EVALUATIONS:
                    evaluations.append(run)
                elif _command(run) != "trials":  # trials without training are shown by their sweep
                    runs[folder.resolve()] = run
        for evaluation in evaluations:
            _attach(evaluation, runs, self._root)
        self.runs = sorted(
            runs.values(), key=lambda run: (-run.started if math.isfinite(run.started) else math.inf, run.name)
        )
        for order, run in enumerate(reversed(self.runs)):
            run.order = order
        self.seen = found, self.sweeps, [(run.state, run.note) for run in self.runs]
        return self

    def once(self, folder: Path, version: Any, compute: Callable[[Path, Path], Any]) -> Any:
        """A result of the files of a sweep, which is computed once while they stay."""
        if self._computed.get(folder, (None, None))[0] != version:
            self._computed[folder] = version, compute(folder, self._root)
        return self._computed[folder][1]

    def _is_going(self, folder: Path, version: Any) -> bool:
        """Whether trials are running by the table of a sweep, which is read again if it has another version."""
        if self._going.get(folder, (None, False))[0] != version:
            text = b""
            with suppress(OSError):
                if not leads_out(folder / "trials.csv", self._root):
                    text = (folder / "trials.csv").read_bytes()
            self._going[folder] = version, b",running," in text
        return version is not None and self._going[folder][1]

    def _run(self, folder: Path, files: Any) -> Run:
        """A run, read again if its files have changed; whether it is still running is that of now."""
        if folder not in self._read or self._read[folder][0] != files:
            self._read[folder] = files, read_run(folder, self._root)
        read = self._read[folder][1]
        run = replace(read, problems=[*read.problems], evaluations=[], pictures={**read.pictures})
        if run.state == "running":
            run.state, run.note = run_state(run)
        return run


def _files(root: Path) -> dict[Path, tuple[dict[str, Any], dict[str, Any]]]:
    """For every folder its files, and those of the folders in it, with time and size."""
    found: dict[Path, tuple[dict[str, Any], dict[str, Any]]] = {}
    for path, folders, names in os.walk(root):
        folder = Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "wandb")
        files: dict[str, Any] = {}
        for name in names:
            if name.endswith(READ):
                with suppress(OSError):  # it was removed meanwhile
                    status = os.stat(f"{path}/{name}")
                    files[name] = status.st_mtime_ns, status.st_size
        found[folder] = files, {}
        if folder.parent in found:
            found[folder.parent][1].update({f"{folder.name}/{name}": files[name] for name in files})
    return found


def _command(run: Run) -> str:
    """The command that wrote a folder; `trials` for trials of sweeps that do not train."""
    parent = run.folder.parent.name
    command = str(run.status.get("command", parent))
    return "trials" if parent == "trials" and (command != "fit" or not run.config) else command


def _attach(evaluation: Run, runs: dict[Path, Run], root: Path) -> None:
    """Adds the results of an evaluation to the run of its checkpoint."""
    asked = evaluation.settings.get("ckpt_path")
    places = [evaluation.folder.parent.parent, *([Path(asked).parent] if isinstance(asked, str) else [])]
    run = next((runs[place.resolve()] for place in places if place.resolve() in runs), None)
    if run is None:
        if not evaluation.records:
            return
        name = folder_name(places[0], root)
        run = Run(places[0], name, "measured", config=evaluation.config, settings=evaluation.settings)
        runs[places[0].resolve()] = run
    run.evaluations.append(evaluation.records)
    for kind, pictures in evaluation.pictures.items():
        name = kind if kind == "neighbors" else f"{kind} of {_command(evaluation)}"
        run.pictures[name] = sorted([*run.pictures.get(name, []), *pictures])
    run.problems += [f"{evaluation.folder.name}: {problem}" for problem in evaluation.problems]
