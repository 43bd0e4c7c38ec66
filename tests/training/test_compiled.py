"""Compiled steps of samplers equal eager ones, for one representative of each kind of method; so do models."""

from functools import partial

import pytest
import torch

from lightning_score import ScoreModel
from lightning_score.guidance import ClassifierFree
from lightning_score.networks import UNet
from lightning_score.process import VE, VP, BetaTable, Linear, SigmaTable
from lightning_score.sampling import (
    DDIM,
    Ancestral,
    AnnealedLangevin,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    SASolver,
    Uniform,
    UniPC,
)
from lightning_score.score import EDM, Flow, ScoreOverSigma

pytestmark = pytest.mark.slow


SMALL = partial(UNet, channels=8, multipliers=(1,), blocks=1, attention=(), groups=4, dropout=0.0)


def model(process=None, **options):
    """A small model with random weights."""
    torch.manual_seed(0)
    made = ScoreModel(SMALL, (1, 8, 8), process or VP(), **options)
    torch.nn.init.normal_(made.score_function.network.conv_out.weight, std=0.1)  # it starts from zero
    return made.eval()


GRID = Uniform(5, 0.01)
CONDITIONAL = {"num_classes": 3, "conditional": True, "label_dropout": 0.1}


@pytest.mark.parametrize(
    ("sampler", "graphs", "options"),
    [
        (PredictorCorrector(Ancestral(), grid=GRID, clip=(-1, 1)), 1, {}),
        (PredictorCorrector(ReverseDiffusion(), Langevin(), grid=GRID), 2, {}),
        (PredictorCorrector(DDIM(), grid=GRID), 1, {"process": BetaTable(steps=100)}),
        (PredictorCorrector(Heun(), grid=GRID), 1, {"process": VE(0.01, 8.0), "parametrization": EDM()}),
        (PredictorCorrector(SASolver(tau_max=1e9), grid=GRID), 1, {"process": Linear(), "parametrization": Flow()}),
        (PredictorCorrector(UniPC(), grid=GRID), 1, {**CONDITIONAL, "guidance": ClassifierFree(1.5)}),
        (AnnealedLangevin(1e-4, 2), 2, {"process": SigmaTable(0.05, 2.0, 4), "parametrization": ScoreOverSigma()}),
    ],
    ids=["ancestral-clipped", "predictor-corrector", "ddim-table", "heun", "sa-solver-flow", "unipc-guided", "annealed"],
)
def test_compiled_steps_are_the_eager_steps_in_one_graph_for_all_times(sampler, graphs, options):
    """With no break, and no further graph for later steps, draws and seeds; evaluations are counted."""
    made = model(**options)
    eager = made.draw(range(3), 1, sampler=sampler)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    made.compiled = "default"
    first, other = made.draw(range(3), 1, sampler=sampler), made.draw(range(3), 2, sampler=sampler)
    found = torch._dynamo.utils.counters
    assert found["stats"]["unique_graphs"] == graphs and not found["graph_break"]
    torch.testing.assert_close(first.x, eager.x, rtol=1e-4, atol=1e-4)
    assert float((other.x - first.x).abs().max()) > 1e-2 and first.nfe == other.nfe == eager.nfe


def test_a_compiled_model_is_the_eager_model():
    """Loss, gradients and samples."""

    batch = torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    results = []
    for options in ({}, {"compile": "default"}):
        each = model(sampler=PredictorCorrector(grid=GRID), **options)
        torch.manual_seed(1)
        loss = each.loss(batch)
        loss.backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in each.parameters()])
        results.append((loss.detach(), gradients, each.sample(4)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4)
