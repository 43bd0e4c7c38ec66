"""Measurements with their provenance: one line of JSON per number."""

import hashlib
import json
import math
import os
import platform
import time
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_score import __version__
from lightning_score.files import tolerating_full_disk
from lightning_score.runs.old_names import new_metric

if TYPE_CHECKING:
    from torch import Tensor

FILE = "evaluations.jsonl"
"""The name of the records' file in a run folder."""
PERFECT = "perfect"
"""The kind of today's floors."""
SUBSET = "subset"
"""The kind of the floors of older versions."""
KEYS = {"jackknife": "without"}
"""Entries of records that have another key in the file."""


def versions() -> dict[str, str]:
    """Versions of the programs that a number depends on."""
    import torch  # takes a second to import

    libraries = {name: version(name) for name in ("lightning", "torchmetrics", "torch-fidelity")}
    return {"python": platform.python_version(), "torch": torch.__version__, "lightning_score": __version__, **libraries}


def settings_of(part: Any, private: bool = False) -> Any:
    """A part of an experiment as plain values: its class and its public, or all, attributes, recursively; of a network, a
    hash of its weights.
    """
    if part is None or isinstance(part, (bool, int, float, str)):
        return part
    if isinstance(part, Mapping):
        return {str(key): settings_of(value, private) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [settings_of(value, private) for value in part]
    import torch

    if isinstance(part, torch.Tensor):
        return f"tensor of {' x '.join(map(str, part.shape))}, {digest_of({'': part}).hexdigest()[:8]}"
    if not hasattr(part, "__dict__"):  # a path
        return str(part)
    if isinstance(part, torch.nn.Module) and any(True for _ in part.parameters()):
        return {"class": type(part).__name__, "weights": digest_of(part.state_dict()).hexdigest()[:8]}
    derived = {name for name in vars(part) if isinstance(getattr(type(part), name, None), cached_property)}
    kept = {name: each for name, each in vars(part).items() if name not in derived and (private or name[:1] != "_")}
    return {"class": type(part).__name__, **{name: settings_of(value, private) for name, value in kept.items()}}


def described(part: Any, arguments: bool = True) -> str:
    """A part of a config, or the settings of a record, on one line: its class and what is not null, `VE(sigma_max=50.0)`."""
    if isinstance(part, Mapping):
        name = str(part.get("class_path", part.get("class", ""))).rpartition(".")[2]
        inner = part.get("init_args", {name: value for name, value in part.items() if name not in ("class", "class_path")})
        shown = [f"{key}={described(value)}" for key, value in (inner or {}).items() if value is not None]
        return f"{name}({', '.join(shown)})" if arguments and (shown or not name) else name
    if isinstance(part, (list, tuple)):
        return f"[{', '.join(map(described, part))}]"
    return f"{part:g}" if isinstance(part, float) else "default" if part is None else str(part)


def digest_of(tensors: Mapping[str, "Tensor"]) -> "hashlib._Hash":
    """A hash of tensors and their names, to which more can be added."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest


@dataclass(frozen=True, kw_only=True)
class Record:
    """A number with its provenance.

    Attributes:
        metric: its name, with the features and, unless it is 50 000, the number of samples.
        value: the number.
        error: its standard error, or None.
        floor: the value of a perfect model with `floor_n` samples and this reference, or None.
        floor_n: n.
        n: number of samples.
        features: name of the features.
        features_hash: of their weights.
        resize: how images were resized.
        data: name of the data set, or the file of statistics.
        split: the part of it that is the reference.
        shape: of one example.
        data_hash: of the reference.
        weights: "ema", "ema 0.07" for an average of this length, or "raw".
        step: training steps.
        denoised: whether the last noise was removed from the samples.
        sampler: its settings.
        nfe: network evaluations per sample.
        seed: of the samples.
        seconds: spent sampling.
        floor_kind: "perfect"; or "subset", in older versions, for the distance of `floor_n` examples (at most half of the
            data) to the others, which is higher, by a third at n = N/2.
        jackknife: the number without each tenth of the samples, if known (`without` in the file): the error of a difference
            of two numbers of the same seed comes from the differences of these.
        versions: of the programs.
        time: when, in UTC.
    """

    metric: str
    value: float
    error: float | None = None
    floor: float | None = None
    floor_n: int | None = None
    n: int
    features: str = "none"
    features_hash: str = ""
    resize: str = "none"
    data: str
    split: str
    shape: list[int]
    data_hash: str
    weights: str = "ema"
    step: int
    denoised: bool = True
    sampler: dict[str, Any]
    nfe: float
    seed: int
    seconds: float
    floor_kind: str = SUBSET
    jackknife: list[float] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=versions)
    time: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))

    @property
    def axis(self) -> tuple[Any, ...]:
        """What two numbers must share to be comparable on one axis."""
        return self.metric, self.n, self.features_hash, self.resize, self.data_hash, self.split, tuple(self.shape)


def floor_name(kind: str) -> str:
    """The name of a kind of floor, for display."""
    return {PERFECT: "perfect model", SUBSET: "subset of the data (older version)"}.get(kind, "floor")


def append_record(path: Path, record: Record) -> None:
    """Adds a record to a file."""
    entries = asdict(record)
    append_line(path, {KEYS.get(name, name): value for name, value in entries.items()})


def append_line(path: Path, entries: Mapping[str, Any]) -> None:
    """Adds a line of JSON to a file, in one write, so that several processes may do so; NaN and infinity become null. On a
    full disk it is left out, with a message.
    """
    with tolerating_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.stat().st_size if path.exists() else 0
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite(dict(entries))) + "\n")
        except OSError:
            os.truncate(path, before)  # half a line
            raise


def read_records(path: Path) -> list[Record]:
    """The records of a file; broken lines are left out with a warning."""
    names = {KEYS.get(each.name, each.name): each.name for each in fields(Record)}
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entries = {names[key]: value for key, value in json.loads(line).items() if key in names}
            records.append(Record(**entries | {"metric": new_metric(entries["metric"])}))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            warnings.warn(f"{path}, line {number}: not a record ({error}); left out", stacklevel=2)
    return records


def by_axis(records: Iterable[Record]) -> dict[tuple[Any, ...], list[Record]]:
    """Records grouped by axis."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(record.axis, []).append(record)
    return groups


def metric_name(kind: str, features: str, n: int) -> str:
    """`fid_inception` for the usual 50 000 samples; else with the number: `fid_digits_898`, `fid_digits_1k`; `kind_1k` for
    empty `features`.
    """
    short = f"{n // 1_000_000}m" if n % 1_000_000 == 0 else f"{n // 1000}k" if n % 1000 == 0 else str(n)
    return "_".join(filter(None, [kind, features, "" if n == 50_000 else short]))


def as_number(value: Any, otherwise: float = math.nan) -> float:
    """A value from a file as a number; `otherwise` for other types, and for integers beyond all floating-point numbers."""
    with suppress(OverflowError):
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else otherwise
    return otherwise


def finite(value: Any) -> Any:
    """Plain values for JSON: None for NaN and infinity, text for what YAML knows besides, as dates and bytes."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, type(None))) else str(value)
