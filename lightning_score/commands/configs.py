"""What happens to command-line arguments before and around their parsing: short config names, the configuration that a
checkpoint holds, and errors of one line.
"""

import lightning_score.torchvision_guard  # noqa: F401

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from lightning_score.commands.origins import CONFIG
from lightning_score.commands.total_steps import linked
from lightning_score.errors import InputError, require
from lightning_score.files import cache_folder
from lightning_score.runs.checkpoints import read
from lightning_score.runs.trust import check_origin, trusted_by
from lightning_score.runs.yaml_files import read_mapping

PACKAGE = Path(__file__).parent.parent
FROM_CHECKPOINT = ("model", "data", "ema", "samples", "evaluate", "name", "seed_everything")
"""The parts of a run's configuration that its checkpoint stands for."""
PLAIN_ENTRIES = ("name", "seed_everything")
"""Those among them that are one value."""
GROUPS = ("trainer", "model", "ema", "samples", "evaluate", "guard")
"""The options that hold others."""


def shipped(kind: str = "configs") -> Path:
    """The folder of the shipped configs, or sweeps: inside the installed package, or beside it in a clone."""
    inside = PACKAGE / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


def find_config(name: str, kind: str = "configs", option: str = "--config ") -> Path:
    """The file of a config given as a path, or as the name of a shipped one: `ncsn`, `ncsn.yaml`, `configs/ncsn.yaml`.

    Args:
        name: as given.
        kind: `configs` or `sweeps`.
        option: what the name was given for.

    Raises:
        InputError: there is no such file.
    """
    if Path(name).is_file():
        return Path(name)
    folder, short = shipped(kind), name.removeprefix(f"{kind}/").removesuffix(".yaml")
    file = folder / f"{short}.yaml"
    if file.is_file():
        return file
    known = ", ".join(sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml")))
    raise InputError(f"{option}{name}: there is no such file, nor a shipped {kind[:-1]} of this name ({known})")


def load_checkpoint(path: str, trusted: Collection[str] = ()) -> dict[str, Any]:
    """Reads a checkpoint of a ScoreModel safely: tensors and plain values only, no code is run, and what its configuration
    names is made of this package, torch or Lightning, or of modules that the user trusts.

    Args:
        path: the file.
        trusted: names of modules.

    Raises:
        InputError: the file is missing, damaged, or another model's; or it names other classes.
    """
    try:
        checkpoint = read(Path(path))
    except InputError as error:
        raise InputError(f"--ckpt_path {error}") from error
    known = {"state_dict", "config"} <= checkpoint.keys()
    require(
        known and isinstance(checkpoint["config"], dict),
        f"--ckpt_path {path}: this is not a checkpoint of lightning_score's ScoreModel but of another model or program; "
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
    """What a checkpoint says of the parts of a run, each by its own name."""
    parts = {key: value for key, value in checkpoint["config"].items() if key in FROM_CHECKPOINT}
    plain = {key: value for key, value in parts.items() if key not in PLAIN_ENTRIES}
    wrong = [key for key, value in plain.items() if not isinstance(value, dict)]
    require(not wrong, f"--ckpt_path {path}: its {', '.join(wrong)} must be a mapping of parameters, as fit writes it")
    return plain


def option(arguments: list[str], *names: str) -> list[str]:
    """All values given for an option, as `--name value` or `--name=value`."""
    values = []
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            values += [value] if equals else arguments[i + 1 : i + 2]
    return values


def trusted_modules(arguments: list[str]) -> set[str]:
    """The modules of which the user's own options and configs name classes, and those of `--trust`."""
    files = []
    for name in option(arguments, "-c", "--config"):
        with suppress(InputError):
            files.append(find_config(name))
    return trusted_by(arguments, files)


def with_found_configs(arguments: list[str]) -> list[str]:
    """The arguments with every `--config` name replaced by its file."""
    found = list(arguments)
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in CONFIG and (equals or i + 1 < len(arguments)):
            file = find_config(value if equals else arguments[i + 1])
            read_config(file)
            found[i if equals else i + 1] = f"{name}={file}" if equals else str(file)
    return found


def read_config(file: Path) -> dict[str, Any]:
    """What a config file says.

    Raises:
        InputError: it is damaged, ambiguous or no mapping.
    """
    found, _ = read_mapping(file, "config", "model: {process: VP}")
    _check_dots(found, file)
    return found


def _check_dots(content: Any, file: Path) -> None:
    """Refuses `a` beside `a.b`, of which one would be lost."""
    names = content if isinstance(content, dict) else ()
    for name in map(str, names):
        above = next((other for other in map(str, names) if name.startswith(f"{other}.")), "")
        inside = name.removeprefix(f"{above}.")
        require(not above, f"{file}: not a config: {above} and {name} are given; write {inside} inside {above}")
    for part in names.values() if names else content if isinstance(content, list) else ():
        _check_dots(part, file)


def with_checkpoint_config(arguments: list[str], checkpoint: dict[str, Any]) -> list[str]:
    """The arguments preceded by the checkpoint's own configuration, which everything that follows overrides.

    Raises:
        InputError: its data would make a folder that is neither here nor in the user's cache.
    """
    config = {key: value for key, value in checkpoint["config"].items() if key in FROM_CHECKPOINT}
    settings = (config.get("data") or {}).get("init_args") or {}
    for key in () if option(arguments, "--data") else ("cache", "root"):
        folder, options = settings.get(key), (f"--data.{key}", f"--data.init_args.{key}")
        require(
            not isinstance(folder, str) or bool(option(arguments, *options)) or _is_here(Path(folder)),
            f"the checkpoint keeps its data in {folder}, which is no folder yet: make it, or give --data.{key} FOLDER",
        )
    following = linked(checkpoint["config"]) if arguments[0] == "fit" and option(arguments, "--trainer.max_steps") else None
    links = [] if following is None else ["--config", yaml.safe_dump(following)]
    return [arguments[0], "--config", yaml.safe_dump(config), *links, *arguments[1:]]


def in_order(arguments: Sequence[str]) -> list[str]:
    """The arguments with configs first, which options override, and a part before the options inside it.

    `--model.process.class_path VP` becomes `--model.process VP`, `init_args` among names are left out, and a group as a
    whole, `--model {process: VP}`, becomes a config.
    """
    units: list[list[str]] = [[]]
    for argument in arguments:
        if argument.startswith("--") or argument in CONFIG:
            units.append([])
            name, equals, value = argument.partition("=")
            argument = name.replace(".init_args.", ".").removesuffix(".class_path") + equals + value
        units[-1].append(argument)
    units = [units[0], *map(_group_as_config, units[1:])]
    configs = [unit for unit in units if unit and unit[0].partition("=")[0] in CONFIG]
    placed: list[list[str]] = []
    for unit in units[1:]:
        if unit not in configs:
            inside = f"{unit[0].partition('=')[0]}."
            first = next((i for i, other in enumerate(placed) if other[0].startswith(inside)), len(placed))
            placed.insert(first, unit)
    return [argument for unit in [units[0], *configs, *placed] for argument in unit]


def _group_as_config(unit: list[str]) -> list[str]:
    name, _, value = " ".join(unit).removeprefix("--").partition("=" if "=" in unit[0] else " ")
    return ["--config", f"{name}: {value}"] if name in GROUPS and value.startswith("{") else unit


def _is_here(folder: Path) -> bool:
    """Whether a folder is there, or would be made in the present folder or in that of caches."""
    homes = (Path.cwd(), cache_folder())
    return folder.is_dir() or any(folder.resolve().is_relative_to(home.resolve()) for home in homes)
