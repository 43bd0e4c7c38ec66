"""Conditions: their value for "no condition", their packing, and what networks are given."""

import pytest
import torch

from lightning_score.conditions import Array, ClassLabel, Several, Vector
from lightning_score.errors import InputError


@pytest.fixture
def several():
    return Several([ClassLabel(3), Vector(2), Array([1, 2, 2])])


@pytest.mark.parametrize("kind", [ClassLabel(3), Vector(2), Array([2, 4, 4]), Several([ClassLabel(3), Vector(2)])], ids=repr)
def test_no_condition_is_recognized_dropped_and_accepted(kind):
    empty = kind.empty(4)
    kind.check(empty)
    assert kind.is_empty(empty).all() and len(empty) == 4
    y = torch.ones(1000, dtype=torch.long) if isinstance(kind, ClassLabel) else torch.ones(1000, *kind.shape)
    dropped = kind.is_empty(kind.drop(y, 0.3))
    assert not kind.is_empty(y).any() and 230 < dropped.sum() < 370
    assert torch.equal(kind.drop(y, 0.0), y)


def test_packing_is_inverted_with_no_condition_in_any_part(several):
    values = [torch.tensor([0, 3, 2]), torch.randn(3, 2), torch.randn(3, 1, 2, 2)]
    values[1][0] = torch.nan
    values[2][2] = torch.nan
    packed = several.pack(values)
    assert packed.shape == (3, 7)
    for part, before, after in zip(several.parts, values, several.unpack(packed), strict=True):
        assert before.dtype == after.dtype and part.is_empty(before).equal(part.is_empty(after))
        torch.testing.assert_close(after, before, equal_nan=True, rtol=0, atol=0)


def test_the_vector_is_the_sum_of_the_parts_and_unknown_numbers_differ_from_zeros(several):
    torch.manual_seed(0)
    embedding = several.embedding(8)
    labels, numbers = torch.tensor([1, 3]), torch.tensor([[0.0, 1.0], [torch.nan, 1.0]])
    packed = several.pack([labels, numbers, torch.zeros(2, 1, 2, 2)])
    expected = embedding.parts[0](labels) + embedding.parts[1](numbers)
    torch.testing.assert_close(embedding(packed), expected)
    assert not torch.allclose(embedding.parts[1](numbers), embedding.parts[1](numbers.nan_to_num()))


def test_channels_are_resized_and_tell_what_is_known():
    coarse = Array([1, 2, 2])
    y = torch.tensor([[[[1.0, 2.0], [torch.nan, 4.0]]]])
    planes = coarse.planes(y, (4, 4))
    assert planes.shape == (1, coarse.channels, 4, 4)
    assert planes[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 4, 4], [0, 0, 4, 4]]
    assert planes[0, 1].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("kind", "y", "message"),
    [
        (ClassLabel(3), torch.tensor([0, 4]), r"labels \[4\]: the model knows the classes 0 to 2"),
        (ClassLabel(3), torch.zeros(2), "must be one integer per sample"),
        (Vector(2), torch.zeros(3, 4), r"condition: has shape \(4,\)"),
        (Vector(2), torch.full((1, 2), torch.inf), "condition: holds infinite values"),
        (Several([ClassLabel(2), Vector(1)]), torch.tensor([[5.0, 0.0]]), r"labels \[5\]"),
        (Several([ClassLabel(2), Vector(1)]), torch.tensor([[0.5, 0.0]]), "class labels that are not whole numbers"),
    ],
)
def test_other_conditions_are_refused(kind, y, message):
    with pytest.raises(InputError, match=message):
        kind.check(y)
