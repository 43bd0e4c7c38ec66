"""NCSN's checkpoints (github.com/ermongroup/ncsn), and those of NCSN and NCSNdeeper in ermongroup/ncsnv2.

In ncsn the networks are CondRefineNetDilated and CondRefineNetDeeperDilated, the norm of which is plain instance norm.
"""

from pathlib import Path

from lightning_score.errors import require
from lightning_score.interop import refinenet
from lightning_score.interop.base import Imported, Renaming, Settings, part
from lightning_score.interop.refinenet import FIVE, FOUR, LABELED

STAGES = {FOUR: {}, FIVE: {"multipliers": [1, 2, 2, 4, 4], "dilations": [1, 1, 1, 2, 4]}}
"""The stages of NCSN (the defaults of our network) and of NCSNdeeper."""


def read(path: Path, size: int | None = None) -> Imported:
    """A checkpoint of NCSN.

    Args:
        path: `checkpoint.pth` or `checkpoint_<step>.pth`.
        size: height and width of the images; 28 for one channel and 32 for three by default.

    Raises:
        InputError: another kind of file, or missing or unused tensors.
    """
    states = refinenet.read_states(path, "ncsn")
    source = states.weights
    conditional = LABELED in source or "sigmas" not in source
    require(conditional, f"{path}: a network of NCSNv2, without a noise-level input; convert it as ncsnv2")
    require(
        "normalizer.gamma" not in source,
        f"{path}: a network without noise levels ({LABELED}, sigmas), such as the baseline RefineNetDilated of one level; "
        "only CondRefineNetDilated and CondRefineNetDeeperDilated can be converted",
    )
    network, colors = network_of(source), refinenet.colors(source)
    levels, size = network["init_args"]["levels"], size or (28 if colors == 1 else 32)
    return states.convert(
        network,
        size,
        part("SigmaTable", sigma_min=0.01, sigma_max=1.0, levels=levels),
        part("Score", noise_label=part("Index", descending=True)),
        refinenet.annealed_langevin(2e-5, 100, "KeepNoise"),
        f"images of {size} x {size} pixels, since their channels are {colors}: --size 64",
        refinenet.CENTERED,
        f"the {levels} levels go from 1 to 0.01: --model.process.sigma_max 1 --model.process.sigma_min 0.01",
        "the published step size and steps: --model.sampler.step_size 2e-5 --model.sampler.steps 100",
    )


def network_of(source: Renaming) -> Settings:
    """The network of the tensors.

    Raises:
        InputError: NCSN has no such stages or norms.
    """
    layout, channels = refinenet.layout_of(source), refinenet.channels(source)
    source.require(layout in STAGES, "NCSN has no stage res31")
    levels, coefficients = source.take(LABELED).shape
    batch_norm = " and running means (batch norm)" * any(name.endswith("running_mean") for name in source.state)
    source.require(
        coefficients in (2 * channels, 3 * channels) and not batch_norm,
        f"its norms have {coefficients} coefficients for {channels} channels{batch_norm}; only InstanceNorm++ (gamma, "
        "alpha and beta) and instance norm (gamma and beta) can be converted",
    )
    plain = {"plus": False} if coefficients == 2 * channels else {}
    return part("NCSN", levels=levels, channels=channels, **STAGES[layout], **plain)
