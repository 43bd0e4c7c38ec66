"""The command `sweep`."""

import hashlib
import os
import re
import shlex
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_score.commands.arguments import Arguments, Option
from lightning_score.commands.configs import find_config
from lightning_score.commands.parser import Parser
from lightning_score.errors import require
from lightning_score.runs.bundle import is_bundle
from lightning_score.runs.pretrained import weights_of
from lightning_score.stopping import patience
from lightning_score.sweep.attempts import FAILED, failed_trials
from lightning_score.sweep.check import check_settings
from lightning_score.sweep.draws import Plan, plan_trials
from lightning_score.sweep.engine import Conclude, SweepRunner
from lightning_score.sweep.folder import DATABASE, FILE, check_folder, folder_of, make_folder
from lightning_score.sweep.overlay import compare
from lightning_score.sweep.processes import PATIENCE, Interruption
from lightning_score.sweep.slurm import check_options, script, submit, write_script
from lightning_score.sweep.spec import Sweep, read_sweep_file
from lightning_score.sweep.study import Study, Unusable
from lightning_score.sweep.summary import summarize, summarize_wandb
from lightning_score.sweep.trials import patience as patience_of

TAKES = {"wandb": "", "compare": "", "summary": "file name storage", "worker": "file name storage count"}
"""The options that do not start trials here, and what each takes besides the folder of all runs."""


def sweep(arguments: Arguments) -> None:
    """Runs or resumes a sweep and prints its results.

    Args:
        arguments: `sweep` and its options.

    Raises:
        InputError: the file, a parameter, the metric, the checkpoint or the database is invalid.
    """
    old = Option("--retry", (FAILED,), True)  # its name in earlier versions
    given = tuple(old if option.name == "--retry_failed" else option for option in arguments.options)
    options = sweep_parser().parse_args(replace(arguments, options=given))
    for name, least in (("count", 1), ("jobs", 1), ("seed", 0)):
        value = options[name]
        require(value is None or value >= least, f"--{name} {value}: must be at least {least}")
    _check(options, {option.name.partition(".")[0].removeprefix("--") or "file" for option in given})
    if options.compare is not None:
        compare(options.compare, options.runs)
        return
    with patience(), Interruption(at_once=True, patience=3 * PATIENCE) as interruption:
        if options.wandb is not None:
            summarize_wandb(options.wandb, options.runs)
            return
        require(options.file is not None, "sweep needs a file, as sweeps/eps.yaml, or --wandb ENTITY/PROJECT/SWEEP")
        file = find_config(options.file, "sweeps", "")
        spec = read_sweep_file(str(file))
        run_sweep(replace(spec, name=options.name or spec.name), file, options, interruption)
        if interruption.requested:
            raise SystemExit(interruption.code)


def _check(options: Any, given: Set[str]) -> None:
    """Raises `InputError` for options that do not go together.

    Args:
        options: all of them.
        given: the names of those that the user gave; `file` for the sweep file.
    """
    known = options.retry is None or options.retry == FAILED or re.fullmatch(r"\d{1,9}(,\d{1,9})*", options.retry)
    again = "must be failed, or the numbers of failed trials, as 3,7; interrupted trials run again without it"
    require(bool(known), f"--retry {options.retry}: {again}")
    require(options.launch in (None, "slurm"), f"--launch {options.launch}: must be slurm")
    for mode, taken in TAKES.items():
        lost = sorted(given - {mode, "runs", *taken.split()}) if options[mode] else []
        names = " and ".join("a file" if name == "file" else f"--{name}" for name in lost)
        require(not lost, f"--{mode}: does not take {names}; leave it out")
    lost = [f"--{name}" for name in ("submit", "slurm") if name in given and not options.launch]
    require(not lost, f"{' '.join(lost)}: only for --launch slurm; add that")


def run_sweep(spec: Sweep, file: Path, options: Any, interruption: Interruption, conclude: Conclude = summarize) -> None:
    """Runs or resumes a sweep.

    Args:
        spec: the sweep.
        file: its file.
        options: those of the command `sweep`.
        interruption: whether to stop.
        conclude: writes and prints the results.

    Raises:
        InputError: a parameter, the metric, the checkpoint or the database is invalid.
    """
    name = spec.name
    folder = folder_of(options.runs, name)
    url = options.storage or f"sqlite:///{folder / DATABASE}"
    check_folder(folder, spec.text, bool(options.storage))
    if options.summary:
        require(bool(options.storage) or (folder / DATABASE).exists(), f"{folder}: this sweep has not been run yet")
        interruption.defer()
        conclude(spec, Study(spec, url, name), folder)
        return
    slurm = check_options(options.slurm or {})
    started = _started(spec, url, name, options)
    plan = plan_trials(spec, options.count, started.seed if started and spec.takes_seed else options.seed)
    trials = [spec.arguments(settings) for settings in plan.settings]
    _refuse_run_folders(trials)
    if not options.worker:
        print(_announcement(spec, plan, check_settings(spec, plan), options.jobs), flush=True)
    if options.dry_run:
        return
    interruption.defer()
    make_folder(folder)
    study = Study(spec, url, name, create=not options.worker, seed=options.seed)
    _pin_checkpoint(study, trials)
    seconds = patience_of(spec, trials[0].command)
    runner = SweepRunner(study, folder, options.jobs, interruption, seconds, options.worker, conclude)
    if not options.worker:
        runner.queue(plan.count, options.retry)
    if options.launch and study.waiting() and not interruption.requested:
        coded = spec.scheduler is not None and bool(spec.scheduler.source)  # code that is found from the user's file
        _launch(options, folder, file.resolve() if coded else folder / FILE, min(options.jobs, study.waiting()), slurm)
    else:
        runner.run()


def _launch(options: Any, folder: Path, source: Path, tasks: int, slurm: dict[str, str]) -> None:
    """Writes the script of a job that runs the waiting trials of a sweep file, and submits it if that is asked for."""
    runs = str(Path(options.runs).resolve())
    kept = {"name": folder.name, "runs": runs, "storage": options.storage, "count": options.count}
    words = [str(source), *(f"--{name}={value}" for name, value in kept.items() if value is not None), "--worker"]
    file = write_script(folder, script(folder.name, folder, tasks, words, slurm))
    if options.submit:
        print(submit(file))
    else:
        print(f"to submit {tasks} workers: sbatch {shlex.quote(str(file))}")
    print(f"logs: {file.parent}; results when all trials have ended, or so far: sweep with --summary")


def _started(spec: Sweep, url: str, name: str, options: Any) -> Study | None:
    """The study of a sweep that was started; None for a new one, and for a database whose fault is reported later.

    Raises:
        InputError: it was started with another seed or another version of its file, or has no such trials to run again.
    """
    found = None
    with suppress(Unusable):
        found = Study(spec, url, name, seed=options.seed if spec.takes_seed else None)
    if options.retry is not None:
        failed_trials([] if found is None else found.trials(), options.retry)
    return found


def sweep_parser() -> Parser:
    """The options of `sweep`."""
    parser = Parser(prog="python -m lightning_score sweep", description="Runs a W&B sweep file without W&B.")
    parser.add_argument("file", type=str | None, nargs="?", help="The sweep file, for example sweeps/eps.yaml.")
    for name, kind, text in (
        ("count", int, "Total number of trials; by default all trials of a grid."),
        ("seed", int, "Seed of methods random and bayes: the same file and seed give the same trials. 0 by default."),
        ("name", str, "Name of the sweep; by default that of the file."),
        ("retry", str, "Run failed trials again: failed, or their numbers, as 3,7. Training resumes from checkpoints."),
        ("launch", str, "Write the script of a job array whose tasks run the trials: slurm. --jobs is the number of tasks."),
        ("slurm", dict, "Options of sbatch for it, as --slurm.partition=gpu --slurm.time=8:00:00 --slurm.exclusive=true."),
        ("storage", str, "Database for several machines, as postgresql://user@host/name; by default a file in the folder."),
        ("wandb", str, "Write the tables and figures of a sweep that W&B has run, here and on W&B: ENTITY/PROJECT/SWEEP."),
        ("compare", str, "Show sweeps of one measure in one table and in the same figures: names or folders, as eps,other."),
    ):
        parser.add_argument(f"--{name}", type=kind | None, default=None, help=text)
    jobs = "Number of trials that run in parallel, here or as tasks of --launch."
    parser.add_argument("--jobs", type=int, default=1, help=jobs)
    parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs; results go to RUNS/sweeps/NAME.")
    parser.add_argument("--submit", action="store_true", help="Submit the job of --launch, which is printed otherwise.")
    worker = "Run the trials that wait in a sweep that was started, then end: what each task of --launch does."
    parser.add_argument("--worker", action="store_true", help=worker)
    parser.add_argument("--dry_run", action="store_true", help="Only check the file and print the cost.")
    parser.add_argument("--summary", action="store_true", help="Only write the tables and figures of the results so far.")
    return parser


def _announcement(spec: Sweep, plan: Plan, cost: str, jobs: int) -> str:
    goal = "".join(f", {'maximizing' if each.maximize else 'minimizing'} {each.name}" for each in spec.objectives)
    goal += f", with {' and '.join(map(str, spec.constraints))}" if spec.constraints else ""
    varied = " x ".join(spec.varied) or "no parameter"
    ending = ", fewer with early termination" if spec.hyperband else ""
    workers = f" with {jobs} workers" if jobs > 1 else ""
    seed = f", seed {plan.seed}" if spec.takes_seed else ""
    return f"{spec.name}: {spec.search} over {varied}{goal}{seed}\n{cost}{ending}{workers}"


def _refuse_run_folders(trials: Sequence[Arguments]) -> None:
    """Raises `InputError` for a run folder in place of a checkpoint, in which every trial would resume training."""
    for path in dict.fromkeys(path for arguments in trials for path in arguments.get("--ckpt_path")):
        fix = f"--ckpt_path {path}: every trial would resume that run in its folder; give a checkpoint, as last.ckpt in it"
        require((is_bundle(path) or not os.path.isdir(path)) and Path(path).name != "last", fix)


def _pin_checkpoint(study: Study, trials: Sequence[Arguments]) -> None:
    """Raises `InputError` unless the checkpoints are the same as when the sweep was first started."""
    paths = dict.fromkeys(path for arguments in trials for path in arguments.get("--ckpt_path"))
    for k, path in enumerate(paths):
        digest = hashlib.sha256(weights_of(path).read_bytes()).hexdigest()
        known = study.store_once(f"checkpoint {k}" if k else "checkpoint", [digest, path])
        changed = f"--ckpt_path {path}: the sweep {study.name} was started with another checkpoint, {known[1]}"
        require(known[0] == digest, f"{changed}; give a new --name, or that checkpoint")
