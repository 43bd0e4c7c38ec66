"""Correctors: the marginal they stay on."""

import pytest
import torch
from conftest import CORRECTORS
from laws import MEAN, STD, affine, gaussian

from lightning_score.process import VE, BetaTable
from lightning_score.sampling import (
    Langevin,
)
from lightning_score.sampling.corrector import langevin_step


def test_langevin_has_its_stationary_variance():
    """On N(m, v) the variance tends to v/(1 - e/(2 v)) T: this pins the convention of the step size."""
    score, v, e, temperature = gaussian(VE(1e-3, 1.0)), STD**2 + 1e-6, 0.02, 0.5
    t = torch.zeros((), dtype=torch.float64)
    a, b, c = affine(lambda x, z: langevin_step(score, x, t, torch.tensor(e), z, temperature))
    assert b / (1 - a) == pytest.approx(MEAN, rel=1e-6)
    assert c**2 / (1 - a**2) == pytest.approx(temperature * v / (1 - e / (2 * v)), rel=1e-6)


@pytest.mark.parametrize("kind", CORRECTORS, ids=lambda c: c.__name__)
def test_correctors_stay_on_the_marginal(noise_process, kind):
    """A small step keeps mean and variance up to the predicted bias e/(2 v)."""
    corrector = kind(0.01) if kind is Langevin else kind(1e-6)
    score = gaussian(noise_process)
    times = torch.tensor([0.5, 0.495], dtype=torch.float64)
    t, s = times
    state = corrector.init(noise_process, times)
    a, b, c = affine(lambda x, z: corrector.step(score, x, t, s, z, state)[0])
    v = float(noise_process.alpha(t)) ** 2 * STD**2 + float(noise_process.sigma(t)) ** 2
    e = c**2 / 2
    assert 0 < e < 0.1 * v
    assert b / (1 - a) == pytest.approx(float(noise_process.alpha(t)) * MEAN, rel=1e-5)
    assert c**2 / (1 - a**2) == pytest.approx(v / (1 - e / (2 * v)), rel=1e-5)


def test_langevin_corrector_formula():
    """e = 2 alpha_c (snr sigma)^2 with alpha_c = 1 - beta_i (score SDE, Algorithm 5 without the norms)."""
    process, corrector = BetaTable(), Langevin(0.16)
    score, times = gaussian(process), process.table_times()
    _, _, c = affine(lambda x, z: corrector.step(score, x, times[400], times[399], z, None)[0])
    expected = 2 * (1 - process.betas[400]) * (0.16 * process.sigma(times[400])) ** 2
    assert c**2 / 2 == pytest.approx(float(expected), rel=1e-6)
