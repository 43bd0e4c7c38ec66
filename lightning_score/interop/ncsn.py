"""NCSN's checkpoints (github.com/ermongroup/ncsn), and those of NCSN and NCSNdeeper in ermongroup/ncsnv2.

In ncsn the networks are CondRefineNetDilated and CondRefineNetDeeperDilated, the norm of which is plain instance norm.
"""

from pathlib import Path

from torch import Tensor

from lightning_score.errors import require
from lightning_score.interop.base import Imported, Renaming, Settings, part
from lightning_score.interop.refinenet import (
    CENTERED,
    ELU,
    FIVE,
    FOUR,
    annealed_langevin,
    channels,
    colors,
    layout_of,
    read_states,
    renamed,
    training,
    whole,
)

STAGES = {FOUR: {}, FIVE: {"multipliers": [1, 2, 2, 4, 4], "dilations": [1, 1, 1, 2, 4]}}
"""The stages of NCSN (the defaults of our network) and of NCSNdeeper."""


def read(path: Path, size: int | None = None) -> Imported:
    """A checkpoint of NCSN.

    Args:
        path: `checkpoint.pth` or `checkpoint_<step>.pth`.
        size: height and width of the images; 28 for one channel and 32 for three by default.

    Raises:
        InputError: another kind of file, or one that lacks tensors or holds others than the network's.
    """
    states = read_states(path, "ncsn")
    source = states.weights
    conditional = "normalizer.embed.weight" in source or "sigmas" not in source
    require(conditional, f"{path}: a network of NCSNv2, without a noise-level input; convert it as ncsnv2")
    require(
        "normalizer.gamma" not in source,
        f"{path}: a network without noise levels (no normalizer.embed.weight, no sigmas), such as the "
        "baseline RefineNetDilated of one level; only CondRefineNetDilated and CondRefineNetDeeperDilated can be converted",
    )
    network, size = network_of(source), size or (28 if colors(source) == 1 else 32)
    levels = network["init_args"]["levels"]
    return Imported(
        model={
            "process": part("SigmaTable", sigma_min=0.01, sigma_max=1.0, levels=levels),
            "network": network,
            "parametrization": part("Score", noise_label=part("Index", descending=True)),
            "sampler": annealed_langevin(2e-5, 100, "KeepNoise"),
            **training(states.optimizer),
        },
        shape=(colors(source), size, size),
        data_range=(0.0, 1.0),
        weights=whole(source, rename),
        averages=states.averages and whole(states.averages, rename),
        step=states.step,
        notes=(
            f"images of {size} x {size} pixels, since their channels are {colors(source)}: --size 64",
            CENTERED,
            f"the {levels} levels go from 1 to 0.01: --model.process.sigma_max 1 --model.process.sigma_min 0.01",
            "the published step size and steps: --model.sampler.step_size 2e-5 --model.sampler.steps 100",
            ELU,
        ),
    )


def rename(source: Renaming) -> dict[str, Tensor]:
    """A network's tensors under our names."""
    return renamed(source, _norm, _norm)


def network_of(source: Renaming) -> Settings:
    """The network of the tensors.

    Raises:
        InputError: NCSN has no such stages.
    """
    layout = layout_of(source)
    require(layout in STAGES, f"not a {source.kind} checkpoint that can be converted: NCSN has no stage res31")
    levels, coefficients = source.take("normalizer.embed.weight").shape
    rows, left = divmod(coefficients, channels(source))
    running = any(name.endswith("running_mean") for name in source.state)
    require(
        rows in (2, 3) and left == 0 and not running,
        f"not a {source.kind} checkpoint that can be converted: its norms have {coefficients} coefficients for "
        f"{channels(source)} channels{' and running means (batch norm)' if running else ''}; only InstanceNorm++ (gamma, "
        "alpha and beta) and instance norm (gamma and beta) can be converted",
    )
    plain = {"plus": False} if rows == 2 else {}
    return part("NCSN", levels=levels, channels=channels(source), **STAGES[layout], **plain)


def _norm(source: Renaming, theirs: str, ours: str) -> dict[str, Tensor]:
    table = source.take(f"{theirs}.embed.weight")  # gamma, alpha (or not) and beta side by side
    rows = source.state["normalizer.embed.weight"].shape[1] // channels(source)
    return {f"{ours}.table": table.unflatten(1, (rows, -1))}
