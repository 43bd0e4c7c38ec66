"""Writes and prints the results of a sweep."""

import shlex
import sys
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from lightning_score.files import replace_text
from lightning_score.runs.records import SUBSET
from lightning_score.sweep import figures
from lightning_score.sweep.folder import FILE, check_folder, creating, folder_of
from lightning_score.sweep.on_wandb import fetch, publish
from lightning_score.sweep.results import TABLE, Results, Row, flat_settings, metric_fields
from lightning_score.sweep.spec import Sweep, from_optuna
from lightning_score.sweep.study import ERROR, METRICS, SETTINGS, SLOT, WORKER, Study
from lightning_score.sweep.table import print_results
from lightning_score.sweep.trials import arguments_of
from lightning_score.sweep.worker import FLOOR, FOLDER, JACKKNIFE, PAIRED, SECONDS


def summarize(spec: Sweep, study: Study, folder: Path) -> None:
    """Writes tables and figures into the folder and prints the summary."""
    write_summary(collect_results(spec, study, final=True), folder)
    replace_text(folder / FILE, spec.text)


def summarize_wandb(path: str, runs: str) -> None:
    """Does the same for a sweep that W&B has run, in `runs/sweeps/<its id>` and in a new run on W&B."""

    spec, found = fetch(path)
    folder = folder_of(runs, path.rpartition("/")[2])
    check_folder(folder, spec.text, shared=True)
    if found.ranked:
        found.commands[found.ranked[0].number] = _trial_command(spec, found.ranked[0].settings)
    with creating(folder):
        replace_text(folder / FILE, spec.text)
    publish(found, write_summary(found, folder), path, folder)


def write_summary(found: Results, folder: Path) -> list[Path]:
    """Writes tables and figures and prints the summary; returns the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "summary.md", found.markdown())
    replace_text(folder / TABLE, found.csv())
    drawn = figures.draw(found, folder)
    print_results(found, folder, [file.name for file in drawn])
    return drawn


def collect_results(spec: Sweep, study: Study, final: bool = False) -> Results:
    """The results so far.

    Args:
        spec: the sweep.
        study: its trials.
        final: compute importances and commands, which takes time.
    """
    rows = sorted((_row(spec, trial, study.state(trial)) for trial in study.trials()), key=lambda row: row.number)
    found = Results(spec.name, spec.metric or "", spec.maximize, spec.varied, rows)
    if final and found.ranked:
        found.importances = {from_optuna(name): share for name, share in study.importances().items()}
        best = next(trial for trial in study.trials() if _number(trial) == found.ranked[0].number)
        found.commands[found.ranked[0].number] = _trial_command(spec, best.user_attrs[SETTINGS])
    return found


def _trial_command(spec: Sweep, settings: dict[str, Any]) -> str:
    """The command that runs a trial again."""
    return "python -m lightning_score " + shlex.join(arguments_of(spec, settings))


def _number(trial: FrozenTrial) -> int:
    return trial.user_attrs.get(SLOT, trial.number)


def _row(spec: Sweep, trial: FrozenTrial, state: str) -> Row:
    attributes = trial.user_attrs
    fields = metric_fields(attributes.get(METRICS, {}), spec.metric or "")
    settings = attributes.get(SETTINGS) or {from_optuna(name): value for name, value in trial.params.items()}
    message = attributes.get(ERROR, "its workers died") if state == "failed" else ""
    return Row(
        number=_number(trial),
        state=state,
        settings=flat_settings(settings),
        seconds=attributes.get(SECONDS, float("nan")),
        jackknife=tuple(attributes.get(JACKKNIFE, ())),
        paired=attributes.get(PAIRED, ""),
        folder=attributes.get(FOLDER, ""),
        message=message,
        worker=attributes.get(WORKER, ""),
        floor_kind=attributes.get(FLOOR, SUBSET),
        **fields,
    )


def rerun_command() -> str:
    return "python -m lightning_score " + shlex.join(sys.argv[1:])
