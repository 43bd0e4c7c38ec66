"""Data modules keep their contract, loading is exactly invertible and quick, the mixture's score is exact."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from subclasses import concrete
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from lightning_score.data import (
    Batches,
    Digits,
    Examples,
    GaussianMixture,
    ImageData,
    Mixture,
    MixturePosterior,
    ScoreData,
    Splits,
    base,
    from_uint8,
    split_indices,
    to_uint8,
)
from lightning_score.data.base import CPU
from lightning_score.data.images import ToBatch
from lightning_score.errors import InputError
from lightning_score.observations import Matrix

FROM_FILES = {
    f"lightning_score.data.{name}" for name in ("arrays", "array_stream", "public", "folder", "stream")
}  # tested elsewhere
DATA = [cls for cls in concrete(ScoreData) if cls.__module__ not in FROM_FILES]
RANGES = [(0.0, 1.0), (-1.0, 1.0), (-3.0, 5.0)]


class Noise(ImageData):
    """A data set as a user would write it: 32x32 color images, unlabeled."""

    shape = (3, 32, 32)

    def load(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (2000, *self.shape), dtype=torch.uint8, generator=generator)
        labels = torch.zeros(2000, dtype=torch.long)
        return Splits(*(Examples(images[rows], labels[rows]) for rows in split_indices(2000)))


# The contract


@pytest.mark.parametrize("cls", [*DATA, Noise])
def test_contract(cls):
    data = cls(batch_size=64)
    assert "splits" not in vars(data), "construction must not load"
    assert (data.data_range is None) == (data.levels is None)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        x, y = next(iter(loader))
        assert x.shape == (64, *data.shape) and x.dtype == torch.float32
        assert y.shape == (64,) and y.dtype == torch.int64
        assert y.min() >= 0 and y.max() < max(data.num_classes, 1)
        if data.data_range is not None:
            assert data.data_range[0] <= x.min() and x.max() <= data.data_range[1]


@pytest.mark.parametrize("cls", [*DATA, Noise])
def test_held_out_passes_through_model_space_unchanged(cls):
    data = cls(batch_size=100)
    x = torch.cat([x for x, _ in data.val_dataloader()])
    stored = data.splits.held_out.x
    torch.testing.assert_close(data.to_reference(x), stored, rtol=0, atol=0)
    reference = data.reference()
    assert len(reference) == len(data.splits.train.x) + len(stored)
    assert torch.equal(reference[-len(stored) :], stored)


@pytest.mark.parametrize("cls", DATA)
def test_arguments_are_typed_for_the_command_line(cls):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "data")
    data = parser.instantiate(parser.parse_args(["--data.batch_size=7"])).data
    assert data.batch_size == 7 and data.hparams.batch_size == 7
    with pytest.raises(Exception, match="batch_size"):
        parser.parse_args(["--data.batch_size=many"])


def test_range_from_the_command_line():
    parser = ArgumentParser()
    parser.add_subclass_arguments(ScoreData, "data")
    options = ["--data=lightning_score.data.Digits", "--data.data_range=[-1, 1]", "--data.flip=true"]
    data = parser.instantiate(parser.parse_args(options)).data
    assert data.data_range == (-1.0, 1.0) and data.flip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Digits(batch_size=0), "batch_size=0: "),
        (lambda: Digits(num_workers=-1), "num_workers=-1: "),
        (lambda: Digits(data_range=(1.0, 1.0)), "data_range"),
        (lambda: Digits(data_range=(0.0, 0.5, 1.0)), "data_range"),
        (lambda: Digits(batch_size=1438).train_dataloader(), "batch_size <= 1437"),
        (lambda: GaussianMixture(num_samples=1), "num_samples=1: "),
        (lambda: GaussianMixture(stds=[1.0]), "each of the 5 means"),
        (lambda: GaussianMixture(means=[[0.0, 0.0], [1.0]], stds=[1.0, 1.0]), "coordinates"),
        (lambda: Mixture([], []), "at least one mean"),
        (lambda: Mixture([[0.0]], [0.0]), "stds"),
        (lambda: Mixture([[0.0]], [1.0], [-1.0]), "weights"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


# Loading


def test_train_batches_are_shuffled_and_whole():
    data = Digits(batch_size=100)
    epochs = [torch.cat([x for x, _ in data.train_dataloader()]) for _ in range(2)]
    assert len(epochs[0]) == 1400, "14 whole batches of 1437"
    assert not torch.equal(*epochs)
    seen = {image.numpy().tobytes() for image in data.to_reference(epochs[0])}
    distinct = {image.numpy().tobytes() for image in data.splits.train.x}
    assert seen <= distinct and len(seen) > 1390, "every image at most once"


@pytest.mark.parametrize(("workers", "places"), [(0, (0, 1, 5, 13, 14)), (2, (5, 14))])
def test_an_interrupted_epoch_resumes(workers, places):
    """Its rest, and the epoch after it, are those of an uninterrupted loader, in any process."""
    data = Digits(batch_size=100, flip=True, dequantize=True, num_workers=workers)
    torch.manual_seed(0)
    whole = data.train_dataloader()
    list(whole)  # an epoch
    states, epochs = [whole.state_dict()], [[], []]
    for x, _ in whole:
        epochs[0].append(x)
        states.append(whole.state_dict())
    epochs[1] += [x for x, _ in whole]
    for skipped in places:
        again = data.train_dataloader()
        again.load_state_dict(states[skipped])
        if 0 < skipped < 14:
            rest = [x for x, _ in again]
            assert len(rest) == 14 - skipped and all(map(torch.equal, rest, epochs[0][skipped:]))
        following = [x for x, _ in again]
        assert all(map(torch.equal, following, epochs[skipped > 0]))


def test_an_interrupted_epoch_of_an_earlier_version_resumes():
    """Its state has only the seed of its own order; the next seed was drawn."""
    data = Digits(batch_size=100)
    order = torch.randperm(1437, generator=torch.Generator().manual_seed(7))
    again = data.train_dataloader()
    again.load_state_dict({"batches": 5, "seed": 7, "epoch": 0})
    expected = torch.cat([data.splits.train.y[rows] for rows in order[500:1400].split(100)])
    assert torch.equal(torch.cat([y for _, y in again]), expected)
    torch.manual_seed(3)
    torch.empty((), dtype=torch.int64).random_()  # by torch's loader
    drawn = int(torch.empty((), dtype=torch.int64).random_())
    torch.manual_seed(3)
    next(iter(again))
    assert again.state_dict() == {"batches": 1, "seed": drawn}


def test_labels_stay_with_their_images():
    data = Digits(batch_size=128)
    label = {image.numpy().tobytes(): int(y) for image, y in zip(*data.splits.train, strict=True)}
    x, y = next(iter(data.train_dataloader()))
    assert [label[image.numpy().tobytes()] for image in data.to_reference(x)] == y.tolist()


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 0), (1, 1)])
def test_every_epoch_draws_other_noise(batch_size, workers):
    """Also where each example is a batch, which is the same in all epochs; the same seed gives the same noise."""

    def epochs():
        torch.manual_seed(0)
        data = Digits(batch_size=batch_size, num_workers=workers, dequantize=True)
        data.splits = Splits(*(Examples(x[:6], y[:6]) for x, y in data.splits))
        loader = data.train_dataloader()
        return [{row.numpy().tobytes() for x, _ in loader for row in x} for _ in range(3)]

    found = epochs()
    assert len(set.union(*found)) == 3 * 6 and epochs() == found


def test_flip_mirrors_half_of_the_training_images_only():
    torch.manual_seed(0)
    data = Noise(batch_size=1600, flip=True)
    stored = data.reference().clone()
    loader = data.train_dataloader()
    batch = data.to_reference(loader.dataset.__getitems__(range(1600))[0])
    mirrored = (batch == stored[:1600].flip(-1)).flatten(1).all(1)
    kept = (batch == stored[:1600]).flatten(1).all(1)
    assert bool((mirrored ^ kept).all())
    assert abs(int(mirrored.sum()) - 800) < 5 * math.sqrt(1600) / 2
    assert torch.equal(data.to_reference(next(iter(data.val_dataloader()))[0]), stored[1600:])
    assert torch.equal(data.reference(), stored), "augmentation must not touch what is stored"


def test_shards_of_two_processes_are_the_whole():
    data = Digits()
    batches = Batches(data.splits.held_out, data.transform(train=False))
    shards = [DistributedSampler(batches, num_replicas=2, rank=rank, shuffle=False) for rank in range(2)]
    collate_fn = data.val_dataloader().collate_fn
    loaders = [DataLoader(batches, batch_size=60, sampler=shard, collate_fn=collate_fn) for shard in shards]
    merged = torch.stack([torch.cat([x for x, _ in loader]) for loader in loaders], dim=1).flatten(0, 1)
    assert torch.equal(data.to_reference(merged), data.splits.held_out.x)


def test_workers_load_the_same():
    alone, helped = Digits(batch_size=180), Digits(batch_size=180, num_workers=1)
    for (x, y), (x2, y2) in zip(alone.val_dataloader(), helped.val_dataloader(), strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


def test_a_single_item_is_a_batch_of_one():
    data = Digits()
    batches = Batches(data.splits.held_out, data.transform(train=False))
    assert torch.equal(batches[3][0], batches.__getitems__([3])[0][0]) and batches[3][1] == data.splits.held_out.y[3]


class Mean(LightningModule):
    """The least that can be trained, with a hyper-parameter that data modules have too."""

    def __init__(self, data_range=(5.0, 6.0)):
        super().__init__()
        self.save_hyperparameters()
        self.mean = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, _):
        return (batch[0] - self.mean).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_checkpoint_rebuilds_the_data(tmp_path):
    trainer = Trainer(max_epochs=1, logger=False, accelerator="cpu", enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.fit(Mean(), datamodule=Digits(batch_size=200, data_range=(-1, 1)))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    data = Digits.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert data.batch_size == 200 and data.data_range == (-1.0, 1.0)


def test_a_batch_is_one_indexing_and_one_transform(monkeypatch):
    """None per image: that makes it many times as quick (tests/benchmarks/test_loader.py)."""
    data, sizes = Noise(batch_size=100, flip=True, data_range=(-1, 1)), []
    data.splits  # noqa: B018  # the check of what was loaded transforms some
    transform = ToBatch.__call__
    monkeypatch.setattr(ToBatch, "__call__", lambda self, images: sizes.append(len(images)) or transform(self, images))
    batches = [len(x) for x, _ in data.train_dataloader()]
    assert sizes == batches and set(batches) == {100}


def test_small_data_are_batched_on_the_gpu_of_their_process(monkeypatch):
    """Not those that would fill it, nor those that processes load."""
    data, gpu = Noise(batch_size=100), torch.device("cuda", 0)
    assert data._device(data.splits.train) == CPU
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=gpu), world_size=1)
    assert data._device(data.splits.train) == gpu
    monkeypatch.setattr(base, "ROOM_ON_GPU", data.splits.train.x.nbytes)  # without the labels
    assert data._device(data.splits.train) == CPU
    monkeypatch.undo()
    data.num_workers = 2
    assert data._device(data.splits.train) == CPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dequantize", [False, True])
def test_batches_of_a_gpu_are_those_of_the_processor(dequantize):
    """The same images, mirrored alike; the noise within a gray level is the GPU's own."""
    data = Noise(batch_size=100, flip=True, dequantize=dequantize)
    ours, theirs = (
        Batches(data.splits.train, data.transform(True), torch.device(where)).__getitems__(range(50, 150))[0]
        for where in ("cpu", "cuda")
    )
    assert theirs.device.type == "cuda" and torch.equal(data.to_reference(theirs).cpu(), data.to_reference(ours))
    assert dequantize or torch.equal(theirs.cpu(), ours)


# Bytes and floats


def every_level(levels):
    """One image, (1, 1, 1, levels), that has each gray level once."""
    return torch.round(torch.arange(levels) * 255 / (levels - 1)).to(torch.uint8).reshape(1, 1, 1, -1)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("data_range", RANGES)
def test_every_gray_level_survives(levels, data_range):
    images = every_level(levels)
    x = from_uint8(images, data_range, levels)
    assert x.flatten()[0] == data_range[0] and x.flatten()[-1] == data_range[1]
    assert torch.equal(to_uint8(x, data_range, levels), images)
    half_a_level = 0.49 * (data_range[1] - data_range[0]) / (levels - 1)
    assert torch.equal(to_uint8(x + half_a_level, data_range, levels), images)
    assert torch.equal(to_uint8(x - half_a_level, data_range, levels), images)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("data_range", RANGES)
def test_dequantized_levels_are_uniform_in_their_bin_and_survive(levels, data_range):
    torch.manual_seed(0)
    images = every_level(levels).repeat(500, 1, 1, 1)
    x = from_uint8(images, data_range, levels, dequantize=True)
    assert torch.equal(to_uint8(x, data_range, levels, dequantized=True), images)
    offset = (x - data_range[0]) / (data_range[1] - data_range[0]) * levels - torch.arange(levels)
    assert offset.min() > -1e-3 and offset.max() < 1 + 1e-3
    deciles = torch.histc(offset, 10, 0, 1) / offset.numel()
    assert (deciles - 0.1).abs().max() < 5 * math.sqrt(0.1 / offset.numel())


def test_values_outside_the_range_are_clamped():
    x = torch.tensor([-torch.inf, -0.5, 1.5, torch.inf]).reshape(1, 1, 2, 2)
    assert to_uint8(x, (0, 1)).flatten().tolist() == [0, 0, 255, 255]


def test_rounding_not_truncation():
    assert to_uint8(torch.full((1, 1, 1, 1), 254.6 / 255), (0, 1)).item() == 255


def test_nan_is_an_error_that_counts_the_images():
    x = torch.zeros(5, 1, 2, 2)
    x[[1, 3], 0, 0] = torch.nan
    with pytest.raises(InputError, match="2 of 5 images contain NaN"):
        to_uint8(x, (0, 1))


def test_digits_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    data = Digits(data_range=(0, 16))
    x = from_uint8(data.reference(), data.data_range, data.levels)
    order = np.concatenate(split_indices(1797))
    np.testing.assert_allclose(x.squeeze(1).numpy(), digits.images[order], atol=1e-5)
    assert torch.cat([data.splits.train.y, data.splits.held_out.y]).tolist() == digits.target[order].tolist()


def test_the_split_is_fixed():
    train, held_out = split_indices(1797)
    assert (len(train), len(held_out)) == (1437, 360)
    assert sorted([*train, *held_out]) == list(range(1797))
    assert held_out[:4].tolist() == [1442, 455, 584, 147]
    assert Digits().splits.held_out.y.bincount().min() > 20, "every digit is held out too"


# The mixture

MIXTURE = GaussianMixture().mixture
PAIRS = [(1.0, 0.0), (1.0, 2.0), (0.5, 0.8), (0.0, 1.0)]


def test_density_is_that_of_torch():
    distributions = torch.distributions
    modes = distributions.MultivariateNormal(
        0.6 * MIXTURE.means, ((0.6 * MIXTURE.stds) ** 2 + 0.3**2).reshape(-1, 1, 1) * torch.eye(2, dtype=torch.float64)
    )
    oracle = distributions.MixtureSameFamily(distributions.Categorical(MIXTURE.weights), modes)
    x = MIXTURE.sample(100, torch.Generator().manual_seed(0))
    torch.testing.assert_close(MIXTURE.log_prob(x, alpha=0.6, sigma=0.3), oracle.log_prob(x))


@pytest.mark.parametrize(("alpha", "sigma"), PAIRS)
def test_score_is_the_gradient_of_log_prob(alpha, sigma):
    x = (3 * torch.randn(50, 2, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(MIXTURE.log_prob(x, alpha, sigma).sum(), x)
    torch.testing.assert_close(MIXTURE.score(x, alpha, sigma), gradient)


def test_each_point_may_have_its_own_time():
    x = torch.randn(4, 2, dtype=torch.float64)
    alpha, sigma = torch.tensor(PAIRS, dtype=torch.float64).unbind(-1)
    for batched, single in ((MIXTURE.score, MIXTURE.score), (MIXTURE.log_prob, MIXTURE.log_prob)):
        expected = torch.cat([single(x[i : i + 1], *PAIRS[i]) for i in range(4)])
        torch.testing.assert_close(batched(x, alpha, sigma), expected)


@pytest.mark.parametrize(("alpha", "sigma"), PAIRS)
def test_density_integrates_to_one(alpha, sigma):
    axis = torch.linspace(-16, 16, 641, dtype=torch.float64)
    cell = float(axis[1] - axis[0]) ** 2
    integral = MIXTURE.log_prob(torch.cartesian_prod(axis, axis), alpha, sigma).exp().sum() * cell
    assert abs(float(integral) - 1) < 1e-9


def test_samples_have_the_mixtures_moments():
    mixture = Mixture([[0.0, 3.0, 1.0], [2.0, -1.0, 0.0]], [0.5, 1.0], [3.0, 1.0])
    n = 200_000
    x = mixture.sample(n, torch.Generator().manual_seed(0))
    mean = mixture.weights @ mixture.means
    centered = mixture.means - mean
    within = (mixture.weights * mixture.stds**2).sum() * torch.eye(3)
    covariance = within + (mixture.weights * centered.T) @ centered
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0.02, atol=0.02)


def test_the_mean_score_of_samples_is_zero():
    generator = torch.Generator().manual_seed(0)
    x_0 = MIXTURE.sample(200_000, generator)
    x_t = 0.7 * x_0 + 0.4 * torch.randn(x_0.shape, dtype=torch.float64, generator=generator)
    score = MIXTURE.score(x_t, 0.7, 0.4)
    assert (score.mean(0).abs() < 5 * score.std(0) / math.sqrt(len(score))).all()
    stein = (score * x_t).sum(-1)
    assert abs(float(stein.mean()) + 2) < 5 * float(stein.std()) / math.sqrt(len(stein)), "E[score . x] = -D"


def test_float32_far_away_stays_finite():
    x = torch.tensor([[1e3, -1e3]])
    assert MIXTURE.score(x).dtype == torch.float32
    assert MIXTURE.score(x).isfinite().all() and MIXTURE.log_prob(x).isfinite().all()


def test_toy_points_are_reproducible_and_follow_the_seed():
    assert torch.equal(GaussianMixture().reference(), GaussianMixture().reference())
    assert not torch.equal(GaussianMixture(seed=1).reference(), GaussianMixture().reference())
    assert GaussianMixture(means=[[0.0] * 3], stds=[1.0], weights=None).shape == (3,)


@pytest.mark.parametrize("noise_std", [0.3, 0.0])
def test_the_posterior_of_a_mixture_is_bayes_rule(noise_std):
    """Mean and draws against quadrature of prior times likelihood on a grid."""
    mixture, operator = Mixture([[1.0, 0.5], [-1.0, 0.0]], [0.4, 0.6], [0.3, 0.7]), Matrix([[1.0, -0.5]])
    y, s = torch.tensor([0.4]), noise_std or 0.03  # a small noise stands for none
    posterior = MixturePosterior(mixture, operator, y, noise_std)
    line = torch.linspace(-3.5, 3.5, 561, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    p = (mixture.log_prob(x) - (operator.apply(x)[:, 0] - y).square() / (2 * s**2)).softmax(0)
    mean = p @ x
    covariance = (x - mean).mT @ (p[:, None] * (x - mean))
    torch.testing.assert_close(posterior.mean, mean, atol=2e-3, rtol=0)
    drawn = posterior.sample(100_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), posterior.mean, atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.mT.cov(), covariance, atol=0.02, rtol=0)
