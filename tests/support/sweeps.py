"""Small sweeps: of a function, of samplers of a checkpoint, and of trainings."""

import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lightning_score.errors import InputError
from lightning_score.sweep.attempts import SLOT
from lightning_score.sweep.spec import read_sweep_file
from lightning_score.sweep.study import WORKER, Study

PARAMETERS = {
    "x": {"min": -2.0, "max": 2.0},
    "y": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0},
    "z": {"values": ["a", "b"]},
}


@pytest.fixture(name="make")
def make_fixture(tmp_path):
    """Makes a study of a sweep with some entries, in one database."""

    def made(name="s", seed=None, **entries):
        base = {"name": name, "method": "random", "metric": {"name": "m"}, "parameters": PARAMETERS}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**base, **entries}))
        return Study(read_sweep_file(str(file)), f"sqlite:///{tmp_path}/study.db", name, create=True, seed=seed)

    return made


def bowl(study, trial, settings):
    """A function whose minimum, 0, is at x = 1, y = 0.01, z = b."""
    return (settings["x"] - 1) ** 2 + math.log10(settings["y"] / 0.01) ** 2 + (settings["z"] == "a")


TEST = {
    "name": "steps",
    "method": "grid",
    "metric": {"name": "test/fid_digits_40", "goal": "minimize"},
    "parameters": {
        "model.sampler.steps": {"values": [1, 2, 3]},
        "model.sampler.denoise": {"values": ["Tweedie", "KeepNoise"]},
        "evaluate.num_samples": {"value": 40},
    },
    "command": ["${env}", "${interpreter}", "-m", "lightning_score", "test", "--ckpt_path", "tiny.ckpt", "${args}"],
}


FIT = {
    "name": "lr",
    "method": "grid",
    "metric": {"name": "val/fid_digits_20"},
    "early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 4},
    "parameters": {"model.optimizer.lr": {"values": [4.0e-3, 1.0e-9, 1.0e+30]}},
    "command": ["${env}", "${interpreter}", "-m", "lightning_score", "fit", "--config", "ncsn", "--trainer.max_steps=30",
                "--trainer.val_check_interval=10", "--evaluate.num_samples=20", "--samples.num_samples=0",
                "--model.sampler.steps=2", "${args}"],
}  # fmt: skip


@pytest.fixture(name="folder")
def folder_fixture(tmp_path, cache, checkpoint, monkeypatch):
    """The current folder, with the checkpoint and the sweeps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # the threads of a worker would wait for one another on a busy machine
    shutil.copy(checkpoint, "tiny.ckpt")
    for sweep in (TEST, FIT):
        Path(f"{sweep['name']}.yaml").write_text(yaml.safe_dump(sweep))
    return tmp_path


def trials(file, url=None, name=None):
    """All trials of a sweep, in the order of the queue."""
    sweep = read_sweep_file(file)
    url = url or f"sqlite:///{Path.cwd()}/runs/sweeps/{sweep.name}/study.db"
    return sorted(Study(sweep, url, name or sweep.name).trials(), key=lambda trial: trial.user_attrs[SLOT])


def started(*arguments):
    """Starts a sweep in a separate process that accepts Ctrl-C, even if the tests run in the background of a shell."""
    return subprocess.Popen([sys.executable, "-m", "lightning_score", "sweep", *arguments], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip


def contents(place):
    """The files below a folder, with their bytes."""
    return {path: path.read_bytes() for path in Path(place).rglob("*") if path.is_file() and "cache" not in path.parts}


def wait_for(condition, seconds=600):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)
    return found


def running(file):
    """The processes that run trials."""
    try:
        workers = [trial.user_attrs.get(WORKER) for trial in trials(file) if trial.state.name == "RUNNING"]
    except InputError:  # the study is not there yet
        return []
    return [int(worker.rpartition(":")[2]) for worker in workers if worker]
