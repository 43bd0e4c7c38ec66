"""score_sde_pytorch's checkpoints (github.com/yang-song/score_sde_pytorch), `checkpoint_<N>.pth`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lightning_score.errors import require
from lightning_score.interop import ncsn, ncsnv2
from lightning_score.interop.base import (
    Imported,
    Renaming,
    Settings,
    adam,
    is_state,
    part,
    read_torch,
    shadow_state,
    without_prefix,
)
from lightning_score.interop.plusplus_layout import Layout, Modules, find_layout
from lightning_score.interop.sde_training import Training, ladder, training_of

KIND = "score_sde"
FIR_KERNEL = "[1, 3, 3, 1]"
NUMPY_NUMBER = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # as saved by numpy 1
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
]
"""What a numpy number needs, in which the authors' code keeps the learning rate while it warms up."""


def read(path: Path, size: int | None = None, sde: str | None = None) -> Imported:
    """A checkpoint of score_sde_pytorch: its NCSN++, DDPM++ and DDPM networks, and NCSN's and NCSNv2's as trained there.

    The SDE, if it is not given, follows from the network and from the folders, which the authors name after their configs,
    such as `vp/cifar10_ddpmpp_continuous`.

    Args:
        path: `checkpoint_<N>.pth`, or the `checkpoint.pth` that is kept during training.
        size: height and width of the images; by default those of the published models with as many levels.
        sde: ve, vp, subvp, ve_discrete or vp_discrete, where folders do not say.

    Raises:
        InputError: another kind of file, or one that lacks tensors or holds others than the network's.
    """
    saved = read_torch(path, NUMPY_NUMBER, "score_sde needs a checkpoint_<N>.pth as its authors' code writes it.")
    expected = {"optimizer", "model", "ema", "step"}
    require(
        isinstance(saved, Mapping) and expected <= set(saved),
        f"{path}: not a score_sde checkpoint, which is a dictionary of {', '.join(sorted(expected))}; "
        f"this is {_describe(saved)}",
    )
    require(
        isinstance(saved["ema"], Mapping) and "shadow_params" in saved["ema"],
        f"{path}: not a score_sde checkpoint, whose 'ema' holds shadow_params",
    )
    shadow = saved["ema"]["shadow_params"]
    require(
        is_state(saved["model"]) and isinstance(shadow, list) and all(isinstance(tensor, Tensor) for tensor in shadow),
        f"{path}: not a score_sde checkpoint, whose 'model' holds tensors by name and whose 'ema' a list of them",
    )
    state = without_prefix(saved["model"])
    averages = shadow_state(state, shadow, _trained)
    source = Renaming(state, KIND)
    require("sigmas" in source, f"not a {KIND} checkpoint that can be converted: it lacks 'sigmas'")
    sigmas = source.take("sigmas")
    read_network = _refinenet if "begin_conv.weight" in source else _unet
    network, shape, training = read_network(source, sigmas, path, size, sde)
    return Imported(
        model={"network": network, **training.settings, **adam(saved["optimizer"])},
        shape=shape,
        data_range=training.data_range,
        weights=_renamed(source),
        averages=_renamed(_without_sigmas(averages)),
        step=int(saved["step"]),
        notes=training.notes,
    )


def _describe(saved: Any) -> str:
    return f"one of {', '.join(map(str, list(saved)[:5]))}" if isinstance(saved, Mapping) else type(saved).__name__


def _trained(name: str) -> bool:
    return (name != "sigmas" and not name.endswith(".W")) or ".NIN_" in name  # Fourier frequencies are not trained


def _without_sigmas(state: Mapping[str, Tensor]) -> Renaming:
    return Renaming({name: tensor for name, tensor in state.items() if name != "sigmas"}, f"{KIND} (averages)")


def _renamed(source: Renaming) -> dict[str, Tensor]:
    """All tensors under our names.

    Raises:
        InputError: one is missing, or left over.
    """
    if "begin_conv.weight" in source:
        renamed = (ncsn if "normalizer.embed.weight" in source else ncsnv2).rename(source)
    else:
        modules = Modules(source)
        renamed = modules.rename(_layout(modules))
    source.finish()
    return renamed


def _layout(modules: Modules) -> Layout:
    kinds = modules.kinds()
    layout = find_layout(kinds)
    require(
        layout is not None,
        f"not a {KIND} checkpoint that can be converted: its {len(kinds)} modules are in no order of a DDPM, DDPM++ or "
        f"NCSN++ that is told the noise level; its first tensors are {', '.join(list(modules.source.state)[:3])}",
    )
    return layout


def _unet(
    source: Renaming, sigmas: Tensor, path: Path, size: int | None, sde: str | None
) -> tuple[Settings, tuple[int, int, int], Training]:
    """Network, shape and training of a file with numbered modules."""
    modules = Modules(source)
    layout = _layout(modules)
    names = {ours: i for i, (_, ours) in enumerate(layout.modules())}
    channels, image = modules.peek(f"{names['conv_in']}.weight").shape[:2]
    usual = _usual_size(path, layout.levels)
    shape = (image, *[size or usual] * 2)
    training = training_of(("ve",) if layout.fourier else ("vp", "subvp", "vp_discrete", "ve_discrete"), sigmas, path, sde)
    options: Settings = {
        "channels": channels,
        "multipliers": _multipliers(layout, modules, names, channels),
        "blocks": layout.blocks,
        "attention": [shape[1] >> level for level, attends in enumerate(layout.attention) if attends],
        "centered": training.data_range[0] < 0,
        "progressive_input": _progressive_input(layout, modules, names),
        "progressive": {"": "none", "skip": "output_skip", "conv": "residual"}[layout.outputs],
        "resample_blocks": layout.resample_blocks,
    }
    notes = [f"images of {shape[1]} x {shape[1]} pixels: --size 64"]
    fir, fir_note = _filter(layout, modules)
    if layout.resample_blocks or layout.fourier:
        notes += [*fir_note, "sums are scaled by 1/sqrt(2), as in all published models: --model.network.rescale false"]
    else:
        options |= {"rescale": False, "group_size": 1}
        more = "--model.network.rescale true --model.network.group_size 4"
        notes.append(f"the network is the authors' DDPM, not an NCSN++ with DDPM's blocks: {more}")
    dropout = 0.1 if usual == 32 else 0.0
    notes.append(f"dropout of {dropout:g} in further training: --model.network.dropout 0.1")
    name = "NCSNpp" if layout.fourier else "DDPMpp"
    network = part(name, **options, fir=fir, dropout=dropout, embedding=_embedding(layout, modules, channels))
    return network, shape, training._replace(notes=(*notes, *training.notes))


def _usual_size(path: Path, levels: int) -> int:
    """Height and width of the images, by the folders' names, or else by the number of levels."""
    for folder in reversed(path.absolute().parts[-4:-1]):
        named = re.search(r"_(\d{2,4})(_|$)", folder)
        if named or re.match("cifar10|celeba_", folder):
            return int(named[1]) if named else 64 if folder.startswith("celeba") else 32
    return 32 if levels <= 5 else 256 if levels <= 7 else 1024


def _embedding(layout: Layout, modules: Modules, channels: int) -> Settings:
    if layout.fourier:
        return part("FourierEmbedding", width=2 * len(modules.peek("0.W")))
    return part("PositionalEmbedding", width=channels)


def _multipliers(layout: Layout, modules: Modules, names: Mapping[str, int], channels: int) -> list[int]:
    first = [names[f"up.{k}.blocks.0"] for k in reversed(range(layout.levels))]
    widths = [len(modules.peek(f"{i}.Conv_0.weight")) for i in first]
    require(
        all(width % channels == 0 for width in widths),
        f"not a {KIND} checkpoint that can be converted: levels of {widths} channels, no multiples of {channels}",
    )
    return [width // channels for width in widths]


def _progressive_input(layout: Layout, modules: Modules, names: Mapping[str, int]) -> str:
    if not layout.joins or layout.levels == 1:
        return "none"
    if layout.joins == "conv resampled":
        return "residual"
    joined = len(modules.peek(f"{names['down.0.join.conv']}.Conv_0.weight"))
    following = modules.peek(f"{names['down.0.stages.0.residual']}.Conv_0.weight").shape[1]
    return "input_skip" if following == joined else "input_concatenation"


def _filter(layout: Layout, modules: Modules) -> tuple[bool, list[str]]:
    """Whether changes of resolution are filtered, which shows only where they are convolutions, and what was assumed."""
    seen = {kind for i in range(modules.count) for kind in ("Conv2d_0", "Conv_0") if _only(modules, i, kind)}
    if seen and (layout.joins == "conv resampled" or not layout.resample_blocks):
        return "Conv2d_0" in seen, []
    filtered = layout.fourier
    said = f"filtered with {FIR_KERNEL}" if filtered else "not filtered"
    return filtered, [f"changes of resolution are {said}: --model.network.fir {str(not filtered).lower()}"]


def _only(modules: Modules, i: int, name: str) -> bool:
    return f"{i}.{name}.weight" in modules and f"{i}.Conv_1.weight" not in modules


def _refinenet(
    source: Renaming, sigmas: Tensor, path: Path, size: int | None, sde: str | None
) -> tuple[Settings, tuple[int, int, int], Training]:
    """Network, shape and training of a file with the tensors of NCSN or NCSNv2, which are trained on VE's levels there."""
    told = "normalizer.embed.weight" in source
    network, usual = (ncsn.network_of(source), 32) if told else ncsnv2.network_of(source)
    image = source.state["begin_conv.weight"].shape[1]
    training = training_of(("ve_discrete",), sigmas, path, sde)
    if told:
        training = ladder(sigmas, "Score")
    notes = (f"images of {size or usual} x {size or usual} pixels: --size 64", *training.notes)
    return network, (image, *[size or usual] * 2), training._replace(notes=notes)
