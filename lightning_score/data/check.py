"""Checks of loaded data against the attributes that their class declares, made once, before anything is computed."""

from collections.abc import Sequence
from math import inf, isfinite, prod
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_score.conditions import Condition
from lightning_score.errors import InputError, require
from lightning_score.seeds import seeded

if TYPE_CHECKING:
    from lightning_score.data.base import ScoreData

WHOLE = 1 << 30
"""Bytes of examples that are checked as a whole; of more, evenly spaced rows are."""
SEEN = 64
"""Examples that are passed through `transform` and `to_reference`."""
DARK = 64
"""A data set whose brightest byte is below this is suspicious."""


def is_interval(ends: Any) -> bool:
    """Whether a value is two increasing finite numbers."""
    numbers = isinstance(ends, list | tuple) and len(ends) == 2 and all(isinstance(end, Real) for end in ends)
    return numbers and -inf < ends[0] < ends[1] < inf


def declared_shape(data: "ScoreData") -> tuple[int, ...]:
    """The shape that a data module declares.

    Raises:
        InputError: its attributes do not describe data.
    """
    name, shape, classes, levels = type(data).__name__, getattr(data, "shape", None), data.num_classes, data.levels
    require(
        isinstance(shape, Sequence) and len(shape) > 0 and all(type(n) is int and n > 0 for n in shape),
        f"{name}: shape={shape!r}: must be the sizes of one example, as in shape = (3, 32, 32)",
    )
    require(
        type(classes) is int and classes >= 0,
        f"{name}: num_classes={classes!r}: must be 0 (no labels) or the number of classes",
    )
    require(
        data.data_range is None or is_interval(data.data_range),
        f"{name}: data_range={data.data_range!r}: must be two increasing numbers, as in (-1, 1), or None if unbounded",
    )
    few = data.stored_dtype != torch.uint8 or (levels is not None and levels <= 256)
    require(
        few and (levels is None or (type(levels) is int and levels >= 2 and data.data_range is not None)),
        f"{name}: levels={levels!r}: must be a number of gray levels, 2 or more, of data with a data_range (bytes have at "
        "most 256), or None, for data other than bytes",
    )
    return tuple(data.shape)


def check_splits(data: "ScoreData", loaded: Any) -> None:
    """Compares the result of `load` with the declaration: types, shapes, labels, finiteness, range, and both splits.

    Args:
        data: the data module.
        loaded: the result of its `load`.

    Raises:
        InputError: they differ; the message names the class, the value found, the declared one, and the fix.
    """
    declared_shape(data)
    name = type(data).__name__
    require(
        isinstance(loaded, tuple) and len(loaded) == 2 and all(isinstance(p, tuple) and len(p) == 2 for p in loaded),
        f"{name}.load: gives {_kind(loaded)}, must give Splits(train=Examples(x, y), held_out=Examples(x, y))",
    )
    for split, (x, y) in zip(("train", "held_out"), loaded, strict=True):
        check_examples(data, split, x, y)
    if not _labeled(data):
        return
    seen = loaded[0][1].bincount(minlength=data.num_classes)
    unseen = [str(k) for k in range(data.num_classes) if seen[k] == 0]
    if unseen:
        rank_zero_warn(
            f"{name}: no training example has the label {', '.join(unseen[:5])}{', ...' * (len(unseen) > 5)} of "
            f"num_classes = {data.num_classes}: a conditional model cannot learn it"
        )


def check_examples(data: "ScoreData", split: str, x: Any, y: Any) -> None:
    """Raises `InputError` unless the examples of a split are as declared.

    Args:
        data: the data module.
        split: its name, for messages.
        x: the examples of the split, or some of them.
        y: their labels or other conditions.
    """
    place = f"{type(data).__name__}.load: {split}"
    for field, value in (("x", x), ("y", y)):
        tensor = isinstance(value, Tensor)
        require(tensor, f"{place}.{field} is a {_kind(value)}, must be a torch.Tensor: return torch.as_tensor({field})")
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        usual = not value.is_complex() and not str(value.dtype).startswith("torch.float8")
        require(
            plain and usual and not value.requires_grad,
            f"{place}.{field} is {value.dtype}, {value.layout}, on {value.device}{' with gradients' * value.requires_grad}, "
            "must be a plain tensor in main memory: return a dense one of a usual type, with .detach().cpu()",
        )
    require(x.ndim > 0 and len(x) > 0, f"{place} is empty: keep at least one example in it, as split_indices does")
    _check_shape(f"{place}.x", tuple(x.shape[1:]), tuple(data.shape))
    low, high = _ends(x if x.nbytes <= WHOLE else x[:: -(-x.nbytes // WHOLE)], data.missing)
    require(isfinite(low) and isfinite(high), f"{place}.x holds NaN or infinity: remove these examples in load")
    if data.stored_dtype is not None:
        _check_stored(data, f"{place}.x", x, low, high)
    for each in data.augment:
        each.check(data, x[:SEEN])
    if _labeled(data) or data.condition is None:
        _check_labels(data.num_classes, place, y, len(x))
    elif data.condition is not None:
        _check_conditions(data.condition, place, y, len(x))
    _check_seen(data, split, x)


def _ends(x: Tensor, missing: bool = False) -> tuple[float, float]:
    """The lowest and the highest value, NaN if there is one, unless values may be missing."""
    if missing:
        x = torch.cat([x[~x.isnan()], x.new_zeros(int(x.isnan().all()))])
    low, high = _ordered(x).aminmax()
    return float(low), float(high)


def _ordered(x: Tensor) -> Tensor:
    """The same numbers in a type that torch compares."""
    supported = x.is_floating_point() or x.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    return x if supported else x.long()


def _check_shape(place: str, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """The shape of an example."""
    fix = f"declare shape = {found}, or resize in load" if found else "return one example per row"
    if len(shape) == 3 and found == shape[1:] and shape[0] == 1:
        fix = "there is no channel axis; return x.unsqueeze(1)"
    elif len(shape) == 3 and found == (*shape[1:], shape[0]):
        fix = "channels come last; return x.permute(0, 3, 1, 2).contiguous()"
    require(found == shape, f"{place} has examples of shape {found}, but shape = {shape} is declared: {fix}")


def _check_stored(data: "ScoreData", place: str, x: Tensor, low: float, high: float) -> None:
    """The type and the range of stored bytes."""
    top = 255 if data.stored_dtype == torch.uint8 else (data.levels or 65536) - 1
    scale = f"{top} * x" if x.is_floating_point() and 0 <= low <= high <= 1 else f"x scaled to 0..{top}"
    require(
        x.dtype == data.stored_dtype,
        f"{place} is {x.dtype} from {low:g} to {high:g}, must be {data.stored_dtype} from 0 to {top}: return "
        f"({scale}).round().to({data.stored_dtype}), or derive from ScoreData with your own transform and to_reference",
    )
    if top > 255:
        require(high <= top, f"{place} has values up to {high:g}, but levels = {top + 1} are declared: declare more")
        return
    levels = data.levels or 256
    require(
        high in (0, 255) or high > (1 if levels == 256 else levels - 1),
        f"{place} has values up to {high:g} only, but {levels} levels spread over 0..255 are declared: return "
        f"lightning_score.data.images.spread(x, {levels if levels < 256 else int(high) + 1})",
    )
    if 0 < high < DARK:
        rank_zero_warn(f"{place} has values up to {high:g} only, of 255: images this dark are rare; check their scale")


def _check_labels(classes: int, place: str, y: Tensor, n: int) -> None:
    """One label of a declared class for each of n examples."""
    require(
        y.dtype == torch.int64 and y.ndim == 1,
        f"{place}.y is {y.dtype} of shape {tuple(y.shape)}, must be torch.int64 of shape ({n},): return "
        f"{'y.long()' if y.ndim == 1 else 'y.argmax(1) for one-hot labels, y.flatten().long() otherwise'}",
    )
    require(len(y) == n, f"{place} has {len(y)} labels for {n} examples: return one label per example")
    low, high = int(y.min()), int(y.max())
    fix = f"declare num_classes = {high + 1}" if low >= 0 else "number the classes from 0"
    require(
        low >= 0 and high < max(classes, 1),
        f"{place}.y has labels from {low} to {high}, but num_classes = {classes} is declared, which are "
        f"{f'0 to {classes - 1}: {fix}' if classes else f'zeros: {fix}, or return zeros for data without labels'}",
    )


def _labeled(data: "ScoreData") -> bool:
    """Whether the stored y are labels, zeros for unlabeled data; what is `given` of examples is not stored."""
    return data.condition is None or data.given is not None or bool(data.condition.num_classes)


def _check_conditions(condition: Condition, place: str, y: Tensor, n: int) -> None:
    """One condition for each of n examples."""
    require(len(y) == n, f"{place} has {len(y)} conditions for {n} examples: return one per example")
    try:
        condition.check(y if y.nbytes <= WHOLE else y[:: -(-y.nbytes // WHOLE)])
    except InputError as error:
        raise InputError(f"{place}.y: {error}") from error


def _check_seen(data: "ScoreData", split: str, x: Tensor) -> None:
    """The results of `transform` for some examples, with the lowest and the highest, and of `to_reference` for them."""
    n = max(1, min(SEEN, (1 << 24) // prod(data.shape), len(x)))
    some = _ordered(data.filled(x if x.nbytes <= WHOLE else x[:n])).flatten(1)
    stored = x[[*range(n), int(some.amax(1).argmax()), int(some.amin(1).argmin())]]
    kept = stored.clone()
    with seeded(0):
        for train in (True, False) if split == "train" else (False,):
            place = f"{type(data).__name__}.transform(train={train})"
            transform = data.transform(train)
            require(callable(transform), f"{place} gives a {_kind(transform)}, must give the function that is applied")
            seen = transform(stored)
            same = torch.equal(stored, kept) or torch.equal(stored.nan_to_num(), kept.nan_to_num())
            require(same, f"{place} changes the stored examples in place: let it return new tensors")
            _check_batch(data, place, seen, len(stored), train)
        back = data.to_reference(data.as_input(stored) if data.missing else seen.clone())
        _check_reference(data, data.filled(stored), back)


def _check_batch(data: "ScoreData", place: str, seen: Any, n: int, train: bool) -> None:
    """A batch for the model: float32 of the declared shape, finite and in the declared range."""
    require(isinstance(seen, Tensor), f"{place} gives a {_kind(seen)}, must give a torch.Tensor")
    found = tuple(seen.shape)
    require(
        found == (n, *data.shape),
        f"{place} gives the shape {found}, but {(n, *data.shape)} is declared: declare shape = {found[1:]}, or change the "
        "transform",
    )
    require(seen.dtype == torch.float32, f"{place} gives {seen.dtype}, must give torch.float32: end it with .float()")
    low, high = _ends(seen, data.missing)
    require(isfinite(low) and isfinite(high), f"{place} gives NaN or infinity")
    if data.data_range is None:
        return
    first, last = data.data_range
    declared = f"{place} gives values from {low:g} to {high:g}, but data_range = {(first, last)} is declared"
    slack = 1e-3 * (last - first)
    require(first - slack <= low and high <= last + slack, f"{declared}: scale them in transform, or declare their range")
    if train:
        return
    if high - low <= 0.501 * (last - first) and data.stored_dtype is None:
        rank_zero_warn(f"{declared}, to which pictures and measurements are scaled; declare their own range")
    if data.levels is not None and not data.dequantize:
        position = (seen.double() - first) / (last - first) * (data.levels - 1)
        require(
            float((position - position.round()).abs().max()) < 0.1,
            f"{place} gives values between the levels = {data.levels} that are declared, evenly spaced over data_range = "
            f"{(first, last)}: declare levels = None, or dequantize = True where it adds noise within a level",
        )


def _check_reference(data: "ScoreData", stored: Tensor, back: Any) -> None:
    """`to_reference` restores the stored form of examples, in which metrics compare."""
    place = f"{type(data).__name__}.to_reference"
    require(isinstance(back, Tensor), f"{place} gives a {_kind(back)}, must give a torch.Tensor")
    alike = back.dtype == stored.dtype or (back.is_floating_point() and stored.is_floating_point())
    require(
        alike and back.shape == stored.shape,
        f"{place} gives {back.dtype} of shape {tuple(back.shape[1:])}, but the examples are stored as {stored.dtype} of "
        f"shape {tuple(stored.shape[1:])}: return the stored form, as metrics compare both",
    )
    changed = float((back != stored).float().mean())
    require(
        data.stored_dtype != torch.uint8 or data.levels == 256 or changed < 0.01,
        f"{type(data).__name__}.load: {changed:.0%} of the bytes are none of the {data.levels} levels that are declared, "
        "round(255 k / (levels - 1)): declare levels = 256, or return such bytes",
    )
    (low, high), (back_low, back_high) = _ends(stored, data.missing), _ends(back, data.missing)
    apart = float((back.double() - stored.double()).abs().nanmean())
    require(
        apart <= 0.1 * (high - low) or high == low,
        f"{place} does not undo transform(train=False): stored values from {low:g} to {high:g} come back from "
        f"{back_low:g} to {back_high:g}; make it the inverse",
    )


def _kind(value: Any) -> str:
    """The type of a value as a user knows it."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
