"""`sweep --launch slurm`: an array job whose tasks share the trials of a sweep."""

import os
import re
import shlex
import signal
import stat
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from lightning_score.cli import run
from lightning_score.errors import InputError
from lightning_score.sweep.attempts import SLOT
from lightning_score.sweep.slurm import BODY, check_options, script
from lightning_score.sweep.study import WORKER
from sweeps import TEST, folder_fixture, trials, wait_for  # noqa: F401

JOB = Path("runs/sweeps/my 5% sweep/slurm/job.sh")
LAUNCH = ["sweep", "steps.yaml", "--name=my 5% sweep", "--launch=slurm"]


def options_of(text):
    """The options of sbatch in a script, as sbatch splits them."""
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    return dict(part.partition("=")[::2] for line in lines for part in shlex.split(line))


def test_the_script_holds_the_users_options_and_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/my modules")
    given = {"partition": "gpu", "time": "8:00:00", "exclusive": "true", "comment": 'say "yes" \\', "ntasks": "1"}
    text = script("a b", tmp_path / "50% done", 8, ["x y.yaml", "--worker"], check_options(given))
    assert options_of(text) == {
        "job-name": "a b", "array": "0-7", "output": f"{tmp_path}/50%% done/slurm/%A_%a.log", "open-mode": "append",
        "requeue": "", "signal": "B:USR1@120", "partition": "gpu", "time": "8:00:00", "exclusive": "",
        "comment": 'say "yes" \\', "ntasks": "1"}  # fmt: skip
    assert f"cd {tmp_path} || exit 1\nexport PYTHONPATH='/my modules'\n" in text
    assert "-m lightning_score sweep 'x y.yaml' --worker &\n" in text
    assert options_of(script("a", tmp_path, 1, [], {"signal": "B:USR1@600"}))["signal"] == "B:USR1@600"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"array": "0-3"}, "--slurm.array 0-3: the sweep decides this"),
        ({"array": "true"}, "--slurm.array"),
        ({"ntasks": "4"}, "--slurm.ntasks 4: the sweep decides this"),
        ({"Partition gpu": "x"}, "must be a long option of sbatch"),
        ({"comment": "a\n#SBATCH --uid=0"}, "must be one line"),
    ],
)
def test_options_that_the_script_cannot_hold_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        check_options(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--submit"], "--submit: only for --launch slurm"),
        (["--slurm.time=1"], "--slurm: only for --launch slurm"),
        (["--launch=pbs"], "--launch pbs: must be slurm"),
        (["--launch=slurm", "--summary"], "--summary: does not take --launch"),
        (["--worker", "--jobs=2"], "--worker: does not take --jobs"),
        (["--wandb=a/b/c"], "--wandb: does not take a file"),
        (["--retry=all"], "--retry all: must be failed, or the numbers of failed trials, as 3,7"),
        (["--retry=3,"], "--retry 3,: must be failed"),
        (["--worker"], "there is no such file"),
    ],
)
def test_options_that_do_not_go_together_are_refused(folder, capsys, options, message):
    before = sorted(Path().rglob("*"))
    assert run(["sweep", "steps.yaml", *options]) == 2
    printed = capsys.readouterr().err
    assert message in printed and len(printed.strip().splitlines()) == 1 and sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(("number", "code", "requeued"), [("USR1", 143, True), ("TERM", 143, False), (None, 5, False)])
def test_a_task_is_queued_again_before_its_time_limit(tmp_path, number, code, requeued):
    """The worker gets SIGTERM and has its time; only after SIGUSR1 the task is queued again."""
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    (tmp_path / "scontrol").chmod(0o755)
    waits = "trap 'sleep 0.3; exit 143' TERM; touch begun; while true; do sleep 0.05; done"
    worker = f"bash -c {shlex.quote(waits if number else 'exit 5')}"
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "3",
    }
    task = subprocess.Popen(
        ["bash", "-c", BODY.format(worker=worker)], cwd=tmp_path, env=environment, start_new_session=True
    )
    if number:
        wait_for((tmp_path / "begun").exists)
        if number == "TERM":
            os.killpg(task.pid, signal.SIGTERM)  # as SLURM does
        else:
            task.send_signal(signal.SIGUSR1)
    assert task.wait(20) == (0 if requeued else code) and (tmp_path / "called").exists() == requeued
    if requeued:
        assert (tmp_path / "called").read_text() == "requeue 12_3\n"  # SLURM_JOB_ID of the last task would be all of them


@pytest.mark.slow
def test_the_tasks_of_an_array_share_the_trials(folder, monkeypatch, capfd):
    """Each is run once; the task that ends last writes the results; then there is nothing left to launch."""
    sbatch = folder / "bin" / "sbatch"
    sbatch.parent.mkdir()
    task = 'SLURM_JOB_ID=$((4 + k)) SLURM_ARRAY_TASK_ID=$k bash "$1" > task_$k.log 2>&1'
    sbatch.write_text(f"#!/bin/bash\nfor k in 0 1; do {task} & done\nwait\necho Submitted batch job 4\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert run([*LAUNCH, "--jobs=9", "--slurm.time=1:00:00"]) == 0
    printed = capfd.readouterr().out
    assert f"to submit 6 workers: sbatch '{JOB.resolve()}'" in printed, printed
    assert stat.S_IMODE(JOB.stat().st_mode) == 0o700 and "#SBATCH --array=0-5" in JOB.read_text()
    Path("steps.yaml").unlink()  # the job has its own copy
    Path("runs/sweeps/my 5% sweep/sweep.yaml").rename("steps.yaml")
    assert run([*LAUNCH, "--jobs=2", "--submit"]) == 0
    assert "Submitted batch job 4" in capfd.readouterr().out
    logs = [Path(f"task_{k}.log").read_text() for k in (0, 1)]
    url = f"sqlite:///{JOB.resolve().parent.parent}/study.db"
    done = trials("steps.yaml", url, "my 5% sweep")
    assert [trial.user_attrs[SLOT] for trial in done] == [*range(6)]
    assert all(trial.state.name == "COMPLETE" for trial in done), logs
    shares = Counter(trial.user_attrs[WORKER] for trial in done)
    assert len(shares) == 2, (shares, logs)
    assert any("best: " in log for log in logs) and (JOB.parent.parent / "summary.md").exists()
    script_before = JOB.read_bytes()
    assert run([*LAUNCH, "--jobs=2", "--submit"]) == 0
    printed = capfd.readouterr().out
    assert "best: " in printed and "Submitted" not in printed and JOB.read_bytes() == script_before
    assert re.search(r"test/fid_digits_40=[\d.]+ ", printed)
