"""The logs of a run in its folder: `metrics.csv`, and how all are cut to the checkpoint from which a run resumes."""

import lightning_score.lean_imports  # noqa: F401

import csv
import io
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lightning_score.files import replace_text, replacing
from lightning_score.runs.status import FORMAT, STATUS, read_status, row_steps


class RunCSVLogger(CSVLogger):
    """Writes `metrics.csv` and `hparams.yaml` into the folder of a run.

    Each row is on disk as soon as it is logged, with its `time` in seconds since 1970. Rows of an earlier part of the run
    stay, and a new metric becomes a new column.

    Args:
        folder: The run's folder; it is made if it does not exist.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, name="", version="", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> "MetricsWriter":
        """The writer of the files."""
        if self._experiment is None:
            self._experiment = MetricsWriter(self.save_dir)
        return self._experiment  # type: ignore[return-value]


class MetricsWriter(ExperimentWriter):
    """Lightning's writer, except that it keeps existing metrics and adds the time to each row."""

    _warned = False

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Adds a row."""
        super().log_metrics({**metrics_dict, "time": round(time.time(), 1)}, step)

    def save(self) -> None:
        """Writes the rows; on a full disk they stay in memory until they can be written, and the file stays intact."""
        file, self._columns = self.metrics_file_path, list(self.metrics_keys)
        self._size = os.path.getsize(file) if os.path.isfile(file) else 0
        try:
            super().save()
            self._warned = False
        except OSError as error:
            self.metrics_keys = self._columns
            with suppress(OSError):
                os.truncate(file, self._size)  # half a row
            if not self._warned:
                print(f"{file}: cannot be written ({error.strerror}); its rows wait in memory", file=sys.stderr)
            self._warned = True

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Replaces the file atomically."""
        file = Path(self.metrics_file_path)
        with replacing(file) as temporary, file.open(newline="") as old, temporary.open("w", newline="") as new:
            writer = csv.DictWriter(new, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(csv.DictReader(old))
        self._columns, self._size = list(fieldnames), file.stat().st_size

    def _check_log_dir_exists(self) -> None:
        """Continues with the columns of an existing file, and removes half a row that a crash left."""
        if os.path.isfile(self.metrics_file_path):
            written = Path(self.metrics_file_path).read_bytes()
            whole = written.rfind(b"\n") + 1
            if whole < len(written):
                os.truncate(self.metrics_file_path, whole)
            columns = next(csv.reader(io.StringIO(written[:whole].decode())), [])
            self.metrics_keys = sorted(columns)  # Lightning sorts its keys before each row
            if columns != self.metrics_keys:
                self._rewrite_with_new_header(self.metrics_keys)


def cut_logs(folder: Path, checkpoint: dict[str, Any]) -> None:
    """Removes from a run's logs what came after a checkpoint and will be logged again.

    Args:
        folder: the run folder.
        checkpoint: the one that the run resumes from; it holds whether its step was validated.
    """
    step = checkpoint.get("global_step", 0)
    validated = checkpoint.get("callbacks", {}).get("Evaluate", {}).get("validated_at") == step
    if (metrics := folder / "metrics.csv").exists():
        _cut_metrics(metrics, step, validated)
    replace_text(folder / STATUS, json.dumps(read_status(folder) | {"format": FORMAT}, indent=1))
    for file in folder.glob("*.jsonl"):
        lines = _read(file).splitlines(True)
        replace_text(file, "".join(line for line in lines if _step(line) < step + validated))


def _cut_metrics(file: Path, step: int, validated: bool) -> None:
    """Also converts the steps of older versions to optimizer steps done."""
    steps, left = row_steps(file.parent), io.StringIO()
    table = csv.DictReader(io.StringIO(_read(file).replace("\0", "")))
    writer = csv.DictWriter(left, table.fieldnames or [], extrasaction="ignore")
    writer.writeheader()
    for row in table:
        validation = any(text for name, text in row.items() if name and name.startswith("val/"))
        done = steps(int(row["step"]), validation) if (row.get("step") or "").isdigit() else step + 1
        if done < step or (done == step and (validated or not validation)):
            writer.writerow({**row, "step": done})
    replace_text(file, left.getvalue())


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _step(line: str) -> float:
    """The step of a line of JSON; infinity for a broken line, which a crash may leave."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
