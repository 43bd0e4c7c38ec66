"""The best result so far over the trials of sweeps, and the hypervolume of the front of several objectives."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate

from lightning_score.sweep.charts import Axis, Chart, Line, axis_of
from lightning_score.sweep.fronts import hypervolumes
from lightning_score.sweep.results import Results
from lightning_score.sweep.rows import Row, format_number

HISTORY, HYPERVOLUME = "history", "hypervolume"
"""The names of the charts."""


TRIALS = Axis("complete trials", log=False, ticks=[], texts=[])


def history(sweeps: Mapping[str, Results]) -> Chart:
    """The best value of the metric so far against the number of complete trials, a line for each sweep.

    Args:
        sweeps: by their names, all with the same metric.
    """
    lines, metric = [], next(iter(sweeps.values())).metric
    for name, found in sweeps.items():
        rows = [replace(row, error=math.nan, of_seeds=()) for row in best_so_far(found)]
        lines.append(Line(name, [float(i + 1) for i in range(len(rows))], rows))
    values = [row.value for line in lines for row in line.rows]
    return Chart(axis_of(f"best {metric} so far", values), None, TRIALS, lines, connected=True)


def hypervolume_chart(found: Results) -> Chart | None:
    """The hypervolume of the front so far against the number of complete trials; None for one objective or two trials."""
    rows = sorted(found.measured, key=lambda row: row.number)
    if len(found.objectives) < 2 or len(rows) < 3:
        return None
    volumes, reference = hypervolumes(rows, found.objectives, found.constraints)
    rows = [replace(row, value=value, error=math.nan, of_seeds=()) for row, value in zip(rows, volumes, strict=True)]
    corner = ", ".join(format_number(value) for value in reference)
    axis = Axis(f"hypervolume, reference ({corner})", log=False, ticks=[], texts=[])
    line = Line("hypervolume of the front", [float(i + 1) for i in range(len(rows))], rows)
    return Chart(axis, None, TRIALS, [line], connected=True)


def best_so_far(found: Results) -> list[Row]:
    """The best trial after each complete one, in the order of the queue."""
    place = {id(row): i for i, row in enumerate(found.ranked)}  # the best first
    rows = sorted(found.ranked, key=lambda row: row.number)
    return list(accumulate(rows, lambda best, row: min(best, row, key=lambda each: place[id(each)])))
