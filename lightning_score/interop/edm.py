"""EDM's network weights (github.com/NVlabs/edm): DDPM++ and NCSN++ under EDM's preconditioning, or that of VP or VE."""

import re
from pathlib import Path

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.interop.base import Imported, Renaming, Settings, describe, is_state, part, read_torch
from lightning_score.interop.names import Network, count, imported, layers
from lightning_score.interop.training import matching, sampler

KIND = "edm"
QKV = ("query", "key", "value")
EXTRACT = (
    "EDM's pickles contain code. Extract the tensors once, where that code may run, in the root of its repository: "
    "python -c \"import pickle, torch; net = pickle.load(open('network.pkl', 'rb'))['ema']; print(type(net).__name__); "
    "torch.save(net.state_dict(), 'network.pt')\", then convert network.pt, with --precond vp if the name printed is "
    "VPPrecond, and with --precond ve if it is VEPrecond"
)
TRAINING = {
    "edm": {
        "process": part("VE", sigma_min=0.002, sigma_max=80.0),
        "parametrization": part("EDM", data_std=0.5),
        "objective": matching(part("LogNormalTimes", mean=-1.2, std=1.2), weighting=part("EDMWeighting", data_std=0.5)),
    },
    "vp": {
        "process": part("VP", beta_min=0.1, beta_max=20.0),
        "parametrization": part("Noise", noise_label=part("Time", scale=999.0)),
        "objective": matching(part("UniformTimes", t_min=1e-5)),
    },
    "ve": {
        "process": part("VE", sigma_min=0.02, sigma_max=100.0),
        "parametrization": part("ScoreOverSigma", noise_label=part("LogSigma", unit=2.0)),
        "objective": matching(part("UniformTimes")),
    },
}
"""Process, parametrization and objective of a preconditioning (Karras et al. 2022, 2206.00364, table 1)."""
NOTES = {
    "edm": "EDM's preconditioning for data of standard deviation 0.5: --model.parametrization.data_std 0.5",
    "vp": "beta runs from 0.1 to 20, as in all published models: --model.process.beta_min 0.1 --model.process.beta_max 20",
    "ve": "sigma runs from 0.02 to 100, as in all published models: "
    "--model.process.sigma_min 0.02 --model.process.sigma_max 100",
}
UNKNOWN = (
    "an EDMPrecond, as the published edm-* models; files of a VPPrecond or VEPrecond, as the baseline-* models, look alike: "
    "--precond vp or --precond ve"
)
DROPOUT = "dropout of 0.13 in further training, as published for CIFAR-10: --model.network.dropout 0.13"


def read(path: Path, size: int | None = None, precond: str | None = None) -> Imported:
    """Network weights of EDM: the state dict of a preconditioned `SongUNet`, or of that network alone.

    Args:
        path: a file of tensors; for the authors' pickles, the error has the command that makes one of them.
        size: taken from the file; if given it must be the same.
        precond: how the network was trained: edm, which is the default, vp or ve.

    Raises:
        InputError: a pickle, another kind of file, or missing or unused tensors.
    """
    require(path.suffix != ".pkl" or not path.is_file(), f"{path}: not read, because a pickle can run any code. {EXTRACT}")
    state = read_torch(path, EXTRACT)
    require(is_state(state), f"{path}: {describe(state)}, not tensors by name. {EXTRACT}")
    source = Renaming({name.removeprefix("model."): tensor for name, tensor in state.items()}, KIND)
    require(
        "out_conv.weight" not in source,
        "a DhariwalUNet (ADM) cannot be converted; those of EDM for CIFAR-10, FFHQ and AFHQ are SongUNets",
    )
    require("u" not in source, "an iDDPMPrecond cannot be converted, only an EDMPrecond, VPPrecond or VEPrecond")
    sides = _sides(source)
    side, small = sides[0], sides[0] <= 32
    require(size in (None, side), f"size={size}: the file's images are of {side} x {side} pixels; leave --size out")
    settings = _network(source, sides)
    steps = sampler(part("Heun"), part("Karras", steps=17 if small else 39, rho=7.0), denoise=part("Tweedie"))
    model = {**TRAINING[precond or "edm"], "sampler": steps}  # 35 evaluations, or 79
    model["optimizer"] = part("torch.optim.Adam", lr=1e-3 if small else 2e-4)
    if settings["init_args"]["augmentations"] == 9:
        model["augmentation"] = part("GeometricAugmentation", probability=0.12)
    shape = (source.state[f"enc.{_at(side)}_conv.weight"].shape[1], side, side)
    classes = source.take("map_label.weight").shape[1] if "map_label.weight" in source else 0
    network = Network(settings, shape, _names(sides, settings["init_args"]["blocks"]), _take, classes)
    notes = (*([] if precond else [UNKNOWN]), NOTES[precond or "edm"], DROPOUT)
    return imported(network, source, None, model, (-1.0, 1.0), notes)


def _at(side: int) -> str:
    return f"{side}x{side}"


def _sides(source: Renaming) -> list[int]:
    """The heights of all levels in pixels, from the highest."""
    found = {int(match[1]) for name in source.state if (match := re.match(r"enc\.(\d+)x\1_", name))}
    known = bool(found) and f"enc.{_at(max(found))}_conv.weight" in source
    source.require(known, f"it lacks 'enc.32x32_conv.weight' or the like; {source.first}")
    return sorted(found, reverse=True)


def _fir(source: Renaming) -> bool:
    """Takes the filters; whether they are [1, 3, 3, 1], not means."""
    filters = [source.take(name)[0, 0].float() for name in source.state if name.endswith(".resample_filter")]
    for row in (torch.tensor([1.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])):
        expected = torch.outer(row, row) / row.sum() ** 2
        if all(each.shape == expected.shape and torch.allclose(each, expected) for each in filters):
            return len(row) == 4
    taps = sorted({len(each) for each in filters})
    raise source.refusal(f"resample_filter: only [1, 1] and [1, 3, 3, 1] are known; this network has one of {taps} taps")


def _network(source: Renaming, sides: list[int]) -> Settings:
    """The network of the tensors."""
    tops, fir = [_at(side) for side in sides], _fir(source)
    channels = len(source.state[f"enc.{tops[0]}_conv.weight"])
    widths = [len(source.take(f"enc.{top}_block0.conv0.weight")) for top in tops]
    fourier = "map_noise.freqs" in source
    progressive = "output_skip" if f"dec.{tops[-1]}_aux_conv.weight" in source and len(tops) > 1 else "none"
    progressive_input = "none"
    if len(tops) > 1 and f"enc.{tops[1]}_aux_skip.weight" in source:
        progressive_input = "input_skip"
    elif len(tops) > 1 and f"enc.{tops[1]}_aux_residual.weight" in source:
        progressive_input = "residual"
        require(fir, "a residual encoder with the filter [1, 1] cannot be converted, only with [1, 3, 3, 1]")
    return part(
        "NCSNpp" if fourier else "DDPMpp",
        channels=channels,
        multipliers=[width // channels for width in widths],
        blocks=count(source, lambda i: f"enc.{tops[0]}_block{i}.conv0.weight"),
        attention=[side for side in sides if f"enc.{_at(side)}_block0.qkv.weight" in source],
        dropout=0.13,
        fir=fir,
        embedding=part(
            "FourierEmbedding" if fourier else "PositionalEmbedding", width=source.take("map_layer0.weight").shape[1]
        ),
        progressive_input=progressive_input,
        progressive=progressive,
        centered=True,
        augmentations=source.take("map_augment.weight").shape[1] if "map_augment.weight" in source else 0,
    )


def _names(sides: list[int], blocks: int) -> dict[str, str]:
    """Our names and the authors'."""
    tops = [_at(side) for side in sides]
    return {
        "conditioning.linear1.": "map_layer0.",
        "conditioning.linear2.": "map_layer1.",
        "conditioning.embedding.frequencies": "map_noise.freqs",
        "conditioning.classes.": "map_label.",
        "conditioning.augment.": "map_augment.",
        "conv_in.": f"enc.{tops[0]}_conv.",
        "first.": f"enc.{tops[0]}_block",
        "middle.": f"dec.{tops[-1]}_in",
        "head.": f"up.{len(tops) - 1}.output.head.",
        "down.*.resample.": "down.*.down.",
        "up.*.resample.": "up.*.up.",
        "up.*.attention.": f"up.*.block{blocks}.attention.",
        ".stages.": ".block",
        ".blocks.": ".block",
        ".join.conv.": ".aux_skip.",
        ".join.down.1.": ".aux_residual.",
        ".output.head.0.": ".aux_norm.",
        ".output.head.2.": ".aux_conv.",
        **{f"down.{k}.": f"enc.{top}_" for k, top in enumerate(tops[1:])},
        **{f"up.{k}.": f"dec.{top}_" for k, top in enumerate(reversed(tops))},
        **layers(norm1="norm0", conv1="conv0", shift="affine", norm2="norm1", conv2="conv1"),
        ".attention.norm.": ".norm2.",
        ".attention.out.": ".proj.",
        **{f".attention.{name}.": ".qkv." for name in QKV},
        ".residual.": ".",
    }


def _take(source: Renaming, ours: str, theirs: str) -> Tensor:
    """A tensor of ours."""
    if ours == "conditioning.classes.weight":  # a row for each class, and one for none, of a map of unit vectors
        rows = source.take(theirs).mT * source.take(theirs).shape[1] ** 0.5
        return torch.cat([rows, torch.zeros_like(rows[:1])]) + source.take("map_label.bias")
    tensor, layer = source.take(theirs), ours.split(".")[-2]
    return tensor[QKV.index(layer) :: 3] if layer in QKV else tensor  # query, key and value alternate in the channels
