"""Configurations by name: those of config files, and that of a checkpoint."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from lightning_score.commands.arguments import CONFIG, Arguments, Layer
from lightning_score.commands.total_steps import linked
from lightning_score.errors import InputError, require
from lightning_score.files import cache_folder
from lightning_score.runs.checkpoints import read_checkpoint
from lightning_score.runs.trust import check_origin, trusted_by
from lightning_score.runs.yaml_files import read_mapping

PACKAGE = Path(__file__).parent.parent
FROM_CHECKPOINT = ("model", "data", "ema", "samples", "evaluate", "name", "seed_everything")
"""The parts of a run's configuration that are taken from its checkpoint."""
PLAIN_ENTRIES = ("name", "seed_everything")
"""Those among them that are a single value."""


def shipped(kind: str = "configs") -> Path:
    """The folder of the shipped configs or sweeps: in the installed package, or next to it in a clone."""
    inside = PACKAGE / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


def find_config(name: str, kind: str = "configs", option: str = "--config ") -> Path:
    """The file of a config by its path, or by the name of a shipped one: `ncsn`, `ncsn.yaml`, `configs/ncsn.yaml`.

    Args:
        name: as given.
        kind: `configs` or `sweeps`.
        option: the option that was given the name, for the message.

    Raises:
        InputError: no such file exists.
    """
    if Path(name).is_file():
        return Path(name)
    folder, short = shipped(kind), name.removeprefix(f"{kind}/").removesuffix(".yaml")
    file = folder / f"{short}.yaml"
    if file.is_file():
        return file
    known = ", ".join(sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml")))
    raise InputError(f"{option}{name}: no such file, nor a shipped {kind[:-1]}; choose one of {known}")


def load_checkpoint(path: str, trusted: Collection[str] = ()) -> dict[str, Any]:
    """Reads a checkpoint of a ScoreModel: tensors and plain values; no code is run. Its configuration names only classes of
    this package, torch, Lightning, or modules that the user trusts.

    Args:
        path: the file.
        trusted: names of modules.

    Raises:
        InputError: the file is missing, damaged, or another model's; or it names other classes.
    """
    try:
        checkpoint = read_checkpoint(Path(path))
    except InputError as error:
        raise InputError(f"--ckpt_path {error}") from error
    known = {"state_dict", "config"} <= checkpoint.keys()
    require(
        known and isinstance(checkpoint["config"], dict),
        f"--ckpt_path {path}: not a checkpoint of lightning_score's ScoreModel but of another model or program; "
        "give one that `fit` wrote, as runs/NAME/latest/last.ckpt",
    )
    check_origin(_parts_of(checkpoint, path), trusted, f"--ckpt_path {path}")
    try:
        yaml.safe_dump(checkpoint["config"])
    except yaml.YAMLError as error:
        raise InputError(f"--ckpt_path {path}: its config holds more than numbers, texts, lists and mappings") from error
    kinds = {"state_dict": Mapping, "global_step": int, "loops": Mapping, "callbacks": Mapping, "optimizer_states": list,
             "lr_schedulers": list, "current_model_state": Mapping}  # fmt: skip
    for name, kind in kinds.items():
        found = checkpoint.get(name, {Mapping: {}, list: [], int: 0}[kind])
        require(isinstance(found, kind), f"--ckpt_path {path}: its {name} is a {type(found).__name__}, so it is damaged")
    named = all(isinstance(name, str) for name in checkpoint["state_dict"])
    require(named, f"--ckpt_path {path}: its state_dict has names that are not text, so it is damaged")
    return checkpoint


def _parts_of(checkpoint: dict[str, Any], path: str) -> dict[str, Any]:
    """The parts of a run in the configuration of a checkpoint, by name."""
    parts = {key: value for key, value in checkpoint["config"].items() if key in FROM_CHECKPOINT}
    plain = {key: value for key, value in parts.items() if key not in PLAIN_ENTRIES}
    wrong = [key for key, value in plain.items() if not isinstance(value, dict)]
    require(not wrong, f"--ckpt_path {path}: its {', '.join(wrong)} must be a mapping of parameters, as fit writes it")
    return plain


def trusted_modules(arguments: Arguments) -> set[str]:
    """The modules of which the user's own options and configs name classes, and those of `--trust`."""
    files = []
    for name in arguments.get(CONFIG):
        with suppress(InputError):
            files.append(find_config(name))
    return trusted_by(arguments.command_line(), files)


def with_found_configs(arguments: Arguments) -> Arguments:
    """The arguments with every `--config` name replaced by its file.

    Raises:
        InputError: a file is missing, or is not a config.
    """
    found = arguments.replace(CONFIG, lambda name: str(find_config(name)))
    for file in found.get(CONFIG):
        read_config(Path(file))
    return found


def read_config(file: Path) -> dict[str, Any]:
    """The content of a config file.

    Raises:
        InputError: it is damaged, ambiguous or not a mapping.
    """
    found, _ = read_mapping(file, "config", "model: {process: VP}")
    _check_dots(found, file)
    return found


def _check_dots(content: Any, file: Path) -> None:
    """Refuses `a` together with `a.b`, one of which would be ignored."""
    names = content if isinstance(content, dict) else ()
    for name in map(str, names):
        above = next((other for other in map(str, names) if name.startswith(f"{other}.")), "")
        inside = name.removeprefix(f"{above}.")
        require(not above, f"{file}: not a config: {above} and {name} are given; write {inside} inside {above}")
    for part in names.values() if names else content if isinstance(content, list) else ():
        _check_dots(part, file)


def over_checkpoint(arguments: Arguments, checkpoint: dict[str, Any]) -> Arguments:
    """The arguments over the checkpoint's own configuration, which they override.

    Raises:
        InputError: its data would make a folder that is neither here nor in the user's cache.
    """
    config = {key: value for key, value in checkpoint["config"].items() if key in FROM_CHECKPOINT}
    settings = (config.get("data") or {}).get("init_args") or {}
    for key in () if arguments.get("--data") else ("cache", "root"):
        folder, given = settings.get(key), arguments.get(f"--data.{key}") + arguments.get(f"--data.init_args.{key}")
        require(
            not isinstance(folder, str) or bool(given) or _is_here(Path(folder)),
            f"the checkpoint keeps its data in {folder}, which does not exist: make it, or give --data.{key} FOLDER",
        )
    follows = arguments.command == "fit" and arguments.get("--trainer.max_steps")
    return arguments.over(Layer(config), Layer(linked(checkpoint["config"]) if follows else {}))


def _is_here(folder: Path) -> bool:
    """Whether a folder exists, or would be made in the working folder or the cache folder."""
    homes = (Path.cwd(), cache_folder())
    return folder.is_dir() or any(folder.resolve().is_relative_to(home.resolve()) for home in homes)
