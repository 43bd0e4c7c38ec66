"""The entries of diffusers' configs: their types, their defaults, and the values that can be converted."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_score.errors import InputError, require

COUNT, NUMBER, NAME = "a positive integer", "a number", "a name"
FITS: dict[str, Callable[[Any], bool]] = {
    COUNT: lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0,
    NUMBER: lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    NAME: lambda v: isinstance(v, str),
    "true or false": lambda v: isinstance(v, bool),
    "a list of positive integers": lambda v: _is_list(v, COUNT),
    "a list of numbers": lambda v: _is_list(v, NUMBER),
    "a list of names": lambda v: _is_list(v, NAME),
}
"""The possible types of an entry, in words."""
TYPES = {
    "a list of positive integers": ["block_out_channels"],
    "a list of names": ["down_block_types", "up_block_types"],
    COUNT: ["in_channels", "out_channels", "layers_per_block"],
    f"{COUNT} or null": ["attention_head_dim", "norm_num_groups", "num_class_embeds", "num_train_timesteps"],
    NUMBER: ["dropout", "freq_shift", "norm_eps", "beta_start", "beta_end", "mid_block_scale_factor", "clip_sample_range"],
    NAME: ["_class_name", "beta_schedule", "prediction_type"],
    f"{NAME} or null": ["variance_type"],
    "true or false": ["add_attention", "clip_sample", "flip_sin_to_cos", "rescale_betas_zero_snr"],
    "a list of numbers or null": ["trained_betas"],
}
"""The entries of each type."""
DEFAULTS: dict[str, Any] = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "mid_block_type": "UNetMidBlock2D",
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
"""UNet2DModel's values for entries that its config lacks."""


def _is_list(value: Any, words: str) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(FITS[words], value))


def read_json(path: Path) -> dict[str, Any]:
    """The content of a config.

    Raises:
        InputError: there is none, it is not a JSON object, or an entry has another type.
    """
    require(path.is_file(), f"{path}: there is no such file in the folder of diffusers")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error
    require(isinstance(config, dict), f"{path}: not a JSON object")
    for words, names in TYPES.items():
        kind, null = words.removesuffix(" or null"), words.endswith(" or null")
        for name in names:
            fits = name not in config or FITS[kind](config[name]) or (null and config[name] is None)
            require(fits, f"{path}: {name}: {json.dumps(config.get(name))}; must be {words}")
    return config


def check(name: str, value: Any, allowed: Sequence[Any], why: str = "") -> None:
    """Raises `InputError` for an entry of a config whose value cannot be converted.

    Args:
        name: of the entry.
        value: its value.
        allowed: the values that can be converted.
        why: the reason, or what can be converted in words; by default the allowed values.
    """
    why = why or f"only {' or '.join(map(json.dumps, allowed))}"
    require(value in allowed, f"{name}: {json.dumps(value)} cannot be converted, {why}")


def check_levels(config: Mapping[str, Any], blocks: set[str]) -> None:
    """Raises `InputError` for levels that our networks do not have.

    Args:
        config: of a UNet2DModel.
        blocks: the types of the levels that can be combined.
    """
    downs, ups, widths = config["down_block_types"], config["up_block_types"], config["block_out_channels"]
    others = sorted({*downs, *ups} - blocks)
    check("down_block_types and up_block_types", others, [[]], f"only {', '.join(sorted(blocks))} can be combined")
    found, wanted = (["Attn" in name for name in names] for names in (reversed(ups), downs))
    check("attention on the way up", found, [wanted], "only at the resolutions at which it is on the way down")
    multiples = [width for width in widths if width % widths[0] == 0]
    check("block_out_channels", widths, [multiples], "only multiples of the first")


def levels_of(config: Mapping[str, Any], height: int) -> dict[str, Any]:
    """The arguments of our networks that the levels of a config determine."""
    widths, downs = config["block_out_channels"], config["down_block_types"]
    return {
        "channels": widths[0],
        "multipliers": [width // widths[0] for width in widths],
        "blocks": config["layers_per_block"],
        "attention": [height >> level for level, name in enumerate(downs) if "Attn" in name],
        "dropout": config["dropout"],
        "head_channels": config["attention_head_dim"],
    }
