"""Denoising score matching: its weights, its minimiser and its gradient."""

import pytest
import torch
from conftest import MixtureScore
from torch import nn

from lightning_score.data import Mixture
from lightning_score.objective import (
    DenoisingScoreMatching,
    Likelihood,
    LogNormalTimes,
    SigmaSquared,
    TableTimes,
    UniformTimes,
)
from lightning_score.parametrization import Noise
from lightning_score.process import VE, VP, BetaTable, SigmaTable
from lightning_score.score import ScoreFunction
from lightning_score.utils import InputError


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


def test_weightings():
    t = torch.tensor([0.1, 0.7], dtype=torch.float64)
    torch.testing.assert_close(SigmaSquared()(VP(), t), VP().sigma(t) ** 2)
    torch.testing.assert_close(Likelihood()(VP(), t), VP().diffusion(t) ** 2)


@pytest.mark.parametrize("process", [VP(), VE(0.01, 5.0), SigmaTable(), BetaTable()], ids=lambda p: type(p).__name__)
def test_the_exact_score_minimises(process):
    """Any change of the score raises the loss, by lambda/2 ||change||^2 on average: the same noise makes this sharp."""
    mixture = Mixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.2])
    exact = MixtureScore(process, mixture)
    x = mixture.sample(40000, torch.Generator().manual_seed(1))
    objective = DenoisingScoreMatching(times=UniformTimes(0.3))

    class Shifted(MixtureScore):
        def forward(self, x, t, cond=None):
            return super().forward(x, t) + 0.3 * torch.tanh(x) / self.process.sigma(t)[:, None]

    def loss(score):
        torch.manual_seed(0)
        return objective(score, x)

    difference = loss(Shifted(process, mixture)) - loss(exact)
    error = float(difference.std()) / len(x) ** 0.5
    assert float(difference.mean()) > 5 * error


def test_uniform_times_cover_the_interval():
    torch.manual_seed(0)
    t = UniformTimes(0.2).sample(VP(), torch.zeros(10000))
    assert 0.2 < float(t.min()) < 0.21 and 0.99 < float(t.max()) <= 1 and abs(float(t.mean()) - 0.6) < 0.01
    assert float(UniformTimes().sample(VP(), torch.zeros(10000)).min()) >= VP.t_min


def test_log_normal_times():
    torch.manual_seed(0)
    for process in (VE(1e-4, 1e4), BetaTable()):
        log_sigma = -process.log_snr(LogNormalTimes(-0.5, 0.8).sample(process, torch.zeros(20000))) / 2
        assert float(log_sigma.mean()) == pytest.approx(-0.5, abs=0.03)
        assert float(log_sigma.std()) == pytest.approx(0.8, abs=0.02)
    assert float(LogNormalTimes(-20.0).sample(VP(), torch.zeros(100)).min()) == pytest.approx(VP.t_min)


def test_table_times_are_the_entries_alike():
    torch.manual_seed(0)
    process = SigmaTable(levels=10)
    t = TableTimes().sample(process, torch.zeros(20000))
    counts = torch.bincount(process.index(t), minlength=11)[1:]
    torch.testing.assert_close(t, (process.index(t) / 10).float())
    assert int(counts.min()) > 1800 and int(counts.max()) < 2200


def test_table_times_refuse_a_continuous_process():
    with pytest.raises(InputError, match="VP is a continuous process"):
        DenoisingScoreMatching(times=TableTimes()).check(VP())
