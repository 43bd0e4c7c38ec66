"""torchcfm's checkpoints: the same velocities as the authors' code from the same weights, and their integration.

torchcfm_*: `UNetModelWrapper` of atong01/conditional-flow-matching in evaluation mode at their times `t`; cifar10 as in its
train_cifar10.py, the others smaller (small: two heads of 64; scaled: use_scale_shift_norm, one head; mnist_cond: with the
labels 1 and 4). The images are 2 x - 1 of `torch.rand` of seed 0.
"""

import pytest
import torch
from recorded import recorded
from torch import nn

from lightning_score import interop
from lightning_score.errors import InputError
from lightning_score.interop.load import make
from lightning_score.sampling import NoiseStream
from lightning_score.score.function import ScoreFunction

pytestmark = pytest.mark.filterwarnings("ignore:.*at least two channels per group")
CASES = ["small", "scaled", "mnist_cond", pytest.param("cifar10", marks=pytest.mark.slow)]
OPTIMIZER = {"state": {}, "param_groups": [{"lr": 2e-4, "betas": (0.9, 0.999), "eps": 1e-8, "params": [0, 1]}]}


def images(*shape):
    return 2 * torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) - 1


def distance(ours, theirs):
    """The largest difference over the largest output, of the worst sample."""
    return float(((ours - theirs).abs().flatten(1).amax(1) / theirs.abs().flatten(1).amax(1)).max())


@pytest.mark.parametrize("name", CASES)
def test_velocity(name, tmp_path):
    """Theirs is E[x_0 - z given x_t], as a function of 1 - t."""
    case = recorded(f"torchcfm_{name}")
    averages = {f"module.{key}": tensor for key, tensor in case.state.items()}
    raw = {key: tensor + 1 for key, tensor in case.state.items()}
    torch.save({"net_model": raw, "ema_model": averages, "optim": OPTIMIZER, "step": 7}, tmp_path / "weights.pt")
    imported = interop.read(tmp_path / "weights.pt", "torchcfm", size=case.about["shape"][1])
    score = interop.build(imported)
    x, t = images(*case.about["shape"]), 1 - case.tensors["t"].double()
    labels = torch.tensor([1, 4]) if imported.num_classes else None
    with torch.no_grad():
        velocity = score.denoised(x, t, labels) - score.noise(x, t, labels)
        assert distance(velocity, case.tensors["output"]) < 1e-5
    assert imported.step == 7 and imported.model["optimizer"]["init_args"]["lr"] == 2e-4
    no_class = 0 if labels is None else len(score.network.conditioning.linear2.bias)  # one row
    assert sum(p.numel() for p in score.network.parameters()) == case.about["parameters"] + no_class
    bias = imported.weights["conv_in.bias"]
    torch.testing.assert_close(bias, imported.averages["conv_in.bias"] + 1)


def test_other_files_are_refused(tmp_path):
    """With what is missing or surplus."""
    state, path = recorded("torchcfm_small").state, tmp_path / "weights.pt"
    cases = {
        "lacks 'input_blocks.0.0.weight'|are not": {"input_blocks.0.0.bias": None, "input_blocks.0.0.weight": None},
        "lacks 'middle_block.1.qkv.bias'": {"middle_block.1.qkv.bias": None},
        "lacks 'output_blocks.1.2.conv.weight'": {"output_blocks.1.2.conv.weight": None},
        "1 unused tensors, label.weight": {"label.weight": torch.ones(1)},
        "resblock_updown=True": {"output_blocks.1.2.in_layers.0.weight": torch.ones(1)},
        "3 input_blocks are not 2 levels": {name: None for name in state if name.startswith("input_blocks.3.")},
    }
    for message, changes in cases.items():
        changed = {name: tensor for name, tensor in {**state, **changes}.items() if tensor is not None}
        torch.save(changed, path)
        with pytest.raises(InputError, match=message):
            interop.read(path, "torchcfm", size=16)
    for other in ({"net_model": 1}, {"a": 1}, [state], {"weight": torch.ones(1)}):
        torch.save(other, path)
        with pytest.raises(InputError, match=r"torchcfm checkpoint that can be converted|tensors by name"):
            interop.read(path, "torchcfm")


class Curved(nn.Module):
    """A network that is not linear in x, and depends on the label."""

    def forward(self, x, noise_label, cond=None):
        return (2 * x).sin() - noise_label[:, None, None, None]


@torch.inference_mode()
def test_sampling_is_the_authors_euler_method(tmp_path):
    """From noise alone x <- x + v/100 at their times 0, 0.01, ..., 0.99; the network here predicts -v."""
    torch.save(recorded("torchcfm_small").state, tmp_path / "weights.pt")
    model = interop.read(tmp_path / "weights.pt", "torchcfm", size=16).model
    score = ScoreFunction(Curved(), make(model["process"]), make(model["parametrization"])).double()
    drawn = make(model["sampler"])(score, NoiseStream(0, range(3), (1, 4, 4)))
    x = NoiseStream(0, range(3), (1, 4, 4)).normal().double()
    for k in range(100):
        x = x - score.network(x, torch.full((3,), k / 100)) / 100
    torch.testing.assert_close(drawn.x.double(), x, rtol=1e-5, atol=1e-5)
    assert drawn.nfe == 100
