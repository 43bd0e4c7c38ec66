"""The names of our tensors in a peer's file, and the tensors by these names."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.interop.base import Imported, Renaming, Settings, Shape, size_of
from lightning_score.interop.load import make

Names = Mapping[str, str]
"""Parts of our names to the peer's, replaced in their order. `*` is a number; a part without a first dot begins the name."""
Take = Callable[[Renaming, str, str], Tensor]
"""Takes one of our tensors from the source, by our name and by the peer's."""


def layers(**table: str) -> dict[str, str]:
    """Names of layers: ours, and the peer's."""
    return {f".{ours}.": f".{theirs}." for ours, theirs in table.items()}


def translate(name: str, names: Names) -> str:
    """The name in the file of one of our tensors."""
    for ours, theirs in names.items():
        expression, replacement = _expression(ours, theirs)
        name = expression.sub(replacement, name)
    return name


@cache
def _expression(ours: str, theirs: str) -> tuple[re.Pattern[str], str]:
    """A regular expression for a part of our names, and its replacement."""
    begins = "" if ours.startswith(".") else "^"
    numbers = iter(range(1, 9))
    replacement = re.sub(r"\*", lambda _: rf"\g<{next(numbers)}>", theirs)
    return re.compile(begins + re.escape(ours).replace(r"\*", r"(\d+)")), replacement


def take(source: Renaming, ours: str, theirs: str) -> Tensor:
    """The peer's tensor, as it is."""
    return source.take(theirs)


class Network(NamedTuple):
    """A network in a peer's file.

    Attributes:
        settings: its class and arguments.
        shape: of an image.
        names: our names of its tensors to the peer's.
        take: takes one tensor of ours.
        num_classes: number of classes.
    """

    settings: Settings
    shape: Shape
    names: Names
    take: Take = take
    num_classes: int = 0


def imported(
    network: Network,
    source: Renaming,
    averages: Renaming | None,
    model: Settings,
    data_range: tuple[float, float],
    notes: Sequence[str],
    step: int = 0,
) -> Imported:
    """The checkpoint with all tensors of the network under our names.

    Args:
        network: the network of the tensors.
        source: the peer's tensors.
        averages: their averages, if the file has them.
        model: the other parts of the model.
        data_range: lowest and highest value of the data.
        notes: what was assumed.
        step: number of training steps.

    Raises:
        InputError: a tensor is missing, unused, of another size or type, or not finite.
    """
    settings, shape, _, _, num_classes = network
    try:
        with torch.device("meta"):
            expected = make(settings, shape, num_classes).state_dict()
    except InputError as error:
        raise source.refusal(str(error)) from error
    weights = _state(source, expected, network)
    averaged = None if averages is None else _state(averages, expected, network)
    model = {"network": settings, **model}
    return Imported(model, shape, data_range, weights, averaged, num_classes, step, notes=tuple(notes))


def _state(source: Renaming, expected: Mapping[str, Tensor], network: Network) -> dict[str, Tensor]:
    """Takes all expected tensors, in single precision; 1x1 convolutions become linear maps."""
    state = {}
    for ours, tensor in expected.items():
        theirs = translate(ours, network.names)
        found = network.take(source, ours, theirs)
        dense = found.layout == torch.strided and found.is_floating_point()
        name = f"{source.kind}: {theirs}"
        require(dense, f"{name} is of type {found.dtype} ({found.layout}); weights must be dense floating-point numbers")
        fitting = found.flatten(1) if found.ndim > tensor.ndim == 2 else found
        message = f"{name} is {size_of(found)} in the file, but the network's is {size_of(tensor)}"
        require(fitting.shape == tensor.shape, message)
        require(bool(found.isfinite().all()), f"{name} contains NaN or infinity; use an earlier checkpoint")
        state[ours] = fitting.float().contiguous()
    source.finish()
    return state


def count(source: Mapping[str, Tensor] | Renaming, name: Callable[[int], str]) -> int:
    """The number of names 0, 1, 2, ... in the source."""
    return next(i for i in itertools.count() if name(i) not in source)
