"""Distances without features: closed forms, equality with scipy, errors that cover, floors that perfect models reach."""

import math

import pytest
import torch
from scipy import stats

from lightning_score.errors import InputError, Unmeasurable
from lightning_score.metrics import Distance, EnergyDistance, Histogram, PowerSpectrum, SlicedWasserstein
from lightning_score.metrics.channels import Channels
from lightning_score.metrics.distances import wasserstein
from lightning_score.metrics.fields import shells
from lightning_score.metrics.summaries import DistanceTotals, summaries_of

SLOW = pytest.mark.slow
ALL = [SlicedWasserstein(projections=8), EnergyDistance(), PowerSpectrum(), Histogram()]


def normal(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def skewed(n, seed=0):
    return normal(n, 1, seed=seed).exp() * 2 + 1


def test_these_are_all_distances():
    assert {type(each) for each in ALL} == {*Distance.__subclasses__()}


# Wasserstein


def test_wasserstein_on_the_line_is_scipys():
    for n, m, seed in ((300, 500, 1), (7, 7, 2), (11, 3, 3)):
        x, y = skewed(n, seed), normal(m, 1, seed=seed + 10)
        expected = stats.wasserstein_distance(x[:, 0].double().numpy(), y[:, 0].double().numpy())
        assert float(wasserstein(x, y, 1)) == pytest.approx(expected, rel=1e-5)
    x, y = skewed(40, 1), normal(40, 1)
    assert float(wasserstein(x, y, 2)) == pytest.approx(
        float((x.sort(0).values - y.sort(0).values).square().mean()), rel=1e-5
    )


@pytest.mark.parametrize("shape", [(5,), (2, 8), (1, 3, 4)])
def test_sliced_wasserstein_of_a_shift_and_a_scale_has_a_closed_form(shape):
    """Over complete sets of orthogonal directions: |m|/D^(1/2) of a shift, and of a Gaussian c times as wide |c - 1|."""
    data, shift = normal(1500, *shape), normal(*shape, seed=1)
    distance = SlicedWasserstein(projections=64, standardize=False)
    assert distance(data + shift, data).value == pytest.approx(float(shift.norm()) / math.prod(shape) ** 0.5, rel=1e-4)
    scaled = 1.5 * (data - data.mean(0)) + data.mean(0)
    assert distance(scaled, data).value == pytest.approx(0.5, rel=0.05)


def test_standard_deviations_make_units_irrelevant():
    """Columns in other units give the same distance, unless it is asked for in the units of the data."""
    data, samples, units = normal(300, 3), normal(200, 3, seed=1) + 0.3, torch.tensor([1e-6, 1.0, 1e7])
    for distance in (SlicedWasserstein(8), EnergyDistance(), Histogram()):
        assert distance(samples * units + 5, data * units + 5).value == pytest.approx(
            distance(samples, data).value, rel=0.03
        )
    raw = SlicedWasserstein(8, standardize=False)
    assert raw(7 * samples, 7 * data).value == pytest.approx(7 * raw(samples, data).value, rel=1e-4)


# Energy distance


def test_energy_distance_is_scipys_without_the_pairs_of_one_example():
    x, y = skewed(120), normal(90, 1, seed=5)
    within = [float(torch.cdist(z.double(), z.double()).mean()) for z in (x, y)]
    biased = EnergyDistance(standardize=False)(x, y).value + within[0] / (120 - 1) + within[1] / (90 - 1)
    assert biased == pytest.approx(stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2, rel=1e-5)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_energy_distance_of_shifted_normals_is_unbiased(shift):
    """E|x - y| of N(0, 1) and N(m, 1) is the mean of a folded normal; that of pairs of one law is 2/pi^(1/2)."""
    distance = EnergyDistance(standardize=False)
    values = [distance(normal(60, 1, seed=k) + shift, normal(80, 1, seed=1000 + k)).value for k in range(49)]
    folded = float(stats.foldnorm.mean(shift / 2**0.5, scale=2**0.5))
    found = torch.tensor(values)
    assert float(found.mean()) == pytest.approx(2 * folded - 4 / math.pi**0.5, abs=3 * float(found.std()) / 7)


# Power spectrum


@pytest.mark.parametrize("space", [(9,), (16,), (8, 8), (6, 9), (1, 12), (4, 5, 6)])
def test_power_over_all_modes_is_the_mean_square(space):
    x = 3 * normal(20, 2, *space) + 4
    channels, distance = Channels.of(x), PowerSpectrum()
    curves = distance.curves(distance.all_summaries(x, channels), channels, x.shape[1:], 20)
    count = shells(space)[1]
    squares = (x - x.mean((0, *range(2, x.ndim)), keepdim=True)).square().flatten(2).mean(2)
    assert int(count.sum()) == math.prod(space) and int(count.min()) > 0
    assert (curves.values * count).sum(2) / count.sum() == pytest.approx(squares.numpy(), rel=1e-3)


@pytest.mark.parametrize("space", [(32,), (16, 16), (8, 8, 8)])
def test_white_noise_has_a_flat_spectrum_with_the_error_of_its_modes(space):
    """The power of a mode is exponential: the mean over M modes, half of them mirrors, has the error (2/(M N))^(1/2)."""
    n, distance = 400, PowerSpectrum()
    x = 2 * normal(n, 1, *space)
    channels, (_, count) = Channels.of(x), shells(space)
    values = distance.curves(distance.all_summaries(x, channels), channels, x.shape[1:], n).values[:, 0]
    deviation = (values.mean(0) - 4) / (4 * (2 / (count * n)).sqrt())
    assert deviation.abs().max() < 4 and 0.1 < float(deviation.square().mean()) < 2.5


def test_a_sine_has_one_line_and_a_factor_has_its_logarithm():
    phase = 6.3 * torch.rand(50, 1, 1, generator=torch.Generator().manual_seed(0))
    x = torch.sin(2 * math.pi * 5 / 64 * torch.arange(64) + phase)
    channels, distance = Channels.of(x), PowerSpectrum()
    curves = distance.curves(distance.all_summaries(x, channels), channels, (1, 64), 50)
    mean = curves.values.mean(0)[0]
    assert mean.argmax() == 5 and float(curves.x[0, 5]) == 5 / 64
    assert float(mean[5] / mean.sum()) > 1 - 1e-6 and float(mean[5]) * 2 / 64 == pytest.approx(0.5, rel=1e-3)
    fields = normal(100, 2, 8, 8)
    assert distance(1.1 * fields, fields).value == pytest.approx(2 * math.log(1.1), rel=0.01)


# One-point distributions


@pytest.mark.parametrize("unit", [1.0, 1e6])
def test_the_distance_of_histograms_is_scipys_wasserstein_distance(unit):
    """Also where values are few, discrete or of heavy tails; that of channels is the mean."""
    pairs = [
        (skewed(3000), skewed(2000, 1) * 1.1),
        (normal(500, 1), normal(400, 1, seed=1) + 3),
        (torch.randint(9, (300, 1)).float(), torch.randint(7, (200, 1)).float()),
        (normal(3000, 1).pow(5), normal(3000, 1, seed=2).pow(5) + 1),
    ]
    for data, samples in pairs:
        expected = stats.wasserstein_distance(samples[:, 0].numpy(), data[:, 0].numpy()) / float(data.std(correction=0))
        assert Histogram()(unit * samples, unit * data).value == pytest.approx(expected, rel=0.02, abs=2e-3)
    data, samples = normal(100, 2, 6, 6), normal(80, 2, 6, 6, seed=1) * torch.tensor([1.0, 2.0]).view(2, 1, 1)
    alone = [Histogram()(samples[:, [c]], data[:, [c]]).value for c in (0, 1)]
    assert Histogram()(samples, data).value == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_the_curve_of_a_histogram_is_the_density():
    x = normal(2000, 1, 80)
    channels, distance = Channels.of(x), Histogram()
    curves = distance.curves(distance.all_summaries(x, channels), channels, (1, 80), 2000)
    inside = curves.x[0].abs() < 2
    density = torch.distributions.Normal(0, 1).log_prob(curves.x[0]).exp()
    assert curves.values.mean(0)[0, inside] == pytest.approx(density[inside].numpy(), rel=0.1)


# Errors and floors


@pytest.mark.parametrize("distance", ALL, ids=lambda distance: distance.name)
def test_values_without_each_block_are_those_of_the_others(distance):
    samples, data = normal(40, 1, 12), normal(70, 1, 12, seed=1)
    channels = Channels.of(data)
    ours, theirs = distance.all_summaries(samples, channels), distance.all_summaries(data, channels)
    found, plain = distance.estimate(ours, theirs), Distance.estimate(distance, ours, theirs)
    assert (found.value, *found.jackknife) == pytest.approx((plain.value, *plain.jackknife), rel=1e-6)
    assert distance(samples, data).error == found.error > 0 and len(found.jackknife) == 10
    assert math.isnan(distance(samples[:2], data).error)


@pytest.mark.parametrize(("factor", "draws"), [(1.3, 40), *(pytest.param(each, 200, marks=SLOW) for each in (1.0, 1.3))])
@pytest.mark.parametrize("distance", ALL, ids=lambda distance: distance.name)
def test_two_errors_cover_the_mean(distance, factor, draws):
    """Of many samples against the same data, or, if the error includes that of the data, against new data each time."""
    fixed = normal(300, 1, 8)
    found = []
    for k in range(draws):
        data = normal(300, 1, 8, seed=5000 + k) if distance.floor(fixed, 2) == 0 else fixed
        found.append(distance(factor * normal(100, 1, 8, seed=k + 1), data))
    mean = sum(each.value for each in found) / len(found)
    assert sum(abs(each.value - mean) <= 2 * each.error for each in found) >= 0.88 * draws


@pytest.mark.parametrize(
    ("total", "n"), [(200, 100), *(pytest.param(*sizes, marks=SLOW) for sizes in ((400, 400), (200, 800), (1000, 100)))]
)
@pytest.mark.parametrize("distance", ALL, ids=lambda distance: distance.name)
def test_the_floor_is_the_mean_of_the_data_themselves(distance, total, n):
    values = torch.tensor([distance(normal(n, 1, 8, seed=k), normal(total, 1, 8, seed=9000 + k)).value for k in range(30)])
    data = [normal(total, 1, 8, seed=20_000 + k) for k in range(3)]
    summaries = [distance.all_summaries(each, Channels.of(each)) for each in data]
    floor = sum(distance.floor(each, n) for each in summaries) / 3
    noise = 3 * float(values.std()) / 30**0.5
    assert float(values.mean()) == pytest.approx(floor, abs=noise + 0.06 * floor)


def test_few_data_have_no_floor_and_large_examples_are_compared_fewer():
    assert summaries_of([Histogram()], normal(7, 2), 100)[0].floor is None
    (found,) = summaries_of([EnergyDistance()], normal(8, 1, 64, 64, 64), 1000)
    assert found.n == 256 and found.data.shape == (8, 64**3)


# Sums over samples


def test_batches_and_processes_change_nothing():
    data, samples = normal(50, 2, 10), normal(30, 2, 10, seed=1)
    for reference in summaries_of(ALL, data, 30):
        whole, resumed, *parts = (DistanceTotals(reference) for _ in range(4))
        whole.update(range(30), samples)
        for rank, part in enumerate(parts):
            for numbers in (range(rank, 14, 2), range(14 + rank, 30, 2)):
                part.update(numbers, samples[list(numbers)])
        resumed.load_state_dict({"kept": sum(part.state_dict()["kept"] for part in parts)})
        device, expected = torch.device("cpu"), reference.distance(samples, data).value
        assert resumed.measure(device) == whole.measure(device)
        assert whole.measure(device).value == pytest.approx(expected, rel=1e-6)
        whole.update(range(30, 40), samples[:10])  # beyond those that are kept
        assert resumed.measure(device) == whole.measure(device)
        with pytest.raises(Unmeasurable, match="NaN or infinite"):
            whole.update([0], samples[:1] * math.nan)


def test_constant_channels_and_equal_sets_give_numbers():
    data = torch.cat([normal(40, 1, 8), torch.full((40, 1, 8), 7.0)], 1)
    for distance in ALL:
        assert math.isfinite(distance(data[:20], data).value) and math.isfinite(distance(data + 1, data).value)


def test_refuses():
    with pytest.raises(InputError, match="a table has no frequencies"):
        PowerSpectrum()(normal(9, 3), normal(9, 3))
    with pytest.raises(InputError, match=r"samples of shape \(4,\): must be as data, \(3,\)"):
        Histogram()(normal(9, 4), normal(9, 3))
    with pytest.raises(InputError, match="projections=0: must be at least 1"):
        SlicedWasserstein(0)
    with pytest.raises(InputError, match="needs 2 of each"):
        EnergyDistance()(normal(1, 3), normal(9, 3))
