"""NCSNv2's checkpoints (github.com/ermongroup/ncsnv2), `checkpoint.pth`."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.interop import refinenet
from lightning_score.interop.base import Imported, Renaming, Settings, part, size_of
from lightning_score.process import SigmaTable

NETWORKS = {
    refinenet.FOUR: ("NCSNv2", 32),
    refinenet.FIVE: ("NCSNv2Deeper", 128),
    refinenet.SIX: ("NCSNv2Deepest", 256),
}
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
        InputError: another kind of file, or missing or unused tensors.
    """
    states = refinenet.read_states(path, "ncsnv2")
    source = states.weights
    labeled = refinenet.LABELED in source
    require(not labeled, f"{path}: a network of NCSN, with a noise-level input; convert it as ncsn")
    if "begin_conv.weight" in source:
        _check_norms(source)
    network, usual = network_of(source)
    sigmas = source.take("sigmas")
    process = ladder(sigmas, equal_steps=True)
    geometric = process["init_args"].get("geometric", True)
    found = PUBLISHED.get((len(sigmas), round(float(sigmas[0])))) if geometric else None
    step_size: float | str = "auto" if geometric else 6.2e-6
    steps = 5
    if found:
        usual, step_size, steps = found.size, found.step_size, found.steps
        why = f"since {len(sigmas)} levels are those of {found.data}"
        note = f"the step size and steps published for {found.data}"
    else:
        why = f"for which {network['class_path']} was made"
        chosen = "technique 4 chooses for 5 steps per level" if geometric else "is that published for CIFAR-10"
        note = f"a ladder that was not published, whose step size {chosen}"
    return states.convert(
        network,
        size or usual,
        process,
        part("ScoreOverSigma"),
        refinenet.annealed_langevin(step_size, steps, "Tweedie"),
        f"images of {usual} x {usual} pixels, {why}: --size 64",
        refinenet.CENTERED,
        f"{note}: --model.sampler.step_size 6.2e-6 --model.sampler.steps 5",
    )


def _check_norms(source: Renaming) -> None:
    """Raises `InputError` for norms other than InstanceNorm++, naming them, and for a network without noise levels."""
    found = sorted(name.removeprefix("normalizer.") for name in source.state if name.startswith("normalizer."))
    other = {("alpha",): "VarianceNorm", (): "InstanceNorm or NoneNorm"}.get(tuple(found), "")
    if any(name.startswith("running") for name in found):
        other = "BatchNorm"
    source.require(
        not other,
        f"its norms are {other} (normalizer has {', '.join(found) or 'no tensors'}), only InstanceNorm++ (gamma, alpha, "
        "beta) can be converted",
    )
    source.require(
        "sigmas" in source,
        "it lacks 'sigmas', the noise levels, as does the baseline RefineNetDilated of ncsn, which was trained at one level",
    )


def network_of(source: Renaming) -> tuple[Settings, int]:
    """The network of the tensors, and its image size in pixels."""
    name, size = NETWORKS[refinenet.layout_of(source)]
    return part(name, channels=refinenet.channels(source)), size


def ladder(sigmas: Tensor, equal_steps: bool = False) -> Settings:
    """The process with these noise levels, (L,) descending.

    Args:
        sigmas: the levels.
        equal_steps: whether they may be in equal steps, too (sigma_dist: uniform).

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
        f"{' nor in equal steps' * equal_steps}, by {min(errors):.2g}; no other ladder can be converted"
    )
