"""SIGINT, SIGTERM and `kill -9` at any moment of a sweep: nothing is lost, locked or left running."""

import json
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState
from sqlalchemy import event

from lightning_score.cli import run
from lightning_score.errors import InputError
from lightning_score.sweep.attempts import SLOT
from lightning_score.sweep.processes import Interruption, Stopped, end_with_parent
from lightning_score.sweep.results import read_csv
from lightning_score.sweep.study import WORKER
from sweeps import TEST, bowl, folder_fixture, make_fixture, running, started, trials, wait_for  # noqa: F401


@pytest.mark.parametrize(
    ("number", "statement"), [((signal.SIGINT, signal.SIGTERM)[k % 2], k) for k in (1, 6, 11, 16, 23, 30, 41, 60)]
)
def test_a_signal_inside_a_database_session_waits_for_its_end(make, number, statement):
    study = make()
    study.queue(3)
    begun, count = [], 0

    def signals(*_):
        nonlocal count
        count += 1
        if count == statement:
            os.kill(os.getpid(), number)

    def objective(*arguments):
        begun.append(interruption.requested)
        interruption.check()
        return bowl(*arguments)

    with Interruption() as interruption:
        event.listen(study._storage._backend.engine, "before_cursor_execute", signals)
        try:
            study.work(objective, lambda: interruption.requested)
        except Stopped:
            pass
        finally:
            event.remove(study._storage._backend.engine, "before_cursor_execute", signals)
        assert interruption.requested and interruption.code == 128 + number
    assert sum(begun) <= 1  # after the signal no other trial is begun than the one that was being taken
    with sqlite3.connect(study._storage._backend.engine.url.database, timeout=0, isolation_level=None) as other:
        other.execute("begin immediate")  # nothing is locked
        other.execute("rollback")
    assert all(trial.state in (TrialState.WAITING, TrialState.COMPLETE) for trial in study.trials())
    study.work(bowl)
    assert sorted(trial.user_attrs[SLOT] for trial in study.trials()) == [0, 1, 2] and study.remaining() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_the_first_trial_a_signal_ends_the_sweep_at_once(capfd, number):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as end, Interruption(at_once=True):
        os.kill(os.getpid(), number)
        time.sleep(1)
    assert end.value.code == 128 + number and capfd.readouterr().err.strip() == "stopped before the first trial"
    with pytest.raises(SystemExit), Interruption(at_once=True) as interruption:
        try:
            os.kill(os.getpid(), number)
            time.sleep(1)
        except SystemExit:  # as a library may do it
            pass
        interruption.defer()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interruption.requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_worker_stops_when_its_parent_is_gone():
    with Interruption(parent=os.getppid()) as interruption:
        interruption.check()
    with Interruption(parent=2**22 + 7) as interruption, pytest.raises(Stopped):
        interruption.check()


def forked(target, *arguments):
    """A process that shares the modules that this one has imported."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def test_a_process_that_waits_for_a_database_is_ended():
    def waits():
        with Interruption(patience=0.2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    process = forked(waits)
    process.join(50)
    assert process.exitcode == 143


def test_a_trial_ends_with_its_worker():
    """Its program is in a separate session, out of reach of what kills the worker."""
    if sys.platform != "linux":
        pytest.skip("the system call is Linux's")

    def works(numbers):
        end = partial(end_with_parent, os.getpid())
        numbers.put(subprocess.Popen(["sleep", "60"], start_new_session=True, preexec_fn=end).pid)
        time.sleep(60)

    numbers = multiprocessing.get_context("fork").SimpleQueue()
    worker = forked(works, numbers)
    child = numbers.get()
    worker.kill()
    worker.join()
    wait_for(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text())


VARIED = {"model.sampler.steps": {"values": [*range(1, 7)]}, "evaluate.num_samples": {"value": 400}}
SLOW = {**TEST, "metric": {"name": "test/fid_digits_400"}, "name": "steps", "parameters": VARIED}
ROUNDS = [
    (signal.SIGTERM, os.kill, None, False),
    (signal.SIGINT, os.killpg, signal.SIGKILL, True),
    (signal.SIGKILL, os.kill, signal.SIGTERM, True),
    (signal.SIGKILL, os.killpg, None, True),
]
"""A signal; to the sweep alone or to all its processes; a signal to a worker before it; whether it waits for a trial."""


@pytest.mark.slow
def test_signals_lose_no_trial(folder):
    """SIGTERM, Ctrl-C, a killed sweep whose workers stop by themselves, and all of it killed, as in a power cut."""
    Path("steps.yaml").write_text(yaml.safe_dump(SLOW))
    rng, complete = random.Random(0), {}
    for number, send, to_worker, begun in ROUNDS:
        sweep = started("steps.yaml", "--jobs=2")
        if begun:
            wait_for(lambda sweep=sweep: running_now("steps.yaml") or sweep.poll() is not None)
        if to_worker is not None and running_now("steps.yaml"):
            os.kill(running_now("steps.yaml")[0], to_worker)  # the sweep begins another
        time.sleep(rng.uniform(0, 6))
        if sweep.poll() is None:
            send(sweep.pid, number)
        printed, _ = sweep.communicate(timeout=60)
        assert "Traceback" not in printed and "locked" not in printed and sweep.returncode in (0, 130, 143, -2, -9, -15), (
            printed
        )
        if number == signal.SIGINT and sweep.returncode:
            assert "to resume: python -m lightning_score sweep steps.yaml --jobs=2" in printed and sweep.returncode == 130, (
                printed
            )
        if number != signal.SIGKILL and Path("runs/sweeps/steps/trials.csv").exists():
            states = Counter(row.state for row in read_csv(Path("runs/sweeps/steps")).rows)
            assert not states["running"] and not states["failed"], printed
        wait_for(lambda: not running_now("steps.yaml"))
        if Path("runs/sweeps/steps/study.db").exists():
            complete |= {trial.number: trial.datetime_complete for trial in ended()}
    assert run(["sweep", "steps.yaml", "--jobs=2"]) == 0
    done = trials("steps.yaml")
    assert [trial.user_attrs[SLOT] for trial in done] == list(range(6)) and done == ended()
    assert len({json.dumps(trial.params, sort_keys=True) for trial in done}) == 6
    assert all(Path(trial.user_attrs["folder"]).exists() for trial in done)
    again = {trial.number: trial.datetime_complete for trial in done}
    assert complete.items() <= again.items()  # what was complete was not done again


def ended():
    """The complete trials; none before the study is there."""
    try:
        return [trial for trial in trials("steps.yaml") if trial.state.name == "COMPLETE"]
    except InputError:
        return []


def running_now(file):
    """The processes that run trials and are alive; those of a killed sweep stop by themselves."""
    return [process for process in running(file) if Path(f"/proc/{process}").exists()]


def test_trials_of_dead_workers_are_not_shown_as_running(make, tmp_path):
    from lightning_score.sweep.summary import collect_results

    study = make()
    study.queue(2)
    study._study.ask().set_user_attr(WORKER, "elsewhere:5")
    lost = study._study.ask()
    assert [row.state for row in collect_results(study.sweep, study).rows] == [
        "running",
        "waiting",
    ]  # taken, and not yet begun
    lost.set_user_attr(WORKER, f"{os.uname().nodename}:{2**22 + 7}")
    found = collect_results(study.sweep, study)
    assert [row.state for row in found.rows] == ["running", "interrupted"]
    table = tmp_path / "trials.csv"
    table.write_text(found.csv().replace("interrupted", "running"))
    assert [row.state for row in read_csv(tmp_path).rows] == ["running", "interrupted"]
    os.utime(table, (0, 0))  # whoever ran it, here or elsewhere, has not touched it for long
    assert [row.state for row in read_csv(tmp_path).rows] == ["interrupted", "interrupted"]
    table.write_text(found.csv().replace("running", "early"))  # the word of older versions
    assert read_csv(tmp_path).rows[0].state == "stopped early"
