"""The Frechet distance equals its oracles and survives bad covariances; the features tell digits from near misses."""

import pickle
import re
import urllib.error
from inspect import isabstract

import pytest
import scipy.linalg
import torch
import torch_fidelity.feature_extractor_inceptionv3 as fidelity
from safetensors import safe_open
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance

from lightning_score.data import Digits, to_uint8
from lightning_score.metrics import (
    DigitFeatures,
    Features,
    FrechetDistance,
    InceptionFeatures,
    RawFeatures,
    frechet_distance,
    real_floor,
)
from lightning_score.metrics.features import DIGIT_WEIGHTS, INCEPTION_VARIABLE
from lightning_score.metrics.train_digit_features import accuracy, augment, train
from lightning_score.utils import InputError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def correlated(n, dimension, seed):
    """`n` vectors with a mean and a covariance of their own, float64 (n, dimension)."""
    normal = torch.randn(n + dimension + 1, dimension, dtype=torch.float64, generator=generator(seed))
    return normal[:n] @ normal[n : n + dimension] + normal[-1]


def fitted(features):
    return features.mean(0), torch.cov(features.mT)


def distance(real, fake):
    """What the metric gives for two sets of features."""
    metric = FrechetDistance(real.shape[1])
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return float(metric.compute())


# The formula


def test_distance_is_scipys():
    (mean1, cov1), (mean2, cov2) = fitted(correlated(200, 20, 1)), fitted(correlated(200, 20, 2))
    root = scipy.linalg.sqrtm((cov1 @ cov2).numpy()).real
    expected = (mean1 - mean2).square().sum() + (cov1 + cov2).trace() - 2 * root.trace()
    torch.testing.assert_close(frechet_distance(mean1, cov1, mean2, cov2), expected, rtol=1e-9, atol=0)


def test_diagonal_gaussians_have_a_closed_form():
    mean1, mean2, std1, std2 = torch.rand(4, 7, dtype=torch.float64, generator=generator())
    expected = (mean1 - mean2).square().sum() + (std1 - std2).square().sum()
    measured = frechet_distance(mean1, std1.square().diag(), mean2, std2.square().diag())
    torch.testing.assert_close(measured, expected)


@pytest.mark.parametrize("n", [2, 10, 500])
def test_equal_gaussians_are_at_zero_and_order_does_not_matter(n):
    first, second = fitted(correlated(n, 50, 1)), fitted(correlated(n, 50, 2))
    scale = float(first[1].trace())
    assert float(frechet_distance(*first, *first)) < 1e-12 * scale
    there, back = frechet_distance(*first, *second), frechet_distance(*second, *first)
    torch.testing.assert_close(there, back, rtol=1e-11, atol=0)


@pytest.mark.parametrize("n", [2, 5, 40])
def test_fewer_examples_than_features(n):
    """Oracle: `tr (C1 C2)^(1/2)` is the sum of the singular values of X1 X2^T / (n - 1), X the centred features."""
    first, second = correlated(n, 50, 1), correlated(n, 50, 2)
    root = torch.linalg.svdvals((first - first.mean(0)) @ (second - second.mean(0)).mT).sum() / (n - 1)
    (mean1, cov1), (mean2, cov2) = fitted(first), fitted(second)
    expected = (mean1 - mean2).square().sum() + (cov1 + cov2).trace() - 2 * root
    torch.testing.assert_close(frechet_distance(mean1, cov1, mean2, cov2), expected, rtol=1e-10, atol=0)


def test_points_and_constant_features_are_no_nan():
    mean, zero, one = torch.zeros(3), torch.zeros(3, 3), torch.eye(3)
    assert frechet_distance(mean, zero, mean + 1, zero) == 3
    assert frechet_distance(mean, zero, mean, one) == 3, "a point against a Gaussian: its trace"
    assert frechet_distance(torch.zeros(1), torch.ones(1, 1), torch.ones(1), 4 * torch.ones(1, 1)) == 2
    almost = one.double() - 1e-17 * torch.ones(3, 3)
    almost[0, 0] = 1e-20
    assert frechet_distance(mean, almost, mean, almost).isfinite()


@pytest.mark.parametrize("smallest", [0.0, 1e-16, 1e-13, 1e-12, 1e-11, 1e-6])
def test_a_nearly_singular_covariance_costs_no_precision(smallest):
    """C = Q diag(s, 1, ..., 1) Q^T against the identity is at (1 - sqrt(s))^2, whichever factor is taken."""
    basis = torch.linalg.qr(correlated(10, 10, 1)).Q
    eigenvalues = torch.ones(10, dtype=torch.float64)
    eigenvalues[0] = smallest
    mean, identity = torch.zeros(10), torch.eye(10)
    measured = frechet_distance(mean, basis * eigenvalues @ basis.mT, mean, identity)
    assert float(measured) == pytest.approx((1 - smallest**0.5) ** 2, abs=1e-6)


# The metric


def test_metric_is_torchmetrics_on_the_same_features():
    data, features = Digits(), DigitFeatures()
    real, fake = data.splits.train.x, data.splits.held_out.x.flip(-1)
    oracle = FrechetInceptionDistance(features, normalize=False, input_img_size=(1, 8, 8))
    oracle.update(real, real=True)
    oracle.update(fake, real=False)
    assert distance(features(real), features(fake)) == pytest.approx(float(oracle.compute()), rel=1e-5)


def test_batches_of_any_size_and_sums_of_processes_give_one_value():
    real, fake = correlated(301, 8, 1), correlated(207, 8, 2)
    expected = float(frechet_distance(*fitted(real), *fitted(fake)))
    processes = [FrechetDistance(8), FrechetDistance(8)]
    for rank, (size, metric) in enumerate(zip((7, 50), processes, strict=True)):
        for part in real[rank::2].split(size):
            metric.update(part, real=True)
        for part in fake[rank::2].split(size):
            metric.update(part, real=False)
    merged = FrechetDistance(8)
    for name, reduction in merged._reductions.items():
        setattr(merged, name, reduction(torch.stack([getattr(metric, name) for metric in processes])))
    merged._update_count = 1
    assert float(merged.compute()) == pytest.approx(expected, rel=1e-10)


def test_a_far_mean_costs_no_precision():
    real, fake = correlated(500, 4, 1), correlated(500, 4, 2)
    assert distance(real + 1e4, fake + 1e4) == pytest.approx(distance(real, fake), rel=1e-6)


def test_reset_may_keep_the_data():
    real, fake = correlated(50, 3, 1), correlated(50, 3, 2)
    metric = FrechetDistance(3, reset_real_features=False)
    metric.update(real, real=True)
    for _ in range(2):
        metric.update(fake, real=False)
        assert float(metric.compute()) == pytest.approx(distance(real, fake))
        metric.reset()
    forgetful = FrechetDistance(3)
    forgetful.update(real, real=True)
    forgetful.reset()
    assert int(forgetful.real_n) == 0


def test_a_reset_in_inference_mode_does_no_harm():
    metric = FrechetDistance(3)
    with torch.inference_mode():
        metric.update(correlated(5, 3, 1), real=True)
        metric.reset()
    for real in (True, False):
        metric.update(correlated(5, 3, 1), real=real)
    assert float(metric.compute()) == pytest.approx(0, abs=1e-9)


def test_metric_refuses_what_has_no_distance():
    metric = FrechetDistance(3)
    with pytest.raises(InputError, match="NaN"):
        metric.update(torch.full((2, 3), torch.nan), real=False)
    with pytest.raises(InputError, match=re.escape("(2, 4)")):
        metric.update(torch.zeros(2, 4), real=False)
    metric.update(torch.zeros(5, 3), real=True)
    metric.update(torch.zeros(1, 3), real=False)
    with pytest.raises(InputError, match="5 real and 1 generated"):
        metric.compute()


def test_floor_is_the_bias_of_few_samples():
    features = correlated(4000, 5, 1)
    floors = [real_floor(features, n) for n in (50, 200, 800)]
    assert floors[0] > 2 * floors[1] > 4 * floors[2] > 0, "the bias goes as 1 / n"
    assert real_floor(features, 200) == floors[1] != real_floor(features, 200, seed=1)
    assert real_floor(features, 10**6) == real_floor(features, 2000), "at most two halves"
    for arguments in ((features, 1), (features[:3], 2), (features, 50, 0)):
        with pytest.raises(InputError):
            real_floor(*arguments)


# Features


def extractors(tmp_path):
    """One of each of the package, with examples for it."""
    made = {
        RawFeatures: (RawFeatures(shape=[2]), torch.randn(5, 2)),
        DigitFeatures: (DigitFeatures(), Digits().splits.held_out.x[:5]),
        InceptionFeatures: (InceptionFeatures(str(inception_file(tmp_path))), colours(5)),
    }
    package = {cls for cls in Features.__subclasses__() if not isabstract(cls)}
    assert package == set(made), "a new extractor needs a line here"
    return made.values()


def colours(n):
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator())


def inception_file(folder):
    """Random weights in the format of torch-fidelity's file."""
    path = folder / "inception.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: None)
        torch.save(fidelity.FeatureExtractorInceptionV3("random", ["2048"]).state_dict(), path)
    return path


def test_features_are_frozen_vectors(tmp_path):
    for features, x in extractors(tmp_path):
        features.train()
        assert not any(module.training for module in features.modules())
        assert not any(parameter.requires_grad for parameter in features.parameters())
        vectors = features(x)
        assert vectors.shape == (5, features.num_features) and vectors.dtype == torch.float32
        assert not vectors.requires_grad
        features.chunk = 2
        torch.testing.assert_close(features(x), vectors, rtol=1e-4, atol=1e-5)
        assert re.fullmatch("[a-z0-9_]+", features.name)


def test_features_refuse_other_examples(tmp_path):
    for features, x in extractors(tmp_path):
        with pytest.raises(InputError, match=type(features).__name__):
            features(torch.zeros(2, 4, 5, 6))
        with pytest.raises(InputError, match=type(features).__name__):
            features(x.flatten(1).repeat(1, 2))


def test_digit_classifier_is_as_good_as_it_says():
    classifier = DigitFeatures().classifier
    measured = accuracy(classifier, Digits().splits.held_out)
    with safe_open(DIGIT_WEIGHTS, "pt") as file:
        assert float(file.metadata()["held_out_accuracy"]) == pytest.approx(measured, abs=1e-4)
    stated = float(re.search(r"([\d.]+) % accurate", DigitFeatures.__doc__).group(1))
    assert stated == pytest.approx(100 * measured, abs=0.01)
    assert measured >= 0.985
    assert DIGIT_WEIGHTS.stat().st_size < 500_000


def test_digit_features_tell_digits_from_their_gaussian_and_from_noise():
    reference, features = Digits().reference(), DigitFeatures()
    vectors = features(reference)
    floor = real_floor(vectors, 898)
    mean, cov = fitted(reference.flatten(1).double() / 255)
    gaussian = torch.distributions.MultivariateNormal(mean, cov + 1e-6 * torch.eye(64))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lookalikes = to_uint8(gaussian.sample((1797,)).reshape(reference.shape), (0, 1), levels=17)
        noise = to_uint8(torch.rand(reference.shape), (0, 1), levels=17)
    blurred = F.avg_pool2d(F.pad(reference.float(), (1, 1, 1, 1)), 3, stride=1).to(torch.uint8)
    assert distance(vectors, features(lookalikes)) > 20 * floor
    assert distance(vectors, features(noise)) > 60 * floor
    assert distance(vectors, features(blurred)) > 20 * floor


def test_digits_that_the_classifier_never_saw_have_the_features_of_those_it_did():
    """Else a sampler that copies its training data would score better than new handwriting."""
    splits, features = Digits().splits, DigitFeatures()
    train_x, held_out = features(splits.train.x), features(splits.held_out.x)
    everything = torch.cat([train_x, held_out])
    orders = [torch.randperm(1797, generator=generator(seed)) for seed in range(5)]
    at_random = sum(distance(everything[order[:1437]], everything[order[1437:]]) for order in orders) / len(orders)
    assert distance(train_x, held_out) < 1.3 * at_random


def test_training_is_reproducible_and_leaves_the_random_state_alone():
    examples = Digits().splits.train
    before = torch.get_rng_state()
    first, second = (train(examples, epochs=2) for _ in range(2))
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


def test_inception_is_torch_fidelitys_and_grey_counts_as_three_equal_channels(tmp_path, monkeypatch):
    path = inception_file(tmp_path)
    monkeypatch.setenv(INCEPTION_VARIABLE, str(path))
    features = InceptionFeatures()
    oracle = fidelity.FeatureExtractorInceptionV3("oracle", ["2048"], feature_extractor_weights_path=str(path))
    images = colours(3)
    torch.testing.assert_close(features(images), oracle(images)[0], rtol=1e-4, atol=1e-6)
    grey = images[:, :1]
    torch.testing.assert_close(features(grey), oracle(grey.repeat(1, 3, 1, 1))[0], rtol=1e-4, atol=1e-6)


def test_missing_inception_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv(INCEPTION_VARIABLE, raising=False)
    fix = r"Download https://\S+6726825d.pth and give its path.*`weights` of InceptionFeatures or.*LIGHTNING_SCORE_INC"

    def no_network(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(fidelity, "load_state_dict_from_url", no_network)
    with pytest.raises(InputError, match=f"downloaded.*Name or service not known.*{fix}"):
        InceptionFeatures()
    monkeypatch.setenv(INCEPTION_VARIABLE, str(tmp_path / "nowhere.pth"))
    with pytest.raises(InputError, match=f"nowhere.pth.*No such file.*{fix}"):
        InceptionFeatures()
    truncated = inception_file(tmp_path)
    truncated.write_bytes(truncated.read_bytes()[:1000])
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
