"""Sweeps of one measure in one figure and one table, as of two checkpoints, or of two samplers."""

import ast
import math
import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from lightning_score.errors import InputError, one_line, require
from lightning_score.runs.records import floor_name
from lightning_score.sweep.charts import Chart, by_parameter, pareto_charts
from lightning_score.sweep.drawing import draw_charts
from lightning_score.sweep.folder import make_folder
from lightning_score.sweep.folds import folded
from lightning_score.sweep.history import HISTORY, history
from lightning_score.sweep.results import TABLE, Results, read_csv
from lightning_score.sweep.rows import Row, difference, format_number, with_error
from lightning_score.sweep.summary import console

SWEEP = "sweep"
"""The setting of a row of several sweeps that names its own."""
AXIS = ("metric", "number of samples", "features", "resize", "data", "split of the data", "shape")
"""What makes two measures equal, in the order of a record's axis."""


class Overlay(NamedTuple):
    """Several sweeps together.

    Attributes:
        results: all rows, each with the name of its sweep as a setting.
        charts: by name: each objective against each parameter that they share (the best over all others), Pareto charts,
            and the best result so far.
        titles: of the table.
        lines: of the table, one for each sweep, the best first.
    """

    results: Results
    charts: dict[str, Chart]
    titles: list[str]
    lines: list[list[str]]


def overlay(sweeps: Sequence[Results]) -> Overlay:
    """Sweeps of one measure together.

    Args:
        sweeps: at least two; those of training seeds are folded.

    Raises:
        InputError: their measures differ, or one has no result.
    """
    require(len(sweeps) > 1, "--compare: needs at least two sweeps, as eps,eps_again")
    found = [folded(each) for each in sweeps]
    names = _names([each.name for each in found])
    for name, each in zip(names, found, strict=True):
        require(bool(each.ranked), f"--compare: the sweep {name} has no complete trial yet")
        _check_equal(names[0], found[0], name, each)
    whole = _joined(names, found)
    charts: dict[str, Chart] = {}
    for objective in whole.objectives:
        one = whole.by(objective)
        several = f"{objective.name}: " if len(whole.objectives) > 1 else ""
        for parameter in one.varied[1:]:
            profile = replace(one, varied=[SWEEP, parameter], rows=_profile(one, parameter))
            for name, chart in by_parameter(profile).items():
                if name == parameter:
                    label = f"best {chart.metric.label} over the other settings"
                    charts[several + name] = chart._replace(metric=chart.metric._replace(label=label))
    charts |= pareto_charts(replace(whole, varied=[SWEEP]), colored=True)
    charts[HISTORY] = history(dict(zip(names, found, strict=True)))
    return Overlay(whole, charts, *_table(names, found))


def _names(given: Sequence[str]) -> list[str]:
    """Names that differ."""
    return [name if given.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(given)]


def _joined(names: Sequence[str], found: Sequence[Results]) -> Results:
    """All rows, with the parameters that all sweeps have and that vary in one of them or between them."""
    named = [(name, row) for name, each in zip(names, found, strict=True) for row in each.rows]
    rows = [replace(row, settings={SWEEP: name, **row.settings}) for name, row in named]
    shared = set.intersection(*({key for row in each.rows for key in row.settings} for each in found))
    varied = [key for key in sorted(shared) if len({row.text(key) for row in rows}) > 1]
    return replace(found[0], name=" and ".join(names), varied=[SWEEP, *varied], rows=rows, trials=[], importances_of={})


def _profile(found: Results, parameter: str) -> list[Row]:
    """The best trial of each sweep for each value of a parameter."""
    best: dict[tuple[str, str], Row] = {}
    for row in found.ranked:  # the best first
        best.setdefault((row.text(SWEEP), row.text(parameter)), row)
    return list(best.values())


def _table(names: Sequence[str], found: Sequence[Results]) -> tuple[list[str], list[list[str]]]:
    """The best trial of each sweep, and its difference to the best of all."""
    order = sorted(zip(names, found, strict=True), key=lambda each: each[1].ranked[0].value, reverse=found[0].maximize)
    top = order[0][1].ranked[0]
    lines = []
    for name, each in order:
        best = each.ranked[0]
        gap, error = difference(best, top) if best is not top else (math.nan, math.nan)
        numbers = map(format_number, (gap, 2 * error, best.nfe))
        lines.append([name, str(len(each.ranked)), with_error(best), *numbers, ", ".join(best.texts(each.varied))])
    return ["sweep", "trials", found[0].metric, "to the best", "+-", "NFE", "best settings"], lines


def _check_equal(name: str, found: Results, other_name: str, other: Results) -> None:
    """Raises `InputError` unless two sweeps have the same objectives, measured alike."""
    goals = [[f"{each.name} ({'max' if each.maximize else 'min'}imized)" for each in s.objectives] for s in (found, other)]
    one, two = ({"objectives": ", ".join(goal), **_measure(s)} for goal, s in zip(goals, (found, other), strict=True))
    for key in (key for key in one if key in two):
        differ = f"{other_name} and {name} are not of one measure: {key} {two[key]} and {one[key]}"
        fix = "compare sweeps with equal objectives, numbers of samples, features and data"
        require(one[key] == two[key], f"--compare: {differ}; {fix}")


def _measure(found: Results) -> dict[str, Any]:
    """What is known of the measure of a sweep's first objective."""
    best = found.ranked[0]
    known: dict[str, Any] = {"number of samples": best.n} if best.n else {}
    keys = [row.paired for row in [*(found.trials or found.rows)] if row.paired]
    with suppress(IndexError, ValueError, SyntaxError, TypeError):  # none is known, or the table is damaged
        return known | dict(zip(AXIS, ast.literal_eval(keys[0]), strict=False))
    floor = {f"{floor_name(best.floor_kind)} value": f"{best.floor:.6g}"} if math.isfinite(best.floor) else {}
    return known | floor


def compare(listed: str, runs: str) -> None:
    """Prints sweeps of one measure together, and writes their figures into the folder of the first.

    Args:
        listed: names of sweeps in the folder of all runs, or their own folders, separated by commas.
        runs: the folder of all runs.

    Raises:
        InputError: one is no sweep, or their measures differ.
    """
    folders = [_folder(name.strip(), runs) for name in listed.split(",")]
    shown = overlay([_read(folder) for folder in folders])
    table = Table(*shown.titles, header_style="bold")
    for line in shown.lines:
        table.add_row(*line)
    console().print(table)
    place = folders[0] / f"compared_with_{'_'.join(folder.name for folder in folders[1:])}"
    make_folder(place)
    files = draw_charts(shown.charts, shown.results.name, shown.results.varied, place)
    print(f"written to {shlex.quote(os.path.relpath(place))}: {', '.join(file.name for file in files)}")


def _folder(name: str, runs: str) -> Path:
    """The folder of a sweep.

    Raises:
        InputError: there is none.
    """
    places = [Path(runs) / "sweeps" / name, Path(name)]
    found = next((place for place in places if name and (place / TABLE).is_file()), None)
    if found is None:
        raise InputError(f"--compare {name}: neither {places[0]} nor {name} is the folder of a sweep with a {TABLE}")
    return found.resolve()


def _read(folder: Path) -> Results:
    try:
        return read_csv(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--compare {folder}: its {TABLE} cannot be read ({one_line(error, 160)})") from error
