"""Observations in files: arrays, which may come with the operator and the noise that they were made with."""

import json
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.files import read_arrays, replacing
from lightning_score.observations.base import Operator
from lightning_score.observations.noise import ObservationNoise

PARTS = ("operator", "noise")
"""The parts of an observation that a file may hold with it, as settings."""
ARRAY = "array"
"""In settings, the key of a mapping that stands for an array of the file, by its name."""


class StoredObservation(NamedTuple):
    """An observation as a file holds it.

    Fields: y (n, ...), bytes or floats; data_range (low and high of the data, or None); settings (class_path and init_args
    of `operator` and `noise`, as far as they are there).
    """

    y: Tensor
    data_range: tuple[float, float] | None
    settings: dict[str, dict[str, Any]]


def read_array(path: str) -> Tensor:
    """The array of a file, (n, ...): one PNG, (1, C, H, W) bytes; or `x` or the only array of an NPY or NPZ.

    Raises:
        InputError: the file is missing, of another kind, or holds several arrays none of which is `x`.
    """
    content = _arrays(path)
    name = "x" if "x" in content else ", ".join(content)
    require(name in content, f"{path}: holds the arrays {name}; rename the one to use to x")
    return _tensor(content[name], path)


def read_observation(path: str) -> StoredObservation:
    """The observation in a PNG, NPY or NPZ: in an NPZ `y`, `x` or the only array, with `data_range`, `operator` and `noise`
    as `write_observation` writes them. No class is imported and no code is run.

    Raises:
        InputError: the file is missing, of another kind, damaged, or holds no observation.
    """
    content = _arrays(path)
    settings = {name: _read_settings(content, name, path) for name in PARTS if name in content}
    ends = content.get("data_range")
    named = [
        name for name in content if name not in (*PARTS, "data_range") and not name.startswith(tuple(f"{p}." for p in PARTS))
    ]
    found = next((name for name in ("y", "x", *(named if len(named) == 1 else ())) if name in content), None)
    if found is None:
        raise InputError(f"{path}: holds the arrays {', '.join(content)}; name the observation y")
    require(
        ends is None or (ends.shape == (2,) and ends.dtype.kind in "iuf" and bool(ends[0] < ends[1])),
        f"{path}: data_range={ends}: must be two increasing numbers, as [-1, 1]",
    )
    return StoredObservation(
        _tensor(content[found], path), None if ends is None else (float(ends[0]), float(ends[1])), settings
    )


def write_observation(
    path: str | Path,
    y: Tensor,
    operator: Operator | None = None,
    noise: ObservationNoise | None = None,
    data_range: Sequence[float] | None = None,
) -> None:
    """Writes an observation for `predict --observation`, an NPZ with the settings of what it was made with.

    Args:
        path: the file, which ends with .npz.
        y: one or several observations, (n, ...), as the operator returns them; or bytes.
        operator: A; its attributes have the names of its arguments.
        noise: the noise, likewise.
        data_range: low and high of the data, which bytes 0 and 255 stand for.

    Raises:
        InputError: an argument has another name than the attribute that holds it, or is no plain value.
    """
    require(str(path).endswith(".npz"), f"{path}: must end with .npz")
    arrays: dict[str, Any] = {"y": y.detach().cpu().numpy()}
    arrays |= {} if data_range is None else {"data_range": np.array(data_range, np.float64)}
    for name, part in (("operator", operator), ("noise", noise)):
        if part is not None:
            plain, own = settings(part, name)
            arrays |= {name: np.array(json.dumps(plain)), **own}
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def to_floats(values: Tensor, data_range: Sequence[float] | None, path: str, option: str = "data_range") -> Tensor:
    """Bytes as floats in the range of the data; floats as they are.

    Args:
        values: of a file.
        data_range: low and high, the values of bytes 0 and 255.
        path: of the file, for errors.
        option: what gives the range, for errors.

    Raises:
        InputError: they are neither bytes nor floats, or the range is not known.
    """
    require(
        values.dtype == torch.uint8 or values.is_floating_point(),
        f"{path}: holds {str(values.dtype).removeprefix('torch.')}; give bytes (uint8), 0 to 255, or floats in "
        "the range of the data",
    )
    if values.dtype != torch.uint8:
        return values.float()
    if data_range is None:
        raise InputError(f"{option}=None: {path} holds bytes; give the range of the data, as [-1, 1]")
    low, high = data_range
    return low + (high - low) * (values / 255)


def settings(part: Operator | ObservationNoise, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The class_path and init_args of a part, and the arrays that these name, whose names begin with that of the part.

    Raises:
        InputError: an argument has another name than the attribute that holds it, or is no plain value.
    """
    arrays: dict[str, np.ndarray] = {}
    return _settings(part, name, arrays), arrays


def require_range(
    y: Tensor, operator: Operator, noise: ObservationNoise, shape: Sequence[int], ends: Sequence[float], place: str
) -> None:
    """Raises `InputError` if observations are beyond the range of the data, as far as the operator keeps that: where it maps
    constants to themselves, as means and blurs do. Gaussian noise may leave it by five standard deviations.
    """
    low, high = ends
    if not keeps_constants(operator, shape, ends):
        return
    slack = 0.05 * (high - low) + 5 * float(noise.variance(y, y).amax().sqrt())
    first, last = (float(end) for end in y.aminmax())
    require(
        low - slack <= first and last <= high + slack,
        f"{place}: holds values from {first:g} to {last:g}, outside data_range={[low, high]}; rescale them to the range of "
        "the data",
    )


def keeps_constants(operator: Operator, shape: Sequence[int], ends: Sequence[float]) -> bool:
    """Whether A(x) = c for samples whose numbers are all c, so that observations are in the range of the data."""
    constant = torch.tensor([*ends, 0.0]).reshape(-1, *[1] * len(shape)).expand(-1, *shape)
    y = operator.apply(constant.contiguous())
    return bool((y.flatten(1) - constant.flatten(1)[:, :1]).abs().max() < 1e-3 * max(map(abs, ends)))


def _settings(part: Any, place: str, arrays: dict[str, Any]) -> Any:
    """A part as plain values; its tensors are added to the arrays, under the name of their place."""
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, list | tuple):
        return [_settings(value, f"{place}.{i}", arrays) for i, value in enumerate(part)]
    if isinstance(part, Tensor | np.ndarray):
        values = np.asarray(part.detach().cpu() if isinstance(part, Tensor) else part)
        arrays[place] = values
        return {ARRAY: place}
    kind, names = type(part), signature(type(part)).parameters
    missing = [name for name in names if not hasattr(part, name)]
    require(
        isinstance(part, Operator | ObservationNoise) and not missing,
        f"{place}={kind.__name__}: " + (f"keep its argument as self.{missing[0]}" if missing else "cannot be written"),
    )
    arguments = {name: _settings(getattr(part, name), f"{place}.{name}", arrays) for name in names}
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}


def _read_settings(content: dict[str, np.ndarray], name: str, path: str) -> dict[str, Any]:
    """Settings from JSON text, in which arrays of the file are nested lists."""

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(each) for each in value]
        if not isinstance(value, dict):
            return value
        if value.keys() == {ARRAY}:
            require(value[ARRAY] in content, f"{path}: {name} needs the array {value[ARRAY]}, which is not there")
            return _tensor(content[value[ARRAY]], path).tolist()
        return {key: filled(each) for key, each in value.items()}

    try:
        found: Any = filled(json.loads(str(content[name])))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {name} is not JSON text, as write_observation writes it ({error})") from error
    if isinstance(found, dict) and isinstance(found.get("class_path"), str) and found.keys() <= {"class_path", "init_args"}:
        return found
    raise InputError(f"{path}: {name} must hold a class_path and init_args, as write_observation writes them")


def _arrays(path: str) -> dict[str, np.ndarray]:
    """The arrays of a file; a PNG is `x`."""
    require(Path(path).is_file(), f"{path}: does not exist; give a PNG, NPY or NPZ file")
    kind = Path(path).suffix.lower()
    require(kind in (".png", ".npy", ".npz"), f"{path}: must be a PNG, NPY or NPZ file")
    try:
        return {"x": _read_png(path)} if kind == ".png" else read_arrays(Path(path))
    except InputError:
        raise
    except Exception as error:  # PIL raises different errors
        raise InputError(f"{path}: not a readable {kind[1:].upper()} file of numbers ({error})") from error


def _tensor(values: np.ndarray, path: str) -> Tensor:
    fits = values.dtype.kind in "biuf" and values.dtype.itemsize <= 8
    require(fits, f"{path}: holds {values.dtype}; must hold numbers of at most 64 bits")
    return torch.tensor(values.astype(values.dtype.newbyteorder("=")))


def _read_png(path: str) -> np.ndarray:
    from PIL import Image

    image = Image.open(path)
    require(
        not image.mode.startswith("I"),
        f"{path}: has 16 bits per pixel; give a PNG with 8 bits, or floats in the range of the data as an NPY",
    )
    pixels = np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)[None])
