"""Augmentations of arrays: changes that leave the law of the data as it is, and noise that becomes a part of the data.

Axes have names, from the last one: x, y, z. So a signal (C, L) has x, a field (C, H, W) has y and x, and a volume
(C, D, H, W) has z, y and x. Channels are scalars: their values move, and do not change.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lightning_score.conditions import Condition
from lightning_score.errors import require

if TYPE_CHECKING:
    from lightning_score.data.base import ScoreData

Axis = Literal["x", "y", "z"]
NAMES = ("x", "y", "z")
"""The axes from the last one."""


class ArrayAugmentation(ABC):
    """A random change of examples, each drawn anew in every epoch, from the seed of its batch.

    A class defines `draw` and `change`, for training examples and, alike, the conditions that are arrays; or `noisy`, which
    applies to held-out examples, too.

    Attributes:
        noise: what noise `noisy` adds, for those who report the density of the data; nothing if none.
    """

    noise: str = ""

    @abstractmethod
    def check(self, data: "ScoreData", x: Tensor) -> None:
        """Raises `InputError` if it cannot be used with the data, of which `x` are some stored examples."""

    def noisy(self, x: Tensor) -> Tensor:
        """Stored examples (B, *shape) with noise that becomes a part of the data."""
        return x

    def draw(self, n: int, shape: Sequence[int], device: torch.device) -> Tensor | None:
        """Random changes of n examples of a shape, (n, ...); None for no change."""
        return None

    def change(self, x: Tensor, drawn: Tensor) -> Tensor:
        """Examples, or their conditions, (B, C, ...), with the changes made."""
        return x


def _moved_conditions(data: "ScoreData") -> list[Condition]:
    """The conditions that change with the examples; observations are made of changed examples."""
    return data.condition.arrays() if data.condition is not None and data.given is None else []


class _Moves(ArrayAugmentation, ABC):
    """Moves the values of examples along axes.

    Args:
        axes: their names.
    """

    def __init__(self, axes: Sequence[Axis]) -> None:
        name = type(self).__name__
        require(len(axes) > 0 and len({*axes}) == len(axes), f"{name}: axes={list(axes)}: must be different axes, as in [x]")
        self.axes = list(axes)
        self.dims = [-1 - NAMES.index(axis) for axis in axes]

    def check(self, data: "ScoreData", x: Tensor) -> None:
        name, spatial = type(self).__name__, len(data.shape) - 1
        has = ", ".join(NAMES[:spatial][::-1]) or "none"
        require(
            max(-dim for dim in self.dims) <= spatial,
            f"{name}: axes={self.axes}: the data have the shape {list(data.shape)}, and so the axes: {has}",
        )
        self.check_shape(data.shape, "the data have")
        for part in _moved_conditions(data):
            require(len(part.shape) == spatial + 1, f"{name}: cannot change a condition of shape {list(part.shape)} alike")
            self.check_shape(part.shape, "the condition has")

    def check_shape(self, shape: Sequence[int], what: str) -> None:
        """Raises `InputError` if arrays of a shape, with channels first, cannot be changed."""


class Flips(_Moves):
    """Flips each of the axes with probability 1/2.

    Args:
        axes: their names, as in [x, y].
    """

    def draw(self, n: int, shape: Sequence[int], device: torch.device) -> Tensor:
        return torch.randint(2, (n, len(self.dims)), device=device)

    def change(self, x: Tensor, drawn: Tensor) -> Tensor:
        for dim, flipped in zip(self.dims, drawn.unbind(1), strict=True):
            x = torch.where(flipped.reshape(-1, *[1] * (x.ndim - 1)) > 0, x.flip(dim), x)
        return x


class Rolls(_Moves):
    """Shifts by a random number of places along each of the axes, which are periodic: what leaves one end enters the other.

    Args:
        axes: their names, as in [x].
    """

    def check(self, data: "ScoreData", x: Tensor) -> None:
        super().check(data, x)
        for part in _moved_conditions(data):
            sizes = [[shape[dim] for dim in self.dims] for shape in (data.shape, part.shape)]
            require(
                sizes[0] == sizes[1],
                f"Rolls: axes={self.axes}: the data have the sizes {sizes[0]} along them and the condition {sizes[1]}; must "
                "be the same, to shift both alike",
            )

    def draw(self, n: int, shape: Sequence[int], device: torch.device) -> Tensor:
        return torch.stack([torch.randint(shape[dim], (n,), device=device) for dim in self.dims], 1)

    def change(self, x: Tensor, drawn: Tensor) -> Tensor:
        for dim, places in zip(self.dims, drawn.unbind(1), strict=True):
            rows = (torch.arange(x.shape[dim], device=x.device) - places[:, None]) % x.shape[dim]
            size = [len(x), *[1] * (x.ndim - 1)]
            size[dim] = -1
            x = x.take_along_dim(rows.reshape(size), dim)
        return x


class Rotations(_Moves):
    """Turns by 0, 90, 180 or 270 degrees, each with probability 1/4.

    Args:
        plane: the names of two axes of the same size, as in [x, y].
    """

    def __init__(self, plane: Sequence[Axis] = ("x", "y")) -> None:
        require(len(plane) == 2, f"Rotations: plane={list(plane)}: must be two axes, as in [x, y]")
        super().__init__(plane)

    def check_shape(self, shape: Sequence[int], what: str) -> None:
        first, second = (shape[dim] for dim in self.dims)
        require(
            first == second,
            f"Rotations: plane={self.axes}: {what} the sizes {first} and {second} along these axes; must be equal: give "
            "Flips, or windows that are square",
        )

    def draw(self, n: int, shape: Sequence[int], device: torch.device) -> Tensor:
        return torch.randint(4, (n,), device=device)

    def change(self, x: Tensor, drawn: Tensor) -> Tensor:
        changed = x.clone()
        for turns in (1, 2, 3):
            rows = (drawn == turns).nonzero()[:, 0]
            changed[rows] = x[rows].rot90(turns, self.dims)
        return changed


class _Noise(ArrayAugmentation, ABC):
    """Noise on stored numbers."""

    def noisy(self, x: Tensor) -> Tensor:
        x = x if x.is_floating_point() else x.float()
        return x + self.noise_like(x)

    @abstractmethod
    def noise_like(self, x: Tensor) -> Tensor:
        """Noise for examples (B, *shape)."""

    def check(self, data: "ScoreData", x: Tensor) -> None:
        require(
            data.levels is None,
            f"{type(self).__name__}: {type(data).__name__} has gray levels; use --data.dequantize true instead",
        )


class GaussianNoise(_Noise):
    """Adds noise N(0, std^2) to training and held-out examples.

    It becomes a part of the data: the model learns, and likelihoods are those of, the law of the noisy data, and samples are
    as noisy. Metrics compare with the data without it.

    Args:
        std: in the units of the stored data, one number or one for each channel.
    """

    def __init__(self, std: float | list[float]) -> None:
        each = [std] if isinstance(std, int | float) else std
        require(len(each) > 0 and all(0 < one < torch.inf for one in each), f"std={std}: must be above 0, as in 0.1")
        self.std = each
        self.noise = f"Gaussian noise of standard deviation {', '.join(f'{one:g}' for one in each)}"

    def check(self, data: "ScoreData", x: Tensor) -> None:
        super().check(data, x)
        channels = data.shape[0]
        require(
            len(self.std) in (1, channels),
            f"GaussianNoise: std={self.std}: must be one number, or one for each of the {channels} channels",
        )

    def noise_like(self, x: Tensor) -> Tensor:
        std = torch.tensor(self.std, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 2))
        return std * torch.randn_like(x)


class Dequantize(_Noise):
    """Adds noise U[-1/2, 1/2) to stored integers, of training and held-out examples, which gives them a density.

    Its integral over the unit around an integer is the probability of that integer, so that the mean log density in stored
    units is at most the mean log probability (Theis et al. 2016, 1511.01844, section 3.1). Rounding undoes it.
    """

    noise = "uniform noise between -1/2 and 1/2"

    def check(self, data: "ScoreData", x: Tensor) -> None:
        super().check(data, x)
        whole = not x.is_floating_point() or bool((x.round() == x)[~x.isnan()].all())
        require(whole, "Dequantize: the data are not whole numbers; GaussianNoise(std) adds noise to any")

    def noise_like(self, x: Tensor) -> Tensor:
        return torch.rand_like(x) - 0.5
