"""The charts of a sweep as data."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning_score.sweep.fronts import alike
from lightning_score.sweep.objectives import Objective
from lightning_score.sweep.results import Results
from lightning_score.sweep.rows import NFE, Row, floors_of, numeric, short_name

PARETO = "pareto"
"""The name of the chart of two objectives, or of one and network evaluations; of several pairs their names follow."""
FEW = 8
"""Most values that are all marked on an axis, or colored."""


class Axis(NamedTuple):
    """An axis: its label, whether it is logarithmic, and its ticks with their texts; without ticks: automatic ones."""

    label: str
    log: bool
    ticks: list[float]
    texts: list[str]


class Line(NamedTuple):
    """Trials that share all settings but one: a label, their places on the axis of that setting, and the trials.

    Attributes:
        label: of the line.
        places: of the trials across.
        rows: the trials.
        widths: two standard errors of the places; empty where they are exact.
    """

    label: str
    places: list[float]
    rows: list[Row]
    widths: Sequence[float] = ()

    @property
    def values(self) -> list[float]:
        """Those of the metric."""
        return [row.value for row in self.rows]

    @property
    def errors(self) -> list[float]:
        """Two standard errors each, 0 where unknown."""
        return _two_errors(self.rows)


class Chart(NamedTuple):
    """The metric against something.

    Attributes:
        metric: the axis of the metric.
        floor: the value of a perfect model and its name, if all trials have the same.
        across: the axis of a setting, of another objective, or of network evaluations.
        lines: the points.
        connected: whether the points of a line are joined.
        sideways: whether the metric's axis is the horizontal one.
        front: the trials of the Pareto front, the best across first; only in its charts.
        front_places: their places across.
        alike: whether neighbors on the front differ by at most two standard errors in one of the two objectives.
    """

    metric: Axis
    floor: tuple[float, str] | None
    across: Axis
    lines: list[Line]
    connected: bool = False
    sideways: bool = False
    front: Sequence[Row] = ()
    front_places: Sequence[float] = ()
    alike: Sequence[bool] = ()


def charts(found: Results, colored: bool = False) -> dict[str, Chart]:
    """Each objective against each parameter that varies, and the Pareto chart of each pair of objectives, or of the only one
    and network evaluations, by name; none for fewer than two complete trials.

    Args:
        found: the results.
        colored: whether the points of a Pareto chart are lines by one setting, which have different colors.
    """
    named: dict[str, Chart] = {}
    several = len(found.objectives) > 1
    if len(found.ranked) < 2:
        return named
    for objective in found.objectives:
        for name, chart in by_parameter(found.by(objective)).items():
            named[f"{objective.name}: {name}" if several else name] = chart
    return named | pareto_charts(found, colored)


def pareto_charts(found: Results, colored: bool) -> dict[str, Chart]:
    """The charts of each pair of objectives, or of the only one and network evaluations."""
    named = {}
    for first, second in found.pairs:
        if chart := _pareto(found, first, second, colored):
            named[f"{PARETO}: {first.name}, {second.name}" if len(found.pairs) > 1 else PARETO] = chart
    return named


def by_parameter(found: Results) -> dict[str, Chart]:
    """The metric against each parameter that varies."""
    rows = found.ranked
    metric, floor = _metric_axis(found.metric, rows)
    varied = [name for name in found.varied if len(values_of(rows, name)) > 1]
    return {name: Chart(metric, floor, *_against(rows, name, varied)) for name in varied}


def _pareto(found: Results, first: Objective, second: Objective, colored: bool) -> Chart | None:
    """The first objective against the second, or None if all trials have the same value of it."""
    rows = [row for row in found.by(first).ranked if math.isfinite(row.of(second.name).value)]
    if len({row.of(second.name).value for row in rows}) < 2:
        return None
    metric, floor = _metric_axis(first.name, rows)
    label = "network evaluations per sample (NFE)" if second == NFE else second.name
    varied = [name for name in found.varied if len(values_of(rows, name)) > 1]
    few = [name for name in varied if colored and len(values_of(rows, name)) <= FEW]
    groups = _grouped(rows, sorted(few, key=lambda name: numeric(rows, name))[:1])  # by a choice rather than a number
    lines = [Line(label or "trials", *_places(members, second)) for label, members in groups.items()]
    front = [row.of(first.name) for row in found.front(first, second)]
    places = [row.of(second.name).value for row in front]
    across = axis_of(label, [row.of(second.name).value for row in rows])
    return Chart(metric, floor, across, lines, front=front, front_places=places, alike=alike(front, (first, second)))


def _places(rows: list[Row], objective: Objective) -> tuple[list[float], list[Row], list[float]]:
    others = [row.of(objective.name) for row in rows]
    return [row.value for row in others], rows, _two_errors(others)


def _two_errors(rows: Sequence[Row]) -> list[float]:
    return [2 * row.error if math.isfinite(row.error) else 0.0 for row in rows]


def _metric_axis(label: str, rows: Sequence[Row]) -> tuple[Axis, tuple[float, str] | None]:
    """The axis of a metric, and its floor if all trials have the same."""
    floors = floors_of(rows)
    floor = floors[0] if len(floors) == 1 else None
    return axis_of(label, [row.value for row in rows] + ([floor[0]] if floor else [])), floor


def values_of(rows: Sequence[Row], name: str) -> list[str]:
    """The values of a parameter as text, numbers in ascending order."""
    values: dict[str, Any] = {row.text(name): row.settings.get(name) for row in rows}
    return sorted(values, key=values.__getitem__) if numeric(rows, name) else sorted(values)


def is_wide(values: Sequence[float], ratio: float = 4) -> bool:
    """Whether values are positive and the largest is above `ratio` times the smallest, so that a logarithmic axis fits."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > ratio


def log_ticks(values: Sequence[float]) -> list[float]:
    """The ticks of a logarithmic axis; none where a linear one fits."""
    if not is_wide(values):
        return []
    low, high = math.log10(min(values)), math.log10(max(values))
    digits = (1,) if high - low > 3 else (1, 2, 5)
    return [digit * 10.0**power for power in range(math.floor(low) - 1, math.ceil(high) + 2) for digit in digits]


def axis_of(label: str, values: Sequence[float], every: bool = False) -> Axis:
    """An axis for some values, logarithmic where they are wide; `every` puts the ticks at the values if they are few."""
    ticks = sorted(set(values)) if every and len(set(values)) <= FEW else log_ticks(values)
    return Axis(label, is_wide(values), ticks, [f"{tick:.4g}" for tick in ticks])


def _grouped(rows: list[Row], names: Sequence[str]) -> dict[str, list[Row]]:
    """The trials by their settings of some parameters, in the order of these."""
    groups: dict[str, list[Row]] = {}
    places = {name: {text: i for i, text in enumerate(values_of(rows, name))} for name in names}
    for row in sorted(rows, key=lambda row: [places[name][row.text(name)] for name in names]):
        groups.setdefault(", ".join(row.texts(names)), []).append(row)
    return groups


def _against(rows: list[Row], name: str, varied: list[str]) -> tuple[Axis, list[Line], bool, bool]:
    """The metric against one parameter, a line for each combination of the others; choices are listed, the best on top."""
    groups, lines = _grouped(rows, [other for other in varied if other != name]), []
    if numeric(rows, name):
        for label, members in groups.items():
            members = sorted(members, key=lambda row: row.settings[name])
            lines.append(Line(label, [row.settings[name] for row in members], members))
        return axis_of(short_name(name), [row.settings[name] for row in rows], True), lines, len(groups) < len(rows), False
    choices = list(dict.fromkeys(row.text(name) for row in rows))[::-1]
    for i, (label, members) in enumerate(groups.items()):
        shift = 0.6 * ((i + 0.5) / len(groups) - 0.5)  # points of different lines must not cover each other
        lines.append(Line(label, [choices.index(row.text(name)) + shift for row in members], members))
    return Axis(short_name(name), False, [float(i) for i in range(len(choices))], choices), lines, False, True
