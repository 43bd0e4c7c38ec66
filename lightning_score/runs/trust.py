"""What configs may instantiate: classes of the declared kind; configs from elsewhere only those of trusted modules."""

import lightning_score.lean_imports  # noqa: F401

import inspect
import sys
from argparse import ArgumentError
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

import yaml
from jsonargparse import set_parsing_settings
from jsonargparse.typing import register_type
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment, Precision
from lightning.pytorch import Callback, LightningDataModule, accelerators, loggers, profilers, strategies
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.memory import is_oom_error
from torch import nn, optim

from lightning_score.errors import InputError, one_line, require, require_classes
from lightning_score.networks import Network
from lightning_score.runs.checkpoints import read_checkpoint
from lightning_score.runs.yaml_files import KEEP, LARGEST, MODE, NO_FUNCTION, load

HOME = ("lightning_score", "torch", "lightning")
"""The packages whose classes a config from elsewhere may name."""
KINDS = (nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler, Callback, LightningDataModule, loggers.Logger,
         profilers.Profiler, accelerators.Accelerator, strategies.Strategy, CheckpointIO, ClusterEnvironment,
         Precision)  # fmt: skip
"""The kinds of classes of torch and Lightning that a config may instantiate."""
LONGEST_TEXT = 100_000
"""Most letters of a text in a config from elsewhere."""


class Function:
    """In a signature, replaces a type of functions, which no config can give."""


def _refuse(value: Any) -> None:
    raise ValueError(NO_FUNCTION)


register_type(Function, str, _refuse, type_check=lambda value, _: callable(value))


class ClassParser(LightningArgumentParser):
    """A parser that instantiates only classes of the kind that a parameter declares. A parameter that takes a function, a
    module or a class itself takes no value, one of any type takes plain values, and no value names another config file.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        set_parsing_settings(
            instantiate_subclass_spec_in_any=False, config_read_mode_fsspec_enabled=False, import_path_denylist=[]
        )
        super().__init__(*args, **{**kwargs, "parser_mode": MODE})  # `texts` must read text as the parser does

    def instantiate(self, cfg: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Instantiates the classes of a configuration.

        Raises:
            InputError: it names something other than a class.
        """
        require_classes(cfg.as_dict())
        return super().instantiate(cfg, *args, **kwargs)

    def _add_signature_parameter(
        self, container: Any, nested_key: str | None, param: Any, *args: Any, **kwargs: Any
    ) -> None:
        in_network = inspect.isclass(param.parent) and issubclass(param.parent, Network)
        if inspect.isroutine(param.default) or (param.name == "condition" and in_network):
            return  # a function, or what the model gives its network
        annotation = _without_functions(param.annotation)
        kwargs = {**kwargs, "sub_configs": False}
        _ADD(self, container, nested_key, replace(param, annotation=annotation), *args, **kwargs)


_ADD = LightningArgumentParser._add_signature_parameter  # private: if it is missing, importing this module fails


def _without_functions(hint: Any) -> Any:
    """A type with `Function` in place of functions, classes and modules, except those that make an object of `KINDS`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in (Callable, type, ModuleType) or origin is type or getattr(hint, "_is_protocol", False):
        return Function
    if origin is Callable:
        returned = arguments[-1] if arguments else None
        kinds = get_args(returned) if get_origin(returned) in (Union, UnionType) else (returned,)
        return hint if all(inspect.isclass(kind) and issubclass(kind, KINDS) for kind in kinds) else Function
    if origin in (Union, UnionType):
        return Union[tuple(map(_without_functions, arguments))]  # noqa: UP007
    if inspect.isclass(origin) and arguments:
        changed = tuple(each if each is Ellipsis else _without_functions(each) for each in arguments)
        return hint if changed == arguments else origin[changed]  # type: ignore[index]
    return hint


class Named(NamedTuple):
    """A dotted name in a config, its place, and whether it is that of a class."""

    place: str
    path: str
    is_class: bool


def check_origin(config: Any, trusted: Collection[str], source: str, fix: str = "--trust {}") -> None:
    """Refuses a config from elsewhere unless it names only parts of models, of this package, torch, Lightning or modules
    that the user trusts. Imports only modules of this package.

    Args:
        config: mappings and sequences of plain values.
        trusted: names of modules, which include their submodules.
        source: the origin of the config, for the message.
        fix: how to trust a module, for the message.

    Raises:
        InputError: it names something else, or is infinite.
    """
    others: dict[str, Named] = {}
    for named in _names(config, source):
        top = named.path.partition(".")[0]
        if any(named.path.startswith(f"{module}.") for module in trusted):
            continue
        if top in HOME:
            part = f"{named.place}: {named.path} is not a part of a model"
            require(_is_part(named.path), f"{source}: {part}; configs from elsewhere make only those")
        elif named.is_class or _can_be_imported(top):
            others[top] = named
    if others:
        first = next(iter(others.values()))
        raise InputError(
            f"{source}: {first.place}: {first.path}: only classes of {', '.join(HOME[:-1])} and {HOME[-1]} are made; if you "
            f"trust {', '.join(others)}, whose code then runs, add {fix.format(','.join(others))}"
        )


def texts(config: Any, source: str) -> Iterator[tuple[str, str]]:
    """All strings of a config with their places, also those within strings that the parser reads as mappings or lists.

    Raises:
        InputError: the config is infinite or too large.
    """
    left, seen = [("", config)], 0
    while left:
        place, value = left.pop()
        seen += 1
        require(seen <= LARGEST, f"{source}: more than {LARGEST} values, or a value that holds itself")
        if isinstance(value, Mapping):
            left += [(f"{place}.{name}".lstrip("."), part) for name, part in value.items()]
            left += [(place, name) for name in value if isinstance(name, str) and "." in name]
        elif isinstance(value, (list, tuple, set, frozenset)):
            left += [(place, part) for part in value]
        elif isinstance(value, str):
            require(len(value) <= LONGEST_TEXT, f"{source}: {place}: a text of {len(value)} letters")
            inner = _read(value) if set(value) & set("[{:?-\n") else value
            if isinstance(inner, (Mapping, list)):
                left.append((place, inner))
            else:
                yield place, value


def _names(config: Any, source: str) -> Iterator[Named]:
    """All strings of a config that could be imported."""
    for place, text in texts(config, source):
        is_class, path = place.rpartition(".")[2] == "class_path", text.lstrip(KEEP)
        if is_class or is_path(path):
            yield Named(place, path, is_class)


def _read(text: str) -> Any:
    with suppress(yaml.YAMLError):
        return load(text)


def is_path(text: str) -> bool:
    """Whether a string could be a path to import."""
    return "." in text and all(part.isidentifier() for part in text.split("."))


def _can_be_imported(module: str) -> bool:
    """Whether a module of this name exists; does not import it."""
    try:
        return module in sys.modules or find_spec(module) is not None
    except (ValueError, ImportError):
        return True


def _is_part(path: str) -> bool:
    """Whether a path names a class of this package, or one of `KINDS` of torch or Lightning in a module that is imported."""
    module, _, name = path.rpartition(".")
    own = path.startswith(f"{HOME[0]}.")
    if own:
        with suppress(ImportError):
            import_module(module)
    place = sys.modules.get(module)
    found = getattr(place, name, None) if own else getattr(place, "__dict__", {}).get(name)  # no code of others runs
    return inspect.isclass(found) and (issubclass(found, KINDS) or found.__module__.partition(".")[0] == HOME[0])


@contextmanager
def made_from(
    path: str | Path, owner: type, trusted: str | Sequence[str], given: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """The arguments of a class, instantiated from a checkpoint; none for a model that was built in Python. Errors about the
    checkpoint, here and in the context, become one line.

    Args:
        path: the checkpoint.
        owner: the class.
        trusted: names of modules.
        given: parameters to leave out.

    Raises:
        InputError: the checkpoint is missing, damaged, holds code, is another model's, or names other modules.
    """
    checkpoint = read_checkpoint(Path(path))
    known = {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys()
    require(known, f"{path}: this is not a checkpoint of {owner.__name__} but of another model or program")
    parts = checkpoint.get("hyper_parameters")
    made = {}
    try:
        if isinstance(parts, dict) and parts.get("_instantiator") is not None:
            takes = inspect.signature(owner).parameters.keys() - given
            wanted = {name: part for name, part in parts.items() if name in takes}
            check_origin(wanted, [trusted] if isinstance(trusted, str) else trusted, str(path), "trust=['{}']")
            parser = ClassParser(exit_on_error=False)
            parser.add_class_arguments(owner, fail_untyped=False, instantiate=False, skip=set(given))
            made = vars(parser.instantiate_classes(parser.parse_object(wanted)))
        yield made
    except (ArgumentError, RuntimeError, KeyError, AttributeError, OverflowError) as error:
        if is_oom_error(error):
            raise
        raise InputError(f"{path}: its parts or weights do not fit: {one_line(error, 600)}") from error


def trust_for(config: Any) -> str:
    """The `--trust` option that commands need for a checkpoint of this config; empty if they need none."""
    names = (named.path.partition(".")[0] for named in _names(config, "config") if named.is_class)
    modules = sorted(set(names) - set(HOME))
    return f" --trust {','.join(modules)}" if modules else ""


def trusted_by(modules: Sequence[str], values: Sequence[str]) -> set[str]:
    """The modules that a user trusts: those of `--trust`, and those of classes in the user's own options and configs; a
    class differs from a file by its capital letter.

    Args:
        modules: the values of `--trust`.
        values: those of all other options, and the content of config files.
    """
    trusted = {module.strip() for names in modules for module in names.split(",")} - {""}
    wrong = sorted(module for module in trusted if not all(part.isidentifier() for part in module.split(".")))
    require(not wrong, f"--trust {', '.join(wrong)}: must be the name of a module, as my_parts, or several with commas")
    named: set[str] = set()
    for value in values:
        with suppress(InputError):  # an infinite config, which its reader refuses
            named |= {each.path for each in _names(value, "") if is_path(each.path) and not Path(each.path).exists()}
    classes = {path for path in named if path.rpartition(".")[2][:1].isupper()}
    return trusted | ({path.partition(".")[0] for path in classes} - set(HOME))
