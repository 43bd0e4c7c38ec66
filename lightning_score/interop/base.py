"""Imported checkpoints, safe reading of their files, and renaming of their tensors."""

from collections.abc import Callable, Mapping
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
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Imported:
    """A converted checkpoint of another package.

    Attributes:
        model: `process`, `network`, `parametrization` and `sampler`, each `{"class_path": ..., "init_args": {...}}` with
            plain values, and the other parts of a ScoreModel that the peer's training determines (`objective`,
            `optimizer`, ...): the content of `model:` in a config.
        shape: of one image, (C, H, W).
        data_range: lowest and highest value of the data in the peer's training.
        num_classes: number of classes that the network is conditioned on; 0 for none.
        weights: the network's state dict, complete, in single precision.
        averages: the same of the averaged weights, or None if the file has none.
        step: number of training steps, 0 if the file does not contain it.
        label_dropout: share of the training without the label; 0 for a network without a "no class" label.
        notes: assumptions that the file does not confirm, one sentence each, with the option that changes it.
    """

    model: Settings
    shape: Shape
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


class Renaming:
    """A state dict from which tensors are taken one by one; missing and unused tensors are errors.

    Args:
        state: the peer's tensors by their names.
        kind: the peer's name, for messages.

    Raises:
        InputError: it is not a state dict.
    """

    def __init__(self, state: State, kind: str) -> None:
        self.state, self.kind = state, kind
        self.require(is_state(state), f"it contains {describe(state)}, not tensors by name")
        self._left = set(state)

    def __contains__(self, name: str) -> bool:
        return name in self.state

    @property
    def first(self) -> str:
        """The names of the first tensors, for messages."""
        return f"its first tensors are {', '.join(list(self.state)[:3]) or 'none'}"

    def refusal(self, reason: str) -> InputError:
        """The error for a file that is not a checkpoint of this kind."""
        return InputError(f"not a {self.kind} checkpoint that can be converted: {reason}")

    def require(self, condition: bool, reason: str) -> None:
        """Raises `refusal(reason)` unless `condition` holds."""
        if not condition:
            raise self.refusal(reason)

    def take(self, name: str) -> Tensor:
        """Takes the tensor of this name.

        Raises:
            InputError: there is none.
        """
        self.require(name in self.state, f"it lacks {name!r} ({self.first})")
        self._left.discard(name)
        return self.state[name]

    def finish(self) -> None:
        """Raises `InputError` for unused tensors."""
        left = sorted(self._left)
        more = ", ..." if len(left) > 5 else ""
        self.require(not left, f"{len(left)} unused tensors, {', '.join(left[:5])}{more}")


def read_torch(path: Path, refused: str = "", allowed: tuple[Any, ...] = ()) -> Any:
    """Reads a file of `torch.save` or of safetensors without running any code in it.

    Args:
        path: the file.
        refused: what to do about a file that cannot be read.
        allowed: further harmless classes or functions that it may name.

    Raises:
        InputError: the file is missing or damaged, or contains code.
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
        return f"a dictionary of {', '.join(map(str, list(value)[:5])) or 'nothing'} ({', '.join(kinds)})"
    if isinstance(value, list):
        return f"a list of {', '.join(type(each).__name__ for each in value[:5]) or 'nothing'}"
    return f"one {type(value).__name__}"


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
    fits = [state[name].shape for name in names] == [average.shape for average in shadow]
    require(fits, f"the averages do not fit the weights: {len(shadow)} tensors for {len(names)} parameters, or other shapes")
    return {**state, **dict(zip(names, shadow, strict=True))}
