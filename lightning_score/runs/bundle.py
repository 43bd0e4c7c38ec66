"""Models to pass on: a folder of weights, settings and a card, without paths, secrets or code."""

import gzip
import json
import re
import shutil
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import torch
import yaml
from safetensors.torch import load, save_file
from torch import Tensor

from lightning_score import __version__
from lightning_score.errors import InputError, one_line, require
from lightning_score.files import replacing
from lightning_score.runs.averages import LENGTH
from lightning_score.runs.records import digest_of
from lightning_score.runs.yaml_files import Loader, read_mapping

CONFIG, WEIGHTS, CARD, SAMPLES = "config.yaml", "model.safetensors", "README.md", "samples.png"
FILES = (CONFIG, WEIGHTS, CARD, SAMPLES)
"""The files of a bundle; the card and the picture may be missing."""
PACKED = f"{WEIGHTS}.gz"
"""The weights of a model in the package."""
KEPT = ("name", "seed_everything", "model", "data", "ema", "samples", "evaluate")
"""The parts of a configuration that are passed on: not the trainer with its loggers and folders."""
LINKED = ("shape", "num_classes", "condition")
"""What the model gets from the data."""
STATE = "lightning_score"
"""The entry of the weights' metadata with what the config does not say, as JSON."""
LARGEST_CONFIG = 1 << 20
"""Most bytes of a config."""
FORMAT = 1
Kind = Literal["averaged", "raw"]
Parts = tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]
SECRET = re.compile(r"(^|_)(token|secret|password|passwd|api_?key|access_?key|credentials?)$", re.IGNORECASE)
"""Names of settings whose text is not passed on."""
TOKEN = re.compile(r"\b(hf|gh[pousr]|sk|wandb_v1|glpat|xox[abps])[_-][\w-]{16,}|\bAKIA[A-Z0-9]{16}\b")
"""Tokens of well-known services."""
ABSOLUTE = re.compile(r"""(^|[\s'"=,;(\[{])(?:[A-Za-z]:[\\/]|\\\\|~[\w.-]*[\\/]|/)(?=\S)(?:.*[\\/])?""", re.DOTALL)
"""The folders of absolute paths within a text."""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes text that either version of YAML would read as another value."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        letter: [*yaml.SafeDumper.yaml_implicit_resolvers.get(letter, ()), *Loader.yaml_implicit_resolvers.get(letter, ())]
        for letter in {*yaml.SafeDumper.yaml_implicit_resolvers, *Loader.yaml_implicit_resolvers}
    }


def is_bundle(path: str | Path) -> bool:
    """Whether a path is that of a bundle, or of its weights."""
    path = Path(path)
    return weights_in(path).is_file() or (path.name == WEIGHTS and path.is_file())


def weights_in(folder: Path) -> Path:
    """The file of the weights in the folder of a bundle."""
    return next((folder / name for name in (WEIGHTS, PACKED) if (folder / name).is_file()), folder / WEIGHTS)


def _unpacked(file: Path) -> bytes:
    """The content of a file of weights; of a compressed one at most four times its size, which weights do not reach."""
    if file.name != PACKED:
        return file.read_bytes()
    with gzip.open(file) as content:
        return content.read(4 * file.stat().st_size)


def write_bundle(folder: str | Path, parts: Parts, card: str, samples: bytes = b"") -> None:
    """Writes a bundle, whole or not at all.

    Args:
        folder: where; it must not exist.
        parts: of the model, by `passed_on`.
        card: the text of the card, in Markdown.
        samples: a picture of samples, as PNG.

    Raises:
        InputError: the folder exists.
    """
    folder, (config, tensors, state) = Path(folder), parts
    require(not (folder.exists() or folder.is_symlink()), f"{folder}: already exists and is not overwritten")
    with replacing(folder) as temporary:
        temporary.mkdir()
        save_file(tensors, temporary / WEIGHTS, {STATE: json.dumps(state), "format": "pt"})
        head = f"# A model of lightning_score {state['version']}; the weights are in {WEIGHTS}.\n"
        (temporary / CONFIG).write_text(head + as_yaml(config), encoding="utf-8", newline="")
        (temporary / WEIGHTS).chmod((temporary / CONFIG).stat().st_mode)  # safetensors lets only the owner read
        (temporary / CARD).write_text(card, encoding="utf-8", newline="")
        if samples:
            (temporary / SAMPLES).write_bytes(samples)


def copy_bundle(source: Path, folder: Path) -> None:
    """Copies a bundle to a new folder, whole or not at all."""
    require(not folder.exists(), f"{folder}: already exists and is not overwritten; give a new folder")
    with replacing(folder) as temporary:
        temporary.mkdir()
        for file in FILES:
            if (source / file).is_file():
                shutil.copyfile(source / file, temporary / file)
        if not (temporary / WEIGHTS).exists():  # compressed, as in the package
            (temporary / WEIGHTS).write_bytes(_unpacked(weights_in(source)))


def passed_on(checkpoint: Mapping[str, Any], weights: Kind = "averaged") -> Parts:
    """What is passed on of a model: the settings of model, data and evaluation, of whose paths only the last part is kept;
    the weights alone; and what else it takes to draw samples, such as the constants of the data's standardization.

    Args:
        checkpoint: as `read_checkpoint` gives it, of a model that a config describes.
        weights: the averaged ones, which are the model's if it has no averages, or the raw ones.

    Returns:
        The config, the weights and the state.

    Raises:
        InputError: it cannot be passed on.
    """
    arguments: dict[str, Any] = checkpoint.get("hyper_parameters", {})
    whole = {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys()
    require(whole, "this is not a checkpoint of ScoreModel but of another model or program")
    described = isinstance(checkpoint.get("config"), dict) and arguments.get("_instantiator") is not None
    require(described, "the checkpoint has no config, for its model was built in Python; train it by `fit` to pass it on")
    given: dict[str, Any] = checkpoint["config"]
    config = {name: without_machine(given[name], name) for name in KEPT if name in given}
    for name in {"ema", "samples", "evaluate"} & config.keys():  # the defaults serve in place of what is on one machine
        if isinstance(given[name], dict):
            config[name] = {key: part for key, part in config[name].items() if given[name].get(key) == part}
    data = _data_class(config)
    averaged, length = "current_model_state" in checkpoint, checkpoint.get(LENGTH)
    raw = weights == "raw" and averaged
    tensors = checkpoint["current_model_state" if raw else "state_dict"]
    plain = all(isinstance(tensor, Tensor) for tensor in tensors.values())
    require(plain, "the model's state has more than tensors, which safetensors cannot hold")
    tensors = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    fitted = checkpoint.get("loops", {}).get("fit_loop")
    state = {
        "format": FORMAT,
        "version": checkpoint.get("lightning_score_version", __version__),
        "lightning": checkpoint["pytorch-lightning_version"],
        "weights": f"averages of length {length:g}" if length else weights if averaged else "not averaged",
        "step": checkpoint.get("global_step", 0),
        "linked": {name: without_machine(arguments[name]) for name in LINKED if name in arguments},
        "data": {data: without_machine(checkpoint[data])} if data in checkpoint else {},
        "loops": {} if fitted is None else {"fit_loop": {**fitted, "state_dict": {}}},
        "digest": digest_of(tensors).hexdigest(),
        **({LENGTH: length} if length else {}),
    }
    return config, tensors, state


def read_bundle(folder: str | Path) -> dict[str, Any]:
    """The checkpoint in a bundle: every byte of the weights is checked, and no code is run.

    Args:
        folder: that of the bundle, or the file of its weights.

    Raises:
        InputError: a file is missing, damaged or too large.
    """
    folder = Path(folder).parent if Path(folder).name == WEIGHTS else Path(folder)
    for file in (weights_in(folder), folder / CONFIG):
        require(file.is_file(), f"{file}: there is no such file; a model that is passed on has {CONFIG} and {WEIGHTS}")
    tensors, state = _weights(weights_in(folder))
    config = _config(folder / CONFIG)
    given, data = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}, _data_class(config)
    return {
        **({data: state["data"][data]} if data in state["data"] else {}),
        **({LENGTH: state[LENGTH]} if isinstance(state.get(LENGTH), float) else {}),
        "state_dict": tensors,
        "config": config,
        "hyper_parameters": {**config["model"], **state["linked"], **given},
        "global_step": state["step"],
        "loops": state["loops"],
        "pytorch-lightning_version": state["lightning"],
        "lightning_score_version": state["version"],
    }


def _data_class(config: Mapping[str, Any]) -> str:
    """The name of the class of the data, under which a checkpoint has their state."""
    return str(config.get("data", {}).get("class_path")).rpartition(".")[2]


def as_checkpoint_file(folder: str | Path) -> BytesIO:
    """A bundle as a checkpoint in memory, for Lightning."""
    file = BytesIO()
    torch.save(read_bundle(folder), file)
    file.seek(0)
    return file


KINDS = {"format": int, "version": str, "lightning": str, "weights": str, "step": int, "digest": str, "linked": dict,
         "data": dict, "loops": dict}  # fmt: skip
"""The entries of the state, and their kinds."""


def _weights(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the state in a file."""
    try:
        content = _unpacked(file)
        tensors = load(content)  # checks the header, too
        text = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {}).get(STATE)
    except Exception as error:  # of safetensors, or of torch about a type
        raise InputError(f"{file}: not a readable file of safetensors, damaged or truncated ({one_line(error)})") from error
    require(text is not None, f"{file}: these weights are of another program, for they have no entry {STATE}")
    try:
        state = json.loads(text or "")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: its entry {STATE} is damaged ({one_line(error)})") from error
    state = state if isinstance(state, dict) else {}
    version = state.get("format")
    newer = isinstance(version, int) and version > FORMAT
    require(not newer, f"{file}: written by a newer lightning_score; pip install -U lightning_score")
    wrong = [name for name, kind in KINDS.items() if not isinstance(state.get(name), kind)]
    require(not wrong, f"{file}: its entry {STATE} is damaged, for it has no {', '.join(wrong)}")
    changed = digest_of(tensors).hexdigest() != state["digest"]
    require(not changed, f"{file}: damaged, for its weights have changed since they were written")
    return tensors, state


def _config(file: Path) -> dict[str, Any]:
    """The config of a bundle."""
    size = file.stat().st_size
    require(size <= LARGEST_CONFIG, f"{file}: {size:,} bytes; at most {LARGEST_CONFIG:,} are read")
    config, _ = read_mapping(file, "config", "model: {process: VP}")
    wrong = [name for name in ("model", "data") if not isinstance(config.get(name), dict)]
    require(not wrong, f"{file}: its {', '.join(wrong)} must be a mapping of parameters")
    return config


def as_yaml(config: Mapping[str, Any]) -> str:
    """Plain values as YAML."""
    return yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def without_machine(value: Any, name: str = "") -> Any:
    """Plain values without what belongs to one machine or person: of absolute paths only the last part is left, of addresses
    neither a password nor a query, of settings named as secrets nothing.

    Args:
        value: mappings, sequences and plain values.
        name: its name in the mapping that holds it.
    """
    if isinstance(value, Mapping):
        return {without_machine(key): without_machine(part, str(key)) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_machine(part, name) for part in value]
    if isinstance(value, PurePath):
        value = str(value)
    if not isinstance(value, str):
        return value
    if SECRET.search(name):
        return None
    value = TOKEN.sub("", value)
    if "://" in value:
        try:
            address = urlsplit(value)
        except ValueError:  # no address
            return ""
        if address.scheme != "file":
            return urlunsplit((address.scheme, address.netloc.rpartition("@")[2], address.path, "", ""))
        value = address.path
    whole = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute() or value.startswith("~")
    if whole and name == "key":  # of an array in a file
        return value
    last = ABSOLUTE.sub(r"\1", value.rstrip("/\\") if whole else value)
    return f"./{last}" if whole and "." in last else last  # as a path: x.npy alone could be the name of a class
