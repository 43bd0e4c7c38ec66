"""The queue of a sweep's trials: draws, workers, and what returns to the queue."""

import errno
import fcntl
import math
import os
import socket
import threading
import time
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from lightning_score.errors import InputError, require
from lightning_score.sweep.attempts import DEATHS, ERROR, FOLDER, INTERRUPTED, RETRIES, SLOT
from lightning_score.sweep.draws import known_values
from lightning_score.sweep.processes import LOCK, Killed, Stopped, in_turn
from lightning_score.sweep.study import WORKER
from lightning_score.sweep.summary import collect_results
from sweeps import PARAMETERS, bowl, make_fixture  # noqa: F401


def kill(study):
    """Lets a worker take a trial and die."""
    trial = study._study.ask()
    trial.set_user_attr(INTERRUPTED, False)
    trial.set_user_attr(WORKER, f"{socket.gethostname()}:{2**22 + 7}")  # above the largest number of a process
    study.release()


def test_random_draws_resume_and_are_the_same_in_every_study(make):
    one, other = make("one"), make("other")
    assert one.queue(2) == 2
    one.work(bowl)
    assert one.queue(6) == 4 and one.queue(6) == 0
    one.work(bowl)
    other.queue(6)
    other.work(bowl)
    draws = [[trial.params for trial in sorted(s.trials(), key=lambda t: t.user_attrs[SLOT])] for s in (one, other)]
    assert draws[0] == draws[1] and len({str(draw) for draw in draws[0]}) == 6


@pytest.mark.slow
def test_bayes_learns_from_results(make):
    study, blind = make("seen", method="bayes"), make("blind")
    for each in (study, blind):
        each.queue(60)
        each.work(bowl)
    late = {each.name: sorted(t.value for t in each.trials() if t.user_attrs[SLOT] >= 30) for each in (study, blind)}
    assert late["seen"][15] < 0.5 * late["blind"][15]  # the median of its later trials
    assert collect_results(study.sweep, study).ranked == []  # these trials measured no metric of a run


@pytest.mark.slow
def test_one_worker_draws_the_same_trials_from_the_same_seed(make):
    """Also if the sweep is interrupted; trials differ from one another. The estimator learns from the first ten."""
    draws = {}
    for name, parts, seed in (("whole", [12], 5), ("parts", [3, 11, 12], 5), ("other", [2], 6)):
        for count in parts:
            study = make(name, method="bayes", seed=seed)
            study.queue(count)
            study.work(bowl)
        draws[name] = [trial.params for trial in sorted(study.trials(), key=lambda trial: trial.user_attrs[SLOT])]
    assert draws["whole"] == draws["parts"] and draws["whole"][:2] != draws["other"]
    assert len({str(params) for params in draws["whole"]}) == 12
    random = [known_values(replace(study.sweep, method="random"), 5, seed) for seed in (0, 0, 1)]
    assert random[0] == random[1] != random[2]
    assert make("parts", method="bayes", seed=None).seed == 5
    with pytest.raises(InputError, match="--seed 6: the sweep parts was started with seed 5"):
        make("parts", method="bayes", seed=6)


def test_failed_trials_are_only_run_again_on_request(make):
    study = make()
    study.queue(3)
    fails = True

    def objective(study, trial, settings):
        if fails and trial.user_attrs[SLOT] == 1:
            raise ValueError("no room")
        return bowl(study, trial, settings)

    study.work(objective)
    for _ in range(RETRIES + 1):  # another one has killed all of its workers
        study.queue(4)
        kill(study)
    first = {trial.user_attrs[SLOT]: trial for trial in study.trials()}
    assert [first[i].state.name for i in range(4)] == ["COMPLETE", "FAIL", "COMPLETE", "FAIL"]
    study.queue(4)
    assert study.remaining() == 0  # the same command does not run them again
    fails = False
    assert make().retry() == 2 and study.remaining() == 2
    kill(study)  # what killed it before does not count
    study.work(objective)
    done = {trial.user_attrs[SLOT]: trial for trial in study.trials()}
    assert [done[i].state.name for i in range(4)] == ["COMPLETE"] * 4 and ERROR not in done[1].user_attrs
    assert all(done[i].params == first[i].params for i in range(3)) and done[0].number == first[0].number
    assert study.retry() == 0


def test_failed_trials_are_named_by_their_numbers(make):
    study = make()
    study.queue(4)

    def objective(study, trial, settings):
        require(trial.user_attrs[SLOT] not in (1, 3), "no room")
        return bowl(study, trial, settings)

    study.work(objective)
    for which, message in (("2", "trial 2 has not failed; those that have: 1, 3"), ("1,9", "trial 9 has not failed")):
        with pytest.raises(InputError, match=f"--retry {which}: {message}"):
            study.retry(which)
    assert study.waiting() == 0 and study.retry("3,3") == 1 and study.waiting() == 1
    study.work(bowl)
    states = {trial.user_attrs[SLOT]: trial.state.name for trial in study.trials()}
    assert states == {0: "COMPLETE", 1: "FAIL", 2: "COMPLETE", 3: "COMPLETE"}


def test_the_next_attempt_has_the_folder_and_the_measurements_of_the_last(make, tmp_path):
    """So early termination sees them once; deaths count from the last checkpoint on, which shows progress."""
    study = make(early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2})
    study.queue(1)
    for attempt in range(RETRIES + 2):
        trial = study._study.ask()
        assert trial.user_attrs.get(FOLDER) == (str(tmp_path) if attempt else None)
        trial.set_user_attr(FOLDER, str(tmp_path))
        for value in [3.0, 2.0][attempt : attempt + 1]:
            trial.report(value, 1 + attempt)
        if attempt < 2:
            (tmp_path / "last.ckpt").touch()
            os.utime(tmp_path / "last.ckpt", (time.time() + 1, time.time() + 1))
        elif attempt == 2:
            os.utime(tmp_path / "last.ckpt", (0, 1))
        trial.set_user_attr(WORKER, f"{socket.gethostname()}:{2**22 + 7}")
        study.release()
        (last,) = study.trials()
        assert last.user_attrs.get(DEATHS) == max(attempt - 1, 0)
        assert last.intermediate_values == ({1: 3.0} if attempt == 0 else {1: 3.0, 2: 2.0})
    kill(study)
    assert [each.state.name for each in study.trials()] == ["FAIL"] and study.remaining() == 0


def test_a_trial_whose_process_is_killed_returns_to_the_queue(make):
    study, tries = make(), []
    study.queue(2)

    def objective(study, trial, settings):
        tries.append(trial.user_attrs[SLOT])
        if trial.user_attrs[SLOT] == 1 or tries.count(0) < 3:
            raise Killed("exit code -9: killed")
        return bowl(study, trial, settings)

    study.work(objective)
    states = {trial.user_attrs[SLOT]: trial for trial in study.trials()}
    assert [states[slot].state.name for slot in (0, 1)] == ["COMPLETE", "FAIL"]
    assert states[1].user_attrs[ERROR] == "exit code -9: killed" and tries.count(1) == RETRIES + 1


def test_a_smaller_count_removes_trials_from_the_queue(make):
    study = make()
    study.queue(6)
    assert study.queue(2) == 0 and study.remaining() == 2
    study.work(bowl)
    assert study.queue(6) == 4
    study.work(bowl)
    assert sorted(trial.user_attrs[SLOT] for trial in study.trials()) == [*range(6)]
    assert [trial.params for trial in sorted(study.trials(), key=lambda t: t.user_attrs[SLOT])] == known_values(
        study.sweep, 6, 0
    )


def test_trials_queued_twice_by_two_machines_run_once(make):
    one, other = make(), make()
    one._study.enqueue_trial({}, user_attrs={SLOT: 0})
    other._study.enqueue_trial({}, user_attrs={SLOT: 0})
    one.work(bowl)
    assert [trial.state.name for trial in one.trials()] == ["COMPLETE"]


def test_a_trial_with_an_error_fails_alone_and_is_not_retried(make):
    study = make()
    study.queue(3)

    def fails_once(study, trial, settings):
        if trial.user_attrs[SLOT] == 1:
            raise ValueError("samples\nhold NaN")
        return bowl(study, trial, settings)

    study.work(fails_once)
    states = {trial.user_attrs[SLOT]: trial for trial in study.trials()}
    assert [states[i].state.name for i in range(3)] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert states[1].user_attrs["error"] == "samples hold NaN" and study.queue(3) == 0 and study.remaining() == 0


def test_an_interrupted_trial_returns_to_the_queue_with_its_values(make):
    study = make(method="bayes")
    study.queue(1)
    seen = []

    def interrupted(study, trial, settings):
        seen.append(settings)
        if len(seen) <= RETRIES + 2:
            raise Stopped
        return bowl(study, trial, settings)

    for _ in range(RETRIES + 2):
        with pytest.raises(Stopped):
            study.work(interrupted)
    for _ in range(RETRIES):  # deaths are counted apart
        kill(study)
    study.work(interrupted)
    assert [trial.state.name for trial in study.trials()] == ["COMPLETE"]
    assert all(settings == seen[0] for settings in seen)


def test_a_trial_returns_to_the_queue_if_its_worker_is_killed_first(make):
    """Its end is stored, without a result or an error."""
    study = make()
    study.queue(3)
    lost = study._study.ask()
    study._study.tell(lost.number, state=TrialState.FAIL)
    study.work(bowl)
    done = study.trials()
    assert sorted(trial.user_attrs[SLOT] for trial in done) == [0, 1, 2]
    assert all(trial.state == TrialState.COMPLETE for trial in done) and lost.number not in {t.number for t in done}


def test_a_nan_metric_is_a_failure_with_its_reason(make):
    study = make()
    study.queue(1)
    study.work(lambda *_: math.nan)
    (trial,) = study.trials()
    assert trial.state == TrialState.FAIL and trial.user_attrs[ERROR] == "m is nan"


def test_a_trial_that_kills_its_workers_fails(make):
    study = make()
    study.queue(1)
    for _ in range(RETRIES + 1):
        kill(study)
    assert [trial.state.name for trial in study.trials()] == ["FAIL"] and study.remaining() == 0
    (row,) = collect_results(study.sweep, study).rows
    assert row.state == "failed" and row.message == "its workers died"


def test_a_trial_of_a_living_worker_is_not_taken_away(make):
    study = make()
    study.queue(1)
    study._study.ask().set_user_attr(WORKER, f"{socket.gethostname()}:{os.getpid()}")
    study.release()
    assert [trial.state.name for trial in study.trials()] == ["RUNNING"]


def test_early_termination_compares_with_all_trials(make):
    study = make(early_terminate={"type": "hyperband", "min_iter": 2, "eta": 4})
    study.queue(4)
    steps = []

    def trains(study, trial, settings):
        for step in range(1, 5):
            trial.report(trial.user_attrs[SLOT] + 1 / step, step)
            if study.should_stop(trial):
                steps.append(step)
                raise optuna.TrialPruned
        return trial.user_attrs[SLOT]

    study.work(trains)
    states = sorted((trial.user_attrs[SLOT], trial.state.name) for trial in study.trials())
    assert [name for _, name in states] == ["COMPLETE", "PRUNED", "PRUNED", "PRUNED"] and steps == [2, 2, 2]


def test_a_study_of_another_file_is_refused(make):
    make()
    with pytest.raises(InputError, match="another version of its file"):
        make(run_cap=3)


@pytest.mark.parametrize("network", [False, True])
def test_one_process_at_a_time_takes_a_trial(tmp_path, monkeypatch, network):
    """SQLite has no lock of a row: two that read at the same time that a trial waits would both take it. On NFS a folder
    cannot be locked.
    """

    def lock(descriptor, kind):
        if network and os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, kind)

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lock)
    inside, most = [], []

    def take(who):
        inside.append(who)
        most.append(len(inside))
        time.sleep(0.02)
        inside.remove(who)

    threads = [threading.Thread(target=in_turn(str(tmp_path), take), args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8 and (tmp_path / LOCK).exists() == network
