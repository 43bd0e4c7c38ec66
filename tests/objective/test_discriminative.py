"""Direct discriminative optimization: the loss and its gradient at the start, its law, its samples, and resumed runs."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_score.data import Digits, GaussianMixture, Mixture
from lightning_score.errors import InputError
from lightning_score.networks import MLP, UNet
from lightning_score.objective import (
    DenoisingScoreMatching,
    DirectDiscriminative,
    EDMWeighting,
    Likelihood,
    LogNormalTimes,
    UniformTimes,
)
from lightning_score.process import VE, VP, BetaTable
from lightning_score.score.function import ScoreField, ScoreFunction
from lightning_score.score.parametrization import EDM, Noise, Velocity
from lightning_score.training.model import ScoreModel


def begun(score, samples, folder, **settings):
    """The objective with this reference and samples (N, 2)."""
    np.savez(folder / "samples.npz", x=samples.numpy().astype(np.float32))
    objective = DirectDiscriminative(str(folder / "samples.npz"), **settings)
    objective.receive(GaussianMixture())
    objective.begin(score)
    return objective


@pytest.mark.parametrize("process, parametrization", [(VP(), Noise()), (VE(0.01, 5.0), EDM()), (BetaTable(), Velocity())])
def test_at_the_start_loss_and_gradient_are_those_of_denoising(process, parametrization, tmp_path):
    """With d = 0 the loss is (1 + alpha) log 2, and its gradient is beta times that of the denoising loss of the data, less
    alpha beta times that of the samples."""
    torch.manual_seed(0)
    score = ScoreFunction(MLP((2,), width=16), process, parametrization).double()
    x, samples = torch.randn(64, 2).double(), torch.randn(50, 2).double() + 1
    objective = begun(score, samples, tmp_path, alpha=3.0, beta=0.2, times=LogNormalTimes(-0.5, 1.0))

    def gradient(loss):
        return torch.autograd.grad(loss, list(score.parameters()))

    torch.manual_seed(1)
    losses = objective(score, x)
    torch.testing.assert_close(losses, torch.full_like(losses, 4 * math.log(2)))
    torch.manual_seed(1)
    drawn, _ = objective.draw(x, None, score)
    t, z = objective.times.sample(process, x), torch.randn_like(x)
    denoising, weight = DenoisingScoreMatching(), objective.weighting(process, t)
    of_data, of_samples = (
        gradient((weight * denoising.at(score, process.perturb(each, t, z), t, z)).sum()) for each in (x, drawn)
    )
    expected = [0.2 * (a - 3.0 * b) for a, b in zip(of_data, of_samples, strict=True)]
    torch.testing.assert_close(gradient(losses.sum()), tuple(expected))


def test_the_log_ratio_of_edm_is_the_published_one(tmp_path):
    """With EDM's weights d is the difference of |F - F_0|^2, F_0 the output that denoises exactly (DDO's EDM loss)."""
    torch.manual_seed(0)
    process, x, z = VE(0.002, 80.0), 0.5 * torch.randn(9, 2).double(), torch.randn(9, 2).double()
    first, second = (ScoreFunction(MLP((2,), width=16), process, EDM(0.5)).double() for _ in range(2))
    for network in (first.network, second.network):
        nn.init.normal_(list(network.parameters())[-1])
    objective = begun(first, x, tmp_path, weighting=EDMWeighting(0.5))
    t = torch.linspace(0.2, 0.8, 9).double()
    sigma = process.sigma(t)[:, None]
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / (sigma**2 + 0.25).sqrt()
    x_t = x + sigma * z

    def squared(score):
        return ((score.denoised(x_t, t) - c_skip * x_t) / c_out - (x - c_skip * x_t) / c_out).square().sum(1)

    torch.testing.assert_close(objective.log_ratio(second, x, t, z), squared(first) - squared(second))


class Ball(ScoreField):
    """The score of N(0, v I) with a variance v that is learned."""

    def __init__(self, process, variance):
        super().__init__(process)
        self.log_variance = nn.Parameter(torch.tensor(math.log(variance)).double())

    def forward(self, x, t, cond=None):
        process = self.process
        return -x / (process.alpha(t) ** 2 * self.log_variance.exp() + process.sigma(t) ** 2).reshape(-1, 1)


def test_the_expected_log_ratio_is_that_of_the_densities(tmp_path):
    """Half of it, with the likelihood's weights, for two Gaussians: the bound of the likelihood is exact for both."""
    torch.manual_seed(0)
    process, n = VP(), 200_000
    first, second = Ball(process, 1.0), Ball(process, 0.5)
    objective = begun(first, torch.zeros(3, 2), tmp_path, weighting=Likelihood(), times=UniformTimes(1e-5))
    x = torch.tensor([[0.9, -0.4]]).double()
    t = objective.times.sample(process, x.expand(n, 2))
    found = objective.log_ratio(second, x.expand(n, 2), t, torch.randn(n, 2).double()).detach() / 2
    one, half = (Mixture([[0.0, 0.0]], [variance**0.5]).log_prob(x) for variance in (1.0, 0.5))
    assert float(found.mean()) == pytest.approx(float(half - one), abs=4 * float(found.std()) / n**0.5)
    assert abs(float(half - one)) > 10 * float(found.std()) / n**0.5


@pytest.mark.parametrize("variance", [0.5, 2.0])
def test_moves_a_gaussian_to_the_variance_of_the_data(variance, tmp_path):
    """From a reference that is too narrow or too wide; the loss of the samples alone drives away from theirs."""
    torch.manual_seed(0)
    score = Ball(VP(), 1.0)
    times = LogNormalTimes(-0.5, 1.0)
    objective = begun(score, torch.randn(4000, 2), tmp_path, alpha=1.0, beta=0.5, times=times)
    optimizer = torch.optim.Adam(score.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        objective(score, variance**0.5 * torch.randn(512, 2).double()).mean().backward()
        optimizer.step()
    error = abs(float(score.log_variance.detach()) - math.log(variance))
    assert error < 0.6 * abs(math.log(variance))


def test_evaluation_measures_denoising_of_the_data(tmp_path):
    torch.manual_seed(0)
    score, x = ScoreFunction(MLP((2,), width=16), VP(), Noise()).eval(), torch.randn(8, 2)
    objective = begun(score, torch.randn(50, 2), tmp_path)
    losses = [(torch.manual_seed(1), loss(score, x))[1] for loss in (objective, DenoisingScoreMatching())]
    torch.testing.assert_close(losses[0], losses[1])


def digits_model(start=None, samples=None, conditional=False, **settings):
    return ScoreModel(
        shape=(1, 8, 8),
        process=BetaTable(),
        network=partial(UNet, channels=8, multipliers=[1], blocks=1, attention=[], groups=4, dropout=0.0),
        objective=DenoisingScoreMatching() if start is None else DirectDiscriminative(samples, **settings),
        num_classes=10,
        conditional=conditional,
        label_dropout=0.5 if conditional else 0.0,
        start_from=start,
    )


def trained(model, folder, steps, resume=None):
    trainer = Trainer(
        max_steps=steps,
        default_root_dir=folder,
        logger=False,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        limit_val_batches=0,
    )
    trainer.fit(model, Digits(batch_size=16, data_range=(-1, 1)), ckpt_path=resume)
    return model


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A checkpoint of a model of digits and a file of samples."""
    folder = tmp_path_factory.mktemp("start")
    trained(digits_model(), folder, 2)
    images = np.random.RandomState(0).randint(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    np.savez(folder / "samples.npz", images=images, labels=np.arange(40) % 10)
    np.savez(folder / "unlabeled.npz", images=images)
    np.savez(folder / "colors.npz", images=np.random.RandomState(0).randint(0, 256, (40, 8, 8, 3)).astype(np.uint8))
    return folder


def test_a_resumed_run_is_the_same_to_the_bit(start, tmp_path):
    """The reference stays what training began with and is no part of the checkpoint."""
    settings = str(start / "step=2.ckpt"), str(start / "samples.npz")
    torch.manual_seed(0)
    whole = trained(digits_model(*settings, beta=0.5), tmp_path, 6)
    torch.manual_seed(0)
    trained(digits_model(*settings, beta=0.5), tmp_path / "first", 3)
    resumed = trained(digits_model(*settings, beta=0.5), tmp_path / "second", 6, tmp_path / "first/step=3.ckpt")
    begin, end = (
        torch.load(path, weights_only=True)["state_dict"] for path in (start / "step=2.ckpt", tmp_path / "step=6.ckpt")
    )
    assert begin.keys() == end.keys() == whole.state_dict().keys()
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)
    reference = whole.objective._reference.state_dict()
    assert all(torch.equal(value, begin[f"score_function.{name}"]) for name, value in reference.items())
    assert any(not torch.equal(begin[name], end[name]) for name in begin)


def test_samples_are_seen_as_data_are_with_labels_dropped_as_theirs(start):
    """Floats in the range of the data are rounded to its gray levels."""
    data, model = Digits(data_range=(-1, 1)), digits_model(conditional=True)
    x, y = data.splits.train.x[:40], torch.arange(40) % 10
    seen = data.as_input(x)
    torch.manual_seed(0)
    for arrays in (
        {"images": x.permute(0, 2, 3, 1).numpy()},
        {"x": (seen + 0.02 * torch.randn_like(seen).clamp(-1, 1)).numpy()},
    ):
        np.savez(start / "data.npz", labels=y.numpy(), **arrays)
        objective = DirectDiscriminative(str(start / "data.npz"))
        objective.receive(data)
        objective.begin(model.score_function)
        cond = torch.where(torch.arange(300) % 3 == 0, 10, 0)
        drawn, labels = objective.draw(torch.zeros(300, 1, 8, 8), cond, model.score_function)
        rows = [int((seen == each).flatten(1).all(1).nonzero()[0]) for each in drawn]
        assert len(set(rows)) > 30
        assert torch.equal(labels, torch.where(cond == 10, 10, y[rows]))


def test_refuses_what_it_cannot_use(start, tmp_path):
    checkpoint, samples = str(start / "step=2.ckpt"), str(start / "samples.npz")
    for wrong, message in (({"alpha": 0.0}, "alpha=0.0: must be above 0"), ({"beta": -1.0}, "beta=-1.0: must be above 0")):
        with pytest.raises(InputError, match=message):
            DirectDiscriminative(samples, **wrong)
    for model, message in (
        (digits_model(checkpoint, None), "needs samples of the model from which training starts"),
        (digits_model(checkpoint, str(start / "none.npz")), "none.npz: does not exist"),
        (digits_model(checkpoint, str(start / "colors.npz")), r"has samples of shape \[3, 8, 8\], and the data have"),
    ):
        with pytest.raises(InputError, match=message):
            trained(model, tmp_path, 1)
    unlabeled = DirectDiscriminative(str(start / "unlabeled.npz"))
    unlabeled.receive(Digits(data_range=(-1, 1)))
    with pytest.raises(InputError, match="must hold the label or condition of each sample"):
        unlabeled.begin(digits_model(conditional=True).score_function)
    for wrong in ("a", np.nan):
        np.savez(tmp_path / "labels.npz", images=np.load(samples)["images"][:2], labels=np.full(2, wrong))
        with pytest.raises(InputError, match=r"labels has values of .*; must be integers"):
            DirectDiscriminative(str(tmp_path / "labels.npz")).receive(Digits(data_range=(-1, 1)))
    random = digits_model(checkpoint, samples)
    random.start_from = None
    with pytest.raises(InputError, match="improves a trained model; give its checkpoint"):
        trained(random, tmp_path, 1)
    with pytest.raises(InputError, match=r"dropout=0\.1: must be 0 with objective=DirectDiscriminative"):
        network = UNet((1, 8, 8), channels=8, multipliers=[1], blocks=1, attention=[], groups=4, dropout=0.1)
        DirectDiscriminative(samples).begin(ScoreFunction(network, VP(), Noise()))
