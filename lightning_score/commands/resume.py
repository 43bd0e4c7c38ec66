"""How a run goes on in its own folder: with its own config, from its newest whole checkpoint, its logs cut to that."""

import lightning_score.torchvision_guard  # noqa: F401

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lightning.pytorch.utilities import rank_zero_only

from lightning_score.commands.configs import (
    load_checkpoint,
    option,
    read_config,
    trusted_modules,
    with_checkpoint_config,
    with_found_configs,
)
from lightning_score.commands.total_steps import linked
from lightning_score.errors import InputError, require
from lightning_score.runs.checkpoints import PREVIOUS
from lightning_score.runs.folders import check_name
from lightning_score.runs.rendezvous import folder_before
from lightning_score.runs.status import read_status
from lightning_score.runs.trust import check_origin


class Resumed(NamedTuple):
    """A run that goes on: the arguments, its folder and its checkpoint."""

    arguments: list[str]
    folder: Path
    checkpoint: dict[str, Any]


def resumed(arguments: list[str], trusted: Collection[str] = ()) -> Resumed | None:
    """The run that `fit` is to go on with: that of `--ckpt_path last`, the newest of its name; that of a run folder given in
    place of a checkpoint; or, in a job that SLURM has queued again, the job's own. None for a new run.

    Its own config takes the place of the configs in the arguments; other options override it.

    Args:
        arguments: `fit` and its options.
        trusted: the modules of which its checkpoint and its config may name classes, besides the usual ones.

    Raises:
        InputError: there is no such run, or it has no whole checkpoint, or names other classes.
    """
    folder = _folder(arguments)
    if folder is None:
        return None
    require((folder / "config.yaml").is_file(), f"--ckpt_path {folder}: no run folder, for it has no config.yaml")
    config = read_config(folder / "config.yaml")
    check_origin(config, trusted, f"--ckpt_path {folder}: config.yaml")
    file, checkpoint = _newest(folder, trusted)
    others = list(_without(arguments[1:], ("-c", "--config", "--ckpt_path", "--output", "--name", "--runs")))
    following = linked(config)
    links = [] if following is None else ["--config", yaml.safe_dump(following)]
    given = ["fit", "--config", str(folder / "config.yaml"), *links, "--ckpt_path", str(file), *others]
    if rank_zero_only.rank == 0:
        step = checkpoint.get("global_step", 0)
        print(f"goes on in {folder} after step {step}, with its own config, which options override", flush=True)
    return Resumed(given, folder, checkpoint)


def _folder(arguments: list[str]) -> Path | None:
    paths = option(arguments, "--ckpt_path")
    root = Path((option(arguments, "--runs") or ["runs"])[-1])
    configs, names = option(arguments, "-c", "--config"), option(arguments, "--name")
    name = names[-1] if names else Path(configs[-1]).stem if configs else "run"
    check_name(name, "--name")
    before = folder_before()
    if before is not None and (Path(before) / "last.ckpt").exists():
        return Path(before)
    if not paths:
        return _requeued(root / name, option(arguments, "--output"))
    if paths[-1] == "last":
        newest = root / name / "latest"
        require(
            newest.is_dir(), f"--ckpt_path last: there is no run in {root / name}; give --config, --name or --runs of one"
        )
        return newest.resolve()
    return Path(paths[-1]).resolve() if Path(paths[-1]).is_dir() else None


def _requeued(parent: Path, output: list[str]) -> Path | None:
    """The folder of the run that this job began before SLURM took its machine away."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    folders = [Path(output[-1])] if output else sorted(parent.glob("*/"), reverse=True)
    for folder in {folder.resolve(): None for folder in folders}:
        said = read_status(folder)
        if said.get("slurm_job") == job and said.get("state") != "finished" and (folder / "last.ckpt").exists():
            return folder
    return None


def _newest(folder: Path, trusted: Collection[str]) -> tuple[Path, dict[str, Any]]:
    """The last checkpoint of a run, or the one before it if that is damaged."""
    last, before = folder / "last.ckpt", folder / f"last.ckpt{PREVIOUS}"
    require(last.exists() or before.exists(), f"--ckpt_path {folder}: the run has no checkpoint yet; begin it again")
    try:
        return last, load_checkpoint(str(last), trusted)
    except InputError as error:
        if not before.exists():
            raise
        print(f"{error}", flush=True)
        return before, load_checkpoint(str(before), trusted)


def _without(arguments: list[str], names: tuple[str, ...]) -> Iterator[str]:
    """The arguments but for some options and their values."""
    rest = iter(arguments)
    for argument in rest:
        name, equals, _ = argument.partition("=")
        if name not in names:
            yield argument
        elif not equals:
            next(rest, None)


def prepared(arguments: list[str]) -> tuple[list[str], dict[str, Any] | None, Path | None]:
    """The arguments of a command with the names of configs found, and what its checkpoint says before them; that checkpoint;
    and the folder of the run that it goes on with.

    Raises:
        InputError: a config or a checkpoint is missing or damaged.
    """
    helping = any("help" in argument or argument in ("-h", "--print_config") for argument in arguments)
    trusted, configs = trusted_modules(arguments), option(arguments, "-c", "--config")
    going_on = resumed(arguments, trusted) if arguments[0] == "fit" and not helping else None
    if going_on is not None:
        return with_checkpoint_config(going_on.arguments, going_on.checkpoint), going_on.checkpoint, going_on.folder
    command, paths = arguments[0], option(arguments, "--ckpt_path")
    arguments = with_found_configs(arguments)
    checkpoint = load_checkpoint(paths[-1], trusted) if paths else None
    require(
        command == "fit" or checkpoint is not None or helping,
        f"{command} needs a checkpoint: --ckpt_path runs/NAME/latest/last.ckpt",
    )
    if checkpoint is not None:
        arguments = with_checkpoint_config(arguments, checkpoint)
    elif configs:
        arguments = [command, "--config", yaml.safe_dump({"name": Path(configs[-1]).stem}), *arguments[1:]]
    return arguments, checkpoint, None
