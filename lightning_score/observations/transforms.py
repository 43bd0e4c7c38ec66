"""Operators of signals, images and volumes: blur, Fourier samples (MRI), projections (CT), diffraction (phase retrieval)."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_score.errors import require
from lightning_score.observations.base import LinearOperator, Operator
from lightning_score.observations.operators import Numbers, numbers, require_mask, without_first_ones
from lightning_score.observations.solving import spectral_inverse

MODES = {"circular": "circular", "reflect": "reflect", "zeros": "constant"}
"""Borders, and their names for `torch.nn.functional.pad`."""


def _check_channels(name: str, shape: Sequence[int], sizes: Sequence[int] = (2, 3, 4)) -> None:
    kinds = {2: "signals [C, L]", 3: "images [C, H, W]", 4: "volumes [C, D, H, W]"}
    message = f"operator={name}: observes {' and '.join(kinds[size] for size in sizes)}, not samples of shape {list(shape)}"
    require(len(shape) in sizes, message)


class Blur(LinearOperator):
    """The convolution of each channel of a signal, an image or a volume with a kernel: y(i) = sum_j k(j) x(i - j).

    With the circular border A A^T is diagonal in Fourier space and solved there; with others it is solved by iteration.

    Args:
        std: standard deviation of a Gaussian kernel, in pixels; it is cut at 4 standard deviations and sums to 1.
        kernel: instead of a Gaussian, numbers k, or the path of a PNG, NPY or NPZ, with the axes of an image or, where the
            first would be of size 1, without them; its center is entry n // 2 of n.
        border: what continues the image beyond its border: circular (its other side), reflect (its mirror image) or zeros.

    Raises:
        InputError: a number is out of range or the kernel is not one; in `check`: it does not fit the samples.
    """

    def __init__(
        self,
        std: float = 1.0,
        kernel: Numbers | None = None,
        border: Literal["circular", "reflect", "zeros"] = "circular",
    ):
        require(0 < std < math.inf, f"std={std}: must be above 0, the standard deviation of the blur in pixels, as in 1.5")
        require(border in MODES, f"border={border}: must be {', '.join(MODES)}")
        self.std, self.kernel, self.border = std, None, border
        self._transform: tuple[Any, Tensor] | None = None
        if kernel is not None:
            self.kernel = without_first_ones(numbers("kernel", kernel))
            require(bool(self.kernel.any()), f"kernel of shape {list(self.kernel.shape)}: all entries are zero")

    def _kernel(self, dimensions: int) -> Tensor:
        if self.kernel is not None:
            return self.kernel.reshape([1] * (dimensions - self.kernel.ndim) + list(self.kernel.shape))
        radius = round(4 * self.std)
        line = torch.exp(-((torch.arange(-radius, radius + 1, dtype=torch.float64) / self.std) ** 2) / 2)
        kernel = line
        for _ in range(dimensions - 1):
            kernel = kernel.unsqueeze(-1) * line
        return kernel / kernel.sum()

    def check(self, shape: Sequence[int]) -> None:
        _check_channels("Blur", shape)
        kernel = self._kernel(len(shape) - 1)
        require(
            kernel.ndim == len(shape) - 1,
            f"kernel of shape {list(kernel.shape)}: must have at most {len(shape) - 1} axes, for samples {list(shape)}",
        )
        require(
            self.border != "reflect" or all(k // 2 < n for k, n in zip(kernel.shape, shape[1:], strict=True)),
            f"border=reflect: a kernel of shape {list(kernel.shape)} reaches over samples of shape {list(shape)}; make it "
            "smaller, or set border to circular or zeros",
        )

    def _transfer(self, sizes: Sequence[int], like: Tensor) -> Tensor:
        """The Fourier transform of the kernel on a circular grid of the given sizes."""
        key = (tuple(sizes), like.dtype, like.device)
        if self._transform is not None and self._transform[0] == key:
            return self._transform[1]
        kernel = self._kernel(len(sizes))
        places = [(torch.arange(k) - k // 2) % n for k, n in zip(kernel.shape, sizes, strict=True)]
        grid = torch.meshgrid(*places, indexing="ij")
        with torch.inference_mode(False):  # it is kept
            found = torch.fft.rfftn(kernel.new_zeros(*sizes).index_put(grid, kernel, accumulate=True).to(like))
        self._transform = key, found
        return found

    def apply(self, x: Tensor) -> Tensor:
        self._shape, sizes = tuple(x.shape[1:]), x.shape[2:]
        margins = [0 if self.border == "circular" else k // 2 for k in self._kernel(len(sizes)).shape]
        pads = [margin for margin in reversed(margins) for _ in range(2)]
        padded = F.pad(x, pads, MODES[self.border]) if any(pads) else x
        axes = tuple(range(2, x.ndim))
        spectrum = torch.fft.rfftn(padded, dim=axes) * self._transfer(padded.shape[2:], x)
        blurred = torch.fft.irfftn(spectrum, s=padded.shape[2:], dim=axes)
        for axis, (margin, n) in enumerate(zip(margins, sizes, strict=True), 2):
            blurred = blurred.narrow(axis, margin, n)
        return blurred

    def gram_solve(self, v: Tensor, r2: Tensor, s2: Tensor | float) -> Tensor:
        if self.border != "circular":
            return super().gram_solve(v, r2, s2)
        axes, power = tuple(range(2, v.ndim)), self._transfer(v.shape[2:], v).abs().square()
        rounding = (v[0].numel() * torch.finfo(v.dtype).eps) ** 2  # as torch.linalg.pinv has it
        inverse = spectral_inverse(power, v, r2, s2, rounding)
        return torch.fft.irfftn(inverse * torch.fft.rfftn(v, dim=axes), s=v.shape[2:], dim=axes)


class Fourier(LinearOperator):
    """Some frequencies of a signal, image or volume, as in MRI: (2 C m,), all real parts, then all imaginary parts.

    The transform is orthonormal and centered in both domains: frequency 0 and the origin are entry n // 2 of n (as in
    fastMRI). Of complex images A A^T = I. Of real ones a frequency and its negative are conjugate: its eigenvalues are
    1, 1/2 and 0, so that a few iterations solve its equations.

    Args:
        mask: true or non-zero where a frequency is sampled, or the path of a PNG, NPY or NPZ; axes of size 1 and missing
            first axes stand for all.
        acceleration: without a mask, a: n/a of the n positions along the last axis are sampled.
        center: the share of n at its center that is always sampled.
        seed: selects the other positions at random.
        complex_images: the first half of the channels holds the real, the second half the imaginary parts.

    Raises:
        InputError: a number is out of range, or nothing is sampled; in `check`: the mask does not fit the samples.
    """

    def __init__(
        self,
        mask: Numbers | None = None,
        acceleration: float = 4.0,
        center: float = 0.08,
        seed: int = 0,
        complex_images: bool = False,
    ):
        require(1 <= acceleration < math.inf, f"acceleration={acceleration}: must be 1 (all frequencies) or more, as in 4")
        require(0 <= center <= 1, f"center={center}: must be from 0 to 1, the share of frequencies that is always sampled")
        self.mask = None if mask is None else without_first_ones(numbers("mask", mask) != 0)
        require(
            self.mask is None or bool(self.mask.any()), "mask: all entries are zero, so nothing is sampled; set some to 1"
        )
        self.acceleration, self.center, self.seed, self.complex_images = acceleration, center, seed, complex_images

    def sampled(self, sizes: Sequence[int]) -> Tensor:
        """Which of the centered frequencies are sampled, in the given sizes."""
        if self.mask is not None:
            return self.mask.expand(*sizes)
        n = sizes[-1]
        count, middle = max(round(n / self.acceleration), 1), round(n * self.center)
        order = torch.rand(n, generator=torch.Generator().manual_seed(self.seed))
        order[n // 2 - middle // 2 :][:middle] = -1.0
        return torch.zeros(n, dtype=torch.bool).index_fill(0, order.argsort()[: max(count, middle)], True).expand(*sizes)

    def check(self, shape: Sequence[int]) -> None:
        _check_channels("Fourier", shape)
        require(
            not self.complex_images or shape[0] % 2 == 0,
            f"complex_images=true: samples of shape {list(shape)} have no channels for imaginary parts; set it to false",
        )
        if self.mask is not None:
            require_mask(self.mask, shape[1:])

    def apply(self, x: Tensor) -> Tensor:
        self._shape, axes = tuple(x.shape[1:]), tuple(range(2, x.ndim))
        z = torch.complex(*x.chunk(2, 1)) if self.complex_images else x
        spectrum = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(z, axes), dim=axes, norm="ortho"), axes)
        known = spectrum.flatten(2).index_select(2, self.sampled(x.shape[2:]).flatten().nonzero().flatten().to(x.device))
        return torch.stack([known.real, known.imag], 1).flatten(1)


class Radon(LinearOperator):
    """Projections of an image, or of each slice of a volume, at several angles, as in sparse-view CT: (C, ..., angles, D).

    A detector's number is the line integral, in pixels, by bilinear interpolation at steps of a pixel; the D detectors cover
    the diagonal. Angles, centers and order are those of `skimage.transform.radon(image, theta, circle=False).T`.

    Args:
        angles: in degrees; a number n means n angles with equal steps from 0 to below 180.

    Raises:
        InputError: there are no angles, or one is not finite; in `check`: the samples are no images or volumes.
    """

    def __init__(self, angles: int | Sequence[float] = 30):
        if isinstance(angles, int):
            require(angles > 0, f"angles={angles}: must be at least 1, the number of angles, or a list of them in degrees")
            angles = [180 * i / angles for i in range(angles)]
        self.angles = torch.as_tensor(angles, dtype=torch.float64)
        fits = self.angles.ndim == 1 and len(self.angles) > 0 and bool(self.angles.isfinite().all())
        require(fits, f"angles={angles}: must be a number of angles, or a list of them in degrees, as [0, 45, 90]")
        self._matrix: Tensor | None = None

    def check(self, shape: Sequence[int]) -> None:
        _check_channels("Radon", shape, (3, 4))

    def apply(self, x: Tensor) -> Tensor:
        matrix = self._matrix_for(x)
        return torch.sparse.mm(matrix, x.reshape(-1, matrix.shape[1]).mT).mT.reshape(*x.shape[:-2], len(self.angles), -1)

    def _matrix_for(self, x: Tensor) -> Tensor:
        shape = tuple(x.shape[1:])
        with torch.inference_mode(False):  # it is kept
            if self._matrix is None or self._shape != shape or self._matrix.dtype != x.dtype:
                self._matrix, self._shape = self._projections(*shape[-2:]), shape
            self._matrix = self._matrix.to(x)
        return self._matrix

    def _projections(self, height: int, width: int) -> Tensor:
        """The sparse matrix (angles D, height width)."""
        count = math.ceil(math.sqrt(2) * max(height, width))
        along = torch.arange(count, dtype=torch.float64) - count // 2
        rows, columns, values = [], [], []
        for i, angle in enumerate(torch.deg2rad(self.angles)):
            sine, cosine = angle.sin(), angle.cos()
            u = height // 2 + cosine * along[:, None] - sine * along  # (step, detector)
            w = width // 2 + sine * along[:, None] + cosine * along
            for du in (0, 1):
                for dw in (0, 1):
                    near_u, near_w = u.floor() + du, w.floor() + dw
                    weight = (1 - (u - near_u).abs()) * (1 - (w - near_w).abs())
                    inside = (near_u >= 0) & (near_u < height) & (near_w >= 0) & (near_w < width) & (weight > 1e-9)
                    rows.append(i * count + inside.nonzero()[:, 1])
                    columns.append((near_u * width + near_w)[inside].long())
                    values.append(weight[inside])
        places = torch.stack([torch.cat(rows), torch.cat(columns)])
        size = (len(self.angles) * count, height * width)
        return torch.sparse_coo_tensor(places, torch.cat(values), size, check_invariants=True).coalesce()


class PhaseRetrieval(Operator):
    """The magnitudes of the Fourier transform of a signal, image or volume, as of far-field diffraction: not linear.

    The image is surrounded by zeros first, to `oversampling` times its sizes, and the transform is orthonormal.

    Args:
        oversampling: 2 determines an image up to a shift and an inversion.

    Raises:
        InputError: the oversampling is below 1; in `check`: the samples have no channels.
    """

    def __init__(self, oversampling: float = 2.0):
        require(1 <= oversampling < math.inf, f"oversampling={oversampling}: must be 1 (none) or more, as in 2")
        self.oversampling = oversampling

    def check(self, shape: Sequence[int]) -> None:
        _check_channels("PhaseRetrieval", shape)

    def apply(self, x: Tensor) -> Tensor:
        sizes = [math.ceil(self.oversampling * n) for n in x.shape[2:]]
        return torch.fft.fftn(x, s=sizes, dim=tuple(range(2, x.ndim)), norm="ortho").abs()


class Composition(LinearOperator):
    """Linear operators one after another, as a blur before a mask.

    Args:
        parts: the operators, the one applied to the sample first.

    Raises:
        InputError: there are none; in `check`: one does not fit what the one before it observes.
    """

    def __init__(self, parts: Sequence[LinearOperator]):
        require(len(parts) > 0, "parts=[]: must hold at least one operator")
        self.parts = parts

    def check(self, shape: Sequence[int]) -> None:
        for part in self.parts:
            shape = part.observed_shape(shape)

    def apply(self, x: Tensor) -> Tensor:
        self._shape = tuple(x.shape[1:])
        for part in self.parts:
            x = part.apply(x)
        return x
