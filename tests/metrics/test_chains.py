"""The diagnostics of Markov chains against closed forms."""

import math

import numpy as np
import pytest
from scipy.signal import lfilter

from lightning_score.metrics.chains import autocorrelation, summarize


def ar(phi, chains=20, draws=4000, seed=0):
    """x' = phi x + sqrt(1 - phi^2) z, stationary, (chains, draws)."""
    z = np.random.default_rng(seed).standard_normal((chains, draws)) * math.sqrt(1 - phi**2)
    z[:, 0] /= math.sqrt(1 - phi**2)
    return lfilter([1.0], [1.0, -phi], z, axis=1)


@pytest.mark.parametrize("phi", [0.0, 0.6, 0.9, -0.4])
def test_the_effective_sample_size_of_an_autoregressive_chain(phi):
    """N (1 - phi)/(1 + phi) for the mean, with the error std/sqrt(ESS); quantiles and R-hat are those of N(0, 1)."""
    x = ar(phi)
    (row,) = summarize(x[:, :, None], ["x"])
    assert row.ess_bulk == pytest.approx(x.size * (1 - phi) / (1 + phi), rel=0.15)
    assert row.error == pytest.approx(math.sqrt((1 + phi) / (1 - phi) / x.size), rel=0.1)
    assert row.r_hat == pytest.approx(1, abs=0.01) and row.ess_tail > 400
    assert (row.low, row.median, row.high) == pytest.approx((-1.645, 0, 1.645), abs=0.1)
    assert (row.mean, row.std) == pytest.approx((0, 1), abs=0.1)


@pytest.mark.parametrize("chains", [1, 20])
def test_the_autocorrelation_falls_geometrically(chains):
    rho = autocorrelation(ar(0.8, chains, 80_000 // chains))
    np.testing.assert_allclose(rho[:6], 0.8 ** np.arange(6), atol=0.04)


def test_chains_of_different_laws_are_told_apart():
    """By their means, and by their widths alone."""
    x = ar(0.5, 8, 500)
    shifted, wide = x + np.arange(8)[:, None] / 4, x * np.where(np.arange(8) < 4, 1, 3)[:, None]
    good, *bad = summarize(np.stack([x, shifted, wide], 2), ["x", "shifted", "wide"])
    assert good.r_hat < 1.01 and all(row.r_hat > 1.05 for row in bad) and bad[0].ess_bulk < 100
    (one,), (trend,) = (summarize(chain[:1, :, None], ["x"]) for chain in (ar(0.5, 1, 2000), x + np.arange(500) / 100))
    assert one.r_hat == pytest.approx(1, abs=0.01) and trend.r_hat > 1.05  # a single chain is compared with its half
    assert autocorrelation(shifted)[-1] > 0.1 > abs(autocorrelation(x)[200])


@pytest.mark.parametrize("x", [np.ones((5, 100)), ar(0.5, 5, 3)])
def test_nothing_is_said_of_chains_that_stand_still_or_are_too_short(x):
    (row,) = summarize(x[:, :, None], ["x"])
    assert row.mean == pytest.approx(x.mean()) and all(math.isnan(v) for v in (row.error, row.ess_bulk, row.r_hat))
