"""The real `wandb sweep`, `wandb sweep-scheduler` and `wandb agent` on a server of the tests: the same trials as here."""

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from wandb_server import serving

from lightning_score.sweep.spec import read_sweep_file
from lightning_score.sweep.study import SETTINGS, SLOT, Study
from sweeps import wait_for

pytestmark = pytest.mark.slow
SOURCE = """
import optuna

def study(sweep):
    sampler = optuna.samplers.TPESampler(seed=5, n_startup_trials=1)
    return optuna.create_study(sampler=sampler, direction=sweep.config["metric"]["goal"])

def space(trial):
    kind = trial.suggest_categorical("kind", ["AnnealedLangevin", "LangevinDynamics"])
    drawn = {"model.sampler": kind, "model.sampler.steps": trial.suggest_int("steps", 1, 3)}
    if kind == "AnnealedLangevin":
        drawn["model.sampler.step_size"] = trial.suggest_float("step_size", 1e-6, 1e-4, log=True)
    return {**drawn, "model.guidance": None, "evaluate.num_samples": 20}
"""
COMMAND = ["${env}", "${interpreter}", "-m", "lightning_score", "test", "--ckpt_path", "tiny.ckpt", "--seed_everything=0"]
OPTUNA = {
    "method": "custom",
    "metric": {"name": "test/fid_digits_20", "goal": "minimize"},
    "scheduler": {"engine": "optuna", "source": "own.py", "optimizer": "study", "search_space": "space"},
    "run_cap": 3,
    "command": [*COMMAND, "${args}"],
}
GRID = {
    "method": "grid",
    "metric": {"name": "test/fid_digits_20", "goal": "minimize"},
    "scheduler": {"engine": "wandb"},
    "parameters": {
        "model": {"parameters": {"sampler.steps": {"distribution": "q_uniform", "min": 1, "max": 3, "q": 1}}},
        "model.sampler.denoise": {"values": ["Tweedie", "KeepNoise"]},
        "evaluate.num_samples": {"value": 20},
    },
    "command": [*COMMAND, "${args}"],
}


@pytest.fixture(name="folder")
def folder_fixture(tmp_path, checkpoint):
    (tmp_path / "tiny.ckpt").write_bytes(checkpoint.read_bytes())
    (tmp_path / "own.py").write_text(SOURCE)
    (tmp_path / "home").mkdir()
    return tmp_path


def environment(folder, url):
    bin_folder = str(Path(sys.executable).parent)
    paths = os.pathsep.join(path for path in sys.path if Path(path).name != "support")  # where `sweeps` is not W&B's
    return {"PATH": f"{bin_folder}:/usr/bin:/bin", "HOME": str(folder / "home"), "PYTHONPATH": paths,
            "WANDB_BASE_URL": url, "WANDB_API_KEY": "k" * 40, "WANDB_ERROR_REPORTING": "false",
            "OMP_NUM_THREADS": "1"}  # fmt: skip


def on_wandb(folder, sweep):
    """The settings of the trials that W&B's scheduler draws and its agent runs, and the exit codes."""
    (folder / "s.yaml").write_text(yaml.safe_dump(sweep))
    with serving() as (state, url):
        given = environment(folder, url)

        def wandb(*words):
            return subprocess.Popen(["wandb", *words], env=given, cwd=folder, stdout=subprocess.PIPE, text=True,
                                    stderr=subprocess.STDOUT)  # fmt: skip

        printed, _ = wandb("sweep", "--project", "digits", "s.yaml").communicate(timeout=120)
        assert "wandb sweep-scheduler somebody/digits/sweep0" in printed, printed
        agent = wandb("agent", "somebody/digits/sweep0")
        scheduler = wandb("sweep-scheduler", "--batch-size=1", "--poll-interval=0.5", "somebody/digits/sweep0")
        printed, _ = scheduler.communicate(timeout=500)
        assert scheduler.returncode == 0 and state.states["sweep0"] == "FINISHED", printed
        agent.communicate(timeout=200)
        command = [sys.executable, "-m", "lightning_score", "sweep", "--wandb", "somebody/digits/sweep0"]
        shown = subprocess.run(command, env=given, cwd=folder, capture_output=True, text=True, timeout=200)
        assert shown.returncode == 0 and "again: python -m lightning_score test" in shown.stdout, shown.stderr
        return [run["settings"] for run in state.of_sweep("sweep0").values()], {run["exit"] for run in state.runs.values()}


def here(folder, sweep):
    command = [sys.executable, "-m", "lightning_score", "sweep", "s.yaml"]
    given = {**environment(folder, "http://127.0.0.1:9"), "WANDB_MODE": "disabled"}
    done = subprocess.run(command, env=given, cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    study = Study(read_sweep_file(str(folder / "s.yaml")), f"sqlite:///{folder}/runs/sweeps/s/study.db", "s")
    trials = sorted(study.trials(), key=lambda trial: trial.user_attrs[SLOT])
    return [trial.user_attrs[SETTINGS] for trial in trials], done.stdout


def test_a_file_with_an_own_study_and_search_space_runs_the_same_trials(folder, monkeypatch):
    monkeypatch.chdir(folder)
    expected, codes = on_wandb(folder, OPTUNA)
    found, printed = here(folder, OPTUNA)
    assert found == expected[:3] and len(found) == 3 and codes <= {0, None}  # W&B's client draws one more than the cap
    assert len({json.dumps(each) for each in found}) > 1 and "by study and space of own.py" in printed


@pytest.mark.skipif(not [*distributions(name="sweeps")], reason="W&B's own engine, which needs NumPy 1, is not installed")
def test_the_grid_of_wandbs_engine_has_the_same_order(folder, monkeypatch):
    monkeypatch.chdir(folder)
    expected, codes = on_wandb(folder, GRID)
    found, _ = here(folder, GRID)
    flat = [{**{f"model.{name}": value for name, value in each.pop("model").items()}, **each} for each in expected]
    assert found == flat and len(flat) == 4 and codes <= {0, None}


FIT = {
    "method": "grid",
    "metric": {"name": "val/fid_digits_20", "goal": "minimize"},
    "early_terminate": {"type": "hyperband", "min_iter": 1000},
    "parameters": {"model.optimizer.lr": {"values": [1.0e-3]}},
    "command": [*COMMAND[:4], "fit", "--config", "ncsn", "--trainer.accelerator=cpu", "--trainer.max_steps=60",
                "--trainer.val_check_interval=20", "--trainer.log_every_n_steps=1", "--evaluate.features=null",
                "--samples.num_samples=0", "--trainer.callbacks=null", "${args}"],
}  # fmt: skip


def children(process):
    return [int(pid) for task in Path(f"/proc/{process}/task").iterdir() for pid in (task / "children").read_text().split()]


def trainings(process):
    """The processes that train, below another one."""
    for child in children(process):
        yield from trainings(child)
        if "lightning_score\0fit" in Path(f"/proc/{child}/cmdline").read_text():
            yield child


def test_a_preempted_trial_is_handed_out_again_and_resumes(folder):
    (folder / "s.yaml").write_text(yaml.safe_dump(FIT))
    with serving() as (state, url):
        state.patient = True  # no early termination
        given = environment(folder, url)
        subprocess.run(["wandb", "sweep", "--project", "digits", "s.yaml"], env=given, cwd=folder, check=True, timeout=120)
        agent = subprocess.Popen(["wandb", "agent", "somebody/digits/sweep0"], env=given, cwd=folder, text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        wait_for(lambda: any(len(read.read_text().splitlines()) > 4 for read in folder.glob("runs/*/2*/metrics.csv")), 300)
        os.kill(next(trainings(agent.pid)), signal.SIGTERM)
        printed, _ = agent.communicate(timeout=300)
        run = state.runs["sweep0-0"]
        assert run.get("preempted") == 1 and run["started"] > 1 and run["exit"] == 0, printed
        steps = [line["trainer/global_step"] for line in run["history"] if "train/loss" in line]
        assert sorted({*steps}) == list(range(1, 61)) and "resuming" in printed and "state" not in run["summary"], printed
        assert [json.loads(path.read_text())["state"] for path in folder.glob("runs/*/2*/run.json")] == ["finished"]
