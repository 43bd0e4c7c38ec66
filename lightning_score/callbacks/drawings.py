"""Drawings of examples that are not images of bytes, chosen by the number of their axes, in the units of the data."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_score.callbacks.mosaics import DPI, Group, Row, Values, color_scale, draw_groups, image_rows, shape_of
from lightning_score.callbacks.plots import Shown, draw_cells, draw_signals, draw_table, limits, varied

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAIRS, BESIDE = 12, 4
"""Samples with their nearest examples in a row of images, and of curves."""
NEAREST = "samples, each over its nearest training example (gray)"
BELOW = 8
"""Samples below their conditions."""
PANELS = 12
"""Columns of a table in a strip."""


def draw_examples(shown: Shown) -> "Figure":
    """Samples beside or over data: histograms and pair plots of tables, curves and quantile bands of signals, and images of
    fields and of the central slices of volumes.
    """
    return {2: draw_table, 3: draw_signals}.get(shown.samples.ndim, _images)(shown)


def draw_strip(moments: Values, titles: Sequence[str], shown: Shown) -> "Figure":
    """Samples on their way from noise to data.

    Args:
        moments: each sample at each time, (N, times, *shape).
        titles: of the times.
        shown: the samples and the data, which set the scales, with names and units.
    """
    return {2: _paths, 3: _strip_of_signals}.get(shown.samples.ndim, _strip_of_images)(moments, titles, shown)


def draw_neighbors(nearest: Values, shown: Shown) -> "Figure":
    """Samples, each with its nearest training example, (N, *shape), in `nearest`."""
    drawings = {2: _neighbors_of_tables, 3: _neighbors_of_signals}
    return drawings.get(shown.samples.ndim, _neighbors_as_images)(nearest, shown)


def _images(shown: Shown) -> "Figure":
    """Fields, or the central slices of volumes: samples beside data, or below their conditions."""
    if shown.paired:
        return _images_with_conditions(shown)
    blocks = [shown.samples, shown.data][: 1 + bool(len(shown.data))]
    channels = image_rows(blocks)
    columns, n = shape_of(sum(map(len, channels)), channels[0][0].blocks[0].shape[1:], len(shown.samples))
    wide = [columns, max(1, columns // 2)][: len(blocks)]
    cut = image_rows([block[: math.ceil(n / columns) * each] for block, each in zip(blocks, wide, strict=True)])
    return draw_groups(_groups(shown, cut), [shown.counted(n), "data"][: len(blocks)], wide)


def _images_with_conditions(shown: Shown) -> "Figure":
    """A column for each sample: its condition, the sample, and the data with this condition; of volumes one slice."""
    n = min(BELOW, len(shown.samples))
    groups, parts = [], {"sample": shown.samples[:n], "data": shown.data[:n]}
    if shown.given is not None:
        for (row, *_), values in zip(image_rows([shown.given[:n]]), shown.given.swapaxes(0, 1), strict=True):
            groups.append(Group(color_scale(values), "condition", [row._replace(label="given")]))
    for group in _groups(shown, image_rows([each for each in parts.values() if len(each)])):
        rows = [Row(name, [block]) for name, block in zip(parts, group.rows[0].blocks, strict=False)]
        groups.append(group._replace(rows=rows))
    return draw_groups(groups, shown.titles[:n] or [shown.counted(n)], [n])


def _strip_of_images(moments: Values, titles: Sequence[str], shown: Shown) -> "Figure":
    """A row for each sample, a column for each time; of several channels one below the other, of volumes one slice."""
    n = math.ceil(len(moments) / shown.samples.shape[1])
    channels = [slices[:1] for slices in image_rows([moments[:n].reshape(-1, *moments.shape[2:])])]
    return draw_groups(_groups(shown, channels), titles, [len(titles)])


def _neighbors_as_images(nearest: Values, shown: Shown) -> "Figure":
    """Each sample above its nearest example; of several channels one below the other, of volumes one slice."""
    n = PAIRS if shown.samples.shape[1] > 1 else len(nearest)
    firsts = range(0, min(n, len(nearest)), PAIRS)
    rows = [part[k : k + PAIRS] for k in firsts for part in (shown.samples, nearest)]
    channels = [slices[:1] for slices in image_rows([np.concatenate(rows)])]
    return draw_groups(_groups(shown, channels), ["samples, each above its nearest training example"], [len(rows[0])])


def _groups(shown: Shown, channels: Sequence[Sequence[Row]]) -> list[Group]:
    """The rows of each channel with its color scale and label."""
    reference = shown.reference
    return [Group(color_scale(reference[:, k]), shown.label(k), rows) for k, rows in enumerate(channels)]


def _strip_of_signals(moments: Values, titles: Sequence[str], shown: Shown) -> "Figure":
    """Small curves: a row for each sample and channel, a column for each time."""
    n = math.ceil(len(moments) / shown.samples.shape[1])
    return draw_cells(moments[:n].swapaxes(1, 2)[:, :, :, None], _scales(shown), titles)


def _neighbors_of_signals(nearest: Values, shown: Shown) -> "Figure":
    """Small curves: each sample over its nearest example; of several channels one below the other."""
    pairs = np.stack([nearest, shown.samples], 2)[: None if nearest.shape[1] == 1 else BESIDE]
    return draw_cells(_in_rows(pairs), _scales(shown._replace(data=nearest)), [NEAREST])


def _neighbors_of_tables(nearest: Values, shown: Shown) -> "Figure":
    """Lines through the columns, each column in the range of the data: each sample over its nearest example."""
    low, high = np.array([ends for _, ends in _scales(shown._replace(data=nearest))]).T
    pairs = (np.stack([nearest, shown.samples], 1)[:, None] - low) / (high - low)
    return draw_cells(_in_rows(pairs), [("columns", (0.0, 1.0))], [NEAREST])


def _in_rows(pairs: Values) -> Values:
    """Pairs (N, channels, 2, L) in rows of `BESIDE`: (rows, channels, columns, 2, L)."""
    rows = np.pad(pairs, [(0, -len(pairs) % BESIDE), (0, 0), (0, 0), (0, 0)], constant_values=np.nan)
    return rows.reshape(-1, BESIDE, *pairs.shape[1:]).swapaxes(1, 2)


def _scales(shown: Shown) -> list[tuple[str, tuple[float, float]]]:
    """Label and limits of each channel or column."""
    samples, reference = shown.samples, shown.reference
    return [(shown.label(k), limits(samples[:, k], reference[:, k])) for k in range(samples.shape[1])]


def _paths(moments: Values, titles: Sequence[str], shown: Shown) -> "Figure":
    """A panel for each column of a table, with a line for each sample, from noise to data."""
    from matplotlib.figure import Figure  # takes a second to import

    columns = varied(shown, PANELS)
    wide = min(3, len(columns))
    tall = math.ceil(len(columns) / wide)
    figure = Figure(figsize=(1 + 4 * wide, 0.8 + 2.2 * tall), dpi=DPI, layout="constrained")
    grid = figure.subplots(tall, wide, squeeze=False, sharex=True).ravel()
    for k, axes in zip(columns, grid, strict=False):
        axes.plot(moments[:, :, k].T, lw=0.8, alpha=0.7)
        axes.set(ylim=limits(moments[:, :, k], shown.reference[:, k]), title=shown.label(k))
        axes.set_xticks(range(len(titles)), titles, rotation=45)
    for axes in grid[len(columns) :]:
        axes.remove()
    return figure
