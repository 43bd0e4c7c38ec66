"""diffusers' folders of a `UNet2DModel` with a scheduler, read without diffusers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_score.errors import InputError, require
from lightning_score.interop.base import Imported, Renaming, Settings, check_entries, part, read_torch
from lightning_score.interop.diffusers_config import COUNT, DEFAULTS, FITS, check_types
from lightning_score.interop.diffusers_plusplus import (
    LAYERS,
    attention,
    is_plusplus,
    multiples,
    network_of,
    patterns,
    training_of,
)
from lightning_score.interop.sde_training import CENTERED
from lightning_score.interop.unet import Patterns, state_of, translate

KIND = "diffusers"
ABSENT = "no scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model"
PATTERNS = [
    (r"conditioning\.linear", "time_embedding.linear_"),
    (r"conditioning\.classes", "class_embedding"),
    (r"down\.(\d+)\.stages", r"down_blocks.\1.stages"),
    (r"down\.(\d+)\.downsample", r"down_blocks.\1.downsamplers.0"),
    (r"up\.(\d+)\.stages", r"up_blocks.\1.stages"),
    (r"up\.(\d+)\.upsample", r"up_blocks.\1.upsamplers.0"),
    (r"middle\.", "mid_block.stages."),
    (r"stages\.(\d+)\.residual", r"resnets.\1"),
    (r"stages\.(\d+)\.attention", r"attentions.\1"),
    *LAYERS,
    (r"norm_out", "conv_norm_out"),
]
"""Our names to diffusers'."""
OLD_ATTENTION = [*LAYERS[3:6], (r"\.proj_attn\.", ".to_out.0.")]
"""Names of diffusers before 0.17, for example in google/ddpm-cifar10-32, and after."""
UNCONDITIONAL = (
    "the network was not trained without a class, which guidance needs further training for: --model.label_dropout 0.1"
)
BLOCKS = {
    "DownBlock2D",
    "AttnDownBlock2D",
    "ResnetDownsampleBlock2D",
    "UpBlock2D",
    "AttnUpBlock2D",
    "ResnetUpsampleBlock2D",
}
"""The levels that our UNet has."""
PREDICTIONS = {"epsilon": "Noise", "sample": "Denoised", "v_prediction": "Velocity"}

CONSISTENCY = ("LCMScheduler", "TCDScheduler")
"""Schedulers of models that jump to the data at once."""
UNUSUAL = (
    ("rescale_betas_zero_snr", False, "because pure noise has no score of the data"),
    ("thresholding", False, "because samples are clipped at fixed values here"),
    ("timestep_type", "discrete", "because its network is told the noise level, not the index"),
    ("snr_shift_scale", 1.0, "because it changes the noise levels of beta_schedule"),
)
"""Entries of a scheduler that can have their usual value only, and why."""


def read(path: Path, size: int | None = None) -> Imported:
    """A folder of diffusers: a pipeline's, with `unet` and `scheduler`, or that of a UNet2DModel alone.

    Args:
        path: the folder.
        size: height and width of the images; by default `sample_size` of the config.

    Raises:
        InputError: another kind of folder, a network or a scheduler that cannot be converted, or missing or surplus tensors.
    """
    require(path.is_dir(), f"{path}: not a folder; give the one that holds model_index.json or the UNet's config.json")
    folder = path / "unet" if (path / "unet").is_dir() else path
    _check_pipeline(path if folder != path else path.parent)
    config = DEFAULTS | _json(folder / "config.json")
    _check_kind(config)
    shape, weights = _shape(config, size), _weights(folder)
    check_entries(
        [("layers_per_block", config["layers_per_block"], range(1, len(weights.state)), "the file has too few tensors")]
    )
    model, data_range, names, notes = (_plusplus if is_plusplus(config) else _chain)(config, shape, _scheduler(path))
    network, num_classes, averaged = model["network"], config["num_class_embeds"] or 0, path / "unet_ema"
    return Imported(
        model=model,
        shape=shape,
        data_range=data_range,
        num_classes=num_classes,
        weights=state_of(weights, network, shape, num_classes, names),
        averages=state_of(_weights(averaged), network, shape, num_classes, names) if averaged.is_dir() else None,
        notes=notes,
    )


class Kind(NamedTuple):
    """What a folder's config and scheduler say of a kind of network: our parts, and diffusers' names of its tensors."""

    model: Settings
    data_range: tuple[float, float]
    names: Patterns
    notes: tuple[str, ...]


def _chain(config: Mapping[str, Any], shape: Sequence[int], scheduler: Mapping[str, Any] | None) -> Kind:
    """DDPM's U-Net on a discrete chain."""
    notes = (
        []
        if scheduler is not None
        else [
            f"{ABSENT}, so DDPM's chain, predicting the noise: "
            "--model.process CosineTable --model.process.offset 0.008 --model.process.beta_max 0.999"
        ]
    )
    notes += [UNCONDITIONAL] if config["num_class_embeds"] else []
    return Kind({"network": _network(config, shape), **_training(scheduler or {})}, (-1.0, 1.0), PATTERNS, tuple(notes))


def _plusplus(config: Mapping[str, Any], shape: Sequence[int], scheduler: Mapping[str, Any] | None) -> Kind:
    """NCSN++ on VE."""
    notes = [] if scheduler is not None else [f"{ABSENT}, so VE up to sigma = 1348: --model.process.sigma_max 348"]
    notes.append(CENTERED)
    model = {"network": network_of(config, shape[1]), **training_of(scheduler or {})}
    return Kind(model, (0.0, 1.0), patterns(len(config["block_out_channels"])), tuple(notes))


def _json(path: Path) -> dict[str, Any]:
    require(path.is_file(), f"{path}: there is no such file, which a folder of diffusers holds")
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error
    require(isinstance(read, dict), f"{path}: not a JSON object")
    check_types(path, read)
    return read


def _shape(config: Mapping[str, Any], size: int | None) -> tuple[int, int, int]:
    sample = size or config.get("sample_size")
    require(sample is not None, "the config has no sample_size; say the height and width of the images: --size 32")
    height, width = sizes = sample if isinstance(sample, list) and len(sample) == 2 else (sample, sample)
    require(
        all(map(FITS[COUNT], sizes)), f"sample_size: {json.dumps(sample)}; must be {COUNT}, or two; say it with --size 32"
    )
    return config.get("in_channels", 3), height, width


def _network(config: Mapping[str, Any], shape: Sequence[int]) -> Settings:
    """The network that the config describes.

    Raises:
        InputError: an entry that our UNet has nothing for.
    """
    _check_unet(config)
    downs, widths = config["down_block_types"], config["block_out_channels"]
    return part(
        "UNet",
        channels=widths[0],
        multipliers=[width // widths[0] for width in widths],
        blocks=config["layers_per_block"],
        attention=[shape[1] >> level for level, name in enumerate(downs) if "Attn" in name],
        dropout=config["dropout"],
        groups=config["norm_num_groups"],
        embedding=part(
            "PositionalEmbedding", width=widths[0], shift=config["freq_shift"], cosines_first=config["flip_sin_to_cos"]
        ),
        head_channels=config["attention_head_dim"],
        middle_attention=config["add_attention"],
        scale_shift=config["resnet_time_scale_shift"] == "scale_shift",
        resample_blocks=True in _resampling(config),
        symmetric_padding=config["downsample_padding"] == 1,
        eps=config["norm_eps"],
    )


def _resampling(config: Mapping[str, Any]) -> list[bool]:
    """Whether levels change the resolution inside residual blocks: all answers there are."""
    levels = [(name, config.get("downsample_type")) for name in config["down_block_types"][:-1]]
    levels += [(name, config.get("upsample_type")) for name in config["up_block_types"][:-1]]
    return sorted({name.startswith("Resnet") or ("Attn" in name and kind == "resnet") for name, kind in levels})


def _check_pipeline(folder: Path) -> None:
    """Raises `InputError` for a pipeline whose network sees no images, but what another one has encoded."""
    index = folder / "model_index.json"
    encoders = sorted({"vae", "vqvae", "movq"} & _json(index).keys()) if index.is_file() else []
    require(not encoders, f"{index}: the UNet works on latents of its {' and '.join(encoders)}, which cannot be converted")


def _check_kind(config: Mapping[str, Any]) -> None:
    """Raises `InputError` for another network than a UNet2DModel, or one without its main entries."""
    kind = config.get("_class_name", "UNet2DModel")
    require(kind == "UNet2DModel", f"{kind}: only a UNet2DModel can be converted")
    for entry in ("down_block_types", "up_block_types", "block_out_channels", "in_channels", "out_channels"):
        require(entry in config, f"the UNet's config.json has no {entry}")


def _check_unet(config: Mapping[str, Any]) -> None:
    """Raises `InputError` for an entry that our UNet does not have."""
    downs, ups, widths = config["down_block_types"], config["up_block_types"], config["block_out_channels"]
    plain_norm = config["norm_num_groups"], *([None] if config["resnet_time_scale_shift"] == "default" else [])
    check_entries(
        [
            (
                "down_block_types and up_block_types",
                sorted({*downs, *ups} - BLOCKS),
                [[]],
                f"only {', '.join(sorted(BLOCKS))}, or Skip blocks alone",
            ),
            attention(downs, ups),
            (
                "residual blocks that change the resolution",
                _resampling(config),
                [[], [False], [True]],
                "only in all levels or in none (downsample_type and upsample_type)",
            ),
            multiples(widths),
            ("out_channels", config["out_channels"], [config["in_channels"]]),
            ("center_input_sample", config["center_input_sample"], [False]),
            ("time_embedding_type", config["time_embedding_type"], ["positional"]),
            ("time_embedding_dim", config["time_embedding_dim"], [None, 4 * widths[0]]),
            ("mid_block_type", config["mid_block_type"], ["UNetMidBlock2D"]),
            ("mid_block_scale_factor", config["mid_block_scale_factor"], [1]),
            ("downsample_padding", config["downsample_padding"], [0, 1]),
            ("act_fn", config["act_fn"], ["silu", "swish"]),
            ("resnet_time_scale_shift", config["resnet_time_scale_shift"], ["default", "scale_shift"]),
            ("attn_norm_num_groups", config["attn_norm_num_groups"], plain_norm),
            ("norm_num_groups", config["norm_num_groups"] is None, [False], "it must be a positive integer for such blocks"),
            ("class_embed_type", config["class_embed_type"], [None]),
        ]
    )


def _weights(folder: Path) -> Renaming:
    """The tensors in a folder, from one file or from several with an index, in single precision."""
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_json(index)["weight_map"].values()))
        require(all(Path(name).name == name for name in names), f"{index}: names files of other folders")
        files = [folder / name for name in names]
    else:
        found = [*folder.glob(f"{WEIGHTS}*.safetensors"), *folder.glob(f"{WEIGHTS}*.bin")]
        files = sorted(found, key=lambda f: (f.name.count("."), f.suffix == ".bin", f.name))[:1]  # variants, as .fp16, last
    require(bool(files), f"{folder}: there is no {WEIGHTS}.safetensors or .bin in it")
    state = {name: tensor.float() for file in files for name, tensor in read_torch(file).items()}
    return Renaming({translate(name, OLD_ATTENTION): tensor for name, tensor in state.items()}, KIND)


def _scheduler(path: Path) -> dict[str, Any] | None:
    """The scheduler's config; None where there is none."""
    folders = [path / "scheduler", path, path.parent / "scheduler"]  # the last where the path is that of a pipeline's UNet
    files = [folder / "scheduler_config.json" for folder in folders]
    return next((_json(file) for file in files if file.is_file()), None)


def _training(scheduler: Mapping[str, Any]) -> Settings:
    """Process, parametrization, objective and sampler that belong to a scheduler."""
    kind = scheduler.get("_class_name", "DDPMScheduler")
    require(
        kind == "DDPMScheduler" or ("beta_schedule" in scheduler and kind not in CONSISTENCY),
        f"{kind}: only schedulers with a beta_schedule, of models that predict noise, data or velocity, can be converted",
    )
    check_entries((name, scheduler.get(name) or usual, [usual], why) for name, usual, why in UNUSUAL)
    prediction = scheduler.get("prediction_type", "epsilon")
    require(prediction in PREDICTIONS, f"prediction_type: {prediction!r} cannot be converted, only {', '.join(PREDICTIONS)}")
    clip = float(scheduler.get("clip_sample_range", 1.0))
    ddim = kind.startswith("DDIM")
    variance = scheduler.get("variance_type") or "fixed_small"
    require(
        variance.startswith("fixed_"), f"variance_type: {variance!r} cannot be converted, only fixed_small and fixed_large"
    )
    fixed_large = variance.startswith("fixed_large")
    return {
        "process": _process(scheduler),
        "parametrization": part(PREDICTIONS[prediction], noise_label=part("Index")),
        "objective": part("DenoisingScoreMatching", weighting=part("SigmaSquared"), times=part("TableTimes"), mean=True),
        "sampler": part(
            "PredictorCorrector",
            predictor=part("DDIM") if ddim else part("Ancestral", fixed_large=fixed_large),
            grid=part("ProcessTable", steps=50) if ddim else part("ProcessTable"),
            clip=[-clip, clip] if scheduler.get("clip_sample", True) else None,
        ),
    }


def _process(scheduler: Mapping[str, Any]) -> Settings:
    schedule, steps = scheduler.get("beta_schedule", "linear"), scheduler.get("num_train_timesteps") or 1000
    ends = {"beta_min": scheduler.get("beta_start", 1e-4), "beta_max": scheduler.get("beta_end", 0.02)}
    if scheduler.get("trained_betas") is not None:
        return part("BetaChain", betas=list(map(float, scheduler["trained_betas"])))
    processes = {
        "linear": part("BetaTable", **ends, steps=steps),
        "scaled_linear": part("ScaledLinearBetas", **ends, steps=steps),
        "squaredcos_cap_v2": part("CosineTable", steps=steps),
    }
    require(schedule in processes, f"beta_schedule: {schedule!r} cannot be converted, only {', '.join(processes)}")
    return processes[schedule]
