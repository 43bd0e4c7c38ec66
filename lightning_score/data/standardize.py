"""Standardization: increasing maps of the channels, with constants of the training data, which samples undo."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.tensors import Moments, moments, values_of_channels

Chunks = Callable[[], Iterable[Tensor]]
"""Gives data in chunks (n, C, ...), missing values NaN; called once for every pass over them."""
RESOLVED = 1e-12
"""A channel whose spread is a smaller part of its values is constant."""
SAMPLED = 1 << 19
"""Values of each channel, at most, whose median is found."""


class Standardization(ABC):
    """An increasing map of each channel, `z = (g(x) - shift) / spread`.

    Missing values, NaN, stay missing. `g` is the identity unless a class has its own.

    Attributes:
        shift: float64 (C,), once found.
        spread: float64 (C,), once found.
        domain: what values `g` takes, for messages.
    """

    far: bool = False
    shift: Tensor | None = None
    spread: Tensor | None = None
    domain: str = "finite"

    def fit(self, chunks: Chunks, place: str) -> None:
        """Finds the constants in training data, from a place that messages name."""
        self.prepare(chunks)
        found = self.constants(lambda: _known_moments((self.warp(chunk.double()) for chunk in chunks()), place))
        constant = found[1] <= RESOLVED * found[0].abs()
        self.use(found[0], torch.where(constant, 1.0, found[1]))

    def use(self, shift: Tensor, spread: Tensor) -> None:
        """Sets the constants, (C,) each."""
        self.shift, self.spread = shift.double(), spread.double()
        self.far = bool((shift.abs() > 4 * spread).any())
        self._made: dict[Any, tuple[Tensor, ...]] = {}

    def prepare(self, chunks: Chunks) -> None:
        """Finds the constants of `g`, if it has any."""

    @abstractmethod
    def constants(self, found: Callable[[], Moments]) -> tuple[Tensor, Tensor]:
        """The shift and the spread of each channel, from the moments of g(x)."""

    def allowed(self, x: Tensor) -> Tensor:
        """Which values have a g(x); missing ones do."""
        return ~x.isinf()

    def check(self, chunks: Iterable[Tensor], rows: Any, missing: bool, place: str) -> None:
        """Raises `InputError` if a value is NaN or infinite, or outside of the domain.

        Args:
            chunks: all data in chunks.
            rows: the row of each example in the files, (n,).
            missing: whether NaN is allowed.
            place: where the data are, for the message.
        """
        nan = infinite = other = before = total = 0
        first = ""
        for chunk in chunks:
            unknown = chunk.isnan() & (not missing)
            wrong = unknown | ~self.allowed(chunk)
            if bool(wrong.any()):
                at = wrong.nonzero()[0].tolist()
                first = first or f"the first is {chunk[tuple(at)]:g} in row {rows[before + at[0]]} at {at[1:]}"
                nan, infinite = nan + int(unknown.sum()), infinite + int(chunk.isinf().sum())
                other += int((wrong & chunk.isfinite()).sum())
            before, total = before + len(chunk), total + chunk.numel()
        counts = ((nan, "NaN"), (infinite, "infinite"), (other, f"not {self.domain}"))
        found = ", ".join(f"{count} {kind}" for count, kind in counts if count)
        fix = "missing: nan leaves them out of the loss" if nan and not infinite + other else "correct them in the files"
        require(not first, f"{place}: of {total} values {found}; {first}; {fix}")

    def warp(self, x: Tensor) -> Tensor:
        """g(x)."""
        return x

    def unwarp(self, u: Tensor) -> Tensor:
        """The inverse of g."""
        return u

    def log_slope(self, u: Tensor) -> Tensor:
        """`log g'(x)` at u = g(x)."""
        return torch.zeros_like(u)

    def __call__(self, x: Tensor) -> Tensor:
        """Data (B, C, ...), float32 or float64, as float32 inputs of a model.

        A shift that is large beside the spread is subtracted in two parts: float32 is as exact as differences from the mean.
        """
        u = self.warp(x)
        high, _, scale, bias, _ = self._columns(u)
        return (u.sub(high).mul_(scale) if self.far else u.mul(scale)).add_(bias).float()

    def inverse(self, z: Tensor) -> Tensor:
        """Inputs of a model as data, float32."""
        return self.unwarp(self._unscaled(z)).float()

    def log_det(self, z: Tensor) -> Tensor:
        """`log |dz/dx|` of each example, from the inputs of a model (B, C, ...), without missing values: float64 (B,)."""
        u = self._unscaled(z.double())
        slopes = self.log_slope(u) - self._columns(u)[4].log()
        return torch.where(z.isnan(), 0.0, slopes).flatten(1).sum(1)

    def state_dict(self) -> dict[str, Any]:
        """The constants as plain numbers."""
        if self.shift is None or self.spread is None:
            return {}
        return {"kind": type(self).__name__, "shift": self.shift.tolist(), "spread": self.spread.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Uses the constants of `state_dict`.

        Raises:
            InputError: they are of another kind, or damaged.
        """
        kind = state.get("kind")
        require(
            kind == type(self).__name__,
            f"standardize={type(self).__name__}: the checkpoint was trained with {kind}; choose that",
        )
        shift, spread = (_numbers(state.get(name)) for name in ("shift", "spread"))
        require(len(shift) == len(spread) and bool((spread > 0).all()), "the checkpoint's constants of data are damaged")
        self.use(shift, spread)

    def _unscaled(self, z: Tensor) -> Tensor:
        high, low, _, _, spread = self._columns(z)
        return z.mul(spread).add_(low).add_(high)

    def _columns(self, x: Tensor) -> tuple[Tensor, ...]:
        """The constants in the precision and on the device of x, (C, 1, ...): the shift in two parts, the scale, ..."""
        if self.shift is None or self.spread is None:
            raise InputError("the constants of the data are not known yet: load the data first")
        key = (x.dtype, x.device, x.ndim)
        if key not in self._made:
            high = self.shift.to(x.dtype).double() if self.far else torch.zeros_like(self.shift)
            low, scale = self.shift - high, 1 / self.spread
            constants = (high, low, scale, -low * scale, self.spread)
            self._made[key] = tuple(each.reshape(-1, *[1] * (x.ndim - 2)).to(x.device, x.dtype) for each in constants)
        return self._made[key]


class MeanStd(Standardization):
    """Mean 0 and standard deviation 1 of each channel."""

    def constants(self, found: Callable[[], Moments]) -> tuple[Tensor, Tensor]:
        return found()[:2]


class MinMax(Standardization):
    """The lowest and the highest value of each channel become -1 and 1."""

    def constants(self, found: Callable[[], Moments]) -> tuple[Tensor, Tensor]:
        _, _, low, high = found()
        return (low + high) / 2, (high - low) / 2


class Asinh(MeanStd):
    """`asinh(x / softening)`, linear near 0 and logarithmic far from it, then mean 0 and standard deviation 1.

    For data of both signs and of many orders of magnitude (Lupton, Gunn and Szalay 1999, arXiv:astro-ph/9903081).

    Args:
        softening: where the logarithm begins, one number or one for each channel; null: the noise of each channel by
            its median absolute deviation, 1.4826 median |x - median|.
    """

    def __init__(self, softening: float | list[float] | None = None) -> None:
        given = None if softening is None else _numbers(softening)
        require(given is None or bool((given > 0).all()), f"softening={softening}: must be positive, or null")
        self.softening = given

    def prepare(self, chunks: Chunks) -> None:
        if self.softening is not None:
            given, channels = self.softening.tolist(), next(iter(chunks())).shape[1]
            require(
                len(given) in (1, channels), f"softening={given}: must be one number, or one for each of {channels} channels"
            )
            return
        kept, every = list[Tensor](), 1
        for chunk in chunks():
            kept.append(values_of_channels(chunk)[:, ::every].double().clone())  # a view would keep the whole chunk
            if sum(part.shape[1] for part in kept) > SAMPLED:
                kept, every = [torch.cat(kept, dim=1)[:, ::2].clone()], 2 * every
        x = torch.cat(kept, dim=1)
        found = 1.4826 * (x - x.nanmedian(1, keepdim=True).values).abs().nanmedian(1).values
        self.softening = torch.where(found > 0, found, _known_moments(chunks(), "Asinh").std.clamp(min=1e-30))

    def warp(self, x: Tensor) -> Tensor:
        return torch.asinh(x.double() / self._column(x))

    def unwarp(self, u: Tensor) -> Tensor:
        return torch.sinh(u) * self._column(u)

    def log_slope(self, u: Tensor) -> Tensor:
        return -self._column(u).log() - u.cosh().log()

    def inverse(self, z: Tensor) -> Tensor:
        return super().inverse(z.double())

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return state if not state or self.softening is None else {**state, "softening": self.softening.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.softening = _numbers(state.get("softening"))

    def _column(self, x: Tensor) -> Tensor:
        assert self.softening is not None  # noqa: S101
        return self.softening.to(x.device).reshape(-1, *[1] * (x.ndim - 2))


class Log(MeanStd):
    """`log x`, for positive data, then mean 0 and standard deviation 1."""

    domain = "positive (Asinh takes any sign)"

    def allowed(self, x: Tensor) -> Tensor:
        return ~x.isinf() & ((x > 0) | x.isnan())

    def warp(self, x: Tensor) -> Tensor:
        return x.double().log()

    def unwarp(self, u: Tensor) -> Tensor:
        return u.exp()

    def log_slope(self, u: Tensor) -> Tensor:
        return -u

    def inverse(self, z: Tensor) -> Tensor:
        return super().inverse(z.double())


class Constants(Standardization):
    """Given constants, `(x - shift) / spread`.

    Args:
        shift: what becomes 0, one number or one for each channel.
        spread: the length that becomes 1, one number or one for each channel.
    """

    def __init__(self, shift: float | list[float], spread: float | list[float]) -> None:
        self.given = torch.broadcast_tensors(_numbers(shift), _numbers(spread))
        require(bool((self.given[1] > 0).all()), f"spread={spread}: must be positive")

    def constants(self, found: Callable[[], Moments]) -> tuple[Tensor, Tensor]:
        return self.given[0], self.given[1]


class AsStored(Constants):
    """No standardization; for floats that have a suitable scale."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)


def _known_moments(chunks: Iterable[Tensor], place: str) -> Moments:
    """Raises `InputError` if a channel has no known value."""
    found = moments(chunks)
    unknown = found.std.isnan().nonzero().flatten().tolist()
    require(not unknown, f"{place}: no training example has a known value in the channels {unknown}; leave them out")
    return found


def _numbers(value: Any) -> Tensor:
    """One number or several as float64 (C,)."""
    numbers: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    plain = all(isinstance(number, int | float) and isfinite(number) for number in numbers) and len(numbers) > 0
    require(plain, f"{value!r}: must be one finite number, or one for each channel")
    return torch.tensor(numbers, dtype=torch.float64)
