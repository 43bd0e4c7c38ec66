"""What all guidances by observations do: consistency, observations of samples, batches, counts, refusals."""

from functools import partial

import pytest
import torch
from conftest import times
from posteriors import TWO_MODES_Y, LawScore, gaussian, two_modes

from lightning_score import ScoreModel
from lightning_score.errors import InputError
from lightning_score.guidance import (
    DPS,
    ClassifierFree,
    Composed,
    Gray,
    Mask,
    ModelFacts,
    MomentMatching,
    NoisyLikelihood,
    Observed,
    PseudoInverse,
)
from lightning_score.networks import UNet
from lightning_score.observations import GaussianNoise, Operator, PoissonNoise
from lightning_score.process import VP
from lightning_score.sampling import DDIM, PredictorCorrector, Uniform
from lightning_score.score import EDM

METHODS = {
    "DPS": DPS,
    "MomentMatching": partial(MomentMatching, iterations=6),
    "NoisyLikelihood": NoisyLikelihood,
    "PseudoInverse": PseudoInverse,
    "PseudoInverse, backprop": partial(PseudoInverse, backprop=True),
    "Observed": Observed,
}


class Squares(Operator):
    """Differences of neighbors, squared: not linear."""

    def apply(self, x):
        return (x.flatten(1)[:, 1:] - x.flatten(1)[:, :-1]) ** 2

    def check(self, shape):
        pass


def guided(name, problem=None, y=None, **options):
    problem = problem or gaussian()
    generator = torch.Generator().manual_seed(0)
    y = problem.observe(problem.prior.sample(3, generator), generator) if y is None else y
    guidance = METHODS[name](problem.operator, y, noise=problem.noise, **options)
    return guidance.guide(LawScore(VP(), problem.prior), torch.arange(8))


@pytest.mark.parametrize(
    ("name", "std"),
    [("DPS", 0.3), ("DPS", None), ("MomentMatching", 0.3), ("NoisyLikelihood", 0.3), ("PseudoInverse, backprop", 0.3)],
)
def test_the_gradient_is_that_of_the_likelihood(name, std):
    """grad log q in x_t; of moment matching where the covariance does not depend on x, as for Gaussian data."""
    problem, t = gaussian(), times(8)
    y, x = torch.randn(3, 6, dtype=torch.float64), torch.randn(8, 16, dtype=torch.float64, requires_grad=True)
    unbounded = {"data_std": 1e9} if name in ("DPS", "MomentMatching") else {}
    guidance = METHODS[name](problem.operator, y, noise=GaussianNoise(std), strength=0.7, **unbounded)
    found = guidance.guide(LawScore(VP(), problem.prior), torch.arange(8)).twisted(x, t)
    (gradient,) = torch.autograd.grad(found.log_likelihood.sum(), x)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_does_not_depend_on_its_batch_and_inference_mode_changes_nothing(name):
    """Times () and (B,), with a graph for the caller and without."""
    score, t = guided(name), torch.tensor(0.3, dtype=torch.float64)
    x = torch.randn(8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = score(x.clone(), t)
    before = score.evaluations
    found = score.twisted(x, t.expand(8))
    assert score.evaluations - before == 8  # one call of the network
    torch.testing.assert_close(found.score + found.gradient, whole)
    problem = gaussian()
    alone = METHODS[name](problem.operator, score.observation.y[3:4], noise=problem.noise)
    alone = alone.guide(LawScore(VP(), problem.prior), torch.zeros(1, dtype=torch.int64)).twisted(x[3:4], t)
    for part, row in zip(alone, found, strict=True):
        torch.testing.assert_close(part, row[3:4], rtol=1e-9, atol=1e-9)
        assert not part.requires_grad
    leaf = x.clone().requires_grad_()
    kept = score(leaf, t)
    torch.testing.assert_close(kept.detach(), whole)
    (gradient,) = torch.autograd.grad(kept.square().sum(), leaf)
    step = 1e-6 * torch.randn_like(x)
    change = score(x + step, t).square().sum() - score(x - step, t).square().sum()
    torch.testing.assert_close((gradient * step).sum() * 2, change, rtol=1e-4, atol=1e-9)


def test_moment_matching_of_an_operator_that_is_not_linear_is_that_of_its_derivative():
    """Against dense Jacobians of the operator and of the denoised image, with noise that differs between the numbers."""
    score, t = LawScore(VP(), two_modes().prior), torch.tensor(0.2, dtype=torch.float64)
    operator, noise = Squares(), PoissonNoise(rate=5.0)
    x, y = torch.tensor([[0.4, -0.3]], dtype=torch.float64), torch.tensor([[1.5]], dtype=torch.float64)
    found = MomentMatching(operator, y, noise=noise).guide(score, torch.zeros(1, dtype=torch.int64)).twisted(x, t)
    alpha, sigma = score.process.alpha(t), score.process.sigma(t)
    denoised = lambda v: ((v + sigma**2 * score(v, t)) / alpha)[0]  # noqa: E731
    jacobian = torch.autograd.functional.jacobian(denoised, x)[:, 0]
    mean = denoised(x)[None]
    h = torch.autograd.functional.jacobian(lambda v: operator.apply(v)[0], mean)[:, 0]
    covariance = noise.variance(y, operator.apply(mean)) + sigma**2 / alpha * h @ jacobian @ h.mT
    weighted = torch.linalg.solve(covariance, (y - operator.apply(mean)).mT)
    torch.testing.assert_close(found.gradient, (jacobian.mT @ h.mT @ weighted).mT)


class Inexact(LawScore):
    """A score with an error as networks have it, of a hundredth of the noise, which no potential has."""

    def exact(self, x, alpha, sigma):
        skew = torch.randn(16, 16, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
        return super().exact(x, alpha, sigma) + 0.01 / sigma**2 * x @ skew


@pytest.mark.parametrize("kind", [DPS, MomentMatching])
def test_the_error_of_a_network_does_not_blow_up_where_the_image_is_lost_in_noise(kind):
    """At alpha near 0 the denoised image moves by no more than five standard deviations of the data."""
    problem, t = gaussian(), torch.tensor(1.0, dtype=torch.float64)
    y, x = torch.randn(64, 6, dtype=torch.float64), torch.randn(64, 16, dtype=torch.float64)
    guided = kind(problem.operator, y, noise=problem.noise).guide(Inexact(VP(), problem.prior), torch.arange(64))
    alpha, sigma = VP().alpha(t), VP().sigma(t)
    moved = (sigma**2 / alpha * guided.twisted(x, t).gradient).square().mean(1).sqrt()
    assert float(moved.max()) <= 5 * 0.5 + 1e-6
    assert (kind is MomentMatching) or float(moved.min()) > 1  # the limit is met


@pytest.mark.parametrize("name", METHODS)
def test_at_little_noise_the_likelihood_is_that_of_the_observation(name):
    """As t goes to 0 the guided score tends to the posterior's, which that of noisy samples meets only there."""
    problem, t = two_modes(), torch.tensor(1e-5, dtype=torch.float64)
    posterior = problem.posterior(TWO_MODES_Y[0])
    x = posterior.sample(8, torch.Generator().manual_seed(0))
    prior, expected = (LawScore(VP(), law)(x, t) for law in (problem.prior, posterior))
    close = {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(guided(name, problem, TWO_MODES_Y)(x, t), prior if name == "Observed" else expected, **close)


def test_samples_have_observations_in_turn_each_for_as_many_as_asked():
    y = torch.arange(3.0)[:, None]
    guidance = Observed(Mask([1, 0]), noise=GaussianNoise(0.1)).observe_with(y, 2)
    rows = guidance.guide(LawScore(VP(), two_modes().prior), torch.tensor([0, 1, 2, 5, 6, 13])).observation.y
    assert rows.flatten().tolist() == [0, 0, 1, 2, 0, 0]


SMALL = {"channels": 8, "multipliers": [1, 1], "blocks": 1, "attention": [], "groups": 4}
"""An untrained network, with which EDM has the score of N(0, 0.5^2 I)."""


@pytest.mark.parametrize("name", METHODS)
def test_images_are_drawn_given_class_and_observation(name):
    """The posterior outside of classifier-free guidance, in single precision; samples do not depend on their batch."""
    torch.manual_seed(0)
    labels = {"num_classes": 4, "conditional": True, "label_dropout": 0.1}
    model = ScoreModel(lambda shape, classes: UNet(shape, classes, **SMALL), [3, 8, 8], VP(), EDM(), **labels)
    by_observation = METHODS[name](Gray(), torch.rand(2, 1, 8, 8) - 0.5, noise=GaussianNoise(0.5))
    model.use(PredictorCorrector(DDIM(), grid=Uniform(4, 1e-3)), Composed([ClassifierFree(1.5), by_observation]))
    drawn = model.draw(range(4))
    assert drawn.nfe == 8 and not drawn.x.requires_grad
    torch.testing.assert_close(model.draw([2, 3]).x, drawn.x[2:], atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_refused_in_one_line():
    trained = ModelFacts((16,), 0, False, 0.0)
    y, k, operator = torch.zeros(2, 6), {"noise": GaussianNoise(0.1)}, gaussian().operator
    squares, off = torch.full((2, 15), 0.5), torch.full((2, 6), float("nan"))
    for wrong, words in (
        (lambda: DPS(operator, torch.zeros(2, 5), **k).check(trained), r"\[2, 5\]: must be \[n, 6\]"),
        (lambda: DPS(operator, off, **k).check(trained), "NaN"),
        (lambda: DPS(operator, y).check(trained), "DPS: needs noise above 0"),
        (lambda: MomentMatching(operator, y, noise=GaussianNoise(0.0)).check(trained), "needs noise above 0"),
        (lambda: NoisyLikelihood(operator, -1 - y, noise=PoissonNoise()).check(trained), "PoissonNoise"),
        (lambda: PseudoInverse(Squares(), squares).check(trained), "needs a linear operator, and Squares is not"),
        (lambda: PseudoInverse(operator, y, noise=GaussianNoise(None)).check(trained), "of a known std"),
        (lambda: PseudoInverse(operator, y, noise=GaussianNoise(0.1), noise_std=0.1), "leave one of them out"),
        (lambda: DPS(operator, y, **k).check(trained._replace(compiled=True)), "set compile: null"),
        (lambda: PseudoInverse(operator, y, backprop=True).check(trained._replace(compiled=True)), "compile"),
        (lambda: DPS(operator, **k).guide(LawScore(VP(), gaussian().prior), torch.arange(2)), "no observation"),
        (lambda: DPS(operator, y, **k, samples_per_observation=0), "samples_per_observation=0"),
        (lambda: DPS(operator, y, **k, strength=-1.0), "strength=-1"),
        (lambda: MomentMatching(operator, y, **k, iterations=0), "iterations=0"),
        (lambda: MomentMatching(operator, y, **k, data_std=0.0), "data_std=0"),
    ):
        with pytest.raises(InputError, match=words) as error:
            wrong()
        assert "\n" not in str(error.value)
    for fits in (PseudoInverse(operator, y), NoisyLikelihood(operator, y, **k), Observed(operator, y)):
        fits.check(trained._replace(compiled=True))
    DPS(Squares(), squares, noise=PoissonNoise()).check(trained)
