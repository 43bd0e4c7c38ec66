"""Drawings of tables, signals, fields and volumes: what they show is the data's."""

import numpy as np
import pytest
import torch
from matplotlib import colormaps

from lightning_score.callbacks.drawings import draw_examples, draw_neighbors, draw_strip
from lightning_score.callbacks.mosaics import MISSING, color_scale, image_rows, mosaic
from lightning_score.callbacks.pictures import KIND, Strip, in_pixels, neighbor_picture, sample_picture
from lightning_score.callbacks.plots import QUANTILES, Shown, drawable_text, to_values
from lightning_score.data import Digits, Examples, ScoreData, Splits
from lightning_score.metrics import nearest_neighbors
from lightning_score.networks import MLP
from lightning_score.observations import BlockMean
from lightning_score.process import VP
from lightning_score.sampling import Geometric, PredictorCorrector
from lightning_score.training.model import ScoreModel

SHAPES = {1: (3,), 2: (1, 50), 3: (2, 12, 20), 4: (1, 4, 6, 8)}
generator = np.random.default_rng(0)


def normal(*shape):
    return generator.normal(size=shape)


def texts(figure):
    return " | ".join(text.get_text() for text in figure.findobj(lambda each: hasattr(each, "get_text")))


def test_signals_have_the_quantiles_of_samples_over_those_of_data():
    shown = Shown(normal(100, 2, 30), 3 + normal(80, 2, 30), ["lead I", "lead II"], "mV")
    shown.samples[:, 1, 4] = np.nan  # no sample is finite there
    shown.data[::3, 0, 5] = np.nan
    figure = draw_examples(shown)
    rows = np.reshape(figure.axes, (2, 3))
    for k, (own, real, band) in enumerate(rows):
        assert [line.get_ydata()[3] for line in own.lines] == shown.samples[:3, k, 3].tolist()
        assert [line.get_ydata()[3] for line in real.lines] == shown.data[:3, k, 3].tolist()
        median, *lines = (line.get_ydata() for line in band.lines)
        np.testing.assert_allclose(median, np.nanquantile(shown.data[:, k], 0.5, axis=0))
        known = np.arange(30) != 4
        np.testing.assert_allclose(np.array(lines)[:, known], np.quantile(shown.samples[:, k][:, known], QUANTILES, axis=0))
        outer = band.collections[0].get_paths()[0].vertices[:, 1]
        ends = np.nanquantile(shown.data[:, k], (0.05, 0.95), axis=0)
        assert (outer.min(), outer.max()) == pytest.approx((ends.min(), ends.max()))
    assert "lead I (mV)" in texts(figure) and "3 of 100 samples, 100 not finite" in texts(figure)


def test_long_signals_have_few_quantiles_but_all_of_their_curves():
    figure = draw_examples(Shown(normal(5, 1, 10_000), normal(5, 1, 10_000)))
    own, _, band = figure.axes
    assert len(own.lines[0].get_ydata()) == 10_000 and len(band.lines[0].get_ydata()) <= 1000


def test_the_color_scale_is_of_the_data_and_robust():
    x = normal(10_000)
    x[:3] = (1e6, np.nan, np.inf)
    low, high, colors = color_scale(x)
    assert -low == high == pytest.approx(2.6, abs=0.2) and colors == "RdBu_r"
    low, high, colors = color_scale(300 + x[3:])
    assert colors == "viridis" and (low, high) == pytest.approx((297.4, 302.6), abs=0.2)
    assert color_scale(np.r_[np.zeros(9999), 5.0])[:2] == (0.0, 5.0)  # nearly all are equal
    for constant in (np.full(4, 7.0), np.zeros(4), np.full(4, np.nan), np.zeros(0)):
        low, high, _ = color_scale(constant)
        assert np.isfinite([low, high]).all() and low < high


def test_a_mosaic_has_the_colors_of_the_values_and_missing_ones_are_gray():
    images = normal(5, 48, 48)
    images[3, 0, 0] = np.nan
    picture = mosaic(images, 3, color_scale(images))
    low, high, colors = color_scale(images)
    np.testing.assert_allclose(picture[:48, :48], colormaps[colors]((images[0] - low) / (high - low))[..., :3])
    np.testing.assert_allclose(picture[51, 0], MISSING)
    np.testing.assert_allclose(picture[51 + 9, 51 + 8], colormaps[colors]((images[4, 9, 8] - low) / (high - low))[:3])
    assert (picture[60, 102:] == 1).all()  # no sixth image


def test_of_many_channels_the_first_are_drawn():
    x = to_values(torch.randn(2, 100, 4, 4))
    assert len(draw_examples(Shown(x, x)).axes) == 3 * 16  # samples, data and a color bar of each


def test_large_images_are_the_means_of_their_known_pixels():
    images = np.arange(4.0).reshape(1, 2, 2).repeat(160, 1).repeat(160, 2)
    images[0, 0, 0] = np.nan
    picture = mosaic(images, 1, color_scale(images))
    assert picture.shape == (160, 160, 3) and not np.allclose(picture[0, 0], MISSING)
    np.testing.assert_allclose(picture[0, 0], picture[50, 50])


def test_volumes_are_their_central_slices():
    x = normal(3, 2, 4, 6, 8)
    for k, channel in enumerate(image_rows([x])):
        for row, slices in zip(channel, (x[:, k, 2], x[:, k, :, 3], x[:, k, :, :, 4]), strict=True):
            np.testing.assert_array_equal(row.blocks[0], slices)


def test_histograms_are_fractions_of_samples_and_of_data():
    shown = Shown(normal(300, 1), normal(900, 1))
    data, samples = draw_examples(shown).axes[0].patches
    for patch, values in ((data, shown.data), (samples, shown.samples)):
        counts, edges, _ = patch.get_data()
        np.testing.assert_allclose(counts, np.histogram(values, edges)[0] / len(values))
        assert counts.sum() > 0.97


def test_tables_show_all_columns_or_those_that_vary_most():
    names = [f"column {k}" for k in range(50)]
    few = draw_examples(Shown(normal(20, 4), normal(20, 4), names[:4]))
    assert len(few.axes) == 10 and all(name in texts(few) for name in names[:4])
    spread = np.ones(50)
    spread[[11, 20, 30, 42]] = 10
    many = draw_examples(Shown(normal(20, 50), spread * normal(20, 50), names))
    assert len(many.axes) == 30 + 10 and "30 of 50 columns" in texts(many)
    assert {many.axes[-1].get_xlabel(), many.axes[-4].get_ylabel()} == {"column 42"}


@pytest.mark.parametrize("axes", [1, 2, pytest.param(3, marks=pytest.mark.slow), 4])
def test_odd_cases_are_drawn(axes):
    x = normal(6, *SHAPES[axes])
    none, bad, same = x[:0], np.full_like(x, np.nan), np.full_like(x, 2.0)
    for samples, data in ((x[:1], none), (bad, x), (same, same), (1e30 * x, bad)):
        figure = draw_examples(Shown(samples, data))
        assert all(np.isfinite([*panel.get_xlim(), *panel.get_ylim()]).all() for panel in figure.axes)
    draw_strip(np.stack([x, x, x], 1), ["a", "b", "c"], Shown(x, none))
    draw_neighbors(x, Shown(x, none))


class Values(ScoreData):
    """Data of any shape in other units than the model's."""

    units, names = "K", ("first", "second")

    def __init__(self, shape, given=None):
        super().__init__(given=given)
        self.shape = shape

    def load(self):
        x = 280 + 5 * torch.randn(40, *self.shape, generator=torch.Generator().manual_seed(0))
        return Splits(*(Examples(part, torch.zeros(20, dtype=torch.long)) for part in x.split(20)))

    def transform(self, train):
        return lambda x: (x - 280) / 5

    def to_reference(self, x):
        return 280 + 5 * x


def test_what_is_in_pixels_and_what_is_drawn():
    assert in_pixels(Digits()) and sample_picture(Digits(), torch.zeros(4, 1, 8, 8, dtype=torch.uint8)).info == {}
    data = Values((2, 4, 4))
    assert not in_pixels(data)
    picture = sample_picture(data, data.reference()[:4])
    assert picture.info[KIND] == "drawing" and np.asarray(picture).std() > 10


@pytest.mark.parametrize("shape", [(2, 8), (2, 8, 8), pytest.param((1, 4, 4, 4), marks=pytest.mark.slow)])
def test_conditions_are_above_their_samples_and_the_data_below(shape, monkeypatch):
    data = Values(shape, given=BlockMean(2))
    drawn = []
    monkeypatch.setattr(
        "lightning_score.callbacks.pictures.draw_examples", lambda shown: drawn.append(shown) or draw_examples(shown)
    )
    cond = data.held_out_conditions()[:6]
    sample_picture(data, data.reference()[:6], given=data.held_out_conditions()[:6])
    sample_picture(data, data.reference()[:6], given=cond + 1)
    own, others = drawn
    np.testing.assert_allclose(own.given, data.given.operator.apply(data.splits.held_out.x[:6]).numpy(), rtol=1e-5)
    np.testing.assert_array_equal(own.data, to_values(data.splits.held_out.x[:6]))
    assert len(others.data) == 0 and own.paired and others.paired


class Deep(Values):
    """Images of 16 bits."""

    levels, data_range, stored_dtype = 65536, (0.0, 1.0), torch.uint16

    def load(self):
        x = torch.linspace(0, 65535, 40 * 16).to(torch.uint16).view(40, 1, 4, 4)
        return Splits(*(Examples(part, torch.zeros(20, dtype=torch.long)) for part in (x[:20], x[20:])))

    def transform(self, train):
        return lambda x: x.float() / 65535

    def to_reference(self, x):
        return (65535 * x).round().to(torch.uint16)


def test_conditions_of_16_bits_are_as_bright_as_their_samples():
    data = Deep((1, 4, 4), given=BlockMean(2))
    picture = np.asarray(sample_picture(data, data.splits.held_out.x[:2], given=data.held_out_conditions()[:2]))
    given, sample = picture[2:50, 2:50], picture[52:100, 2:50]
    np.testing.assert_allclose(given.mean(), sample.mean(), atol=1)


def test_a_strip_ends_with_the_samples_in_the_units_of_the_data():
    torch.manual_seed(0)
    data = Values((3,))
    data.splits  # noqa: B018
    sampler = PredictorCorrector(grid=Geometric(12, 0.01))
    model = ScoreModel(lambda s, c: MLP(s, c, 8, 1), (3,), VP(), sampler=sampler)
    strip = Strip(model, data, rows=4)
    samples = model.draw(range(5), observe=strip)
    moments = strip.moments(samples)
    torch.testing.assert_close(moments[-1], 280 + 5 * samples.x[:4])
    assert len(moments) == 9 and float(moments[0].std()) == pytest.approx(5 * 2 * 2.2 / 4, rel=0.4)  # as wide as the data
    assert strip.picture(samples).info[KIND] == "drawing"


@pytest.mark.parametrize("shape", [(5,), (2, 300), (1, 4, 4, 4)])
def test_copies_are_found_in_the_units_of_the_model(shape):
    """A channel in other units does not hide the others; values that are missing do not either."""
    data = Values(shape)
    x = data.reference()
    factor = torch.ones(shape[0], *[1] * (len(shape) - 1))
    factor[0] = 1e-4
    stored = x * factor
    stored[3].view(-1)[0] = torch.nan
    noisy = (x[[3, 11]] + torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)) / 5) * factor
    found = nearest_neighbors(noisy, stored[:20], stored[20:], inputs=lambda part: (part / factor - 280) / 5)
    assert found.index.tolist() == [3, 11] and found.copied == 1
    neighbor_picture(data, noisy, stored[found.index])


def test_dollar_signs_that_are_no_mathematics_are_drawn_as_they_are():
    assert drawable_text(r"$\mu$V") == r"$\mu$V" and drawable_text("cost ($)") == r"cost (\$)"
    assert drawable_text(r"$\nothing$") == r"\$\nothing\$"
