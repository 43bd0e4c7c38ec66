"""Inverse problems of images given as files: inpainting, colorization, super-resolution."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

from lightning_score.errors import require
from lightning_score.files import LocalPath
from lightning_score.guidance.base import ModelFacts
from lightning_score.guidance.inverse import PseudoInverse
from lightning_score.guidance.observed import Given
from lightning_score.observations import BlockMean, Gray, LinearOperator, Mask
from lightning_score.observations.files import read_array, require_range, to_floats
from lightning_score.observations.operators import require_mask


@dataclass(eq=False, repr=False)
class Restoration(PseudoInverse, ABC):
    """Pseudo-inverse guidance by observations in a file.

    Args:
        observed: path of a PNG, or of an NPY or NPZ with an array (n, *shape) (in an NPZ the array `x`, as `predict` writes
            it, or the only one): floats are in the data range already, bytes are brought there.
        data_range: low and high, the values of bytes 0 and 255, those of the data; floats need none.

    Raises:
        InputError: a file cannot be read, or a number is out of range; in `check`: file and samples do not fit.
    """

    operator: LinearOperator = field(init=False)
    observation: Given | None = field(init=False, default=None)
    observed: LocalPath
    _: KW_ONLY
    data_range: Sequence[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        low_high = self.data_range
        require(
            low_high is None or (len(low_high) == 2 and low_high[0] < low_high[1]),
            f"data_range={low_high}: must be two increasing numbers, as [-1, 1], or null",
        )
        self.observation = to_floats(read_array(self.observed), low_high, self.observed)
        self.operator = self.make_operator()

    @abstractmethod
    def make_operator(self) -> LinearOperator:
        """A, for the images `observation`."""

    def check(self, trained: ModelFacts) -> None:
        super().check(trained)
        if self.data_range is not None and self.noise is not None:
            require_range(self.given(), self.operator, self.noise, trained.shape, self.data_range, self.observed)


@dataclass(eq=False, repr=False)
class Inpainting(Restoration):
    """Fills the unknown pixels of images of which the others are known; their values in the file do not matter.

    Args:
        mask: path of a PNG, NPY or NPZ, of the size of one sample or, for all channels, of one channel: white or non-zero
            where a pixel is known.

    Raises:
        InputError: a file cannot be read or the mask does not fit; in `check`: file and samples do not fit.
    """

    mask: LocalPath

    def __post_init__(self) -> None:
        super().__post_init__()
        self.observation = self.operator.apply(self.given())

    def make_operator(self) -> LinearOperator:
        operator = Mask(self.mask)
        require_mask(operator.mask, self.given().shape[1:], f"mask={self.mask}")
        return operator


class Colorization(Restoration):
    """Gives colors to gray images, (n, 1, H, W): the mean over the channels is known."""

    def make_operator(self) -> LinearOperator:
        return Gray()


@dataclass(eq=False, repr=False)
class SuperResolution(Restoration):
    """Enlarges small images, (n, C, H/f, W/f): the means over blocks of pixels are known.

    Args:
        factor: f, at least 2.
    """

    factor: int = 2

    def make_operator(self) -> LinearOperator:
        return BlockMean(self.factor)
