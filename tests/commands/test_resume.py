"""An interrupted run resumes in its folder, without a row doubled or lost, and ends like an uninterrupted one."""

import csv
import fcntl
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image

from lightning_score.cli import run
from lightning_score.runs.logs import cut_logs

FIT = ["fit", "--config=ncsn", "--trainer.max_steps=40", "--trainer.val_check_interval=15", "--trainer.logger=false",
       "--trainer.log_every_n_steps=4", "--samples.num_samples=4", "--evaluate.num_samples=40",
       "--model.sampler.steps=1"]  # fmt: skip
KEPT = ("--trainer.callbacks=[{class_path: LossFloor, init_args: {num_examples: 64}}, "
        "{class_path: LangevinHealth, init_args: {num_samples: 16}}]")  # fmt: skip
FIT = [*FIT, KEPT]
MOMENTARY = ("time", "seconds", "sampling_seconds", "val/sampling_seconds")


def hashed(values):
    """One number for many tensors."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.contiguous().numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
    return digest.hexdigest()


def everything(folder):
    """All results of a run except times."""
    found = {}
    for name in ("last.ckpt", "best.ckpt"):
        checkpoint = torch.load(folder / name, weights_only=True)
        weights = [checkpoint[part][key] for part in ("state_dict", "current_model_state") for key in checkpoint[part]]
        optimizer = [value for state in checkpoint["optimizer_states"][0]["state"].values() for value in state.values()]
        schedule = [value for value in checkpoint["lr_schedulers"][0].values() if isinstance(value, (int, float))]
        found[name] = checkpoint["global_step"], hashed(weights), hashed(optimizer), schedule
    with (folder / "metrics.csv").open(newline="") as file:
        found["rows"] = [{k: v for k, v in row.items() if v and k not in MOMENTARY} for row in csv.DictReader(file)]
    for name in ("evaluations.jsonl", "langevin.jsonl"):
        lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        found[name] = [{k: v for k, v in line.items() if k not in MOMENTARY} for line in lines]
    for file in sorted(folder.glob("*/step_*.png")):
        found[f"{file.parent.name}/{file.name}"] = hashed([Image.open(file).tobytes()])
    return found


def assert_same(folder, whole):
    found = everything(folder)
    assert found.keys() == whole.keys()
    for name in whole:
        assert found[name] == whole[name], name


class Stop(Callback):
    """Sends this process a signal at a moment of a step, once.

    Args:
        step: optimizer steps done by then.
        moment: the hook.
        number: the signal.
        rank: of the process that gets it; null: each.
    """

    def __init__(self, step: int, moment: str, number: int = signal.SIGINT, rank: int | None = None) -> None:
        self.step, self.number, self.rank = step, number, rank
        setattr(self, moment, self._stop)

    def _stop(self, trainer, *_):
        if trainer.global_step == self.step and self.number and self.rank in (None, trainer.global_rank):
            number, self.number = self.number, 0
            os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run([*FIT, f"--output={folder}"]) == 0
    return everything(folder)


def interrupted(folder, step, moment, number, *options):
    """A run ended by a signal."""
    stop = json.dumps(
        {"class_path": f"{__name__}.Stop", "init_args": {"step": step, "moment": moment, "number": int(number)}}
    )
    with pytest.raises(SystemExit) as end:
        run([*FIT, *options, f"--output={folder}", f"--trainer.callbacks+={stop}"])
    return end.value.code


@pytest.fixture(autouse=True)
def signals():
    """Lightning leaves Ctrl-C ignored after one."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


MOMENTS = [
    (7, "on_before_backward", 8),  # in the middle of a step: the next one does not begin
    (10, "on_train_batch_end", 10),
    (12, "on_train_batch_end", 12),  # an epoch has 11 steps
    (15, "on_validation_batch_start", 15),
    (30, "on_validation_epoch_end", 30),
    (30, "on_validation_end", 30),
]
QUICK = [(*MOMENTS[3], signal.SIGINT), (*MOMENTS[1], signal.SIGTERM)]
OTHERS = [(*moment, number) for moment in MOMENTS for number in (signal.SIGINT, signal.SIGTERM)]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS if case not in QUICK)]


@pytest.mark.faults("runs ended by a signal")
@pytest.mark.parametrize(("step", "moment", "kept", "number"), CASES)
def test_a_signal_at_any_moment(tmp_path, whole, step, moment, kept, number, capsys):
    folder = tmp_path / "run"
    assert interrupted(folder, step, moment, number) == 128 + number
    said = capsys.readouterr().out.strip().splitlines()
    assert f"kept up to step {kept}" in said[-2]
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == kept
    assert json.loads((folder / "run.json").read_text())["state"] == "interrupted"
    again = shlex.split(said[-1])
    assert run([*again[3:], KEPT]) == 0
    assert_same(folder, whole)
    assert json.loads((folder / "run.json").read_text())["state"] == "finished"


AT_THE_END = [(22, "on_validation_batch_start"), (22, "on_validation_end"), (22, "on_train_batch_end")]


@pytest.mark.slow
@pytest.mark.faults("runs ended by a signal")
@pytest.mark.parametrize(("step", "moment"), AT_THE_END)
def test_a_signal_at_the_end_of_an_epoch(tmp_path, step, moment):
    """Which is validated, and where Lightning's own loop continues differently than in the middle."""
    options = ["--trainer.val_check_interval=11", "--trainer.max_steps=25"]
    assert run([*FIT, *options, f"--output={tmp_path / 'whole'}"]) == 0
    interrupted(tmp_path / "run", step, moment, signal.SIGINT, *options)
    assert run(["fit", f"--ckpt_path={tmp_path / 'run'}", KEPT, f"--trust={__name__}"]) == 0
    assert_same(tmp_path / "run", everything(tmp_path / "whole"))


@pytest.mark.faults("runs killed (kill -9)", 2)
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_kills_at_random_moments(tmp_path, whole, seed):
    """kill -9, like a power cut, several times in a row."""
    killed(tmp_path / "run", random.Random(seed), 2)
    assert_same(tmp_path / "run", whole)


@pytest.mark.faults("runs killed (kill -9)", 4)
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_many_kills_at_random_moments(tmp_path, whole, seed):
    killed(tmp_path / "run", random.Random(seed), 4)
    assert_same(tmp_path / "run", whole)


def killed(folder, draws, times):
    """A run that was killed several times at random moments, and finished."""
    for k in range(times + 1):
        begun = (folder / "last.ckpt").exists()
        arguments = ["fit", f"--ckpt_path={folder}"] if begun else [*FIT, f"--output={folder}"]
        if not begun and folder.exists():
            folder.rename(folder.with_name(f"remains{k}"))
        process = subprocess.Popen([sys.executable, "-m", "lightning_score", *arguments], stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)  # fmt: skip
        if k < times:
            deadline = time.monotonic() + 60
            while not (folder / "run.json").exists() and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.05)
            time.sleep(draws.uniform(0, 4))
            process.send_signal(signal.SIGKILL)
        said, _ = process.communicate(timeout=200)
        assert process.returncode in ((0, -signal.SIGKILL) if k < times else (0,)), said


@pytest.mark.faults("runs ended by a signal")
@pytest.mark.slow
@pytest.mark.parametrize(("step", "moment", "rank"), [(7, "on_train_batch_end", 0), (10, "on_validation_batch_start", None)])
def test_two_processes(tmp_path, step, moment, rank):
    """A signal ends one of them, or both; both end at the same step, and resume like an uninterrupted run."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    options = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=16",
               "--trainer.val_check_interval=5", "--trainer.log_every_n_steps=2"]  # fmt: skip
    stop = {"step": step, "moment": moment, "number": int(signal.SIGTERM), "rank": rank}
    stopping = json.dumps({"class_path": "test_resume.Stop", "init_args": stop})

    def ours(*arguments):
        command = [sys.executable, "-m", "lightning_score", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    whole, folder = tmp_path / "whole", tmp_path / "run"
    done = ours(*FIT, *options, f"--output={whole}")
    assert done.returncode == 0, done.stderr
    stopped = ours(*FIT, *options, f"--output={folder}", f"--trainer.callbacks+={stopping}")
    assert stopped.returncode == 143 and "kept up to step" in stopped.stdout, stopped.stderr
    (folder / "config.yaml").write_bytes((whole / "config.yaml").read_bytes())  # which does not stop
    again = ours("fit", f"--ckpt_path={folder}")
    assert again.returncode == 0, again.stderr
    assert_same(folder, everything(whole))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # the run is a copy
class TestWhich:
    """What `--ckpt_path` may name."""

    @pytest.fixture(scope="class")
    def runs(self, tmp_path_factory):
        """With one run, of three steps."""
        folder = tmp_path_factory.mktemp("three_steps")
        quick = ["--evaluate.features=null", "--samples.num_samples=0", "--trainer.callbacks=null"]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            assert run(["fit", "--config=ncsn", "--trainer.max_steps=3", "--model.optimizer.lr=1.0e-3", *quick]) == 0
        return folder / "runs"

    @pytest.fixture
    def folder(self, runs, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        shutil.copytree(runs, "runs", symlinks=True)
        return Path("runs/ncsn/latest").resolve()

    def step(self, folder):
        return torch.load(folder / "last.ckpt", weights_only=True)["global_step"]

    def test_last_is_the_newest_run_of_the_config(self, folder, capsys):
        assert run(["fit", "--config=ncsn", "--ckpt_path=last", "--trainer.max_steps=5"]) == 0
        assert self.step(folder) == 5 and f"resuming {folder} after step 3" in capsys.readouterr().out
        assert len(list(folder.parent.glob("20*"))) == 1
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["trainer"]["max_steps"] == 5  # options are kept
        assert config["model"]["optimizer"]["init_args"]["lr"] == 1e-3  # the run's own config beats the file's

    def test_a_folder_is_the_run_in_it(self, folder):
        assert run(["fit", "--ckpt_path", str(folder), "--trainer.max_steps", "4"]) == 0
        assert self.step(folder) == 4

    def test_the_link_to_the_newest_is_the_run_it_points_to(self, folder):
        assert run(["fit", "--ckpt_path=runs/ncsn/latest", "--trainer.max_steps=4"]) == 0
        assert self.step(folder) == 4 and Path("runs/ncsn/latest").resolve() == folder

    def test_a_file_begins_a_new_run_from_it(self, folder):
        assert run(["fit", "--config=ncsn", f"--ckpt_path={folder / 'last.ckpt'}", "--trainer.max_steps=4",
                    "--evaluate.features=null", "--samples.num_samples=0", "--trainer.callbacks=null"]) == 0  # fmt: skip
        assert self.step(folder) == 3 and len(list(folder.parent.glob("20*"))) == 2

    @pytest.mark.faults("checkpoints cut off")
    def test_the_checkpoint_before_a_damaged_one(self, folder, capsys):
        (folder / "last.ckpt.previous").write_bytes((folder / "last.ckpt").read_bytes())
        (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:-1000])
        assert run(["fit", f"--ckpt_path={folder}", "--trainer.max_steps=4"]) == 0
        said = capsys.readouterr().out
        assert "damaged or truncated" in said and "the previous one is undamaged" in said
        assert self.step(folder) == 4

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--config=ddpm", "--ckpt_path=last"], "no run in runs/ddpm"),
            (["--ckpt_path=."], "no config.yaml"),
            (["--config=ncsn", "--ckpt_path=empty"], "the run has no checkpoint yet"),
            (["--ckpt_path=runs/ncsn/latest", "--trainer.max_steps=2"], "--trainer.max_steps 2: the checkpoint has 3 steps"),
            (["--ckpt_path=runs/ncsn/latest", "--trainer.max_steps=0"], "--trainer.max_steps 0: the checkpoint has 3 steps"),
            (["--ckpt_path=runs/ncsn/latest/last.ckpt", "--trainer.max_steps=3"], "the checkpoint has 3 steps already"),
        ],
    )
    def test_refuses(self, folder, options, message, capsys):
        Path("empty").mkdir()
        Path("empty/config.yaml").write_text("name: x\n")
        config = (folder / "config.yaml").read_text()
        assert run(["fit", *options]) == 2
        assert message in capsys.readouterr().err
        assert (folder / "config.yaml").read_text() == config

    def test_a_run_that_is_training_is_left_alone(self, folder, capsys):
        """It is locked by a process that is there, as this one is; the end of that process unlocks it."""
        before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(["fit", f"--ckpt_path={folder}", "--trainer.max_steps=4"]) == 2
        assert f"process {os.getpid()} on " in capsys.readouterr().err
        assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
        os.close(lock)
        assert run(["fit", f"--ckpt_path={folder}", "--trainer.max_steps=4"]) == 0

    @pytest.mark.faults("jobs requeued by SLURM")
    def test_a_job_that_slurm_has_requeued_resumes(self, folder, monkeypatch, capsys):
        """SIGUSR1 ends it between two steps, `scontrol requeue` is called, and the same command resumes."""
        Path("bin").mkdir()
        Path("bin/scontrol").write_text('#!/bin/sh\necho "$@" > called\n')
        Path("bin/scontrol").chmod(0o755)
        monkeypatch.setenv("PATH", f"{Path('bin').resolve()}:{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_JOB_ID", "4711")
        settings = {"step": 3, "moment": "on_train_batch_end", "number": int(signal.SIGUSR1)}
        stop = json.dumps({"class_path": f"{__name__}.Stop", "init_args": settings})
        command = ["fit", "--config=ncsn", "--name=job", "--trainer.max_steps=6", "--evaluate.features=null",
                   "--samples.num_samples=0"]  # fmt: skip
        with pytest.raises(SystemExit) as end:
            run([*command, f"--trainer.callbacks=[{stop}]"])
        assert end.value.code == 143 and Path("called").read_text() == "requeue 4711\n"
        assert run([*command, "--trainer.callbacks=null", f"--trust={__name__}"]) == 0
        assert "after step 3" in capsys.readouterr().out
        (only,) = Path("runs/job").glob("20*")
        assert self.step(only) == 6
        monkeypatch.setenv("SLURM_JOB_ID", "4712")
        assert run([*command, "--trainer.callbacks=null"]) == 0
        assert len(list(Path("runs/job").glob("20*"))) == 2  # another job is another run


class TestLogs:
    """Rows after the checkpoint are removed from the logs."""

    ROWS = "step,train/loss,val/loss\n4,1,\n8,2,\n10,,5\n10,4,\n12,3,\n20,,6\n"
    OLD = "step,train/loss,val/loss\n3,1,\n7,2,\n9,,5\n9,4,\n11,3,\n20,,6\n"
    """The same of a version that counted from 0, but for the validation after the last step."""

    @pytest.mark.parametrize("old", [False, True])
    @pytest.mark.parametrize(
        ("step", "validated", "steps"),
        [
            (10, True, [4, 8, 10, 10]),
            (10, False, [4, 8, 10]),  # saved before the validation, which comes again
            (12, False, [4, 8, 10, 10, 12]),
            (20, True, [4, 8, 10, 10, 12, 20]),
            (20, False, [4, 8, 10, 10, 12]),
            (0, False, []),
        ],
    )
    def test_rows(self, tmp_path, step, validated, steps, old):
        (tmp_path / "metrics.csv").write_text(self.OLD if old else self.ROWS)
        (tmp_path / "run.json").write_text(json.dumps({"command": "fit"} | ({} if old else {"format": 2})))
        (tmp_path / "evaluations.jsonl").write_text('{"step": 10}\n{"step": 20}\n{"ste')
        evaluate = {"validated_at": step if validated else 0}
        for _ in range(2):  # a second time changes nothing
            cut_logs(tmp_path, {"global_step": step, "callbacks": {"Evaluate": evaluate}})
            lines = (tmp_path / "metrics.csv").read_text().splitlines()
            assert [int(line.split(",")[0]) for line in lines[1:]] == steps
        left = [json.loads(line)["step"] for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
        assert left == [n for n in (10, 20) if n < step or (n == step and validated)]
