"""Networks in one, two and three dimensions: axes along which nothing changes, and periodic axes."""

import pytest
import torch
from torch import Tensor

from lightning_score.conditions import Array
from lightning_score.errors import InputError
from lightning_score.networks import NCSN, DDPMpp, NCSNpp, NCSNv2, Network, UNet
from lightning_score.networks.grid import channels_last

CASES = {
    "unet": (UNet, {"channels": 8, "multipliers": [1, 2], "blocks": 1, "groups": 2}),
    "unet-adm": (UNet, {"channels": 8, "multipliers": [1, 2], "blocks": 1, "groups": 2, "resample_blocks": True}),
    "unet-symmetric": (UNet, {"channels": 8, "multipliers": [1, 2], "blocks": 1, "groups": 2, "symmetric_padding": True}),
    "ddpmpp": (DDPMpp, {"channels": 8, "multipliers": [1, 2], "blocks": 1, "progressive_input": "input_skip"}),
    "ncsnpp": (NCSNpp, {"channels": 8, "multipliers": [1, 2], "blocks": 1, "progressive": "output_skip"}),
    "ncsnpp-convolutions": (NCSNpp, {"channels": 8, "multipliers": [1, 2], "blocks": 1, "resample_blocks": False}),
    "ncsn": (NCSN, {"channels": 4, "multipliers": [1, 2, 2], "dilations": [1, 1, 4], "levels": 2}),
    "ncsnv2": (NCSNv2, {"channels": 4, "multipliers": [1, 2, 2], "dilations": [1, 1, 4]}),
}


@pytest.fixture(params=list(CASES))
def case(request) -> str:
    return request.param


def build(case: str, shape: list[int], periodic: bool | list[bool], **more) -> Network:
    """The case's network in double precision, with parameters off their initial values and attention at the lower level."""
    kind, options = CASES[case]
    if issubclass(kind, UNet | DDPMpp):
        options = {**options, "dropout": 0.0, "attention": [shape[1] // 2]}
    torch.manual_seed(0)
    network = kind(shape, periodic=periodic, **options, **more).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def output(network: Network, x: Tensor, cond: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return network(x, torch.arange(len(x)) % 2, cond)


@pytest.mark.parametrize("sizes", [[4, 8], [4, 4, 8]], ids=["2D-1D", "3D-2D"])
def test_an_axis_along_which_nothing_changes_can_be_left_out(case, sizes):
    """f(x repeated along a periodic axis) = g(x) repeated, for g with the kernels of f summed along it; the other axes have
    zeros outside in both.
    """
    large = build(case, [2, *sizes], [True] + [False] * (len(sizes) - 1))
    small = build(case, [2, *sizes[1:]], [False] * (len(sizes) - 1))
    shapes = {name: value.shape for name, value in small.state_dict().items()}
    folded = {n: v if v.shape == shapes[n] else v.sum(2) for n, v in large.state_dict().items()}
    small.load_state_dict(folded)
    x = torch.randn(2, 2, *sizes[1:], dtype=torch.float64)
    repeated = [x[:, :, None].expand(2, 2, *sizes), output(small, x)[:, :, None].expand(2, 2, *sizes)]
    torch.testing.assert_close(output(large, repeated[0]), repeated[1])


@pytest.mark.parametrize(
    ("sizes", "periodic"),
    [
        ([8], [True]),
        ([4, 8], [False, True]),
        pytest.param([4, 8, 4], [True, False, True], marks=pytest.mark.slow),
    ],
    ids=["1D", "2D", "3D"],
)
def test_periodic_axes_can_be_rolled_and_others_cannot(case, sizes, periodic):
    network = build(case, [2, *sizes], periodic)
    x = torch.randn(2, 2, *sizes, dtype=torch.float64)
    y = output(network, x)
    for axis, ends_meet in enumerate(periodic, 2):
        difference = (output(network, x.roll(2, axis)) - y.roll(2, axis)).abs().max() / y.abs().max()
        assert difference < 1e-12 if ends_meet else difference > 1e-3


@pytest.mark.parametrize("sizes", [[8], [4, 8, 8]], ids=["1D", "3D"])
def test_an_array_condition_of_a_coarser_grid_is_rolled_with_the_data(sizes):
    condition = Array([1, *(n // 2 for n in sizes)])
    network = build("ncsnpp", [2, *sizes], True, condition=condition)
    x, y = torch.randn(2, 2, *sizes, dtype=torch.float64), torch.randn(2, *condition.shape, dtype=torch.float64)
    rolled = output(network, x.roll(2, -1), y.roll(1, -1)), output(network, x, y).roll(2, -1)
    torch.testing.assert_close(*rolled)
    assert (output(network, x.roll(2, -1), y) - rolled[1]).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[8], [4, 4, 2]], ids=["1D", "3D"])
def test_signals_and_volumes_have_the_derivatives_of_images(case, sizes):
    """v J v by forward mode equals it by reverse mode, and so do their gradients, in the memory format of training."""
    network = build(case, [2, *sizes], [True] + [False] * (len(sizes) - 1))
    channels_last(network)
    x, v = torch.randn(2, 1, 2, *sizes, dtype=torch.float64)
    label = torch.ones(1)
    forward = (torch.func.jvp(lambda x: network(x, label), (x,), (v,))[1] * v).sum()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((network(x, label) * v).sum(), x, create_graph=True)
    reverse = (gradient * v).sum()
    torch.testing.assert_close(forward, reverse)
    weights = [weight for name, weight in network.named_parameters() if "conv" in name and name.endswith("weight")]
    gradients = (torch.autograd.grad(value, weights) for value in (forward, reverse))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_channels_last_is_torchs_for_images():
    """Also in strides that do not matter for one channel, which decide on the kernels of the CPU and so on rounding."""
    ours, theirs = (build("unet", [1, 8, 8], False) for _ in range(2))
    channels_last(ours)
    theirs.to(memory_format=torch.channels_last)
    assert [p.stride() for p in ours.parameters()] == [p.stride() for p in theirs.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["unet", "ncsnv2"])
def test_volumes_are_one_graph(case):
    """What torch.compile traces, its periodic axes included, is one graph with the same output and gradients."""
    network = build(case, [2, 4, 4, 4], [True, False, False])
    traced = torch.compile(network, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 2, 4, 4, 4, dtype=torch.float64)
    outputs = [f(x, torch.ones(2)).square().sum() for f in (network, traced)]
    torch.testing.assert_close(*outputs)
    for one, other in zip(
        *(torch.autograd.grad(y, list(network.parameters()), allow_unused=True) for y in outputs), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_channels_last_changes_nothing(case):
    network = build(case, [2, 4, 4, 2], [False, True, False])
    x = torch.randn(2, 2, 4, 4, 2, dtype=torch.float64)
    expected = output(network, x)
    channels_last(network)
    kernels = [p for p in network.parameters() if p.ndim == 5 and p.shape[1] > 1]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last_3d) for kernel in kernels)
    torch.testing.assert_close(output(network, x), expected)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ([2], {}, "use an MLP for points, or --data.axes NL if"),
        ([2, 4, 4, 4, 4], {}, "must be .channels, length.*depth, height, width"),
        ([2, 9], {}, "length must be divisible by 2"),
        ([2, 8, 8, 7], {}, "depth, height and width must be divisible by 2"),
        ([2, 8, 8], {"periodic": [True]}, "one of them for each axis: height and width"),
        ([2, 8, 4], {"attention": [4, 2]}, r"attention=\[2\].*choose from \[8, 4\]"),
    ],
    ids=str,
)
def test_refuses_with_the_fix(shape, options, message):
    with pytest.raises(InputError, match=message):
        UNet(shape, **{"channels": 8, "multipliers": [1, 1], "attention": [], "groups": 2, **options})
