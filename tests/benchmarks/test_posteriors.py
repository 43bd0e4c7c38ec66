"""The table of methods for inverse problems in lightning_score/guidance/README.md, with the exact score and posterior.

`python -m pytest tests/benchmarks/test_posteriors.py -m benchmark -n 0 -s` prints it; it takes a quarter of an hour.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from conftest import QuickNoise
from posteriors import TWO_MODES_Y, Law, LawScore, Problem, digits, gaussian, two_modes
from torch import Tensor

from lightning_score.guidance import DPS, MomentMatching, NoisyLikelihood, Observed, PseudoInverse
from lightning_score.guidance.observed import At, LikelihoodGuidance, ObservationGuidance
from lightning_score.metrics.calibration import tarp
from lightning_score.process import VP
from lightning_score.sampling import HMC, DiffPIR, Geometric, Heun, Karras, NoPredictor, PredictorCorrector, Sampler
from lightning_score.sampling.twisted import TwistedSMC
from lightning_score.tensors import broadcast_to


@dataclass(eq=False, repr=False)
class RowSums(LikelihoodGuidance):
    """TMPD (Boys et al. 2023, 2310.06721): as MomentMatching, with A C A^T replaced by the diagonal of its row sums."""

    differentiates = True

    def likelihood(self, at: At) -> tuple[Tensor, Tensor]:
        operator, noise, y = at.observation
        observed = operator.apply(at.denoised)
        pull = partial(torch.autograd.grad, observed, at.x, retain_graph=True)
        sums = operator.apply(broadcast_to(at.sigma**2 / at.alpha, at.x) * pull(torch.ones_like(observed))[0])
        weighted = (y - observed) / (noise.variance(y, observed) + sums.clamp(min=0))
        return pull(weighted)[0], -(weighted * (y - observed)).sum(1) / 2


class Method(NamedTuple):
    """A guidance, made for a problem, and a sampler of 200 evaluations."""

    guidance: Callable[[Problem], ObservationGuidance]
    sampler: Sampler


def pseudo_inverse(problem: Problem, **options: Any) -> PseudoInverse:
    std = float(problem.prior.total_covariance.diagonal().mean().sqrt())
    return PseudoInverse(problem.operator, noise=problem.noise, data_std=std, **options)


def of(kind: type[ObservationGuidance], **options: Any) -> Callable[[Problem], ObservationGuidance]:
    """Makes a guidance with these options."""
    return lambda problem: kind(problem.operator, noise=problem.noise, **options)


HEUN = PredictorCorrector(Heun(), grid=Karras(100, 1e-4))
CORRECTED = PredictorCorrector(Heun(), HMC(0.5, 5), grid=Karras(25, 1e-3))
ANNEALED = PredictorCorrector(NoPredictor(), HMC(0.5, 5), grid=Karras(33, 1e-3))
PARTICLES = 16
RESTORED = PredictorCorrector(DiffPIR(), grid=Karras(200, 1e-4))
REPAINTED = PredictorCorrector(DiffPIR(zeta=None, repeats=4), grid=Karras(50, 1e-4))
TWISTED = TwistedSMC(particles=PARTICLES, grid=Geometric(200, 1e-4))
ONCE = of(MomentMatching, iterations=1)
METHODS = {
    "`PseudoInverse`": Method(pseudo_inverse, HEUN),
    "`PseudoInverse`, backprop": Method(partial(pseudo_inverse, backprop=True), HEUN),
    "`DPS`": Method(of(DPS), HEUN),
    "`DPS`, strength 0.6": Method(of(DPS, strength=0.6), HEUN),
    "TMPD (left out)": Method(of(RowSums), HEUN),
    "`MomentMatching`, 1 iteration": Method(ONCE, HEUN),
    "`MomentMatching`, 3 iterations": Method(of(MomentMatching), HEUN),
    "`MomentMatching`, 1 iteration, and `HMC`": Method(ONCE, CORRECTED),
    "`NoisyLikelihood`, `HMC` alone": Method(of(NoisyLikelihood), ANNEALED),
    "`DiffPIR`": Method(of(Observed), RESTORED),
    "`DiffPIR`, 4 repeats (RePaint)": Method(of(Observed), REPAINTED),
    "`TwistedSMC` of `PseudoInverse`": Method(pseudo_inverse, TWISTED),
    "`TwistedSMC` of `MomentMatching`, 1 iteration": Method(ONCE, TWISTED),
}


class CountedScore(LawScore):
    """Counts backward passes, too, in rows."""

    gradients = 0

    def exact(self, x, alpha, sigma):
        score = super().exact(x, alpha, sigma)
        if score.requires_grad:
            score.register_hook(lambda gradient: setattr(self, "gradients", self.gradients + len(gradient)))
        return score


class Drawn(NamedTuple):
    """Samples (n, *shape), and per sample evaluations and backward passes of the network; seconds of the processor."""

    x: Tensor
    evaluations: float
    gradients: float
    seconds: float


def draw(
    method: Method | None, problem: Problem, y: Tensor, n: int, law: Law | None = None, dtype: torch.dtype = torch.float64
) -> Drawn:
    """n samples, as many in a row for each observation; without a method those of a law, by default of the prior."""
    score = CountedScore(VP(), law or problem.prior)
    guided, sampler = score, HEUN
    if method is not None:
        guidance = method.guidance(problem).observe_with(y.to(dtype), n // len(y))
        guided, sampler = guidance.guide(score, torch.arange(n)), method.sampler
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few effective samples
        x = sampler(guided, QuickNoise((n, *problem.prior.shape), dtype=dtype)).x
    return Drawn(x.double(), score.evaluations / n, score.gradients / n, time.process_time() - start)


def moments(law: Law, x: Tensor) -> tuple[float, float]:
    """The errors of mean and covariance where that of the law is I: root mean squares over directions."""
    values, vectors = torch.linalg.eigh(law.total_covariance)
    z = (x.flatten(1) - law.mean) @ vectors / values.sqrt()
    error = z.mT.cov() - torch.eye(len(values))
    return float(z.mean(0).square().mean().sqrt()), float(error.norm() / len(values) ** 0.5)


def one_observation(problem: Problem) -> Tensor:
    """One observation of a problem, (1, m)."""
    generator = torch.Generator().manual_seed(1)
    return problem.observe(problem.prior.sample(1, generator), generator)


class Observations:
    """K digits and an observation of each, with the exact posteriors."""

    def __init__(self, k: int):
        generator = torch.Generator().manual_seed(2)
        self.problem = digits()
        self.truth = self.problem.prior.sample(k, generator)
        self.y = self.problem.observe(self.truth, generator)
        self.laws = [self.problem.posterior(y) for y in self.y]
        self.references = self.problem.prior.sample(20 * k, generator).reshape(k, 20, 64)
        self.generator = generator

    def errors(self, x: Tensor) -> tuple[float, float]:
        """Of samples (K M, *shape): the mean square distance to the exact mean over the exact one, and TARP's deviation."""
        x = x.reshape(len(self.truth), -1, 64)
        mean = torch.stack([law.mean for law in self.laws])
        exact = torch.stack([law.total_covariance.trace() for law in self.laws])
        spread = ((x - mean[:, None]).square().sum(2).mean(1) / exact).mean()
        return float(spread), tarp(x, self.truth.flatten(1), self.references).deviation


def test_table(k=100, m=PARTICLES, n=4096):
    """Prints it."""
    seen, simple = Observations(k), {"gaussian": gaussian(), "two modes": two_modes()}
    ys = {"gaussian": one_observation(simple["gaussian"]), "two modes": TWO_MODES_Y}
    laws = {name: problem.posterior(ys[name][0]) for name, problem in simple.items()}
    unguided = draw(None, seen.problem, seen.y, k * m, dtype=torch.float32).seconds
    print(f"\nmode share of the exact posterior: {float(laws['two modes'].weights[0]):.3f}\n")
    columns = ["method", "Gaussian: mean", "covariance", "two modes: mean", "covariance", "share", "digits: spread", "TARP",
               "evaluations", "network gradients", "seconds"]  # fmt: skip
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))

    def row(title, drawn, of_digits):
        cells = []
        for name, x in drawn.items():
            cells += [f"{error:.2f}" for error in moments(laws[name], x)]
        cells.append(f"{float(laws['two modes'].shares(drawn['two modes'])[0]):.2f}")
        cells += [f"{seen.errors(of_digits.x)[0]:.2f}", f"{seen.errors(of_digits.x)[1]:.3f}"]
        costs = [f"{of_digits.evaluations:.0f}", f"{of_digits.gradients:.0f}", f"{of_digits.seconds / unguided:.1f}"]
        print("| " + " | ".join([title, *cells, *costs]) + " |", flush=True)

    exact = {name: law.sample(n, seen.generator) for name, law in laws.items()}
    row("exact draws", exact, Drawn(torch.cat([law.sample(m, seen.generator) for law in seen.laws]), 0, 0, 0.0))
    for title, method in METHODS.items():
        drawn = {name: draw(method, problem, ys[name], n).x for name, problem in simple.items()}
        row(title, drawn, draw(method, seen.problem, seen.y, k * m, dtype=torch.float32))
