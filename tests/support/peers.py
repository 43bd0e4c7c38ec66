"""Checkpoints as the authors' code writes them."""

import math

import numpy as np
import torch
from diffusers import UNet2DModel
from recorded import random_state, recorded

SIMPLE = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "norm_num_groups": 16,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def unet(**options):
    """diffusers' network with random weights, none of whose layers is zero."""
    torch.manual_seed(0)
    network = UNet2DModel(**options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


OPTIMIZER = {"state": {}, "param_groups": [{"lr": 3e-4, "betas": (0.8, 0.99), "eps": 1e-3, "params": [0, 1]}]}


def weights(shapes):
    """Random weights whose scales are around one, like those of trained networks."""
    state = random_state(shapes)
    for name, tensor in state.items():
        if name.endswith(("gamma", "alpha")):
            tensor += 1
        if name.endswith("embed.weight"):
            tensor[:, : tensor.shape[1] * 2 // 3] += 1
    return state


def kind_of(name):
    return name.partition("_")[0]


def network_state(name):
    """The authors' state dict of a case, with its table of sigmas if the network is NCSNv2's."""
    case = recorded(name)
    sigmas = {"sigmas": case.tensors["sigmas"]} if kind_of(name) == "ncsnv2" else {}
    return sigmas | weights(case.shapes)


def wrapped(state):
    """As saved inside DataParallel."""
    return {f"module.{name}": tensor for name, tensor in state.items()}


def saved(name, state=None, averages=None, **entries):
    """A checkpoint as the authors' code writes it."""
    case = recorded(f"score_sde_{name}")
    state = case.state if state is None else state
    scales = torch.linspace(math.log(case.about["sigma_max"]), math.log(0.01), case.about["scales"], dtype=torch.float64)
    shadow = [tensor for key, tensor in (averages or state).items() if not key.endswith("all_modules.0.W")]
    return {
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(2e-4) * 0.5, "betas": (0.9, 0.999), "eps": 1e-8}]},
        "model": {"module.sigmas": scales.exp()} | {f"module.{key}": tensor for key, tensor in state.items()},
        "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": shadow},
        "step": 17,
    } | entries


def edm_state(name):
    case = recorded(f"edm_{name}")
    row = torch.tensor([float(tap) for tap in case.about["filter"]])
    kernel = torch.outer(row, row)[None, None] / row.sum() ** 2
    return case.state | dict.fromkeys(case.about["resampled"], kernel)
