"""Shared by the readers of NCSN and NCSNv2: the list of states in a file, the names of a RefineNet, and the training."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.interop.base import Imported, Renaming, Settings, describe, part, read_torch, without_prefix
from lightning_score.interop.names import Network, imported, layers
from lightning_score.interop.training import adam, matching


def centered(assumed: str) -> str:
    """The note that the data are assumed to be in [0, 1], and the options for [-1, 1]."""
    return f'{assumed}: --model.network.centered true --data.data_range "[-1, 1]"'


CENTERED = centered("values in [0, 1], as in all published models") + " --model.sampler.initial.low -1"
ELU = "the nonlinearity is ELU, as in all published models; no other can be converted"
LABELED = "normalizer.embed.weight"
"""The tensor that distinguishes NCSN, whose norms depend on the noise level, from NCSNv2."""


class Layout(NamedTuple):
    """Names in the file of a network's stages, from full resolution down, and of its RefineNet blocks, back up."""

    stages: tuple[str, ...]
    refine: tuple[str, ...]


FOUR = Layout(("1", "2", "3", "4"), ("1", "2", "3", "4"))
FIVE = Layout(("1", "2", "3", "4", "5"), ("1", "2", "3", "4", "5"))
SIX = Layout(("1", "2", "3", "31", "4", "5"), ("1", "2", "31", "3", "4", "5"))


class States(NamedTuple):
    """The content of a file: the network's tensors, their averages, the optimizer's settings and the number of steps."""

    weights: Renaming
    averages: Renaming | None
    optimizer: Mapping[str, Any]
    step: int

    def convert(
        self, network: Settings, size: int, process: Settings, parametrization: Settings, sampler: Settings, *notes: str
    ) -> Imported:
        """The checkpoint under our names, with the authors' objective and Adam with the file's settings.

        Args:
            network: the network of the tensors.
            size: height and width of the images.
            process: the noise process.
            parametrization: what the network's output means.
            sampler: the authors' sampler.
            notes: what was assumed.
        """
        model = {
            "process": process,
            "parametrization": parametrization,
            "sampler": sampler,
            "objective": matching(part("TableTimes")),
            **adam(self.optimizer),
        }
        found = Network(network, (colors(self.weights), size, size), names(self.weights), take)
        return imported(found, self.weights, self.averages, model, (0.0, 1.0), (*notes, ELU), self.step)


def read_states(path: Path, kind: str) -> States:
    """The states in a file: the network's, saved inside `DataParallel`, the optimizer's, epoch, step, averages by name.

    NCSN's own code writes the first two only; there may be no averages.

    Raises:
        InputError: the file is unreadable or has other content.
    """
    states = read_torch(path, f"{kind} needs a checkpoint.pth of its authors' code.")
    mappings = [isinstance(state, Mapping) for state in states] if isinstance(states, list) else []
    require(
        mappings in ([True, True], [True, True, False, False], [True, True, False, False, True]),
        f"{path}: not a {kind} checkpoint, which is a list of states (network, optimizer, epoch, step, averages); this is "
        f"{describe(states)}",
    )
    step = states[3] if len(states) > 2 else 0
    averages = Renaming(without_prefix(states[4]), f"{kind} (averages)") if len(states) > 4 else None
    return States(Renaming(without_prefix(states[0]), kind), averages, states[1], step)


def layout_of(source: Renaming) -> Layout:
    """The layout with the file's stages.

    Raises:
        InputError: none has, or the weights are spectrally normalized.
    """
    normalized = any(name.endswith("weight_orig") for name in source.state)
    source.require(not normalized, "its weights are spectrally normalized (spec_norm: true), which no published model is")
    stages = tuple(stage for stage in SIX.stages if f"res{stage}.0.conv1.weight" in source)
    for layout in (FOUR, FIVE, SIX):
        if layout.stages == stages:
            return layout
    named = f"the stages {', '.join(f'res{stage}' for stage in stages)}" if stages else "no stages res1, res2, ..."
    raise source.refusal(f"it has {named}; {source.first}")


def channels(source: Renaming) -> int:
    """Channels of the first stage."""
    return len(source.take("begin_conv.weight"))


def colors(source: Renaming) -> int:
    """Channels of the images."""
    return source.take("begin_conv.weight").shape[1]


def annealed_langevin(step_size: float | str, steps: int, denoise: str) -> Settings:
    """The authors' sampler, which starts from uniform noise."""
    initial = part("UniformNoise", low=0.0, high=1.0)
    return part("AnnealedLangevin", step_size=step_size, steps=steps, denoise=part(denoise), initial=initial)


def names(source: Renaming) -> dict[str, str]:
    """Our names and the authors'."""
    layout = layout_of(source)
    found = {"conv_in.": "begin_conv.", "conv_out.": "end_conv.", "norm_out.": "normalizer."}
    for k, stage in enumerate(layout.stages):
        if 0 < k < len(layout.stages) - 2:  # which pools; the last two are dilated instead
            found |= {f"stages.{k}.0.{layer}.": f"res{stage}.0.{layer}.conv." for layer in ("conv2", "shortcut")}
        found[f"stages.{k}."] = f"res{stage}."
    found |= {f"refine.{k}.": f"refine{block}." for k, block in enumerate(layout.refine)}
    found |= {".norm1.": ".normalize1.", ".norm2.": ".normalize2.", ".table": ""}
    for unit, j, layer in product(range(3), range(2), ("conv", "norm")):
        found[f".adapt.*.{unit}.{layer}s.{j}"] = f".adapt_convs.*.{unit + 1}_{j + 1}_{layer}"
        found[f".out.{unit}.{layer}s.{j}"] = f".output_convs.{unit + 1}_{j + 1}_{layer}"
    return found | layers(chain="crp", fuse="msf")


def take(source: Renaming, ours: str, theirs: str) -> Tensor:
    """A tensor of ours; gamma, alpha and beta of a norm become one table (levels, rows, channels)."""
    if not ours.endswith(".table"):
        return source.take(theirs)
    if LABELED in source:  # side by side, without alpha in instance norm
        rows = source.take(LABELED).shape[1] // channels(source)
        return source.take(f"{theirs}.embed.weight").unflatten(1, (rows, -1))
    return torch.stack([source.take(f"{theirs}.{name}") for name in ("gamma", "alpha", "beta")])[None]
