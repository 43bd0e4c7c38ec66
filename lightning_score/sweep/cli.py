"""The command `sweep`."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_score.commands.arguments import Arguments
from lightning_score.commands.configs import find_config
from lightning_score.commands.parser import Parser
from lightning_score.errors import require
from lightning_score.stopping import patience
from lightning_score.sweep.check import check_settings
from lightning_score.sweep.draws import plan_trials
from lightning_score.sweep.engine import SweepRunner
from lightning_score.sweep.folder import DATABASE, check_folder, folder_of, make_folder
from lightning_score.sweep.processes import PATIENCE, Interruption
from lightning_score.sweep.spec import Sweep, read_sweep_file
from lightning_score.sweep.study import Study
from lightning_score.sweep.summary import summarize, summarize_wandb


def sweep(arguments: Arguments) -> None:
    """Runs or resumes a sweep and prints its results.

    Args:
        arguments: `sweep` and its options.

    Raises:
        InputError: the file, a parameter, the metric, the checkpoint or the database is invalid.
    """
    options = _parser().parse_args(arguments)
    for name, least in (("count", 1), ("jobs", 1), ("seed", 0)):
        value = options[name]
        require(value is None or value >= least, f"--{name} {value}: must be at least {least}")
    require(
        options.wandb is None or options.file is None,
        f"--wandb {options.wandb}: does not take a file; leave {options.file} out",
    )
    with patience(), Interruption(at_once=True, patience=3 * PATIENCE) as interruption:
        if options.wandb is not None:
            summarize_wandb(options.wandb, options.runs)
            return
        require(options.file is not None, "sweep needs a file, as sweeps/eps.yaml, or --wandb ENTITY/PROJECT/SWEEP")
        _run_file(options, interruption)
        if interruption.requested:
            raise SystemExit(interruption.code)


def _run_file(options: Any, interruption: Interruption) -> None:
    spec = read_sweep_file(str(find_config(options.file, "sweeps", "")))
    name = options.name or spec.name
    folder = folder_of(options.runs, name)
    url = options.storage or f"sqlite:///{folder / DATABASE}"
    check_folder(folder, spec.text, bool(options.storage))
    if options.summary:
        require(bool(options.storage) or (folder / DATABASE).exists(), f"{folder}: this sweep has not been run yet")
        interruption.defer()
        summarize(spec, Study(spec, url, name), folder)
        return
    plan = plan_trials(spec, options.count, options.seed)
    print(_announcement(spec, check_settings(spec, plan), options.jobs), flush=True)
    if options.dry_run:
        return
    interruption.defer()
    make_folder(folder)
    study = Study(spec, url, name, create=True, seed=options.seed)
    _pin_checkpoint(study, [spec.arguments(settings) for settings in plan.settings])
    SweepRunner(spec, study, folder, options.jobs, interruption).run(plan.count, options.retry_failed)


def _parser() -> Parser:
    parser = Parser(prog="python -m lightning_score sweep", description="Runs a W&B sweep file without W&B.")
    parser.add_argument("file", type=str | None, nargs="?", help="The sweep file, for example sweeps/eps.yaml.")
    for name, kind, text in (
        ("count", int, "Total number of trials; by default all trials of a grid."),
        ("seed", int, "Seed of methods random and bayes: the same file and seed give the same trials. 0 by default."),
        ("name", str, "Name of the sweep; by default that of the file."),
        ("storage", str, "Database for several machines, as postgresql://user@host/name; by default a file in the folder."),
        (
            "wandb",
            str,
            "Write the tables and figures of a sweep that W&B has run, here and on W&B: ENTITY/PROJECT/SWEEP.",
        ),
    ):
        parser.add_argument(f"--{name}", type=kind | None, default=None, help=text)
    parser.add_argument("--jobs", type=int, default=1, help="Number of trials that run in parallel on this machine.")
    parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs; results go to RUNS/sweeps/NAME.")
    parser.add_argument("--retry_failed", action="store_true", help="Run failed trials again.")
    parser.add_argument("--dry_run", action="store_true", help="Only check the file and print the cost.")
    parser.add_argument("--summary", action="store_true", help="Only write the tables and figures of the results so far.")
    return parser


def _announcement(spec: Sweep, cost: str, jobs: int) -> str:
    goal = "" if spec.metric is None else f", {'maximizing' if spec.maximize else 'minimizing'} {spec.metric}"
    varied = " x ".join(spec.varied) or "no parameter"
    ending = ", fewer with early termination" if spec.hyperband else ""
    workers = f" with {jobs} workers" if jobs > 1 else ""
    return f"{spec.name}: {spec.search} over {varied}{goal}\n{cost}{ending}{workers}"


def _pin_checkpoint(study: Study, trials: Sequence[Arguments]) -> None:
    """Raises `InputError` unless the checkpoints are the same as when the sweep was first started."""
    paths = dict.fromkeys(path for arguments in trials for path in arguments.get("--ckpt_path"))
    for k, path in enumerate(paths):
        file = Path(path, "last.ckpt") if os.path.isdir(path) else Path(path)  # a run that `fit` resumes
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        known = study.store_once(f"checkpoint {k}" if k else "checkpoint", [digest, path])
        require(
            known[0] == digest,
            f"--ckpt_path {path}: the sweep {study.name} was started with another checkpoint, {known[1]}; "
            "give a new --name, or that checkpoint",
        )
