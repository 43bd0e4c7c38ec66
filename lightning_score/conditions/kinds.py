"""Conditions: what a model is given besides noisy data, each with a value that means "no condition"."""

from abc import ABC
from collections.abc import Callable, Sequence
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_score.errors import require


class Known(nn.Module):
    """Conditions (B, ...) and which of their numbers are known, (B, 2, ...), zero and zero where they are NaN."""

    def forward(self, y: Tensor) -> Tensor:
        known = ~y.isnan()
        return torch.stack([torch.where(known, y, 0.0), known.to(y.dtype)], dim=1)


class VectorEmbedding(nn.Module):
    """`W_2 silu(W_1 [y, known])`, with y zero where it is not known.

    Args:
        size: how many numbers.
        width: size of the result.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.known = Known()
        self.linear1 = nn.Linear(2 * size, width)
        self.linear2 = nn.Linear(width, width)

    def forward(self, y: Tensor) -> Tensor:
        both = self.known(y).flatten(1).to(self.linear1.weight.dtype)
        return self.linear2(F.silu(self.linear1(both)))


class Condition(ABC):
    """A kind of condition y: one tensor for a batch, (B, *shape), with a value that means "no condition".

    A network is given a condition as a vector, which joins the features of the noise level, as channels, which join the
    input of the network, or as both. Numbers that are not known are NaN; "no condition" is a row of which none is known.
    Every parameter of the constructor is kept as an attribute of the same name, from which `settings` are made.

    Attributes:
        shape: the shape of the condition of one example, () for a class label.
        dtype: of the tensor.
        channels: number of channels that join the input of the network; 0 for none.
        num_classes: number of classes of a class label; 0 for any other condition.
        names: names of its numbers or parts; none by default.
    """

    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    channels: int = 0
    num_classes: int = 0
    names: Sequence[str] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The class path and the arguments, as a config and a checkpoint hold them."""
        path, takes = f"{type(self).__module__}.{type(self).__qualname__}", signature(type(self)).parameters
        missing = [name for name in takes if not hasattr(self, name)]
        require(not missing, f"{path}: keep the parameter {', '.join(missing)} as an attribute, as self.size = size")
        return {"class_path": path, "init_args": {name: _plain(getattr(self, name)) for name in takes}}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={getattr(self, name, None)!r}" for name in signature(type(self)).parameters)
        return f"{type(self).__name__}({arguments})"

    def empty(self, n: int, device: torch.device | str | None = None) -> Tensor:
        """n rows that mean "no condition", (n, *shape)."""
        return torch.full((n, *self.shape), torch.nan, dtype=self.dtype, device=device)

    def is_empty(self, y: Tensor) -> Tensor:
        """Which rows mean "no condition", (B,)."""
        return y.flatten(1).isnan().all(1)

    def drop(self, y: Tensor, probability: float) -> Tensor:
        """Each row with a probability replaced by "no condition", as in training for classifier-free guidance."""
        dropped = torch.rand(len(y), device=y.device) < probability
        return torch.where(dropped.reshape(-1, *[1] * (y.ndim - 1)), self.empty(1, y.device).to(y.dtype), y)

    def check(self, y: Tensor, empty: bool = True, values: bool = True) -> None:
        """Raises `InputError` unless `y` holds conditions of this kind, one or more.

        Args:
            y: the conditions.
            empty: whether rows may mean "no condition".
            values: check the values, too, not only shape and type.
        """
        found = tuple(y.shape[1:])
        require(
            y.is_floating_point() and y.ndim > 0 and found == self.shape and len(y) > 0,
            f"condition: has shape {found} and {y.dtype}; must be one row of floats of shape {self.shape} per sample, as in "
            "training",
        )
        if values:
            require(not bool(y.isinf().any()), "condition: holds infinite values; give finite numbers, or NaN where unknown")
            none = [] if empty else self.is_empty(y).nonzero().flatten().tolist()
            require(
                not none,
                f"condition: row {none[0] if none else 0} is NaN, which means no condition, but the model was trained with "
                "every condition (label_dropout=0): give numbers, or train with label_dropout=0.1",
            )

    def embedding(self, width: int) -> nn.Module | None:
        """Makes the module that maps conditions (B, *shape) to vectors (B, width); None if there are only channels."""
        return None

    def planes(self, y: Tensor, size: Sequence[int]) -> Tensor:
        """The channels that join an input of a spatial size, (B, channels, *size)."""
        return y.new_zeros(len(y), 0, *size)

    def arrays(self) -> list["Condition"]:
        """The parts that have the axes of the data."""
        return [self] if self.channels else []

    def moved(self, y: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
        """Conditions whose arrays, (B, *shape) each, are moved, as the examples to which they belong."""
        return move(y) if self.channels else y


class ClassLabel(Condition):
    """A class label, int64 (B,), from 0 to num_classes - 1; num_classes means "no class".

    Args:
        num_classes: number of classes, 1 or more.
    """

    dtype = torch.int64

    def __init__(self, num_classes: int) -> None:
        require(num_classes >= 1, f"num_classes={num_classes}: must be the number of classes, 1 or more")
        self.num_classes = num_classes

    def empty(self, n: int, device: torch.device | str | None = None) -> Tensor:
        return torch.full((n,), self.num_classes, device=device)

    def is_empty(self, y: Tensor) -> Tensor:
        return y == self.num_classes

    def check(self, y: Tensor, empty: bool = True, values: bool = True) -> None:
        require(
            y.dtype == torch.int64 and y.ndim == 1 and len(y) > 0,
            f"labels of {y.dtype} and shape {tuple(y.shape)}: must be one integer per sample, torch.int64",
        )
        if values:
            last = self.num_classes - (not empty)
            wrong, no_class = y[(y < 0) | (y > last)].unique()[:9].tolist(), f", or {last} for no class" * empty
            require(not wrong, f"labels {wrong}: the model knows the classes 0 to {self.num_classes - 1}{no_class}")

    def embedding(self, width: int) -> nn.Module:
        return nn.Embedding(self.num_classes + 1, width)


class Vector(Condition):
    """A vector of numbers, float (B, size), standardized like the data.

    Args:
        size: how many numbers, 1 or more.
        names: their names; none by default.
    """

    def __init__(self, size: int, names: Sequence[str] = ()) -> None:
        require(size >= 1, f"size={size}: must be how many numbers the condition has, 1 or more")
        require(len(names) in (0, size), f"names={list(names)}: must be one for each of the {size} numbers, or none")
        self.size, self.shape, self.names = size, (size,), list(names)

    def embedding(self, width: int) -> nn.Module:
        return VectorEmbedding(self.size, width)


class Array(Condition):
    """An image, signal or volume of the same or another resolution, float (B, channels, ...), which is resized and joined
    with the input of the network.

    Args:
        shape: [channels, ...], as many axes as the data have.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        require(
            len(shape) in (2, 3, 4) and min(shape) > 0,
            f"shape={list(shape)}: must hold positive sizes, [channels, length], [channels, height, width] or [channels, "
            "depth, height, width]",
        )
        self.shape = tuple(shape)
        self.channels = 2 * shape[0]

    def planes(self, y: Tensor, size: Sequence[int]) -> Tensor:
        """Each channel, zero where it is not known, and where it is known."""
        require(
            y.ndim == 2 + len(size),
            f"condition: has shape {list(y.shape[1:])}; must have as many axes as the data, whose shape is [channels, "
            f"{', '.join(map(str, size))}]; give other numbers as a Vector",
        )
        both = Known()(y).flatten(1, 2)
        return both if both.shape[2:] == tuple(size) else F.interpolate(both, tuple(size), mode="nearest-exact")


class Several(Condition):
    """Several conditions at once, packed into one vector of floats per example, (B, total).

    Args:
        parts: the conditions, two or more.
        names: their names, as the arrays of a file are called; condition0, condition1, ... by default.
    """

    def __init__(self, parts: Sequence[Condition], names: Sequence[str] = ()) -> None:
        require(len(parts) >= 2, f"parts={list(parts)}: must be two or more conditions; use one as it is")
        self.parts = list(parts)
        self.names = list(names) or [f"condition{k}" for k in range(len(parts))]
        require(
            len(set(self.names)) == len(self.parts),
            f"names={self.names}: must be one name for each of the {len(self.parts)} parts, all different",
        )
        self.sizes = [prod(part.shape) for part in parts]
        self.shape = (sum(self.sizes),)
        self.channels = sum(part.channels for part in parts)

    def named(self) -> list[tuple[str, Condition]]:
        """The parts with their names."""
        return list(zip(self.names, self.parts, strict=True))

    def pack(self, values: Sequence[Tensor]) -> Tensor:
        """One condition per part, each (B, *shape of the part), as one, (B, total)."""
        empty = [part.is_empty(y) for part, y in zip(self.parts, values, strict=True)]
        rows = [y.float().flatten(1) if y.ndim > 1 else y.float()[:, None] for y in values]
        return torch.cat([row.masked_fill(none[:, None], torch.nan) for row, none in zip(rows, empty, strict=True)], dim=1)

    def unpack(self, y: Tensor) -> list[Tensor]:
        """The inverse of `pack`."""
        return [self._part(part, rows) for part, rows in zip(self.parts, y.split(self.sizes, dim=1), strict=True)]

    def check(self, y: Tensor, empty: bool = True, values: bool = True) -> None:
        super().check(y, empty, values)
        for part, rows, value in zip(self.parts, y.split(self.sizes, dim=1), self.unpack(y), strict=True):
            whole = not (part.num_classes and values) or bool((rows.isnan() | (rows == rows.round())).all())
            require(whole, "condition: holds class labels that are not whole numbers")
            part.check(value, values=values)

    def embedding(self, width: int) -> nn.Module | None:
        modules = [part.embedding(width) for part in self.parts]
        return None if all(module is None for module in modules) else SeveralEmbedding(self, modules)

    def planes(self, y: Tensor, size: Sequence[int]) -> Tensor:
        values = zip(self.parts, self.unpack(y), strict=True)
        return torch.cat([part.planes(value, size) for part, value in values], dim=1)

    def arrays(self) -> list[Condition]:
        return [found for part in self.parts for found in part.arrays()]

    def moved(self, y: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
        return self.pack([part.moved(value, move) for part, value in zip(self.parts, self.unpack(y), strict=True)])

    @staticmethod
    def _part(part: Condition, rows: Tensor) -> Tensor:
        rows = rows.reshape(len(rows), *part.shape)
        if part.dtype.is_floating_point:
            return rows
        return torch.where(rows.isnan(), part.empty(1, rows.device), rows.nan_to_num().to(part.dtype))


class SeveralEmbedding(nn.Module):
    """The sum of the vectors of several conditions.

    Args:
        condition: the conditions.
        modules: the embedding of each part; None for a part without one.
    """

    def __init__(self, condition: Several, modules: Sequence[nn.Module | None]) -> None:
        super().__init__()
        self.condition = condition
        self.parts = nn.ModuleList(module or nn.Identity() for module in modules)
        self.used = [module is not None for module in modules]

    def forward(self, y: Tensor) -> Tensor:
        values = zip(self.parts, self.condition.unpack(y), self.used, strict=True)
        return torch.stack([module(value) for module, value, used in values if used]).sum(0)


def condition_of(num_classes: int, condition: Condition | None = None) -> Condition | None:
    """The condition, if it is given, or else that of data with classes; None without classes."""
    return ClassLabel(num_classes) if num_classes and condition is None else condition


def _plain(value: Any) -> Any:
    """An argument of a condition as plain values."""
    if isinstance(value, Condition):
        return value.settings
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
