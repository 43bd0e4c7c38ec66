"""score_sde_pytorch's checkpoints (github.com/yang-song/score_sde_pytorch), `checkpoint_<N>.pth`."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from lightning_score.errors import require
from lightning_score.interop import ncsn, ncsnv2, refinenet
from lightning_score.interop.base import (
    Imported,
    Renaming,
    Settings,
    describe,
    part,
    read_torch,
    shadow_state,
    without_prefix,
)
from lightning_score.interop.names import Network, imported
from lightning_score.interop.plusplus_layout import Modules, take
from lightning_score.interop.sde_training import Training, ladder, training_of
from lightning_score.interop.training import adam

KIND = "score_sde"
Found = tuple[Network, Training]
SCALAR = np.float64(0).__reduce__()[0]
NUMPY_NUMBER = (
    (SCALAR, "numpy.core.multiarray.scalar"),  # as saved by numpy 1
    (SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
)
"""The classes and functions of a numpy number: the authors' code saves the learning rate as one while it warms up."""


def read(path: Path, size: int | None = None, sde: str | None = None) -> Imported:
    """A checkpoint of score_sde_pytorch: its NCSN++, DDPM++ and DDPM networks, and NCSN's and NCSNv2's as trained there.

    The SDE, if it is not given, follows from the network and from the folders, which the authors name after their configs,
    such as `vp/cifar10_ddpmpp_continuous`.

    Args:
        path: `checkpoint_<N>.pth`, or the `checkpoint.pth` that is kept during training.
        size: height and width of the images; by default those of the published models with as many levels.
        sde: ve, vp, subvp, ve_discrete or vp_discrete, if the folders do not determine it.

    Raises:
        InputError: another kind of file, or missing or unused tensors.
    """
    saved = read_torch(path, "score_sde needs a checkpoint_<N>.pth as its authors' code writes it.", NUMPY_NUMBER)
    require(
        isinstance(saved, Mapping) and {"optimizer", "model", "ema", "step"} <= saved.keys(),
        f"{path}: not a score_sde checkpoint, a dictionary of ema, model, optimizer and step; this is {describe(saved)}",
    )
    state = without_prefix(saved["model"])
    averages = Renaming(shadow_state(state, saved["ema"]["shadow_params"], _trained), f"{KIND} (averages)")
    source = Renaming(state, KIND)
    sigmas, _ = source.take("sigmas"), averages.take("sigmas")
    network, training = (_refinenet if "begin_conv.weight" in source else _unet)(source, sigmas, path, size, sde)
    model = training.settings | adam(saved["optimizer"])
    return imported(network, source, averages, model, training.data_range, training.notes, int(saved["step"]))


def _trained(name: str) -> bool:
    return (name != "sigmas" and not name.endswith(".W")) or ".NIN_" in name  # Fourier frequencies are not trained


def _unet(source: Renaming, sigmas: Tensor, path: Path, size: int | None, sde: str | None) -> Found:
    """The network of a file with numbered modules."""
    modules = Modules(source)
    layout = modules.layout
    channels, image = modules.tensor("conv_in", "weight").shape[:2]
    usual = _usual_size(path, layout.levels)
    side = size or usual
    training = training_of(("ve",) if layout.fourier else ("vp", "subvp", "vp_discrete", "ve_discrete"), sigmas, path, sde)
    seen, dropout = modules.filtered(), 0.1 if usual == 32 else 0.0
    fir = layout.fourier if seen is None else seen
    settings: Settings = {
        "channels": channels,
        "multipliers": _multipliers(source, modules, channels),
        "blocks": layout.blocks,
        "attention": [side >> level for level, attends in enumerate(layout.attention) if attends],
        "centered": training.data_range[0] < 0,
        "progressive_input": _progressive_input(modules),
        "progressive": {"": "none", "skip": "output_skip", "conv": "residual"}[layout.outputs],
        "resample_blocks": layout.resample_blocks,
        "fir": fir,
        "dropout": dropout,
        "embedding": part("PositionalEmbedding", width=channels),
    }
    notes = [f"images of {side} x {side} pixels: --size 64"]
    if layout.fourier:
        settings["embedding"] = part("FourierEmbedding", width=2 * len(modules.tensor("conditioning.embedding", "W")))
    if layout.fourier or layout.resample_blocks:
        if seen is None:
            filtered = "filtered with [1, 3, 3, 1]" if fir else "not filtered"
            notes.append(f"changes of resolution are {filtered}: --model.network.fir {str(not fir).lower()}")
        notes.append("sums are scaled by 1/sqrt(2), as in all published models: --model.network.rescale false")
    else:
        settings |= {"rescale": False, "group_size": 1}
        more = "--model.network.rescale true --model.network.group_size 4"
        notes.append(f"the network is the authors' DDPM, not an NCSN++ with DDPM's blocks: {more}")
    notes.append(f"dropout of {dropout:g} in further training: --model.network.dropout 0.1")
    network = part("NCSNpp" if layout.fourier else "DDPMpp", **settings)
    found = Network(network, (image, side, side), modules.names(), take)
    return found, training._replace(notes=(*notes, *training.notes))


def _usual_size(path: Path, levels: int) -> int:
    """Height and width of the images, by the folders' names, or else by the number of levels."""
    for folder in reversed(path.absolute().parts[-4:-1]):
        named = re.search(r"_(\d{2,4})(_|$)", folder)
        if named or re.match("cifar10|celeba_", folder):
            return int(named[1]) if named else 64 if folder.startswith("celeba") else 32
    return 32 if levels <= 5 else 256 if levels <= 7 else 1024


def _multipliers(source: Renaming, modules: Modules, channels: int) -> list[int]:
    levels = reversed(range(modules.layout.levels))
    widths = [len(modules.tensor(f"up.{k}.blocks.0", "Conv_0.weight")) for k in levels]
    source.require(
        all(width % channels == 0 for width in widths), f"levels of {widths} channels, which are not multiples of {channels}"
    )
    return [width // channels for width in widths]


def _progressive_input(modules: Modules) -> str:
    if not modules.layout.joins or modules.layout.levels == 1:
        return "none"
    if modules.layout.joins == "conv resampled":
        return "residual"
    joined = len(modules.tensor("down.0.join.conv", "Conv_0.weight"))
    following = modules.tensor("down.0.stages.0.residual", "Conv_0.weight").shape[1]
    return "input_skip" if following == joined else "input_concatenation"


def _refinenet(source: Renaming, sigmas: Tensor, path: Path, size: int | None, sde: str | None) -> Found:
    """The network of a file with the tensors of NCSN or NCSNv2, which are trained on VE's levels there."""
    training = training_of(("ve_discrete",), sigmas, path, sde)
    if refinenet.LABELED in source:
        network, usual, training = ncsn.network_of(source), 32, ladder(sigmas, "Score")
    else:
        network, usual = ncsnv2.network_of(source)
    side = size or usual
    note = f"images of {side} x {side} pixels: --size 64"
    found = Network(network, (refinenet.colors(source), side, side), refinenet.names(source), refinenet.take)
    return found, training._replace(notes=(note, *training.notes))
