"""A run as plain data; its numbers have plain names, for queries and groups: fid, fid_last, loss, steps, hours, nfe."""

import math
import re
from collections.abc import Sequence
from typing import Any

from lightning_score.report.figures import HIDDEN, LEVEL, line_kind
from lightning_score.report.reading import Run
from lightning_score.runs.records import Record, by_axis, finite

LARGER = ("is", "inception_score", "precision", "recall", "density", "coverage", "crps_skill", "nats", "nats_per_dim",
          "psnr", "ssim")  # fmt: skip
"""Kinds of measures of which larger values are better; of all others smaller ones are, ..."""
AIMED = ("spread_skill", "z_score", "residual_over_noise", "interval_50", "interval_90")
"""... except of these, of which a certain value is best: runs are not ranked by them."""
NAMES = {"is": "inception_score"}
"""Kinds that are reserved words of Python."""


def kind_of(record: Record) -> str:
    """The kind of a measure, without its features and number of samples: fid, kid, bits_per_dim."""
    return re.sub(r"_\d+[km]?$", "", record.metric.partition(f"_{record.features}")[0])


def is_larger_better(kind: str) -> bool:
    """Whether larger values of a kind of measure, or of a metric, are better."""
    name = kind.rpartition("/")[2]
    return any(name == each or name.startswith(f"{each}_") for each in LARGER)


def entry_of(run: Run) -> dict[str, Any]:
    """A run as plain data; its settings are without infinities, which JSON does not have."""
    return {
        "name": run.name,
        "folder": str(run.folder.absolute()),
        "state": run.state,
        "note": run.note,
        "problems": run.problems,
        "tags": [*run.notes.tags],
        "notes": run.notes.notes,
        "archived": run.notes.archived,
        "settings": finite(run.settings),
        "values": values(run),
    }


def values(run: Run) -> dict[str, float]:
    """The numbers of a run: `steps`, `seconds`, `hours`, `nfe`; the best and the last (`_last`) of every measure and curve.

    Of the measures of one kind `fid` is that of the most samples, in the first features, after training if there is one;
    each also has its full name, `fid_digits_898`. `loss` is that of the validation, else that of the training.
    """
    numbers = {"steps": float(run.step), "seconds": run.seconds, "hours": run.seconds / 3600}
    for name, curve in run.curves.items():
        if not HIDDEN.match(name) and not LEVEL.match(name):
            numbers |= _extremes(name, curve.values)
    for loss in ("train_loss", "val_loss"):
        numbers |= {name.replace(loss, "loss"): numbers[name] for name in (loss, f"{loss}_last") if name in numbers}
    for records in (run.records, run.tests):
        usual = [record for record in records if not line_kind(record) and math.isfinite(record.value)]
        main = usual[0].features if usual else ""
        for group in sorted(by_axis(usual).values(), key=lambda group: (group[0].n, group[0].features == main)):
            group.sort(key=lambda record: (record.step, str(record.time)))
            found, kind = [record.value for record in group], kind_of(group[-1])
            numbers |= _extremes(kind, found) | _extremes(group[-1].metric, found)
            if kind in ("fid", "sliced_wasserstein"):
                numbers["nfe"] = group[-1].nfe
    return {name: float(f"{value:.6g}") for name, value in numbers.items() if math.isfinite(value)}


def _extremes(name: str, found: Sequence[float]) -> dict[str, float]:
    """The best and the last of a sequence of values by a name without special characters."""
    known = [value for value in found if math.isfinite(value)]
    if not known:
        return {}
    best = max(known) if is_larger_better(name) else min(known)
    plain = NAMES.get(name) or re.sub(r"\W", "_", name)
    return {plain: best, f"{plain}_last": known[-1]}
