"""Weights that are learned: what they become, and that the network's minimizer stays where it is."""

import pytest
import torch
from conftest import MixtureScore

from lightning_score.data import Mixture
from lightning_score.networks import MLP
from lightning_score.objective import (
    DenoisingScoreMatching,
    EDMWeighting,
    FixedTimes,
    ImportanceTimes,
    Likelihood,
    LogNormalTimes,
    MinSNR,
    SigmaSquared,
    Uncertainty,
    UniformTimes,
)
from lightning_score.process import VE, VP, Linear
from lightning_score.score.function import ScoreField, ScoreWrapper
from lightning_score.tensors import broadcast_to
from lightning_score.training.model import ScoreModel

MIXTURE = Mixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.2])


class Zero(ScoreField):
    """A score of 0, whose residual is the noise."""

    evaluations = 0

    def forward(self, x, t, cond=None):
        return torch.zeros_like(x)


def fitted(objective, score, x, steps=40):
    """Minimizes the loss over the weighting alone, which is convex in its parameters, for fixed times and noise."""
    optimizer = torch.optim.LBFGS(objective.learned.parameters(), lr=1, max_iter=steps, line_search_fn="strong_wolfe")

    def loss():
        torch.manual_seed(0)
        optimizer.zero_grad()
        value = objective(score, x).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return loss().detach()


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("weighting", [SigmaSquared(), EDMWeighting(0.7), MinSNR()], ids=lambda w: type(w).__name__)
def test_of_a_zero_score_the_weight_becomes_one_over_the_noise(weighting, mean):
    """E lambda ||z/sigma||^2/D = lambda/sigma^2, so e^u is that, for half the sum as for the mean, whatever lambda is."""
    process, x = VP(), torch.zeros(4000, 16)
    objective = DenoisingScoreMatching(Uncertainty(weighting, 32), LogNormalTimes(0.0, 1.0, stratified=True), mean)
    fitted(objective, Zero(process), x)
    t = process.time_of(torch.tensor([0.2, 0.6, 1.0, 2.0, 5.0]))
    expected = weighting(process, t) / process.sigma(t) ** 2
    u = objective.weighting.penalty(process, t)
    torch.testing.assert_close(u.exp(), expected, rtol=0.06, atol=0)
    torch.testing.assert_close(objective.weighting(process, t), process.sigma(t) ** 2, rtol=0.06, atol=0)
    torch.testing.assert_close(objective.weighting.noise_error(process, t), torch.ones(5), rtol=0.06, atol=0)


class Shrunk(Zero):
    """For data at 0 a score with the residual z/(1 + s^2) at noise level s."""

    def forward(self, x, t, cond=None):
        level, sigma = self.process.noise_level(t), self.process.sigma(t)
        return -broadcast_to(level**2 / (1 + level**2) / sigma**2, x) * x


@pytest.mark.parametrize("process", [VP(), VE(0.05, 5.0)], ids=lambda p: type(p).__name__)
def test_with_a_fixed_score_u_becomes_the_logarithm_of_the_mean_loss(process):
    """1/(1 + s^2)^2 with sigma^2; the minimum is then that of e^u/e^u + u."""
    score, x = Shrunk(process), torch.zeros(4000, 16)
    objective = DenoisingScoreMatching(Uncertainty(width=32), LogNormalTimes(-0.5, 0.8, stratified=True), mean=True)
    loss = fitted(objective, score, x)
    level = torch.tensor([0.2, 0.4, 0.8, 1.6])
    u = objective.weighting.penalty(process, process.time_of(level)).detach()
    torch.testing.assert_close(u.exp(), (1 + level**2) ** -2, rtol=0.06, atol=0)
    torch.manual_seed(0)
    mean = objective.weighting.penalty(process, objective.times.sample(process, x)).mean()
    assert float(loss) == pytest.approx(1 + float(mean.detach()), abs=1e-3)


def test_importance_leaves_the_learned_level_as_it_is():
    """p/q multiplies all of the loss, so that e^u is still the mean loss of each level."""
    process, x = VP(), torch.zeros(4000, 16)
    objective = DenoisingScoreMatching(Uncertainty(width=32), ImportanceTimes(1e-3, stratified=True), mean=True)
    fitted(objective, Zero(process), x)
    t = torch.tensor([0.05, 0.2, 0.5, 0.9])
    torch.testing.assert_close(objective.weighting.noise_error(process, t), torch.ones(4), rtol=0.06, atol=0)


class Bent(ScoreWrapper):
    def __init__(self, score, epsilon):
        super().__init__(score)
        self.epsilon = epsilon

    def forward(self, x, t, cond=None):
        return self.score(x, t, cond) + self.epsilon * torch.tanh(x + 0.3) / broadcast_to(self.process.sigma(t), x)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_the_exact_score_minimizes_at_each_level_whatever_was_learned(sigma):
    """The loss is a parabola in a change of the score, whose lowest point is at no change, within four standard errors."""
    process, weighting = VP(), Uncertainty(Likelihood())
    torch.nn.init.normal_(weighting.learned.weight)
    objective = DenoisingScoreMatching(weighting, FixedTimes(sigma))
    score, x = MixtureScore(process, MIXTURE), MIXTURE.sample(10000, torch.Generator().manual_seed(1))

    def loss(epsilon):
        torch.manual_seed(0)
        return objective(Bent(score, epsilon), x).detach()

    slope = (loss(0.1) - loss(-0.1)) / 0.2
    assert abs(float(slope.mean())) < 4 * float(slope.std()) / len(x) ** 0.5
    assert float((loss(0.1) - 2 * loss(0.0) + loss(-0.1)).mean()) > 0


@pytest.mark.parametrize("weighting", [SigmaSquared(), EDMWeighting(0.7)], ids=lambda w: type(w).__name__)
def test_it_starts_as_and_is_evaluated_as_the_weighting_within_it(weighting):
    """Before training also in its gradient; in evaluation mode always."""
    torch.manual_seed(0)
    times = LogNormalTimes(-0.5, 1.0)
    model, learning = (
        ScoreModel(lambda s, c: MLP(s, c, 16, 1), (2,), VP(), objective=DenoisingScoreMatching(each, times))
        for each in (weighting, Uncertainty(weighting))
    )
    torch.nn.init.normal_(model.score_function.network.linear_out.weight)
    learning.score_function.load_state_dict(model.score_function.state_dict())
    batch, losses = (torch.randn(64, 2), torch.zeros(64, dtype=torch.long)), []
    for each in (model, learning):
        torch.manual_seed(1)
        losses.append(each.loss(batch))
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0])
    for one, other in zip(model.score_function.parameters(), learning.score_function.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)
    assert float(learning.learned.weight.grad.norm()) > 0
    torch.nn.init.normal_(learning.learned.weight)
    changed = []
    for mode in (True, False):
        torch.manual_seed(1)
        changed.append(learning.train(mode).loss(batch))
    torch.testing.assert_close(changed[1], losses[0])
    assert abs(float(changed[0] - losses[0])) > 0.1


def test_levels_without_noise_or_without_data_are_finite():
    process, weighting = Linear(), Uncertainty()
    torch.nn.init.normal_(weighting.learned.weight)
    u = weighting.penalty(process, torch.tensor([0.0, 1e-6, 0.5, 1.0]))
    assert bool(u.isfinite().all())


def test_its_levels_are_those_that_are_trained():
    process, times = VP(), UniformTimes(0.1)
    sigma, error = DenoisingScoreMatching(Uncertainty(EDMWeighting(0.5)), times).learned_levels(process)
    ends = process.noise_level(torch.tensor([0.1 + 0.9e-3, 1 - 0.9e-3]))
    torch.testing.assert_close(sigma[[0, -1]], ends, rtol=1e-3, atol=0)
    torch.testing.assert_close(error, 1 / (1 + sigma**2 / 0.25))
    assert DenoisingScoreMatching(times=times).learned_levels(process) is None


def test_autocast_does_not_round_it():
    process, weighting = VP(), Uncertainty()
    torch.nn.init.normal_(weighting.learned.weight)
    t = torch.rand(100)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = weighting.penalty(process, t)
    assert torch.equal(rounded, weighting.penalty(process, t))
