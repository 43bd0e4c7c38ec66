"""Arrays in files, given on the command line."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.files import read_arrays


def read_array(path: str) -> Tensor:
    """The array of a file, (n, ...): one PNG, (1, C, H, W) bytes; or `x` or the only array of an NPY or NPZ.

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
        return torch.tensor(content[name])
    except InputError:
        raise
    except Exception as error:  # PIL, zipfile and numpy raise different errors
        raise InputError(f"{path}: not a readable {kind[1:].upper()} file of numbers ({error})") from error


def _read_png(path: str) -> Tensor:
    from PIL import Image

    image = Image.open(path)
    require(
        not image.mode.startswith("I"),
        f"{path}: has 16 bits per pixel; give a PNG with 8 bits, or floats in the range of the data as an NPY",
    )
    pixels = np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).unsqueeze(0)
