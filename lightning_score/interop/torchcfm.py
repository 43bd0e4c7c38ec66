"""torchcfm's flows on images (github.com/atong01/conditional-flow-matching): the U-Net of guided-diffusion as a velocity.

Their time runs from noise, 0, to data, 1, and their network predicts x_0 - z (Tong et al. 2023, 2302.00482): our `Flow` at
the label 1 - t, with the signs of its last layer changed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.interop.base import Imported, Renaming, Settings, describe, is_state, part, read_torch, without_prefix
from lightning_score.interop.diffusers import UNCONDITIONAL
from lightning_score.interop.names import Network, imported, layers
from lightning_score.interop.training import adam, matching, sampler

KIND = "torchcfm"
QKV = ("query", "key", "value")
HEAD = 64
INDEPENDENT = (
    "trained on independent data and noise (icfm and fm); the network of otcfm is the velocity of an ODE, but not that of a "
    "score: only deterministic samplers and the likelihood hold for it: --model.sampler.predictor Heun"
)


def read(path: Path, size: int | None = None) -> Imported:
    """A checkpoint of `train_cifar10.py`, or the state dict of a `UNetModel` of torchcfm.

    Args:
        path: a file with `net_model` and `ema_model`, or with the network's tensors by name.
        size: height and width of the images; by default 32, and 28 for images of one channel.

    Raises:
        InputError: another kind of file, or missing or unused tensors.
    """
    saved = read_torch(path, "torchcfm needs the file that its train_cifar10.py writes, or the network's state dict.")
    weights, averages, optimizer, step = _states(saved, path)
    source = Renaming(without_prefix(weights), KIND)
    levels, blocks = _levels(source)
    network, shape = _network(source, levels, blocks, size)
    classes = len(source.state["label_emb.weight"]) if "label_emb.weight" in source else 0
    model = {
        "process": part("Linear"),
        "parametrization": part("Flow", noise_label=part("Time", scale=-1.0, offset=1.0)),
        "objective": matching(part("UniformTimes", t_min=0.0), weighting=part("FlowWeighting"), mean=True),
        "sampler": sampler(part("DDIM"), part("Uniform", steps=99, t_min=0.01), denoise=part("Tweedie")),
        **adam(optimizer),
    }
    averaged = None if averages is None else Renaming(without_prefix(averages), f"{KIND} (averages)")
    notes = (f"images of {shape[1]} x {shape[1]} pixels: --size 64", INDEPENDENT, *([UNCONDITIONAL] if classes else []))
    found = Network(network, shape, _names(levels, blocks, network["init_args"]["attention"], shape[1]), _take, classes)
    return imported(found, source, averaged, model, (-1.0, 1.0), notes, step)


def _states(saved: Any, path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None, Mapping[str, Any], int]:
    """Network, averages, optimizer and step."""
    if isinstance(saved, Mapping) and "net_model" in saved:
        return saved["net_model"], saved.get("ema_model"), saved.get("optim", {}), saved.get("step", 0)
    require(is_state(saved), f"{path}: {describe(saved)}, neither net_model and ema_model nor tensors by name")
    return saved, None, {}, 0


def _levels(source: Renaming) -> tuple[int, int]:
    """The number of levels, and of residual blocks in each."""
    total = len({name.split(".")[1] for name in source.state if name.startswith("input_blocks.")})
    source.require(total > 1, f"it lacks 'input_blocks.1.0.in_layers.0.weight' ({source.first})")
    levels = 1 + sum(f"input_blocks.{k}.0.op.weight" in source for k in range(total))
    doubled = any(f"output_blocks.{k}.{i}.in_layers.0.weight" in source for k in range(total) for i in (1, 2))
    source.require(not doubled, "resblock_updown=True: only convolutions that change the resolution can be converted")
    source.require(total % levels == 0, f"{total} input_blocks are not {levels} levels of the same number of blocks")
    return levels, total // levels - 1


def _network(source: Renaming, levels: int, blocks: int, size: int | None) -> tuple[Settings, tuple[int, int, int]]:
    """The network of the tensors, and the shape of its images."""
    channels, image = source.take("input_blocks.0.0.weight").shape[:2]
    firsts = [1 + k * (blocks + 1) for k in range(levels)]
    widths = [len(source.take(f"input_blocks.{first}.0.in_layers.2.weight")) for first in firsts]
    size = size or (28 if image == 1 else 32)
    scaled = len(source.take("input_blocks.1.0.emb_layers.1.weight")) == 2 * widths[0]
    network = part(
        "UNet",
        channels=channels,
        multipliers=[width // channels for width in widths],
        blocks=blocks,
        attention=[size >> k for k, first in enumerate(firsts) if f"input_blocks.{first}.1.qkv.weight" in source],
        dropout=0.1,
        embedding=part("PositionalEmbedding", width=channels, shift=0.0, cosines_first=True),
        head_channels=None if channels % HEAD else HEAD,
        scale_shift=scaled,
        symmetric_padding=True,
        eps=1e-5,
    )
    return network, (image, size, size)


def _names(levels: int, blocks: int, attention: list[int], size: int) -> dict[str, str]:
    """Our names and the authors', who number all blocks on the way down, and all on the way up."""
    per_level = blocks + 1
    names: dict[str, str] = {}
    for k in range(levels):
        up = levels - 1 - k
        names |= {f"down.{k}.stages.{i}.": f"input_blocks.{1 + k * per_level + i}." for i in range(blocks)}
        names |= {f"up.{up}.stages.{i}.": f"output_blocks.{up * per_level + i}." for i in range(per_level)}
        names[f"down.{k}.downsample.conv."] = f"input_blocks.{(k + 1) * per_level}.0.op."
        names[f"up.{up}.upsample.conv."] = f"output_blocks.{up * per_level + blocks}.{1 + ((size >> k) in attention)}.conv."
    return {
        **names,
        "conditioning.linear1.": "time_embed.0.",
        "conditioning.linear2.": "time_embed.2.",
        "conditioning.classes.": "label_emb.",
        "conv_in.": "input_blocks.0.0.",
        "norm_out.": "out.0.",
        "conv_out.": "out.2.",
        "middle.0.residual.": "middle_block.0.",
        "middle.0.attention.": "middle_block.1.",
        "middle.1.residual.": "middle_block.2.",
        ".residual.": ".0.",
        ".attention.": ".1.",
        **layers(norm1="in_layers.0", conv1="in_layers.2", shift="emb_layers.1", norm2="out_layers.0", conv2="out_layers.3"),
        **layers(skip="skip_connection", query="qkv", key="qkv", value="qkv", out="proj_out"),
    }


def _take(source: Renaming, ours: str, theirs: str) -> Tensor:
    """A tensor of ours."""
    tensor, layer = source.take(theirs), ours.split(".")[-2]
    if layer == "conv_out":  # z - x_0, not x_0 - z
        return -tensor
    if layer == "classes":  # a further row, for no class
        return torch.cat([tensor, torch.zeros_like(tensor[:1])])
    if layer not in QKV:
        return tensor
    channels = len(tensor) // 3
    heads = 1 if source.state["input_blocks.0.0.weight"].shape[0] % HEAD else channels // HEAD
    return tensor.unflatten(0, (heads, 3, -1))[:, QKV.index(layer)].flatten(0, 1)  # head by head: query, key, value
