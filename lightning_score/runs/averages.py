"""Averages of the weights whose length is chosen after training: kept ones, and any other as a combination of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lightning_score.errors import InputError, require
from lightning_score.files import read_tensors

FOLDER = "averages"
"""The folder of the snapshots in a run folder."""
STATE, LENGTH = "averages", "ema_length"
"""Entries of a checkpoint: the averages that are kept by length, and the length of an average in place of the weights."""
FIRST = 16
"""Steps between the first snapshots."""
SHORTEST, LONGEST = 1e-4, 0.28
"""The smallest and the largest length; a uniform average has 1/sqrt(12) = 0.289."""
FAR = 0.5
"""The largest relative error of a profile that is not refused."""
Kept = tuple[float, int]
"""The length of an average, and its step."""


def check_length(name: str, length: float) -> None:
    """Raises `InputError` unless a length is one of a power function that grows; `name` is what precedes it in messages."""
    require(SHORTEST <= length <= LONGEST, f"{name}{length:g}: must lie between {SHORTEST} and {LONGEST}, as in 0.05")


def exponent(length: float) -> float:
    """The exponent gamma of the power function t^gamma whose standard deviation is this fraction of the training.

    The positive root of (gamma + 1)/((gamma + 2)^2 (gamma + 3)) = length^2 (Karras et al. 2023, arXiv:2312.02696,
    section 3.1, where the length is sigma_rel).
    """
    inverse = length**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def kept_fraction(length: float, n: int) -> float:
    """The fraction beta_n = (1 - 1/n)^(gamma + 1) of the average that the n-th step keeps, n = 1, 2, ...: after it the
    weights of step k have the share (k/n)^(gamma + 1) - ((k - 1)/n)^(gamma + 1) (arXiv:2312.02696, section 3.1).
    """
    return float((1.0 - 1.0 / n) ** (exponent(length) + 1.0))


def combine(kept: Sequence[Kept], length: float, step: int) -> tuple[NDArray[np.float64], float]:
    """The average of a length at a step as a combination of kept ones, by least squares of their profiles in time.

    The profile of an average is p(t) = (gamma + 1) t^gamma / T^(gamma + 1) on [0, T]; of two with T_a <= T_b

        int p_a p_b dt = (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) (T_a/T_b)^gamma_b / T_b

    (arXiv:2312.02696, appendix C). The coefficients add up to 1, so that weights that do not change are exact: without this
    the error of the weights is ten times as large.

    Args:
        kept: lengths and steps of K averages.
        length: of the average.
        step: of the average.

    Returns:
        The coefficients, (K,), and the error of the profile relative to its norm. An average that is kept has error 0.
    """
    if (length, step) in kept:
        return np.array([float(each == (length, step)) for each in kept]), 0.0
    gamma, end = (np.array(column, dtype=float) for column in zip(*((exponent(x), n) for x, n in kept), strict=True))
    target, k = exponent(length), len(kept)
    products, onto = _products(gamma[:, None], end[:, None], gamma, end), _products(gamma, end, target, float(step))
    norm, scale = float(_products(target, step, target, step)), 1.0 / np.sqrt(np.diag(products))
    scale_of_sum = scale / scale.max()
    system = np.zeros((k + 1, k + 1))
    system[:k, :k] = products * scale * scale[:, None]
    system[k, :k] = system[:k, k] = scale_of_sum
    found = np.linalg.lstsq(system, np.append(onto * scale, 1.0 / scale.max()), rcond=1e-15)[0][:k] * scale
    square = norm - 2.0 * found @ onto + found @ products @ found
    return found, float(np.sqrt(max(square, 0.0) / norm))


def _products(gamma: Any, end: Any, other: Any, other_end: Any) -> Any:
    """The inner products of profiles, of which the one that ends earlier is cut."""
    later = np.where(end > other_end, gamma, other)
    first, last = np.minimum(end, other_end), np.maximum(end, other_end)
    return (gamma + 1) * (other + 1) / (gamma + other + 1) * (first / last) ** later / last


def interval(n: int, snapshots: int) -> int:
    """Steps between the snapshots that are kept at step n: it doubles when there would be more than `snapshots`."""
    steps = FIRST
    while n // steps > snapshots:
        steps *= 2
    return steps


def snapshot(folder: Path, n: int) -> Path:
    """The file of the averages of step n in a run folder."""
    return folder / FOLDER / f"step_{n:07d}.pt"


def thin(folder: Path, n: int, snapshots: int) -> None:
    """Removes the snapshots that are not kept at step n, those of later steps, from before the run resumed, included."""
    every = interval(n, snapshots)
    kept = {snapshot(folder, k).name for k in range(every, n + 1, every)}
    for file in (folder / FOLDER).glob("step_*"):
        if file.name not in kept:
            file.unlink(missing_ok=True)


class Averages:
    """The averages of a run up to one of its steps: those in a checkpoint, and the snapshots of earlier steps beside it.

    Args:
        path: the checkpoint.
        checkpoint: its content.
        step: the step whose averages are made, that of the checkpoint or of a snapshot; null: that of the checkpoint.

    Attributes:
        step: the step.
        kept: lengths and steps of what is kept until then.

    Raises:
        InputError: the run has kept none, or none at this step.
    """

    def __init__(self, path: Path, checkpoint: Mapping[str, Any], step: int | None = None) -> None:
        self._here, self._weights = checkpoint.get(STATE) or {}, checkpoint["state_dict"]
        fix = "train with `fit --ema.lengths '[0.05, 0.1]'`, and give a checkpoint in the folder of that run"
        self._last = int((checkpoint.get("averaging_state") or {}).get("n_averaged", 0))
        require(bool(self._here) and self._last > 0, f"{path}: the run has kept no averages of several lengths; {fix}")
        self._check(path, self._here)
        files = {int(file.stem[5:]): file for file in (path.parent / FOLDER).glob("step_*.pt") if file.stem[5:].isdigit()}
        self._files = {n: files[n] for n in sorted(files) if n < self._last}
        self.step, steps = self._last if step is None else step, [*self._files, self._last]
        require(self.step in steps, f"--step {self.step}: there are averages of the steps {', '.join(map(str, steps))}")
        self._steps = [n for n in steps if n <= self.step]
        self.kept = [(float(length), n) for n in self._steps for length in self._here]

    def error(self, length: float, name: str = "length=") -> float:
        """The relative error of the profile of an average of this length.

        Raises:
            InputError: it is out of range, or too far from the lengths that are kept.
        """
        check_length(name, length)
        error = combine(self.kept, length, self.step)[1]
        lengths = ", ".join(f"{each:g}" for each in self._here)
        far = f"too far from the lengths {lengths} of {len(self._steps)} steps (profile error {error:.2g})"
        require(error <= FAR, f"{name}{length:g}: {far}; give one between these, or train with a nearer one in ema.lengths")
        return error

    def make(self, *lengths: float, progress: bool = False) -> list[dict[str, Tensor]]:
        """The state of the model for each length, computed in double precision; each snapshot is read once.

        Args:
            lengths: the lengths.
            progress: show a progress bar.
        """
        shares = [dict(zip(self.kept, combine(self.kept, length, self.step)[0], strict=True)) for length in lengths]
        totals: list[dict[str, Tensor]] = [{} for _ in lengths]
        for n in tqdm(self._steps, "averages", disable=None if progress else True, leave=False):
            if any(share[float(length), n] for share in shares for length in self._here):
                for length, average in self._read(n).items():
                    for total, share in zip(totals, (each[float(length), n] for each in shares), strict=True):
                        _add(total, average, share)
        weights = self._weights
        return [{**weights, **{name: value.to(weights[name].dtype) for name, value in total.items()}} for total in totals]

    def _read(self, n: int) -> Mapping[float, Mapping[str, Tensor]]:
        """The averages of a step by their lengths."""
        if n == self._last:
            return self._here
        content = read_tensors(self._files[n])
        found: Any = content.get(STATE) if isinstance(content, dict) else None
        self._check(self._files[n], found)
        require({*found} == {*self._here}, f"{self._files[n]}: holds other lengths than the checkpoint; remove it")
        return found

    def _check(self, file: Path, found: Any) -> None:
        """Raises `InputError` unless a file holds averages of these weights."""
        try:
            fits = all(
                SHORTEST <= length <= LONGEST and value.shape == self._weights[name].shape
                for length, average in found.items()
                for name, value in average.items()
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{file}: its averages are damaged, or those of another model") from error
        require(fits, f"{file}: its averages are those of another model")


def _add(total: dict[str, Tensor], average: Mapping[str, Tensor], share: float) -> None:
    """Adds a share of an average to a sum in double precision."""
    for name, value in average.items() if share else ():
        if name not in total:
            total[name] = torch.zeros_like(value, dtype=torch.float64)
        total[name].add_(value, alpha=share)


def weights_name(length: float | None) -> str:
    """What records call averaged weights: `ema`, or `ema 0.07` for an average of a length."""
    return "ema" if length is None else f"ema {length:g}"
