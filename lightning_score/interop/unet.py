"""Shared by the readers of DDPM's U-Nets: each of our tensors has one name in the file."""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.interop.base import Renaming, Settings, size_of
from lightning_score.interop.load import make

Patterns = Sequence[tuple[str, str]]


def translate(name: str, patterns: Patterns) -> str:
    """The name in the file of one of our tensors: replaces all patterns in turn."""
    for ours, theirs in patterns:
        name = re.sub(ours, theirs, name)
    return name


def state_of(
    source: Renaming, network: Settings, shape: Sequence[int], num_classes: int, patterns: Patterns
) -> dict[str, Tensor]:
    """Takes all tensors of the network; 1x1 convolutions become linear maps.

    Args:
        source: the peer's tensors.
        network: the network's settings.
        shape: of an image.
        num_classes: number of classes.
        patterns: our names to the peer's.

    Raises:
        InputError: a tensor is missing, left over, or of another size.
    """
    try:
        with torch.device("meta"):
            expected = make(network, shape, num_classes).state_dict()
    except InputError as error:
        raise InputError(f"not a {source.kind} checkpoint that can be converted: {error}") from error
    state = {}
    for ours, tensor in expected.items():
        theirs = translate(ours, patterns)
        found = source.take(theirs)
        if ours == "conditioning.classes.weight":
            found = torch.cat([found, torch.zeros_like(found[:1])])
        state[ours] = found.flatten(1) if found.ndim == 4 and tensor.ndim == 2 else found
        require(
            state[ours].shape == tensor.shape,
            f"{theirs} is {size_of(found)} in the file, but the network's is {size_of(tensor)}",
        )
    source.finish()
    return state


def count(source: Mapping[str, Tensor] | Renaming, name: Callable[[int], str]) -> int:
    """The number of names 0, 1, 2, ... in the source."""
    i = 0
    while name(i) in source:
        i += 1
    return i
