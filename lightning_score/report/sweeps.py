"""The sweeps of the page as data: their trials, objectives, parameters and importances, which sweeps.js draws."""

import math
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from lightning_score.errors import InputError, one_line
from lightning_score.report.figures import rounded
from lightning_score.report.reading import Run, folder_name, last_lines, read_run
from lightning_score.report.tables import with_two_errors
from lightning_score.runs.folders import LEADS_OUT, leads_out
from lightning_score.sweep.charts import values_of
from lightning_score.sweep.folds import SEED, fold_key, folded
from lightning_score.sweep.fronts import hypervolumes
from lightning_score.sweep.importance import MOST, importances
from lightning_score.sweep.results import ENDED, TABLE, Results, read_csv
from lightning_score.sweep.rows import Row, difference, floors_of, numeric, short_name
from lightning_score.sweep.spec import Sweep, from_entries

DETAILED = 12
"""Number of the best trials whose pictures and logs are on the page; those of running and failed trials have their logs."""
TAIL = 3000
"""Maximal number of characters of a log."""


def sweep_data(folder: Path, root: Path) -> tuple[dict[str, Any], list[Run]]:
    """A sweep for the page, or the reason why it cannot be read; and a run for each trial with pictures.

    Args:
        folder: of the sweep.
        root: the folder of all runs.
    """
    entry: dict[str, Any] = {"name": folder_name(folder, root), "problem": "", "text": "", "trials": []}
    files = [folder / file for file in (TABLE, "sweep.yaml", "summary.md")]
    if any(leads_out(file, root) for file in files):
        return entry | {"problem": f"a file of it {LEADS_OUT}"}, []
    pictured: list[Run] = []
    with recording_problem(entry):
        read = read_csv(folder)
        found = folded(read)
        entry |= _overview(found, folder)
        numbers = [each["name"] for each in entry["parameters"] if each["texts"] is None]
        entry["trials"] = [_trial(found, row, numbers) for row in found.rows]
        pictured = _details(entry["trials"], found, folder, root)
        if found is not read:
            _add_members(entry["trials"], read, folder, root)
    shown = [file for file in files[1:] if file.is_file()]
    entry["text"] = "".join(f"# {file.name}\n\n{file.read_text(encoding='utf-8', errors='replace')}\n" for file in shown)
    return entry, pictured


@contextmanager
def recording_problem(entry: dict[str, Any]) -> Iterator[None]:
    """Adds to the entry of a sweep why its trials cannot be read."""
    try:
        yield
    except FileNotFoundError:
        entry["problem"] = "it has no table of trials yet"
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        entry["problem"] = f"its {TABLE} cannot be read ({one_line(error, 160)})"


def _overview(found: Results, folder: Path) -> dict[str, Any]:
    """What holds for all trials."""
    ended = sum(row.state in ENDED for row in found.rows)
    states = {row.state for row in found.rows}
    state = "running" if "running" in states else "finished" if ended == len(found.rows) else "interrupted"
    shares = [importances(found.by(objective)) for objective in found.objectives]
    return {
        "state": state,
        "ended": ended,
        "total": len(found.rows),
        "when": (folder / TABLE).stat().st_mtime,
        "summary": _summary(found, ended),
        "objectives": [_objective(found, objective.name, objective.maximize) for objective in found.objectives],
        "parameters": [_parameter(found, name, shares) for name in found.varied],
        "method": "PED-ANOVA" if len(found.ranked) > MOST else "functional ANOVA",
        "hypervolume": _hypervolume(found),
    }


def _summary(found: Results, ended: int) -> str:
    """A sentence about the best trial."""
    counts = f"{ended} of {len(found.rows)} trials have ended."
    if not found.ranked:
        return counts
    best = found.ranked[0]
    settings = ", ".join(
        f"{short_name(name)}={_brief(best, name)}" for name in found.varied if best.settings.get(name, "") != ""
    )
    value = with_two_errors(best.value, best.error)
    return f"{counts} Best: trial {best.number}, {found.metric} {value}{f' with {settings}' if settings else ''}."


def _brief(row: Row, name: str) -> str:
    """A setting as text, a real number with four digits."""
    value = row.settings[name]
    return f"{value:.4g}" if isinstance(value, float) else row.text(name)


def _objective(found: Results, name: str, maximize: bool) -> dict[str, Any]:
    floors = floors_of([row.of(name) for row in found.ranked])
    floor = [float(f"{floors[0][0]:.5g}"), floors[0][1]] if len(floors) == 1 else None
    return {"name": name, "maximize": maximize, "floor": floor}


def _parameter(found: Results, name: str, shares: Sequence[dict[str, float]]) -> dict[str, Any]:
    """A parameter with its choices in order, unless its values are numbers."""
    rows = [row for row in found.rows if row.settings.get(name, "") != ""]  # waiting ones have none, nor other branches
    texts = None if numeric(rows, name) else values_of(rows, name)
    own = [round(each[name], 4) if name in each else None for each in shares]
    return {"name": name, "title": short_name(name), "texts": texts, "importances": own}


def _hypervolume(found: Results) -> dict[str, Any] | None:
    """The hypervolume after each complete trial, and its reference point; None if no trial satisfies the constraints."""
    rows = sorted(found.measured, key=lambda row: row.number)
    if len(found.objectives) < 2 or not any(row.feasible for row in rows):
        return None
    volumes, reference = hypervolumes(rows, found.objectives, found.constraints)
    return {"numbers": [row.number for row in rows], "values": rounded(volumes), "reference": rounded(reference)}


def _trial(found: Results, row: Row, numbers: Sequence[str]) -> dict[str, Any]:
    """A trial without what it lacks; `gap` is the difference to the best trial; errors are single standard errors.

    Args:
        found: the results.
        row: the trial.
        numbers: the parameters whose values are numbers.
    """
    rows = [row.of(objective.name) for objective in found.objectives]
    best = next(iter(found.ranked), row)
    gap = difference(row, best) if row is not best and math.isfinite(row.value) else (math.nan, math.nan)
    names = ("gap", "gapError", "nfe", "seconds", "spread")
    entry = {
        "number": row.number,
        "state": row.state,
        "settings": [_setting(row, name, name in numbers) for name in found.varied],
        "values": rounded(each.value for each in rows),
        "errors": rounded(each.error for each in rows),
        **dict(zip(names, rounded((*gap, row.nfe, row.seconds, row.spread)), strict=True)),
        "started": row.started if math.isfinite(row.started) else None,
        "seeds": list(row.seeds),
        "planned": row.planned if row.planned > 1 else None,
        "infeasible": row.state == "complete" and not row.feasible,
        "worker": row.worker,
        "message": row.message,
    }
    return {key: value for key, value in entry.items() if value is not None and value is not False and value not in ("", [])}


def _setting(row: Row, name: str, number: bool) -> float | str | None:
    """A number, whole ones with all digits, a choice as text, or None."""
    value = row.settings.get(name, "")
    if value == "":
        return None
    if number:
        return value if isinstance(value, int) else rounded([value])[0]
    return row.text(name)


def _details(trials: list[dict[str, Any]], found: Results, folder: Path, root: Path) -> list[Run]:
    """Adds to the trials their commands, logs and the names of their runs; returns the best ones that only sample with
    their pictures, in the order of the trials that get the key `pictures`.
    """
    spec, best = _spec(folder), {row.number for row in found.ranked[:DETAILED]}
    pictured = []
    for trial, row in zip(trials, found.rows, strict=True):
        own = _folder_of(row, folder)
        trial |= {"again": _again(spec, row), "run": folder_name(own, root)}
        if row.number in best or row.state in ("failed", "running"):
            trial["log"] = _tail(own.with_suffix(".log"), root)
        if row.number in best and own.is_dir():
            run = read_run(own, root)
            if run.status.get("command") != "fit" and run.pictures:
                trial["pictures"] = {}
                pictured.append(run)
    return pictured


def _folder_of(row: Row, folder: Path) -> Path:
    """The folder of a trial where its sweep is now."""
    return folder / "trials" / (Path(row.folder).name.strip(".") or "none")


def _spec(folder: Path) -> Sweep | None:
    """The sweep of a folder, if its file is valid."""
    with suppress(InputError, OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        text = (folder / "sweep.yaml").read_text(encoding="utf-8")
        return from_entries(yaml.safe_load(text), "sweep.yaml", text, folder.name)
    return None


def _again(spec: Sweep | None, row: Row) -> str:
    """The command that runs a trial again; of several training seeds the first; empty if unknown."""
    settings = {name: value for name, value in row.settings.items() if value != ""}
    if spec is None or not settings:
        return ""
    with suppress(InputError):
        seed = {SEED: row.seeds[0]} if row.seeds else {}
        return f"python -m lightning_score {shlex.join(spec.arguments(settings | seed).command_line())}"
    return ""


def _tail(log: Path, root: Path) -> str:
    """The end of a log; empty if there is none that can be read."""
    with suppress(OSError):
        return "" if leads_out(log, root) else "\n".join(last_lines(log))[-TAIL:]
    return ""


def _add_members(trials: list[dict[str, Any]], read: Results, folder: Path, root: Path) -> None:
    """Adds to the rows of several training seeds their single trials."""
    members: dict[str, list[dict[str, Any]]] = {}
    for row in read.rows:
        single = _trial(read, row, ()) | {"seed": row.settings.get(SEED), "run": folder_name(_folder_of(row, folder), root)}
        single = {key: value for key, value in single.items() if key not in ("settings", "gap", "gapError")}
        members.setdefault(fold_key(row), []).append(single)
    for trial, singles in zip(trials, members.values(), strict=True):  # `folded` keeps their order
        if len(singles) > 1:
            trial["members"] = singles
