"""A model as a folder of diffusers, written without diffusers."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lightning_score.errors import require
from lightning_score.files import replacing
from lightning_score.interop.base import Imported, Settings, part
from lightning_score.interop.diffusers import PATTERNS, PREDICTIONS, WEIGHTS
from lightning_score.interop.load import make
from lightning_score.interop.names import translate
from lightning_score.networks import PositionalEmbedding, UNet
from lightning_score.process import BetaChain


def write(folder: Path, model: Imported) -> None:
    """Writes a folder for diffusers' `DDPMPipeline`, or for DDIM `DDIMPipeline`, atomically.

    Args:
        folder: to be made.
        model: a UNet on a chain, predicting the noise, the denoised image or the velocity, with the index as its noise
            label; the scheduler gets variance and clipping from its sampler.

    Raises:
        InputError: diffusers has nothing like this model.
    """
    unet, scheduler = _unet(model), _scheduler(model)
    kind = scheduler["_class_name"]
    index = {
        "_class_name": kind.replace("Scheduler", "Pipeline"),
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", kind],
    }
    files = {"unet/config.json": unet, "scheduler/scheduler_config.json": scheduler, "model_index.json": index}
    weights = model.weights if model.averages is None else model.averages
    state = {translate(name, PATTERNS): tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with replacing(folder) as temporary:
        for name, content in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        save_file(state, temporary / "unet" / f"{WEIGHTS}.safetensors", {"format": "pt"})


def _name(settings: Settings) -> str:
    return settings["class_path"].rpartition(".")[2]


def _arguments(settings: Settings, kind: type) -> dict[str, Any]:
    """All arguments of a part, defaults included."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    return defaults | (settings.get("init_args") or {})


def _unet(model: Imported) -> dict[str, Any]:
    """The config of a UNet2DModel."""
    network, low, high = model.model["network"], *model.data_range
    require(_name(network) == "UNet", f"network {_name(network)}: diffusers has a UNet2DModel for a UNet only")
    require((low, high) == (-1.0, 1.0), f"data_range [{low}, {high}]: diffusers' pipelines take values in [-1, 1] only")
    options = _arguments(network, UNet)
    require(
        options["periodic"] in (False, [False, False]), "periodic: a UNet2DModel has zeros outside; it cannot be written"
    )
    channels, groups, resnet = options["channels"], options["groups"], options["resample_blocks"]
    embedding = options["embedding"] or part("PositionalEmbedding", width=channels)
    kind = _name(embedding)
    require(kind == "PositionalEmbedding", f"embedding {kind}: only PositionalEmbedding can be written")
    features = _arguments(embedding, PositionalEmbedding)
    width = features["width"]
    require(width == channels, f"embedding width {width}: a UNet2DModel has as many as channels, {channels}")
    height = model.shape[1]
    attends = [(height >> level) in options["attention"] for level in range(len(options["multipliers"]))]
    down, up = ("ResnetDownsample", "ResnetUpsample") if resnet else ("Down", "Up")
    return {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == model.shape[2] else list(model.shape[1:]),
        "in_channels": model.shape[0],
        "out_channels": model.shape[0],
        "block_out_channels": [channels * m for m in options["multipliers"]],
        "layers_per_block": options["blocks"],
        "down_block_types": [f"{'AttnDown' if attend else down}Block2D" for attend in attends],
        "up_block_types": [f"{'AttnUp' if attend else up}Block2D" for attend in reversed(attends)],
        "downsample_type": "resnet" if resnet else "conv",
        "upsample_type": "resnet" if resnet else "conv",
        "downsample_padding": 1 if options["symmetric_padding"] else 0,
        "dropout": options["dropout"],
        "attention_head_dim": options["head_channels"],
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups,
        "norm_eps": options["eps"],
        "add_attention": options["middle_attention"],
        "resnet_time_scale_shift": "scale_shift" if options["scale_shift"] else "default",
        "freq_shift": features["shift"],
        "flip_sin_to_cos": features["cosines_first"],
        "num_class_embeds": model.num_classes + 1 if model.num_classes else None,
    }


def _scheduler(model: Imported) -> dict[str, Any]:
    """The config of a DDPMScheduler or DDIMScheduler."""
    parametrization, sampler = model.model["parametrization"], model.model["sampler"].get("init_args") or {}
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    name, arguments = _name(parametrization), parametrization.get("init_args") or {}
    require(name in predictions, f"parametrization {name}: diffusers has schedulers for {', '.join(predictions)} only")
    label = arguments.get("noise_label") or part("")
    indexed = _name(label) == "Index" and not (label.get("init_args") or {}).get("descending")
    require(
        indexed and arguments.get("data_std") is None,
        f"parametrization {name}: only one without data_std, whose noise_label is Index, can be written",
    )
    predictor, clip = sampler.get("predictor") or part(""), sampler.get("clip")
    require(clip is None or clip[0] == -clip[1], f"clip={clip}: diffusers' schedulers clip at two opposite values only")
    settings = {
        "_class_name": "DDPMScheduler",
        "prediction_type": predictions[name],
        "clip_sample": clip is not None,
        "clip_sample_range": clip[1] if clip else 1.0,
        **_betas(model.model["process"]),
    }
    if _name(predictor) == "DDIM":
        return settings | {"_class_name": "DDIMScheduler", "set_alpha_to_one": True}
    large = (predictor.get("init_args") or {}).get("fixed_large", False)
    return settings | {"variance_type": "fixed_large" if large else "fixed_small"}


def _betas(settings: Settings) -> Mapping[str, Any]:
    """The chain, by its name if diffusers has one for it."""
    process, name = make(settings), _name(settings)
    require(isinstance(process, BetaChain), f"process {name}: diffusers' schedulers are discrete chains, such as BetaTable")
    betas = process.betas.tolist()
    shared: dict[str, Any] = {"num_train_timesteps": len(betas)}
    named = {"BetaTable": "linear", "ScaledLinearBetas": "scaled_linear"}.get(name)
    if named is None:
        return {**shared, "beta_schedule": "linear", "trained_betas": betas}
    ends = _arguments(settings, type(process))
    linear = {"beta_schedule": named, "beta_start": ends["beta_min"], "beta_end": ends["beta_max"]}
    return {**shared, **linear, "rescale_betas_zero_snr": ends["zero_snr"]}
