"""diffusers' NCSN++: a `UNet2DModel` of Skip blocks with a ScoreSdeVeScheduler, such as google/ncsnpp-ffhq-256."""

from collections.abc import Mapping
from typing import Any

from lightning_score.errors import require
from lightning_score.interop.base import Settings, part
from lightning_score.interop.diffusers_config import check, check_levels, levels_of
from lightning_score.interop.names import layers
from lightning_score.interop.training import corrected, ve

LEAST = 128
"""The least channels for which diffusers' Skip blocks have norms of 32 groups, as ours."""
BLOCKS = {"SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"}
ALLOWED: dict[str, list[Any]] = {
    "time_embedding_type": ["fourier"],
    "norm_num_groups": [None, 32],
    "attn_norm_num_groups": [None],
    "norm_eps": [1e-6],
    "add_attention": [True],
    "resnet_time_scale_shift": ["default"],
    "act_fn": ["silu", "swish"],
    "num_class_embeds": [None],
}
LAYERS = layers(
    shift="time_emb_proj", skip="conv_shortcut", norm="group_norm", query="to_q", key="to_k", value="to_v", out="to_out.0"
)
"""Our names to diffusers' of the layers within blocks, in any network."""


def is_plusplus(config: Mapping[str, Any]) -> bool:
    """Whether a UNet's config is of Skip blocks."""
    return any("Skip" in name for name in config["down_block_types"])


def network_of(config: Mapping[str, Any], height: int) -> Settings:
    """The network that the config describes.

    Raises:
        InputError: NCSN++ does not have an entry.
    """
    widths, small = config["block_out_channels"], [w for w in config["block_out_channels"] if w < LEAST]
    check_levels(config, BLOCKS)
    why = "since diffusers normalizes Skip blocks of fewer channels in other groups than NCSN++"
    check(f"block_out_channels below {LEAST}", small, [[]], why)
    check("in_channels and out_channels", [config["in_channels"], config["out_channels"]], [[3, 3]])
    check("mid_block_scale_factor", round(config["mid_block_scale_factor"], 5), [round(2**0.5, 5)])
    for name, allowed in ALLOWED.items():
        check(name, config[name], allowed)
    return part(
        "NCSNpp",
        **levels_of(config, height),
        embedding=part("FourierEmbedding", width=2 * widths[0]),
        progressive_input="input_skip",
        progressive="output_skip",
        centered=not config["center_input_sample"],
    )


def names(levels: int) -> dict[str, str]:
    """Our names to diffusers'."""
    last = f"up.{levels - 1}.output.head"
    return {
        **{f"down.{k}.stages.": f"DOWN.{k + 1}.stages." for k in range(levels - 1)},
        **{f"up.{k}.resample.": f"UP.{k - 1}.resnet_up." for k in range(1, levels)},
        "conditioning.embedding.frequencies": "time_proj.weight",
        "conditioning.linear": "time_embedding.linear_",
        "first.": "DOWN.0.stages.",
        "down.*.resample.": "DOWN.*.resnet_down.",
        "down.*.join.conv.": "DOWN.*.skip_conv.",
        ".stages.*.residual.": ".resnets.*.",
        ".stages.*.attention.": ".attentions.*.",
        f"{last}.0.": "conv_norm_out.",
        f"{last}.2.": "conv_out.",
        "up.*.output.head.0.": "UP.*.skip_norm.",
        "up.*.output.head.2.": "UP.*.skip_conv.",
        "up.*.blocks.": "UP.*.resnets.",
        "up.*.attention.": "UP.*.attentions.0.",
        "middle.*.residual.": "mid_block.resnets.*.",
        "middle.0.attention.": "mid_block.attentions.0.",
        "DOWN.": "down_blocks.",
        "UP.": "up_blocks.",
        **LAYERS,
    }


def training_of(scheduler: Mapping[str, Any]) -> Settings:
    """Process, parametrization, objective and sampler that belong to a ScoreSdeVeScheduler.

    Raises:
        InputError: another scheduler.
    """
    kind = scheduler.get("_class_name", "ScoreSdeVeScheduler")
    require(kind == "ScoreSdeVeScheduler", f"{kind}: a UNet of Skip blocks is converted with a ScoreSdeVeScheduler only")
    steps, t_min = scheduler.get("num_train_timesteps", 2000), scheduler.get("sampling_eps", 1e-5)
    sampler = corrected(
        part("ScoreSDESteps", steps=steps, t_min=t_min), scheduler.get("snr", 0.15), scheduler.get("correct_steps", 1)
    )
    return ve(scheduler.get("sigma_min", 0.01), scheduler.get("sigma_max", 1348.0), sampler)
