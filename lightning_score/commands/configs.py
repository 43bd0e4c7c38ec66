"""Configurations by name: those of config files, and that of a checkpoint."""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from lightning_score.commands.arguments import CONFIG, Arguments, Layer
from lightning_score.errors import InputError, require
from lightning_score.files import cache_folder
from lightning_score.runs.checkpoints import read_checkpoint
from lightning_score.runs.pretrained import FOLDER, pretrained
from lightning_score.runs.trust import check_origin, trusted_by
from lightning_score.runs.yaml_files import read_mapping

PACKAGE = Path(__file__).parent.parent
PARTS = ("model", "data", "ema", "samples", "evaluate")
"""The parts of a run's configuration that are taken from its checkpoint, with its name and its seed."""
STATES = {"state_dict": dict, "global_step": int, "loops": dict, "callbacks": dict, "optimizer_states": list,
          "lr_schedulers": list, "current_model_state": dict, "averaging_state": dict, "averages": dict}  # fmt: skip
"""What a checkpoint holds, by name."""


def shipped(kind: str = "configs") -> Path:
    """The folder of the shipped configs or sweeps: in the installed package, or next to it in a clone."""
    inside = PACKAGE / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


def find_config(name: str, kind: str = "configs", option: str = "--config ") -> Path:
    """The file of a config by its path, or by the name of a shipped one: `ncsn`, `ncsn.yaml`, `configs/ncsn.yaml`, or
    `digits/ncsn`, with which the trained model of this name was made.

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
    models = pretrained() if kind == "configs" else []
    if name in models:
        return FOLDER / name / "config.yaml"
    known = {*models, *(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml"))}
    raise InputError(f"{option}{name}: no such file, nor a shipped {kind[:-1]}; choose one of {', '.join(sorted(known))}")


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
    config: Any = checkpoint.get("config")
    other = "not a checkpoint of lightning_score's ScoreModel but of another model or program"
    fix = "give one that `fit` wrote, as runs/NAME/latest/last.ckpt"
    require("state_dict" in checkpoint and isinstance(config, dict), f"--ckpt_path {path}: {other}; {fix}")
    parts = {name: config[name] for name in PARTS if name in config}
    wrong = [name for name, part in parts.items() if not isinstance(part, dict)]
    require(not wrong, f"--ckpt_path {path}: its {', '.join(wrong)} must be a mapping of parameters, as fit writes it")
    check_origin(parts, trusted, f"--ckpt_path {path}")
    try:
        yaml.safe_dump(config)
    except yaml.YAMLError as error:
        raise InputError(f"--ckpt_path {path}: its config holds more than numbers, texts, lists and mappings") from error
    for name, kind in STATES.items():
        found = checkpoint.get(name, kind())
        require(isinstance(found, kind), f"--ckpt_path {path}: its {name} is a {type(found).__name__}, so it is damaged")
    named = all(isinstance(name, str) for name in checkpoint["state_dict"])
    require(named, f"--ckpt_path {path}: its state_dict has names that are not text, so it is damaged")
    return checkpoint


def trusted_modules(arguments: Arguments) -> set[str]:
    """The modules that a user trusts: those of `--trust`, and those of classes in the user's own options and configs."""
    values = [value for name, given, _ in arguments.options if name != "--trust" for value in given]
    for name in arguments.get(CONFIG):
        with suppress(InputError):  # which its reader refuses
            values.append(find_config(name).read_text(encoding="utf-8", errors="replace"))
    return trusted_by(arguments.get("--trust"), values)


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
    config = {key: value for key, value in checkpoint["config"].items() if key in (*PARTS, "name", "seed_everything")}
    settings = (config.get("data") or {}).get("init_args") or {}
    for key in () if arguments.get("--data") else ("cache", "root"):
        folder, given = settings.get(key), arguments.get(f"--data.{key}") + arguments.get(f"--data.init_args.{key}")
        gone = f"the checkpoint keeps its data in {folder}, which does not exist: make it, or give --data.{key} FOLDER"
        require(not isinstance(folder, str) or bool(given) or _is_here(Path(folder)), gone)
    return arguments.over(Layer(config))


def _is_here(folder: Path) -> bool:
    """Whether a folder exists, or would be made in the working folder or the cache folder."""
    homes = (Path.cwd(), cache_folder())
    return folder.is_dir() or any(folder.resolve().is_relative_to(home.resolve()) for home in homes)
