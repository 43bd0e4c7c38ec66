"""DDPM's checkpoints in PyTorch: from pesser/pytorch_diffusion (Ho et al.'s models), and from ermongroup/ddim."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_score.errors import require
from lightning_score.interop.base import (
    Imported,
    Renaming,
    Settings,
    Shape,
    State,
    describe,
    is_state,
    part,
    read_torch,
    without_prefix,
)
from lightning_score.interop.names import Network, count, imported, layers
from lightning_score.interop.training import adam, chain, linear_betas, sampler

KIND = "ddpm"


def read(path: Path, size: int | None = None) -> Imported:
    """A checkpoint of DDPM's U-Net.

    Args:
        path: a file with the network's tensors by name, or ddim's list of states with the averages as its last.
        size: height and width of the images; by default those of the published models with as many levels.

    Raises:
        InputError: another kind of file, or missing or unused tensors.
    """
    saved = read_torch(path, "ddpm needs the network's state dict, or a ckpt.pth as ddim's code writes it.")
    weights, averages, optimizer, step = _states(saved, path)
    source = Renaming(without_prefix(weights), KIND)
    levels = count(source, lambda k: f"down.{k}.block.0.conv1.weight")
    network, shape = _network(source, levels, size)
    large = shape[1] <= 32  # Ho et al. took the larger variance for CIFAR-10, the smaller one for 256 pixels
    steps = sampler(part("Ancestral", fixed_large=large), part("ProcessTable"), clip=[-1.0, 1.0])
    averaged = None if averages is None else Renaming(without_prefix(averages), f"{KIND} (averages)")
    notes = (
        f"images of {shape[1]} x {shape[1]} pixels: --size 64",
        "the chain of 1000 steps, beta linear from 1e-4 to 0.02: --model.process.steps 1000",
        f"the {'larger' if large else 'smaller'} of Ho et al.'s variances of a step, as published for this size: "
        f"--model.sampler.predictor.fixed_large {str(not large).lower()}",
    )
    model = chain(linear_betas(), steps) | adam(optimizer)
    return imported(Network(network, shape, _names(levels)), source, averaged, model, (-1.0, 1.0), notes, step)


def _states(saved: Any, path: Path) -> tuple[State, State | None, Mapping[str, Any], int]:
    """Network, averages, optimizer and step."""
    if isinstance(saved, list) and len(saved) >= 4 and isinstance(saved[0], Mapping):
        return saved[0], saved[4] if len(saved) > 4 else None, saved[1], int(saved[3])
    require(
        is_state(saved),
        f"{path}: {describe(saved)}, neither a network's state dict nor ddim's list of states (network, optimizer, ...)",
    )
    return saved, None, {}, 0


def _names(levels: int) -> dict[str, str]:
    """Our names and the authors', who count also the levels of the way up from full resolution."""
    return {
        **{f"up.{k}.": f"UP.{levels - 1 - k}." for k in range(levels)},
        "UP.": "up.",
        "conditioning.linear1.": "temb.dense.0.",
        "conditioning.linear2.": "temb.dense.1.",
        "middle.0.residual.": "mid.block_1.",
        "middle.0.attention.": "mid.attn_1.",
        "middle.1.residual.": "mid.block_2.",
        ".stages.*.residual.": ".block.*.",
        ".stages.*.attention.": ".attn.*.",
        **layers(shift="temb_proj", skip="nin_shortcut", query="q", key="k", value="v", out="proj_out"),
    }


def _network(source: Renaming, levels: int, size: int | None) -> tuple[Settings, Shape]:
    """The network of the tensors, and the shape of its images."""
    channels, image = source.take("conv_in.weight").shape[:2]
    widths = [len(source.take(f"down.{k}.block.0.conv1.weight")) for k in range(max(levels, 1))]
    size = size or (32 if levels <= 4 else 256)
    network = part(
        "UNet",
        channels=channels,
        multipliers=[width // channels for width in widths],
        blocks=count(source, lambda i: f"down.0.block.{i}.conv1.weight"),
        attention=[size >> k for k in range(levels) if f"down.{k}.attn.0.q.weight" in source],
        dropout=0.1 if size <= 32 else 0.0,
    )
    return network, (image, size, size)
