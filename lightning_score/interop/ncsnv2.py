"""NCSNv2's checkpoints (github.com/ermongroup/ncsnv2), `checkpoint.pth`."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_score.interop.base import Imported, Renaming, Settings, part
from lightning_score.interop.refinenet import (
    CENTERED,
    FIVE,
    FOUR,
    SIX,
    annealed_langevin,
    channels,
    colours,
    layout_of,
    read_states,
    renamed,
    training,
    whole,
)
from lightning_score.process import SigmaTable
from lightning_score.utils import require

NETWORKS = {FOUR: ("NCSNv2", 32), FIVE: ("NCSNv2Deeper", 128), SIX: ("NCSNv2Deepest", 256)}
"""The network of each layout, and the size in pixels for which it was made."""


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
    require("normalizer.embed.weight" not in source, f"{path}: a network of NCSN, told its noise level; convert it as ncsn")
    network, usual = network_of(source)
    sigmas = source.take("sigmas")
    found = PUBLISHED.get((len(sigmas), round(float(sigmas[0]))))
    step_size, steps = (found.step_size, found.steps) if found else ("auto", 5)
    return Imported(
        model={
            "process": ladder(sigmas),
            "network": network,
            "parametrization": part("ScoreOverSigma"),
            "sampler": annealed_langevin(step_size, steps, "Tweedie"),
            **training(states.optimizer),
        },
        shape=(colours(source), *[size or (found.size if found else usual)] * 2),
        data_range=(0.0, 1.0),
        weights=whole(source, rename),
        averages=states.averages and whole(states.averages, rename),
        step=states.step,
        notes=_notes(network["class_path"], len(sigmas), usual, found),
    )


def rename(source: Renaming) -> dict[str, Tensor]:
    """Takes a network's tensors, all but the table of sigmas, under the names that they have here."""
    return renamed(source, _norm, _no_norm)


def network_of(source: Renaming) -> tuple[Settings, int]:
    """The network to which the tensors belong, and the size in pixels for which it was made."""
    name, size = NETWORKS[layout_of(source)]
    return part(name, channels=channels(source)), size


def ladder(sigmas: Tensor) -> Settings:
    """The process with these noise levels, (L,) descending.

    Raises:
        InputError: they are not a geometric sequence within the rounding of single precision.
    """
    # as the shortest decimals that are the same in single precision: 0.01, not 0.00999999977
    largest, smallest = (float(str(np.float32(float(sigmas[i])))) for i in (0, -1))
    levels = SigmaTable(smallest, largest, len(sigmas)).sigmas.flip(0)
    error = float((sigmas.double() / levels - 1).abs().max())
    require(
        error < 1e-5,
        f"sigmas from {largest:g} to {smallest:g}, {len(sigmas)} levels: not geometric, by {error:.2g}; a ladder of another "
        "kind (sigma_dist: uniform) cannot be converted",
    )
    return part("SigmaTable", sigma_min=smallest, sigma_max=largest, levels=len(sigmas))


def _norm(source: Renaming, theirs: str, ours: str) -> dict[str, Tensor]:
    rows = [source.take(f"{theirs}.{name}") for name in ("gamma", "alpha", "beta")]
    return {f"{ours}.table": torch.stack(rows)[None]}


def _no_norm(source: Renaming, theirs: str, ours: str) -> dict[str, Tensor]:
    return {}


def _notes(network: str, levels: int, size: int, found: Published | None) -> tuple[str, ...]:
    options = "--model.sampler.step_size 6.2e-6 --model.sampler.steps 5"
    if found is None:
        return (
            f"images of {size} x {size} pixels, for which {network} was made: --size 64",
            CENTERED,
            f"a ladder that was not published, whose step size technique 4 chooses for 5 steps per level: {options}",
        )
    return (
        f"images of {found.size} x {found.size} pixels, since {levels} levels are those of {found.data}: --size 64",
        CENTERED,
        f"the step size and steps published for {found.data}: {options}",
    )
