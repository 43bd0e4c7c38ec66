"""Drawings of fields and volumes: many images in one color scale, with a color bar."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = np.ndarray[Any, np.dtype[np.float64]]

DPI = 130
MISSING = 0.72
"""The gray of missing values."""
LARGEST = 160
"""Pixels along a side of an image in a mosaic; larger ones are averaged."""
SMALLEST = 48
"""Smaller images are enlarged."""
SLIMMEST = 16
"""How much longer than its other side an image is at most; slimmer ones are stretched."""
WIDTH, TALLEST, LARGEST_INCHES = 9.0, 11.0, 2.5
"""Inches of a figure, and of an image in it."""
LEFT, RIGHT, TOP, BETWEEN, GAP = 0.55, 1.0, 0.35, 0.12, 0.25
"""Inches of its margins, between its rows, and between its blocks."""


class Scale(NamedTuple):
    """A color scale: its ends, and matplotlib's name of a map of uniform lightness; unused by images in color."""

    low: float
    high: float
    colors: str


class Row(NamedTuple):
    """A row of a figure: a label, and for each block its images, (N, H, W), or (N, H, W, 3) in color, NaN where missing."""

    label: str
    blocks: Sequence[Values]


class Group(NamedTuple):
    """Rows that share a color bar: the scale, its label, and the rows."""

    scale: Scale
    label: str
    rows: Sequence[Row]


def color_scale(values: Values) -> Scale:
    """From the 0.5 % to the 99.5 % quantile; symmetric, with a diverging map, for values around zero."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Scale(0.0, 1.0, "viridis")
    low, high = map(float, np.quantile(finite[:: math.ceil(finite.size / 1e6)], (0.005, 0.995)))
    if low == high:
        low, high = float(finite.min()), float(finite.max())
    if low == high:
        return Scale(low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2, "viridis")
    if low < 0 < high and 3 * min(-low, high) >= max(-low, high):
        high = max(-low, high)
        return Scale(-high, high, "RdBu_r")
    return Scale(low, high, "viridis")


def mosaic(images: Values, columns: int, scale: Scale) -> Values:
    """Images side by side in the colors of a scale, row by row, (height, width, 3); missing values are gray.

    Args:
        images: (N, H, W), or (N, H, W, 3) in color.
        columns: in a row.
        scale: the color scale.
    """
    from matplotlib import colormaps

    planes = np.moveaxis(images, 3, 0) if images.ndim == 4 else [images]
    cells = np.stack([(_resized(plane) - scale.low) / (scale.high - scale.low) for plane in planes], -1)
    colors = cells.clip(0, 1) if images.ndim == 4 else colormaps[scale.colors](cells[..., 0])[..., :3]
    colors[np.isnan(cells).any(-1)] = MISSING
    gap = max(3, max(cells.shape[1:3]) // 20)
    colors = np.pad(colors, [(0, -len(cells) % columns), (0, gap), (0, gap), (0, 0)], constant_values=1)
    _, height, width, _ = colors.shape
    table = colors.reshape(-1, columns, height, width, 3).swapaxes(1, 2)
    return table.reshape(-1, columns * width, 3)[:-gap, :-gap]


def _resized(images: Values) -> Values:
    """Large images as the means of their known pixels; small and slim ones enlarged by whole factors."""
    x, (height, width) = torch.from_numpy(images)[:, None], images.shape[1:]
    longest = max(height, width)
    if longest > LARGEST:
        size = [max(1, round(side * LARGEST / longest)) for side in (height, width)]
        total, known = (F.interpolate(each, size, mode="area") for each in (x.nan_to_num(), x.isfinite().double()))
        x = total / known
    longest = max(x.shape[2:])
    for axis in (2, 3):
        slim = math.ceil(longest / SLIMMEST / x.shape[axis])
        x = x.repeat_interleave(slim * math.ceil(SMALLEST / longest), axis)
    resized: Values = x[:, 0].numpy()
    return resized


def image_rows(blocks: Sequence[Values]) -> list[list[Row]]:
    """The rows of each channel: one of fields (N, C, H, W); of volumes (N, C, D, H, W) the central slices of each axis."""
    if blocks[0].ndim == 4:
        return [[Row("", [block[:, k] for block in blocks])] for k in range(blocks[0].shape[1])]

    def central(k: int, axis: int) -> Row:
        return Row(f"axis {axis}", [block[:, k].take(block.shape[2 + axis] // 2, axis + 1) for block in blocks])

    return [[central(k, axis) for axis in range(3)] for k in range(blocks[0].shape[1])]


def shape_of(rows: int, size: Sequence[int], n: int) -> tuple[int, int]:
    """Columns and number of the images of a block whose figure has that many rows, each of images of this size."""
    tall = min(max(size[0] / size[1], 1 / SLIMMEST), SLIMMEST)
    if rows > 1:
        columns = min(max(math.ceil(max(6 * math.sqrt(tall), 0.6 * rows * tall)), 2), 16, n)
        return columns, columns
    columns = min(math.ceil(math.sqrt(36 * tall)), n)
    return columns, min(math.ceil(24 / columns) * columns, n)


def draw_groups(groups: Sequence[Group], titles: Sequence[str], columns: Sequence[int]) -> "Figure":
    """A figure of mosaics: a row for each row of the groups, a column for each block, and a color bar for each group.

    Args:
        groups: the rows.
        titles: of the blocks; or of the columns of a single block.
        columns: images in a row of each block.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure  # takes a second to import

    scaled = [(row, group.scale) for group in groups for row in group.rows]
    rows = [[mosaic(images, n, scale) for images, n in zip(row.blocks, columns, strict=True)] for row, scale in scaled]
    slopes = [max(len(picture) for picture in row) / sum(picture.shape[1] for picture in row) for row in rows]
    margin = LEFT + RIGHT + GAP * (len(columns) - 1)
    room = min(WIDTH - margin, LARGEST_INCHES * sum(columns), (TALLEST - TOP - BETWEEN * len(rows)) / sum(slopes))
    width, height = margin + room, TOP + BETWEEN * len(rows) + sum(slopes) * room
    figure = Figure(figsize=(width, height), dpi=DPI)
    ends = {"left": LEFT / width, "right": 1 - RIGHT / width, "top": 1 - TOP / height, "bottom": BETWEEN / height}
    ends |= {"wspace": GAP * len(columns) / room, "hspace": BETWEEN * len(rows) / (sum(slopes) * room)}
    ratios = {"width_ratios": [picture.shape[1] for picture in rows[0]], "height_ratios": slopes}
    grid = figure.subplots(len(rows), len(columns), squeeze=False, gridspec_kw=ends | ratios)
    for axes, picture in zip(grid.flat, chain(*rows), strict=True):
        axes.imshow(picture)
        axes.set(anchor="NW", xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    panels = iter(grid)
    for group in groups:
        own = [next(panels) for _ in group.rows]
        for row, axes in zip(group.rows, own, strict=True):
            size = min(8, _fitting(row.label, LEFT - 0.1))
            axes[0].set_ylabel(row.label, fontsize=size, rotation=0, ha="right", va="center")
        if group.rows[0].blocks[0].ndim == 4:  # in color
            continue
        low, high = own[-1][0].get_position().y0, own[0][0].get_position().y1
        bar = figure.add_axes((ends["right"] + 0.12 / width, low, 0.14 / width, high - low))
        colors = ScalarMappable(Normalize(group.scale.low, group.scale.high), group.scale.colors)
        size = _fitting(group.label, (high - low) * height)
        figure.colorbar(colors, cax=bar, extend="both").set_label(group.label, fontsize=size)
        bar.tick_params(labelsize=8)
    if len(titles) == len(columns):
        for axes, title, share in zip(grid[0], titles, ratios["width_ratios"], strict=True):
            axes.set_title(title, fontsize=_fitting(title, 0.5 + room * share / sum(ratios["width_ratios"])))
    else:
        centers = (np.arange(len(titles)) + 0.5) * rows[0][0].shape[1] / len(titles)
        grid[0, 0].set_xticks(centers, titles, fontsize=_fitting(max(titles, key=len), room / len(titles)))
        grid[0, 0].tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    return figure


def _fitting(text: str, inches: float) -> float:
    """A size of the font with which a text is about as long as that."""
    return min(max(72 * inches / (0.6 * max(len(text), 1)), 5), 10)
