"""diffusers' NCSN++: a `UNet2DModel` of Skip blocks with a ScoreSdeVeScheduler, such as google/ncsnpp-ffhq-256."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_score.errors import require
from lightning_score.interop.base import Settings, check_entries, part

LEAST = 128
"""Channels from which on all norms have 32 groups, as ours; below, diffusers groups them in a way of its own."""
BLOCKS = {"SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"}


LAYERS = [
    (r"\.shift\.", ".time_emb_proj."),
    (r"\.skip\.", ".conv_shortcut."),
    (r"\.norm\.", ".group_norm."),
    (r"\.query\.", ".to_q."),
    (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
    (r"\.out\.", ".to_out.0."),
]
"""Our names to diffusers' of the layers within blocks, in whatever network."""


def is_plusplus(config: Mapping[str, Any]) -> bool:
    """Whether a UNet's config is of Skip blocks."""
    return any("Skip" in name for name in config.get("down_block_types", []))


def multiples(widths: Sequence[int]) -> tuple[Any, ...]:
    """The row of `check_entries` for the channels of the levels."""
    return ("block_out_channels", widths, [[w for w in widths if w % widths[0] == 0]], "only multiples of the first")


def attention(downs: Sequence[str], ups: Sequence[str]) -> tuple[Any, ...]:
    """The row of `check_entries` for the levels with attention."""
    found, wanted = (["Attn" in name for name in names] for names in (reversed(ups), downs))
    return ("attention on the way up", found, [wanted], "only at the resolutions at which it is on the way down")


def network_of(config: Mapping[str, Any], height: int) -> Settings:
    """The network that the config describes.

    Raises:
        InputError: NCSN++ does not have an entry.
    """
    downs, ups, widths = config["down_block_types"], config["up_block_types"], config["block_out_channels"]
    attends = ["Attn" in name for name in downs]
    scale = config["mid_block_scale_factor"]
    check_entries(
        [
            (
                "down_block_types and up_block_types except Skip blocks",
                sorted({*downs, *ups} - BLOCKS),
                [[]],
                f"since Skip blocks cannot be combined with others; only {', '.join(sorted(BLOCKS))} can",
            ),
            attention(downs, ups),
            (
                f"block_out_channels below {LEAST}",
                [width for width in widths if width < LEAST],
                [[]],
                "since diffusers normalizes Skip blocks of fewer channels in other groups than NCSN++",
            ),
            multiples(widths),
            ("in_channels and out_channels", [config["in_channels"], config["out_channels"]], [[3, 3]]),
            ("time_embedding_type", config["time_embedding_type"], ["fourier"]),
            ("mid_block_scale_factor", round(scale, 5), [round(2**0.5, 5)]),
            ("norm_num_groups", config["norm_num_groups"], [None, 32]),
            ("attn_norm_num_groups", config["attn_norm_num_groups"], [None]),
            ("norm_eps", config["norm_eps"], [1e-6]),
            ("add_attention", config["add_attention"], [True]),
            ("resnet_time_scale_shift", config["resnet_time_scale_shift"], ["default"]),
            ("act_fn", config["act_fn"], ["silu", "swish"]),
            ("num_class_embeds", config["num_class_embeds"], [None]),
        ]
    )
    return part(
        "NCSNpp",
        channels=widths[0],
        multipliers=[width // widths[0] for width in widths],
        blocks=config["layers_per_block"],
        attention=[height >> level for level, attend in enumerate(attends) if attend],
        dropout=config["dropout"],
        embedding=part("FourierEmbedding", width=2 * widths[0]),
        progressive_input="input_skip",
        progressive="output_skip",
        centered=not config["center_input_sample"],
        head_channels=config["attention_head_dim"],
    )


def patterns(levels: int) -> list[tuple[str, str]]:
    """Our names to diffusers'."""
    down = [(rf"^down\.{k}\.stages\.", f"DOWN.{k + 1}.stages.") for k in range(levels - 1)]
    up = [(rf"^up\.{k}\.resample\.", f"UP.{k - 1}.resnet_up.") for k in range(1, levels)]
    last = [
        (rf"^up\.{levels - 1}\.output\.head\.0\.", "conv_norm_out."),
        (rf"^up\.{levels - 1}\.output\.head\.2\.", "conv_out."),
    ]
    return [
        (r"^conditioning\.embedding\.frequencies$", "time_proj.weight"),
        (r"^conditioning\.linear", "time_embedding.linear_"),
        (r"^first\.", "DOWN.0.stages."),
        *down,
        *up,
        (r"^down\.(\d+)\.resample\.", r"DOWN.\1.resnet_down."),
        (r"^down\.(\d+)\.join\.conv\.", r"DOWN.\1.skip_conv."),
        (r"\.stages\.(\d+)\.residual\.", r".resnets.\1."),
        (r"\.stages\.(\d+)\.attention\.", r".attentions.\1."),
        *last,
        (r"^up\.(\d+)\.output\.head\.0\.", r"UP.\1.skip_norm."),
        (r"^up\.(\d+)\.output\.head\.2\.", r"UP.\1.skip_conv."),
        (r"^up\.(\d+)\.blocks\.", r"UP.\1.resnets."),
        (r"^up\.(\d+)\.attention\.", r"UP.\1.attentions.0."),
        (r"^middle\.(\d)\.residual\.", r"mid_block.resnets.\1."),
        (r"^middle\.0\.attention\.", "mid_block.attentions.0."),
        (r"^DOWN\.", "down_blocks."),
        (r"^UP\.", "up_blocks."),
        *LAYERS,
    ]


def training_of(scheduler: Mapping[str, Any]) -> Settings:
    """Process, parametrization, objective and sampler that belong to a ScoreSdeVeScheduler.

    Raises:
        InputError: another scheduler.
    """
    kind = scheduler.get("_class_name", "ScoreSdeVeScheduler")
    require(kind == "ScoreSdeVeScheduler", f"{kind}: a UNet of Skip blocks is converted with a ScoreSdeVeScheduler only")
    process = part("VE", sigma_min=scheduler.get("sigma_min", 0.01), sigma_max=scheduler.get("sigma_max", 1348.0))
    return {
        "process": process,
        "parametrization": part("ScoreOverSigma", noise_label=part("LogSigma")),
        "objective": part("DenoisingScoreMatching", weighting=part("SigmaSquared"), times=part("UniformTimes", t_min=1e-5)),
        "sampler": part(
            "PredictorCorrector",
            predictor=part("ReverseDiffusion"),
            corrector=part("BatchLangevin", snr=scheduler.get("snr", 0.15)),
            corrector_steps=scheduler.get("correct_steps", 1),
            predict_first=False,
            grid=part(
                "Uniform", steps=scheduler.get("num_train_timesteps", 2000), t_min=scheduler.get("sampling_eps", 1e-5)
            ),
            denoise=part("LastMean"),
        ),
    }
