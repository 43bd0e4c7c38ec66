"""The state of a run after a crash: killed here or elsewhere, its number reused, suspended, or with another clock."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from run_folders import run_folder, status

from lightning_score.report.finding import Reader
from lightning_score.report.states import process_start

HERE = socket.gethostname()


def state(folder, **changed):
    status(folder, state="running", **changed)
    (found,) = Reader(folder.parent).look().runs
    return found.state, found.note


@pytest.fixture
def folder(tmp_path):
    return run_folder(tmp_path / "runs/a", pictures=())


@pytest.fixture
def process():
    """Another process of this machine."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        yield other
        other.kill()


def test_a_killed_run_crashed_at_once(folder, process):
    assert state(folder, host=HERE, pid=process.pid) == ("running", "")
    process.send_signal(signal.SIGKILL)
    while (
        subprocess.run(["ps", "-o", "stat=", "-p", str(process.pid)], capture_output=True, text=True).stdout[:1] not in "Z"
    ):
        time.sleep(0.01)
    assert state(folder, host=HERE, pid=process.pid)[0] == "crashed"  # also before its parent has waited for it
    process.wait()
    found, note = state(folder, host=HERE, pid=process.pid, updated=1.7e9)
    assert found == "crashed" and note.startswith("no update since 2023-11-1")


def test_another_process_with_the_same_number_is_another_one(folder, process):
    assert state(folder, host=HERE, pid=process.pid, updated=time.time() - 60)[0] == "crashed"
    assert state(folder, host=HERE, pid=1, updated=process_start("1") - 10)[0] == "crashed"


def test_a_silent_process_that_exists_is_running(folder):
    """It was suspended with the machine, or its disk is full."""
    found, note = state(folder, host=HERE, pid=os.getpid(), updated=process_start(str(os.getpid())))
    assert found == "running"
    late = time.time() - 1000
    if process_start("1") < late:
        found, note = state(folder, host=HERE, pid=1, updated=late)
        assert found == "running" and "but its process exists" in note


@pytest.mark.parametrize(
    ("ago", "found"), [(0, "running"), (100, "running"), (130, "crashed"), (-60, "running"), (-1e6, "crashed")]
)
def test_elsewhere_the_last_update_decides(folder, ago, found):
    """An update far in the future is of a clock that differs, and says nothing."""
    assert state(folder, host="elsewhere", pid=os.getpid(), updated=time.time() - ago)[0] == found


@pytest.mark.parametrize("pid", [None, "x", -1, 10**30, 1.5, [1]])
@pytest.mark.parametrize("updated", [None, "now", float("inf"), 1e300, -5, True])
def test_damaged_entries_are_a_crash_not_an_error(folder, pid, updated):
    assert state(folder, host=HERE, pid=pid, updated=updated)[0] == "crashed"


def test_the_start_of_a_process():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert process_start(str(other.pid)) == pytest.approx(time.time(), abs=3)
        other.communicate(b"\n")
    assert process_start(str(10**9)) != process_start(str(10**9))  # unknown: NaN
