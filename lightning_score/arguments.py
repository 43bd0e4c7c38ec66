"""What happens to command-line arguments before and around their parsing: short config names, the configuration that a
checkpoint holds, and errors of one line.
"""

import lightning_score.torchvision_guard  # noqa: F401

import difflib
import inspect
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from lightning.pytorch.utilities import rank_zero_only

from lightning_score.checkpoints import read
from lightning_score.class_changes import recorded, recording
from lightning_score.class_names import class_names, options_inside
from lightning_score.data import ScoreData
from lightning_score.metrics import Features
from lightning_score.model import ScoreModel
from lightning_score.origins import CONFIG, origin
from lightning_score.total_steps import STAND_IN, WORD, linked, marked, marked_arguments, resolve
from lightning_score.trust import NO_FUNCTION, ClassParser, check_origin, trusted_by
from lightning_score.utils import InputError, cache_folder, require
from lightning_score.yaml_files import MODE, read_mapping

PACKAGE = Path(__file__).parent
FROM_CHECKPOINT = ("model", "data", "ema", "samples", "evaluate", "name", "seed_everything")
"""The parts of a run's configuration that its checkpoint stands for."""
PLAIN_ENTRIES = ("name", "seed_everything")
"""Those among them that are one value."""


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
    kinds = {"state_dict": Mapping, "global_step": int, "loops": Mapping, "callbacks": Mapping, "optimizer_states": list,
             "lr_schedulers": list, "current_model_state": Mapping}  # fmt: skip
    for name, kind in kinds.items():
        found = checkpoint.get(name, {Mapping: {}, list: [], int: 0}[kind])
        require(isinstance(found, kind), f"--ckpt_path {path}: its {name} is a {type(found).__name__}, so it is damaged")
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
    return read_mapping(file, "config", "model: {process: VP}")[0]


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
    """The arguments with configs first, which options override, and a part before the options inside it."""
    units: list[list[str]] = [[]]
    for argument in arguments:
        if argument.startswith("--") or argument in CONFIG:
            units.append([])
        units[-1].append(argument)
    configs = [unit for unit in units if unit and unit[0].partition("=")[0] in CONFIG]
    placed: list[list[str]] = []
    for unit in units[1:]:
        if unit not in configs:
            inside = f"{unit[0].partition('=')[0]}."
            first = next((i for i, other in enumerate(placed) if other[0].startswith(inside)), len(placed))
            placed.insert(first, unit)
    return [argument for unit in [units[0], *configs, *placed] for argument in unit]


def _is_here(folder: Path) -> bool:
    """Whether a folder is there, or would be made in the present folder or in that of caches."""
    homes = (Path.cwd(), cache_folder())
    return folder.is_dir() or any(folder.resolve().is_relative_to(home.resolve()) for home in homes)


PLAIN = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list",
    "collections.abc.Sequence": "a list",
    "NoneType": "null",
}
"""Types as a user knows them."""


class Refused(SystemExit):
    """Ends the program with exit code 2, after its message has been told."""

    def __init__(self, message: str):
        super().__init__(2)
        self.message = message


class Parser(ClassParser):
    """A parser whose errors are one line that says what to do, without pages of usage."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "allow_abbrev": False, "parser_mode": MODE})

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **settings: Any) -> Any:
        """Parses options in their order of `in_order`; a class that is named starts from its own defaults, and one line on
        stderr says what that changed. A number of the schedule that is given as `max_steps` becomes that of the trainer.
        """
        given = marked_arguments(in_order(args or []))
        if recording():  # a parser within this one
            config = super().parse_args(given, *more, **settings)
        else:
            with recorded(given) as changes:
                try:
                    config = super().parse_args(given, *more, **settings)
                finally:
                    if rank_zero_only.rank == 0:
                        sys.stderr.writelines(f"{line}\n" for line in changes.lines())
        resolve(config)
        return config

    def dump(self, *args: Any, **settings: Any) -> str:
        """The text of a configuration, also of one that `--print_config` shows before it is complete."""
        return super().dump(*args, **settings).replace(str(STAND_IN), WORD)

    def _load_config_parser_mode(self, content: str, *args: Any, **settings: Any) -> Any:
        return super()._load_config_parser_mode(marked(content), *args, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message on one line, with what to do about it, and exits with code 2."""
        line = re.sub(r"\s+", " ", str(message)).strip().rstrip(".")
        changes = recording()
        if changes and changes.place and getattr(self, "_inner_parser", False):  # which knows the last part of names only
            line = re.sub(r"""(Parser key "|Option ')""", rf"\g<1>{changes.place}.", line, count=1)
        told = self._unknown_help(line) or _function(line) or _unknown_class(line) or _wrong_value(line)
        line = told or " ".join(f"{line}. {self._nearest_option(line)}{_config_hint(line)}".split())
        line = line.rstrip(" .")
        line += origin(changes.arguments, line) if changes else ""
        sys.stderr.write(f"error: {line}\n")
        raise Refused(line)

    def _unknown_help(self, message: str) -> str:
        """For `--PART.help` of an unknown class, those of which there is help; else nothing."""
        asked = re.match(r"(--[\w.]+\.help): .*?(\w+)\"?( is not a .*)?$", message)
        action = self._option_string_actions.get(asked[1]) if asked else None
        return (
            f"{asked[1]} {asked[2]}: no such class; give one of {class_names(action._typehint, asked[2])}" if action else ""
        )

    def _nearest_option(self, message: str) -> str:
        """The options that an unknown one was probably meant to be."""
        stray = re.search(r"[Uu]nrecognized arguments: (?!-)(\S+)", message)
        if stray:
            kind = "--ckpt_path" if stray[1].endswith(".ckpt") else "--config"
            return f"Did you mean {kind} {stray[1]}? Every value needs its option"
        unknown = re.search(r"(?:[Uu]nrecognized arguments: |Key |[Oo]ption )['\"]?(?:--)?([\w.]+)", message)
        if not unknown:
            return ""
        changes, wanted = recording(), unknown[1].replace(".init_args", "")
        place = f"{changes.place}." if changes and getattr(self, "_inner_parser", False) else ""
        parsers = [self, *(self._subcommands_action.choices.values() if self._subcommands_action else ())]
        known = {place + name[2:] for parser in parsers for name in parser._option_string_actions if name.startswith("--")}
        known |= set(options_inside(changes.classes if changes else {}))
        known = sorted(name for name in known if not name.endswith((".help", "+")))
        near = [name for name in known if name.rpartition(".")[2] == wanted] or difflib.get_close_matches(wanted, known, 1)
        if not near:
            leaf = difflib.get_close_matches(wanted.rpartition(".")[2], {name.rpartition(".")[2] for name in known}, 1)
            near = [name for name in known if leaf and name.rpartition(".")[2] == leaf[0]]
        return f"Did you mean {' or '.join(f'--{name}' for name in near[:3])}?" if near else ""


def _function(message: str) -> str:
    """For what is no class, or a function in place of one, what to do; else nothing."""
    denied = re.search(r'Parser key "([\w.]+)": .*?Importing \'([\w.]+)\' is not allowed', message)
    if denied:
        return f"{denied[1]}={denied[2]}: a config makes nothing but classes of this package, of torch, or of your own"
    found = re.search(r'Parser key "([\w.]+)": (?!.*Parser key).*value: (.*)$', message) if NO_FUNCTION in message else None
    return f"{found[1]}={found[2]}: {NO_FUNCTION}" if found else ""


def _unknown_class(message: str) -> str:
    """For a class that cannot be found, or is left out before its settings, those that may stand there; else nothing."""
    unknown = re.search(r'Parser key "([\w.]+)".*dot import path string: (\w+)', message)
    orphan = re.search(r"""Parser key "([\w.]+)".*NestedArg\(key='([\w.]+)', val='([^']*)'\)""", message)
    bases = dict(_parts(ScoreModel, set())) | {"data": ScoreData, "features": Features}
    key = (unknown or orphan)[1].rpartition(".")[2] if unknown or orphan else ""
    if key not in bases:
        return ""
    names = ", ".join(sorted(part.__name__ for part in _descendants(bases[key])))
    if orphan:
        return f"{orphan[1]}.{orphan[2]}={orphan[3]}: of which class? Give {orphan[1]} first, one of {names}"
    return f"{unknown[1]}={unknown[2]}: no such class; give one of {names}, or the path of your own, as my_module.MyClass"


def _wrong_value(message: str) -> str:
    """For a value that is of none of the types of its parameter, all of them plain, what may stand there; else nothing."""
    found = re.search(r'Parser key "([\w.]+)": .*(?:Got|Given) value: (.*)$', message)
    expected = re.findall(r"Expected a (?:<class '([\w.]+)'>|typing\.Literal\[([^\]]*)\])", message)
    if not found or not expected or not {name for name, _ in expected} <= {*PLAIN, ""}:
        return ""
    if within := re.search(r"Expected a <class '(\w+)'>\. Got value: (.*?) - ", message):  # a list
        return f"{found[1]}={found[2]}: {within[2]} must be {PLAIN[within[1]]}"
    allowed = [word for name, words in expected for word in ([PLAIN[name]] if name else re.findall(r"[^', ]+", words))]
    *others, last = dict.fromkeys(allowed)
    return f"{found[1]}={found[2]}: must be {', '.join(others)}{' or ' if others else ''}{last}"


def _parts(owner: type, seen: set[type]) -> Iterator[tuple[str, type]]:
    """The parameters of a class, and of all that these may be, that take one of our abstract classes."""
    seen.add(owner)
    for name, hint in get_type_hints(owner.__init__).items():
        candidates = [hint, *get_args(hint)]
        for base in candidates:
            if inspect.isclass(base) and inspect.isabstract(base) and base.__module__.startswith("lightning_score"):
                yield name, base
                for part in _descendants(base) - seen:
                    yield from _parts(part, seen)


def _descendants(base: type) -> set[type]:
    """All concrete public classes derived from a class."""
    children = {child for direct in base.__subclasses__() for child in {direct, *_descendants(direct)}}
    return {child for child in children if not inspect.isabstract(child) and not child.__name__.startswith("_")}


def _config_hint(message: str) -> str:
    """What to do when all is missing."""
    if "arguments are required" not in message:
        return ""
    return "Give one: --ckpt_path runs/NAME/latest/last.ckpt" if "ckpt_path" in message else "Give a config: --config ncsn"
