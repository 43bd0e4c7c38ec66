"""The results of a sweep in words: the lines below its table, and its summary as Markdown."""

import math
from itertools import pairwise

from lightning_score.runs.records import floor_name
from lightning_score.sweep.fronts import alike, hypervolumes
from lightning_score.sweep.objectives import Objective
from lightning_score.sweep.results import Results
from lightning_score.sweep.rows import format_number, seeds_text


def notes(found: Results) -> list[str]:
    """Lines below the table: importances, the Pareto front, the best trial and its command, and the failures."""
    lines, trials = [], found.trials or found.rows
    failed = sum(row.state == "failed" for row in trials)
    for metric, importances in found.importances_of.items():
        shares = ", ".join(f"{name} {share:.0%}" for name, share in importances.items())
        of = f" for {metric}" if len(found.objectives) > 1 else ""
        lines += [f"importance{of}: {shares}"] if shares else []
    for first, second in found.pairs:
        lines += _front_notes(found, first, second)
    lines += _hypervolume_note(found)
    lines += dict.fromkeys(note for each in found.objectives for note in _best_note(found.by(each)))
    lines += [f"again: {found.again}"] if found.ranked else []
    lines += [] if found.seed is None else [f"settings drawn with --seed {found.seed}"]
    if failed:
        lines.append(f"{failed} of {len(trials)} trials failed; --retry failed runs them again")
    return lines


def _front_notes(found: Results, first: Objective, second: Objective) -> list[str]:
    """The front of two objectives, and which neighbors on it do not differ by more than their error."""
    front = found.front(first, second)
    if len(front) < 2:
        return []
    values = [[row.of(objective.name).value for objective in (first, second)] for row in front]
    points = ", ".join(
        f"trial {row.number} ({format_number(one)} at {format_number(other)})"
        for row, (one, other) in zip(front, values, strict=True)
    )
    neighbors = zip(pairwise(front), alike(front, (first, second)), strict=True)
    unsure = ", ".join(f"{one.number} and {other.number}" for (one, other), same in neighbors if same)
    lines = [f"neighbors on it that do not differ by more than two standard errors: {unsure}"] if unsure else []
    return [f"Pareto front of {first.name} and {second.name}: {points}", *lines]


def _hypervolume_note(found: Results) -> list[str]:
    """The hypervolume of the front of several objectives, with its reference point."""
    if len(found.objectives) < 2 or not any(row.feasible for row in found.measured):
        return []
    volumes, reference = hypervolumes(found.measured, found.objectives, found.constraints)
    corner = zip(found.objectives, map(format_number, reference), strict=True)
    point = ", ".join(f"{objective.name}={value}" for objective, value in corner)
    return [f"hypervolume of the front: {format_number(volumes[-1])}, reference {point}"]


def _best_note(found: Results) -> list[str]:
    """The best trial, with its floor, seeds and settings; empty without one."""
    if not found.ranked:
        return []
    best, bounds = found.ranked[0], ", ".join(map(str, found.constraints))
    if not best.feasible:
        return [f"no trial satisfies {bounds}"]
    floor = f", {floor_name(best.floor_kind)} {format_number(best.floor)}" if math.isfinite(best.floor) else ""
    seeds = f" over {seeds_text(best)} training seeds (spread {format_number(best.spread)})" if best.seeds else ""
    return [f"best: {found.result(best)}{seeds}{floor} with {', '.join(best.texts(found.varied))}"]


def markdown(found: Results) -> str:
    """The results as Markdown."""
    titles, lines = found.table()
    rows = ["| " + " | ".join(cells) + " |" for cells in [titles, ["---"] * len(titles), *lines]]
    errors = "Errors are two standard errors; differences are paired if seeds are equal."
    if found.folds:
        errors = (
            "Values are means over training seeds, errors half of their 95 % t-interval, and the spread is the standard "
            "deviation between seeds; differences are paired if all seeds are equal."
        )
    return "\n\n".join([f"# {found.name}", "\n".join(rows), errors, "\n".join(["```", *notes(found), "```"])]) + "\n"
