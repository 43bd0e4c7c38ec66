"""Samplers on a GPU that is not there: torch's fake tensors know devices and shapes but no values.

They refuse what would mix devices, and whatever would read a value and so make the processor wait for the GPU.
"""

import pytest
import torch
from conftest import PREDICTORS, ImageScore, pairs, quick
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lightning_score.data.images import ToBatch
from lightning_score.guidance import ClassifierFree
from lightning_score.process import VE, VP, BetaTable, SigmaTable
from lightning_score.sampling import (
    RK45,
    Ancestral,
    AnnealedLangevin,
    ConsistentAnnealedLangevin,
    Heun,
    LangevinDynamics,
    PredictorCorrector,
    ProcessTable,
    Tweedie,
    Uniform,
    UniformNoise,
)
from lightning_score.sampling.noise import NoiseSource
from lightning_score.score.function import Conditioned, ScoreFunction
from lightning_score.score.parametrization import EDM, Noise, Score, ScoreOverSigma

SHAPE = (3, 32, 32)


FAKE = FakeTensorMode(allow_non_fake_inputs=True)


class OnFakeGPU(TorchFunctionMode):
    """Inside, whatever touches the GPU is fake, and what stays on the processor is real."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs))
        if any(isinstance(leaf, FakeTensor) or (isinstance(leaf, torch.device) and leaf.type == "cuda") for leaf in leaves):
            with FAKE:
                return function(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


class FakeDraws(NoiseSource):
    """Draws on the GPU that is not there."""

    device, dtype, shape = torch.device("cuda"), torch.float32, (2, *SHAPE)

    def normal(self):
        return torch.empty(self.shape, device=self.device)

    uniform = normal

    def acceptance(self):
        return torch.empty(self.shape[0], device=self.device)


class Convolution(nn.Module):
    """A network of one convolution that is given level and label."""

    def __init__(self):
        super().__init__()
        with FAKE:
            self.kernel = nn.Parameter(torch.empty(3, 3, 3, 3, device="cuda"))
            self.labels = nn.Parameter(torch.empty(11, 3, device="cuda"))

    def forward(self, x, noise_label, cond=None):
        shift = noise_label.reshape(-1, 1) + (0 if cond is None else F.embedding(cond, self.labels))
        return F.conv2d(x, self.kernel, padding=1) + shift.reshape(len(x), -1, 1, 1)


@pytest.mark.parametrize(("flip", "dequantize"), [(False, False), (True, True)])
def test_batches_are_made_where_the_images_are(flip, dequantize):
    with OnFakeGPU():
        images = torch.empty(8, *SHAPE, dtype=torch.uint8, device=torch.device("cuda"))
        batch = ToBatch((-1.0, 1.0), 256, dequantize, flip)(images)
    assert batch.device.type == "cuda" and batch.dtype == torch.float32 and batch.shape == images.shape


def run_on_gpu(score, sampler):
    with torch.inference_mode(), OnFakeGPU():
        result = sampler(score, FakeDraws()).x
    assert result.device.type == "cuda" and result.shape == (2, *SHAPE) and result.dtype == torch.float32


@pytest.mark.parametrize(("kind", "corrector"), pairs([kind for kind in PREDICTORS if kind is not RK45]))
@pytest.mark.parametrize("process", [VP(), SigmaTable(0.01, 8.0, 30)], ids=lambda p: type(p).__name__)
def test_no_step_waits_for_the_gpu(process, kind, corrector):
    run_on_gpu(ImageScore(process), PredictorCorrector(quick(kind), corrector, grid=Uniform(3, 0.01)))


@pytest.mark.parametrize(
    ("process", "parametrization", "sampler"),
    [
        (SigmaTable(0.01, 8.0, 30), Score(), AnnealedLangevin(2e-5, 2, initial=UniformNoise())),
        (SigmaTable(0.01, 8.0, 300), ScoreOverSigma(), ConsistentAnnealedLangevin(4e-6)),
        (BetaTable(), Noise(), PredictorCorrector(Ancestral(), grid=ProcessTable(10), clip=(-1, 1))),
        (VE(0.01, 8.0), EDM(), PredictorCorrector(Heun(), grid=Uniform(5, 0.01), denoise=Tweedie())),
        (VP(), Noise(), LangevinDynamics(1e-5, 3, t=0.1)),
    ],
    ids=lambda v: type(v).__name__,
)
@pytest.mark.parametrize("guided", [False, True])
def test_no_network_waits_for_the_gpu(process, parametrization, sampler, guided):
    """In every parametrization, with labels and guidance too."""
    score = ScoreFunction(Convolution(), process, parametrization, 10)
    if guided:
        with FAKE:
            labels = torch.empty(2, dtype=torch.long, device="cuda")
        score = Conditioned(ClassifierFree(2.0).guide(score, labels), labels)
    run_on_gpu(score, sampler)
