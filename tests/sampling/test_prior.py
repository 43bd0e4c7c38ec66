"""The nats that the prior of a process misses: equal to those by which log-likelihoods are too low, and warned of."""

import warnings

import pytest
import torch
from conftest import MixtureScore

from lightning_score.data import Digits, Mixture
from lightning_score.process import VE, VP, BetaTable, Cosine, SubVP
from lightning_score.sampling.likelihood import log_likelihood, log_prior
from lightning_score.sampling.prior import prior_gap, warn_of_prior
from lightning_score.score.trace import ExactTrace
from lightning_score.training.prior import check_prior

SHIFTED = Mixture([[5.0, 0.0, 1.0]], [2.0])


@pytest.mark.parametrize("process", [VE(0.01, 0.5), VP(beta_max=2.0)], ids=lambda p: type(p).__name__)
def test_mean_log_likelihoods_are_too_low_by_the_gap(process):
    x = SHIFTED.sample(400, torch.Generator().manual_seed(0))
    t = torch.tensor(process.t_min, dtype=torch.float64)
    exact = SHIFTED.log_prob(x, process.alpha(t), process.sigma(t))
    with pytest.warns(UserWarning, match=r"misses .* nats per example.* make it at least 6\.3"):
        found = log_likelihood(MixtureScore(process, SHIFTED), x, trace=ExactTrace()).value
    gap = prior_gap(process, x)
    assert gap.nats == pytest.approx(float((exact - found).mean()), rel=0.02) and gap.nats > 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_likelihood(MixtureScore(process, SHIFTED), x[:4], prior=log_prior)
        warn_of_prior(VE(0.01, gap.norm), x)  # what is advised


@pytest.mark.parametrize(("dimension", "n"), [(3, 300), (60, 300), (500, 300)])
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_the_gap_of_a_gaussian_is_its_closed_form(dimension, n, spread):
    """Also for fewer examples than dimensions; a turned ellipsoid, unless its axes are equal."""
    torch.manual_seed(0)
    variances = torch.logspace(-spread, spread, dimension, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(dimension, dimension, dtype=torch.float64))
    x = 0.3 + torch.randn(n, dimension, dtype=torch.float64) * variances.sqrt() @ turn
    level = 0.5
    ratio = variances / level**2
    gap = (dimension * 0.3**2 / level**2 + (ratio - ratio.log1p()).sum()) / 2
    assert prior_gap(VE(0.001, level), x).nats == pytest.approx(float(gap), rel=0.1)
    x[torch.rand_like(x) < 0.01] = torch.nan
    assert prior_gap(VE(0.001, level), x).nats == pytest.approx(float(gap), rel=0.1)


@pytest.mark.parametrize("process", [VP(), SubVP(), Cosine(), VE(0.01, 50.0), BetaTable(beta_min=1e-4, beta_max=0.02)])
def test_usual_processes_fit_the_digits(process):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_prior(process, Digits(data_range=(-1, 1)))
