"""The command `sweep`: a sweep file of W&B's, run on this machine."""

import lightning_score.torchvision_guard  # noqa: F401

import hashlib
import multiprocessing
import os
import shlex
import signal
import sys
import time
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from lightning_score.arguments import find_config, option
from lightning_score.metrics.record import SUBSET
from lightning_score.parser import Parser
from lightning_score.runs import check_name, replace_text
from lightning_score.sweep import figures
from lightning_score.sweep.check import check_settings
from lightning_score.sweep.cost import Cost, estimate
from lightning_score.sweep.draws import planned
from lightning_score.sweep.folder import DATABASE, FILE, check_folder, folder_of, making
from lightning_score.sweep.interruption import PATIENCE, Interruption
from lightning_score.sweep.results import TABLE, Results, Row, flat_settings, measured
from lightning_score.sweep.spec import NESTED, Sweep, read, shown
from lightning_score.sweep.study import ERROR, METRICS, SETTINGS, SLOT, WORKER, Study
from lightning_score.sweep.table import Board, print_results
from lightning_score.sweep.trials import arguments_of
from lightning_score.sweep.worker import FLOOR, FOLDER, PAIRED, SECONDS, WITHOUT, work
from lightning_score.utils import require


def sweep(arguments: list[str]) -> None:
    """Runs a sweep, or resumes it, and prints what it found.

    Args:
        arguments: `sweep` and its options.

    Raises:
        InputError: the file, a parameter, the metric, the checkpoint or the database is wrong; nothing is begun then.
    """
    options = _parser().parse_args(arguments[1:])
    for name, least in (("count", 1), ("jobs", 1), ("seed", 0)):
        value = options[name]
        require(value is None or value >= least, f"--{name} {value}: must be at least {least}")
    require(
        options.wandb is None or options.file is None, f"--wandb {options.wandb}: takes no file; leave {options.file} out"
    )
    with Interruption(at_once=True, patience=3 * PATIENCE) as interruption:
        if options.wandb is not None:
            tell_wandb(options.wandb, options.runs)
            return
        require(options.file is not None, "sweep needs a file, as sweeps/eps.yaml, or --wandb ENTITY/PROJECT/SWEEP")
        _of_file(options, interruption)
        if interruption.requested:
            raise SystemExit(interruption.code)


def _of_file(options: Any, interruption: Interruption) -> None:
    spec = read(str(find_config(options.file, "sweeps", "")))
    name = options.name or spec.name
    check_name(name, "--name")
    folder = folder_of(options.runs, name)
    url = options.storage or f"sqlite:///{folder / DATABASE}"
    check_folder(folder, spec.text, bool(options.storage))
    if options.summary:
        require(bool(options.storage) or (folder / DATABASE).exists(), f"{folder}: this sweep has not been run yet")
        interruption.defer()
        tell(spec, Study(spec, url, name), folder)
        return
    plan = planned(spec, options.count, options.seed)
    command = check_settings(spec, plan)
    cost = estimate(command, [arguments_of(spec, settings) for settings in plan.settings], plan.count)
    print(_announcement(spec, cost, options.jobs), flush=True)
    if options.dry_run:
        return
    interruption.defer()
    with making(folder):
        study = Study(spec, url, name, make=True, seed=options.seed)
        _hold(study, [arguments_of(spec, settings) for settings in plan.settings])
    del command
    Run(spec, study, folder, options.jobs, interruption).go(plan.count, options.retry_failed)


def _parser() -> Parser:
    parser = Parser(prog="python -m lightning_score sweep", description="Runs a W&B sweep file without W&B.")
    parser.add_argument("file", type=str | None, nargs="?", help="The sweep file, as sweeps/eps.yaml.")
    parser.add_argument("--count", type=int | None, default=None, help="Trials in all; a grid's own number by default.")
    parser.add_argument("--jobs", type=int, default=1, help="Trials at the same time on this machine.")
    seed = "Seed of methods random and bayes: the same file and seed draw the same trials. 0 by default."
    parser.add_argument("--seed", type=int | None, default=None, help=seed)
    parser.add_argument("--retry_failed", action="store_true", help="Run the trials that have failed again.")
    parser.add_argument("--name", type=str | None, default=None, help="Of this sweep; that of the file by default.")
    parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs: results go to RUNS/sweeps/NAME.")
    storage = "Database that several machines share, as postgresql://user@host/name; a file in the folder by default."
    parser.add_argument("--storage", type=str | None, default=None, help=storage)
    wandb = "Tables and figures of a sweep that W&B has run, here and on W&B: ENTITY/PROJECT/SWEEP."
    parser.add_argument("--wandb", type=str | None, default=None, help=wandb)
    parser.add_argument("--dry_run", action="store_true", help="Check the file and print the cost, no more.")
    parser.add_argument("--summary", action="store_true", help="Tables and figures of what there is, no more.")
    return parser


def _announcement(spec: Sweep, cost: Cost, jobs: int) -> str:
    goal = "" if spec.metric is None else f", {'maximizing' if spec.maximize else 'minimizing'} {spec.metric}"
    varied = " x ".join(spec.varied) or "nothing"
    ending = ", or less with early termination" if spec.hyperband else ""
    workers = f" with {jobs} workers" if jobs > 1 else ""
    return f"{spec.name}: {spec.method} over {varied}{goal}\n{cost}{ending}{workers}"


def _hold(study: Study, trials: list[list[str]]) -> None:
    """Sees to it that all trials, today's and tomorrow's, are of one checkpoint, or of the same ones where these vary."""
    paths = dict.fromkeys(path for arguments in trials for path in option(arguments, "--ckpt_path")[-1:])
    for k, path in enumerate(paths):
        file = Path(path, "last.ckpt") if os.path.isdir(path) else Path(path)  # a run that `fit` goes on with
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        known = study.remember(f"checkpoint {k}" if k else "checkpoint", [digest, path])
        require(
            known[0] == digest,
            f"--ckpt_path {path}: the sweep {study.name} was begun with another checkpoint, {known[1]}; "
            "give a new --name, or that one",
        )


class Run:
    """Workers, and what is shown meanwhile.

    Args:
        spec: the sweep.
        study: its trials.
        folder: for results.
        jobs: number of workers.
        interruption: whether to stop.
    """

    def __init__(self, spec: Sweep, study: Study, folder: Path, jobs: int, interruption: Interruption):
        self._spec, self._study, self._folder, self._jobs = spec, study, folder, jobs
        self._interruption = interruption
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[Any] = []
        self._kept = ""

    def go(self, count: int, retry: bool = False) -> None:
        """Runs until all trials are over, then prints the results; an interruption loses nothing.

        Args:
            count: number of trials in all.
            retry: run those that have failed again.
        """
        self._study.release()
        again = self._study.retry() if retry else 0
        new = self._study.queue(count, lambda: self._interruption.requested)
        done = len(self._study.trials()) - self._study.left()
        if done:
            retried = f", {again} failed ones again" if again else ""
            print(f"resumes after {done} trials" + (f", {new} more" if new else "") + retried, flush=True)
        replace_text(self._folder / FILE, self._spec.text)
        with Board(lambda: results(self._spec, self._study)) as board:
            self._supervise(board)
        if self._interruption.requested:
            self._stop()
            return
        tell(self._spec, self._study, self._folder)

    def _supervise(self, board: Board) -> None:
        wanted = min(self._jobs, max(self._study.left(), 1))
        while self._study.left() and not self._interruption.requested:
            alive = [worker for worker in self._workers if worker.is_alive()]
            if len(alive) < len(self._workers):
                self._study.release()
            self._workers = alive
            while len(self._workers) < min(wanted, self._study.left()):
                self._workers.append(self._begin(len(self._workers)))
            board.refresh()
            self._keep()
            time.sleep(0.5)
        while not self._interruption.requested and any(worker.is_alive() for worker in self._workers):
            time.sleep(0.05)
        if not self._interruption.requested:
            board.refresh()

    def _keep(self) -> None:
        """Keeps the table of trials on disk up to date, for whoever looks meanwhile; its time is a sign of life."""
        text = results(self._spec, self._study).csv()
        if text != self._kept:
            replace_text(self._folder / TABLE, text)
            self._kept = text
        os.utime(self._folder / TABLE)

    def _begin(self, device: int) -> Any:
        threads = max((os.cpu_count() or 1) // self._jobs, 1)
        values = (self._spec, self._study.url, self._study.name, self._folder, threads, device, os.getpid())
        worker = self._context.Process(target=work, args=values)
        resource_tracker.ensure_running()  # which unblocks signals
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # Ctrl-C in its imports would end in a traceback
        try:
            worker.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        return worker

    def _stop(self) -> None:
        """Ends the workers, which put their trials back into the queue; what they cannot put back is put back here."""
        end = time.monotonic() + PATIENCE + 1
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.join(max(end - time.monotonic(), 0))
            worker.kill()
            worker.join()
        self._study.release()
        self._keep()
        print(f"\nstopped with {self._study.left()} trials left; to resume: {_again()}", flush=True)


def _again() -> str:
    return "python -m lightning_score " + shlex.join(sys.argv[1:])


def tell(spec: Sweep, study: Study, folder: Path) -> None:
    """Writes tables and figures into the folder and prints the summary."""
    write(results(spec, study, final=True), folder)
    replace_text(folder / FILE, spec.text)


def tell_wandb(path: str, runs: str) -> None:
    """The same of a sweep that W&B has run, in `runs/sweeps/<its id>` and in a run of its own on W&B."""
    from lightning_score.sweep.on_wandb import fetch, publish

    spec, found = fetch(path)
    folder = folder_of(runs, path.rpartition("/")[2])
    check_folder(folder, spec.text, shared=True)
    if found.ranked:
        found.commands[found.ranked[0].number] = _command_of(spec, found.ranked[0].settings)
    with making(folder):
        replace_text(folder / FILE, spec.text)
    publish(found, write(found, folder), path, folder)


def write(found: Results, folder: Path) -> list[Path]:
    """Writes tables and figures and prints the summary; returns the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "summary.md", found.markdown())
    replace_text(folder / TABLE, found.csv())
    drawn = figures.draw(found, folder)
    print_results(found, folder, [file.name for file in drawn])
    return drawn


def results(spec: Sweep, study: Study, final: bool = False) -> Results:
    """What there is so far.

    Args:
        spec: the sweep.
        study: its trials.
        final: with importances and commands, which take time.
    """
    rows = sorted((_row(spec, trial, study.state(trial)) for trial in study.trials()), key=lambda row: row.number)
    found = Results(spec.name, spec.metric or "", spec.maximize, spec.varied, rows)
    if final and found.ranked:
        found.importances = {shown(name): share for name, share in study.importances().items()}
        best = next(trial for trial in study.trials() if _number(trial) == found.ranked[0].number)
        found.commands[found.ranked[0].number] = _command_of(spec, best.user_attrs[SETTINGS])
    return found


def _command_of(spec: Sweep, settings: dict[str, Any]) -> str:
    """What runs a trial again, with all its parameters."""
    return "python -m lightning_score " + shlex.join(arguments_of(spec, settings))


def _number(trial: FrozenTrial) -> int:
    return trial.user_attrs.get(SLOT, trial.number)


def _row(spec: Sweep, trial: FrozenTrial, state: str) -> Row:
    attributes = trial.user_attrs
    fields = measured(attributes.get(METRICS, {}), spec.metric or "")
    settings = attributes.get(SETTINGS) or {name.replace(NESTED, "."): value for name, value in trial.params.items()}
    message = attributes.get(ERROR, "its workers died") if state == "failed" else ""
    return Row(
        number=_number(trial),
        state=state,
        settings=flat_settings(settings),
        seconds=attributes.get(SECONDS, float("nan")),
        without=tuple(attributes.get(WITHOUT, ())),
        paired=attributes.get(PAIRED, ""),
        folder=attributes.get(FOLDER, ""),
        message=message,
        worker=attributes.get(WORKER, ""),
        floor_kind=attributes.get(FLOOR, SUBSET),
        **fields,
    )
