"""`run.json`: the state of a run."""

import json
import os
import signal
import sys
import time

import pytest

from lightning_score.cli import run
from lightning_score.errors import InputError
from lightning_score.runs import status as module
from lightning_score.runs.folders import new_dated_folder, new_folder
from lightning_score.runs.status import recording

QUICK = ["--trainer.max_steps=2", "--evaluate.features=null", "--samples.num_samples=0", "--trainer.callbacks=null",
         "--trainer.logger=false"]  # fmt: skip


def status(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_run_updates_its_state_until_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    steps = iter(range(10**9))
    with recording(tmp_path, ["fit", "--x", "1"], lambda: next(steps), 100):
        first = status(tmp_path)
        assert (first["state"], first["command"], first["arguments"]) == ("running", "fit", ["fit", "--x", "1"])
        assert (first["pid"], first["max_steps"]) == (os.getpid(), 100)
        deadline = time.monotonic() + 10
        while status(tmp_path)["step"] < first["step"] + 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert status(tmp_path)["step"] >= first["step"] + 3 and status(tmp_path)["updated"] > first["updated"]
    assert status(tmp_path)["state"] == "finished"
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (ValueError("a\nb"), "failed", "ValueError: a b"),
        (KeyboardInterrupt(), "interrupted", "ended by a signal"),
        (SystemExit(1), "interrupted", "ended by a signal"),
    ],
)
def test_the_state_after_an_error(tmp_path, error, state, message):
    with pytest.raises(type(error)), recording(tmp_path, ["fit"], lambda: 7):
        raise error
    assert (status(tmp_path)["state"], status(tmp_path)["message"], status(tmp_path)["step"]) == (state, message, 7)


def test_a_folder_that_cannot_be_written_is_tolerated(tmp_path):
    with recording(tmp_path / "gone", ["fit"], lambda: 0):
        pass


def test_every_command_records_its_arguments(tmp_path):
    arguments = ["fit", "--config=ncsn", f"--output={tmp_path / 'run'}", *QUICK]
    assert run(arguments) == 0
    assert status(tmp_path / "run")["arguments"] == arguments
    assert (status(tmp_path / "run")["state"], status(tmp_path / "run")["step"]) == ("finished", 2)
    checkpoint = f"--ckpt_path={tmp_path / 'run/last.ckpt'}"
    assert run(["predict", checkpoint, "--num_samples=1", "--model.sampler.steps=1", f"--output={tmp_path / 'p'}"]) == 0
    assert status(tmp_path / "p")["command"] == "predict"


def test_a_failed_run_records_the_reason(tmp_path):
    (tmp_path / "my_loss.py").write_text(
        "from lightning_score.objective import DenoisingScoreMatching\n"
        "class Broken(DenoisingScoreMatching):\n"
        "    def at(self, *a): raise RuntimeError('it broke')\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(RuntimeError, match="it broke"):
            run(["fit", "--config=ncsn", f"--output={tmp_path / 'run'}", *QUICK, "--model.objective=my_loss.Broken"])
    finally:
        sys.path.remove(str(tmp_path))
    assert status(tmp_path / "run")["message"] == "RuntimeError: it broke"


def test_the_state_of_a_killed_run_stays_running(tmp_path):
    """Its missing process and the lack of updates show that it is not."""
    pid = os.fork()
    if pid == 0:
        with recording(tmp_path, ["fit"], lambda: 0):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (status(tmp_path)["state"], status(tmp_path)["pid"]) == ("running", pid)


def test_folders_are_never_used_twice(tmp_path):
    assert new_dated_folder(tmp_path) != new_dated_folder(tmp_path)
    with pytest.raises(InputError, match="already exists"):
        new_folder(tmp_path)
