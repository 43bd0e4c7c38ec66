"""An interrupted run resumes in its folder, without a row doubled or lost, and ends like an uninterrupted one."""

import csv
import fcntl
import hashlib
import json
import math
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image

from lightning_score.cli import run
from lightning_score.data.order import Loader, Shuffled
from lightning_score.runs.logs import cut_logs

SMALL = ["--model.network.channels=8", "--model.network.multipliers=[1]", "--model.process.levels=4"]
FIT = ["fit", "--config=ncsn", *SMALL, "--trainer.max_steps=40", "--trainer.val_check_interval=15", "--trainer.logger=false",
       "--trainer.log_every_n_steps=4", "--samples.num_samples=4", "--evaluate.num_samples=40",
       "--model.sampler.steps=1", "--model.objective.weighting=Uncertainty"]  # fmt: skip
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


CASES = [
    (10, "on_train_batch_end", 10, signal.SIGTERM),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            (15, "on_validation_batch_start", 15, signal.SIGINT),
            (7, "on_before_backward", 8, signal.SIGINT),  # in the middle of a step: the next one does not begin
            (12, "on_train_batch_end", 12, signal.SIGINT),  # an epoch has 11 steps
            (30, "on_validation_epoch_end", 30, signal.SIGTERM),
            (30, "on_validation_end", 30, signal.SIGTERM),
        )
    ),
]


@pytest.mark.slow
@pytest.mark.faults("runs ended by a signal")
@pytest.mark.parametrize(("step", "moment", "kept", "number"), CASES)
@pytest.mark.slow
def test_a_signal_at_any_moment(tmp_path, whole, step, moment, kept, number, capsys):
    folder = tmp_path / "run"
    assert interrupted(folder, step, moment, number) == 128 + number
    printed = capsys.readouterr().out.strip().splitlines()
    assert f"kept up to step {kept}" in printed[-2]
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == kept
    assert json.loads((folder / "run.json").read_text())["state"] == "interrupted"
    again = shlex.split(printed[-1])
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


@pytest.mark.slow
@pytest.mark.faults("runs ended by a signal")
@pytest.mark.parametrize("option", ["--data.batch_size=1437", "--trainer.accumulate_grad_batches=20"])
def test_a_signal_where_epochs_have_one_step(tmp_path, option):
    interval = 5 if "batch_size" in option else 55  # in batches, of which an epoch has 11
    options = [option, f"--trainer.val_check_interval={interval}", "--trainer.max_steps=12"]
    assert run([*FIT, *options, f"--output={tmp_path / 'whole'}"]) == 0
    assert interrupted(tmp_path / "run", 7, "on_train_batch_end", signal.SIGTERM, *options) == 143
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] == 7
    assert run(["fit", f"--ckpt_path={tmp_path / 'run'}", KEPT, f"--trust={__name__}"]) == 0
    assert_same(tmp_path / "run", everything(tmp_path / "whole"))


def test_a_checkpoint_before_the_first_batch_of_a_resumed_run():
    """Such as that of a run which was killed in a validation, and repeats it first: the order of its data stays the same."""

    def loader():
        return Loader(torch.arange(12), Shuffled(12, 2, seed=5), batch_size=None)

    whole, begun = list(loader()), loader()
    next(iter(begun))
    state = begun.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    again = resumed.state_dict()
    resumed = loader()
    resumed.load_state_dict(again)
    assert torch.equal(torch.stack(list(resumed)), torch.stack(whole[1:]))


def processor_seconds(process):
    """Seconds that a process has computed, however busy the machine is."""
    with suppress(OSError):  # it has just ended
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return math.inf


@pytest.mark.faults("runs killed (kill -9)", 4)
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_kills_at_random_moments(tmp_path, whole, seed):
    """kill -9, like a power cut, several times in a row; of processes forked from one that has imported everything."""
    draws, folder, context = random.Random(seed), tmp_path / "run", multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning_score.cli"])
    for k in range(5):
        begun = (folder / "last.ckpt").exists()
        arguments = ["fit", f"--ckpt_path={folder}"] if begun else [*FIT, f"--output={folder}"]
        if not begun and folder.exists():
            folder.rename(folder.with_name(f"remains{k}"))
        process = context.Process(target=run, args=(arguments,))
        process.start()
        moment = draws.uniform(0.5, 5)  # a whole run takes about 4 s
        while k < 4 and process.is_alive() and processor_seconds(process) < moment:
            time.sleep(0.01)
        if k < 4:
            process.kill()
        process.join(200)
        assert process.exitcode in ((0, -signal.SIGKILL) if k < 4 else (0,))
    assert_same(folder, whole)


class TestTwoProcesses:
    """A signal ends one of them, or both; both end at the same step, and resume like an uninterrupted run."""

    OPTIONS = ("--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=12",
               "--trainer.val_check_interval=5", "--trainer.log_every_n_steps=2")  # fmt: skip

    def run(self, *arguments):
        paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        command = [sys.executable, "-m", "lightning_score", *arguments]
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    @pytest.fixture(scope="class")
    def uninterrupted(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("two_processes") / "run"
        done = self.run(*FIT, *self.OPTIONS, f"--output={folder}")
        assert done.returncode == 0, done.stderr
        return folder

    @pytest.mark.faults("runs ended by a signal")
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("step", "moment", "rank"), [(7, "on_train_batch_end", 0), (10, "on_validation_batch_start", None)]
    )
    def test_a_signal(self, uninterrupted, tmp_path, step, moment, rank):
        folder, stop = tmp_path / "run", {"step": step, "moment": moment, "number": int(signal.SIGTERM), "rank": rank}
        stopping = json.dumps({"class_path": "test_resume.Stop", "init_args": stop})
        stopped = self.run(*FIT, *self.OPTIONS, f"--output={folder}", f"--trainer.callbacks+={stopping}")
        assert stopped.returncode == 143 and "kept up to step" in stopped.stdout, stopped.stderr
        (folder / "config.yaml").write_bytes((uninterrupted / "config.yaml").read_bytes())  # which does not stop
        again = self.run("fit", f"--ckpt_path={folder}")
        assert again.returncode == 0, again.stderr
        assert_same(folder, everything(uninterrupted))

    @pytest.mark.slow
    def test_epochs_with_fewer_steps_than_processes_take_to_agree(self, tmp_path):
        """Of five steps each; without a validation the run ends at a step."""
        stop = {"class_path": "test_resume.Stop", "init_args": {"step": 3, "moment": "on_train_batch_end", "number": 15}}
        options = [
            *self.OPTIONS,
            "--trainer.max_steps=200",
            "--trainer.log_every_n_steps=8",
            "--trainer.val_check_interval=90",
        ]
        done = self.run(*FIT, *options, f"--output={tmp_path / 'run'}", f"--trainer.callbacks+={json.dumps(stop)}")
        assert done.returncode == 143, done.stderr
        assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] < 20


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # the run is a copy
class TestWhich:
    """What `--ckpt_path` may name."""

    @pytest.fixture(scope="class")
    def runs(self, tmp_path_factory):
        """With one run, of three steps."""
        folder = tmp_path_factory.mktemp("three_steps")
        quick = ["--evaluate.features=null", "--samples.num_samples=0", "--trainer.callbacks=null", *SMALL]
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
        quick = ["--evaluate.features=null", "--samples.num_samples=0", "--trainer.callbacks=null", *SMALL]
        assert run(["fit", "--config=ncsn", f"--ckpt_path={folder / 'last.ckpt'}", "--trainer.max_steps=4", *quick]) == 0
        assert self.step(folder) == 3 and len(list(folder.parent.glob("20*"))) == 2

    @pytest.mark.faults("checkpoints cut off")
    def test_the_checkpoint_before_a_damaged_one(self, folder, capsys):
        (folder / "last.ckpt.previous").write_bytes((folder / "last.ckpt").read_bytes())
        (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:-1000])
        assert run(["fit", f"--ckpt_path={folder}", "--trainer.max_steps=4"]) == 0
        printed = capsys.readouterr().out
        assert "damaged or truncated" in printed and "the previous one is undamaged" in printed
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
    @pytest.mark.slow
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
                   "--samples.num_samples=0", *SMALL]  # fmt: skip
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
    """The same of a version that counted from 0, except for the validation after the last step."""

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
