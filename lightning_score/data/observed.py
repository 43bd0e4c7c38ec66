"""Conditions that are observations of the examples themselves, as in super-resolution."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lightning_score.conditions import Array, Condition, Vector
from lightning_score.errors import require
from lightning_score.observations import LinearOperator
from lightning_score.seeds import derive_seed, seeded

if TYPE_CHECKING:
    from lightning_score.data.base import ScoreData


class Observed(NamedTuple):
    """The condition y = A x + s z of an example x as the model sees it: transformed, with its augmentation.

    Fields: operator (A), noise_std (s, in the model's units).
    """

    operator: LinearOperator
    noise_std: float

    def condition(self, shape: Sequence[int]) -> Condition:
        """What kind of condition y is: an array if it has as many axes as an example, or else a vector.

        Raises:
            InputError: examples of this shape cannot be observed.
        """
        observed = self.operator.observed_shape(shape)
        require(
            len(observed) in (1, len(shape)),
            f"given={type(self.operator).__name__}: observes shape {list(observed)} of examples of shape {list(shape)}; "
            "must be a vector, or have as many axes as an example",
        )
        return Vector(observed[0]) if len(observed) == 1 else Array(observed)

    def __call__(self, x: Tensor) -> Tensor:
        """The conditions of transformed examples x (B, *shape)."""
        y = self.operator.apply(x)
        return y + self.noise_std * torch.randn_like(y) if self.noise_std else y

    def from_units(self, values: Tensor, data: "ScoreData") -> Tensor:
        """Observations A x of stored examples as those of transformed ones, A transform(x) for any x with this A x: the same
        for all of them where the transform is affine, with one factor for all numbers that an entry of y observes.
        """
        with seeded(derive_seed()):  # of dequantization
            return self.operator.apply(data.transform(False)(self.operator.lift(values.float(), data.shape)))

    def to_units(self, y: Tensor, data: "ScoreData") -> Tensor:
        """The inverse of `from_units`; one step of Newton's method undoes that `to_reference` rounds images to bytes."""
        values = self.operator.apply(data.to_reference(self.operator.lift(y, data.shape)).float())
        found, next_found = (self.from_units(each, data) for each in (values, values + 1))
        slope = next_found - found
        return torch.where(slope.abs() > 1e-12, values + (y - found) / slope, values)

    def require_units(self, values: Tensor, data: "ScoreData") -> None:
        """Raises `InputError` unless A transform(x) is the same for an x with these values of A x and another."""

        def observed(x: Tensor) -> Tensor:
            with seeded(derive_seed()):  # the same noise of dequantization
                return self.operator.apply(data.transform(False)(x))

        x = self.operator.lift(values[:1].float().nan_to_num(), data.shape)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x) * (float(x.abs().mean()) or 1.0)
        hidden = noise - self.operator.lift(self.operator.apply(noise), data.shape)
        change, usual = ((observed(x + part) - observed(x)).abs().max() for part in (hidden, noise))
        require(
            bool(change <= 1e-2 * usual),
            f"given={type(self.operator).__name__}: observations in the units of the data do not determine those of "
            "standardized data: the standardization is not linear, or differs among averaged numbers; use Constants",
        )
