"""diffusers' folders of a `UNet2DModel` with a scheduler, read without diffusers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.interop import diffusers_plusplus as plusplus
from lightning_score.interop.base import Imported, Renaming, Settings, Shape, part, read_torch
from lightning_score.interop.diffusers_config import COUNT, DEFAULTS, FITS, check, check_levels, levels_of, read_json
from lightning_score.interop.names import Network, imported, layers, translate
from lightning_score.interop.sde_training import CENTERED
from lightning_score.interop.training import chain, sampler

KIND = "diffusers"
WEIGHTS = "diffusion_pytorch_model"
PATTERNS = {
    "conditioning.linear": "time_embedding.linear_",
    "conditioning.classes.": "class_embedding.",
    "down.*.downsample.": "down_blocks.*.downsamplers.0.",
    "up.*.upsample.": "up_blocks.*.upsamplers.0.",
    "down.": "down_blocks.",
    "up.": "up_blocks.",
    "middle.": "mid_block.stages.",
    ".stages.*.residual.": ".resnets.*.",
    ".stages.*.attention.": ".attentions.*.",
    "norm_out.": "conv_norm_out.",
    **plusplus.LAYERS,
}
"""Our names to diffusers'."""
OLD_ATTENTION = layers(query="to_q", key="to_k", value="to_v", proj_attn="to_out.0")
"""Names of diffusers before 0.17, for example in google/ddpm-cifar10-32, and after."""
UNCONDITIONAL = (
    "the network was not trained without a class, which guidance needs further training for: --model.label_dropout 0.1"
)
BLOCKS = {f"{kind}Block2D" for kind in ("Down", "AttnDown", "ResnetDownsample", "Up", "AttnUp", "ResnetUpsample")}
"""The levels of our UNet."""
PREDICTIONS = {"epsilon": "Noise", "sample": "Denoised", "v_prediction": "Velocity"}
CONSISTENCY = ("LCMScheduler", "TCDScheduler")
"""Schedulers of models that jump to the data at once."""
UNUSUAL = (
    ("thresholding", False, "because samples are clipped at fixed values here"),
    ("timestep_type", "discrete", "because the input of its network is the noise level, not the index"),
    ("snr_shift_scale", 1.0, "because it changes the noise levels of beta_schedule"),
)
"""Entries of a scheduler that can have their usual value only, and why."""


def read(path: Path, size: int | None = None) -> Imported:
    """A folder of diffusers: a pipeline's, with `unet` and `scheduler`, or that of a UNet2DModel alone.

    Args:
        path: the folder.
        size: height and width of the images; by default `sample_size` of the config.

    Raises:
        InputError: another kind of folder, a network or a scheduler that cannot be converted, or missing or unused tensors.
    """
    require(path.is_dir(), f"{path}: not a folder; give the one that holds model_index.json or the UNet's config.json")
    folder = path / "unet" if (path / "unet").is_dir() else path
    _check_pipeline(path if folder != path else path.parent)
    config = DEFAULTS | read_json(folder / "config.json")
    kind = config.get("_class_name", "UNet2DModel")
    require(kind == "UNet2DModel", f"{kind}: only a UNet2DModel can be converted")
    for entry in ("down_block_types", "up_block_types", "block_out_channels", "in_channels", "out_channels"):
        require(entry in config, f"the UNet's config.json has no {entry}")
    shape, weights, scheduler = _shape(config, size), _weights(folder), _scheduler(path)
    blocks = config["layers_per_block"]
    check("layers_per_block", blocks, range(1, len(weights.state)), "the file has too few tensors")
    names = PATTERNS
    if plusplus.is_plusplus(config):
        network, names = plusplus.network_of(config, shape[1]), plusplus.names(len(config["block_out_channels"]))
        training, data_range = plusplus.training_of(scheduler or {}), (0.0, 1.0)
        absent, other = "VE up to sigma = 1348", "--model.process.sigma_max 348"
        notes = [CENTERED]
    else:
        network, training, data_range = _network(config, shape[1]), _training(scheduler or {}), (-1.0, 1.0)
        absent = "DDPM's chain, predicting the noise"
        other = "--model.process CosineTable --model.process.offset 0.008 --model.process.beta_max 0.999"
        notes = [UNCONDITIONAL] if config["num_class_embeds"] else []
    if scheduler is None:
        notes.insert(0, f"no scheduler_config.json, so {absent}: {other}")
    averages = _weights(path / "unet_ema") if (path / "unet_ema").is_dir() else None
    found = Network(network, shape, names, _take, config["num_class_embeds"] or 0)
    return imported(found, weights, averages, training, data_range, notes)


def _take(source: Renaming, ours: str, theirs: str) -> Tensor:
    """A tensor of ours; the class embedding has a further row, for no class."""
    tensor = source.take(theirs)
    return torch.cat([tensor, torch.zeros_like(tensor[:1])]) if ours == "conditioning.classes.weight" else tensor


def _shape(config: Mapping[str, Any], size: int | None) -> Shape:
    sample = size or config.get("sample_size")
    sizes = sample if isinstance(sample, list) and len(sample) == 2 else [sample, sample]
    fits = all(map(FITS[COUNT], sizes))
    require(fits, f"sample_size: {json.dumps(sample)}; must be {COUNT}, or two; give it with --size 32")
    height, width = map(int, sizes)
    return config["in_channels"], height, width


def _check_pipeline(folder: Path) -> None:
    """Raises `InputError` for a pipeline whose network works on an encoding of the images."""
    index = folder / "model_index.json"
    encoders = sorted({"vae", "vqvae", "movq"} & read_json(index).keys()) if index.is_file() else []
    require(not encoders, f"{index}: the UNet works on latents of its {' and '.join(encoders)}, which cannot be converted")


def _network(config: Mapping[str, Any], height: int) -> Settings:
    """The network that the config describes.

    Raises:
        InputError: our UNet does not have an entry.
    """
    check_levels(config, BLOCKS)
    resampling = _resampling(config)
    why = "only in all levels or in none (downsample_type and upsample_type)"
    check("residual blocks that change the resolution", resampling, [[], [False], [True]], why)
    width, groups = config["block_out_channels"][0], config["norm_num_groups"]
    plain_norm = [groups, *([None] if config["resnet_time_scale_shift"] == "default" else [])]
    check("norm_num_groups", groups is None, [False], "it must be a positive integer for such blocks")
    for name, allowed in {
        "out_channels": [config["in_channels"]],
        "center_input_sample": [False],
        "time_embedding_type": ["positional"],
        "time_embedding_dim": [None, 4 * width],
        "mid_block_type": ["UNetMidBlock2D"],
        "mid_block_scale_factor": [1],
        "downsample_padding": [0, 1],
        "act_fn": ["silu", "swish"],
        "resnet_time_scale_shift": ["default", "scale_shift"],
        "attn_norm_num_groups": plain_norm,
        "class_embed_type": [None],
    }.items():
        check(name, config[name], allowed)
    embedding = part("PositionalEmbedding", width=width, shift=config["freq_shift"], cosines_first=config["flip_sin_to_cos"])
    return part(
        "UNet",
        **levels_of(config, height),
        groups=groups,
        embedding=embedding,
        middle_attention=config["add_attention"],
        scale_shift=config["resnet_time_scale_shift"] == "scale_shift",
        resample_blocks=True in resampling,
        symmetric_padding=config["downsample_padding"] == 1,
        eps=config["norm_eps"],
    )


def _resampling(config: Mapping[str, Any]) -> list[bool]:
    """Whether levels change the resolution inside residual blocks: all answers there are."""
    levels = [(name, config.get("downsample_type")) for name in config["down_block_types"][:-1]]
    levels += [(name, config.get("upsample_type")) for name in config["up_block_types"][:-1]]
    return sorted({name.startswith("Resnet") or ("Attn" in name and kind == "resnet") for name, kind in levels})


def _weights(folder: Path) -> Renaming:
    """The tensors in a folder, from one file or from several with an index."""
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index)["weight_map"].values()))
        require(all(Path(name).name == name for name in names), f"{index}: names files of other folders")
        files = [folder / name for name in names]
    else:
        found = [*folder.glob(f"{WEIGHTS}*.safetensors"), *folder.glob(f"{WEIGHTS}*.bin")]
        files = sorted(found, key=lambda f: (f.name.count("."), f.suffix == ".bin", f.name))[:1]  # variants, as .fp16, last
    require(bool(files), f"{folder}: there is no {WEIGHTS}.safetensors or .bin in it")
    state = {translate(name, OLD_ATTENTION): tensor for file in files for name, tensor in read_torch(file).items()}
    return Renaming(state, KIND)


def _scheduler(path: Path) -> dict[str, Any] | None:
    """The scheduler's config; None if there is none."""
    folders = [path / "scheduler", path, path.parent / "scheduler"]  # the last for the UNet's folder in a pipeline's
    files = [folder / "scheduler_config.json" for folder in folders]
    return next((read_json(file) for file in files if file.is_file()), None)


def _training(scheduler: Mapping[str, Any]) -> Settings:
    """Process, parametrization, objective and sampler that belong to a scheduler."""
    kind = scheduler.get("_class_name", "DDPMScheduler")
    require(
        kind == "DDPMScheduler" or ("beta_schedule" in scheduler and kind not in CONSISTENCY),
        f"{kind}: only schedulers with a beta_schedule, of models that predict noise, data or velocity, can be converted",
    )
    for name, usual, why in UNUSUAL:
        check(name, scheduler.get(name) or usual, [usual], why)
    prediction, variance = scheduler.get("prediction_type", "epsilon"), scheduler.get("variance_type") or "fixed_small"
    check("prediction_type", prediction, list(PREDICTIONS))
    to_noise, why = scheduler.get("rescale_betas_zero_snr") or False, "because noise alone holds nothing of the data"
    check("rescale_betas_zero_snr", to_noise, [False, prediction != "epsilon"], f"with prediction_type epsilon, {why}")
    check("variance_type", variance, ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"])
    clip = float(scheduler.get("clip_sample_range", 1.0))
    clipping = {"clip": [-clip, clip] if scheduler.get("clip_sample", True) else None}
    if kind.startswith("DDIM"):
        steps = sampler(part("DDIM"), part("ProcessTable", steps=50), **clipping)
    else:
        predictor = part("Ancestral", fixed_large=variance.startswith("fixed_large"))
        steps = sampler(predictor, part("ProcessTable"), **clipping)
    return chain(_process(scheduler), steps, PREDICTIONS[prediction])


def _process(scheduler: Mapping[str, Any]) -> Settings:
    schedule, steps = scheduler.get("beta_schedule", "linear"), scheduler.get("num_train_timesteps") or 1000
    ends = {"beta_min": scheduler.get("beta_start", 1e-4), "beta_max": scheduler.get("beta_end", 0.02)}
    to_noise = {"zero_snr": True} if scheduler.get("rescale_betas_zero_snr") else {}
    if scheduler.get("trained_betas") is not None:
        return part("BetaChain", betas=list(map(float, scheduler["trained_betas"])), **to_noise)
    processes = {
        "linear": part("BetaTable", **ends, steps=steps, **to_noise),
        "scaled_linear": part("ScaledLinearBetas", **ends, steps=steps, **to_noise),
        "squaredcos_cap_v2": part("CosineTable", steps=steps, **to_noise),
    }
    check("beta_schedule", schedule, list(processes))
    return processes[schedule]
