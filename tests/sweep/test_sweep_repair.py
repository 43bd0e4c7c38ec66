"""Trials that train are repaired: after `kill -9` of worker or trial they resume from their checkpoint."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from lightning_score.runs.checkpoints import read_checkpoint
from lightning_score.runs.status import read_status
from lightning_score.sweep.attempts import DEATHS, RETRIED
from lightning_score.sweep.trial_run import last_metrics
from sweeps import FIT, folder_fixture, started, trials, wait_for  # noqa: F401

SMALL = ["--model.network.channels=8", "--model.network.multipliers=[1]", "--model.process.levels=4"]
COUNTS = """
import time
from lightning.pytorch import Callback

class Counts(Callback):
    def on_train_batch_end(self, trainer, *_):
        with open("steps.txt", "a") as file:
            file.write(f"{trainer.global_step}\\n")
        time.sleep(0.1)
"""
"""A callback in the user's own module: it notes every step of training, and takes time for it."""


def steps():
    return [int(line) for line in Path("steps.txt").read_text().split()] if Path("steps.txt").exists() else []


def weights(folder):
    checkpoint = read_checkpoint(folder / "last.ckpt")
    found = {
        f"{part}/{name}": value for part in ("state_dict", "current_model_state") for name, value in checkpoint[part].items()
    }
    for number, state in checkpoint["optimizer_states"][0]["state"].items():
        found |= {f"optimizer/{number}/{name}": value for name, value in state.items()}
    return checkpoint["global_step"], found


@pytest.mark.slow
def test_a_killed_trial_resumes_from_its_checkpoint_bit_for_bit(folder, monkeypatch):
    """Power cut, then the trial alone killed, as when memory runs out."""
    Path("counts.py").write_text(COUNTS)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [*FIT["command"][:-1], *SMALL, "--trainer.callbacks=[counts.Counts]", "${args}"]
    entries = {**FIT, "parameters": {"model.optimizer.lr": {"values": [4.0e-3]}}, "command": command}
    Path("lr.yaml").write_text(yaml.safe_dump(entries))
    trial, done = Path("runs/sweeps/lr/trials/0000"), []
    for wanted, whole in ((15, True), (25, False)):
        sweep = started("lr.yaml")
        wait_for(lambda wanted=wanted: max(steps(), default=0) >= wanted)
        if whole:
            os.killpg(sweep.pid, signal.SIGKILL)
        os.kill(read_status(trial)["pid"], signal.SIGKILL)
        time.sleep(0.2)
        done.append(max(steps()))
        if whole:
            sweep.wait()
    printed, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, printed
    (found,) = trials("lr.yaml")
    assert found.state.name == "COMPLETE" and found.user_attrs["folder"] == str(trial.resolve())
    assert len(found.system_attrs[RETRIED]) == 2 and found.user_attrs[DEATHS] == 0
    assert found.intermediate_values == dict(enumerate([found.intermediate_values[k] for k in (1, 2, 3)], 1))
    assert steps() == [*range(1, done[0] + 1), *range(11, done[1] + 1), *range(21, 31)]  # checkpoints at 10 and 20
    whole = [sys.executable, "-m", "lightning_score", *command[4:-1], "--model.optimizer.lr=4.0e-3", "--output=whole"]
    subprocess.run(whole, check=True)
    (last, got), (end, expected) = weights(trial), weights(Path("whole"))
    assert (
        last == end == 30 and got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)
    )
    assert found.value == last_metrics(Path("whole"))["val/fid_digits_20"]
