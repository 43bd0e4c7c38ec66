"""A model as a folder of diffusers, written without diffusers."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lightning_score.errors import require
from lightning_score.files import replacing
from lightning_score.interop.base import Imported, Settings
from lightning_score.interop.diffusers import PATTERNS, PREDICTIONS, WEIGHTS
from lightning_score.interop.load import make
from lightning_score.interop.unet import translate
from lightning_score.networks import PositionalEmbedding, UNet
from lightning_score.process import BetaChain


def write(folder: Path, model: Imported) -> None:
    """A folder from which diffusers' `DDPMPipeline`, or for DDIM `DDIMPipeline`, loads; it is there whole or not at all.

    Args:
        folder: to be made.
        model: a UNet on a chain, predicting the noise, the denoised image or the velocity, told the index; the scheduler
            takes variance and clipping from its sampler.

    Raises:
        InputError: diffusers has nothing like this model.
    """
    unet, scheduler = _unet(model), _scheduler(model)
    ddim = scheduler["_class_name"] == "DDIMScheduler"
    index = {
        "_class_name": "DDIMPipeline" if ddim else "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    with replacing(folder) as temporary:
        for name, content in [
            ("unet/config.json", unet),
            ("scheduler/scheduler_config.json", scheduler),
            ("model_index.json", index),
        ]:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        weights = model.weights if model.averages is None else model.averages
        state = {translate(name, PATTERNS): tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(state, temporary / "unet" / f"{WEIGHTS}.safetensors", {"format": "pt"})


def _name(settings: Settings) -> str:
    return settings["class_path"].rpartition(".")[2]


def _arguments(settings: Settings | None, kind: type) -> dict[str, Any]:
    """All arguments of a part, defaults included."""
    defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items() if p.default is not p.empty}
    return defaults | ((settings or {}).get("init_args") or {})


def _unet(model: Imported) -> dict[str, Any]:
    """The config of a UNet2DModel."""
    network = model.model["network"]
    require(_name(network) == "UNet", f"network {_name(network)}: diffusers has a UNet2DModel for a UNet only")
    require(
        tuple(model.data_range) == (-1.0, 1.0),
        f"data_range {list(model.data_range)}: diffusers' pipelines take values in [-1, 1] only",
    )
    options = _arguments(network, UNet)
    embedding = options["embedding"] or {"class_path": "PositionalEmbedding", "init_args": {"width": options["channels"]}}
    require(
        _name(embedding) == "PositionalEmbedding", f"embedding {_name(embedding)}: only PositionalEmbedding can be written"
    )
    features = _arguments(embedding, PositionalEmbedding)
    require(
        features["width"] == options["channels"],
        f"embedding width {features['width']}: a UNet2DModel has as many as channels, {options['channels']}",
    )
    heights = [model.shape[1] >> level for level in range(len(options["multipliers"]))]
    attends = ["Attn" if height in options["attention"] else "" for height in heights]
    resnet = options["resample_blocks"]
    down, up = ("ResnetDownsample", "ResnetUpsample") if resnet else ("Down", "Up")
    return {
        "_class_name": "UNet2DModel",
        "sample_size": model.shape[1] if model.shape[1] == model.shape[2] else list(model.shape[1:]),
        "in_channels": model.shape[0],
        "out_channels": model.shape[0],
        "block_out_channels": [options["channels"] * m for m in options["multipliers"]],
        "layers_per_block": options["blocks"],
        "down_block_types": [f"{a}DownBlock2D" if a else f"{down}Block2D" for a in attends],
        "up_block_types": [f"{a}UpBlock2D" if a else f"{up}Block2D" for a in reversed(attends)],
        "downsample_type": "resnet" if resnet else "conv",
        "upsample_type": "resnet" if resnet else "conv",
        "downsample_padding": 1 if options["symmetric_padding"] else 0,
        "dropout": options["dropout"],
        "attention_head_dim": options["head_channels"],
        "norm_num_groups": options["groups"],
        "attn_norm_num_groups": options["groups"],
        "norm_eps": options["eps"],
        "add_attention": options["middle_attention"],
        "resnet_time_scale_shift": "scale_shift" if options["scale_shift"] else "default",
        "freq_shift": features["shift"],
        "flip_sin_to_cos": features["cosines_first"],
        "num_class_embeds": model.num_classes + 1 if model.num_classes else None,
    }


def _scheduler(model: Imported) -> dict[str, Any]:
    """The config of a DDPMScheduler or DDIMScheduler."""
    parametrization, sampler = model.model["parametrization"], model.model["sampler"]
    arguments = parametrization.get("init_args") or {}
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    name, label = _name(parametrization), arguments.get("noise_label")
    require(name in predictions, f"parametrization {name}: diffusers has schedulers for {', '.join(predictions)} only")
    told = label is not None and _name(label) == "Index" and not (label.get("init_args") or {}).get("descending")
    require(
        told and arguments.get("data_std") is None,
        f"parametrization {name}: only one without data_std, whose noise_label is Index, can be written",
    )
    steps = sampler.get("init_args") or {}
    predictor = steps.get("predictor") or {"class_path": ""}
    ddim, large = _name(predictor) == "DDIM", (predictor.get("init_args") or {}).get("fixed_large", False)
    clip = steps.get("clip")
    require(clip is None or clip[0] == -clip[1], f"clip={clip}: diffusers' schedulers clip at two opposite values only")
    return {
        "_class_name": "DDIMScheduler" if ddim else "DDPMScheduler",
        "prediction_type": predictions[name],
        "clip_sample": clip is not None,
        "clip_sample_range": clip[1] if clip else 1.0,
        **_betas(model.model["process"]),
        **({"set_alpha_to_one": True} if ddim else {"variance_type": "fixed_large" if large else "fixed_small"}),
    }


def _betas(settings: Settings) -> Mapping[str, Any]:
    """The chain, by its name where diffusers has one for it."""
    process = make(settings)
    require(
        isinstance(process, BetaChain),
        f"process {_name(settings)}: diffusers' schedulers are discrete chains, such as BetaTable",
    )
    betas = process.betas.tolist()
    shared = {"num_train_timesteps": len(betas)}
    named = {"BetaTable": "linear", "ScaledLinearBetas": "scaled_linear"}.get(_name(settings))
    if named is None:
        return {**shared, "beta_schedule": "linear", "trained_betas": betas}
    ends = _arguments(settings, type(process))
    return {**shared, "beta_schedule": named, "beta_start": ends["beta_min"], "beta_end": ends["beta_max"]}
