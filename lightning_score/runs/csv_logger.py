"""`metrics.csv`, the metrics of a run in its folder."""

import csv
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


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
    def experiment(self) -> ExperimentWriter:
        """The writer of the files."""
        if self._experiment is None:
            self._experiment = _Writer(self.save_dir)
        return self._experiment


class _Writer(ExperimentWriter):
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
        file, temporary = self.metrics_file_path, f"{self.metrics_file_path}-{os.getpid()}"
        try:
            with open(file, newline="") as old, open(temporary, "w", newline="") as new:
                writer = csv.DictWriter(new, fieldnames=fieldnames)
                writer.writeheader()
                writer.writerows(csv.DictReader(old))
            os.replace(temporary, file)
        except OSError:
            with suppress(OSError):
                os.remove(temporary)
            raise
        self._columns, self._size = list(fieldnames), os.path.getsize(file)

    def _check_log_dir_exists(self) -> None:
        """Continues with the columns of an existing file, and removes half a row that a crash left."""
        if os.path.isfile(self.metrics_file_path):
            written = Path(self.metrics_file_path).read_bytes()
            whole = written.rfind(b"\n") + 1
            if whole < len(written):
                os.truncate(self.metrics_file_path, whole)
            with open(self.metrics_file_path, newline="") as file:
                columns = next(csv.reader(file), [])
            self.metrics_keys = sorted(columns)  # Lightning sorts its keys before each row
            if columns != self.metrics_keys:
                self._rewrite_with_new_header(self.metrics_keys)
