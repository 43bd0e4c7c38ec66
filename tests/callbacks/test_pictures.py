"""Pictures of samples, and their metadata."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

from lightning_score.callbacks import SampleGrid
from lightning_score.callbacks.pictures import (
    MOMENTS,
    Strip,
    drawable,
    figure_picture,
    sample_picture,
    save_picture,
    strip_picture,
)
from lightning_score.cli import run
from lightning_score.data import Digits, Examples, ScoreData, Splits
from lightning_score.data.images import of_picture
from lightning_score.errors import InputError
from lightning_score.networks import UNet
from lightning_score.process import VP, SigmaTable
from lightning_score.sampling import AnnealedLangevin, Geometric, PredictorCorrector
from lightning_score.training.model import ScoreModel


def model(process, sampler):
    torch.manual_seed(0)
    return ScoreModel(
        lambda s, c: UNet(s, c, 8, (1,), blocks=1, attention=(), groups=4), (1, 8, 8), process, sampler=sampler
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("samples", "columns"), [(1, 1), (1, 4), (3, 4), (4, 1)])
def test_a_grid_is_torchvisions(samples, columns, channels):
    """Which takes a second to import; and so are the values of a picture."""
    moments = torch.randint(0, 256, (columns, samples, channels, 50, 60), dtype=torch.uint8)
    found = strip_picture([*moments])
    grid = make_grid(moments.transpose(0, 1).flatten(0, 1), nrow=columns, padding=2, pad_value=128)[:channels]
    expected = to_pil_image(grid)
    assert found.mode == expected.mode and found.size == expected.size and found.tobytes() == expected.tobytes()
    assert torch.equal(of_picture(found), pil_to_tensor(expected))


@pytest.mark.parametrize(
    ("process", "sampler", "columns"),
    [
        (SigmaTable(0.03, 3.0, 10), AnnealedLangevin(1e-4, 20), MOMENTS),
        (VP(), PredictorCorrector(grid=Geometric(40, 0.01)), MOMENTS),
        (VP(), PredictorCorrector(grid=Geometric(3, 0.01)), 4),
    ],
    ids=["ladder", "diffusion", "few steps"],
)
def test_a_strip_goes_from_the_start_to_the_result(process, sampler, columns):
    """Its columns are states of the trajectory at equal numbers of moves; the first is the start and the last the result."""
    drawn, data = model(process, sampler), Digits(data_range=(0, 1))
    strip = Strip(drawn, data, rows=3)
    samples = drawn.draw(range(5), observe=strip, trajectory=True)
    moments = strip.moments(samples)
    assert len(moments) == columns
    picture = np.asarray(strip.picture(samples))
    zoom, cell = 6, 50
    assert picture.shape == (2 + 3 * cell, 2 + columns * cell)
    last = picture[2 : 2 + 48, 2 + (columns - 1) * cell : 2 + (columns - 1) * cell + 48][
        zoom // 2 :: zoom, zoom // 2 :: zoom
    ]
    np.testing.assert_array_equal(last, data.to_reference(samples.x)[0, 0].numpy())
    middle = moments[1]
    times = [torch.ones((), dtype=torch.float64), *(stage.end for stage in sampler.plan(process, sampler.grid(process)))]
    move = sorted(strip._kept)[0]
    x, t = samples.trajectory[move][:3], times[move]
    contrast = min(1.0, 1 / (4 * float(process.noise_level(t))))
    expected = data.to_reference(((x / float(process.alpha(t)) - 0.5) * contrast + 0.5).float())
    torch.testing.assert_close(middle, expected)


def test_noise_is_not_clipped():
    """At the largest level nine tenths of the pixels lie within the range, whose edges clipping would fill otherwise."""
    process = SigmaTable(0.03, 50.0, 10)
    drawn, data = model(process, AnnealedLangevin(1e-4, 1)), Digits(data_range=(0, 1))
    strip = Strip(drawn, data, rows=8)
    first = strip.moments(drawn.draw(range(8), observe=strip))[0]
    assert float(((first > 0) & (first < 255)).double().mean()) > 0.9


def test_rows_are_samples_and_columns_times():
    moments = [torch.full((2, 1, 48, 48), 10 * k, dtype=torch.uint8) for k in range(3)]
    moments[1][1] = 200
    picture = np.asarray(strip_picture(moments))
    assert [int(picture[20, 20 + 50 * k]) for k in range(3)] == [0, 10, 20]
    assert [int(picture[70, 20 + 50 * k]) for k in range(3)] == [0, 200, 20]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_gray_pictures_stay_gray_and_have_metadata(tmp_path, channels, mode):
    save_picture(strip_picture([torch.zeros(2, channels, 8, 8, dtype=torch.uint8)]), tmp_path / "a.png", "σ = 3 <b>")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == mode
        assert picture.info["Description"] == "σ = 3 <b>" and picture.info["Kind"] == "pixels"


def test_drawings_are_marked_in_the_metadata(tmp_path):
    from matplotlib.figure import Figure

    save_picture(figure_picture(Figure(figsize=(1, 1))), tmp_path / "a.png", "nothing")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.info["Kind"] == "drawing"


@pytest.mark.slow
def test_predict_draws_the_progress_on_request(checkpoint, tmp_path, capsys):
    options = ["--num_samples=6", "--progressive=3", f"--output={tmp_path / 'drawn'}"]
    assert run(["predict", f"--ckpt_path={checkpoint}", *options]) == 0
    assert f"{tmp_path / 'drawn'}/progress.png" in capsys.readouterr().out
    with Image.open(tmp_path / "drawn/progress.png") as way, Image.open(tmp_path / "drawn/samples.png") as grid:
        assert way.size[1] == 2 + 3 * 50
        assert "from noise to data, seed 0, NFE 21" in way.info["Description"]
        left = np.asarray(way)[2:50, -50:-2]
        np.testing.assert_array_equal(left, np.asarray(grid)[2:50, 2:50])  # the first sample


def test_samples_that_do_not_fit_on_the_disk_are_refused_before_any_is_drawn(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    monkeypatch.setattr(ScoreModel, "draw", lambda *_, **__: pytest.fail("drawn"))
    assert run(["predict", f"--ckpt_path={checkpoint}", "--num_samples=6", f"--output={tmp_path / 'drawn'}"]) == 2
    assert "--num_samples 6: takes about 7.68e-07 GB on the disk of" in capsys.readouterr().err


def test_refuses(capsys, tmp_path):
    with pytest.raises(InputError, match="progressive=-1: must be 0"):
        SampleGrid(progressive=-1)


@pytest.mark.parametrize(
    ("n", "labels", "columns"),
    [(64, 0, 8), (64, 1, 8), (64, 10, 10), (400, 10, 20), (40, 2, 6), (400, 1000, 20), (9, 10, 3), (70, 7, 7)],
)
def test_a_column_of_samples_has_one_label(n, labels, columns):
    images = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    images[:: labels or 1] = 255
    picture = np.asarray(sample_picture(Digits(), images, labels))
    assert picture.shape[1] == columns * 50 + 2
    cells = picture[26::50, 26::50][: n // columns]
    if labels > 1 and columns % labels == 0:
        assert all(len(np.unique(cells[:, column])) == 1 for column in range(columns))


def floats(shape, low, high, stored=None):
    """Float data between two values, stored between two others, with evenly spaced levels."""
    first, last = stored or (low, high)

    class Floats(ScoreData):
        def load(self):
            x = torch.linspace(first, last, 20 * int(np.prod(shape))).reshape(20, *shape)
            return Splits(*(Examples(part, torch.zeros(10, dtype=torch.long)) for part in x.split(10)))

        def transform(self, train):
            return lambda x: low + (x - first) * ((high - low) / (last - first))

        def to_reference(self, x):
            return first + (x - low) * ((last - first) / (high - low))

    data = Floats()
    data.shape, data.data_range = shape, (low, high)
    return data


@pytest.mark.parametrize("stored", [None, (0.0, 1.0), (3.0, -2.0)])
@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-3.0, 5.0)])
def test_floats_are_drawn_by_the_declared_range(ends, stored):
    """Half the range is half gray, whatever the range and the type of storage; values beyond it are black or white."""
    data = floats((1, 4, 4), *ends, stored)
    low, high = ends
    x = torch.tensor([low - 1, low, (low + high) / 2, high, high + 1]).reshape(5, 1, 1, 1).expand(-1, 1, 4, 4)
    drawn = drawable(data, data.to_reference(x))
    gray = drawn[:, 0, 0, 0].tolist()
    expected = [0, 0, 128, 255, 255] if stored is None or stored[0] < stored[1] else [255, 255, 128, 0, 0]
    assert drawn.dtype == torch.uint8 and all(abs(a - b) <= 1 for a, b in zip(gray, expected, strict=True))
    data.data_range = None
    assert drawable(data, x.clone()).flatten().aminmax() == (torch.tensor(0), torch.tensor(255))
    assert drawable(data, torch.full((2, 1, 4, 4), 7.0)).max() == 0


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (5, 7), (1, 4, 4), (2, 4, 4), (4, 4, 4), (6, 4, 4), (1, 2, 4, 4)])
def test_any_shape_is_drawn(shape):
    data = floats(shape, -1.0, 1.0)
    data.splits  # noqa: B018
    picture = sample_picture(data, data.reference())
    assert min(picture.size) > 16 and picture.mode in ("L", "RGB")
