"""Cutting a run's logs to the checkpoint from which it resumes."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning_score.files import replace_text
from lightning_score.runs.status import FORMAT, STATUS, read_status, row_steps


def cut_logs(folder: Path, checkpoint: dict[str, Any]) -> None:
    """Removes from a run's logs what came after a checkpoint and will be logged again.

    Args:
        folder: the run folder.
        checkpoint: the one that the run resumes from; it holds whether its step was validated.
    """
    step = checkpoint.get("global_step", 0)
    validated = checkpoint.get("callbacks", {}).get("Evaluate", {}).get("validated_at") == step
    _cut_metrics(folder / "metrics.csv", step, validated)
    replace_text(folder / STATUS, json.dumps(read_status(folder) | {"format": FORMAT}, indent=1))
    for file in folder.glob("*.jsonl"):
        _rewrite(file, lambda text: "".join(line for line in text.splitlines(True) if _step(line) < step + validated))


def _cut_metrics(file: Path, step: int, validated: bool) -> None:
    """Also converts the steps of older versions to optimizer steps done."""
    steps = row_steps(file.parent)

    def kept(rows: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
        for row in rows:
            validation = any(text for name, text in row.items() if name and name.startswith("val/"))
            done = steps(int(row["step"]), validation) if (row.get("step") or "").isdigit() else step + 1
            if done < step or (done == step and (validated or not validation)):
                yield {**row, "step": done}

    def cut(text: str) -> str:
        table = csv.DictReader(io.StringIO(text.replace("\0", "")))
        left = io.StringIO()
        writer = csv.DictWriter(left, table.fieldnames or [], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept(table))
        return left.getvalue()

    _rewrite(file, cut)


def _step(line: str) -> float:
    """The step of a line of JSON; infinity for a broken line, which a crash may leave."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _rewrite(file: Path, change: Callable[[str], str]) -> None:
    """Replaces the text of a file, if there is one."""
    if not file.exists():
        return
    replace_text(file, change(file.read_text(encoding="utf-8", errors="replace")))
