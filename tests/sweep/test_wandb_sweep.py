"""The real `wandb sweep` and `wandb agent` on a server of the tests: the runs of trials."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from wandb_server import serving

from lightning_score.report.finding import Reader
from lightning_score.sweep.results import read_csv
from lightning_score.sweep.trial_run import last_metrics

pytestmark = pytest.mark.slow
COMMAND = ["${env}", "${interpreter}", "-m", "lightning_score"]
TEST = {
    "method": "grid",
    "metric": {"name": "test/fid_digits_20", "goal": "minimize"},
    "parameters": {
        "model.sampler.steps": {"value": 1},
        "model.sampler": {"values": ["AnnealedLangevin", "LangevinDynamics", "trial_parts.Broken", "NoSuchSampler"]},
        "model.guidance": {"value": None},
        "evaluate": {"value": {"num_samples": 20}},
    },
    "command": [*COMMAND, "test", "--ckpt_path", "tiny.ckpt", "${args}"],
}
BROKEN = """
from lightning_score.sampling import AnnealedLangevin

class Broken(AnnealedLangevin):
    def plan(self, process, times):
        return [] if times is None else 1 // 0
"""
FIT = [*COMMAND, "fit", "--config", "configs/ncsn.yaml", "--trainer.accelerator=cpu", "--trainer.val_check_interval=3",
       "--evaluate.num_samples=20", "--samples.num_samples=4", "--model.sampler.steps=1"]  # fmt: skip
SEVERAL = {
    "method": "grid",
    "parameters": {"trainer.devices": {"value": 2}, "trainer.max_steps": {"value": 3}},
    "command": [*FIT, "--trainer.strategy=ddp", "${args}"],
}
EARLY = {
    "method": "grid",
    "metric": {"name": "val/fid_digits_20", "goal": "minimize"},
    "early_terminate": {"type": "hyperband", "min_iter": 1},
    "parameters": {"model.optimizer.lr": {"values": [1.0e-3]}},
    "command": [*FIT, "--trainer.max_steps=100000", "--config", "${args_json_file}"],
}
SWEEPS = {"test": TEST, "several": SEVERAL, "early": EARLY}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, checkpoint):
    """A folder with a small checkpoint, a sampler that crashes, and the sweeps' files."""
    folder = tmp_path_factory.mktemp("wandb_sweep")
    (folder / "tiny.ckpt").write_bytes(checkpoint.read_bytes())
    (folder / "trial_parts.py").write_text(BROKEN)
    for name, sweep in SWEEPS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(sweep))
    return folder


@pytest.fixture(scope="module")
def server(folder):
    """The server after two agents have done the sweep of tests, while other agents ran those that train."""
    bin_folder = str(Path(sys.executable).parent)
    with serving() as (state, url):
        home = folder / "home"
        home.mkdir()
        environment = {"PATH": f"{bin_folder}:/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path),
                       "WANDB_BASE_URL": url, "WANDB_API_KEY": "k" * 40, "WANDB_ERROR_REPORTING": "false",
                       "WANDB_AGENT_DISABLE_FLAPPING": "true", "WANDB_AGENT_MAX_INITIAL_FAILURES": "100",
                       "OMP_NUM_THREADS": "1"}  # fmt: skip

        def wandb(*arguments):
            return subprocess.Popen(["wandb", *arguments], env=environment, cwd=folder, stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT, text=True)  # fmt: skip

        for name in SWEEPS:
            creator = wandb("sweep", "--project", "digits", f"{name}.yaml")
            printed, _ = creator.communicate(timeout=60)
            assert creator.returncode == 0 and "Run sweep agent with: wandb agent somebody/digits/" in printed, printed
        agents = [wandb("agent", f"somebody/digits/{sweep}") for sweep in ("sweep0", "sweep0", "sweep1", "sweep2")]
        state.url = url
        state.printed = [agent.communicate(timeout=400)[0] for agent in agents]
        yield state


def of_sampler(server, sampler):
    """The only trial of a sampler: its id and its run."""
    (found,) = [(name, run) for name, run in server.runs.items() if run["settings"].get("model.sampler") == sampler]
    return found


@pytest.mark.parametrize(("sampler", "evaluations"), [("AnnealedLangevin", 10), ("LangevinDynamics", 1)])
def test_a_trial_is_a_run_with_its_settings_metrics_and_samples(server, sampler, evaluations):
    name, run = of_sampler(server, sampler)
    assert run["exit"] == 0 and run["sweep"] == "sweep0" and run["project"] == "digits", server.printed
    summary, config = run["summary"], run["config"]
    assert summary["test/fid_digits_20"] > 0 and summary["test/fid_digits_20_n"] == 20
    assert summary["test/fid_digits_20_floor"] > 0 and summary["test/nfe"] == evaluations
    assert config["model.sampler"]["value"] == sampler
    assert config["model"]["value"]["sampler"]["class_path"].endswith(sampler)
    assert any("samples" in image for image in server.images(name))


@pytest.mark.parametrize(
    ("sampler", "code", "error"), [("trial_parts.Broken", 1, "division"), ("NoSuchSampler", 2, "no such class")]
)
def test_failed_trials_are_failed_runs_with_the_error(server, sampler, code, error):
    _, run = of_sampler(server, sampler)
    assert run["exit"] == code and error in run["summary"]["error"]


def test_each_trial_has_a_separate_folder(server, folder):
    assert len(list(folder.glob("test/*/evaluations.jsonl"))) == 2


def only_run(server, sweep):
    (run,) = [run for run in server.runs.values() if run["sweep"] == sweep]
    return run


def test_several_processes_are_one_run(server):
    run = only_run(server, "sweep1")
    assert run["exit"] == 0 and int(run["config"]["trainer"]["value"]["devices"]) == 2, server.printed[2]
    assert [line["trainer/global_step"] for line in run["history"] if "val/fid_digits_20" in line] == [3]


def test_a_poor_trial_that_ends_early_is_not_a_failure(server):
    run = only_run(server, "sweep2")
    assert run["exit"] == 0 and run["config"]["model.optimizer.lr"]["value"] == 1e-3, server.printed[3]
    assert run["summary"]["state"] == "stopped early"
    assert 2 <= max(line["trainer/global_step"] for line in run["history"]) < 100_000
    assert "to resume" in server.printed[3]


def test_the_results_are_shown_here_and_on_wandb(folder, server):
    environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "k" * 40, "HOME": str(folder / "home"),
                   "WANDB_ERROR_REPORTING": "false", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path),
                   "PATH": os.environ["PATH"]}  # fmt: skip
    command = [sys.executable, "-m", "lightning_score", "sweep", "--wandb", "somebody/digits/sweep0"]
    before = {path.name for path in folder.iterdir()} | {"runs"}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "best: test/fid_digits_20=" in done.stdout and "division" in done.stdout
    (summary,) = [run for run in server.runs.values() if run.get("jobType") == "sweep summary"]
    (line,) = [line for line in summary["history"] if "sweep/trials" in line]
    assert line["sweep/trials"]["_type"] == "table-file" and line["sweep/trials"]["nrows"] == 4
    assert {"sweep/pareto", "sweep/model_sampler"} <= set(line) and summary["exit"] == 0
    assert (folder / "runs/sweeps/sweep0/pareto.png").exists()
    assert {path.name for path in folder.iterdir()} == before
    again = re.search(r"again: python -m lightning_score (.*)", done.stdout)[1]
    assert "--evaluate.num_samples=20" in again and "--model.guidance=null" in again and "--model.sampler.steps=1" in again
    subprocess.run([sys.executable, "-m", "lightning_score", *shlex.split(again), "--output=again"], cwd=folder, check=True,
                   env={**environment, "WANDB_MODE": "disabled"}, capture_output=True, timeout=120)  # fmt: skip
    best = read_csv(folder / "runs/sweeps/sweep0").ranked[0]
    assert last_metrics(folder / "again")["test/fid_digits_20"] == pytest.approx(best.value, rel=1e-5)
    command[-1] = "somebody/digits/sweep2"
    early = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
    assert early.returncode == 0 and "stopped early" in early.stdout, early.stderr
    assert [row.state for row in read_csv(folder / "runs/sweeps/sweep2").rows] == ["stopped early"]
    assert "stopped early" in {run.state for run in Reader(folder / "runs").look().runs}
    (folder / "runs/sweeps/sweep2/sweep.yaml").write_text("mine")
    refused = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2 and "contains another sweep" in refused.stderr
    command[-1] = "somebody/digits/none"
    wrong = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
    assert wrong.returncode == 2 and "cannot be read" in wrong.stderr and len(wrong.stderr.strip().splitlines()) == 1


def test_a_resumed_run_is_the_same_run(folder):
    """Interrupted and resumed, it is one run on the server, too."""
    with serving() as (state, url):
        environment = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "k" * 40, "HOME": str(folder / "home"),
                       "WANDB_ERROR_REPORTING": "false", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path),
                       "PATH": os.environ["PATH"]}  # fmt: skip
        options = ["--trainer.accelerator=cpu", "--trainer.val_check_interval=2", "--evaluate.features=null",
                   "--samples.num_samples=0", "--trainer.callbacks=null", "--trainer.log_every_n_steps=1"]  # fmt: skip
        for arguments in (["--config=ncsn", "--name=twice", *options, "--trainer.max_steps=2"],
                          ["--ckpt_path=runs/twice/latest", "--trainer.max_steps=4"]):  # fmt: skip
            command = [sys.executable, "-m", "lightning_score", "fit", *arguments]
            done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
        (found,) = state.runs.values()
        steps = {line["trainer/global_step"] for line in found["history"] if "train/loss" in line}
        assert steps == {1, 2, 3, 4} and found["exit"] == 0
