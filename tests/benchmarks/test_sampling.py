"""The overhead of samplers: their time, compared with that of the same calls of the network alone.

The ratio is that of the network's time to the whole: 1 would be perfect, 0.98 is 2 % of the network's time on top.
"""

import time

import pytest
import torch
from conftest import CORRECTORS, PREDICTORS, quick

from benchmarks.parts import model_of
from lightning_score.sampling import (
    Ancestral,
    AnnealedLangevin,
    ConsistentAnnealedLangevin,
    Langevin,
    NoPredictor,
    PredictorCorrector,
    ReverseDiffusion,
    Uniform,
)

GRID = Uniform(20, 1e-2)
SMALL = {
    "ncsn": {
        "AnnealedLangevin": lambda: AnnealedLangevin(1e-5, 2),
        "ConsistentAnnealedLangevin": lambda: ConsistentAnnealedLangevin(9e-4),
    },
    "ddpm": {"Ancestral, clipped": lambda: PredictorCorrector(Ancestral(), grid=Uniform(20), clip=(-1, 1))},
    "vp_pc": {
        **{
            kind.__name__: lambda kind=kind: PredictorCorrector(quick(kind), grid=GRID)
            for kind in PREDICTORS
            if kind is not NoPredictor
        },
        **{
            kind.__name__: lambda kind=kind: PredictorCorrector(NoPredictor(), kind(), grid=GRID)
            for kind in CORRECTORS
            if kind().min_dimension <= 64
        },
    },
}
LARGE = {
    "cifar10/ddpm": {"ancestral": lambda: PredictorCorrector(Ancestral(fixed_large=True), grid=Uniform(5), clip=(-1, 1))},
    "cifar10/ncsnv2": {"annealed Langevin": lambda: AnnealedLangevin(6.2e-6, 1)},
    "cifar10/ncsnpp_ve": {
        "predictor-corrector": lambda: PredictorCorrector(ReverseDiffusion(), Langevin(0.16), grid=Uniform(3, 1e-5)),
    },
}
CASES = [(name, sampler) for group in (SMALL, LARGE) for name, samplers in group.items() for sampler in samplers]


class Timed(torch.nn.Module):
    """A network that sums the seconds spent in it, on a device that computes synchronously."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seconds, self.calls = network, 0.0, 0

    def forward(self, x, noise_label, cond=None):
        start = time.perf_counter()
        result = self.network(x, noise_label, cond)
        self.seconds, self.calls = self.seconds + time.perf_counter() - start, self.calls + 1
        return result


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_sampler_beside_its_network(name, kind, device, note, benchmark):
    sampler = {**SMALL, **LARGE}[name][kind]()
    batch = {"cpu": 4, "cuda": 256}[device] if name in LARGE else {"cpu": 256, "cuda": 1024}[device]
    options = ["--model.process.levels=6"] if name == "cifar10/ncsnv2" else []
    model = model_of(name, *options).to(device)
    for parameter in model.parameters():
        if not parameter.any():  # a score of zero has no norm for a step size
            torch.nn.init.normal_(parameter, std=0.02)
    network = Timed(model.score_function.network)
    model.score_function.network = network

    def whole():
        model.draw(range(batch), sampler=sampler)
        if device == "cuda":
            torch.cuda.synchronize()

    whole()
    network.seconds, network.calls = 0.0, 0
    start = time.perf_counter()
    benchmark.pedantic(whole, rounds=3)
    total = (time.perf_counter() - start) / 3
    calls, inside = network.calls // 3, network.seconds / 3
    if device == "cuda":
        x, label = torch.randn(batch, *model.shape, device=device), torch.ones(batch, device=device)
        with torch.inference_mode():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                network.network(x, label)
            torch.cuda.synchronize()
            inside = time.perf_counter() - start
    what = f"{name}, {kind}, {batch} samples, {calls} network calls"
    note(what, f"{total:.3g} s", "its network alone", f"{inside:.3g} s", f"{inside / total:.3f}")
