"""EDM's network weights (github.com/NVlabs/edm): DDPM++ and NCSN++ under EDM's preconditioning, or that of VP or VE."""

import re
from pathlib import Path

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.interop.base import Imported, Renaming, Settings, describe, is_state, part, read_torch

KIND = "edm"
EXTRACT = (
    "EDM's pickles hold code. Take the tensors out, once, in a place where that code may run, the root of its repository: "
    "python -c \"import pickle, torch; net = pickle.load(open('network.pkl', 'rb'))['ema']; print(type(net).__name__); "
    "torch.save(net.state_dict(), 'network.pt')\", then convert network.pt, with --precond vp if the name printed is "
    "VPPrecond, and with --precond ve if it is VEPrecond"
)
FILTERS = {2: False, 4: True}
"""Whether a filter of that many taps is [1, 3, 3, 1]; that of two is the mean."""


def read(path: Path, size: int | None = None, precond: str | None = None) -> Imported:
    """Network weights of EDM: the state dict of a preconditioned `SongUNet`, or of that network alone.

    Args:
        path: a file of tensors; the authors' pickles are refused with the one line that makes one of them.
        size: taken from the file; if given it must be the same.
        precond: how the network was trained: edm, which is the default, vp or ve.

    Raises:
        InputError: a pickle, another kind of file, or one that lacks tensors or holds others than the network's.
    """
    require(path.suffix != ".pkl" or not path.is_file(), f"{path}: not read, because a pickle can run any code. {EXTRACT}")
    state = read_torch(path, refused=EXTRACT)
    require(is_state(state), f"{path}: {describe(state)}, not tensors by name. {EXTRACT}")
    source = Renaming({name.removeprefix("model."): tensor for name, tensor in state.items()}, KIND)
    _refuse_other_networks(source)
    resolutions = _resolutions(source)
    require(
        size in (None, resolutions[0]),
        f"size={size}: the file is of a network for images of {resolutions[0]} x {resolutions[0]} pixels; leave --size out",
    )
    network = _network(source, resolutions, _fir(source))
    image = source.state[f"enc.{_at(resolutions[0])}_conv.weight"].shape[1]
    classes = source.state["map_label.weight"].shape[1] if "map_label.weight" in source else 0
    return Imported(
        model={"network": network, **_training(precond or "edm", resolutions[0], network["init_args"]["augmentations"])},
        shape=(image, *[resolutions[0]] * 2),
        data_range=(-1.0, 1.0),
        num_classes=classes,
        weights=_rename(source, network["init_args"], resolutions, classes),
        notes=(
            *_notes(precond),
            "dropout of 0.13 in further training, as published for CIFAR-10: --model.network.dropout 0.13",
        ),
    )


def _notes(precond: str | None) -> tuple[str, ...]:
    """What was assumed of the preconditioning."""
    data_std = "EDM's preconditioning for data of standard deviation 0.5: --model.parametrization.data_std 0.5"
    if precond is None:
        return (
            "an EDMPrecond, as the published edm-* models; files of a VPPrecond or VEPrecond, as the baseline-* models, "
            "look alike: --precond vp or --precond ve",
            data_std,
        )
    return {
        "edm": (data_std,),
        "vp": (
            "beta runs from 0.1 to 20, as in all published models: --model.process.beta_min 0.1 --model.process.beta_max 20",
        ),
        "ve": (
            "sigma runs from 0.02 to 100, as in all published models: "
            "--model.process.sigma_min 0.02 --model.process.sigma_max 100",
        ),
    }[precond]


def _refuse_other_networks(source: Renaming) -> None:
    require(
        "out_conv.weight" not in source,
        "a DhariwalUNet (ADM) cannot be converted; those of EDM for CIFAR-10, FFHQ and AFHQ are SongUNets",
    )
    require("u" not in source, "an iDDPMPrecond cannot be converted, only an EDMPrecond, VPPrecond or VEPrecond")


def _at(resolution: int) -> str:
    return f"{resolution}x{resolution}"


def _resolutions(source: Renaming) -> list[int]:
    """Of all levels, from the highest."""
    found = {int(match[1]) for name in source.state if (match := re.match(r"enc\.(\d+)x\1_", name))}
    resolutions = sorted(found, reverse=True)
    require(
        bool(resolutions) and f"enc.{_at(resolutions[0])}_conv.weight" in source,
        f"not an {KIND} network that can be converted: it lacks 'enc.32x32_conv.weight' or the like; its first tensors are "
        f"{', '.join(list(source.state)[:3]) or 'none'}",
    )
    return resolutions


def _fir(source: Renaming) -> bool:
    """Takes the filters, of which a network has one kind."""
    filters = [name for name in source.state if name.endswith(".resample_filter")]
    taps = {len(source.take(name)[0, 0]) for name in filters} or {2}
    values = [source.state[name][0, 0] for name in filters]
    row = torch.tensor([1.0, 1.0] if taps == {2} else [1.0, 3.0, 3.0, 1.0])
    expected = torch.outer(row, row) / row.sum() ** 2
    require(
        taps <= set(FILTERS) and len(taps) == 1 and all(torch.allclose(v.float(), expected) for v in values),
        f"resample_filter: only [1, 1] and [1, 3, 3, 1] can be converted; this network has one of {sorted(taps)} taps",
    )
    return FILTERS[taps.pop()]


def _network(source: Renaming, resolutions: list[int], fir: bool) -> Settings:
    tops = [_at(r) for r in resolutions]
    channels = len(source.state[f"enc.{tops[0]}_conv.weight"])
    widths = [len(source.take(f"enc.{top}_block0.conv0.weight")) for top in tops]
    blocks = sum(f"enc.{tops[0]}_block{i}.conv0.weight" in source for i in range(99))
    fourier = "map_noise.freqs" in source
    width = source.take("map_layer0.weight").shape[1]
    progressive_input = "none"
    if len(tops) > 1 and f"enc.{tops[1]}_aux_skip.weight" in source:
        progressive_input = "input_skip"
    elif len(tops) > 1 and f"enc.{tops[1]}_aux_residual.weight" in source:
        progressive_input = "residual"
        require(fir, "a residual encoder with the filter [1, 1] cannot be converted, only with [1, 3, 3, 1]")
    return part(
        "NCSNpp" if fourier else "DDPMpp",
        channels=channels,
        multipliers=[w // channels for w in widths],
        blocks=blocks,
        attention=[r for r, top in zip(resolutions, tops, strict=True) if f"enc.{top}_block0.qkv.weight" in source],
        dropout=0.13,
        fir=fir,
        embedding=part("FourierEmbedding" if fourier else "PositionalEmbedding", width=width),
        progressive_input=progressive_input,
        progressive="output_skip" if f"dec.{tops[-1]}_aux_conv.weight" in source and len(tops) > 1 else "none",
        centered=True,
        augmentations=source.take("map_augment.weight").shape[1] if "map_augment.weight" in source else 0,
    )


def _formalism(precond: str) -> Settings:
    """Process, parametrization and objective of a preconditioning (Karras et al. 2022, 2206.00364, table 1)."""
    if precond == "edm":
        process, parametrization = part("VE", sigma_min=0.002, sigma_max=80.0), part("EDM", data_std=0.5)
        weighting, times = part("EDMWeighting", data_std=0.5), part("LogNormalTimes", mean=-1.2, std=1.2)
    elif precond == "vp":
        process = part("VP", beta_min=0.1, beta_max=20.0)
        parametrization = part("Noise", noise_label=part("Time", scale=999.0))
        weighting, times = part("SigmaSquared"), part("UniformTimes", t_min=1e-5)
    else:
        process = part("VE", sigma_min=0.02, sigma_max=100.0)
        parametrization = part("ScoreOverSigma", noise_label=part("LogSigma", unit=2.0))
        weighting, times = part("SigmaSquared"), part("UniformTimes")
    objective = part("DenoisingScoreMatching", weighting=weighting, times=times)
    return {"process": process, "parametrization": parametrization, "objective": objective}


def _training(precond: str, resolution: int, augmentations: int) -> Settings:
    """What belongs to the preconditioning, EDM's sampler (35 evaluations at 32 x 32 pixels, else 79) and its training."""
    steps = 17 if resolution <= 32 else 39
    return {
        **_formalism(precond),
        "sampler": part(
            "PredictorCorrector",
            predictor=part("Heun"),
            grid=part("Karras", steps=steps, rho=7.0),
            denoise=part("Tweedie"),
        ),
        "optimizer": part("torch.optim.Adam", lr=1e-3 if resolution <= 32 else 2e-4),
        **({"augmentation": part("GeometricAugmentation", probability=0.12)} if augmentations == 9 else {}),
    }


def _rename(source: Renaming, network: Settings, resolutions: list[int], classes: int) -> dict[str, Tensor]:
    """Takes all tensors under our names."""
    state = source.layer("map_layer0", "conditioning.linear1") | source.layer("map_layer1", "conditioning.linear2")
    if "map_noise.freqs" in source:
        state["conditioning.embedding.frequencies"] = source.take("map_noise.freqs")
    if classes:
        state["conditioning.classes.weight"] = _classes(source.take("map_label.weight"), source.take("map_label.bias"))
    if network["augmentations"]:
        state["conditioning.augment.weight"] = source.take("map_augment.weight")
    tops, blocks = [_at(r) for r in resolutions], network["blocks"]
    state |= source.layer(f"enc.{tops[0]}_conv", "conv_in")
    for level, top in enumerate(tops):
        ours = f"down.{level - 1}."
        if level > 0:
            state |= _block(source, f"enc.{top}_down", f"{ours}resample")
            if network["progressive_input"] == "input_skip":
                state |= source.layer(f"enc.{top}_aux_skip", f"{ours}join.conv")
            elif network["progressive_input"] == "residual":
                state |= source.layer(f"enc.{top}_aux_residual", f"{ours}join.down.1")
        for i in range(blocks):
            state |= _stage(source, f"enc.{top}_block{i}", f"first.{i}" if level == 0 else f"{ours}stages.{i}")
    for i in range(2):
        state |= _stage(source, f"dec.{tops[-1]}_in{i}", f"middle.{i}")
    for k, top in enumerate(reversed(tops)):
        if k > 0:
            state |= _block(source, f"dec.{top}_up", f"up.{k}.resample")
        for i in range(blocks + 1):
            state |= _block(source, f"dec.{top}_block{i}", f"up.{k}.blocks.{i}")
        if resolutions[::-1][k] in network["attention"]:
            state |= _attention(source, f"dec.{top}_block{blocks}", f"up.{k}.attention")
        ours = f"up.{k}.output.head" if network["progressive"] == "output_skip" else "head"
        if ours != "head" or k == len(tops) - 1:
            state |= source.layer(f"dec.{top}_aux_norm", f"{ours}.0") | source.layer(f"dec.{top}_aux_conv", f"{ours}.2")
    source.finish()
    return state


def _classes(weight: Tensor, bias: Tensor) -> Tensor:
    """A row for each class, and one for none, of a linear map of unit vectors times the root of their number."""
    rows = weight.mT * weight.shape[1] ** 0.5
    return torch.cat([rows, torch.zeros_like(rows[:1])]) + bias


def _block(source: Renaming, theirs: str, ours: str) -> dict[str, Tensor]:
    names = {"norm0": "norm1", "conv0": "conv1", "affine": "shift", "norm1": "norm2", "conv1": "conv2"}
    state: dict[str, Tensor] = {}
    for name, our_name in names.items():
        state |= source.layer(f"{theirs}.{name}", f"{ours}.{our_name}")
    return state | (source.layer(f"{theirs}.skip", f"{ours}.skip") if f"{theirs}.skip.weight" in source else {})


def _stage(source: Renaming, theirs: str, ours: str) -> dict[str, Tensor]:
    state = _block(source, theirs, f"{ours}.residual")
    return state | (_attention(source, theirs, f"{ours}.attention") if f"{theirs}.qkv.weight" in source else {})


def _attention(source: Renaming, theirs: str, ours: str) -> dict[str, Tensor]:
    """Self-attention, whose query, key and value alternate from channel to channel in the file."""
    state = source.layer(f"{theirs}.norm2", f"{ours}.norm")
    weight, bias = source.take(f"{theirs}.qkv.weight")[:, :, 0, 0], source.take(f"{theirs}.qkv.bias")
    for i, name in enumerate(("query", "key", "value")):
        state |= {f"{ours}.{name}.weight": weight[i::3].contiguous(), f"{ours}.{name}.bias": bias[i::3].contiguous()}
    out = source.layer(f"{theirs}.proj", f"{ours}.out")
    return state | {name: tensor.flatten(1) if tensor.ndim == 4 else tensor for name, tensor in out.items()}
