"""DDPM's checkpoints in PyTorch: from pesser/pytorch_diffusion (Ho et al.'s models), and from ermongroup/ddim."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_score.errors import require
from lightning_score.interop.base import (
    Imported,
    Renaming,
    Settings,
    adam,
    describe,
    is_state,
    part,
    read_torch,
    without_prefix,
)
from lightning_score.interop.unet import count, state_of

KIND = "ddpm"
PATTERNS = [
    (r"conditioning\.linear1", "temb.dense.0"),
    (r"conditioning\.linear2", "temb.dense.1"),
    (r"(down|up)\.(\d+)\.stages\.(\d+)\.residual", r"\1.\2.block.\3"),
    (r"(down|up)\.(\d+)\.stages\.(\d+)\.attention", r"\1.\2.attn.\3"),
    (r"middle\.0\.residual", "mid.block_1"),
    (r"middle\.0\.attention", "mid.attn_1"),
    (r"middle\.1\.residual", "mid.block_2"),
    (r"\.shift\.", ".temb_proj."),
    (r"\.skip\.", ".nin_shortcut."),
    (r"\.query\.", ".q."),
    (r"\.key\.", ".k."),
    (r"\.value\.", ".v."),
    (r"\.out\.", ".proj_out."),
]
"""Our names and the authors', who also count the levels of the way up from full resolution."""


def read(path: Path, size: int | None = None) -> Imported:
    """A checkpoint of DDPM's U-Net.

    Args:
        path: a file with the network's tensors by name, or ddim's list of states with the averages as its last.
        size: height and width of the images; by default those of the published models with as many levels.

    Raises:
        InputError: another kind of file, or one that lacks tensors or holds others than the network's.
    """
    saved = read_torch(path, refused="ddpm needs the network's state dict, or a ckpt.pth as ddim's code writes it.")
    weights, averages, optimizer, step = _states(saved, path)
    source = Renaming(without_prefix(weights), KIND)
    network, shape = _network(source, size)
    large = shape[1] <= 32  # Ho et al. took the larger variance for CIFAR-10, the smaller one for 256 pixels
    return Imported(
        model={
            "process": part("BetaTable", beta_min=1e-4, beta_max=0.02, steps=1000),
            "network": network,
            "parametrization": part("Noise", noise_label=part("Index")),
            "objective": part("DenoisingScoreMatching", weighting=part("SigmaSquared"), times=part("TableTimes"), mean=True),
            "sampler": part(
                "PredictorCorrector",
                predictor=part("Ancestral", fixed_large=large),
                grid=part("ProcessTable"),
                clip=[-1.0, 1.0],
            ),
            **adam(optimizer),
        },
        shape=shape,
        data_range=(-1.0, 1.0),
        weights=state_of(source, network, shape, 0, _patterns(source)),
        averages=averages and _averages(averages, network, shape),
        step=step,
        notes=(
            f"images of {shape[1]} x {shape[1]} pixels: --size 64",
            "the chain of 1000 steps, beta linear from 1e-4 to 0.02: --model.process.steps 1000",
            f"the {'larger' if large else 'smaller'} of Ho et al.'s variances of a step, as published for this size: "
            f"--model.sampler.predictor.fixed_large {str(not large).lower()}",
        ),
    )


def _states(saved: Any, path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None, Mapping[str, Any], int]:
    """Network, averages, optimizer and step."""
    if isinstance(saved, list) and len(saved) >= 4 and isinstance(saved[0], Mapping):
        averages = saved[4] if len(saved) > 4 else None
        return saved[0], averages, saved[1], int(saved[3])
    require(
        is_state(saved),
        f"{path}: {describe(saved)}, neither a network's state dict nor ddim's list of states (network, optimizer, ...)",
    )
    return saved, None, {}, 0


def _averages(averages: Mapping[str, Tensor], network: Settings, shape: tuple[int, int, int]) -> dict[str, Tensor]:
    source = Renaming(without_prefix(averages), f"{KIND} (averages)")
    return state_of(source, network, shape, 0, _patterns(source))


def _levels(source: Renaming) -> int:
    return count(source, lambda k: f"down.{k}.block.0.conv1.weight")


def _patterns(source: Renaming) -> list[tuple[str, str]]:
    """Our names and the authors'; ours count the levels of the way up from the deepest one."""
    levels = _levels(source)
    turned = [(rf"^up\.{k}\.", f"UP.{levels - 1 - k}.") for k in range(levels)]
    return [*turned, (r"^UP\.", "up."), *PATTERNS]


def _network(source: Renaming, size: int | None) -> tuple[Settings, tuple[int, int, int]]:
    """The network to which the tensors belong, and the shape of its images."""
    channels, image = source.take("conv_in.weight").shape[:2]
    levels = _levels(source)
    require(
        levels > 0,
        f"not a {KIND} checkpoint that can be converted: it lacks 'down.0.block.0.conv1.weight'; its first tensors are "
        f"{', '.join(list(source.state)[:3])}",
    )
    size = size or (32 if levels <= 4 else 256)
    network = part(
        "UNet",
        channels=channels,
        multipliers=[len(source.take(f"down.{k}.block.0.conv1.weight")) // channels for k in range(levels)],
        blocks=count(source, lambda i: f"down.0.block.{i}.conv1.weight"),
        attention=[size >> k for k in range(levels) if f"down.{k}.attn.0.q.weight" in source],
        dropout=0.1 if size <= 32 else 0.0,
    )
    return network, (image, size, size)
