"""Compiled steps equal eager ones, for one representative of each kind of method on a network's score; so do models."""

from functools import partial

import pytest
import torch
from laws import Given

from lightning_score import ScoreModel
from lightning_score.networks import UNet
from lightning_score.process import VE, VP, SigmaTable
from lightning_score.sampling import DDIM, AnnealedLangevinStep, Heun, PredictorCorrector, Uniform
from lightning_score.score.function import ScoreFunction
from lightning_score.score.parametrization import EDM, Noise, ScoreOverSigma

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("method", "process", "parametrization"),
    [
        (DDIM(0.5), VP(), Noise()),
        (Heun(), VE(0.01, 8.0), EDM()),
        (AnnealedLangevinStep(1e-4), SigmaTable(0.05, 2.0, 10), ScoreOverSigma()),
    ],
    ids=["ddim", "heun", "annealed-langevin"],
)
def test_a_compiled_step_is_the_eager_step(method, process, parametrization):
    torch.manual_seed(0)
    network = UNet((1, 8, 8), channels=8, multipliers=(1,), blocks=1, attention=(), groups=4, dropout=0.0).eval()
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)  # it starts from zero
    score = ScoreFunction(network, process, parametrization)
    x, z = torch.randn(2, 3, 1, 8, 8)
    times = torch.tensor([0.7, 0.6], dtype=torch.float64)
    state = method.init(process, times)

    def step(x, z):
        return method.step(score, x, times[0], times[1], Given(z), state)[0]

    with torch.no_grad():
        eager, compiled = step(x, z), torch.compile(step)(x, z)
    assert not isinstance(process, VP) or torch._dynamo.explain(step)(x, z).graph_break_count == 0
    assert float((eager - x).abs().max()) > 1e-3
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)


def test_a_compiled_model_is_the_eager_model():
    """Loss, gradients and samples."""

    def model(**options):
        torch.manual_seed(0)
        small = partial(UNet, channels=8, multipliers=(1,), blocks=1, attention=(), groups=4, dropout=0.0)
        made = ScoreModel(small, (1, 8, 8), VP(), sampler=PredictorCorrector(grid=Uniform(5, 0.01)), **options)
        torch.nn.init.normal_(made.score_function.network.conv_out.weight, std=0.1)  # it starts from zero
        return made

    batch = torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    results = []
    for each in (model(), model(compile="default")):
        torch.manual_seed(1)
        loss = each.loss(batch)
        loss.backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in each.parameters()])
        results.append((loss.detach(), gradients, each.sample(4)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4)
