"""`system.csv`: processors, memory and GPUs while a run runs."""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_score.callbacks.base import writes_files
from lightning_score.errors import require
from lightning_score.runs.folders import SYSTEM, leads_out
from lightning_score.runs.logs import MetricsWriter

GPU = {"percent": "utilization", "memory_gb": "device_memory_used", "watts": "power_draw", "celsius": "temperature"}
"""What NVML measures of a GPU, as functions of `torch.cuda`; they need nvidia-ml-py."""
UNITS = {"memory_gb": 1e9, "watts": 1e3}


class SystemMetrics(Callback):
    """Samples the processors, the memory and the GPUs of this machine in a thread of the first process.

    The columns of `system.csv` are step, time (seconds since 1970), cpu_percent and memory_percent (of the machine),
    process_cpu_percent (100 is one core) and memory_gb (of this process and those that it started, as data loaders), and
    gpu0_percent, gpu0_memory_gb, gpu0_watts, gpu0_celsius for each GPU of a run on GPUs. A resumed run appends.

    The samples also go to loggers, as `system/cpu_percent`, except to `metrics.csv` and to W&B, whose client samples by
    itself. `DeviceStatsMonitor` of Lightning samples per step, waits for it, logs into `metrics.csv`, and does not measure
    how busy a GPU is.

    Args:
        every_seconds: between two samples; 0 for none.

    Raises:
        InputError: every_seconds is negative.
    """

    def __init__(self, every_seconds: float = 10.0) -> None:
        super().__init__()
        require(every_seconds >= 0, f"every_seconds={every_seconds}: must be at least 0; 0 turns it off")
        self.every_seconds = every_seconds
        self._over, self._thread = threading.Event(), threading.Thread()
        self._sample: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts to sample."""
        self._stop()
        if self.every_seconds > 0 and writes_files(trainer):
            folder = Path(trainer.default_root_dir)
            gpus = torch.cuda.device_count() if trainer.strategy.root_device.type == "cuda" else 0
            self._over = threading.Event()
            self._thread = threading.Thread(target=self._watch, args=(trainer, folder, gpus, self._over), daemon=True)
            self._thread.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Gives a new sample to the loggers."""
        if self._sample:
            sample, self._sample = self._sample, {}
            for logger in trainer.loggers:
                if not isinstance(logger, CSVLogger | WandbLogger):  # which has samples of its own
                    logger.log_metrics({f"system/{name}": value for name, value in sample.items()}, trainer.global_step)

    def _stop(self, *_: Any, **__: Any) -> None:
        """Ends with a last sample."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    teardown = on_exception = _stop

    def _watch(self, trainer: Trainer, folder: Path, gpus: int, over: threading.Event) -> None:
        """Samples until the end."""
        if leads_out(folder / SYSTEM, folder):
            with suppress(OSError):  # a folder, which the writer reports
                (folder / SYSTEM).unlink()
        meter, table, pause, ended = Meter(gpus), _Writer(str(folder)), 0.0, False
        while not ended:
            ended, pause = over.wait(pause), self.every_seconds
            self._sample = sample = meter.sample()
            table.log_metrics(sample, trainer.global_step)
            table.save()


class Meter:
    """Measures this process, those that it started, and its machine.

    Args:
        gpus: number of GPUs.
    """

    def __init__(self, gpus: int):
        self._gpus, self._process = gpus, psutil.Process()
        self._before = time.monotonic(), self._seconds_and_memory()[0]
        psutil.cpu_percent()  # the first one has no interval

    def sample(self) -> dict[str, float]:
        """What the machine does since the last sample, by column."""
        (then, used), now = self._before, time.monotonic()
        seconds, memory = self._seconds_and_memory()
        self._before = now, seconds
        measured = {
            "cpu_percent": psutil.cpu_percent(),
            "process_cpu_percent": 100 * max(seconds - used, 0.0) / max(now - then, 1e-3),
            "memory_percent": psutil.virtual_memory().percent,
            "memory_gb": memory / 1e9,
        }
        return {name: round(value, 3) for name, value in {**measured, **dict(self._of_gpus())}.items()}

    def _seconds_and_memory(self) -> tuple[float, float]:
        """Processor time and resident memory of this process and those that it started."""
        seconds, memory = 0.0, 0.0
        for process in [self._process, *self._process.children(recursive=True)]:
            with suppress(psutil.Error), process.oneshot():  # one may have ended
                times = process.cpu_times()
                seconds, memory = seconds + times.user + times.system, memory + process.memory_info().rss
        return seconds, memory

    def _of_gpus(self) -> Iterator[tuple[str, float]]:
        for i in range(self._gpus):
            for name, measure in GPU.items():
                with suppress(Exception):  # without nvidia-ml-py, or where a GPU does not measure it
                    yield f"gpu{i}_{name}", getattr(torch.cuda, measure)(i) / UNITS.get(name, 1)


class _Writer(MetricsWriter):
    """Writes `system.csv` as `metrics.csv` is written."""

    NAME_METRICS_FILE = SYSTEM
