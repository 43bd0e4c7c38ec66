"""The Frechet distance equals its oracles and survives bad covariances; the features tell digits from near misses."""

import math
import pickle
import re
import urllib.error
from inspect import isabstract

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity.feature_extractor_inceptionv3 as fidelity
from inception import colors
from networks import clip_file, dinov2_file
from safetensors import safe_open
from torch.nn import functional as F
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN as KID, kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance
from train_features import RECIPES, accuracy, augment, train

from lightning_score.data import Digits, FashionMNIST, to_uint8
from lightning_score.data.public import DEBIAN_FASHION_MNIST
from lightning_score.errors import InputError
from lightning_score.metrics import (
    CLIPFeatures,
    DigitFeatures,
    DINOv2Features,
    FashionFeatures,
    Features,
    FeatureSums,
    InceptionFeatures,
    KeptFeatures,
    ModuleFeatures,
    RawFeatures,
    ReferenceFile,
    SpatialFeatures,
    Statistics,
    block_of,
    fit,
    frechet_distance,
    frechet_estimate,
    frechet_infinity,
    inception_score,
    kernel_distance,
    manifold,
    nearest_neighbors,
    real_floor,
    student,
)
from lightning_score.metrics.classifiers import DIGIT_WEIGHTS, FASHION_WEIGHTS
from lightning_score.metrics.features import INCEPTION


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def correlated(n, dimension, seed):
    """`n` vectors with a random mean and covariance, float64 (n, dimension)."""
    normal = torch.randn(n + dimension + 1, dimension, dtype=torch.float64, generator=generator(seed))
    return normal[:n] @ normal[n : n + dimension] + normal[-1]


def gaussian(mean, covariance):
    return Statistics(0, mean, covariance)


def fitted(features):
    return gaussian(features.mean(0), torch.cov(features.mT))


def distance(real, fake):
    """The distance of two sets of features."""
    return frechet_distance(fit(real), fit(fake))


# The formula


def test_distance_is_scipys():
    first, second = fitted(correlated(200, 20, 1)), fitted(correlated(200, 20, 2))
    root = scipy.linalg.sqrtm((first.covariance @ second.covariance).numpy()).real
    expected = (first.mean - second.mean).square().sum() + (first.covariance + second.covariance).trace() - 2 * root.trace()
    assert frechet_distance(first, second) == pytest.approx(float(expected), rel=1e-9)


def test_distance_is_torch_fidelitys():
    """In 300 dimensions, of float32 features, by eigenvalues of a matrix that is not symmetric there."""
    real, fake = correlated(2000, 300, 1).float().relu(), 1.1 * correlated(1500, 300, 2).float().relu()
    statistics = [
        {"mu": x.mean(0).double().numpy(), "sigma": np.cov(x.double().numpy(), rowvar=False)} for x in (real, fake)
    ]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert distance(real, fake) == pytest.approx(expected, rel=1e-6)


def test_diagonal_gaussians_have_a_closed_form():
    mean1, mean2, std1, std2 = torch.rand(4, 7, dtype=torch.float64, generator=generator())
    expected = (mean1 - mean2).square().sum() + (std1 - std2).square().sum()
    measured = frechet_distance(gaussian(mean1, std1.square().diag()), gaussian(mean2, std2.square().diag()))
    assert measured == pytest.approx(float(expected))


@pytest.mark.parametrize("n", [2, 10, 500])
def test_equal_gaussians_are_at_zero_and_order_does_not_matter(n):
    first, second = fitted(correlated(n, 50, 1)), fitted(correlated(n, 50, 2))
    assert frechet_distance(first, first) < 1e-12 * float(first.covariance.trace())
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-11)


@pytest.mark.parametrize("n", [2, 5, 40])
def test_fewer_examples_than_features(n):
    """Oracle: `tr (C1 C2)^(1/2)` is the sum of the singular values of X1 X2^T / (n - 1), X the centered features."""
    first, second = correlated(n, 50, 1), correlated(n, 50, 2)
    root = torch.linalg.svdvals((first - first.mean(0)) @ (second - second.mean(0)).mT).sum() / (n - 1)
    spread = (torch.cov(first.mT) + torch.cov(second.mT)).trace() - 2 * root
    expected = (first.mean(0) - second.mean(0)).square().sum() + spread
    assert frechet_distance(fitted(first), fitted(second)) == pytest.approx(float(expected), rel=1e-10)
    assert frechet_distance(fit(first), fit(second)) == pytest.approx(float(expected), rel=1e-12)
    assert frechet_distance(fit(first), fitted(second)) == pytest.approx(float(expected), rel=1e-10)
    many = fitted(correlated(200, 50, 3))
    assert frechet_distance(fit(first), many) == pytest.approx(frechet_distance(many, fitted(first)), rel=1e-9)


def test_points_and_constant_features_do_not_give_nan():
    mean, zero, one = torch.zeros(3), torch.zeros(3, 3), torch.eye(3)
    assert frechet_distance(gaussian(mean, zero), gaussian(mean + 1, zero)) == 3
    assert frechet_distance(gaussian(mean, zero), gaussian(mean, one)) == 3, "a point against a Gaussian: its trace"
    narrow, wide = gaussian(torch.zeros(1), torch.ones(1, 1)), gaussian(torch.ones(1), 4 * torch.ones(1, 1))
    assert frechet_distance(narrow, wide) == 2
    almost = one.double() - 1e-17 * torch.ones(3, 3)
    almost[0, 0] = 1e-20
    assert math.isfinite(frechet_distance(gaussian(mean, almost), gaussian(mean, almost)))


@pytest.mark.parametrize("smallest", [0.0, 1e-16, 1e-13, 1e-12, 1e-11, 1e-6])
def test_a_nearly_singular_covariance_does_not_reduce_precision(smallest):
    """C = Q diag(s, 1, ..., 1) Q^T against the identity is at (1 - sqrt(s))^2, whichever factor is taken."""
    basis = torch.linalg.qr(correlated(10, 10, 1)).Q
    eigenvalues = torch.ones(10, dtype=torch.float64)
    eigenvalues[0] = smallest
    mean, identity = torch.zeros(10), torch.eye(10)
    measured = frechet_distance(gaussian(mean, basis * eigenvalues @ basis.mT), gaussian(mean, identity))
    assert measured == pytest.approx((1 - smallest**0.5) ** 2, abs=1e-6)


def test_different_features_cannot_be_compared():
    with pytest.raises(InputError, match="of 3 and of 4 features"):
        distance(correlated(9, 3, 1), correlated(9, 4, 1))


# The sums


def test_distance_is_torchmetrics_on_the_same_features():
    data, features = Digits(), DigitFeatures()
    real, fake = data.splits.train.x, data.splits.held_out.x.flip(-1)
    oracle = FrechetInceptionDistance(Vectors(features), normalize=False, input_img_size=(1, 8, 8))
    oracle.update(real, real=True)
    oracle.update(fake, real=False)
    assert distance(features(real).features, features(fake).features) == pytest.approx(float(oracle.compute()), rel=1e-5)


class Vectors(torch.nn.Module):
    """The features alone, as torchmetrics takes them."""

    def __init__(self, features):
        super().__init__()
        self.features, self.num_features = features, features.num_features

    def forward(self, x):
        return self.features(x).features


def test_batches_blocks_and_processes_do_not_change_the_value():
    features = correlated(301, 8, 1)
    processes = [FeatureSums(8, blocks=4), FeatureSums(8, blocks=4)]
    for rank, (size, sums) in enumerate(zip((7, 50), processes, strict=True)):
        for rows in torch.arange(rank, 301, 2).split(size):
            sums.update(features[rows], rows % 4)
    merged = FeatureSums(8, blocks=4)
    for name, reduction in merged._reductions.items():
        setattr(merged, name, reduction(torch.stack([getattr(sums, name) for sums in processes])))
    merged._update_count = 1
    found = merged.compute()
    assert found.n == 301 and merged.count.tolist() == [76, 75, 75, 75]
    torch.testing.assert_close(found.mean, features.mean(0), rtol=1e-10, atol=0)
    torch.testing.assert_close(found.covariance, torch.cov(features.mT), rtol=1e-10, atol=1e-12)
    part = merged.statistics([1, 3])
    torch.testing.assert_close(part.covariance, torch.cov(features[1::2].mT), rtol=1e-10, atol=1e-12)


def test_a_far_mean_does_not_reduce_precision():
    real, fake = correlated(500, 4, 1), correlated(500, 4, 2)
    assert distance(real + 1e4, fake + 1e4) == pytest.approx(distance(real, fake), rel=1e-6)


def test_sums_of_inference_mode_can_be_updated_outside():
    with torch.inference_mode():
        sums = FeatureSums(3)
        sums.update(correlated(5, 3, 1))
        sums.reset()
    assert sums.count.sum() == 0
    sums.update(correlated(5, 3, 1))
    assert frechet_distance(sums.compute(), fit(correlated(5, 3, 1))) == pytest.approx(0, abs=1e-9)


def test_sums_refuse_invalid_features():
    sums = FeatureSums(3)
    with pytest.raises(InputError, match="NaN"):
        sums.update(torch.full((2, 3), torch.nan))
    with pytest.raises(InputError, match=re.escape("(2, 4)")):
        sums.update(torch.zeros(2, 4))
    sums.update(torch.zeros(1, 3))
    with pytest.raises(InputError, match="got 1 examples on one side"):
        sums.compute()


# The error bar, the limit and the floor


def sums_of(features, blocks=10):
    sums = FeatureSums(features.shape[1], blocks)
    sums.update(features, block_of(torch.arange(len(features)), len(features), blocks))
    return sums


def test_the_standard_error_is_the_spread_over_independent_samples():
    """The spread of the distances of 60 sets of samples is the mean of their standard errors."""
    real = fit(correlated(20_000, 5, 1))
    sets = [correlated(500, 5, 2)[:, :1] * 0 + torch.randn(500, 5, generator=generator(seed)).double() for seed in range(60)]
    found = [frechet_estimate(real, sums_of(features)) for features in sets]
    values, errors = (torch.tensor([getattr(one, part) for one in found]) for part in ("value", "error"))
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.25)
    assert float(found[0].value) == pytest.approx(frechet_distance(real, fit(sets[0])), rel=1e-9)


@pytest.mark.parametrize("classes", [1, 5, 10, 20])
def test_the_standard_error_of_samples_whose_classes_take_turns(classes):
    """As those of a class-conditional model do. The classes are far apart, but each set has as many samples of every one."""
    centers = 4 * torch.randn(classes, 5, generator=generator(1)).double()

    def samples(n, seed, spread=1.0):
        return centers[torch.arange(n) % classes] + spread * torch.randn(n, 5, generator=generator(seed)).double()

    real = fit(samples(20_000, 2))
    found = [frechet_estimate(real, sums_of(samples(500, seed, 2.0))) for seed in range(60, 120)]
    values, errors = (torch.tensor([getattr(one, part) for one in found]) for part in ("value", "error"))
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.3)


def test_kept_features_have_the_statistics_of_their_sums():
    real, features = fit(correlated(300, 6, 1)), correlated(45, 6, 2)
    kept, sums = KeptFeatures(features, 10), sums_of(features)
    assert kept.count.tolist() == sums.count.tolist()
    by_kept, by_sums = frechet_estimate(real, kept), frechet_estimate(real, sums)
    assert (by_kept.value, by_kept.error, *by_kept.jackknife) == pytest.approx(
        (by_sums.value, by_sums.error, *by_sums.jackknife), rel=1e-9
    )


def test_few_blocks_give_no_error():
    assert math.isnan(frechet_estimate(fit(correlated(50, 3, 1)), sums_of(correlated(50, 3, 2), blocks=2)).error)
    assert math.isnan(frechet_estimate(fit(correlated(50, 3, 1)), sums_of(correlated(50, 3, 2)), error=False).error)


def limit_of(real, features):
    sums = sums_of(features)
    return frechet_infinity(frechet_estimate(real, sums), sums.count)


def covered(found, truth):
    """The fraction of intervals of two errors that cover the truth."""
    return sum(abs(estimate.value - truth) <= 2 * estimate.error for estimate in found) / len(found)


@pytest.mark.parametrize("size", [1000, 997], ids=["equal blocks", "unequal blocks"])
def test_fid_infinity_has_no_bias_of_few_samples(size):
    """Samples of the data's law have distance 0; that of few of them is larger, its extrapolation is not."""
    draws = [torch.randn(size, 20, generator=generator(seed)).double() for seed in range(20)]
    real = gaussian(torch.zeros(20).double(), torch.eye(20).double())
    values = torch.tensor([frechet_distance(real, fit(draw)) for draw in draws])
    limits = torch.tensor([limit_of(real, draw).value for draw in draws])
    assert values.mean() > 0.1 and limits.mean().abs() < 0.1 * values.mean()
    sums = sums_of(draws[0], blocks=2)
    with pytest.raises(InputError, match="without each of 3 or more blocks"):
        frechet_infinity(frechet_estimate(real, sums), sums.count)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.1, 0.1), (1.5, 0.5)], ids=["equal", "near", "far"])
def test_two_errors_of_fid_and_fid_infinity_cover_the_truth(scale, shift):
    """Of Gaussians the distance of the laws has a closed form; that of few samples is its mean."""
    dimension = 12
    real = gaussian(torch.zeros(dimension).double(), torch.eye(dimension).double())
    truth = dimension * (shift**2 + (scale - 1) ** 2)
    draws = [scale * torch.randn(500, dimension, generator=generator(seed)).double() + shift for seed in range(200)]
    sums = [sums_of(draw) for draw in draws]
    distances = [frechet_estimate(real, each) for each in sums]
    limits = [frechet_infinity(distance, each.count) for distance, each in zip(distances, sums, strict=True)]
    assert 0.9 <= covered(limits, truth) <= 0.995
    assert 0.9 <= covered(distances, sum(distance.value for distance in distances) / 200) <= 0.995


def test_few_values_widen_an_error():
    assert [student(degrees) for degrees in (1, 9, 10**6)] == pytest.approx([12.706 / 2, 2.262 / 2, 1.0], rel=1e-3)


def heavy(n, seed):
    """Features as those of a network are: not negative, dependent, of a skewed law, some of them rare; (n, 16)."""
    few = torch.randn(n, 6, generator=generator(seed)).double() @ correlated(6, 16, 3)
    return (few + torch.randn(n, 16, generator=generator(10**6 + seed)).double() - 1).relu()


def normal(n, seed, dimension=16):
    return torch.randn(n, dimension, generator=generator(seed)).double()


@pytest.mark.parametrize("draw", [normal, heavy])
@pytest.mark.parametrize(("total", "n"), [(600, 300), (600, 600), (600, 2000), (2000, 200)])
def test_floor_is_what_a_perfect_model_scores(draw, total, n):
    """Against a simulation: samples and data are independent draws of one law. The floor knows the data alone."""
    pairs = [(draw(total, 2 * seed), draw(n, 2 * seed + 1)) for seed in range(150)]
    scores = torch.tensor([distance(*pair) for pair in pairs])
    floors = torch.tensor([real_floor(real, n) for real, _ in pairs[:3]])
    noise = float(scores.std() / len(scores) ** 0.5 / scores.mean())
    assert float(floors.mean() / scores.mean()) == pytest.approx(1, abs=0.05 + 2 * noise)


@pytest.mark.parametrize(("dimension", "total", "n"), [(128, 100, 50), (128, 400, 100), (64, 40, 4)])
def test_floor_of_no_more_samples_than_features(dimension, total, n):
    pairs = [(normal(total, 2 * k, dimension), normal(n, 2 * k + 1, dimension)) for k in range(30)]
    scores, floors = [distance(*pair) for pair in pairs], [real_floor(real, n) for real, _ in pairs[:3]]
    assert sum(floors) / 3 == pytest.approx(sum(scores) / 30, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dimension", "total", "n"), [(64, 1797, 898), (64, 1797, 5000), (16, 4000, 2000), (16, 4000, 4000), (16, 20_000, 1000)]
)
def test_floor_is_within_five_percent_of_a_long_simulation(dimension, total, n):
    scores = [distance(normal(total, 2 * k, dimension), normal(n, 2 * k + 1, dimension)) for k in range(1000)]
    floors = [real_floor(normal(total, 10**5 + k, dimension), n) for k in range(5)]
    assert sum(floors) / 5 == pytest.approx(sum(scores) / 1000, rel=0.05)


def test_floor_is_reproducible_and_refuses_too_few_examples():
    features = correlated(400, 5, 1)
    assert real_floor(features, 200) == real_floor(features, 200) != real_floor(features, 200, seed=1)
    rows = torch.randperm(400, generator=generator())
    apart = distance(features[rows[:100]], features[rows[100:]])
    expected = apart * (1 / 100 + 1 / 400) / (1 / 100 + 1 / 300)
    assert real_floor(features, 100, splits=1) == pytest.approx(expected, rel=1e-6)
    for arguments in ((features, 1), (features[:3], 2), (features, 50, 0)):
        with pytest.raises(InputError):
            real_floor(*arguments)


# Files of statistics


def test_statistics_of_pytorch_fid(tmp_path):
    features = correlated(100, 6, 1).numpy()
    np.savez(tmp_path / "data.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    assert frechet_distance(ReferenceFile(tmp_path / "data.npz").statistics(""), fit(torch.from_numpy(features))) < 1e-9


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "that exists"),
        ({"mu": np.zeros(3)}, "lacks sigma; it holds mu"),
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, "must be"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "mu or sigma has NaN or infinity"),
        ({"mu": np.array([print]), "sigma": np.eye(1)}, "not a file of statistics"),
        (b"no zip", "not a file of statistics"),
    ],
    ids=["absent", "half", "shapes", "nan", "code", "other"],
)
def test_other_files_are_refused(arrays, message, tmp_path):
    path = tmp_path / "data.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is not None:
        np.savez(path, **arrays)
    with pytest.raises(InputError, match=message):
        ReferenceFile(path)


# The features themselves


def test_precision_and_recall_are_torch_fidelitys():
    real, fake = correlated(400, 6, 1).float(), 1.3 * correlated(300, 6, 1).float() + 0.5
    expected = prc_features_to_metric(fake, real, prc_neighborhood=3, prc_batch_size=10_000, verbose=False)
    found = manifold(real, fake, chunk=64)
    assert found.precision == pytest.approx(expected["precision"], abs=1e-9) and 0 < found.precision < 1
    assert found.recall == pytest.approx(expected["recall"], abs=1e-9) and 0 < found.recall < 1


def test_a_far_mean_changes_no_neighbors():
    real, fake = torch.randn(2, 300, 16, dtype=torch.float64, generator=generator())
    near = manifold(real, fake)
    assert manifold(real + 1e4, fake + 1e4) == pytest.approx(near, abs=0.01)


def test_density_and_coverage_are_their_definitions():
    real, fake = correlated(60, 2, 1).float(), correlated(50, 2, 2).float()
    radii = torch.cdist(real, real).sort(1).values[:, 3]
    inside = torch.cdist(real, fake) <= radii[:, None]
    found = manifold(real, fake)
    assert found.density == pytest.approx(float(inside.sum()) / (3 * 50)) and found.coverage == float(
        inside.any(1).float().mean()
    )
    far = manifold(real, fake + 1e3)
    assert far == (0.0, 0.0, 0.0, 0.0)
    same = manifold(real, real)
    assert same.precision == same.recall == same.coverage == 1.0
    with pytest.raises(InputError, match="3 generated"):
        manifold(real, fake[:3])


@pytest.mark.parametrize(("n", "m"), [(40, 40), (50, 30), (4, 9)])
def test_kernel_distance_is_torch_fidelitys_of_all_pairs(n, m):
    """By its own kernel, with the diagonal left out."""
    real, fake = correlated(n, 6, 1), correlated(m, 6, 2) + 0.2
    kernel = [(x @ y.mT / 6 + 1) ** 3 for x, y in ((real, real), (fake, fake), (real, fake))]
    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in kernel[:2]]
    expected = float(within[0] + within[1] - 2 * kernel[2].mean())
    assert kernel_distance(real, fake, chunk=7).value == pytest.approx(expected, rel=1e-9)
    if n == m:
        settings = {"kid_subsets": 1, "kid_subset_size": n, "verbose": False}
        assert expected == pytest.approx(kid_features_to_metric(fake, real, **settings)[KID], rel=1e-6)
    assert kernel_distance(real, fake, chunk=7)[:2] == pytest.approx(kernel_distance(real, fake)[:2], rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(300, 300), (400, 150)])
@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2, 0.5])
def test_two_errors_of_the_kernel_distance_cover_the_truth(shift, n, m):
    """Of equal laws, where it is 0, as of different ones, where its mean is the truth; and they are no wider than needed."""
    mixing = correlated(24, 24, 5) / 24
    found = [kernel_distance(normal(n, 2 * k, 24) @ mixing, normal(m, 2 * k + 1, 24) @ mixing + shift) for k in range(200)]
    values = torch.tensor([each.value for each in found])
    truth = float(values.mean()) if shift else 0.0
    assert abs(float(values.mean()) - truth) < 3 * float(values.std()) / 200**0.5, "unbiased"
    assert 0.9 <= covered(found, truth) <= 0.99
    error = torch.tensor([each.error for each in found]).square().mean().sqrt()
    assert float(error) == pytest.approx(float(values.std()), rel=0.25)


def test_inception_score_of_certain_and_uncertain_guesses():
    certain = 50 * torch.eye(10)[torch.arange(1000) % 10]
    assert inception_score(certain).value == pytest.approx(10, rel=1e-6)
    assert inception_score(torch.zeros(1000, 10)).value == pytest.approx(1, rel=1e-6)
    logits = torch.randn(500, 10, generator=generator())
    expected = isc_features_to_metric(logits, splits=10, shuffle=False)
    found = inception_score(logits)
    assert (found.value, found.error * 10**0.5) == pytest.approx(tuple(expected.values()), rel=1e-6)


def noisy(x, spread, seed=0):
    noise = spread * torch.randn(x.shape, generator=generator(seed))
    return (x + noise).round().clamp(0, 255).to(torch.uint8)


def moved(x, down, right):
    """Images moved over a black ground."""
    framed = F.pad(x, (1, 1, 1, 1))
    return framed[..., 1 - down : x.shape[-2] + 1 - down, 1 - right : x.shape[-1] + 1 - right]


CHANGES = {
    "as they are": lambda x: x,
    "one pixel to the right": lambda x: moved(x, 0, 1),
    "one pixel up and to the left": lambda x: moved(x, -1, -1),
    "flipped": lambda x: x.flip(-1),
    "flipped and one pixel down": lambda x: moved(x.flip(-1), 1, 0),
}
DATA = {
    "as they are": lambda x: x,
    "twice": lambda x: torch.cat([x, x]),
    "with near twins": lambda x: torch.cat([x, noisy(x, 3), noisy(x, 3, 1)]),
    "with flipped twins": lambda x: torch.cat([x, x.flip(-1)]),
    "with moved twins": lambda x: torch.cat([x, moved(x, 1, 0)]),
}


@pytest.mark.parametrize("changed", CHANGES)
@pytest.mark.parametrize("data", DATA)
def test_changed_copies_are_found(data, changed):
    """Digits, with 8 gray levels of noise on the copies, of data that occur once or more often."""
    train, held_out = Digits().splits
    few = train.x[::4]
    copies = noisy(CHANGES[changed](few[:40]), 8)
    found = nearest_neighbors(copies, DATA[data](few), held_out.x[:100])
    assert found.copied >= 0.95 and found.ratio < 0.5 and found.copied_held_out <= 0.01
    assert (found.index % len(few) == torch.arange(40)).float().mean() >= 0.95


@pytest.mark.parametrize(("spread", "least"), [(0, 1.0), (8, 0.98), (16, 0.8)])
def test_noisy_copies_of_digits_are_found(spread, least):
    """And of real digits that were not trained on none; 32 gray levels are as far as digits are from one another."""
    train, held_out = Digits().splits
    assert nearest_neighbors(noisy(train.x[:100], spread), train.x, held_out.x[:50]).copied >= least
    fresh = nearest_neighbors(held_out.x[:180], train.x, held_out.x[180:])
    assert fresh.copied <= 0.01 and fresh.copied_held_out <= 0.01 and fresh.ratio == pytest.approx(1, abs=0.1)


def test_neighbors_find_only_copies():
    train, held_out = torch.randint(0, 256, (2, 300, 1, 8, 8), dtype=torch.uint8, generator=generator())
    fresh = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=generator(1))
    found = nearest_neighbors(torch.cat([train[[7, 250]], fresh]), train, held_out)
    assert found.index[:2].tolist() == [7, 250] and found.distance[:2].tolist() == [0, 0]
    assert found.copied == pytest.approx(2 / 42)
    assert nearest_neighbors(fresh, train, held_out).ratio == pytest.approx(1, abs=0.02)
    assert nearest_neighbors(train, train, held_out).ratio == 0
    alone = nearest_neighbors(train[:9], train[:1].expand(50, -1, -1, -1), held_out)
    assert alone.copied == pytest.approx(1 / 9), "also where there is no other example"


@pytest.mark.parametrize("shape", [(5,), (1, 8, 8), (3, 2, 2), (1, 40, 33), (3, 64, 64), (1, 1, 9)], ids=str)
def test_the_nearest_of_any_shape_is_that_of_a_plain_search(shape):
    """Without shifts and flips: of vectors, and of images that are small enough not to be averaged."""
    train, x = (torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator(n)) for n in (1500, 20))
    x[3] = train[1200]
    found = nearest_neighbors(x, train, x[5:])
    assert found.index[3] == 1200 and found.distance[3] == 0
    if len(shape) == 1:
        plain = torch.cdist(x.double(), train.double()) / 5**0.5
        torch.testing.assert_close(found.distance.double(), plain.min(1).values, rtol=1e-5, atol=0)


# Features


@pytest.fixture(scope="module")
def extractors(inception_weights, tmp_path_factory):
    """One of each of the package, with examples for it."""
    folder = tmp_path_factory.mktemp("networks")
    made = {
        CLIPFeatures: (CLIPFeatures(str(clip_file(folder))), colors(3)),
        DINOv2Features: (DINOv2Features(str(dinov2_file(folder))), colors(3)),
        SpatialFeatures: (SpatialFeatures(str(inception_weights)), colors(3)),
        RawFeatures: (RawFeatures(shape=[2]), torch.randn(3, 2)),
        DigitFeatures: (DigitFeatures(), Digits().splits.held_out.x[:3]),
        FashionFeatures: (FashionFeatures(), colors(3)[:, :1]),
        InceptionFeatures: (InceptionFeatures(str(inception_weights)), colors(3)),
        ModuleFeatures: (ModuleFeatures(Means(), 3), colors(3)),
    }
    package = {cls for cls in subclasses(Features) if not isabstract(cls) and cls.__module__.startswith("lightning_score")}
    assert package == set(made), "a new extractor needs a line here"
    return made.values()


def subclasses(cls):
    return [c for child in cls.__subclasses__() for c in [child, *subclasses(child)]]


class Means(torch.nn.Module):
    """A user's module: the mean of every channel."""

    def forward(self, x):
        return x.flatten(2).float().mean(2)


@pytest.mark.slow
def test_features_are_frozen_vectors(extractors):
    for features, x in extractors:
        features.train()
        assert not any(module.training for module in features.modules())
        assert not any(parameter.requires_grad for parameter in features.parameters())
        vectors, logits = features(x)
        assert logits.shape == (3, features.num_logits)
        assert vectors.shape == (3, features.num_features) and vectors.dtype == torch.float32
        assert not vectors.requires_grad
        features.chunk = 2
        torch.testing.assert_close(features(x).features, vectors, rtol=1e-4, atol=1e-5)
        assert re.fullmatch("[a-z0-9_]+", features.name)


def test_a_fingerprint_distinguishes_weights():
    first, second = ModuleFeatures(torch.nn.Linear(2, 3), 3), ModuleFeatures(torch.nn.Linear(2, 3), 3)
    assert first.fingerprint != second.fingerprint
    second.load_state_dict(first.state_dict())
    del second.fingerprint
    assert first.fingerprint == second.fingerprint
    assert DigitFeatures().fingerprint == DigitFeatures().fingerprint


def test_features_refuse_other_examples(extractors):
    for features, x in extractors:
        with pytest.raises(InputError, match=type(features).__name__):
            features(torch.zeros(2, 4, 5, 6))
        if type(features) is not ModuleFeatures:  # whose module checks its input
            with pytest.raises(InputError, match=type(features).__name__):
                features(x.flatten(1).repeat(1, 2))


def test_digit_classifier_has_the_documented_accuracy():
    classifier = DigitFeatures().classifier
    measured = accuracy(classifier, Digits().splits.held_out)
    with safe_open(DIGIT_WEIGHTS, "pt") as file:
        assert float(file.metadata()["held_out_accuracy"]) == pytest.approx(measured, abs=1e-4)
    stated = float(re.search(r"([\d.]+) % accurate", DigitFeatures.__doc__).group(1))
    assert stated == pytest.approx(100 * measured, abs=0.01)
    assert measured >= 0.985
    assert DIGIT_WEIGHTS.stat().st_size < 500_000


@pytest.mark.slow
def test_fashion_classifier_has_the_documented_accuracy(tmp_path):
    stated = [float(number) for number in re.findall(r"([\d.]+) % ", FashionFeatures.__doc__)]
    with safe_open(FASHION_WEIGHTS, "pt") as file:
        assert float(file.metadata()["held_out_accuracy"]) == pytest.approx(stated[0] / 100, abs=1e-4)
    assert FASHION_WEIGHTS.stat().st_size < 1_000_000
    if not DEBIAN_FASHION_MNIST.exists():
        pytest.skip("Fashion-MNIST is not installed")
    features = FashionFeatures()
    for size, percent in zip((28, 16), stated, strict=True):
        _, held_out = FashionMNIST(str(tmp_path), size=size).splits
        guesses = features(held_out.x).logits.argmax(1)
        assert float((guesses == held_out.y).float().mean()) == pytest.approx(percent / 100, abs=1e-3)


def test_digit_features_tell_digits_from_their_gaussian_and_from_noise():
    reference, features = Digits().reference(), DigitFeatures()
    vectors = features(reference).features
    floor = real_floor(vectors, 898)
    _, mean, cov, _ = fitted(reference.flatten(1).double() / 255)
    bell = torch.distributions.MultivariateNormal(mean, cov + 1e-6 * torch.eye(64))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lookalikes = to_uint8(bell.sample((1797,)).reshape(reference.shape), (0, 1), levels=17)
        noise = to_uint8(torch.rand(reference.shape), (0, 1), levels=17)
    blurred = F.avg_pool2d(F.pad(reference.float(), (1, 1, 1, 1)), 3, stride=1).to(torch.uint8)
    assert distance(vectors, features(lookalikes).features) > 20 * floor
    assert distance(vectors, features(noise).features) > 60 * floor
    assert distance(vectors, features(blurred).features) > 20 * floor


def test_digits_that_the_classifier_never_saw_have_the_features_of_those_it_did():
    """Else a sampler that copies its training data would score better than new handwriting."""
    splits, features = Digits().splits, DigitFeatures()
    train_x, held_out = features(splits.train.x).features, features(splits.held_out.x).features
    everything = torch.cat([train_x, held_out])
    orders = [torch.randperm(1797, generator=generator(seed)) for seed in range(5)]
    at_random = sum(distance(everything[order[:1437]], everything[order[1437:]]) for order in orders) / len(orders)
    assert distance(train_x, held_out) < 1.3 * at_random


def test_training_is_reproducible_and_leaves_the_random_state_alone():
    examples = Digits().splits.train
    before = torch.get_rng_state()
    first, second = (train(RECIPES["digits"], examples, epochs=1) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
    assert accuracy(first, Digits().splits.held_out) > 0.6


def test_augmentation_bends_but_keeps_the_digit():
    images = Digits().splits.held_out.x
    classifier = DigitFeatures().classifier
    bent = augment(images)
    assert (bent - images).abs().mean() > 5
    assert (classifier(bent).argmax(-1) == Digits().splits.held_out.y).float().mean() > 0.9


# Inception


def test_inception_is_torch_fidelitys_and_gray_counts_as_three_equal_channels(inception_weights, monkeypatch):
    monkeypatch.setenv(INCEPTION.variable, str(inception_weights))
    features = InceptionFeatures()
    oracle = fidelity.FeatureExtractorInceptionV3(
        "oracle", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_weights)
    )
    images = colors(2)
    for x, three in ((images, images), (images[:1, :1], images[:1, :1].repeat(1, 3, 1, 1))):
        (vectors, logits), (expected, expected_logits) = features(x), oracle(three)
        torch.testing.assert_close(vectors, expected, rtol=1e-3, atol=3e-4)
        torch.testing.assert_close(logits, expected_logits, rtol=1e-3, atol=3e-3)


def test_a_missing_inception_names_the_fix(inception_weights, tmp_path, monkeypatch):
    monkeypatch.delenv(INCEPTION.variable, raising=False)
    fix = r"Download https://\S+6726825d.pth and give its path.*`weights` of InceptionFeatures or.*LIGHTNING_SCORE_INC"

    def no_network(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(InputError, match=f"downloaded.*Name or service not known.*{fix}"):
        InceptionFeatures()
    monkeypatch.setenv(INCEPTION.variable, str(tmp_path / "nowhere.pth"))
    with pytest.raises(InputError, match=f"nowhere.pth.*No such file.*{fix}"):
        InceptionFeatures()
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(inception_weights.read_bytes()[:1000])
    page = tmp_path / "page.html"
    page.write_text("<html>Not Found</html>")
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(1)}, other)
    for path in (truncated, page, other, tmp_path):
        with pytest.raises(InputError, match=fix):
            InceptionFeatures(str(path))


def test_weights_run_no_code(tmp_path):
    class Code:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = tmp_path / "code.pth"
    path.write_bytes(pickle.dumps(Code(), protocol=2))
    with pytest.raises(InputError):
        InceptionFeatures(str(path))
    assert not (tmp_path / "ran").exists()
