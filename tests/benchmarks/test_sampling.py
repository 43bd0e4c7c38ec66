"""The overhead of samplers, and how soon one image is there.

The overhead is what a sampler takes beyond the same calls of its networks, in percent of these: the median of many rounds,
each timed inside and outside of the networks. Large networks draw 1 and 16 samples, on CUDA 256, too.
"""

import statistics
import time

import pytest
import torch
from conftest import CORRECTORS, PREDICTORS, quick

from benchmarks.conftest import duration
from benchmarks.parts import model_of
from lightning_score.guidance import Autoguidance, ClassifierFree, Observed, PseudoInverse
from lightning_score.observations import Mask
from lightning_score.sampling import (
    Ancestral,
    AnnealedLangevin,
    ConsistentAnnealedLangevin,
    DiffPIR,
    Heun,
    Karras,
    Langevin,
    NoPredictor,
    PredictorCorrector,
    ReverseDiffusion,
    Tweedie,
    Uniform,
)

clock = time.thread_time if torch.get_num_threads() == 1 and not torch.cuda.is_available() else time.perf_counter
"""With one thread the processor's time, so that other work of the machine does not count."""
GRID, HALF = Uniform(20, 1e-2), Mask([[1.0] * 8] * 4 + [[0.0] * 8] * 4)
SMALL = {
    "ncsn": {
        "own sampler": None,
        "AnnealedLangevin": AnnealedLangevin(1e-5, 2),
        "ConsistentAnnealedLangevin": ConsistentAnnealedLangevin(9e-4),
    },
    "ddpm": {"own sampler": None, "Ancestral, clipped": PredictorCorrector(Ancestral(), grid=Uniform(20), clip=(-1, 1))},
    "flow": {"own sampler": None},
    "vp_pc": {
        "own sampler": None,
        **{k.__name__: PredictorCorrector(quick(k), grid=GRID) for k in PREDICTORS if k is not NoPredictor},
        **{k.__name__: PredictorCorrector(NoPredictor(), k(), grid=GRID) for k in CORRECTORS if k().min_dimension <= 64},
    },
}
GUIDED = {
    "conditional": {
        "ClassifierFree": (ClassifierFree(1.5), None),
        "ClassifierFree in an interval": (ClassifierFree(1.5, [0.2, 2]), None),
    },
    "vp_pc": {
        "Autoguidance": (Autoguidance("digits/vp_pc"), None),
        "PseudoInverse": (PseudoInverse(HALF), None),
        "DiffPIR": (Observed(HALF), PredictorCorrector(DiffPIR(), grid=GRID)),
    },
}
LARGE = {
    "cifar10/ddpm": {"Ancestral": PredictorCorrector(Ancestral(fixed_large=True), grid=Uniform(5), clip=(-1, 1))},
    "cifar10/ncsnv2": {"AnnealedLangevin": AnnealedLangevin(6.2e-6, 1)},
    "cifar10/ncsnpp_ve": {
        "ReverseDiffusion and Langevin": PredictorCorrector(ReverseDiffusion(), Langevin(0.16), grid=Uniform(3, 1e-5))
    },
    "cifar10/edm": {"Heun": PredictorCorrector(Heun(), grid=Karras(3), denoise=Tweedie())},
}
SIZES = (1, 16, 256)
CASES = [
    (name, kind, n)
    for group in (SMALL, GUIDED, LARGE)
    for name, kinds in group.items()
    for kind in kinds
    for n in (SIZES[:2] if group is LARGE and not torch.cuda.is_available() else SIZES)
]
LATENCY = ["ncsn", "ddpm", "vp_pc", "flow", "conditional", "ect", "toy", "fashion_mnist/ncsn16", "fashion_mnist/ddpm16",
           "fashion_mnist/edm16"]  # fmt: skip


def time_calls(network, spent):
    """Makes a network add the seconds of each call to a list, on a device that computes synchronously."""
    forward = network.forward

    def call(*args):
        start = clock()
        result = forward(*args)
        spent.append(clock() - start)
        return result

    network.forward = call


def timed(name, kind, device):
    """The model, ready to sample, its sampler, and the list to which its networks add their seconds."""
    options = ["--model.process.levels=6"] if name == "cifar10/ncsnv2" else []
    model, spent = model_of(name, *options).to(device).eval(), []
    guidance, sampler = GUIDED.get(name, {}).get(kind, (None, {**SMALL, **LARGE}.get(name, {}).get(kind)))
    model.use(sampler or model.sampler, guidance)
    if guidance is not None and guidance.observing():
        model.guidance = guidance.observe_with(torch.zeros(1, int(HALF.mask.sum()), device=device))
    for parameter in model.parameters():
        if not parameter.any():  # a score of zero has no norm for a step size
            torch.nn.init.normal_(parameter, std=0.02)
    for score in (model.score_function, getattr(guidance, "weak", None)):
        if score is not None:
            time_calls(score.network, spent)
    return model, spent


@pytest.mark.parametrize(("name", "kind", "n"), CASES)
def test_sampler_beside_its_network(name, kind, n, device, note, benchmark):
    model, spent = timed(name, kind, device)
    rounds = []

    def whole():
        spent.clear()
        start = clock()
        model.draw(range(n))
        if device == "cuda":
            torch.cuda.synchronize()
        rounds.append((clock() - start, sum(spent)))

    whole()
    total, calls = rounds.pop()[0], len(spent)
    benchmark.pedantic(whole, rounds=max(3, min(30, int(2 / total))))
    total = statistics.median(total for total, _ in rounds)
    inside = statistics.median(inside for _, inside in rounds)
    beyond = statistics.median(total - inside for total, inside in rounds)
    if device == "cuda":
        inside = alone(model, n, calls)
        beyond = total - inside
    what = f"{name}, {kind}, {n} samples, {calls} network calls"
    note(what, duration(total), f"beyond the network, {duration(beyond / calls)} a call", duration(inside),
         f"{100 * beyond / inside:.1f} %")  # fmt: skip


def alone(model, n, calls):
    """Seconds of as many calls of the model's network in a row, on CUDA."""
    x, label = torch.randn(n, *model.shape, device="cuda"), torch.ones(n, device="cuda")
    with torch.inference_mode():
        torch.cuda.synchronize()
        start = clock()
        for _ in range(calls):
            model.score_function.network(x, label)
        torch.cuda.synchronize()
    return clock() - start


@pytest.mark.parametrize("name", LATENCY)
def test_one_image(name, device, note, benchmark):
    """From the call to the image on the CPU: the first one, and later ones."""
    model = model_of(name).to(device).eval()

    def one():
        start = clock()
        model.draw([0]).x.cpu()
        return clock() - start

    first, seconds = one(), []
    benchmark.pedantic(lambda: seconds.append(one()), rounds=15)
    note(f"{name}: one image", duration(statistics.median(seconds)), "the first one", duration(first), "")
