"""Shared by the readers of NCSN and NCSNv2: the list of states in a file, the names of a RefineNet, and the training."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lightning_score.errors import require
from lightning_score.interop.base import Renaming, Settings, adam, part, read_torch, without_prefix


def centered(assumed: str) -> str:
    """The note that the data are assumed to be in [0, 1], and the options for [-1, 1]."""
    return f'{assumed}: --model.network.centered true --data.data_range "[-1, 1]"'


CENTERED = centered("values in [0, 1], as in all published models") + " --model.sampler.initial.low -1"

Norm = Callable[[Renaming, str, str], dict[str, Tensor]]
"""Takes a norm's tensors from the first name in the source to the second."""


ELU = "the nonlinearity is ELU, as in all published models; no other can be converted"


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


def read_states(path: Path, kind: str) -> States:
    """The states in a file: the network's, saved inside `DataParallel`, the optimizer's, epoch, step, averages by name.

    NCSN's own code writes the first two only; there may be no averages.

    Raises:
        InputError: the file is unreadable or holds something else.
    """
    states = read_torch(path, refused=f"{kind} needs a checkpoint.pth of its authors' code.")
    mappings = [isinstance(state, Mapping) for state in states] if isinstance(states, list) else []
    require(
        mappings in ([True, True], [True, True, False, False], [True, True, False, False, True]),
        f"{path}: not a {kind} checkpoint, which is a list of states (network, optimizer, epoch, step, averages); this is "
        + _describe(states),
    )
    network, optimizer, _, step, averages = [*states, *[None, 0, None][len(states) - 2 :]]
    return States(
        Renaming(without_prefix(network), kind),
        None if averages is None else Renaming(without_prefix(averages), f"{kind} (averages)"),
        optimizer,
        step,
    )


def _describe(states: Any) -> str:
    if isinstance(states, Mapping):
        return f"a dictionary of {', '.join(map(str, list(states)[:4])) or 'nothing'}"
    kinds = [type(state).__name__ for state in states] if isinstance(states, list) else [type(states).__name__]
    return ", ".join(kinds[:5]) or "an empty list"


def layout_of(source: Renaming) -> Layout:
    """The layout with the file's stages.

    Raises:
        InputError: none has.
    """
    stages = tuple(stage for stage in SIX.stages if f"res{stage}.0.conv1.weight" in source)
    found = [layout for layout in (FOUR, FIVE, SIX) if layout.stages == stages]
    require(
        len(found) == 1,
        f"not a {source.kind} checkpoint that can be converted: it has "
        f"{'the stages ' + ', '.join(f'res{stage}' for stage in stages) if stages else 'no stages res1, res2, ...'}; "
        f"its first tensors are {', '.join(list(source.state)[:3]) or 'none'}",
    )
    return found[0]


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


def training(optimizer: Mapping[str, Any]) -> Settings:
    """The authors' objective, and Adam with the file's settings."""
    weighting, times = part("SigmaSquared"), part("TableTimes")
    return {"objective": part("DenoisingScoreMatching", weighting=weighting, times=times)} | adam(optimizer)


def whole(source: Renaming, rename: Callable[[Renaming], dict[str, Tensor]]) -> dict[str, Tensor]:
    """All tensors of the source under our names.

    Raises:
        InputError: one is missing, or left over.
    """
    state = rename(source)
    source.finish()
    return state


def renamed(source: Renaming, norm: Norm, inner_norm: Norm) -> dict[str, Tensor]:
    """Takes the tensors of a RefineNet.

    Args:
        source: the file's tensors.
        norm: takes a norm outside the RefineNet blocks.
        inner_norm: takes one inside.
    """
    require(
        not any(name.endswith("weight_orig") for name in source.state),
        f"not a {source.kind} checkpoint that can be converted: its weights are spectrally normalized (spec_norm: true), "
        "which no published model is",
    )
    layout = layout_of(source)
    state = source.layer("begin_conv", "conv_in") | source.layer("end_conv", "conv_out")
    state |= norm(source, "normalizer", "norm_out")
    for k, stage in enumerate(layout.stages):
        pools = 0 < k < len(layout.stages) - 2  # the last two are dilated instead
        state |= _residual(source, f"res{stage}.0", f"stages.{k}.0", norm, ".conv" if pools else "")
        state |= _residual(source, f"res{stage}.1", f"stages.{k}.1", norm)
        if k > 0:
            shortcut = f"res{stage}.0.shortcut{'.conv' if pools else ''}"
            state |= source.layer(shortcut, f"stages.{k}.0.shortcut")
    for k, block in enumerate(layout.refine):
        units = 3 if k == len(layout.refine) - 1 else 1
        state |= _refine(source, f"refine{block}", f"refine.{k}", min(k + 1, 2), units, inner_norm)
    return state


def _residual(source: Renaming, theirs: str, ours: str, norm: Norm, pooled: str = "") -> dict[str, Tensor]:
    state = norm(source, f"{theirs}.normalize1", f"{ours}.norm1") | norm(source, f"{theirs}.normalize2", f"{ours}.norm2")
    return (
        state | source.layer(f"{theirs}.conv1", f"{ours}.conv1") | source.layer(f"{theirs}.conv2{pooled}", f"{ours}.conv2")
    )


def _refine(source: Renaming, theirs: str, ours: str, inputs: int, units: int, norm: Norm) -> dict[str, Tensor]:
    lists = [(f"adapt_convs.{i}", f"adapt.{i}", 2) for i in range(inputs)] + [("output_convs", "out", units)]
    pairs = [
        (f"{theirs}.{their_list}.{unit + 1}_{j + 1}_{{}}", f"{ours}.{our_list}.{unit}.{{}}s.{j}", False)
        for their_list, our_list, count in lists
        for unit in range(count)
        for j in range(2)
    ]
    pairs += [(f"{theirs}.crp.{{}}s.{j}", f"{ours}.chain.{{}}s.{j}", False) for j in range(2)]
    pairs += [(f"{theirs}.msf.{{}}s.{j}", f"{ours}.fuse.{{}}s.{j}", True) for j in range(2) if inputs > 1]
    state: dict[str, Tensor] = {}
    for from_name, to_name, bias in pairs:
        state |= source.layer(from_name.format("conv"), to_name.format("conv"), bias)
        state |= norm(source, from_name.format("norm"), to_name.format("norm"))
    return state
