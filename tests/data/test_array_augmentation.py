"""Augmentations of arrays: groups of moves with uniform laws, conditions that move alike, and noise that joins the data."""

from collections import Counter

import pytest
import torch

from lightning_score.conditions import Array, ClassLabel, Several, Vector
from lightning_score.data import Dequantize, Digits, Examples, Flips, GaussianNoise, Rolls, Rotations, ScoreData, Splits
from lightning_score.data.batches import Finish
from lightning_score.errors import InputError
from lightning_score.observations import BlockMean


class Fields(ScoreData):
    """Numbered fields with any condition."""

    condition, kind = None, torch.float32

    def __init__(self, shape=(2, 6, 6), condition=None, y=None, **options):
        super().__init__(**{"batch_size": 8, **options})
        self.shape, self.y = shape, y
        self.__class__ = type("Fields", (type(self),), {"condition": condition})

    def load(self):
        x = torch.arange(64 * torch.Size(self.shape).numel()).reshape(64, *self.shape).to(self.kind)
        y = torch.zeros(64, dtype=torch.long) if self.y is None else self.y
        return Splits(Examples(x[:48], y[:48]), Examples(x[48:], y[48:]))

    def transform(self, train):
        return lambda x: x.float() / 1000

    def to_reference(self, x):
        return (1000 * x).round().to(self.kind)


VOLUME = (3, 4, 4, 4)
MOVES = [Flips(["x", "z"]), Rolls(["y", "z"]), Rotations(["x", "z"])]


@pytest.mark.parametrize("move", MOVES, ids=lambda move: type(move).__name__)
def test_moves_are_undone_by_their_inverses(move):
    torch.manual_seed(0)
    x = torch.randint(1000, (32, *VOLUME))
    drawn = move.draw(32, VOLUME, x.device)
    changed = move.change(x, drawn)
    assert not torch.equal(changed, x)
    inverse = drawn if isinstance(move, Flips) else (4 - drawn) % 4
    assert torch.equal(move.change(changed, inverse), x)
    assert torch.equal(changed.sum(move.dims), x.sum(move.dims)), "values leave their place on the other axes"


@pytest.mark.parametrize(
    ("moves", "shape", "places"),
    [([Rolls(["x"])], (1, 12), 12), ([Flips(["x", "y"]), Rotations()], (1, 4, 4), 8), ([Flips(["x"])], (1, 3), 2)],
    ids=["rolls", "square", "flips"],
)
def test_every_move_is_as_frequent(moves, shape, places):
    """One value of an asymmetric pattern has an orbit of `places`, each as likely."""
    torch.manual_seed(0)
    x = torch.arange(float(torch.Size(shape).numel())).reshape(1, *shape).expand(4000, *shape)
    changed, _ = Finish(augment=moves)(x, torch.zeros(4000))
    counts = Counter(tuple(each.flatten().tolist()) for each in changed)
    expected = 4000 / places
    assert len(counts) == places and sum((n - expected) ** 2 / expected for n in counts.values()) < 3 * places


def test_arrays_among_the_conditions_move_with_the_examples():
    """Block means of moved examples are the moved block means; vectors and labels stay, and gaps move."""
    torch.manual_seed(0)
    x, mean = torch.randn(40, 2, 8, 8), BlockMean(4)
    x[:, 0, 3, 5] = torch.nan
    condition = Several([Array((2, 2, 2)), Vector(3), ClassLabel(5)])
    numbers, labels = torch.randn(40, 3), torch.arange(40) % 6
    y = condition.pack([mean.apply(x), numbers, labels])
    moved, seen = Finish(None, [Flips(["x", "y"]), Rotations()], condition)(x, y)
    assert int(moved.isnan().sum()) == 40 and not torch.equal(moved.isnan(), x.isnan())
    means, *others = condition.unpack(seen)
    torch.testing.assert_close(means, mean.apply(moved), equal_nan=True)
    assert torch.equal(others[0], numbers) and torch.equal(others[1], labels)


def test_training_batches_are_changed_and_the_same_again():
    y = torch.arange(64 * 72.0).reshape(64, 2, 6, 6)
    data = Fields(condition=Array((2, 6, 6)), y=y, augment=[Rolls(["x"]), Flips(["y"])])
    data.__dict__["splits"] = data.load()
    torch.manual_seed(0)
    loader = data.train_dataloader()
    first, second = list(loader), list(loader)
    x, seen = (torch.cat(parts) for parts in zip(*first, strict=True))
    torch.testing.assert_close(1000 * x, seen)
    stored = {tuple(each.flatten().tolist()) for each in data.splits.train.x}
    kept = [tuple(each.flatten().tolist()) in stored for each in seen]
    assert 0 < sum(kept) < 20 and not torch.equal(first[0][0], second[0][0])
    rows = [3, 1, 4]
    assert torch.equal(loader.dataset.__getitems__(rows)[0], loader.dataset.__getitems__(rows)[0])
    held_out = torch.cat([x for x, _ in data.val_dataloader()])
    assert torch.equal(held_out, data.transform(False)(data.splits.held_out.x))


def test_noise_is_a_part_of_the_data():
    """Of a known size in stored units, also on held-out examples and wherever the model's input is made."""
    data = Fields((2, 50), augment=[GaussianNoise([300.0, 30.0])])
    for x in (torch.cat([x for x, _ in data.val_dataloader()]), data.as_input(data.splits.held_out.x)):
        added = 1000 * x - data.splits.held_out.x
        std = added.std([0, 2])
        torch.testing.assert_close(std, torch.tensor([300.0, 30.0]), rtol=0.1, atol=0)
        assert float((added.mean([0, 2]) / std).abs().max()) < 4 / 800**0.5


def test_rounding_undoes_dequantization():
    data = Fields((1, 400), augment=[Dequantize()])
    data.kind = torch.int32
    stored = data.splits.held_out.x
    added = 1000 * data.as_input(stored).double() - stored
    assert float(added.abs().max()) < 0.501 and abs(float(added.mean())) < 4 / 12**0.5 / stored.numel() ** 0.5
    assert float(added.var()) == pytest.approx(1 / 12, rel=0.05)
    assert float((data.to_reference(data.as_input(stored)) != stored).float().mean()) < 0.01  # float32 ends near 25600


def test_moves_and_noise_refuse_what_does_not_fit():
    halves, x = Fields(augment=[Dequantize()], shape=(1, 4)), torch.zeros(1, 2, 6, 6)
    halves.load = lambda: Splits(*[Examples(torch.rand(9, 1, 4), torch.zeros(9, dtype=torch.long))] * 2)
    refused = {
        "axes=.'z'.: the data have the shape .2, 6, 6., and so the axes: y, x": Fields(augment=[Flips(["z"])]),
        "plane=.'x', 'y'.: the data have the sizes 5 and 6": Fields((1, 6, 5), augment=[Rotations()]),
        "std=.1, 2, 3.: must be one number, or one for each of the 2": Fields(augment=[GaussianNoise([1, 2, 3])]),
        "Dequantize: the data are not whole numbers": halves,
        "gray levels; use --data.dequantize true": Digits(augment=[GaussianNoise(0.1)]),
    }
    coarser = Fields(condition=Array((1, 3, 6)), y=torch.zeros(64, 1, 3, 6))
    for message, data in refused.items():
        with pytest.raises(InputError, match=message):
            data.splits  # noqa: B018
    for message, move in {
        "sizes .6, 6. along them and the condition .6, 3.": Rolls(["x", "y"]),
        "has the sizes": Rotations(),
    }.items():
        with pytest.raises(InputError, match=message):
            move.check(coarser, x)
    Digits(given=BlockMean(4), augment=[Rolls(["x"])]).splits  # noqa: B018  # observations are made of rolled examples
    with pytest.raises(InputError, match="alike"):
        Flips(["x"]).check(Fields(condition=Array((1, 3)), y=torch.zeros(64, 1, 3)), x)
    for make in (lambda: Flips([]), lambda: Flips(["x", "x"]), lambda: Rotations(["x"]), lambda: GaussianNoise(0)):
        with pytest.raises(InputError):
            make()
