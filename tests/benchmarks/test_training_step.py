"""A training step (loss, backward, clip, Adam, EMA) of the networks for CIFAR-10 and of ADM for ImageNet, compared with that
of diffusers, where it has the network, and with its own products.

The ratio is how many times as long the other takes: above 1, we are quicker. For "its convolutions and products alone"
it is the share of the step, or of the forward pass, that they take: 1 would be perfect.
"""

from functools import partial

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

PEERS = {
    "cifar10/ddpm": diffusers_unet,
    "cifar10/ncsnpp_ve": diffusers_ncsnpp,
    "cifar10/ncsnv2": None,
    "cifar10/edm": None,
    "imagenet64/edm": None,
}
SHARES = {"imagenet64/edm": 4}
"""By how much the batches of large networks are smaller than those of the others."""
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


@pytest.fixture
def peak(device):
    """The most floating-point operations per second of any large matrix product or convolution, by precision. They are
    measured beside each network, since the speed of a machine drifts.
    """
    precisions = (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,)
    return {precision: max(rates(device, precision)) for precision in precisions}


def rates(device, precision):
    """Floating-point operations per second of matrix products, and of convolutions and their backward passes."""
    for operations, function in kernels(device, precision):
        seconds(function, device)
        yield operations / min(seconds(function, device) for _ in range(5))


def kernels(device, precision):
    """Floating-point operations and a function that takes them."""
    n, batch = (8192, 256) if device == "cuda" else (2048, 16)
    a, b = torch.randn(2, n, n, device=device, dtype=precision)
    yield 2 * n**3, partial(torch.mm, a, b)
    for channels, width, size in [(128, 32, 3), (256, 16, 3), (256, 32, 3), (512, 16, 3), (256, 32, 1), (512, 16, 1)]:
        x, y = torch.randn(2, batch, channels, width, width, device=device, dtype=precision)
        x, y = (features.to(memory_format=torch.channels_last) for features in (x, y))
        weight = torch.randn(channels, channels, size, size, device=device, dtype=precision)
        weight, padding = weight.to(memory_format=torch.channels_last), [size // 2] * 2
        operations = 2 * y.numel() * weight[0].numel()
        yield operations, partial(torch.conv2d, x, weight, padding=padding)
        for wanted in ([True, False, False], [False, True, False]):
            settings = None, [1, 1], padding, [1, 1], False, [0, 0], 1, wanted
            yield operations, partial(torch.ops.aten.convolution_backward, y, x, weight, *settings)


def note_rate(note, what, operations, taken, ceiling):
    """Adds a row with floating-point operations per second, compared with the most that were measured."""
    rate = operations / taken
    ours, theirs = (f"{value / 1e12:.3g} TFLOP/s" for value in (rate, ceiling))
    note(what, ours, "the quickest matrix product or convolution", theirs, f"{rate / ceiling:.2f}")


@pytest.mark.parametrize(("precision", "mode", "batch"), VARIANTS, ids=str)
@pytest.mark.parametrize("name", PEERS)
def test_training_step(name, precision, mode, batch, device, compare, note, peak):
    batch //= SHARES.get(name, 1)
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
        (steps(name, precision, None, batch, device)[0] if mode else ours)()
    note_rate(note, what, counter.get_total_flops(), taken, peak[precision])
    note(what, f"{batch / taken:.3g} images/s", "", "", "")


@pytest.mark.parametrize(("precision", "mode", "batch"), VARIANTS, ids=str)
@pytest.mark.parametrize("name", PEERS)
def test_forward_pass(name, precision, mode, batch, device, compare, note, peak):
    batch //= SHARES.get(name, 1)
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
