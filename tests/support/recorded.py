"""Results of peers' own code, in small files: inputs, outputs, and the names and shapes of the weights.

The weights themselves are random numbers that follow from name and shape, so that networks of any size take a few
kilobytes. To record another case, run the peer's code: build its network, `load_state_dict(random_state(shapes))` with
the shapes of its own state dict, call it in evaluation mode and `record` its inputs and outputs.
"""

import json
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FOLDER = Path(__file__).parent.parent / "recorded"


class Recorded(NamedTuple):
    """`shapes` of the peer's state dict by name, input and output `tensors`, and further facts `about` it."""

    shapes: dict[str, list[int]]
    tensors: dict[str, Tensor]
    about: dict[str, Any]

    @property
    def state(self) -> dict[str, Tensor]:
        """The peer's state dict."""
        return random_state(self.shapes)


def random_state(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Random weights that keep activations of order one, every tensor determined by its own name and shape."""
    return {name: random_tensor(name, shape) for name, shape in shapes.items()}


def random_tensor(name: str, shape: list[int]) -> Tensor:
    draws = torch.randn(*shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) > 1:
        return draws / math.sqrt(max(math.prod(shape[1:]), 1))
    return 1 + 0.1 * draws if name.endswith("weight") else 0.1 * draws


def record(name: str, shapes: dict[str, list[int]], tensors: dict[str, Tensor], **about: Any) -> None:
    """Writes `tests/recorded/<name>.safetensors`."""
    metadata = {"shapes": json.dumps({key: list(shape) for key, shape in shapes.items()}), "about": json.dumps(about)}
    save_file({key: value.contiguous() for key, value in tensors.items()}, FOLDER / f"{name}.safetensors", metadata)


def recorded(name: str) -> Recorded:
    """Reads `tests/recorded/<name>.safetensors`."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return Recorded(json.loads(metadata["shapes"]), tensors, json.loads(metadata["about"]))
