"""Conditions that are observations of the examples: those of each batch, and of an observation in the data's units."""

import pytest
import torch
from torch.nn import functional as F

from lightning_score.conditions import Array, Vector
from lightning_score.data import Digits, Examples, ScoreData, Splits
from lightning_score.errors import InputError
from lightning_score.observations import BlockMean, Gray, LinearOperator, Mask, Matrix

SHAPES = [(2, 12), (2, 4, 6), (2, 4, 2, 6)]


class Scaled(ScoreData):
    """Floats of any number of dimensions, each channel with its own scale and offset, mirrored at random in training."""

    def __init__(self, shape, **options):
        super().__init__(batch_size=8, **options)
        self.shape = shape
        ones = [1] * (len(shape) - 1)
        self.scale, self.offset = torch.tensor([2.0, 5.0]).view(2, *ones), torch.tensor([100.0, -3.0]).view(2, *ones)

    def load(self):
        x = torch.randn(40, *self.shape, generator=torch.Generator().manual_seed(0)) * self.scale + self.offset
        return Splits(*(Examples(part, torch.zeros(20, dtype=torch.long)) for part in x.chunk(2)))

    def transform(self, train):
        def transformed(x):
            x = (x - self.offset) / self.scale
            return x.flip(-1) if train and torch.rand(()) < 0.5 else x

        return transformed

    def to_reference(self, x):
        return x * self.scale + self.offset


@pytest.mark.parametrize("shape", SHAPES)
def test_observations_in_one_to_three_dimensions(shape):
    """Those of a batch are A x of its x, and an observation of stored examples becomes that of transformed ones."""
    data, stored = Scaled(shape, given=BlockMean(2)), Scaled(shape).splits.held_out.x
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(shape) - 2]
    assert isinstance(data.condition, Array) and data.condition.shape == (2, *(size // 2 for size in shape[1:]))
    for x, y in (*data.train_dataloader(), *data.val_dataloader()):
        assert torch.equal(y, pool(x, 2)) and data.condition.check(y) is None
    y = data.to_condition(pool(stored, 2))
    torch.testing.assert_close(y, pool(data.transform(False)(stored), 2))
    torch.testing.assert_close(data.from_condition(y), pool(stored, 2))
    known = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    with pytest.raises(InputError, match="differs among averaged numbers"):
        Scaled(shape, given=Gray()).to_condition(stored.mean(1, keepdim=True))
    some = Scaled(shape, given=Mask(known.tolist()))
    assert isinstance(some.condition, Vector) and some.condition.shape == (int(known.sum()),)
    torch.testing.assert_close(some.to_condition(stored[:, known]), some.transform(False)(stored)[:, known])


@pytest.mark.parametrize("operator", [BlockMean(4), Matrix(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)))])
def test_observations_of_bytes_with_augmentation_and_dequantization(operator):
    data = Digits(batch_size=100, data_range=(-1, 1), flip=True, dequantize=True, given=operator)
    for x, y in data.train_dataloader():
        assert torch.equal(y, operator.apply(x)) and data.condition.check(y) is None
    stored = (data.splits.held_out.x * (16 / 255)).round() * (255 / 16)  # the levels themselves, not the nearest bytes
    plain = Digits(data_range=(-1, 1), given=operator)
    _, y = plain.pairs(plain.splits.held_out)
    torch.testing.assert_close(plain.to_condition(operator.apply(stored)), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.from_condition(y), operator.apply(stored), rtol=1e-3, atol=0.1)
    differences = data.to_condition(operator.apply(stored)) - operator.apply(data.transform(False)(data.splits.held_out.x))
    rows = operator.apply(torch.eye(64).view(64, 1, 8, 8)).flatten(1).square().sum(0)  # of A: the noise is uniform, twice
    expected = 2 * (2 / 17) ** 2 / 12 * rows
    torch.testing.assert_close(differences.flatten(1).square().mean(0), expected, rtol=0.3, atol=0)


def test_noise_of_a_known_size():
    data = Digits(batch_size=359, given=BlockMean(2), given_noise=0.3)
    x, y = next(iter(data.train_dataloader()))
    noise = y - F.avg_pool2d(x, 2)
    assert noise.std() == pytest.approx(0.3, rel=0.05) and abs(float(noise.mean())) < 0.02
    assert torch.equal(data.pairs(data.splits.held_out)[0], Digits().transform(False)(data.splits.held_out.x))


def test_lift_is_the_pseudo_inverse():
    """A lift(y) = y, and no smaller x has this observation: lift(y) is A^T times something."""
    for operator in (BlockMean(2), Gray(), Matrix(torch.randn(5, 24, generator=torch.Generator().manual_seed(0)))):
        dense = operator.apply(torch.eye(24).view(24, 2, 3, 4) if operator.__class__ is not BlockMean else
                               torch.eye(24).view(24, 1, 4, 6)).flatten(1).mT  # fmt: skip
        shape = (1, 4, 6) if isinstance(operator, BlockMean) else (2, 3, 4)
        y = operator.apply(torch.randn(7, *shape))
        torch.testing.assert_close(operator.lift(y, shape).flatten(1), y.flatten(1) @ torch.linalg.pinv(dense).mT)


class Sums(LinearOperator):
    """An operator whose observations have neither one axis nor as many as an image."""

    def apply(self, x):
        return x.sum(1)

    def gram_solve(self, v, r2, s2):
        return v

    def check(self, shape):
        pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Digits(given=BlockMean(3)).condition, "factor=3"),
        (lambda: Digits(given=BlockMean(2), given_noise=-1.0), "given_noise=-1.0"),
        (lambda: Digits(given_noise=0.1), "set given"),
        (lambda: Digits(given=Sums()).condition, r"given=Sums: observes shape \[8, 8\]"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()
