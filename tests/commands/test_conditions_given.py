"""Conditions as a user gives them: numbers, and files."""

import numpy as np
import pytest
import torch

from lightning_score.commands.conditions import read_conditions
from lightning_score.conditions import Array, ClassLabel, Several, Vector
from lightning_score.errors import InputError

PARTS = Several([ClassLabel(3), Vector(2, ["mass", "radius"]), Array([1, 2, 2])], ["kind", "star", "image"])


@pytest.mark.parametrize(
    ("given", "kind", "rows"),
    [
        ([0.3, 1.5], Vector(2), [[0.3, 1.5]]),
        ([[0.3, 1.5], [0, None]], Vector(2), [[0.3, 1.5], [0, float("nan")]]),
        (0.3, Vector(1), [[0.3]]),
        ([0.3, 1], Vector(1), [[0.3], [1]]),
        ([[[1, 2], [3, 4]]], Array([1, 2, 2]), [[[[1, 2], [3, 4]]]]),
        (2, ClassLabel(3), [2]),
        ([2, 0], ClassLabel(3), [2, 0]),
    ],
)
def test_numbers_are_one_condition_or_rows(given, kind, rows):
    found = read_conditions(given, kind)
    assert found.dtype == kind.dtype
    torch.testing.assert_close(found, torch.tensor(rows, dtype=kind.dtype), equal_nan=True)


def test_files_hold_parts_or_numbers_by_name_and_one_row_is_for_all(tmp_path):
    image, file = np.random.RandomState(0).rand(1, 2, 2), str(tmp_path / "given.npz")
    np.savez(file, kind=[2, 0], mass=[1.0], radius=[3.0, 4.0], image=image, other=[1])
    found = read_conditions(file, PARTS)
    star = torch.tensor([[1.0, 3.0], [1.0, 4.0]])
    expected = PARTS.pack([torch.tensor([2, 0]), star, torch.tensor(image).float().expand(2, 1, 2, 2)])
    torch.testing.assert_close(found, expected)
    np.savez(file, kind=[2, 0], star=star.numpy(), image=image)
    torch.testing.assert_close(read_conditions(file, PARTS), expected)
    np.savez(file, condition=found.numpy(), x=[1], seed=0)
    torch.testing.assert_close(read_conditions(file, PARTS), expected)
    np.savez(file, params=star.numpy(), condition=[[0.0, 0.0]])
    torch.testing.assert_close(read_conditions(file, Vector(2), "params"), star)
    np.save(tmp_path / "given.npy", star)
    torch.testing.assert_close(read_conditions(str(tmp_path / "given.npy"), Vector(2)), star)


@pytest.mark.parametrize(
    ("arrays", "kind", "message"),
    [
        (
            {"kind": [0], "mass": [1.0], "image": np.zeros((1, 2, 2))},
            PARTS,
            "or kind, mass, radius, image",
        ),
        ({"kind": [0]}, PARTS, "holds the arrays kind; must hold condition, or kind, mass, radius, image"),
        ({"a": [1.0], "b": [2.0]}, Vector(1), "holds the arrays a, b; must hold condition"),
        ({"mass": [1.0, 2], "radius": [1.0, 2, 3]}, Vector(2, ["mass", "radius"]), r"have \[2, 3\] rows"),
        ({"a": [0.5]}, ClassLabel(3), "must be class labels, which are whole numbers"),
        ({"a": ["x"]}, Vector(1), "holds <U1; must hold numbers"),
        ({"a": np.zeros((3, 3, 2))}, Array([1, 3, 3]), r"has shape \[3, 3, 2\]; must be \[1, 3, 3\] for one"),
        ({"a": np.zeros((0, 2))}, Vector(2), "has shape"),
        ({"a": np.array([None])}, Vector(2), "holds pickles"),
    ],
)
def test_files_that_hold_no_conditions_are_refused(arrays, kind, message, tmp_path):
    np.savez(tmp_path / "given.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_conditions(str(tmp_path / "given.npz"), kind)
