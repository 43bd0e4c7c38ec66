"""The charts of a sweep as data: points, errors, labels and axes, for picture files and for the report."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from lightning_score.sweep.results import Results, Row, floors_of, numeric, short_name

PARETO = "pareto"
"""The name of the chart of the metric against network evaluations."""
FEW = 8
"""Most values that are all marked on an axis."""


class Axis(NamedTuple):
    """An axis: its label, whether it is logarithmic, and its ticks with their texts; without ticks: automatic ones."""

    label: str
    log: bool
    ticks: list[float]
    texts: list[str]


class Line(NamedTuple):
    """Trials that share all settings but one: a label, their places on the axis of that setting, and the trials."""

    label: str
    places: list[float]
    rows: list[Row]

    @property
    def values(self) -> list[float]:
        """Those of the metric."""
        return [row.value for row in self.rows]

    @property
    def errors(self) -> list[float]:
        """Two standard errors each, 0 where unknown."""
        return [2 * row.error if math.isfinite(row.error) else 0.0 for row in self.rows]


class Chart(NamedTuple):
    """The metric against something.

    Attributes:
        across: the axis of a setting, or of network evaluations.
        metric: the axis of the metric.
        lines: the points.
        connected: whether the points of a line are joined.
        sideways: whether the metric's axis is the horizontal one.
        floor: the value of a perfect model and its name, if all trials have the same.
        front: the trials of the Pareto front, in the order of network evaluations; only in its chart.
    """

    across: Axis
    metric: Axis
    lines: list[Line]
    connected: bool
    sideways: bool
    floor: tuple[float, str] | None
    front: list[Row]


def charts(found: Results) -> dict[str, Chart]:
    """The metric against each parameter that varies, and against network evaluations, by name; none for fewer than two
    complete trials.
    """
    rows = found.ranked
    if len(rows) < 2:
        return {}
    named = {name: _against(found, rows, name) for name in found.varied if len(values_of(rows, name)) > 1}
    known = [row for row in rows if math.isfinite(row.nfe)]
    if len({row.nfe for row in known}) > 1:
        nfe = [row.nfe for row in known]
        across = axis_of("network evaluations per sample (NFE)", nfe)
        named[PARETO] = _chart(found, rows, across, [Line("trials", nfe, known)], front=found.front())
    return named


def values_of(rows: Sequence[Row], name: str) -> list[str]:
    """The values of a parameter as text, numbers in ascending order."""
    values = {row.text(name): row.settings.get(name) for row in rows}
    return sorted(values, key=lambda text: values[text] if numeric(rows, name) else text)


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


def _against(found: Results, rows: list[Row], name: str) -> Chart:
    """The metric against one parameter, a line for each combination of the others; choices are listed, the best on top."""
    others = [other for other in found.varied if other != name and len(values_of(rows, other)) > 1]
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: [values_of(rows, other).index(row.text(other)) for other in others]):
        groups.setdefault(", ".join(row.texts(others)), []).append(row)
    connected = len(groups) < len(rows)
    if numeric(rows, name):
        lines = []
        for label, members in groups.items():
            members = sorted(members, key=lambda row: row.settings[name])
            lines.append(Line(label, [row.settings[name] for row in members], members))
        across = axis_of(short_name(name), [row.settings[name] for row in rows], every=True)
        return _chart(found, rows, across, lines, connected)
    choices = list(dict.fromkeys(row.text(name) for row in rows))[::-1]
    lines = []
    for i, (label, members) in enumerate(groups.items()):
        shift = 0.6 * ((i + 0.5) / len(groups) - 0.5)  # points of different lines must not cover each other
        lines.append(Line(label, [choices.index(row.text(name)) + shift for row in members], members))
    across = Axis(short_name(name), False, [float(i) for i in range(len(choices))], choices)
    return _chart(found, rows, across, lines, sideways=True)


def _chart(
    found: Results,
    rows: Sequence[Row],
    across: Axis,
    lines: list[Line],
    connected: bool = False,
    sideways: bool = False,
    front: Sequence[Row] = (),
) -> Chart:
    floors = floors_of(rows)
    floor = floors[0] if len(floors) == 1 else None
    values = [row.value for row in rows] + ([floor[0]] if floor else [])
    return Chart(across, axis_of(found.metric, values), lines, connected, sideways, floor, list(front))
