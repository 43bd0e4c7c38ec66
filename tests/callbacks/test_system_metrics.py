"""`system.csv`: samples of processors, memory and GPUs, in the folder of a run and in its loggers."""

import csv
import multiprocessing
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger

from lightning_score.callbacks import SystemMetrics
from lightning_score.callbacks.system_metrics import Meter
from lightning_score.errors import InputError
from lightning_score.runs.folders import SYSTEM


class Kept(Logger):
    """A logger that keeps what it gets."""

    name = version = "kept"

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, params):
        """Nothing."""


def trainer_in(folder, **changes):
    loggers = [Kept(), CSVLogger(folder)]
    settings = {"default_root_dir": str(folder), "is_global_zero": True, "fast_dev_run": False, "global_step": 7,
                "loggers": loggers, "strategy": SimpleNamespace(root_device=torch.device("cpu"))}  # fmt: skip
    return SimpleNamespace(**{**settings, **changes})


def rows_of(folder):
    with (folder / SYSTEM).open(newline="") as file:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]


def test_samples_go_to_a_file_and_to_loggers_that_have_none(tmp_path):
    trainer, callback = trainer_in(tmp_path), SystemMetrics(every_seconds=0.02)
    callback.setup(trainer, None, "fit")
    end = time.monotonic() + 30
    while len(trainer.loggers[0].rows) < 3 and time.monotonic() < end:
        callback.on_train_batch_end(trainer, None)
        time.sleep(0.005)
    trainer.global_step = 9
    callback.teardown(trainer, None, "fit")
    rows = rows_of(tmp_path)
    assert rows[0]["step"] == 7 and rows[-1]["step"] == 9 and len(rows) >= 4  # the last one at the end
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
    for step, metrics in trainer.loggers[0].rows:
        assert step == 7 and {f"system/{name}" for name in rows[0]} - {"system/step", "system/time"} == {*metrics}
    assert not (tmp_path / "lightning_logs").exists()  # the CSV logger got nothing
    total = psutil.virtual_memory().total / 1e9
    assert all(0 <= row["cpu_percent"] <= 100 and 0.01 < row["memory_gb"] < total for row in rows)


def test_a_resumed_run_appends_and_may_have_other_columns(tmp_path):
    (tmp_path / SYSTEM).write_text("step,time,cpu_percent,gpu0_percent\n3,1.0,50.0,99.0\n4,2.")
    callback = SystemMetrics()
    callback.setup(trainer_in(tmp_path), None, "fit")
    callback.on_exception(trainer_in(tmp_path), None, KeyboardInterrupt())
    old, *new = rows_of(tmp_path)
    assert (old["step"], old["gpu0_percent"]) == (3, 99.0) and old["memory_gb"] != old["memory_gb"]
    assert [row["step"] for row in new] == [7] * len(new) and len(new) in (1, 2)


@pytest.mark.parametrize("changes", [{"is_global_zero": False}, {"fast_dev_run": True}])
def test_only_the_first_process_samples_and_only_in_real_runs(tmp_path, changes):
    callback = SystemMetrics()
    callback.setup(trainer_in(tmp_path, **changes), None, "fit")
    callback.teardown(trainer_in(tmp_path), None, "fit")
    off = SystemMetrics(every_seconds=0)
    off.setup(trainer_in(tmp_path), None, "fit")
    off.teardown(trainer_in(tmp_path), None, "fit")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="every_seconds=-1"):
        SystemMetrics(every_seconds=-1)


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path, capsys):
    (tmp_path / SYSTEM).mkdir()
    callback, trainer = SystemMetrics(every_seconds=0.01), trainer_in(tmp_path)
    callback.setup(trainer, None, "fit")
    end = time.monotonic() + 30
    while len(trainer.loggers[0].rows) < 3 and time.monotonic() < end:
        callback.on_train_batch_end(trainer, None)
    callback.teardown(trainer, None, "fit")
    assert len(trainer.loggers[0].rows) == 3 and capsys.readouterr().err.count("cannot be written") == 1


def work(seconds):
    kept, end = bytearray(100_000_000), time.process_time() + seconds
    while time.process_time() < end:
        kept[0] = 1


def test_processes_that_a_run_starts_count():
    """One that holds 100 MB and works for a while, by the time it took; this test itself takes little."""
    meter = Meter(0)
    before = meter.sample()
    child = multiprocessing.get_context("spawn").Process(target=work, args=(1e9,))
    start = time.monotonic()
    child.start()
    end = start + 60
    sample = meter.sample()
    while (sample["memory_gb"] < before["memory_gb"] + 0.1 or sample["process_cpu_percent"] < 5) and time.monotonic() < end:
        time.sleep(0.2)
        sample = meter.sample()
    child.kill()
    child.join()
    assert sample["memory_gb"] > before["memory_gb"] + 0.1 and 5 <= sample["process_cpu_percent"] < 400


def test_gpus_are_measured_where_nvml_can(tmp_path, monkeypatch):
    def unknown(i):
        raise RuntimeError("not supported")

    measured = {"utilization": lambda i: 50 + i, "device_memory_used": lambda i: 3_000_000_000, "power_draw": unknown,
                "temperature": lambda i: 60}  # fmt: skip
    for name, call in measured.items():
        monkeypatch.setattr(torch.cuda, name, call, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    sample = {name: value for name, value in Meter(2).sample().items() if name.startswith("gpu")}
    assert sample == {"gpu0_percent": 50, "gpu0_memory_gb": 3.0, "gpu0_celsius": 60,
                      "gpu1_percent": 51, "gpu1_memory_gb": 3.0, "gpu1_celsius": 60}  # fmt: skip
    for device, found in (("cpu", False), ("cuda", True)):
        callback, trainer = SystemMetrics(), trainer_in(tmp_path / device)
        (tmp_path / device).mkdir()
        trainer.strategy.root_device = torch.device(device)
        callback.setup(trainer, None, "fit")
        callback.teardown(trainer, None, "fit")
        assert ("gpu1_percent" in rows_of(tmp_path / device)[0]) == found


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("step,secret\n1,2\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / SYSTEM).symlink_to(tmp_path / "mine")
    callback, trainer = SystemMetrics(), trainer_in(tmp_path / "run")
    callback.setup(trainer, None, "fit")
    callback.teardown(trainer, None, "fit")
    assert (tmp_path / "mine").read_text() == "step,secret\n1,2\n" and "secret" not in rows_of(tmp_path / "run")[0]
