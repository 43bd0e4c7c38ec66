"""The callback Nats with exact scores: log densities of the stored data in their own units, also given a condition."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ExactScore
from lightning.pytorch import Trainer

from lightning_score import MLP, VP, Nats, ScoreModel
from lightning_score.data import Arrays
from lightning_score.data.array_augmentation import GaussianNoise
from lightning_score.data.standardize import Asinh, AsStored, Constants, Log, MeanStd, MinMax
from lightning_score.sampling import NoiseStream
from lightning_score.score.trace import ExactTrace
from lightning_score.tensors import broadcast_to

PROCESS = VP(beta_max=40.0)
MEAN, STD, SOFTENING = np.array([1.0, -0.5, 0.3]), np.array([0.6, 0.3, 0.8]), 2.0


class GaussianScore(ExactScore):
    """The exact score of N(mean, diag(std)^2), whose mean is mean + step y given y."""

    def __init__(self, process, mean, std, step=0.0):
        super().__init__(process)
        self.mean, self.std, self.step = mean, std, step

    def forward(self, x, t, cond=None):
        mean = self.mean.to(x) + (0 if cond is None else self.step * cond.to(x).reshape(len(x), -1))
        alpha, sigma = broadcast_to(self.process.alpha(t), x), broadcast_to(self.process.sigma(t), x)
        self.evaluations += len(x)
        return (alpha * mean - x) / (alpha**2 * self.std.to(x) ** 2 + sigma**2)


def held_out_nats(data):
    """log p of the held-out examples (n,) by the exact score of a Gaussian g(x), and the examples themselves."""
    held_out = data.splits.held_out
    x, _ = data.pairs(held_out)
    map_ = data.standardize
    score = GaussianScore(PROCESS, (torch.tensor(MEAN) - map_.shift) / map_.spread, torch.tensor(STD) / map_.spread)
    found = Nats(trace=ExactTrace()).values(data, score, x, NoiseStream(0, range(len(x)), x.shape[1:], "cpu", x.dtype))
    return found, held_out.x.double().numpy()


def gaussian(n=60):
    return MEAN + STD * np.random.RandomState(0).randn(n, 3)


def log_normal(g):
    return -((g - MEAN) ** 2 / STD**2 / 2 + np.log(STD * math.sqrt(2 * math.pi))).sum(1)


LAWS = [
    (MeanStd, lambda g: g, lambda x: log_normal(x)),
    (MinMax, lambda g: g, lambda x: log_normal(x)),
    (partial(Constants, [0.5, 0.0, 1.0], [2.0, 0.1, 1.0]), lambda g: g, lambda x: log_normal(x)),
    (AsStored, lambda g: g, lambda x: log_normal(x)),
    (Log, np.exp, lambda x: log_normal(np.log(x)) - np.log(x).sum(1)),
    (
        partial(Asinh, SOFTENING),
        lambda g: SOFTENING * np.sinh(g),
        lambda x: log_normal(np.arcsinh(x / SOFTENING)) - np.log(np.hypot(x, SOFTENING)).sum(1),
    ),
]


@pytest.mark.parametrize(("standardize", "stored", "density"), LAWS, ids=["std", "range", "given", "none", "log", "asinh"])
def test_nats_are_the_log_density_of_the_stored_data(tmp_path, standardize, stored, density):
    np.save(tmp_path / "x.npy", stored(gaussian()))
    found, x = held_out_nats(Arrays(str(tmp_path / "x.npy"), axes="NC", standardize=standardize()))
    np.testing.assert_allclose(found.numpy(), density(x), rtol=0, atol=2e-3)


def test_other_units_change_nats_by_the_logarithm_of_their_ratio(tmp_path):
    np.save(tmp_path / "m.npy", gaussian())
    np.save(tmp_path / "mm.npy", 1024 * gaussian())
    score = GaussianScore(PROCESS, torch.zeros(3), torch.ones(3))
    nats = []
    for name in ("m", "mm"):
        data = Arrays(str(tmp_path / f"{name}.npy"), axes="NC")
        x, _ = data.pairs(data.splits.held_out)
        nats.append(Nats().values(data, score, x, NoiseStream(0, range(len(x)), x.shape[1:])))
    torch.testing.assert_close(nats[0] - nats[1], torch.full_like(nats[0], 3 * math.log(1024)), rtol=0, atol=1e-9)


def test_noise_belongs_to_the_density_and_does_not_depend_on_batches(tmp_path):
    np.save(tmp_path / "x.npy", gaussian())
    data = Arrays(str(tmp_path / "x.npy"), axes="NC", augment=[GaussianNoise(0.5)])
    callback = Nats()
    together, _ = callback.inputs(data, torch.arange(6), draw=1)
    alone, _ = callback.inputs(data, torch.tensor([4]), draw=1)
    torch.testing.assert_close(together[4:5], alone)
    assert not torch.equal(callback.inputs(data, torch.tensor([4]), draw=0)[0], alone)
    settings = callback.settings(data, VP())
    assert settings["noise"] == "Gaussian noise of standard deviation 0.5" and settings["sigma_over_alpha"] < 2e-3


def test_a_conditional_model_is_measured_given_the_condition(tmp_path, monkeypatch):
    """In a test, with its logs and records; of data whose mean is twice the condition."""
    monkeypatch.chdir(tmp_path)
    y = np.random.RandomState(1).randn(60, 1)
    np.savez("data.npz", x=gaussian() + 2 * y, y=y)
    data = Arrays("data.npz", key="x", axes="NC", standardize=AsStored(), condition="y", standardize_condition=AsStored())
    model = ScoreModel(partial(MLP, width=4, depth=1), data.shape, PROCESS, condition=data.condition, conditional=True)
    model.score_function = GaussianScore(PROCESS, torch.tensor(MEAN), torch.tensor(STD), step=2.0)
    callback = Nats(draws=1, batch_size=4, trace=ExactTrace())
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    logged = Trainer(accelerator="cpu", callbacks=[callback], **settings).test(model, data, verbose=False)[0]
    held_out = data.splits.held_out
    exact = log_normal((held_out.x - 2 * held_out.y.reshape(-1, 1)).double().numpy())
    assert logged["test/nats"] == pytest.approx(exact.mean(), abs=2e-3)
    assert logged["test/nats_error"] == pytest.approx(exact.std(ddof=1) / math.sqrt(len(exact)), rel=1e-3)
    assert logged["test/nats_per_dim"] == pytest.approx(exact.mean() / 3, abs=1e-3) and logged["test/nats_n"] == 6
