"""NCSNv2's checkpoints (github.com/ermongroup/ncsnv2), `checkpoint.pth`."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.interop.base import Imported, Renaming, Settings, part, size_of
from lightning_score.interop.refinenet import (
    CENTERED,
    ELU,
    FIVE,
    FOUR,
    SIX,
    annealed_langevin,
    channels,
    colors,
    layout_of,
    read_states,
    renamed,
    training,
    whole,
)
from lightning_score.process import SigmaTable

NETWORKS = {FOUR: ("NCSNv2", 32), FIVE: ("NCSNv2Deeper", 128), SIX: ("NCSNv2Deepest", 256)}
"""The network of each layout, and its image size in pixels."""


class Published(NamedTuple):
    """The data of a published model, their size in pixels, and the step size and steps per level of its sampling."""

    data: str
    size: int
    step_size: float
    steps: int


PUBLISHED = {
    (232, 50): Published("CIFAR-10", 32, 6.2e-6, 5),
    (500, 90): Published("CelebA", 64, 3.3e-6, 5),
    (788, 140): Published("LSUN church", 96, 4.9e-6, 4),
    (1086, 190): Published("LSUN bedroom and tower", 128, 1.8e-6, 3),
    (2311, 348): Published("FFHQ", 256, 9e-7, 3),
}
"""By the number of levels and the largest: Song and Ermon 2020 (2006.09011), appendix B, and the authors' configs."""


def read(path: Path, size: int | None = None) -> Imported:
    """A checkpoint of NCSNv2, NCSNv2Deeper or NCSNv2Deepest.

    Args:
        path: `checkpoint.pth` or `checkpoint_<step>.pth`.
        size: height and width of the images; those of the published model with this ladder by default.

    Raises:
        InputError: another kind of file, or one that lacks tensors or holds others than the network's.
    """
    states = read_states(path, "ncsnv2")
    source = states.weights
    require(
        "normalizer.embed.weight" not in source, f"{path}: a network of NCSN, with a noise-level input; convert it as ncsn"
    )
    _check_norms(source)
    network, usual = network_of(source)
    sigmas = source.take("sigmas")
    process = ladder(sigmas, equal_steps=True)
    geometric = process["init_args"].get("geometric", True)
    found = PUBLISHED.get((len(sigmas), round(float(sigmas[0])))) if geometric else None
    chosen = "auto" if geometric else PUBLISHED[232, 50].step_size
    step_size, steps = (found.step_size, found.steps) if found else (chosen, 5)
    return Imported(
        model={
            "process": process,
            "network": network,
            "parametrization": part("ScoreOverSigma"),
            "sampler": annealed_langevin(step_size, steps, "Tweedie"),
            **training(states.optimizer),
        },
        shape=(colors(source), *[size or (found.size if found else usual)] * 2),
        data_range=(0.0, 1.0),
        weights=whole(source, rename),
        averages=states.averages and whole(states.averages, rename),
        step=states.step,
        notes=(*_notes(network["class_path"], process, usual, found), ELU),
    )


def _check_norms(source: Renaming) -> None:
    """Raises `InputError` for norms other than InstanceNorm++, naming them, and for a network without noise levels."""
    found = sorted(name.removeprefix("normalizer.") for name in source.state if name.startswith("normalizer."))
    others = {("alpha",): "VarianceNorm", (): "InstanceNorm or NoneNorm"}
    if any(name.startswith("running") for name in found):
        others[tuple(found)] = "BatchNorm"
    require(
        tuple(found) not in others or "begin_conv.weight" not in source,
        f"not a ncsnv2 checkpoint that can be converted: its norms are {others.get(tuple(found))} (normalizer has "
        f"{', '.join(found) or 'no tensors'}), only InstanceNorm++ (gamma, alpha, beta) can be converted",
    )
    require(
        "sigmas" in source or "begin_conv.weight" not in source,
        "not a ncsnv2 checkpoint that can be converted: it lacks 'sigmas', the noise levels, as does the baseline "
        "RefineNetDilated of ncsn, which was trained at one level",
    )


def rename(source: Renaming) -> dict[str, Tensor]:
    """A network's tensors except the table of sigmas, under our names."""
    return renamed(source, _norm, _no_norm)


def network_of(source: Renaming) -> tuple[Settings, int]:
    """The network of the tensors, and its image size in pixels."""
    name, size = NETWORKS[layout_of(source)]
    return part(name, channels=channels(source)), size


def ladder(sigmas: Tensor, equal_steps: bool = False) -> Settings:
    """The process with these noise levels, (L,) descending.

    Args:
        sigmas: the levels.
        equal_steps: whether they may be of equal steps, too (sigma_dist: uniform).

    Raises:
        InputError: they are not such a sequence within the rounding of single precision.
    """
    require(
        sigmas.ndim == 1 and len(sigmas) > 0 and bool((sigmas > 0).all() and (sigmas.diff() < 0).all()),
        f"sigmas: {size_of(sigmas)}, {sigmas.flatten()[:3].tolist()}, ...: must be descending noise levels above 0",
    )
    tolerance = 1e-5 if sigmas.dtype in (torch.float32, torch.float64) else 1e-2
    # as the shortest decimals that are the same in single precision: 0.01, not 0.00999999977
    largest, smallest = (float(str(np.float32(float(sigmas[i])))) for i in (0, -1))
    settings: Settings = {"sigma_min": smallest, "sigma_max": largest, "levels": len(sigmas)}
    errors = []
    for kind in ({}, {"geometric": False}) if equal_steps else ({},):
        levels = SigmaTable(**settings, **kind).sigmas.flip(0)
        errors.append(float((sigmas.double() / levels - 1).abs().max()))
        if errors[-1] < tolerance:
            return part("SigmaTable", **settings, **kind)
    raise InputError(
        f"sigmas from {largest:g} to {smallest:g}, {len(sigmas)} levels: not geometric"
        f"{' nor of equal steps' * equal_steps}, by {min(errors):.2g}; no other ladder can be converted"
    )


def _norm(source: Renaming, theirs: str, ours: str) -> dict[str, Tensor]:
    rows = [source.take(f"{theirs}.{name}") for name in ("gamma", "alpha", "beta")]
    return {f"{ours}.table": torch.stack(rows)[None]}


def _no_norm(source: Renaming, theirs: str, ours: str) -> dict[str, Tensor]:
    return {}


def _notes(network: str, process: Settings, size: int, found: Published | None) -> tuple[str, ...]:
    options = "--model.sampler.step_size 6.2e-6 --model.sampler.steps 5"
    levels, geometric = process["init_args"]["levels"], process["init_args"].get("geometric", True)
    if found is None:
        chosen = "technique 4 chooses for 5 steps per level" if geometric else "is that published for CIFAR-10"
        return (
            f"images of {size} x {size} pixels, for which {network} was made: --size 64",
            CENTERED,
            f"a ladder that was not published, whose step size {chosen}: {options}",
        )
    return (
        f"images of {found.size} x {found.size} pixels, since {levels} levels are those of {found.data}: --size 64",
        CENTERED,
        f"the step size and steps published for {found.data}: {options}",
    )
