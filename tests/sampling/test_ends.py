"""Where samples start."""

import numpy as np
import pytest
import torch

from lightning_score.errors import InputError
from lightning_score.process import VE
from lightning_score.sampling import FromFile, NoiseStream, NormalNoise


def test_normal_noise_has_its_mean_and_width():
    x = NormalNoise(0.5, 3.0)(VE(), NoiseStream(0, range(4000), (2,)))
    assert float(x.mean()) == pytest.approx(3, abs=0.03) and float(x.std()) == pytest.approx(0.5, abs=0.02)
    assert bool((NormalNoise(0.0, -1.0)(VE(), NoiseStream(0, range(3), (2,))) == -1).all())


def test_sample_k_starts_at_row_k_of_the_file(tmp_path):
    points = np.arange(10.0).reshape(5, 2)
    np.savez(tmp_path / "points.npz", x=points, other=points + 1)
    np.save(tmp_path / "points.npy", points)
    for name in ("points.npz", "points.npy"):
        x = FromFile(str(tmp_path / name))(VE(), NoiseStream(0, [1, 4, 7], (2,), dtype=torch.float64))
        np.testing.assert_array_equal(x, points[[1, 4, 2]])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((5, 3)), r"shape \[5, 3\]"),
        (np.zeros((0, 2)), r"shape \[0, 2\]"),
        (np.zeros(()), "shape"),
        (np.full((5, 2), np.nan), "NaN"),
        (np.full((5, 2), "text"), "must be numbers"),
    ],
)
def test_a_file_of_other_points_is_refused(tmp_path, array, words):
    np.savez(tmp_path / "points.npz", x=array)
    with pytest.raises(InputError, match=words):
        FromFile(str(tmp_path / "points.npz"))(VE(), NoiseStream(0, range(3), (2,)))


def test_wrong_settings_are_refused(tmp_path):
    np.savez(tmp_path / "points.npz", y=np.zeros((5, 2)))
    for make, words in (
        (lambda: FromFile(str(tmp_path / "none.npz")), "no such file"),
        (lambda: FromFile(str(tmp_path / "points.npz")), "no array x but y"),
        (lambda: NormalNoise(-1.0), "std=-1.0"),
    ):
        with pytest.raises(InputError, match=words):
            make()
