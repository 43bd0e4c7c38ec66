"""Inverse problems of images given as files: inpainting, colorization, super-resolution."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.files import LocalPath, read_arrays
from lightning_score.guidance.base import ModelFacts
from lightning_score.guidance.inverse import InverseProblem
from lightning_score.guidance.operators import BlockMean, Gray, LinearOperator, Mask


def read_array(path: str) -> Tensor:
    """The array of a file, (n, ...): one PNG, (1, C, H, W) bytes; or a NPY or NPZ, from which `x` or the only array is read.

    Raises:
        InputError: the file is missing, of another kind, or holds several arrays none of which is `x`.
    """
    require(Path(path).is_file(), f"{path}: does not exist; give a PNG, NPY or NPZ file")
    kind = Path(path).suffix.lower()
    require(kind in (".png", ".npy", ".npz"), f"{path}: must be a PNG, NPY or NPZ file")
    try:
        if kind == ".png":
            return _read_png(path)
        content = read_arrays(Path(path))
        name = "x" if "x" in content else ", ".join(content)
        require(name in content, f"{path}: holds the arrays {name}; rename the one to use to x")
        return torch.from_numpy(content[name])
    except InputError:
        raise
    except Exception as error:  # PIL, zipfile and numpy raise different errors
        raise InputError(f"{path}: not a readable {kind[1:].upper()} file of numbers ({error})") from error


def _read_png(path: str) -> Tensor:
    from PIL import Image

    image = Image.open(path)
    require(
        not image.mode.startswith("I"),
        f"{path}: has 16 bits per pixel; give a PNG with 8 bits, or floats in the range of the data as a NPY",
    )
    pixels = np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).unsqueeze(0)


class Restoration(InverseProblem):
    """An inverse problem whose observations are in a file, by pseudo-inverse guidance; see InverseProblem.

    Args:
        observed: path of a PNG, or of a NPY or NPZ with an array (n, C, H, W) (in a NPZ the array `x`, as `predict` writes
            it, or the only one): floats are in the data range already, bytes are brought there. Sample k has number k mod n.
        data_range: low and high, the values of bytes 0 and 255, those of the data; floats need none.
        data_std: d, the standard deviation of the data about their mean.
        noise_std: s, the standard deviation of the observation's noise; 0: known exactly.
        strength: 1 is the approximation as derived.
        backprop: take the Jacobian from the network; see InverseProblem.

    Raises:
        InputError: a file cannot be read, or a number is out of range; in `check`: file and samples do not fit.
    """

    def __init__(
        self,
        observed: LocalPath,
        data_range: Sequence[float] | None = None,
        data_std: float = 0.5,
        noise_std: float = 0.0,
        strength: float = 1.0,
        backprop: bool = False,
    ):
        super().__init__(data_std, noise_std, strength, backprop)
        values = read_array(observed)
        require(
            data_range is None or (len(data_range) == 2 and data_range[0] < data_range[1]),
            f"data_range={data_range}: must be two increasing numbers, as [-1, 1], or null",
        )
        require(
            values.dtype == torch.uint8 or values.is_floating_point(),
            f"{observed}: holds {str(values.dtype).removeprefix('torch.')}; give bytes (uint8), 0 to 255, or floats in the "
            "range of the data",
        )
        self._observed, self._data_range = observed, data_range
        if values.dtype == torch.uint8:
            if data_range is None:
                raise InputError(f"data_range=None: {observed} holds bytes; give the range of the data, as [-1, 1]")
            values = data_range[0] + (data_range[1] - data_range[0]) * (values / 255)
        self.observation = values.float()

    def check(self, trained: ModelFacts) -> None:
        super().check(trained)
        if self._data_range is None:
            return
        low, high = self._data_range
        slack = 0.05 * (high - low) + 5 * self.noise_std
        first, last = (float(end) for end in self.observation.aminmax())
        require(
            low - slack <= first and last <= high + slack,
            f"{self._observed}: holds values from {first:g} to {last:g}, outside data_range={list(self._data_range)}; "
            "rescale them to the range of the data",
        )


class Inpainting(Restoration):
    """Fills the unknown pixels of images of which the others are known.

    Args:
        observed: path of a PNG, or of a NPY or NPZ with an array (n, *shape) (in a NPZ the array `x`, as `predict` writes
            it, or the only one): floats are in the data range already, bytes are brought there. Sample k has number k mod n.
            The values at unknown pixels do not matter.
        mask: path of a PNG, NPY or NPZ, of the size of one sample or, for all channels, of one channel: white or non-zero
            where a pixel is known.
        data_range: low and high, the values of bytes 0 and 255, those of the data; floats need none.
        data_std: d, the standard deviation of the data about their mean.
        noise_std: s, the standard deviation of the observation's noise; 0: known exactly.
        strength: 1 is the approximation as derived.
        backprop: take the Jacobian from the network; see InverseProblem.

    Raises:
        InputError: a file cannot be read or the mask does not fit; in `check`: file and samples do not fit.
    """

    def __init__(
        self,
        observed: LocalPath,
        mask: LocalPath,
        data_range: Sequence[float] | None = None,
        data_std: float = 0.5,
        noise_std: float = 0.0,
        strength: float = 1.0,
        backprop: bool = False,
    ):
        super().__init__(observed, data_range, data_std, noise_std, strength, backprop)
        known, shape = read_array(mask), self.observation.shape[1:]
        given, known = list(known.shape), known.squeeze(0) if known.ndim > len(shape) else known
        require(
            known.ndim <= len(shape) and all(a in (1, b) for a, b in zip(known.shape[::-1], shape[::-1], strict=False)),
            f"mask={mask} of shape {given}: must fit {observed}, whose images have the shape {list(shape)}",
        )
        self._operator = Mask(known.expand(shape))
        self.observation = self._operator.apply(self.observation)

    @property
    def operator(self) -> LinearOperator:
        return self._operator


class Colorization(Restoration):
    """Gives colors to gray images: the mean over the channels is known.

    Args:
        observed: path of a gray PNG, or of a NPY or NPZ with an array (n, 1, H, W) (in a NPZ the array `x` or the only one):
            floats are in the data range already, bytes are brought there. Sample k has number k mod n.
        data_range: low and high, the values of bytes 0 and 255, those of the data; floats need none.
        data_std: d, the standard deviation of the data about their mean.
        noise_std: s, the standard deviation of the observation's noise; 0: known exactly.
        strength: 1 is the approximation as derived.
        backprop: take the Jacobian from the network; see InverseProblem.

    Raises:
        InputError: a file cannot be read, or a number is out of range; in `check`: file and samples do not fit.
    """

    @property
    def operator(self) -> LinearOperator:
        return Gray()


class SuperResolution(Restoration):
    """Enlarges small images: the means over blocks of pixels are known.

    Args:
        observed: path of a small PNG, or of a NPY or NPZ with an array (n, C, H/f, W/f) (in a NPZ the array `x` or the only
            one): floats are in the data range already, bytes are brought there. Sample k has number k mod n.
        factor: f, at least 2.
        data_range: low and high, the values of bytes 0 and 255, those of the data; floats need none.
        data_std: d, the standard deviation of the data about their mean.
        noise_std: s, the standard deviation of the observation's noise; 0: known exactly.
        strength: 1 is the approximation as derived.
        backprop: take the Jacobian from the network; see InverseProblem.

    Raises:
        InputError: a file cannot be read, or a number is out of range; in `check`: file and samples do not fit.
    """

    def __init__(
        self,
        observed: LocalPath,
        factor: int = 2,
        data_range: Sequence[float] | None = None,
        data_std: float = 0.5,
        noise_std: float = 0.0,
        strength: float = 1.0,
        backprop: bool = False,
    ):
        super().__init__(observed, data_range, data_std, noise_std, strength, backprop)
        self._operator = BlockMean(factor)

    @property
    def operator(self) -> LinearOperator:
        return self._operator
