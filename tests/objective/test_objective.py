"""Denoising and explicit score matching, and the weightings: values, minimizers and the constant between the two."""

import pytest
import torch
from conftest import MixtureScore
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from torch import nn

from lightning_score.data import GaussianMixture, Mixture
from lightning_score.errors import InputError
from lightning_score.networks import MLP
from lightning_score.objective import (
    DenoisingScoreMatching,
    EDMWeighting,
    ExplicitScoreMatching,
    FixedTimes,
    FlowWeighting,
    Hutchinson,
    ImplicitScoreMatching,
    ImportanceTimes,
    Likelihood,
    LogNormalTimes,
    MinSNR,
    Objective,
    SigmaSquared,
    SlicedScoreMatching,
    TableTimes,
    Uncertainty,
    UniformTimes,
)
from lightning_score.process import VE, VP, BetaTable, Linear, SigmaTable
from lightning_score.score.empirical import EmpiricalScore
from lightning_score.score.function import ScoreFunction
from lightning_score.score.parametrization import Flow, Index, Noise, Velocity
from lightning_score.tensors import broadcast_to
from lightning_score.training.model import ScoreModel


class Zero(nn.Module):
    def forward(self, x, noise_label, cond=None):
        return torch.zeros_like(x)


def test_sigma_squared_weighting_of_a_zero_score_is_half_the_dimension():
    """lambda = sigma^2 makes every level count alike: sigma^2 1/2 E||z/sigma||^2 = D/2."""
    torch.manual_seed(0)
    for process in (VP(), VE(), SigmaTable(), BetaTable()):
        loss = DenoisingScoreMatching()(ScoreFunction(Zero(), process, Noise()), torch.zeros(20000, 5))
        assert loss.shape == (20000,) and float(loss.mean()) == pytest.approx(2.5, rel=0.03)


def test_mean_reduction_is_ddpms_simple_loss():
    torch.manual_seed(0)
    score = ScoreFunction(Zero(), BetaTable(), Noise())
    objective = DenoisingScoreMatching(times=TableTimes(), mean=True)
    assert float(objective(score, torch.zeros(20000, 5)).mean()) == pytest.approx(1.0, rel=0.03)


def test_sigma_squared_and_likelihood_weighting(noise_process):
    t = torch.tensor([0.1, 0.7], dtype=torch.float64)
    torch.testing.assert_close(SigmaSquared()(noise_process, t), noise_process.sigma(t) ** 2)
    torch.testing.assert_close(Likelihood()(noise_process, t), noise_process.diffusion(t) ** 2)


def test_weightings_equal_the_published_ones_in_their_own_units(noise_process):
    """Min-SNR's multiplies the residual of the noise, EDM's that of the denoised image."""
    mixture = Mixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.2])
    exact, x = MixtureScore(noise_process, mixture), mixture.sample(9, torch.Generator().manual_seed(0))
    t, z = torch.linspace(0.1, 0.9, 9, dtype=torch.float64), torch.randn_like(x)
    alpha, sigma = noise_process.alpha(t), noise_process.sigma(t)
    x_t = noise_process.perturb(x, t, z)
    residual = (exact(x_t, t) + z / broadcast_to(sigma, x)).square().sum(1)

    snr = (alpha / sigma) ** 2
    published = torch.minimum(snr, torch.tensor(5.0)) / snr * (exact.noise(x_t, t) - z).square().sum(1)
    torch.testing.assert_close(MinSNR()(noise_process, t) * residual, published)

    s, d = sigma / alpha, 0.7
    published = (s**2 + d**2) / (s * d) ** 2 * (exact.denoised(x_t, t) - x).square().sum(1)
    torch.testing.assert_close(EDMWeighting(d)(noise_process, t) * residual, published)


@pytest.mark.parametrize(
    "weighting",
    [MinSNR(), EDMWeighting(), SigmaSquared(), Likelihood(), Uncertainty()],
    ids=lambda w: type(w).__name__,
)
def test_weightings_are_positive_and_finite_from_end_to_end(noise_process, weighting):
    t = torch.linspace(noise_process.t_min, 0.9998, 50)
    weight = weighting(noise_process, t)
    assert weight.shape == (50,) and bool((weight > 0).all()) and bool(weight.isfinite().all())


def test_weightings_refuse_what_they_cannot_use():
    with pytest.raises(InputError, match="gamma=0"):
        MinSNR(0)
    with pytest.raises(InputError, match="data_std=-1"):
        EDMWeighting(-1)
    with pytest.raises(InputError, match="width=0: must be even"):
        Uncertainty(width=0)
    with pytest.raises(InputError, match=r"weighting\.weighting=Uncertainty: must be one without parameters"):
        Uncertainty(Uncertainty())
    with pytest.raises(InputError, match=r"weighting=Uncertainty: .*those of SlicedScoreMatching may be negative"):
        SlicedScoreMatching(Uncertainty())


class Shifted(MixtureScore):
    """The exact score with an error on it."""

    def forward(self, x, t, cond=None):
        return super().forward(x, t) + 0.3 * torch.tanh(x) / broadcast_to(self.process.sigma(t), x)


@pytest.mark.parametrize("process", [VP(), VE(0.01, 5.0), SigmaTable(), BetaTable()], ids=lambda p: type(p).__name__)
def test_the_exact_score_minimizes(process):
    """Any change of the score raises the loss, by lambda/2 ||change||^2 on average: the same noise makes this sharp."""
    mixture = Mixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.2])
    x = mixture.sample(40000, torch.Generator().manual_seed(1))
    objective = DenoisingScoreMatching(times=UniformTimes(0.3))

    def loss(score):
        torch.manual_seed(0)
        return objective(score, x)

    difference = loss(Shifted(process, mixture)) - loss(MixtureScore(process, mixture))
    error = float(difference.std()) / len(x) ** 0.5
    assert float(difference.mean()) > 5 * error


@pytest.mark.parametrize("process", [VP(), VE(0.05, 5.0)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("sigma", [0.2, 1.0])
def test_denoising_is_explicit_score_matching_plus_a_constant(process, sigma):
    """J_DSM - J_ESM does not depend on the score: it is the loss of the data's own score, for whichever network."""
    torch.manual_seed(1)
    mixture = Mixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.2])
    points = mixture.sample(200)
    x = points.repeat(150, 1)
    explicit, times = ExplicitScoreMatching(times=FixedTimes(sigma)), FixedTimes(sigma)
    explicit.prepare(points)
    network = ScoreFunction(MLP((2,), width=16, depth=1).double(), process, Noise())
    nn.init.normal_(network.network.linear_out.weight)

    def constant(score):
        values = []
        for objective in (DenoisingScoreMatching(times=times), explicit):
            torch.manual_seed(0)
            values.append(objective(score, x).detach())
        return values[0] - values[1]

    floor = constant(EmpiricalScore(process, points))
    for score in (MixtureScore(process, mixture), Shifted(process, mixture), network):
        difference = constant(score) - floor
        assert abs(float(difference.mean())) < 4 * float(difference.std()) / len(x) ** 0.5
        assert abs(float(difference.mean())) < 0.05 * float(floor.mean())
        assert float(difference.std()) > 0, "the two losses differ example by example"


def test_explicit_score_matching_needs_data_and_is_denoising_given_other_conditions_than_labels():
    score, x = ScoreFunction(Zero(), VP(), Noise()), torch.randn(8, 2)
    objective = ExplicitScoreMatching()
    with pytest.raises(InputError, match=r"needs the training data; .*datamodule"):
        objective(score, x)
    objective.prepare(x)
    assert objective(score, x).shape == (8,)
    for conditions in (torch.zeros(8, dtype=torch.long), torch.zeros(8, 3)):
        found = []
        for each in (objective, DenoisingScoreMatching()):
            torch.manual_seed(0)
            found.append(each(score, x, conditions))
        assert torch.equal(*found)
    with pytest.warns(UserWarning, match="compares every batch with all 300000 examples"):
        objective.prepare(torch.zeros(300_000, 64))


def test_explicit_score_matching_of_a_class_is_that_of_its_data_alone():
    """With labels, each example has the target of its class's data; a label without data, as a dropped one, that of all."""
    torch.manual_seed(0)
    score, points, labels = ScoreFunction(Zero(), VP(), Noise()), torch.randn(60, 2), torch.arange(60) % 3
    given = ExplicitScoreMatching(times=FixedTimes(0.5))
    given.prepare(points, labels)

    def losses(objective, x, cond=None):
        torch.manual_seed(1)
        return objective(score, x, cond)

    for label in (0, 1, 2, 3):
        own = points if label == 3 else points[labels == label]
        alone = ExplicitScoreMatching(times=FixedTimes(0.5))
        alone.prepare(own)
        expected, found = losses(alone, own), losses(given, own, torch.full((len(own),), label))
        torch.testing.assert_close(found, expected)
    assert not torch.allclose(losses(given, points, labels), losses(given, points, torch.full((60,), 3)))


def test_fit_gives_the_objective_the_training_data():
    data, objective = GaussianMixture(num_samples=300, batch_size=64), ExplicitScoreMatching()
    model = ScoreModel(lambda s, c: MLP(s, c, 16, 1), (2,), VE(0.05, 5.0), objective=objective)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_steps=2, accelerator="cpu", enable_model_summary=False, **settings).fit(model, datamodule=data)
    torch.testing.assert_close(objective._data, data.splits.train.x)


def test_parts_go_by_their_short_names():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "objective")
    parts = {"weighting": "MinSNR", "times": {"class_path": "ImportanceTimes", "init_args": {"stratified": True}}}
    trace = {"class_path": "Hutchinson", "init_args": {"probes": 2, "law": "Gaussian"}}
    config = {"class_path": "ImplicitScoreMatching", "init_args": {**parts, "trace": trace}}
    objective = parser.instantiate_classes(parser.parse_object({"objective": config})).objective
    assert type(objective) is ImplicitScoreMatching and type(objective.weighting) is MinSNR
    assert type(objective.times) is ImportanceTimes and objective.times.stratified
    assert type(objective.trace) is Hutchinson and objective.trace.probes == 2


class Shift(nn.Module):
    """A network whose output is 0.3 x + 0.1."""

    def forward(self, x, noise_label, cond=None):
        return 0.3 * x + 0.1


@pytest.mark.parametrize(
    "times", [UniformTimes(), LogNormalTimes(0.0, 1.0), LogNormalTimes(3.0, 3.0)], ids=["u", "l", "late"]
)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 4e-6)], ids=["double", "single"])
def test_flow_matching_is_the_squared_error_of_the_velocity(times, dtype, bound):
    """|F - (z - x_0)|^2, also as alpha goes to 0, where the weight is infinite; single precision loses digits there."""
    score, x = ScoreFunction(Shift(), Linear(), Flow()), torch.randn(100_000, 2, dtype=dtype)
    torch.manual_seed(1)
    found = DenoisingScoreMatching(FlowWeighting(), times, mean=True)(score, x)
    torch.manual_seed(1)
    t = times.sample(score.process, x)
    z = torch.randn_like(x)
    expected = (Shift()(score.process.perturb(x, t, z), None) - (z - x)).square().mean(1)
    assert float(t.max()) < 1 and bool(found.isfinite().all())
    assert float(found.double().mean() / expected.double().mean()) == pytest.approx(1, abs=bound)


def test_a_chain_to_noise_alone_is_trained_by_velocities():
    """Every entry, the last one too, whose label is its own (Lin et al. 2023, 2305.08891, section 3.2)."""
    process, x = BetaTable(zero_snr=True), torch.randn(100_000, 2)
    score = ScoreFunction(Shift(), process, Velocity(noise_label=Index()))
    torch.manual_seed(1)
    found = DenoisingScoreMatching(EDMWeighting(1.0), TableTimes(), mean=True)(score, x)
    torch.manual_seed(1)
    t = TableTimes().sample(process, x)
    z = torch.randn_like(x)
    alpha, sigma = (broadcast_to(c, x) for c in (process.alpha(t), process.sigma(t)))
    expected = (Shift()(process.perturb(x, t, z), None) - (alpha * z - sigma * x)).square().mean(1)
    assert float(found.mean() / expected.mean()) == pytest.approx(1, abs=1e-5)
    labels = Index()(process, t)
    assert labels.min() == 0 and labels.max() == 999
