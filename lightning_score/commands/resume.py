"""Resuming a run in its own folder: with its own config, from its newest undamaged checkpoint."""

import lightning_score.lean_imports  # noqa: F401

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from lightning_score.commands.arguments import CONFIG, Arguments, Layer
from lightning_score.commands.configs import load_checkpoint, over_checkpoint, read_config
from lightning_score.commands.total_steps import linked
from lightning_score.errors import InputError, require
from lightning_score.runs.bundle import is_bundle
from lightning_score.runs.checkpoints import PREVIOUS
from lightning_score.runs.folders import check_name
from lightning_score.runs.old_names import with_new_names
from lightning_score.runs.pretrained import find_checkpoint
from lightning_score.runs.rendezvous import restarted_folder
from lightning_score.runs.status import read_status
from lightning_score.runs.trial import in_trial
from lightning_score.runs.trust import check_origin


def find_resumed_run(arguments: Arguments) -> Path | None:
    """The folder of the run that `fit` resumes: with `--ckpt_path last` the newest of its name; a run folder given in place
    of a checkpoint; in a job that SLURM has queued again, a trial that W&B hands out again, or processes that torchrun has
    restarted, their own. None for a new run.

    Raises:
        InputError: no such run exists.
    """
    paths, names = arguments.get("--ckpt_path"), arguments.get("--name")
    root = Path((arguments.get("--runs") or ["runs"])[-1])
    name = names[-1] if names else Path((arguments.get(CONFIG) or ["run"])[-1]).stem
    check_name(name, "--name")
    restarted = restarted_folder()
    if restarted is not None and (Path(restarted) / "last.ckpt").exists():
        return Path(restarted)
    if not paths:
        return _requeued(root / name, arguments.get("--output"))
    if paths[-1] == "last":
        newest = root / name / "latest"
        fix = "give --config, --name or --runs of one"
        require(newest.is_dir(), f"--ckpt_path last: there is no run in {root / name}; {fix}")
        return newest.resolve()
    found = find_checkpoint(paths[-1])
    return found.resolve() if found.is_dir() and not is_bundle(found) else None


def resume(given: Arguments, folder: Path, trusted: Collection[str]) -> tuple[Arguments, dict[str, Any]]:
    """The arguments that resume a run, over its own config in place of the given ones; and its checkpoint.

    Raises:
        InputError: it is not a run folder, or config and checkpoint are missing, damaged or not trusted.
    """
    file = folder / "config.yaml"
    require(file.is_file(), f"--ckpt_path {folder}: not a run folder, for it has no config.yaml")
    config = with_new_names(read_config(file))
    check_origin(config, trusted, f"--ckpt_path {folder}: config.yaml")
    newest, checkpoint = _newest(folder, trusted)
    options = given.drop(CONFIG, "--output", "--name", "--runs").set("--ckpt_path", str(newest))
    step = checkpoint.get("global_step", 0)
    rank_zero_only(print)(f"resuming {folder} after step {step}, with its own config, which options override", flush=True)
    arguments = over_checkpoint(options, checkpoint).over(Layer(config, str(file)), Layer(linked(config)))
    return arguments, checkpoint


def _requeued(parent: Path, output: list[str]) -> Path | None:
    """The folder of the run that this job started before SLURM requeued it, or of the trial that W&B hands out again."""
    key, variable = ("wandb_run", "WANDB_RUN_ID") if in_trial() else ("slurm_job", "SLURM_JOB_ID")
    job = os.environ.get(variable)
    if job is None:
        return None
    folders = [Path(output[-1])] if output else sorted(parent.glob("*/"), reverse=True)
    for folder in {folder.resolve(): None for folder in folders}:
        status = read_status(folder)
        if status.get(key) == job and status.get("state") != "finished" and (folder / "last.ckpt").exists():
            return folder
    return None


def _newest(folder: Path, trusted: Collection[str]) -> tuple[Path, dict[str, Any]]:
    """The last checkpoint of a run, or the one before it if that is damaged."""
    last, before = folder / "last.ckpt", folder / f"last.ckpt{PREVIOUS}"
    require(last.exists() or before.exists(), f"--ckpt_path {folder}: the run has no checkpoint yet; start a new run")
    try:
        return last, load_checkpoint(str(last), trusted)
    except InputError as error:
        if not before.exists():
            raise
        print(f"{error}", flush=True)
        return before, load_checkpoint(str(before), trusted)
