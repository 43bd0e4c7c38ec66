"""What the entries of diffusers' configs may be."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_score.errors import require

COUNT, NUMBER, NAMES = "a positive integer", "a number", "a list of names"
FITS = {
    COUNT: lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0,
    NUMBER: lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    NAMES: lambda v: isinstance(v, list) and len(v) > 0 and all(isinstance(name, str) for name in v),
    "a name": lambda v: isinstance(v, str),
    "true or false": lambda v: isinstance(v, bool),
    "a list of positive integers": lambda v: isinstance(v, list) and len(v) > 0 and all(map(FITS[COUNT], v)),
    "a list of numbers": lambda v: isinstance(v, list) and len(v) > 0 and all(map(FITS[NUMBER], v)),
}
"""What an entry of a config may be, in words."""
TYPES = {
    "a list of positive integers": ["block_out_channels"],
    NAMES: ["down_block_types", "up_block_types"],
    COUNT: ["in_channels", "out_channels", "layers_per_block"],
    f"{COUNT} or null": ["attention_head_dim", "norm_num_groups", "num_class_embeds", "num_train_timesteps"],
    NUMBER: ["dropout", "freq_shift", "norm_eps", "beta_start", "beta_end", "mid_block_scale_factor", "clip_sample_range"],
    "a name": ["_class_name", "beta_schedule", "prediction_type"],
    "a name or null": ["variance_type"],
    "true or false": ["add_attention", "clip_sample", "flip_sin_to_cos", "rescale_betas_zero_snr"],
    "a list of numbers or null": ["trained_betas"],
}
"""The entries of each kind."""
DEFAULTS = {
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
"""What UNet2DModel takes for entries that its config lacks."""


def check_types(path: Path, config: Mapping[str, Any]) -> None:
    """Raises `InputError` for an entry of another kind, naming it."""
    for words, names in TYPES.items():
        kind, null = words.removesuffix(" or null"), words.endswith(" or null")
        for name in names:
            fits = name not in config or FITS[kind](config[name]) or (null and config[name] is None)
            require(fits, f"{path}: {name}: {json.dumps(config.get(name))}; must be {words}")
