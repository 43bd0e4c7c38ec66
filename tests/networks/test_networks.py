"""Networks: what every one of them promises, their parts against their formulas, and the U-Net against diffusers'."""

import inspect
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from lightning_score.conditions import Array, ClassLabel, Condition, Several, Vector
from lightning_score.data import Digits
from lightning_score.errors import InputError
from lightning_score.interop.diffusers import PATTERNS
from lightning_score.interop.names import translate
from lightning_score.networks import (
    MLP,
    NCSN,
    DDPMpp,
    FourierEmbedding,
    NCSNpp,
    NCSNv2,
    NCSNv2Deeper,
    NCSNv2Deepest,
    Network,
    NoiseEmbedding,
    PositionalEmbedding,
    UNet,
)
from lightning_score.objective import DenoisingScoreMatching, SigmaSquared, TableTimes
from lightning_score.process import SigmaTable
from lightning_score.score.function import ScoreFunction
from lightning_score.score.parametrization import Index, LogSigma, Noise

SMALL = {
    MLP: {"shape": [2], "width": 16, "depth": 2},
    UNet: {"shape": [2, 4, 12], "channels": 8, "multipliers": [1, 2], "attention": [2], "dropout": 0.0, "groups": 2},
    DDPMpp: {"shape": [2, 4, 12], "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [2], "dropout": 0.0},
    NCSNpp: {"shape": [2, 4, 12], "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [2], "dropout": 0.0},
    NCSN: {"shape": [2, 4, 12], "channels": 4, "levels": 4},
    NCSNv2: {"shape": [2, 4, 12], "channels": 4},
    NCSNv2Deeper: {"shape": [2, 4, 12], "channels": 4},
    NCSNv2Deepest: {"shape": [2, 8, 16], "channels": 4},
}
BATCH = 3
TAKE_INDEX = [NCSN]
SEE_NO_NOISE = [NCSNv2, NCSNv2Deeper, NCSNv2Deepest]


def perturb(module: nn.Module) -> nn.Module:
    """The module with every parameter moved off the value it starts from: no layer is zero any more."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def build(kind: type[Network], num_classes: int = 0, **options) -> Network:
    torch.manual_seed(0)
    return perturb(kind(**{**SMALL[kind], "num_classes": num_classes, **options}))


def draw(network: Network) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(BATCH, *network.shape, generator=generator), torch.tensor([-1.0, 0.3, 2.0])


def subclasses(kind: type) -> list[type]:
    return [c for child in kind.__subclasses__() for c in [child, *subclasses(child)]]


def accepts(kind: type[Network], condition: Condition) -> bool:
    """RefineNets take no vectors, points no arrays."""
    return condition.channels == 0 if kind is MLP else issubclass(kind, UNet | DDPMpp) or condition.embedding(1) is None


def shipped(kind: type) -> list[type]:
    return [c for c in subclasses(kind) if c.__module__.startswith("lightning_score") and not inspect.isabstract(c)]


def test_every_network_is_tested_here():
    assert set(shipped(Network)) == set(SMALL)


@pytest.fixture(params=list(SMALL), ids=lambda kind: kind.__name__)
def kind(request) -> type[Network]:
    return request.param


class TestEveryNetwork:
    def test_output_is_shaped_like_the_input(self, kind):
        network = build(kind)
        x, label = draw(network)
        assert network(x, label).shape == x.shape
        assert network.shape == tuple(SMALL[kind]["shape"]) and network.num_classes == 0

    def test_starts_from_zero(self, kind):
        network = kind(**SMALL[kind])
        x, label = draw(network)
        assert network(x, label).abs().max() == 0

    def test_gradient_reaches_every_parameter(self, kind):
        network = build(kind, num_classes=2)
        x, label = draw(network)
        network(x, label, torch.tensor([0, 1, 2])).square().sum().backward()
        assert [n for n, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []

    def test_double_precision_agrees_with_single(self, kind):
        network = build(kind)
        x, label = draw(network)
        single = network(x, label)
        double = network.double()(x.double(), label.double())
        assert double.dtype == torch.float64
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)

    def test_label_of_another_type_is_converted(self, kind):
        network = build(kind)
        x, _ = draw(network)
        label = torch.tensor([1, 5, 900])
        torch.testing.assert_close(network(x, label), network(x, label.float()))
        torch.testing.assert_close(network(x, label), network(x, label.double()))

    def test_one_label_is_broadcast_over_the_batch(self, kind):
        network = build(kind)
        x, _ = draw(network)
        torch.testing.assert_close(network(x, torch.tensor(0.7)), network(x, torch.full((BATCH,), 0.7)))

    def test_state_dict_survives_a_file(self, kind, tmp_path):
        network = build(kind, num_classes=2)
        x, label = draw(network)
        torch.save(network.state_dict(), tmp_path / "weights.pt")
        other = kind(**{**SMALL[kind], "num_classes": 2})
        other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        torch.testing.assert_close(other(x, label), network(x, label), rtol=0, atol=0)

    def test_noise_label_matters(self, kind):
        network = build(kind)
        x, label = draw(network)
        difference = (network(x, label) - network(x, label + (2 if kind in TAKE_INDEX else 0.5))).abs().flatten(1).amax(1)
        assert difference.max() == 0 if kind in SEE_NO_NOISE else difference.min() > 0

    def test_class_matters_and_none_is_no_class(self, kind):
        network = build(kind, num_classes=2)
        x, label = draw(network)
        first, second, none = (network(x, label, torch.full((BATCH,), c)) for c in (0, 1, 2))
        assert (first - second).abs().max() > 1e-3 and (first - none).abs().max() > 1e-3
        torch.testing.assert_close(network(x, label), none)
        torch.testing.assert_close(network(x, label, torch.tensor([0, 1, 2]))[1], second[1])

    def test_a_network_without_classes_ignores_labels(self, kind):
        network = build(kind)
        x, label = draw(network)
        assert torch.equal(network(x, label, torch.tensor([4, 0, 9])), network(x, label))

    @pytest.mark.parametrize(
        "condition", [Vector(3), Array([2, 2, 6]), Several([ClassLabel(2), Vector(3), Array([1, 8, 24])])]
    )
    def test_a_condition_matters_and_none_is_the_empty_one(self, kind, condition):
        if not accepts(kind, condition):
            with pytest.raises(InputError, match="condition"):
                build(kind, condition=condition)
            return
        network = build(kind, condition=condition)
        x, label = draw(network)
        y = torch.randn(BATCH, *condition.shape, generator=torch.Generator().manual_seed(3))
        y[:, 0] = torch.tensor([0.0, 1.0, 0.0]) if isinstance(condition, Several) else y[:, 0]
        given, none = network(x, label, y), network(x, label)
        assert (given - none).abs().flatten(1).amax(1).min() > 1e-4
        torch.testing.assert_close(none, network(x, label, condition.empty(BATCH)))
        torch.testing.assert_close(given[:1], network(x[:1], label[:1], y[:1]), rtol=1e-4, atol=1e-5)

    def test_samples_do_not_depend_on_their_batch(self, kind):
        network = build(kind, num_classes=2).double()
        x, label = draw(network)
        x, cond = x.double(), torch.tensor([0, 1, 2])
        together = network(x, label, cond)
        alone = torch.cat([network(x[i : i + 1], label[i : i + 1], cond[i : i + 1]) for i in range(BATCH)])
        torch.testing.assert_close(together, alone)

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
    def test_has_the_derivatives_of_sliced_score_matching_and_likelihoods(self, kind):
        """v J v by forward mode equals it by reverse mode, and its gradient by either reaches the parameters."""
        network = build(kind).double()
        x, label = (a.double() for a in draw(network))
        v = torch.randn_like(x)
        forward = (torch.func.jvp(lambda x: network(x, label), (x,), (v,))[1] * v).sum()
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((network(leaf, label) * v).sum(), leaf, create_graph=True)
        reverse = (gradient * v).sum()
        torch.testing.assert_close(forward, reverse)
        parameters = [p for name, p in network.named_parameters() if name.endswith("weight")]
        for one, other in zip(
            torch.autograd.grad(forward, parameters), torch.autograd.grad(reverse, parameters), strict=True
        ):
            torch.testing.assert_close(one, other)

    @pytest.mark.parametrize("embedding", shipped(NoiseEmbedding), ids=lambda e: e.__name__)
    def test_takes_any_embedding(self, kind, embedding):
        if "embedding" not in inspect.signature(kind).parameters:
            pytest.skip("has no embedding of the noise level")
        network = build(kind, embedding=embedding(width=12))
        x, label = draw(network)
        assert (network(x, label) - network(x, label + 0.5)).abs().amax() > 1e-3

    @pytest.mark.parametrize("bad", [{"shape": []}, {"num_classes": -1}])
    def test_refuses(self, kind, bad):
        with pytest.raises(InputError):
            kind(**{**SMALL[kind], **bad})


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [
        (MLP, {"shape": [1, 8, 8]}, "use a UNet for signals, images"),
        (MLP, {"shape": [0]}, "must hold positive sizes"),
        (MLP, {"width": 0}, "width=0"),
        (MLP, {"width": 7}, "must be even"),
        (MLP, {"depth": 0}, "depth=0"),
        (UNet, {"shape": [2]}, "use an MLP for points"),
        (UNet, {"shape": [0, 8, 8]}, "must hold positive sizes"),
        (UNet, {"shape": [1, 9, 8]}, "divisible by 2"),
        (UNet, {"shape": [1, 8, 6], "multipliers": [1, 1, 1]}, "divisible by 4"),
        (UNet, {"multipliers": []}, "multipliers"),
        (UNet, {"multipliers": [1, 0]}, "multipliers"),
        (UNet, {"channels": 0}, "channels=0"),
        (UNet, {"channels": 5}, "multiple of the number of groups"),
        (UNet, {"channels": 8, "head_channels": 3}, "must divide 8 channels"),
        (UNet, {"condition": Array([1, 4])}, "must have as many axes as the data, whose shape is .channels, 4, 12"),
        (UNet, {"condition": Vector(1), "num_classes": 2}, "must be 0 with a condition"),
        (DDPMpp, {"channels": 6, "group_size": 1, "groups": 4}, "multiple of the number of groups"),
        (DDPMpp, {"groups": 0}, "must be positive"),
        (NCSNpp, {"attention": [3]}, r"choose from \[4, 2\]"),
        (NCSN, {"levels": 0}, "levels=0"),
        (NCSNv2, {"dilations": [1, 1]}, "one positive integer of each per stage"),
        (NCSNv2, {"multipliers": [1, 2], "dilations": [1, 1]}, "the same multiplier for the last two"),
        (NCSNv2Deepest, {"shape": [2, 4, 4]}, "divisible by 8"),
        (UNet, {"groups": 0}, "groups=0"),
        (UNet, {"blocks": 0}, "blocks=0"),
        (UNet, {"attention": [16]}, r"choose from \[4, 2\]"),
        (UNet, {"dropout": 1.0}, "dropout=1.0"),
    ],
    ids=str,
)
def test_refuses_with_the_fix(kind, bad, message):
    with pytest.raises(InputError, match=message):
        kind(**{**SMALL[kind], **bad})


@pytest.mark.parametrize(("kind", "options"), [(UNet, {"groups": 8}), (DDPMpp, {"group_size": 1})], ids=["UNet", "DDPMpp"])
def test_warns_of_norms_that_hide_the_noise_level(kind, options):
    with pytest.warns(UserWarning, match="at least two channels per group"):
        kind(**{**SMALL[kind], **options})


SMALL_FORMS = {
    UNet: {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4], "groups": 4},
    DDPMpp: {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4]},
    NCSNpp: {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4], "embedding": FourierEmbedding(32, 1.0)},
    NCSN: {"channels": 8, "levels": 10},
    NCSNv2: {"channels": 8},
    NCSNv2Deeper: {"channels": 8},
    NCSNv2Deepest: {"channels": 8},
}
"""For the 8x8 digits that are shipped with the package."""


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[] if k is UNet else pytest.mark.slow) for k in SMALL_FORMS],
    ids=lambda kind: kind.__name__,
)
@pytest.mark.slow
def test_small_forms_learn_digits(kind):
    """Sixty steps explain half of the noise in digits that were not trained on; the zero network has a loss of 1."""
    torch.manual_seed(0)
    data = Digits(batch_size=32, data_range=(0, 1) if kind not in (UNet, DDPMpp) else (-1, 1))
    label = Index(descending=True) if kind is NCSN else LogSigma()
    score = ScoreFunction(kind([1, 8, 8], **SMALL_FORMS[kind]), SigmaTable(0.1, 1.0, 10), Noise(noise_label=label))
    objective = DenoisingScoreMatching(SigmaSquared(), TableTimes(), mean=True)
    optimizer = torch.optim.Adam(score.parameters(), 3e-3)
    batches = itertools.chain.from_iterable(itertools.repeat(data.train_dataloader()))
    for x, _ in itertools.islice(batches, 60):
        optimizer.zero_grad()
        objective(score, x).mean().backward()
        optimizer.step()
    held_out = torch.cat([x for x, _ in data.val_dataloader()])
    with torch.no_grad():
        assert objective(score.eval(), held_out).mean() < 0.5


class TestEmbeddings:
    def test_positional_is_its_formula(self):
        label = torch.tensor([0.0, 1.0, 500.5], dtype=torch.float64)
        features = PositionalEmbedding(6).double()(label)
        frequencies = [1.0, 10000**-0.5, 1e-4]
        expected = [[f(w * c) for f in (math.sin, math.cos) for w in frequencies] for c in label.tolist()]
        torch.testing.assert_close(features, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)

    def test_fourier_is_its_formula(self):
        embedding = FourierEmbedding(6, scale=3.0, seed=4)
        label = torch.tensor([0.0, -1.2, 0.7])
        angles = [[2 * math.pi * w * c for w in embedding.frequencies.tolist()] for c in label.tolist()]
        expected = [[f(a) for f in (math.sin, math.cos) for a in row] for row in angles]
        torch.testing.assert_close(embedding(label), torch.tensor(expected), rtol=0, atol=1e-5)

    def test_fourier_frequencies_are_normal_with_the_scale(self):
        frequencies = FourierEmbedding(20000, scale=3.0).frequencies
        assert frequencies.mean().abs() < 4 * 3 / 100 and (frequencies.std() / 3 - 1).abs() < 0.03
        assert (frequencies.abs() < 3).float().mean().sub(0.6827).abs() < 0.02

    def test_fourier_frequencies_follow_the_seed_and_leave_the_global_one(self):
        torch.manual_seed(0)
        first = FourierEmbedding(8, seed=1)
        after = torch.rand(1)
        torch.manual_seed(0)
        assert torch.equal(torch.rand(1), after)
        assert torch.equal(first.frequencies, FourierEmbedding(8, seed=1).frequencies)
        assert not torch.equal(first.frequencies, FourierEmbedding(8, seed=2).frequencies)

    def test_fourier_frequencies_are_saved_and_not_trained(self):
        saved = FourierEmbedding(8, seed=1)
        restored = FourierEmbedding(8, seed=2)
        restored.load_state_dict(saved.state_dict())
        assert torch.equal(restored.frequencies, saved.frequencies)
        assert list(saved.parameters()) == []

    @pytest.mark.parametrize("bad", [{"width": 5}, {"width": 2}, {"scale": 0.0}], ids=str)
    def test_refuses(self, bad):
        with pytest.raises(InputError):
            FourierEmbedding(**bad)


class TestUNet:
    def test_cifar10_parameter_count(self):
        with torch.device("meta"):
            network = UNet([3, 32, 32])
        assert sum(p.numel() for p in network.parameters()) == 35_746_307

    def test_memory_format_changes_nothing(self):
        network = build(UNet, shape=[2, 8, 8], attention=[4])
        x, label = draw(network)
        expected = network(x, label)
        network = network.to(memory_format=torch.channels_last)
        last = network(x.contiguous(memory_format=torch.channels_last), label)
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)

    def test_every_layer_keeps_channels_last(self):
        network = build(UNet, shape=[2, 8, 8], attention=[4]).to(memory_format=torch.channels_last)
        images = []
        for module in network.modules():
            module.register_forward_hook(lambda _, inputs, output: images.extend([*inputs, output]))
        x, label = draw(network)
        network(x.contiguous(memory_format=torch.channels_last), label)
        images = [i for i in images if torch.is_tensor(i) and i.ndim == 4]
        assert len(images) > 50
        assert all(i.is_contiguous(memory_format=torch.channels_last) for i in images)

    def test_dropout_only_in_training(self):
        network = build(UNet, dropout=0.5)
        x, label = draw(network)
        assert not torch.equal(network(x, label), network(x, label))
        network.eval()
        assert torch.equal(network(x, label), network(x, label))

    @pytest.mark.parametrize(
        ("size", "options"),
        [
            (32, {"channels": 32, "multipliers": [1, 2, 2, 2], "blocks": 2, "attention": [16], "groups": 16}),
            (8, {"channels": 32, "multipliers": [1, 2], "blocks": 1, "attention": [], "groups": 8}),
            (24, {"channels": 16, "multipliers": [1, 3, 2], "blocks": 3, "attention": [24, 6], "groups": 4}),
        ],
        ids=["cifar10", "digits", "uneven"],
    )
    def test_equals_diffusers(self, size, options):
        """The function is that of the authors' network, by way of diffusers' ddpm-cifar10-32, with our weights."""
        network = build(UNet, **{**options, "shape": [3, size, size]})
        reference = diffusers_unet(size, **options)
        reference.load_state_dict({translate(name, PATTERNS): value for name, value in network.state_dict().items()})
        x, index = torch.randn(BATCH, 3, size, size), torch.tensor([0, 37, 999])
        with torch.no_grad():
            ours, theirs = network.eval()(x, index), reference.eval()(x, index).sample
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
        eps = [{m.eps for m in n.modules() if isinstance(m, nn.GroupNorm)} for n in (network, reference)]
        assert eps[0] == eps[1]


def diffusers_unet(
    size: int, channels: int, multipliers: list[int], blocks: int, attention: list[int], groups: int
) -> nn.Module:
    """diffusers' network of the same configuration, with the settings of google/ddpm-cifar10-32."""
    from diffusers import UNet2DModel

    attends = ["Attn" if size >> level in attention else "" for level in range(len(multipliers))]
    return UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        block_out_channels=[channels * m for m in multipliers],
        layers_per_block=blocks,
        down_block_types=[f"{a}DownBlock2D" for a in attends],
        up_block_types=[f"{a}UpBlock2D" for a in reversed(attends)],
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=groups,
    )
