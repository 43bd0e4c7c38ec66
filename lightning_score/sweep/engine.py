"""The command `sweep`: a sweep file of W&B's, run on this machine."""

import lightning_score.torchvision_guard  # noqa: F401

import hashlib
import multiprocessing
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from optuna.trial import FixedTrial, FrozenTrial, TrialState

from lightning_score.arguments import Parser, find_config, option
from lightning_score.metrics.record import SUBSET
from lightning_score.runs import replace_text
from lightning_score.sweep import figures
from lightning_score.sweep.check import check_metric, check_settings
from lightning_score.sweep.cost import Cost, estimate
from lightning_score.sweep.loaded import LoadedCommand
from lightning_score.sweep.results import Results, Row, flat_settings, measured
from lightning_score.sweep.spec import NESTED, Sweep, read, shown
from lightning_score.sweep.study import ERROR, METRICS, SETTINGS, SLOT, Study
from lightning_score.sweep.table import Board, print_results
from lightning_score.sweep.trials import arguments_of
from lightning_score.sweep.worker import FLOOR, FOLDER, PAIRED, SECONDS, WITHOUT, work
from lightning_score.utils import require

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "early", TrialState.FAIL: "failed",
          TrialState.RUNNING: "running", TrialState.WAITING: "waiting"}  # fmt: skip


def sweep(arguments: list[str]) -> None:
    """Runs a sweep, or goes on with it, and tells what it found.

    Args:
        arguments: `sweep` and its options.

    Raises:
        InputError: the file, a parameter, the metric, the checkpoint or the database is wrong; nothing is begun then.
    """
    options = _parser().parse_args(arguments[1:])
    for name, least in (("count", 1), ("jobs", 1)):
        value = options[name]
        require(value is None or value >= least, f"--{name} {value}: must be at least {least}")
    if options.wandb is not None:
        tell_wandb(options.wandb, Path(options.runs))
        return
    require(options.file is not None, "sweep needs a file, as sweeps/eps.yaml, or --wandb ENTITY/PROJECT/SWEEP")
    spec = read(str(find_config(options.file, "sweeps", "")))
    name = options.name or spec.name
    folder = Path(options.runs).resolve() / "sweeps" / name
    url = options.storage or f"sqlite:///{folder}/study.db"
    if options.summary:
        require(bool(options.storage) or folder.exists(), f"{folder}: this sweep has not been run yet")
        tell(spec, Study(spec, url, name), folder)
        return
    check_settings(spec)
    count, trials = _planned(spec, options.count)
    command = LoadedCommand(trials[0])
    check_metric(spec, command)
    cost = estimate(command, trials, count)
    print(_announcement(spec, cost, options.jobs), flush=True)
    if options.dry_run:
        return
    folder.mkdir(parents=True, exist_ok=True)
    study = Study(spec, url, name, make=True)
    _hold(study, trials[0])
    del command
    Run(spec, study, folder, options.jobs).go(count)


def _parser() -> Parser:
    parser = Parser(prog="python -m lightning_score sweep", description="Runs a W&B sweep file without W&B.")
    parser.add_argument("file", type=str | None, nargs="?", help="The sweep file, as sweeps/eps.yaml.")
    parser.add_argument("--count", type=int | None, default=None, help="Trials in all; a grid's own number by default.")
    parser.add_argument("--jobs", type=int, default=1, help="Trials at the same time on this machine.")
    parser.add_argument("--name", type=str | None, default=None, help="Of this sweep; that of the file by default.")
    parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs: results go to RUNS/sweeps/NAME.")
    storage = "Database that several machines share, as postgresql://user@host/name; a file in the folder by default."
    parser.add_argument("--storage", type=str | None, default=None, help=storage)
    wandb = "Tables and figures of a sweep that W&B has run, here and on W&B: ENTITY/PROJECT/SWEEP."
    parser.add_argument("--wandb", type=str | None, default=None, help=wandb)
    parser.add_argument("--dry_run", action="store_true", help="Check the file and print the cost, no more.")
    parser.add_argument("--summary", action="store_true", help="Tables and figures of what there is, no more.")
    return parser


def _planned(spec: Sweep, count: int | None) -> tuple[int, list[list[str]]]:
    """The number of trials, and the arguments of those whose settings are known."""
    if spec.method == "grid":
        known = [spec.settings(FixedTrial(values)) for values in spec.grid()]
        total = min(len(known), *(limit for limit in (count, spec.run_cap) if limit is not None), len(known))
        return total, [arguments_of(spec, settings, Path("trial")) for settings in known[:total]]
    total = count or spec.run_cap
    require(total is not None, f"method {spec.method} goes on for ever: give --count 20, or run_cap in the file")
    return total, [arguments_of(spec, settings, Path("trial")) for _, _, settings in spec.examples()]


def _announcement(spec: Sweep, cost: Cost, jobs: int) -> str:
    goal = "" if spec.metric is None else f", {'maximizing' if spec.maximize else 'minimizing'} {spec.metric}"
    varied = " x ".join(spec.varied) or "nothing"
    ending = ", or less with early termination" if spec.hyperband else ""
    workers = f" with {jobs} workers" if jobs > 1 else ""
    return f"{spec.name}: {spec.method} over {varied}{goal}\n{cost}{ending}{workers}"


def _hold(study: Study, arguments: list[str]) -> None:
    """Sees to it that all trials, today's and tomorrow's, are of one checkpoint."""
    paths = option(arguments, "--ckpt_path")
    if paths:
        digest = hashlib.sha256(Path(paths[-1]).read_bytes()).hexdigest()
        known = study.remember("checkpoint", [digest, paths[-1]])
        require(
            known[0] == digest,
            f"--ckpt_path {paths[-1]}: the sweep {study.name} was begun with another checkpoint, {known[1]}; "
            "give a new --name, or that one",
        )


class Run:
    """Workers, and what is shown meanwhile.

    Args:
        spec: the sweep.
        study: its trials.
        folder: for results.
        jobs: number of workers.
    """

    def __init__(self, spec: Sweep, study: Study, folder: Path, jobs: int):
        self._spec, self._study, self._folder, self._jobs = spec, study, folder, jobs
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[Any] = []
        self._kept = ""

    def go(self, count: int) -> None:
        """Runs until all trials are over, then tells the results; an interruption loses nothing."""
        self._study.release()
        new = self._study.queue(count)
        done = len(self._study.trials()) - self._study.left()
        if done:
            print(f"goes on after {done} trials" + (f", {new} more" if new else ""), flush=True)
        (self._folder / "sweep.yaml").write_text(self._spec.text, encoding="utf-8")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        board = Board(lambda: results(self._spec, self._study))
        try:
            with board:
                self._supervise(board)
        except KeyboardInterrupt:
            self._stop()
            self._study.release(dead=lambda process: process in {worker.pid for worker in self._workers})
            print(f"\nstopped with {self._study.left()} trials left; to go on: {_again()}", flush=True)
            raise SystemExit(130) from None
        tell(self._spec, self._study, self._folder)

    def _supervise(self, board: Board) -> None:
        wanted = min(self._jobs, max(self._study.left(), 1))
        while self._study.left():
            alive = [worker for worker in self._workers if worker.is_alive()]
            if len(alive) < len(self._workers):
                self._study.release()
            self._workers = alive
            while len(self._workers) < min(wanted, self._study.left()):
                self._workers.append(self._begin(len(self._workers)))
            board.refresh()
            self._keep()
            time.sleep(0.5)
        for worker in self._workers:
            worker.join()
        board.refresh()

    def _keep(self) -> None:
        """Keeps the table of trials on disk up to date, for whoever looks meanwhile."""
        found = results(self._spec, self._study)
        text = found.csv()
        if text != self._kept:
            keep(found, self._folder)
            self._kept = text

    def _begin(self, device: int) -> Any:
        threads = max((os.cpu_count() or 1) // self._jobs, 1)
        values = (self._spec, self._study.url, self._study.name, self._folder, threads, device, os.getpid())
        worker = self._context.Process(target=work, args=values)
        worker.start()
        return worker

    def _stop(self) -> None:
        for worker in self._workers:
            if worker.is_alive():
                worker.terminate()
        for worker in self._workers:
            worker.join(90)
            if worker.is_alive():
                worker.kill()


def _again() -> str:
    return "python -m lightning_score " + shlex.join(sys.argv[1:])


def tell(spec: Sweep, study: Study, folder: Path) -> None:
    """Writes tables and figures into the folder and prints the summary."""
    write(results(spec, study, final=True), folder)


def tell_wandb(path: str, runs: Path) -> None:
    """The same of a sweep that W&B has run, in `runs/sweeps/<its id>` and in a run of its own on W&B."""
    from lightning_score.sweep.on_wandb import fetch, publish

    spec, found = fetch(path)
    if found.ranked:
        best = found.ranked[0]
        arguments = arguments_of(spec, best.settings, Path("trial"))
        found.commands[best.number] = "python -m lightning_score " + shlex.join(arguments)
    publish(found, write(found, runs.resolve() / "sweeps" / path.rpartition("/")[2]), path)


def write(found: Results, folder: Path) -> list[Path]:
    """Writes tables and figures and prints the summary; returns the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.md").write_text(found.markdown(), encoding="utf-8")
    keep(found, folder)
    drawn = figures.draw(found, folder)
    print_results(found, folder, [file.name for file in drawn])
    return drawn


def keep(found: Results, folder: Path) -> None:
    """Writes the table of trials, in one move."""
    replace_text(folder / "trials.csv", found.csv())


def results(spec: Sweep, study: Study, final: bool = False) -> Results:
    """What there is so far.

    Args:
        spec: the sweep.
        study: its trials.
        final: with importances and commands, which take time.
    """
    rows = sorted((_row(spec, trial) for trial in study.trials()), key=lambda row: row.number)
    found = Results(spec.name, spec.metric or "", spec.maximize, spec.varied, rows)
    if final and found.ranked:
        found.importances = {shown(name): share for name, share in study.importances().items()}
        best = next(trial for trial in study.trials() if _number(trial) == found.ranked[0].number)
        arguments = arguments_of(spec, best.user_attrs[SETTINGS], Path("trial"))
        found.commands[found.ranked[0].number] = "python -m lightning_score " + shlex.join(arguments)
    return found


def _number(trial: FrozenTrial) -> int:
    return trial.user_attrs.get(SLOT, trial.number)


def _row(spec: Sweep, trial: FrozenTrial) -> Row:
    attributes = trial.user_attrs
    fields = measured(attributes.get(METRICS, {}), spec.metric or "")
    state = STATES[trial.state]
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
        floor_kind=attributes.get(FLOOR, SUBSET),
        **fields,
    )
