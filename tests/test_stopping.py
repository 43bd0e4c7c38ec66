"""Signals in every command and phase: one line, the signal's exit code, nothing left behind."""

import lightning_score.lean_imports  # noqa: F401

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import cycle
from pathlib import Path

import pytest
import torch
from tiny import TINY

from lightning_score import stopping
from lightning_score.cli import run
from lightning_score.runs.folders import discarding, new_dated_folder, point_latest

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": os.pathsep.join(sys.path)}
LONG = "--model.sampler.steps=100000"
MEASURING = "--evaluate.features=DigitFeatures"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A folder with a config of a small model."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    return tmp_path


def everything(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


@pytest.fixture
def in_command(monkeypatch):
    """The handlers of the command line, in this process; what ends the process at once raises SystemExit here."""

    class Ended(BaseException):
        pass

    def ended(code):
        raise Ended(code)

    kept = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr(stopping, "GRACE", 1e6)  # the thread that waits outlives the test
    for number in kept:  # a shell ignores some of them for what it runs in the background
        signal.signal(number, signal.SIG_DFL)
    stopping.install()
    stopping.record_signal(None)
    yield Ended
    signal.set_wakeup_fd(-1)
    stopping.record_signal(None)
    stopping._handlers.clear()
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.faults("commands ended by a signal")
@pytest.mark.parametrize("number", stopping.SIGNALS)
@pytest.mark.parametrize("moment", ["sleep", "join", "computation", "import", "library"])
def test_a_signal_at_any_moment(in_command, number, moment, monkeypatch, capfd):
    """Of a command that sleeps, waits for a thread, computes, or whose library makes an error of its own of it."""
    waiting = threading.Event()

    def command(arguments):
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        try:
            if moment == "sleep":
                time.sleep(60)
            elif moment == "join":
                threading.Thread(target=waiting.wait, daemon=True).start()
                waiting.wait(60)
            while True:
                torch.zeros(10).sum()
        except BaseException as error:
            if moment == "library":
                raise RuntimeError("something else") from error
            raise

    monkeypatch.setattr("lightning_score.commands.schedule.schedule", command)
    with pytest.raises(in_command) as ended:
        if moment == "import":
            command([])
        with stopping.raising():
            run(["schedule"])
    assert ended.value.args == (128 + number,)
    assert capfd.readouterr().err == f"stopped by {signal.Signals(number).name}\n"


def test_a_second_signal_ends_the_process_at_once_with_its_files_removed(in_command, tmp_path, capfd):
    removed = []
    with pytest.raises(in_command), stopping.raising(), stopping.cleaning(lambda: removed.append(1)):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
    assert removed == [1] and capfd.readouterr().err == "stopped by SIGINT\n"


@pytest.mark.parametrize(("number", "pause", "ends"), [("TERM", 0.2, False), ("TERM", 0.6, True), ("INT", 0.2, True)])
def test_a_patient_process_ends_at_another_request_and_not_at_an_echo_of_the_first(number, pause, ends):
    """A cluster sends SIGTERM to all processes of a job, and a parent sends it on."""
    code = (
        "import os, signal, time\nfrom lightning_score import stopping\nstopping.ECHO, stopping.GRACE = 0.4, 0.1\n"
        f"stopping.install()\nfor kind in stopping.SIGNALS:\n    signal.signal(kind, lambda *_: None)\n"
        f"with stopping.patience():\n    for _ in range(2):\n        os.kill(os.getpid(), signal.SIG{number})\n"
        f"        time.sleep({pause})\n    time.sleep(0.6)\n    os._exit(7)"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert ended.returncode == (128 + signal.Signals[f"SIG{number}"] if ends else 7)


def test_a_folder_without_a_result_is_removed_and_one_with_a_result_stays(tmp_path):
    """With the folders that were made for it; and `latest` is the run before."""
    older = new_dated_folder(tmp_path / "runs" / "name")
    (older / "run.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt), discarding():
        newer = new_dated_folder(tmp_path / "runs" / "name")
        (newer / "config.yaml").write_text("a: 1\n")
        (newer / "metrics.csv").write_text("step,val/loss\n")
        (newer / "console.log").write_text("$ python -m lightning_score fit\n")
        (newer / "system.csv").write_text("step,time\n0,1.0\n")
        point_latest(newer)
        kept = new_dated_folder(tmp_path / "kept")
        (kept / "evaluations.jsonl").write_text("{}\n")
        new_dated_folder(tmp_path / "one" / "two")
        raise KeyboardInterrupt
    assert not newer.exists() and (tmp_path / "runs/name/latest").resolve() == older and kept.exists()
    assert not (tmp_path / "one").exists()


CASES = {
    "imports": (["fit", "--help", "all"], 0.7),
    "parsing": (["fit", "--config", "tiny.yaml"], 2.2),
    "schedule": (["schedule", "--config", "tiny.yaml"], "Digits"),
    "sweep": (["sweep", "eps", "--dry_run"], 1.8),
    "report": (["report", ".", "--serve", "--port", "0"], "serving"),
    "predict": (["predict", "--ckpt_path", "c.ckpt", LONG], "sampling"),
    "validate": (["validate", "--ckpt_path", "c.ckpt", LONG, MEASURING], "validating:"),
    "test": (["test", "--ckpt_path", "c.ckpt", LONG, MEASURING], "testing:"),
    "fit": (["fit", "--config", "tiny.yaml", "--trainer.max_steps=9999", "--trainer.val_check_interval=9999"], "loss="),
    "validation in fit": (["fit", "--config", "tiny.yaml", LONG], "runs/*/*/last.ckpt"),
    "last validation": (["fit", "--config", "tiny.yaml", "--trainer.max_steps=2", LONG], "validating:"),
    "two processes": (["predict", "--ckpt_path", "c.ckpt", LONG, "--trainer.devices=2", "--trainer.strategy=ddp",
                       "--trainer.accelerator=cpu"], "sampling"),
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory):
    """A checkpoint of the small model."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(TINY)
    assert run(["fit", f"--config={folder}/tiny.yaml", f"--output={folder}/run", "--evaluate.features=null"]) == 0
    return folder / "run" / "last.ckpt"


@pytest.mark.slow
@pytest.mark.faults("commands ended by a signal")
@pytest.mark.parametrize(("case", "number"), zip(CASES, cycle([signal.SIGINT, signal.SIGTERM]), strict=False))
def test_every_command_and_phase(tiny, tiny_checkpoint, case, number):
    """By one of the signals each, whose handler is the same."""
    if "c.ckpt" in CASES[case][0] or case == "sweep":
        copy = Path("runs/ncsn/latest/last.ckpt" if case == "sweep" else "c.ckpt")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(tiny_checkpoint.read_bytes())
    before = everything(tiny)
    arguments, moment = CASES[case]
    with open("log", "w+") as log:
        process = subprocess.Popen([sys.executable, "-m", "lightning_score", *arguments], env=ENVIRONMENT, stdout=log,
                                   stderr=log, start_new_session=True)  # fmt: skip
        begun = time.monotonic()
        while process.poll() is None and not (
            time.monotonic() - begun > moment
            if isinstance(moment, float)
            else moment in Path("log").read_text() or any(tiny.glob(moment))
        ):
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(number)
        late = {0, -number} if case in ("schedule", "sweep") else set()  # it has written all and ends by itself
        assert process.wait(60) in {128 + number, *late}
    with pytest.raises(ProcessLookupError):
        time.sleep(1)
        os.killpg(process.pid, 0)  # none of its processes is left
    printed = Path("log").read_text()
    assert "Traceback" not in printed and (case in ("schedule", "sweep") or printed.count("stopped by") == 1), printed
    Path("log").unlink()
    left = [name for name in everything(tiny) if name not in before]
    if arguments[0] == "fit" and "help" not in arguments[1] and case != "parsing":
        assert any(name.endswith("last.ckpt") for name in left) and not any("/." in name for name in left)
    else:
        assert not left, left
