"""Runs the trials of a sweep in worker processes on this machine."""

import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from lightning_score.files import replace_text
from lightning_score.sweep.folder import FILE
from lightning_score.sweep.processes import PATIENCE, Interruption, cores
from lightning_score.sweep.results import TABLE
from lightning_score.sweep.spec import Sweep
from lightning_score.sweep.study import Study
from lightning_score.sweep.summary import LiveTable, collect_results
from lightning_score.sweep.trials import work

POLL, POLL_SHARED = 0.5, 3.0
"""Seconds between two looks at the trials, also if many machines look at them."""
Conclude = Callable[[Sweep, Study, Path], None]
"""Writes and prints the results of a sweep into its folder."""


class SweepRunner:
    """Queues the trials of a sweep, starts the workers and shows their progress.

    Args:
        study: the trials of the sweep.
        folder: for results.
        jobs: number of workers.
        interruption: whether to stop.
        seconds: patience with the workers after a signal.
        leaves: whether to end as soon as no trial waits, while those of other machines are running.
        conclude: writes and prints the results.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        jobs: int,
        interruption: Interruption,
        seconds: float,
        leaves: bool,
        conclude: Conclude,
    ):
        self._spec, self._study, self._folder, self._jobs = study.sweep, study, folder, jobs
        self._interruption, self._seconds, self._leaves, self._conclude = interruption, seconds, leaves, conclude
        interruption.patience = seconds + 2 * PATIENCE
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[Any] = []
        self._written = ""

    def queue(self, count: int, retry: str | None = None) -> None:
        """Queues the trials that are not there yet, and those that were interrupted.

        Args:
            count: total number of trials.
            retry: the failed trials to run again: `failed`, or numbers.

        Raises:
            InputError: `retry` names other trials.
        """
        self._study.release()
        again = self._study.retry(retry) if retry else 0
        new = self._study.queue(count, lambda: self._interruption.requested)
        done = len(self._study.trials()) - self._study.remaining()
        if done:
            retried = f", {again} failed trials again" if again else ""
            print(f"resumes after {done} trials" + (f", {new} more" if new else "") + retried, flush=True)
        replace_text(self._folder / FILE, self._spec.text)
        self._write_trials()

    def run(self) -> None:
        """Runs until all trials have ended, then prints the results; after an interruption it resumes."""
        self._study.release()
        board = LiveTable(lambda: collect_results(self._spec, self._study))
        with board.live:
            self._supervise(board)
        if self._interruption.requested:
            self._stop()
            return
        if self._leaves and self._study.remaining():
            print("no trial waits; the worker that ends last writes the results", flush=True)
            return
        if self._study.ended:
            print(f"ended early: {self._study.ended}", flush=True)
        self._conclude(self._spec, self._study, self._folder)

    def _supervise(self, board: LiveTable) -> None:
        wanted = min(self._jobs, max(self._study.remaining(), 1))
        while self._left() and not self._interruption.requested:
            alive = [worker for worker in self._workers if worker.is_alive()]
            if len(alive) < len(self._workers):
                self._study.release()
            self._workers = alive
            while len(self._workers) < min(wanted, self._left()):
                self._workers.append(self._start_worker(len(self._workers)))
            board.refresh()
            self._write_trials()
            time.sleep(POLL_SHARED if self._leaves else POLL)
        while not self._interruption.requested and any(worker.is_alive() for worker in self._workers):
            time.sleep(0.05)
        if not self._interruption.requested:
            board.refresh()

    def _left(self) -> int:
        """The number of trials for which this process needs workers or waits."""
        return self._study.waiting() + len(self._workers) if self._leaves else self._study.remaining()

    def _write_trials(self) -> None:
        """Updates the table of trials on disk; its modification time shows that the sweep is alive."""
        text = collect_results(self._spec, self._study).csv()
        if text != self._written:
            replace_text(self._folder / TABLE, text)
            self._written = text
        os.utime(self._folder / TABLE)

    def _start_worker(self, device: int) -> Any:
        threads = max(cores() // self._jobs, 1)
        study = self._study
        values = (self._spec, study.url, study.name, self._folder, threads, device, os.getpid(), self._seconds, self._leaves)
        worker = self._context.Process(target=work, args=values)
        resource_tracker.ensure_running()  # which unblocks signals
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # Ctrl-C in its imports would end in a traceback
        try:
            worker.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        return worker

    def _stop(self) -> None:
        """Stops the workers, which put their trials back into the queue; puts back those of workers that were killed."""
        end = time.monotonic() + self._seconds + 1
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.join(max(end - time.monotonic(), 0))
            worker.kill()
            worker.join()
        self._study.release()
        self._write_trials()
        again = f"python -m lightning_score {shlex.join(sys.argv[1:])}"
        print(f"\nstopped with {self._study.remaining()} trials left; to resume: {again}", flush=True)
