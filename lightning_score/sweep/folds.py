"""Trials that differ in the seed of training alone, as one row with mean, interval and spread."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from lightning_score.files import csv_text
from lightning_score.runs.status import STOPPED_EARLY
from lightning_score.sweep.macros import as_text
from lightning_score.sweep.results import Results
from lightning_score.sweep.rows import Row, mean_error, satisfied, spread

SEED = "seed_everything"
"""The setting with the seed of training."""
MEANS = "means.csv"
"""The table of means in a sweep's folder."""
PENDING = ("running", "interrupted", "waiting")
"""States of trials that have not ended, as the state of several trials: the first that one of them has."""


def folded(found: Results) -> Results:
    """The results with one row for all trials that differ in the seed of training alone; others stay as they are."""
    if SEED not in found.varied or not found.metric:
        return found
    groups: dict[str, list[Row]] = {}
    for row in found.rows:
        groups.setdefault(fold_key(row), []).append(row)
    if all(len(rows) == 1 for rows in groups.values()):  # as for random reals: a seed each
        return found
    varied = [name for name in found.varied if name != SEED]
    return replace(found, varied=varied, rows=[_fold(found, rows) for rows in groups.values()], trials=found.rows)


def means_csv(found: Results) -> str:
    """Folded results as CSV: settings, and mean, half of the 95 % t-interval and spread of each objective."""
    names = sorted({name for row in found.rows for name in row.settings})
    columns = [f"{each.name}{end}" for each in found.objectives for end in ("", "_interval", "_spread")]
    lines: list[list[Any]] = [["trial", "state", *names, *columns, "seeds", "planned"]]
    for row in found.rows:
        values = [v for each in found.objectives for v in _numbers(row.of(each.name))]
        settings = [as_text(row.settings.get(name, "")) for name in names]
        lines.append([row.number, row.state, *settings, *values, as_text(list(row.seeds)), row.planned])
    return csv_text(lines)


def _numbers(row: Row) -> tuple[float, float, float]:
    return row.value, 2 * row.error, row.spread


def fold_key(row: Row) -> str:
    """What trials share that differ in the seed of training alone; a trial without a number as its seed has its own."""
    others = {name: value for name, value in row.settings.items() if name != SEED}
    alone = None if isinstance(row.settings.get(SEED), int) else row.number
    return json.dumps([others, alone], sort_keys=True, default=str)


def _fold(found: Results, rows: Sequence[Row]) -> Row:
    """One row for trials with different training seeds; of several trials with one seed the last complete one counts."""
    if len(rows) == 1 and not isinstance(rows[0].settings.get(SEED), int):
        return rows[0]
    by_seed = {row.settings[SEED]: row for row in sorted(rows, key=lambda row: _complete(row))}
    members = [by_seed[seed] for seed in sorted(by_seed, key=str)]
    complete = sorted(filter(_complete, members), key=lambda row: int(row.settings[SEED]))
    first = (complete or members)[0]
    settings = {name: value for name, value in first.settings.items() if name != SEED}
    number, message = min(row.number for row in rows), _message(members, len(complete))
    whole = replace(first, number=number, state=_state(members), settings=settings, message=message)
    if len({str(row.values) for row in complete}) == 1 < len(complete):
        return replace(whole, message=whole.message or f"the seed changes nothing: {len(complete)} equal trials")
    means = {name: fmean(row.values.get(name, math.nan) for row in complete) for name in first.values if complete}
    return replace(
        whole,
        **_mean_fields(complete),
        seconds=fmean(row.seconds for row in complete) if complete else math.nan,
        values=means or first.values,
        measures={name: _mean_fields([row.of(name) for row in complete]) for name in first.measures},
        feasible=satisfied(means, found.constraints),
        planned=len(members),
    )


def _complete(row: Row) -> bool:
    return row.state == "complete" and math.isfinite(row.value)


def _mean_fields(rows: Sequence[Row]) -> dict[str, Any]:
    """The fields of one metric, over the complete trials."""
    values, floors = tuple(row.value for row in rows), {row.floor for row in rows}
    return {
        "value": fmean(values) if values else math.nan,
        "error": mean_error(values),
        "floor": floors.pop() if len(floors) == 1 else math.nan,
        "nfe": fmean(row.nfe for row in rows) if rows else math.nan,
        "jackknife": (),
        "seeds": tuple(int(row.settings[SEED]) for row in rows),
        "of_seeds": values,
        "spread": spread(values),
    }


def _state(members: Sequence[Row]) -> str:
    """Of several trials: what one of them is that has not ended; else stopped early if one is; else complete if one is."""
    states = {row.state for row in members}
    return next((state for state in (*PENDING, STOPPED_EARLY, "complete") if state in states), "failed")


def _message(members: Sequence[Row], complete: int) -> str:
    """How many seeds are complete, and why others are not; empty if all are."""
    if complete == len(members):
        return ""
    others = Counter(row.state for row in members if not _complete(row))
    reason = next((f": {row.message}" for row in members if row.message), "")
    return f"{complete} of {len(members)} seeds, {', '.join(f'{n} {state}' for state, n in sorted(others.items()))}{reason}"
