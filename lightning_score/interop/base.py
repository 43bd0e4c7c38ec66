"""Imported checkpoints, safe reading of their files, and renaming of their tensors."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.files import read_tensors

State = Mapping[str, Tensor]
Settings = dict[str, Any]


@dataclass(frozen=True)
class Imported:
    """A checkpoint of another package, converted.

    Attributes:
        model: `process`, `network`, `parametrization` and `sampler`, each `{"class_path": ..., "init_args": {...}}` with
            plain values, and whatever else the peer's training fixes of a ScoreModel (`objective`, `optimizer`, ...):
            what stands under `model:` in a config.
        shape: of one image, (C, H, W).
        data_range: lowest and highest value of the data as the score function sees them.
        num_classes: number of classes that the network is conditioned on; 0 for none.
        weights: the network's state dict, complete.
        averages: the same of the averaged weights, or None where the file has none.
        step: training steps done, 0 if the file does not say.
        label_dropout: share of the training without the label; 0 where the network knows no "no class".
        notes: what the file does not say and was assumed, one sentence each, with the option that changes it.
    """

    model: Settings
    shape: tuple[int, int, int]
    data_range: tuple[float, float]
    weights: State
    averages: State | None = None
    num_classes: int = 0
    step: int = 0
    label_dropout: float = 0.0
    notes: tuple[str, ...] = ()


OPTIONS = {
    "sde": ("score_sde", ("ve", "vp", "subvp", "ve_discrete", "vp_discrete")),
    "precond": ("edm", ("edm", "vp", "ve")),
}
"""Options for what a file does not determine: the option, the kind of file, and the option's values."""


def part(class_path: str, **init_args: Any) -> Settings:
    """One part of a config: a class and its arguments."""
    return {"class_path": class_path, "init_args": init_args}


def adam(optimizer: Mapping[str, Any]) -> Settings:
    """Adam with the settings of a saved optimizer, as `{"optimizer": ...}`; empty if they are unknown."""
    group = (optimizer.get("param_groups") or [{}])[0]
    if "betas" not in group:
        return {}
    betas = [float(beta) for beta in group["betas"]]
    return {"optimizer": part("torch.optim.Adam", lr=float(group["lr"]), betas=betas, eps=float(group["eps"]))}


def check_entries(rows: Iterable[tuple[Any, ...]]) -> None:
    """Raises `InputError` for an entry of a config whose value cannot be converted.

    Args:
        rows: name, value, and the values that can be converted; and what these are in words, where they do not say it.
    """
    for name, value, allowed, *words in rows:
        said = words[0] if words else "only " + " or ".join(json.dumps(choice) for choice in allowed)
        require(value in allowed, f"{name}: {json.dumps(value)} cannot be converted, {said}")


class Renaming:
    """A state dict whose tensors are taken one by one; missing and unused tensors are errors.

    Args:
        state: the peer's tensors by their names.
        kind: the peer's name, for messages.
    """

    def __init__(self, state: State, kind: str) -> None:
        require(is_state(state), f"not a {kind} checkpoint that can be converted: {describe(state)}, not tensors by name")
        self.state, self.kind = state, kind
        self._left = set(state)

    def __contains__(self, name: str) -> bool:
        return name in self.state

    def take(self, name: str) -> Tensor:
        """Takes the tensor of this name, once.

        Raises:
            InputError: there is none.
        """
        require(name in self.state, f"not a {self.kind} checkpoint that can be converted: it lacks {name!r}{self._nearby()}")
        self._left.discard(name)
        return self.state[name]

    def layer(self, theirs: str, ours: str, bias: bool = True) -> dict[str, Tensor]:
        """Weight and bias of a layer: `theirs.weight` becomes `ours.weight`."""
        return {f"{ours}.{name}": self.take(f"{theirs}.{name}") for name in (["weight", "bias"] if bias else ["weight"])}

    def skip(self, *names: str) -> None:
        """Drops tensors that are computed here, such as a table of sigmas."""
        self._left -= set(names)

    def finish(self) -> None:
        """Raises `InputError` for unused tensors."""
        left = sorted(self._left)
        require(
            not left,
            f"not a {self.kind} checkpoint that can be converted: {len(left)} unused tensors, "
            f"{', '.join(left[:5])}{', ...' if len(left) > 5 else ''}",
        )

    def _nearby(self) -> str:
        first = ", ".join(list(self.state)[:3])
        return f" (its first tensors are {first})" if first else " (it contains no tensors)"


def read_torch(path: Path, allowed: tuple[Any, ...] = (), refused: str = "") -> Any:
    """Reads a file of `torch.save` or of safetensors without running any code in it.

    Args:
        path: the file.
        allowed: the few harmless classes or functions that it may name besides tensors and plain values.
        refused: what to do about a file that names others.

    Raises:
        InputError: the file is missing or damaged, or wants to run code.
    """
    require(path.exists(), f"{path}: there is no such file")
    require(path.is_file(), f"{path}: is a folder; give the file in it")
    try:
        return load_file(path) if path.suffix == ".safetensors" else read_tensors(path, allowed)
    except InputError as error:
        raise InputError(f"{error}. {refused}".strip()) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable file of safetensors, damaged or truncated ({error})") from error


def size_of(tensor: Tensor) -> str:
    """A tensor's shape as text."""
    return " x ".join(map(str, tensor.shape)) or "a number"


def is_state(value: Any) -> bool:
    """Whether a value is a state dict: tensors by name."""
    return isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def describe(value: Any) -> str:
    """A short description of a file's content, for errors."""
    if isinstance(value, Mapping):
        kinds = sorted({type(v).__name__ for v in value.values()})
        return f"it contains a dictionary of {', '.join(map(str, list(value)[:4])) or 'nothing'} ({', '.join(kinds)})"
    return f"it contains {type(value).__name__}"


def without_prefix(state: State, prefix: str = "module.") -> dict[str, Tensor]:
    """The state dict of a network that was saved inside `DataParallel`, under the network's own names."""
    return {str(name).removeprefix(prefix): tensor for name, tensor in state.items()}


def shadow_state(state: State, shadow: list[Tensor], trained: Callable[[str], bool]) -> dict[str, Tensor]:
    """The averaged state dict, from a list of averages in the order of the trained parameters.

    Args:
        state: the raw state dict, in the order in which it was saved.
        shadow: the averages.
        trained: whether a name in it is that of a trained parameter, not of a buffer.

    Raises:
        InputError: the list does not fit.
    """
    names = [name for name in state if trained(name)]
    fits = len(names) == len(shadow) and all(state[n].shape == s.shape for n, s in zip(names, shadow, strict=True))
    require(fits, f"the averages do not fit the weights: {len(shadow)} tensors for {len(names)} parameters, or other shapes")
    return {**state, **dict(zip(names, shadow, strict=True))}
