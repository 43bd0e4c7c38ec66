"""Several processes do what one does, whoever starts them, and none of them waits forever."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from forked import run_together
from subprocesses import DDP, MODULE, SHORT, call, environment_fixture, trouble  # noqa: F401

from lightning_score.cli import run
from lightning_score.runs import rendezvous as processes
from lightning_score.runs.records import FILE, read_records


def torchrun(*options):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *options]


def started_together(environments, *command):
    """The outputs of one process for each environment."""
    started = [
        subprocess.Popen([sys.executable, *MODULE, *command], env=environment, text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT) for environment in environments
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(outputs)
    return outputs


def assert_one_run(name="ncsn"):
    """One run folder, whole, with every row once."""
    (folder,) = Path("runs", name).glob("20*")
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 8
    assert [r.step for r in read_records(folder / FILE)] == [4, 8]
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert len(rows) == len(set(rows)) == 1 + 4 + 2
    assert json.loads((folder / "run.json").read_text())["state"] == "finished"
    return folder


@pytest.mark.parametrize(
    ("devices", "precision", "launched"),
    [(2, "32-true", True), (3, "64-true", False)],
)
@pytest.mark.slow
def test_samples_and_metrics_are_those_of_one_process(devices, precision, launched, checkpoint, environment):
    """The numbers do not divide: 41 samples, in batches of 8. Fewer samples than processes are refused.

    Args:
        launched: by Lightning, with a start of Python for each command and process.
    """
    common = [f"--ckpt_path={checkpoint}", f"--trainer.precision={precision}", "--trainer.accelerator=cpu"]
    draw, measure = (
        ["predict", "--num_samples=41", "--batch_size=8", *common],
        ["test", "--evaluate.num_samples=41", "--evaluate.batch_size=8", *common],
    )
    for command in draw, measure:
        assert run([*command, f"--output=one/{command[0]}"]) == 0
    several = [*DDP, f"--trainer.devices={devices}"]
    commands = [[*command, *several, f"--output=several/{command[0]}"] for command in (draw, measure)]
    few = ["predict", f"--ckpt_path={checkpoint}", "--num_samples=1", *several]
    if launched:
        done = [call(environment, sys.executable, *MODULE, *command) for command in (*commands, few)]
        codes, output = [each.returncode for each in done], done[-1].stderr
        assert codes == [0, 0, 2], done[0].stderr[-2000:]
    else:
        codes, output = run_together(environment, devices, *commands, few)
        assert codes == [2] * devices, output[-2000:]
    assert f"must be at least the number of processes, {devices}" in output
    one, other = (np.load(Path(name, "predict", "samples.npz")) for name in ("one", "several"))
    exact = precision == "64-true"
    if exact:
        assert one["x"].dtype == np.float64 and np.abs(one["x"] - other["x"]).max() < 1e-9
    assert (np.abs(one["images"].astype(int) - other["images"]) <= 1).mean() >= 0.999
    found, expected = ({r.metric: r for r in read_records(Path(name, "test", FILE))} for name in ("several", "one"))
    assert found.keys() == expected.keys() and "fid_digits_41" in found
    for metric, record in expected.items():
        tolerance = (1e-9 if metric.startswith("fid") else 1e-6) if exact else 1e-4
        assert found[metric].value == pytest.approx(record.value, rel=tolerance), metric


def documented(launcher):
    """The arguments of a launch line in the README of training, on two CPU processes of one machine."""
    readme = (Path(__file__).parents[2] / "lightning_score" / "training" / "README.md").read_text()
    (line,) = re.findall(rf"```console\n({launcher} .*)\n```", readme.replace("\\\n", ""))
    line = line.replace("num_nodes 2", "num_nodes 1").replace("devices 4", "devices 2")
    return shlex.split(line.replace("configs/ncsn.yaml", "ncsn"))


@pytest.mark.slow
def test_the_line_for_torchrun_in_the_readme_makes_one_run_and_restarts_it(environment):
    """A process is killed; torchrun restarts all, which resume in the same folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--max-restarts=3", *documented("torchrun")[1:], *SHORT]
    done = call(environment, *command, "--trainer.accelerator=cpu", trouble("kill", step=6, once="killed"))
    assert done.returncode == 0 and Path("killed").exists(), done.stderr[-3000:]
    assert "after step 4" in done.stdout
    assert_one_run()


def test_restarted_processes_never_see_addresses_of_those_that_ended(monkeypatch):
    """torchrun keeps its store from one start to the next."""
    kept = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    kept.set("cpu/0", "where nobody listens")
    launcher = {"WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "TORCHELASTIC_RUN_ID": "run", "TORCHELASTIC_RESTART_COUNT": 1,
            "TORCHELASTIC_USE_AGENT_STORE": True}  # fmt: skip
    ports, stores = [], []  # which stay open
    for rank in range(2):
        for name, value in (launcher | {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": kept.port}).items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(processes, "_stores", [])
        processes.Rendezvous().store().set(f"here/{rank}", "")
        stores += processes._stores
        ports.append(int(os.environ["MASTER_PORT"]))
    assert ports[0] == ports[1] != kept.port
    fresh = dist.TCPStore("localhost", ports[0], is_master=False, wait_for_workers=False)
    assert not fresh.check(["cpu/0"]) and kept.check(["cpu/0"])


@pytest.mark.slow
def test_torchrun_with_one_process(environment):
    command = [*MODULE, "fit", "--config=ncsn", *SHORT, *DDP, "--trainer.devices=1"]
    done = call(environment, *(part.replace("=2", "=1") for part in torchrun()), *command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_one_run()


@pytest.mark.slow
def test_two_machines_without_a_launcher(environment):
    """As in Lightning: one command on each machine, and variables with the number of the machine."""
    meet = {**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29655"}
    options = ["fit", "--config=ncsn", *SHORT, *DDP, "--trainer.devices=1", "--trainer.num_nodes=2"]
    started_together([{**meet, "NODE_RANK": str(k)} for k in range(2)], *options)
    assert_one_run()


@pytest.mark.slow
def test_a_job_of_slurm(environment):
    """The README's line, with the variables that srun gives to its tasks."""
    job = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "4321", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "localhost",
           "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_STEP_ID": "0"}  # fmt: skip
    tasks = [{**environment, **job, "SLURM_PROCID": str(k), "SLURM_LOCALID": str(k)} for k in range(2)]
    line = documented("srun")
    assert line[:4] == ["srun", "python", "-m", "lightning_score"]
    outputs = started_together(tasks, *line[4:], *SHORT, "--trainer.accelerator=cpu")
    assert_one_run()
    assert "finished 8 steps" in outputs[0] and "finished" not in outputs[1]


SLEEPS = "process {} of 2, fit, step 3: another process does not answer"
LOST = {
    "raise-1": [("raise", 1, {1, 2, -signal.SIGKILL}, "this process alone is in trouble")],
    "raise-0": [("raise", 0, {1}, "this process alone is in trouble")],
    "kill-1": [("kill", 1, {2, -signal.SIGKILL}, "")],
    "sleep": [("sleep", 1, {2}, SLEEPS.format(0)), ("sleep", 0, {2, -signal.SIGKILL}, SLEEPS.format(1))],
}
"""What happens to a process, its rank, the right exit codes, and the message; one of a group starts while others wait."""


@pytest.mark.slow
@pytest.mark.faults("one of several processes lost")
@pytest.mark.parametrize("group", LOST)
def test_no_process_waits_forever(group, environment):
    """Whatever happens to one process, all end a few seconds later, and one prints the reason."""
    options = ["fit", "--config=ncsn", *SHORT, *DDP[:1], "--trainer.devices=2", "--trainer.strategy=DDPStrategy",
               "--trainer.strategy.timeout=0:00:30"]  # fmt: skip
    started = []
    for kind, rank, _, _ in LOST[group]:
        happened = Path(f"happened-{rank}")
        command = [sys.executable, *MODULE, *options, f"--output={rank}", trouble(kind, rank=rank, once=str(happened))]
        started.append(subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, start_new_session=True))  # fmt: skip
        while started[-1].poll() is None and not happened.exists():
            time.sleep(0.1)
    for process, (_, _, codes, message) in zip(started, LOST[group], strict=True):
        try:
            output, _ = process.communicate(timeout=250)  # the pipe closes with the last of them
        finally:
            with pytest.raises(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode in codes and message in output, output[-3000:]
