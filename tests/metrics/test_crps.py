"""CRPS against its closed form and without bias, ranks of calibrated and other ensembles, errors that cover."""

import math

import pytest
import torch

from lightning_score.metrics.calibration import rank_counts
from lightning_score.metrics.ensembles import EnsembleScores, fair_crps, half_distance


def draws(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian_crps(y, std):
    """Gneiting and Raftery 2007, after eq. 21."""
    z = y / std
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return std * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


@pytest.mark.parametrize("members", [2, 3, 16])
def test_crps_of_a_gaussian_is_its_closed_form_for_any_number_of_members(members):
    truth = torch.tensor([-2.0, 0.0, 0.7, 3.0], dtype=torch.float64)
    ensembles = 0.8 * draws(members, 40000, 4)
    found = fair_crps(ensembles, truth)
    error = found.std(0) / 200
    assert ((found.mean(0) - gaussian_crps(truth, 0.8)).abs() < 4 * error).all() and error.max() < 0.01


def test_distance_of_members_is_that_of_all_pairs():
    x = draws(7, 5)
    x[2:, 1], x[6, 3] = torch.nan, torch.nan
    for column, found in zip(x.T, half_distance(x), strict=True):
        known = column[~column.isnan()]
        pairs = (known[:, None] - known).abs().sum() / (2 * len(known) * (len(known) - 1))
        assert float(found) == pytest.approx(float(pairs))


def test_ranks_of_every_vector_with_ties_at_random():
    members = torch.tensor([[1.0, 2.0], [1.0, 5.0]]).repeat_interleave(3000, 1)
    truth = torch.tensor([1.0, 3.0]).repeat_interleave(3000)
    counts = rank_counts(members, truth, torch.Generator().manual_seed(0))
    assert (counts.sum(0) == 6000).all() and (counts.sum(1) == 6000).all()
    torch.testing.assert_close(counts[0].double() / 6000, torch.tensor([1, 4, 1.0]).double() / 6, rtol=0, atol=0.02)


def scores(factor, seed, conditions=60, members=9, entries=20):
    """Of a model that knows half of the truth, with a spread that is wrong by a factor; the entries depend on each other."""
    given, rest = draws(2, conditions, entries, seed=seed) @ mixing(entries)
    others = factor * draws(conditions, members, entries, seed=seed + 1) @ mixing(entries)
    climatology = 2**0.5 * draws(400, entries, seed=seed + 2) @ mixing(entries)
    found = EnsembleScores(conditions, members, seed)
    for k in range(conditions):
        found.add(k, given[k] + others[k], given[k] + rest[k], (climatology, half_distance(climatology)))
    return found


def mixing(entries):
    return draws(entries, entries, seed=99) / entries**0.5 + 0.1


def test_a_calibrated_ensemble_has_uniform_ranks_and_others_the_known_shapes():
    found = {factor: scores(factor, 0, conditions=120) for factor in (0.5, 1.0, 2.0)}
    narrow, calibrated, wide = (each.histogram() for each in found.values())
    assert calibrated.deviation < calibrated.limit and (calibrated.low < 0.1).all() and (calibrated.high > 0.1).all()
    assert narrow.deviation > 2 * narrow.limit and wide.deviation > 2 * wide.limit
    for ends, middle in ((narrow.shares[[0, -1]], narrow.shares[3:7]), (wide.shares[3:7], wide.shares[[0, -1]])):
        assert ends.min() > 1.5 * middle.max()
    for factor, each in found.items():
        ratio = (10 / 9 * factor**2 / (1 + factor**2 / 9)) ** 0.5  # of 9 members
        assert each.found()["spread_skill"].estimate.value == pytest.approx(ratio, rel=0.1)


@pytest.mark.slow
def test_bands_and_errors_cover():
    """Of a calibrated model, 5 % exceed the limit, and two errors contain the expected CRPS, skill and spread."""
    found = [scores(1.0, 3 * seed + 1000, conditions=30, members=4, entries=5) for seed in range(200)]
    histograms = [each.histogram() for each in found]
    over = sum(each.deviation > each.limit for each in histograms)
    outside = torch.stack([(each.shares < each.low) | (each.shares > each.high) for each in histograms]).double().mean()
    assert 2 <= over <= 20 and 0.03 < outside < 0.07
    expected = {"crps": float(mixing(5).norm(dim=0).mean()) / math.pi**0.5, "crps_skill": 1 - 0.5**0.5, "spread_skill": 1.0}
    scored = [each.found() for each in found]
    for name, value in expected.items():
        estimates = torch.tensor([each[name].estimate[:2] for each in scored], dtype=torch.float64)
        assert estimates[:, 0].mean() == pytest.approx(value, rel=0.02), name
        assert 0.9 < ((estimates[:, 0] - value).abs() < 2 * estimates[:, 1]).double().mean() < 0.99, name
