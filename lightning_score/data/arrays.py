"""Arrays of numbers in files: tables, signals, images and volumes of any number of channels."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from math import isinf, prod
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor

from lightning_score.conditions import Condition
from lightning_score.data.axes import Axes, Windows, find_axes, ordered
from lightning_score.data.base import Examples, ScoreData, Splits, Transform
from lightning_score.data.readers import located
from lightning_score.data.sources import Name, Source, texts
from lightning_score.data.splitting import split_examples
from lightning_score.data.standardize import AsStored, MeanStd, Standardization
from lightning_score.data.stored import Stored, chunks
from lightning_score.data.stored_condition import StoredCondition, find_condition, from_state
from lightning_score.errors import InputError, one_line, require
from lightning_score.files import LocalPath
from lightning_score.memory import free_memory


class Arrays(ScoreData):
    """Arrays of numbers in files (NPY, NPZ, HDF5, zarr, FITS, NIfTI, CSV, TIFF, PNG) or in a folder of them.

    Each channel is standardized by constants of the training examples, which checkpoints keep; samples are in the units of
    the data. Files that fit are read into memory, larger ones are mapped.

    Args:
        path: a file, a folder of files with one example or many each, or `package://NAME/PATH`, a file of an installed
            package.
        key: the array in each file, by name or number; for tables a list of columns; null: the only one, or all columns.
        axes: the axes of an array: N examples, C channels, other letters for positions, as in NCHW, NHW, CL or NC (a table);
            without N each file is one example; null: likely ones, which are printed.
        shape: of one example, channels first, as in [3, 64, 64]; null: as found.
        window: sizes of the windows that are cut from longer arrays, as in [128]; null: whole arrays.
        stride: steps between windows; null: their sizes.
        standardize: MeanStd, MinMax, Asinh, Log, Constants or AsStored; null: MeanStd.
        missing: the value of missing numbers, nan or as in -999, which the loss leaves out; null: none is missing.
        held_out: the fraction held out for validation and test, or the path of other files for that.
        group: the name of the group of each example, or of a column: whole groups are held out; null: no groups.
        condition: what the model is given, by the names of arrays or columns in the files: integers are class labels,
            floats a vector, arrays with the axes of the data are arrays; null: nothing.
        condition_path: the file of the condition; null: that of the data.
        num_classes: number of classes of a condition of integers; null: as found; 0: the integers are numbers.
        standardize_condition: for the numbers of the condition; null: MeanStd.
        units: of the data, for pictures.
        names: of the channels, or of the columns of a table; null: those of the columns.
        in_memory: read the files into memory; false: map them; null: what a quarter of the free memory holds.
        cache: folder for copies of files that cannot be mapped and do not fit; the user's cache folder by default.

    Raises:
        InputError: an argument is out of range; when the files are first needed: they cannot be read, or do not fit.
    """

    random = False

    def __init__(
        self,
        path: LocalPath,
        key: Name | list[Name] | None = None,
        axes: str | None = None,
        shape: Sequence[int] | None = None,
        window: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        standardize: Standardization | None = None,
        missing: float | Literal["nan"] | None = None,
        held_out: float | LocalPath = 0.1,
        group: Name | None = None,
        condition: Name | list[Name] | None = None,
        condition_path: LocalPath | None = None,
        num_classes: int | None = None,
        standardize_condition: Standardization | None = None,
        units: str = "",
        names: Sequence[str] | None = None,
        in_memory: bool | None = None,
        cache: LocalPath | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        fraction = not isinstance(held_out, str)
        require(
            not fraction or 0 < float(held_out) < 1,
            f"held_out={held_out}: must be a fraction between 0 and 1, as in 0.1, or the path of files",
        )
        fill = None if missing is None else float(missing)
        require(fill is None or not isinf(fill), f"missing={missing}: must be nan, a finite number, or null")
        require(num_classes is None or num_classes >= 0, f"num_classes={num_classes}: must be 0 or more, or null")
        self.windows = Windows(tuple(window or ()), tuple(stride or window or ()))
        self.windows.check()
        self.declared, self.held_out, self.in_memory, self.cache = (axes, shape, num_classes), held_out, in_memory, cache
        self.standardize, self.how = standardize or MeanStd(), standardize_condition
        self.fill, self.missing, self.units, self.given_names = fill, fill is not None, units, names
        keys, groups = texts(condition), texts(group)
        held = [] if fraction else [str(held_out)]
        require(
            fraction or condition_path is None,
            f"condition_path={condition_path}: held_out files hold their own conditions; give condition alone",
        )
        require(fraction or group is None, f"group={group}: is for a fraction; held_out={held_out} is a path")
        self.source = Source([path, *held], key, [*groups, *([] if condition_path else keys)])
        self.group = Source([path], groups[0], text=True) if groups else None
        place = [condition_path] if condition_path else [path, *held]
        self.conditions = [Source(place, each) for each in keys] or ([Source(place)] if condition_path else [])
        require(
            self.given is None or not self.conditions,
            f"condition={condition}: must be null with given, which takes its place",
        )
        self._state: dict[str, Any] = {}

    @cached_property
    def axes(self) -> Axes:
        """The axes of an array in the files."""
        first, (letters, shape, _) = self.source.first, self.declared
        many = self.source.files[0] == located(self.source.paths[0])  # rather than in a folder
        return find_axes(first.shape, letters, shape, self.windows.size, first.axes, many)

    @cached_property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The shape of an example, from a checkpoint or the header of the first file."""
        return tuple(self._state["shape"]) if self._state else self.axes.shape

    @cached_property
    def names(self) -> list[str]:  # type: ignore[override]
        """The names of the channels, or of the columns of a table."""
        names = self._state["names"] if self._state and self.given_names is None else self.given_names
        found = self.source.columns if names is None else list(names)
        require(
            not found or len(found) == self.shape[0],
            f"names={found}: must be {self.shape[0]}, one for each channel or column",
        )
        return found

    @cached_property
    def integers(self) -> str:
        """The type of data that are integers, as in uint16, or nothing."""
        dtype = self._state["integers"] if self._state else str(self.source.first.dtype)
        return dtype if np.dtype(dtype or "f4").kind in "biu" else ""

    @cached_property
    def stored_condition(self) -> StoredCondition | None:
        """What is stored beside the data and given to the model, from a checkpoint or the files."""
        return from_state(self._state["conditions"], self.how) if self._state else self._found_condition()

    def _found_condition(self) -> StoredCondition | None:
        if not self.conditions:
            return None
        return find_condition(self.conditions, self.axes, self.windows, self.declared[2], self.how)

    @property
    def condition(self) -> Condition | None:
        return super().condition if self.stored_condition is None else self.stored_condition.kind

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of classes of a condition that is a class label."""
        return 0 if self.stored_condition is None else self.stored_condition.kind.num_classes

    def to_condition(self, values: Tensor) -> Tensor:
        return super().to_condition(values) if self.stored_condition is None else self.stored_condition.to_model(values)

    def from_condition(self, y: Tensor) -> Tensor:
        return super().from_condition(y) if self.stored_condition is None else self.stored_condition.from_model(y)

    def load(self) -> Splits:
        in_memory = self.source.in_memory(self.in_memory)
        x, rows = self._examples(in_memory)
        in_memory = in_memory and bool(self.in_memory or x.nbytes <= free_memory() / 4)  # windows may overlap
        self.standardize.check(chunks(x), rows, self.missing, str(self.source))
        groups = None if self.group is None else self.group.rows("N" not in self.axes.letters)
        if isinstance(self.held_out, str):
            n = x.ends[self.source.count - 1]
            split = np.arange(n), np.arange(n, len(x))
        else:
            split = split_examples(x, rows, self.held_out, groups, self.windows)
        for name, numbers in zip(("training", "held-out"), split, strict=True):
            require(
                len(numbers) > 0, f"{self.source}: no {name} examples are left; change held_out={self.held_out}, or window"
            )
        train, held_out = (x.of(numbers).read() if in_memory else x.of(numbers) for numbers in split)
        self._fit(train)
        if self._state and self._state["fingerprint"] != self.fingerprint:
            rank_zero_warn(f"{self.source}: other files, or changed since training; the constants of training are used")
        if self.stored_condition is None:
            return Splits(*(Examples(x, torch.zeros(len(x), dtype=torch.int64)) for x in (train, held_out)))
        if self._state:
            self.stored_condition.attach(self._found_condition())
        ys = self.stored_condition.load(split, rows, "N" not in self.axes.letters, self.windows, in_memory)
        return Splits(Examples(train, ys[0]), Examples(held_out, ys[1]))

    def _examples(self, in_memory: bool) -> tuple[Stored, np.ndarray]:
        """All examples, those of held-out files last, and the row of each in the files: windows share one."""
        axes, lead, views = self.axes, self.windows.lead, list[np.ndarray]()
        require(
            axes.shape == self.shape,
            f"{self.source}: examples have shape {list(axes.shape)}, those of the model {list(self.shape)}",
        )
        for file, array in zip(self.source.files, self.source.arrays(in_memory, self.cache), strict=True):
            found = (
                find_axes(array.shape, axes.letters, None, self.windows.size) if array.ndim == len(axes.letters) else None
            )
            require(
                found == axes,
                f"{file}: is an array of shape {list(array.shape)}, which does not fit the first, {self.source.files[0]}: "
                f"axes={axes.letters}, examples of shape {list(axes.shape)}",
            )
            views.append(ordered(array, axes, self.windows))
        if self.declared[:2] == (None, None):
            rank_zero_only(print)(
                f"{self.source}: axes {axes.letters} of {list(self.source.first.shape)}, examples of shape "
                f"{list(axes.shape)} (--data.axes changes it)",
                flush=True,
            )
        counts = np.repeat([prod(view.shape[1:lead]) for view in views], [view.shape[0] for view in views])
        return Stored(views, lead, self.fill), np.repeat(np.arange(len(counts)), counts)

    def _fit(self, train: Tensor) -> None:
        """Finds the constants of the training examples, unless they are those of a checkpoint."""
        require(
            not self.integers or not isinstance(self.standardize, AsStored),
            f"standardize=AsStored: {self.integers} numbers have no scale; choose MeanStd, MinMax, or Constants",
        )
        if self.standardize.shift is None:
            self.standardize.fit(lambda: chunks(train))
        found = 1 if self.standardize.shift is None else len(self.standardize.shift)
        require(found in (1, self.shape[0]), f"standardize: has constants of {found} channels, the data {self.shape[0]}")

    def transform(self, train: bool) -> Transform:
        return self.standardize

    def to_reference(self, x: Tensor) -> Tensor:
        """Samples in the units of the data, float32; those of integers are rounded."""
        found = self.standardize.inverse(x)
        if not self.integers or self.integers == "bool":
            return found
        limits = np.iinfo(self.integers)
        return found.round().clamp(float(limits.min), float(limits.max))

    def log_det(self, x: Tensor) -> Tensor:
        return self.standardize.log_det(x)

    def _measured(self, x: Tensor) -> Tensor:
        return self.filled(x.float())

    def reference(self) -> Tensor:
        """All examples in the units of the data, float32, missing values filled; read when they are indexed if
        the files are mapped.
        """
        train, held_out = (split.x for split in self.splits)
        if isinstance(train, Stored) and isinstance(held_out, Stored):
            rows = np.concatenate([train.rows, held_out.rows])
            return Stored(train.parts, train.lead, train.missing, self._measured, rows, torch.float32)
        return self._measured(torch.cat([train, held_out]))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the files' names, sizes and times, and of the settings that choose examples."""
        return self._hash_of_files()

    def _hash_of_files(self) -> str:
        sources = [self.source, *self.conditions, *([self.group] if self.group else [])]
        settings = (self.axes, self.windows, self.fill, self.held_out, [source.fingerprint() for source in sources])
        return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]

    def state_dict(self) -> dict[str, Any]:
        """The shape, the conditions and all constants, as plain values."""
        if self.standardize.shift is None:
            return {}
        return {
            "shape": list(self.shape),
            "names": self.names,
            "integers": self.integers,
            "standardize": self.standardize.state_dict(),
            "conditions": self.stored_condition.state_dict() if self.stored_condition else [],
            "fingerprint": self._state["fingerprint"] if self._state else self.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Uses what `state_dict` kept, in place of what the files have.

        Raises:
            InputError: it is damaged, or of another standardization.
        """
        try:
            self.standardize.load_state_dict(state["standardize"])
            known = {name: str(state[name]) for name in ("integers", "fingerprint")}
            np.dtype(known["integers"] or "f4")
            shape, names = tuple(map(int, state["shape"])), [str(name) for name in state["names"]]
            from_state(state["conditions"], self.how)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"the checkpoint's state of the data is damaged ({one_line(error)})") from error
        self._state = {**state, **known, "shape": shape, "names": names}
        for name in ("shape", "names", "integers", "stored_condition"):  # which are those of the checkpoint from now on
            vars(self).pop(name, None)
