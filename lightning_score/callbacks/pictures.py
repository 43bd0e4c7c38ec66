"""Pictures of samples and of their way from noise to data, and how they are written to the run folder and the loggers."""

import math
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn import functional as F

from lightning_score.callbacks.drawings import draw_examples, draw_neighbors, draw_strip
from lightning_score.callbacks.mosaics import color_scale
from lightning_score.callbacks.plots import Shown, to_values
from lightning_score.data import ScoreData, to_uint8
from lightning_score.data.images import of_picture, to_picture
from lightning_score.files import replacing, tolerating_full_disk
from lightning_score.runs.folders import KIND
from lightning_score.sampling.sampler import Samples
from lightning_score.sampling.step import Move
from lightning_score.score.function import ScoreField
from lightning_score.training.model import ScoreModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = "Rows"
"""The metadata of a picture that the caption ends with: what its rows are."""
MOMENTS = 9
"""Columns of the picture: the start, the samples after equal numbers of moves, and the result."""
COMPARED = {2: 256, 3: 32, 4: 8}
"""Held-out examples in a drawing, by the number of their axes; of others 1000."""
COLUMNS = 12
"""Images in a row of pairs."""
CONDITIONED = 36
"""Images that are shown with their conditions."""
FEW = 4
"""Numbers of a condition that are shown in the title of a sample."""
LARGEST = 1 << 24
"""Numbers that are drawn at most, of samples and of data."""


def in_pixels(data: ScoreData) -> bool:
    """Whether examples are shown as they are, pixel by pixel: images of bytes, or of gray levels; others are drawn."""
    return len(data.shape) == 3 and (data.levels is not None or data.stored_dtype == torch.uint8)


def pictured(data: ScoreData) -> bool:
    """Whether an example is shown by itself, next to its nearest: not points of the line or the plane."""
    return len(data.shape) > 1 or data.shape[0] > 2


def kept_of(data: ScoreData, n: int) -> int:
    """How many of n samples are kept for pictures and comparisons: all, or as many large ones as fit into memory."""
    return n if in_pixels(data) else min(n, max(2, 4 * LARGEST // prod(data.shape)))


def drawable(data: ScoreData, x: Tensor) -> Tensor:
    """Examples in the form of the data module's `reference()`, ready to be drawn: float images become bytes, scaled from the
    data range or, without one, from the range of these images; everything else is unchanged.
    """
    if x.ndim != 4 or x.dtype == torch.uint8:
        return x
    ends = [data.to_reference(torch.full((1, *data.shape), end)) for end in data.data_range or ()]
    return _to_bytes(x, torch.cat(ends) if ends else x)


def _to_bytes(x: Tensor, values: Tensor) -> Tensor:
    """Images as bytes, scaled from the range of some values; of NaN, the lowest."""
    values = values.double()
    finite = values[values.isfinite()]
    low, high = (float(end) for end in finite.aminmax()) if len(finite) else (0.0, 1.0)
    return to_uint8(x.double().nan_to_num(low), (low, high if high > low else low + 1))


def sample_picture(data: ScoreData, samples: Tensor, labels: int = 0, given: Tensor | None = None) -> Image.Image:
    """A picture of samples: a grid of images or, of other data, a drawing in their units, next to held-out examples; with
    their conditions, if these are arrays or a few numbers.

    Args:
        data: the data module; held-out examples are shown if they are loaded.
        samples: in the form of `reference()`, (N, *shape).
        labels: number of labels that alternate; with several rows of images, each column then has one label.
        given: conditions other than labels, as the model sees them, (N, *condition.shape).
    """
    if not in_pixels(data):
        return figure_picture(draw_examples(_shown(data, samples, given)))
    if given is not None and given.ndim == samples.ndim:
        return _pixels_below_conditions(data, samples[:CONDITIONED], given[:CONDITIONED])
    wanted = math.sqrt(len(samples))
    columns = labels * max(1, round(wanted / labels)) if 1 < labels <= 2 * wanted else None
    return _grid(drawable(data, samples), columns)


def picture_in_turn(model: ScoreModel, data: ScoreData, samples: Tensor) -> Image.Image:
    """The `sample_picture` of a model's samples 0 to N - 1, with the labels or other conditions that these have in turn."""
    labels = model.num_classes if model.takes_condition else 0
    given = model.conditions.default(torch.arange(len(samples))) if model.takes_condition and not labels else None
    return sample_picture(data, samples, labels, given)


def _pixels_below_conditions(data: ScoreData, samples: Tensor, given: Tensor) -> Image.Image:
    """Rows of conditions, scaled from their range, of their samples and, if these are known, of the examples they are of."""
    truth, units = _paired(data, given), data.from_condition(given.cpu()).double()
    planes = F.interpolate(units, samples.shape[2:], mode="nearest-exact")
    planes = _to_bytes(planes, planes) if data.given is None else drawable(data, planes)
    shown = drawable(data, samples)
    parts = [planes if planes.shape[1] == shown.shape[1] else planes[:, :1].expand_as(shown), shown]
    picture = _rows([*parts, *([] if truth is None else [drawable(data, truth)])])
    picture.info[ROWS] = "; rows of conditions, samples" + ("" if truth is None else ", and examples with these conditions")
    return picture


def _rows(parts: Sequence[Tensor]) -> Image.Image:
    """Images (N, C, H, W) in rows, a row of each part below the other."""
    rows = [row for group in zip(*(part.split(COLUMNS) for part in parts), strict=True) for row in group]
    return _grid(torch.cat(rows), columns=min(COLUMNS, len(parts[0])))


def _shown(data: ScoreData, samples: Tensor, given: Tensor | None = None) -> Shown:
    """What a drawing shows: samples, their conditions, and held-out examples to compare them with."""
    most = max(2, LARGEST // prod(data.shape))
    samples = samples[:most]
    shown = Shown(to_values(samples), to_values(_held_out(data, samples)), data.names, data.units)
    if given is None:
        return shown
    given = given[:most].cpu()
    truth, units = _paired(data, given), to_values(data.from_condition(given))
    shown = shown._replace(data=shown.data[:0] if truth is None else to_values(truth), paired=True)
    if units.ndim == samples.ndim > 2:
        return shown._replace(given=units)
    few = units.ndim == 2 and units.shape[1] <= FEW
    return shown._replace(titles=[", ".join(f"{number:.3g}" for number in row) for row in units]) if few else shown


def _held_out(data: ScoreData, samples: Tensor) -> Tensor:
    """As many held-out examples as are compared with samples and are quickly read; none if they are not loaded."""
    if "splits" not in vars(data):
        return samples[:0]
    x = data.splits.held_out.x
    n = min(len(x), COMPARED.get(len(data.shape), 1000), max(2, LARGEST // prod(data.shape)))
    rows = torch.linspace(0, len(x) - 1, n).round().long()
    return x[rows[torch.randperm(n, generator=torch.Generator().manual_seed(0))]]  # neighbors, as windows, are alike


def _paired(data: ScoreData, given: Tensor) -> Tensor | None:
    """The held-out examples whose conditions these are, in turn; None if they are not, or are not loaded."""
    if "splits" not in vars(data):
        return None
    turn = data.held_out_conditions()
    rows = torch.arange(len(given)) % len(turn)
    same = torch.equal(turn[rows].nan_to_num(), given.cpu().nan_to_num())
    return data.splits.held_out.x[rows] if same else None


def _grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """A grid, square unless the columns are given; small images are enlarged to at least 48 pixels."""
    if images.shape[1] not in (1, 3):
        images = images[:, :3] if images.shape[1] > 3 else images[:, :1]
    zoom = max(1, math.ceil(48 / images.shape[-1]))
    large = images.cpu().repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    if len(large) == 1:
        return to_picture(large[0])
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    tiles = F.pad(large, (2, 0, 2, 0, 0, 0, 0, rows * columns - len(images)), value=128)  # lines above and to the left
    grid = tiles.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return to_picture(F.pad(grid, (0, 2, 0, 2), value=128))


def strip_picture(moments: Sequence[Tensor]) -> Image.Image:
    """Progressive sampling, from noise to image: a row for each sample, a column for each time.

    Args:
        moments: the same samples as uint8 images (N, C, H, W) with 1 or 3 channels, in the order of sampling.
    """
    return _grid(torch.stack(list(moments), 1).flatten(0, 1), columns=len(moments))


class Strip:
    """Observes a sampler and keeps the first samples at a few moves, for a picture of their way from noise to data.

    Args:
        model: the model that draws with its own sampler.
        data: its data.
        rows: number of samples; fewer of large ones.
    """

    def __init__(self, model: ScoreModel, data: ScoreData, rows: int = 8) -> None:
        self._process, self._data = model.score_function.process, data
        self._rows = rows if in_pixels(data) else max(1, min(rows, LARGEST // (MOMENTS * prod(data.shape))))
        moves = len(model.sampler.moves(self._process))
        self._kept = set(torch.linspace(0, moves, MOMENTS).round().long().tolist()[1:-1]) - {0, moves}
        self._move = 0
        self._states: list[tuple[Tensor, float]] = []  # x/alpha and sigma/alpha

    def __call__(self, score: ScoreField, move: Move, before: Tensor, after: Tensor, state: Any) -> None:
        if self._move == 0:
            self._keep(before, move.t)
        self._move += 1
        if self._move in self._kept:
            self._keep(after, move.end)

    def _keep(self, x: Tensor, t: Tensor) -> None:
        t = self._process.with_signal(t)
        self._states.append((x[: self._rows] / float(self._process.alpha(t)), float(self._process.noise_level(t))))

    def moments(self, samples: Samples) -> list[Tensor]:
        """The samples at each time and the results, as `reference()` has them; the contrast is reduced where the noise would
        leave the range of the data: that declared, or that of held-out examples or the results.
        """
        results = samples.x[: self._rows]
        held_out = _held_out(self._data, results)
        inputs = self._data.transform(train=False)(held_out) if len(held_out) else results
        low, high = self._data.data_range or color_scale(to_values(inputs))[:2]
        middle, moments = (low + high) / 2, []
        for x, sigma in self._states:
            contrast = min(1.0, (high - low) / (4 * sigma)) if sigma > 0 else 1.0
            moments.append(self._data.to_reference(((x - middle) * contrast + middle).float()))
        return [*moments, self._data.to_reference(results)]

    def picture(self, samples: Samples) -> Image.Image:
        """The picture: a row for each sample, a column for each time, the result as the last one."""
        moments = self.moments(samples)
        if in_pixels(self._data):
            return strip_picture([drawable(self._data, moment) for moment in moments])
        titles = [*(rf"$\sigma$ = {float(f'{sigma:.2g}'):g}" for _, sigma in self._states), "result"]
        values = np.stack([to_values(moment) for moment in moments], 1)
        return figure_picture(draw_strip(values, titles, _shown(self._data, moments[-1])))


def neighbor_picture(data: ScoreData, samples: Tensor, nearest: Tensor) -> Image.Image:
    """Samples, each above or over its nearest training example.

    Args:
        data: the data module.
        samples: in the form of `reference()`, (N, *shape).
        nearest: of the same shape.
    """
    if not in_pixels(data):
        return figure_picture(draw_neighbors(to_values(nearest), _shown(data, samples)._replace(samples=to_values(samples))))
    return _rows([drawable(data, each) for each in (samples, nearest)])


def figure_picture(figure: "Figure") -> Image.Image:
    """A matplotlib figure as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.frombytes("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
    picture.info[KIND] = "drawing"
    return picture


def save_picture(picture: Image.Image, path: Path, caption: str) -> None:
    """Writes a PNG with metadata: its caption as `Description`, and whether it is a drawing, which may be scaled smoothly,
    or pixels.
    """
    metadata = PngInfo()
    metadata.add_itxt("Description", caption + picture.info.get(ROWS, ""))
    metadata.add_itxt(KIND, picture.info.get(KIND, "pixels"))
    with replacing(path) as temporary:
        picture.save(temporary, pnginfo=metadata)


def publish(trainer: Trainer, key: str, picture: Image.Image, caption: str) -> Path:
    """Writes a picture to `<run folder>/<key>/step_<step>.png` and logs it to W&B, TensorBoard and MLflow.

    Args:
        trainer: the trainer, whose `default_root_dir` is the run folder.
        key: the name under which the picture is logged, as `samples`.
        picture: the picture.
        caption: what it shows.

    Returns:
        The file.
    """
    step, full = trainer.global_step, caption + picture.info.get(ROWS, "")
    path = Path(trainer.default_root_dir) / key / f"step_{step:07d}.png"
    with tolerating_full_disk(path):
        save_picture(picture, path, caption)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [picture], step=step, caption=[full])
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, of_picture(picture), step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(str(logger.run_id), picture, key=key, step=step)
    return path
