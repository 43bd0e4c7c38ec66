"""Pictures of samples and of their way from noise to image, and how they are written to the run folder and the loggers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

from lightning_score.data import ScoreData, to_uint8
from lightning_score.files import replacing, tolerating_full_disk
from lightning_score.sampling.predictor import Move
from lightning_score.sampling.sampler import Samples
from lightning_score.score.function import ScoreField
from lightning_score.training.model import ScoreModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND = "Kind"
"""The metadata of a picture that distinguishes drawings from pixels."""
MOMENTS = 9
"""Columns of the picture: the start, the samples after equal numbers of moves, and the result."""


def pictured(data: ScoreData) -> bool:
    """Whether the examples are images with a known range, so that noisy ones can be shown, too."""
    return data.data_range is not None and len(data.shape) == 3


def drawable(data: ScoreData, x: Tensor) -> Tensor:
    """Examples in the form of the data module's `reference()`, ready to be drawn: float images become bytes, scaled from the
    data range or, without one, from the range of these images; everything else is unchanged.
    """
    if x.ndim != 4 or x.dtype == torch.uint8:
        return x
    if data.data_range is None:
        ends = x[x.isfinite()]
    else:
        ends = torch.cat([data.to_reference(torch.full((1, *data.shape), end)).flatten() for end in data.data_range])
    low, high = (float(end) for end in ends.double().aminmax()) if len(ends) else (0.0, 1.0)
    return to_uint8(x.double(), (low, high if high > low else low + 1))


def sample_picture(samples: Tensor, labels: int = 0) -> Image.Image:
    """A picture of samples that are `drawable`: a grid of images, a scatter plot of points, or a histogram of numbers.

    Args:
        samples: uint8 images (N, C, H, W), or anything else (N, ...), whose first two coordinates are drawn.
        labels: number of labels that alternate; with several rows, each column then has one label.
    """
    if samples.ndim != 4:
        return _scatter(samples.flatten(1))
    wanted = math.sqrt(len(samples))
    return _grid(samples, labels * max(1, round(wanted / labels)) if 1 < labels <= 2 * wanted else None)


def labels_in_turn(model: ScoreModel) -> int:
    """Number of labels that alternate among a model's samples, for `sample_picture`; 0 without labels."""
    return model.num_classes if model.takes_condition else 0


def _grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """A grid, square unless the columns are given; small images are enlarged to at least 48 pixels."""
    if images.shape[1] not in (1, 3):
        images = images[:, :3] if images.shape[1] > 3 else images[:, :1]
    zoom = max(1, math.ceil(48 / images.shape[-1]))
    large = images.cpu().repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    grid = make_grid(large, nrow=columns or math.ceil(math.sqrt(len(images))), padding=2, pad_value=128)
    return to_pil_image(grid[: images.shape[1]])


def strip_picture(moments: Sequence[Tensor]) -> Image.Image:
    """Progressive sampling, from noise to image: a row for each sample, a column for each time.

    Args:
        moments: the same samples as uint8 images (N, C, H, W) with 1 or 3 channels, in the order of sampling.
    """
    return _grid(torch.stack(list(moments), 1).flatten(0, 1), columns=len(moments))


class Strip:
    """Observes a sampler and keeps the first samples at a few moves; its picture has a row for each sample.

    Args:
        model: the model that draws with its own sampler.
        data: its data, which are images.
        rows: number of samples.
    """

    def __init__(self, model: ScoreModel, data: ScoreData, rows: int = 8) -> None:
        self._process, self._data, self._rows = model.score_function.process, data, rows
        self._range = data.data_range or (0.0, 1.0)
        moves = len(model.sampler.moves(self._process))
        self._kept = set(torch.linspace(0, moves, MOMENTS).round().long().tolist()[1:-1]) - {0, moves}
        self._move = 0
        self._columns: list[Tensor] = []

    def __call__(self, score: ScoreField, move: Move, before: Tensor, after: Tensor, state: Any) -> None:
        if self._move == 0:
            self._keep(before, move.t)
        self._move += 1
        if self._move in self._kept:
            self._keep(after, move.end)

    def _keep(self, x: Tensor, t: Tensor) -> None:
        """x/alpha, its contrast reduced where the noise would leave the range of the data."""
        (low, high), sigma = self._range, float(self._process.noise_level(t))
        middle = (low + high) / 2
        contrast = min(1.0, (high - low) / (4 * sigma)) if sigma > 0 else 1.0
        shown = (x[: self._rows] / float(self._process.alpha(t)) - middle) * contrast + middle
        self._columns.append(drawable(self._data, self._data.to_reference(shown.float())))

    def picture(self, samples: Samples) -> Image.Image:
        """The picture, with the result as its last column."""
        return strip_picture([*self._columns, drawable(self._data, self._data.to_reference(samples.x[: self._rows]))])


def neighbor_picture(samples: Tensor, nearest: Tensor, columns: int = 12) -> Image.Image:
    """Samples, each above its nearest training example.

    Args:
        samples: uint8 images (N, C, H, W).
        nearest: of the same shape.
        columns: pairs in a row.
    """
    rows = [row for pair in zip(samples.split(columns), nearest.split(columns), strict=True) for row in pair]
    return _grid(torch.cat(rows), columns=min(columns, len(samples)))


def _scatter(points: Tensor) -> Image.Image:
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(5, 5), layout="constrained")
    if points.shape[1] == 1:
        figure.add_subplot(xlabel="$x$", ylabel="samples", title=f"{len(points)} samples").hist(points[:, 0].cpu(), bins=50)
    else:
        axes = figure.add_subplot(aspect="equal", xlabel="$x_1$", ylabel="$x_2$", title=f"{len(points)} samples")
        axes.scatter(points[:, 0].cpu(), points[:, 1].cpu(), s=4, alpha=0.5, linewidths=0)
    return figure_picture(figure)


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
    metadata.add_itxt("Description", caption)
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
    step = trainer.global_step
    path = Path(trainer.default_root_dir) / key / f"step_{step:07d}.png"
    with tolerating_full_disk(path):
        save_picture(picture, path, caption)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [picture], step=step, caption=[caption])
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, pil_to_tensor(picture), step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(str(logger.run_id), picture, key=key, step=step)
    return path
