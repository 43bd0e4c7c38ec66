"""Pareto fronts of trials, and which neighbors on them differ by more than their errors."""

import math
from collections.abc import Sequence
from itertools import pairwise

from lightning_score.sweep.objectives import Constraint, Objective, directions, hypervolume_history, reference_point
from lightning_score.sweep.rows import Row, difference


def front_of(rows: Sequence[Row], objectives: Sequence[Objective]) -> list[Row]:
    """The trials than which no other is better or equal in all objectives, the best in the last objective first; of equal
    trials the first.

    Args:
        rows: the trials; those without a finite value of each objective are left out.
        objectives: at least one.
    """
    signs = [-1 if objective.maximize else 1 for objective in objectives]
    points = [[sign * row.of(each.name).value for sign, each in zip(signs, objectives, strict=True)] for row in rows]
    known = [i for i, point in enumerate(points) if all(map(math.isfinite, point))]
    front: list[int] = []
    for i in sorted(known, key=lambda i: points[i][::-1]):  # so that no trial is better than an earlier one
        if not any(all(a <= b for a, b in zip(points[j], points[i], strict=True)) for j in front):
            front.append(i)
    return [rows[i] for i in front]


def alike(front: Sequence[Row], objectives: Sequence[Objective]) -> list[bool]:
    """Whether each pair of neighbors on a front is within two standard errors of its difference in one of the objectives."""
    gaps = [[difference(one.of(each.name), other.of(each.name)) for each in objectives] for one, other in pairwise(front)]
    return [any(abs(gap) <= 2 * error for gap, error in each) for each in gaps]


def hypervolumes(
    rows: Sequence[Row], objectives: Sequence[Objective], constraints: Sequence[Constraint] = ()
) -> tuple[list[float], list[float]]:
    """The hypervolume of the front after each trial, and its reference point; infeasible trials add nothing.

    Args:
        rows: the trials in their order; at least one, and all with a finite value of each objective.
        objectives: the objectives.
        constraints: bounds on metrics.
    """
    values = [[row.of(each.name).value for each in objectives] for row in rows]
    reference = reference_point(values, objectives, constraints)
    counted = [each if row.feasible else reference for row, each in zip(rows, values, strict=True)]
    return hypervolume_history(counted, directions(objectives), reference), reference
