"""Loaded data against what their class declares: one check, when they are first needed and before anything is computed."""

from collections.abc import Sequence
from math import isfinite, prod
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_score.errors import require

if TYPE_CHECKING:
    from lightning_score.data.base import Examples, ScoreData

WHOLE = 1 << 30
"""Bytes of examples that are looked at as a whole; of larger ones, evenly spaced rows are."""
SEEN = 64
"""Examples that are passed through `transform` and `to_reference`."""
DARK = 64
"""A data set whose brightest byte is below this is suspicious."""


def check_declared(data: "ScoreData") -> None:
    """Raises `InputError` unless the attributes that a data module declares describe data."""
    name, shape, ends, levels = type(data).__name__, getattr(data, "shape", None), data.data_range, data.levels
    require(
        isinstance(shape, Sequence) and len(shape) > 0 and all(_is_count(n) and n > 0 for n in shape),
        f"{name}: shape={shape!r}: must be the sizes of one example, as in shape = (3, 32, 32)",
    )
    require(
        _is_count(data.num_classes) and data.num_classes >= 0,
        f"{name}: num_classes={data.num_classes!r}: must be 0 (no labels) or the number of classes",
    )
    require(
        ends is None
        or (
            isinstance(ends, Sequence)
            and len(ends) == 2
            and all(isinstance(end, Real) and isfinite(end) for end in ends)
            and ends[0] < ends[1]
        ),
        f"{name}: data_range={ends!r}: must be two increasing numbers, as in (-1, 1), or None where it is unbounded",
    )
    require(
        levels is None or (_is_count(levels) and levels >= 2 and ends is not None),
        f"{name}: levels={levels!r}: must be a number of gray levels, at least 2, of data with a data_range, or None",
    )
    require(
        data.stored_dtype != torch.uint8 or (levels is not None and levels <= 256),
        f"{name}: levels={levels!r}: bytes have at most 256; declare no more, or derive from ScoreData",
    )


def declared_shape(data: "ScoreData") -> tuple[int, ...]:
    """The shape that a data module declares.

    Raises:
        InputError: its attributes do not describe data.
    """
    check_declared(data)
    return tuple(data.shape)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_splits(data: "ScoreData", loaded: Any) -> None:
    """Compares what `load` gives with the declaration: types, shapes, labels, finiteness, range, and both splits.

    Args:
        data: the data module.
        loaded: what its `load` gives.

    Raises:
        InputError: it is something else; the message names the class, what was found, what is declared, and the fix.
    """
    check_declared(data)
    name = type(data).__name__
    pairs = isinstance(loaded, tuple) and len(loaded) == 2 and all(isinstance(p, tuple) and len(p) == 2 for p in loaded)
    require(
        pairs,
        f"{name}.load: gives {_kind(loaded)}, must give Splits(train=Examples(x, y), held_out=Examples(x, y))",
    )
    for split, examples in zip(("train", "held_out"), loaded, strict=True):
        check_examples(data, split, examples)
    _check_classes(data, loaded[0][1])


def check_examples(data: "ScoreData", split: str, examples: "Examples") -> None:
    """Raises `InputError` unless the examples of a split are those that are declared.

    Args:
        data: the data module.
        split: its name, for messages.
        examples: those of the split, or some of them.
    """
    x, y = examples
    place = f"{type(data).__name__}.load: {split}"
    for field, value in (("x", x), ("y", y)):
        require(
            isinstance(value, Tensor),
            f"{place}.{field} is a {_kind(value)}, must be a torch.Tensor: return torch.as_tensor({field})",
        )
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        require(
            plain and not value.requires_grad and not str(value.dtype).startswith("torch.float8"),
            f"{place}.{field} is {value.dtype}, {value.layout}, on {value.device}{' with gradients' * value.requires_grad}, "
            "must be a plain tensor in main memory: return a dense one of a usual type, with .detach().cpu()",
        )
    require(x.ndim > 0 and len(x) > 0, f"{place} is empty: keep at least one example in it, as split_indices does")
    _check_shape(f"{place}.x", x, tuple(data.shape))
    rows = x if x.nbytes <= WHOLE else x[:: -(-x.nbytes // WHOLE)]
    low, high = _ends(rows)
    require(isfinite(low) and isfinite(high), f"{place}.x holds NaN or infinity: remove these examples in load")
    _check_stored(data, f"{place}.x", x, low, high)
    _check_labels(data, place, y, len(x))
    _check_seen(data, split, x)


def _ends(x: Tensor) -> tuple[float, float]:
    """The lowest and the highest value, NaN if there is one; of complex numbers, 0 and that of their sum."""
    if x.is_complex():
        return 0.0, float(x.abs().sum())
    plain = x.is_floating_point() or x.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    low, high = (x if plain else x.long()).aminmax()
    return float(low), float(high)


def _check_shape(place: str, x: Tensor, shape: tuple[int, ...]) -> None:
    found = tuple(x.shape[1:])
    if found == shape:
        return
    if len(shape) == 3 and found == shape[1:] and shape[0] == 1:
        fix = "there is no channel axis; return x.unsqueeze(1)"
    elif len(shape) == 3 and found == (*shape[1:], shape[0]):
        fix = "channels come last; return x.permute(0, 3, 1, 2).contiguous()"
    else:
        fix = f"declare shape = {found}, or resize in load" if found else "return one example per row"
    require(False, f"{place} has examples of shape {found}, but shape = {shape} is declared: {fix}")


def _check_stored(data: "ScoreData", place: str, x: Tensor, low: float, high: float) -> None:
    """The type and the range of what is stored, where the class fixes them."""
    if data.stored_dtype is None:
        return
    scale = "255 * x" if x.is_floating_point() and 0 <= low <= high <= 1 else "x scaled to 0..255"
    require(
        x.dtype == data.stored_dtype,
        f"{place} is {x.dtype} from {low:g} to {high:g}, must be {data.stored_dtype} from 0 to 255: return "
        f"({scale}).round().to(torch.uint8), or derive from ScoreData with a transform and to_reference of your own",
    )
    levels = data.levels
    unspread = 0 < high <= (1 if levels == 256 else levels - 1) and high < 255
    require(
        not unspread,
        f"{place} has values up to {high:g} only, but {levels} levels spread over 0..255 are declared: return "
        f"lightning_score.data.images.spread(x, {levels if levels < 256 else int(high) + 1})",
    )
    if 0 < high < DARK:
        rank_zero_warn(f"{place} has values up to {high:g} only, of 255: images this dark are rare; check their scale")


def _check_labels(data: "ScoreData", place: str, y: Tensor, n: int) -> None:
    require(
        y.dtype == torch.int64 and y.ndim == 1,
        f"{place}.y is {y.dtype} of shape {tuple(y.shape)}, must be torch.int64 of shape ({n},): return "
        f"{'y.long()' if y.ndim == 1 else 'y.argmax(1) for one-hot labels, y.flatten().long() otherwise'}",
    )
    require(len(y) == n, f"{place} has {len(y)} labels for {n} examples: return one label per example")
    low, high, classes = int(y.min()), int(y.max()), data.num_classes
    require(
        low >= 0 and high < max(classes, 1),
        f"{place}.y has labels from {low} to {high}, but num_classes = {classes} is declared, which are "
        f"{f'0 to {classes - 1}' if classes else 'zeros'}: "
        + (f"declare num_classes = {high + 1}" if low >= 0 else "number the classes from 0")
        + ("" if classes else ", or return zeros for data without labels"),
    )


def _check_classes(data: "ScoreData", y: Tensor) -> None:
    """Warns of classes that training never sees."""
    unseen = (y.bincount(minlength=data.num_classes) == 0).nonzero().flatten().tolist() if data.num_classes else []
    if unseen:
        rank_zero_warn(
            f"{type(data).__name__}: no training example has the label {', '.join(map(str, unseen[:5]))}"
            f"{', ...' if len(unseen) > 5 else ''} of num_classes = {data.num_classes}: a conditional model cannot learn it"
        )


def _check_seen(data: "ScoreData", split: str, x: Tensor) -> None:
    """What `transform` makes of some examples, the lowest and the highest among them, and `to_reference` of that."""
    n = max(1, min(SEEN, (1 << 24) // prod(data.shape), len(x)))
    some = x if x.nbytes <= WHOLE and not x.is_complex() else x[:n]
    ends = [] if x.is_complex() else [int(some.flatten(1).amax(1).argmax()), int(some.flatten(1).amin(1).argmin())]
    stored = x[[*range(n), *ends]]
    kept = stored.clone()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for train in (True, False) if split == "train" else (False,):
            place = f"{type(data).__name__}.transform(train={train})"
            transform = data.transform(train)
            require(callable(transform), f"{place} gives a {_kind(transform)}, must give the function that is applied")
            seen = transform(stored)
            require(torch.equal(stored, kept), f"{place} changes the stored examples in place: let it return new tensors")
            _check_batch(data, place, seen, len(stored), train)
        _check_reference(data, stored, data.to_reference(seen.clone()))


def _check_batch(data: "ScoreData", place: str, seen: Any, n: int, train: bool) -> None:
    """What the model is given: float32 of the declared shape, finite and in the declared range."""
    wanted = (n, *data.shape)
    require(isinstance(seen, Tensor), f"{place} gives a {_kind(seen)}, must give a torch.Tensor")
    require(
        tuple(seen.shape) == wanted,
        f"{place} gives the shape {tuple(seen.shape)}, but {wanted} is declared: declare "
        f"shape = {tuple(seen.shape[1:])}, or change the transform",
    )
    require(seen.dtype == torch.float32, f"{place} gives {seen.dtype}, must give torch.float32: end it with .float()")
    low, high = _ends(seen)
    require(isfinite(low) and isfinite(high), f"{place} gives NaN or infinity")
    if data.data_range is not None:
        first, last = data.data_range
        slack = 1e-3 * (last - first)
        require(
            first - slack <= low and high <= last + slack,
            f"{place} gives values from {low:g} to {high:g}, but data_range = {tuple(data.data_range)} is declared: scale "
            "them in transform, or declare their range",
        )
        if not train and high - low <= 0.501 * (last - first) and data.stored_dtype is None:
            rank_zero_warn(
                f"{place} gives values from {low:g} to {high:g}, but data_range = {tuple(data.data_range)} is declared, "
                "to which pictures and measurements are scaled; declare their own range"
            )
        if not train and data.levels is not None and not data.dequantize:
            position = (seen.double() - first) / (last - first) * (data.levels - 1)
            require(
                float((position - position.round()).abs().max()) < 0.1,
                f"{place} gives values between the levels = {data.levels} that are declared, evenly spaced over "
                f"data_range = {tuple(data.data_range)}: declare levels = None, or dequantize = True where it adds noise "
                "within a level",
            )


def _check_reference(data: "ScoreData", stored: Tensor, back: Any) -> None:
    """`to_reference` leads back to the form in which the examples are stored, in which metrics compare."""
    place = f"{type(data).__name__}.to_reference"
    require(isinstance(back, Tensor), f"{place} gives a {_kind(back)}, must give a torch.Tensor")
    alike = back.dtype == stored.dtype or (back.is_floating_point() and stored.is_floating_point())
    require(
        alike and back.shape == stored.shape,
        f"{place} gives {back.dtype} of shape {tuple(back.shape[1:])}, but the examples are stored as "
        f"{stored.dtype} of shape {tuple(stored.shape[1:])}: return the stored form, as metrics compare both",
    )
    if stored.is_complex():
        return
    changed = float((back != stored).float().mean())
    require(
        data.stored_dtype != torch.uint8 or data.levels == 256 or changed < 0.01,
        f"{type(data).__name__}.load: {changed:.0%} of the bytes are none of the {data.levels} levels that are declared, "
        "round(255 k / (levels - 1)): declare levels = 256, or return such bytes",
    )
    span = float(stored.max()) - float(stored.min())
    apart = float((back.double() - stored.double()).abs().mean())
    require(
        apart <= 0.1 * span or span == 0,
        f"{place} does not undo transform(train=False): stored values from {float(stored.min()):g} to "
        f"{float(stored.max()):g} come back from {float(back.min()):g} to {float(back.max()):g}; make it the inverse",
    )


def _kind(value: Any) -> str:
    """The type of a value as a user knows it."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
