"""A training step (loss, backward, clip, Adam, EMA) of the CIFAR-10 networks, compared with diffusers' and its own products.

The ratio is how many times as long the other takes: above 1, we are quicker. For "its convolutions and products alone"
it is the share of the step, or of the forward pass, that they take: 1 would be perfect.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.conftest import seconds
from benchmarks.parts import (
    Diffusers,
    Ours,
    OwnProcess,
    Products,
    diffusers_forward,
    diffusers_ncsnpp,
    diffusers_step,
    diffusers_unet,
    model_of,
)

PEERS = {"cifar10/ddpm": diffusers_unet, "cifar10/ncsnpp_ve": diffusers_ncsnpp, "cifar10/ncsnv2": None}
CPU = [(torch.float32, None, 16)]
GPU = [(torch.float32, None, 128), (torch.bfloat16, None, 128), (torch.bfloat16, "default", 128)]
VARIANTS = GPU if torch.cuda.is_available() else CPU


def steps(name, precision, mode, batch, device):
    """Our step and that of the peer, if any; both are compiled or neither."""
    torch.manual_seed(0)
    ours = Ours(model_of(name, *([f"--model.compile={mode}"] if mode else [])), batch, device, precision)
    peer = PEERS[name] and Diffusers(PEERS[name](), batch, device, precision)
    if mode and peer:
        peer.plain.compile(mode=mode)
    return ours, peer


def label(name, part, precision, mode, batch):
    kind = "bf16" if precision == torch.bfloat16 else "fp32"
    return f"{name} {part}, batch {batch}, {kind}{', compiled' if mode else ''}"


@pytest.fixture(scope="module")
def peak(device):
    """Floating-point operations per second of a large matrix product, by precision."""
    found = {}
    for precision in (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,):
        n = 8192 if device == "cuda" else 2048
        a, b = (torch.randn(n, n, device=device, dtype=precision) for _ in range(2))
        found[precision] = 2 * n**3 / min(seconds(lambda a=a, b=b: a @ b, device) for _ in range(10))
    return found


def note_rate(note, what, operations, taken, ceiling):
    """Adds a row with floating-point operations per second, compared with those of a large matrix product."""
    rate = operations / taken
    ours, theirs = (f"{value / 1e12:.3g} TFLOP/s" for value in (rate, ceiling))
    note(what, ours, "a large matrix product", theirs, f"{rate / ceiling:.2f}")


@pytest.mark.parametrize(("precision", "mode", "batch"), VARIANTS, ids=str)
@pytest.mark.parametrize("name", PEERS)
def test_training_step(name, precision, mode, batch, device, compare, note, peak):
    ours, peer = steps(name, precision, mode, batch, device)
    others = {"diffusers": peer} if peer else {}
    if peer and device == "cpu":
        others = {"diffusers": OwnProcess(diffusers_step, PEERS[name], batch, device), "diffusers, with our memory": peer}
    if mode is None:
        with Products() as products:
            ours()
        others["its convolutions and products alone"] = products.again
    what = label(name, "training step", precision, mode, batch)
    taken = compare(what, ours, others, rounds=20 if device == "cuda" else 3, warmup=3 if mode else 1)["ours"]
    with FlopCounterMode(display=False) as counter:
        steps(name, precision, None, batch, device)[0]()
    note_rate(note, what, counter.get_total_flops(), taken, peak[precision])
    note(what, f"{batch / taken:.3g} images/s", "", "", "")


@pytest.mark.parametrize(("precision", "mode", "batch"), VARIANTS, ids=str)
@pytest.mark.parametrize("name", PEERS)
def test_forward_pass(name, precision, mode, batch, device, compare, note, peak):
    ours, peer = steps(name, precision, mode, batch, device)
    others = {"diffusers": peer.network} if peer else {}
    if peer and device == "cpu":
        others = {"diffusers": OwnProcess(diffusers_forward, PEERS[name], batch, device)}
    if mode is None:
        with Products() as products, FlopCounterMode(display=False) as counter:
            ours.network()
        others["its convolutions and products alone"] = products.again
    what = label(name, "forward pass", precision, mode, batch)
    taken = compare(what, ours.network, others, rounds=20 if device == "cuda" else 5, warmup=3 if mode else 1)["ours"]
    if mode is None:
        note_rate(note, what, counter.get_total_flops(), taken, peak[precision])
