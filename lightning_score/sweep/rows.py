"""A trial of a sweep as a row of results, or several that differ in the seed of training alone, and differences of rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from lightning_score.estimates import jackknife_error, student
from lightning_score.runs.records import Record, floor_name
from lightning_score.sweep.macros import as_text
from lightning_score.sweep.objectives import Constraint, Objective

NFE = Objective("network evaluations")
"""The second objective of a sweep with one: network evaluations per sample."""


MEASURE = ("value", "error", "floor", "n", "nfe", "jackknife", "paired", "floor_kind", "seeds", "of_seeds", "spread")
"""The fields of a row that belong to one metric."""


@dataclass(frozen=True)
class Row:
    """A trial, or the trials that differ in the seed of training alone.

    Attributes:
        number: its place in the queue; of several trials the first.
        state: complete, stopped early (by early termination), failed, running, interrupted or waiting.
        settings: by their dotted names.
        value: of the metric, NaN without one; of several trials the mean.
        error: its standard error, NaN if unknown; of several trials half of half their 95 % t-interval.
        floor: the value of a perfect model, NaN if unknown.
        n: number of samples, 0 if unknown.
        nfe: network evaluations per sample, NaN if unknown.
        seconds: duration of the trial; of several trials the mean.
        jackknife: the value without each part of the samples.
        paired: data, features and seeds; the samples of two trials are paired if these are equal.
        folder: the folder of its results; of several trials that of the first seed.
        message: why it failed, or which seeds are missing.
        worker: the process that ran it, as `host:1234`.
        floor_kind: the kind of floor, as in a `Record`; empty if unknown, for example on W&B.
        started: when it started, in seconds since 1970, NaN if unknown.
        values: of all objectives and of the metrics of constraints, by name.
        measures: the fields of this row for each of these metrics, by name.
        feasible: whether the constraints hold.
        seeds: the training seeds of the complete trials in `value`; empty for a trial that is not one of several.
        of_seeds: their values.
        planned: the number of training seeds, complete or not.
        spread: the standard deviation between training seeds, NaN for one.
    """

    number: int
    state: str
    settings: dict[str, Any]
    value: float = math.nan
    error: float = math.nan
    floor: float = math.nan
    n: int = 0
    nfe: float = math.nan
    seconds: float = math.nan
    jackknife: tuple[float, ...] = ()
    paired: str = ""
    folder: str = ""
    message: str = ""
    worker: str = ""
    floor_kind: str = ""
    started: float = math.nan
    values: dict[str, float] = field(default_factory=dict)
    measures: dict[str, dict[str, Any]] = field(default_factory=dict)
    feasible: bool = True
    seeds: tuple[int, ...] = ()
    of_seeds: tuple[float, ...] = ()
    planned: int = 1
    spread: float = math.nan

    def of(self, metric: str) -> "Row":
        """This row with another objective, the metric of a constraint, or network evaluations as the metric."""
        if metric == NFE.name:
            exact: dict[str, Any] = {"error": 0.0, "floor": math.nan, "spread": math.nan}
            exact |= dict.fromkeys(("jackknife", "seeds", "of_seeds"), ())
            return replace(self, value=self.nfe, values={**self.values, NFE.name: self.nfe}, **exact)
        return replace(self, **self.measures.get(metric, {}))

    @property
    def measure(self) -> dict[str, Any]:
        """The fields of its metric."""
        return {name: getattr(self, name) for name in MEASURE}

    def text(self, name: str) -> str:
        """A setting as text."""
        return setting_text(self.settings.get(name))

    def texts(self, names: Sequence[str]) -> list[str]:
        """Settings with their names, as `steps=10`."""
        return [f"{short_name(name)}={self.text(name)}" for name in names]


def metric_fields(metrics: Mapping[str, float], metric: str) -> dict[str, Any]:
    """The fields of a row for one metric, from all metrics of a trial."""
    prefix = metric.partition("/")[0]
    names = {"value": metric, "error": f"{metric}_error", "floor": f"{metric}_floor", "nfe": f"{prefix}/nfe"}
    return {field: metrics.get(name, math.nan) for field, name in names.items()} | {"n": int(metrics.get(f"{metric}_n", 0))}


def measured_fields(
    metrics: Mapping[str, float], objectives: Sequence[Objective], constraints: Sequence[Constraint]
) -> dict[str, Any]:
    """The fields of a row for all objectives and constraints, from all metrics of a trial."""
    names = metric_names(objectives, constraints) or [""]
    values = {name: metrics.get(name, math.nan) for name in names}
    measures = {name: {**metric_fields(metrics, name), "jackknife": (), "paired": ""} for name in names}
    return {**measures[names[0]], "values": values, "measures": measures, "feasible": satisfied(values, constraints)}


def metric_names(objectives: Sequence[Objective], constraints: Sequence[Constraint]) -> list[str]:
    """The names of all objectives, and of the metrics of constraints."""
    return list(dict.fromkeys([*(each.name for each in objectives), *(each.name for each in constraints)]))


def satisfied(values: Mapping[str, float], constraints: Sequence[Constraint]) -> bool:
    """Whether all constraints hold; an unknown value satisfies none."""
    return all(each.violation(values.get(each.name, math.nan)) <= 0 for each in constraints)


def floors_of(rows: Sequence[Row]) -> list[tuple[float, str]]:
    """The different floors of trials, with their names."""
    return sorted({(row.floor, floor_name(row.floor_kind)) for row in rows if math.isfinite(row.floor)})


def leave_one_out(records: Sequence[Record], metric: str) -> tuple[tuple[float, ...], str]:
    """A trial's last value without each part of its samples, and a key that is equal for paired trials.

    The parts are the tenths of the samples of each seed; the value is the mean over seeds.
    """
    found = [r for r in records if r.metric == metric and r.jackknife and r.weights != "raw" and r.denoised]
    if not found:
        return (), ""
    found = [record for record in found if record.step == found[-1].step]
    common = str((*found[0].axis, [record.seed for record in found], "ema"))
    if len(found) == 1:
        return tuple(found[0].jackknife), common
    value = fmean(record.value for record in found)
    changes = [(part - fmean(record.jackknife)) / len(found) for record in found for part in record.jackknife]
    return tuple(value + change for change in changes), common


def sampled_fields(records: Sequence[Record], name: str) -> dict[str, Any]:
    """The fields of a row for one metric that only its records have; empty values for what is not measured on samples."""
    metric = name.partition("/")[2]
    values, paired = leave_one_out(records, metric)
    kinds = [record.floor_kind for record in records if record.metric == metric]
    return {"jackknife": values, "paired": paired, "floor_kind": kinds[-1] if kinds else ""}


def difference(row: Row, other: Row) -> tuple[float, float]:
    """The difference of two values and its standard error.

    Of means over training seeds: from the differences of each seed if both have the same seeds, else Welch's; two standard
    errors are half of the 95 % t-interval. Of single trials: samples of the same seed use the same random numbers, so much
    of their errors cancels, and the standard error is the jackknife's of the differences; otherwise the samples are
    independent.
    """
    gap = row.value - other.value
    if row.seeds or other.seeds:
        return gap, _error_over_seeds(row, other)
    if row.jackknife and len(row.jackknife) == len(other.jackknife) and row.paired == other.paired:
        return gap, jackknife_error([one - two for one, two in zip(row.jackknife, other.jackknife, strict=True)])
    return gap, math.hypot(row.error, other.error)


def mean_error(values: Sequence[float]) -> float:
    """The standard error of a mean, `s / n^(1/2)`, times `student(n - 1)`; NaN for fewer than two values."""
    return student(len(values) - 1) * spread(values) / len(values) ** 0.5 if len(values) > 1 else math.nan


def spread(values: Sequence[float]) -> float:
    """The standard deviation of values; NaN for fewer than two, or if one is not finite."""
    return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


def _error_over_seeds(row: Row, other: Row) -> float:
    """The error of a difference of means over training seeds (Welch 1947 for different seeds)."""
    if row.seeds == other.seeds:
        return mean_error([one - two for one, two in zip(row.of_seeds, other.of_seeds, strict=True)])
    if min(len(row.seeds), len(other.seeds)) < 2:
        return math.nan
    shares = [each.spread**2 / len(each.seeds) for each in (row, other)]
    if not sum(shares):
        return 0.0
    parts = zip(shares, (row, other), strict=True)
    degrees = sum(shares) ** 2 / sum(share**2 / (len(each.seeds) - 1) for share, each in parts)
    return student(degrees) * math.sqrt(sum(shares))


def with_error(row: Row) -> str:
    """The metric of a trial with two standard errors."""
    error = f" +- {format_number(2 * row.error)}" if math.isfinite(row.error) else ""
    return format_number(row.value) + error


def seeds_text(row: Row) -> str:
    """The number of complete training seeds, as `5` or `3 of 5`; empty for a single trial."""
    complete = len(row.seeds)
    if complete == 0 and row.planned == 1:
        return ""
    return str(complete) if complete == row.planned else f"{complete} of {row.planned}"


def state_text(row: Row) -> str:
    """The state of a trial, why it is not complete, and whether it violates a constraint."""
    beyond = " (infeasible)" if row.state == "complete" and not row.feasible else ""
    return row.state + beyond + (f": {row.message}" if row.message else "")


def short_name(name: str) -> str:
    """The last part of a parameter's name, or the last two of a deeper one, such as `grid.steps`."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if len(parts) > 3 else parts[-1]


def setting_text(value: Any) -> str:
    """A setting as short text; a part as its class and arguments: PredictorCorrector(Heun, Karras(steps=9))."""
    if not isinstance(value, Mapping):
        return as_text(value)
    name = str(value.get("class_path", "")).rpartition(".")[2]
    settings = [_argument(argument, part) for argument, part in value.get("init_args", {}).items()]
    return f"{name}({', '.join(settings)})" if settings else name


def _argument(name: str, value: Any) -> str:
    """An argument: numbers with their names, parts without."""
    return f"{name}={as_text(value)}" if isinstance(value, (int, float, list, type(None))) else setting_text(value)


def format_number(value: float) -> str:
    """Three digits, or nothing for NaN."""
    return "" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def format_duration(seconds: float) -> str:
    """42 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def numeric(rows: Sequence[Row], name: str) -> bool:
    """Whether a parameter's values are numbers."""
    values = [row.settings.get(name) for row in rows]
    return bool(values) and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
