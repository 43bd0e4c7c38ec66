"""What runs can be ranked by: the measures, and the best and the last value of every run with their errors."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from lightning_score.estimates import Estimate, jackknife_error, pooled
from lightning_score.report.figures import importance, line_kind, measures, rounded
from lightning_score.report.reading import Run
from lightning_score.report.values import AIMED, is_larger_better, kind_of
from lightning_score.runs.records import Record, as_number, finite, floor_name
from lightning_score.sweep.rows import leave_one_out


def standings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The measures, the main one first, each with its values by run.

    The main measure is the one that most runs share, except archived ones; of several that of the most samples, and after
    training rather than during it.

    Args:
        runs: all runs; entries have their numbers.
    """
    tested = [replace(run, records=run.tests) for run in runs]
    found = [*_standings(tested, "test"), *_standings(runs, "validation")]

    def rank(each: dict[str, Any]) -> tuple[Any, ...]:
        sharing = sum(not runs[entry["run"]].notes.archived for entry in each["entries"])
        return -sharing, importance(each["kind"]), -each["n"], each["when"] != "test", each["label"]

    return sorted(found, key=rank)


def best_first(found: Sequence[dict[str, Any]], n: int, most: int = 50) -> list[int]:
    """The numbers of n runs: first the best by the main measure, then the others in their order."""
    entries = [entry for each in found[:1] for entry in each["entries"]]
    entries.sort(key=lambda entry: -entry["value"] if found[0]["larger"] else entry["value"])
    return list(dict.fromkeys([*(entry["run"] for entry in entries[:most]), *range(n)]))


def _standings(runs: Sequence[Run], when: str) -> Iterator[dict[str, Any]]:
    for label, records in measures(runs).items():
        of_run: dict[int, list[Record]] = defaultdict(list)
        for i, record in records:
            if not line_kind(record) and math.isfinite(record.value):
                of_run[i].append(record)
        pairs: dict[str, int] = {}
        kind = kind_of(records[0][1])
        entries = [_entry(i, kind, own, pairs) for i, own in of_run.items()]
        if entries and kind not in AIMED:
            n = records[0][1].n
            yield {"label": f"{label}, {when}", "when": when, "kind": kind, "n": n, "larger": is_larger_better(kind),
                   "entries": entries}  # fmt: skip


def _entry(i: int, kind: str, records: Sequence[Record], pairs: dict[str, int]) -> dict[str, Any]:
    """The best and the last value of a run in one measure.

    Args:
        i: the run's number.
        kind: of the measure.
        records: of this measure.
        pairs: the numbers of keys that are equal for paired samples; new ones are added.
    """
    evaluations = _evaluations(records)
    values = [mean_over_seeds(each) for each in evaluations]
    sign = -1 if is_larger_better(kind) else 1
    best = min(range(len(values)), key=lambda k: sign * values[k].value)
    record = evaluations[best][0]
    parts, key = leave_one_out(evaluations[best], record.metric)
    floor = as_number(record.floor)
    return {
        "run": i, "value": _short(values[best].value), "error": _short(values[best].error), "step": record.step,
        "last": [_short(values[-1].value), _short(values[-1].error)], "of": len(values), "n": record.n,
        "nfe": _short(record.nfe), "seconds": _short(sum(each.seconds for each in evaluations[best])),
        "floor": _short(floor), "floor_name": floor_name(record.floor_kind) if math.isfinite(floor) else "",
        "parts": rounded(_deviations(parts)), "paired": pairs.setdefault(key, len(pairs)),
    }  # fmt: skip


def _evaluations(records: Iterable[Record]) -> list[list[Record]]:
    """The records by evaluation, in the order of steps and times; of a repeated seed the latest."""
    found: dict[tuple[int, str], dict[int, Record]] = defaultdict(dict)
    for record in sorted(records, key=lambda record: (record.step, str(record.time))):
        found[record.step, json.dumps(record.sampler, sort_keys=True)][record.seed] = record
    return [list(each.values()) for each in found.values()]


def mean_over_seeds(records: Sequence[Record]) -> Estimate:
    """The mean of the records of one measure and one evaluation, which differ in their seed."""
    return pooled(kind_of(records[0]), [Estimate(record.value, as_number(record.error)) for record in records])


def _deviations(parts: Sequence[float]) -> list[float]:
    """A vector whose norm is the jackknife's standard error: that of the difference of two vectors is the standard error of
    the difference of two paired values.
    """
    if len(parts) < 2:
        return []
    mean = fmean(parts)
    norm = math.hypot(*(part - mean for part in parts))
    return [(part - mean) * jackknife_error(parts) / norm if norm > 0 else 0.0 for part in parts]


def _short(value: float) -> float | None:
    """A number with six digits; None if unknown."""
    number: float | None = finite(float(f"{value:.6g}"))
    return number
