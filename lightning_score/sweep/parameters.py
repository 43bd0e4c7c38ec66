"""The parameters of a sweep: W&B's distributions, from which Optuna draws, and whose values a grid lists."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from lightning_score.errors import require

KEYS = {
    "constant": {"value"},
    "categorical": {"values"},
    "categorical_w_probabilities": {"values", "probabilities"},
    "int_uniform": {"min", "max"},
    "uniform": {"min", "max"},
    "log_uniform": {"min", "max"},
    "log_uniform_values": {"min", "max"},
    "inv_log_uniform": {"min", "max"},
    "inv_log_uniform_values": {"min", "max"},
    "normal": {"mu", "sigma"},
    "log_normal": {"mu", "sigma"},
    "beta": {"a", "b"},
}
QUANTIZED = ("uniform", "log_uniform", "log_uniform_values", "normal", "log_normal", "beta")
DISTRIBUTIONS = {**KEYS, **{f"q_{name}": {*KEYS[name], "q"} for name in QUANTIZED}}
"""All distributions and their keys in a sweep file."""
EXAMPLES = 4
"""Number of intervals between the examples of a distribution."""
LOGARITHM = 700.0
"""Largest absolute value of the natural logarithm of a value."""
LARGEST = 100_000
"""Maximal number of trials of a grid."""
DEFAULTS = {"mu": 0.0, "sigma": 1.0, "a": 1.0, "b": 1.0, "q": 1}


class Parameter(ABC):
    """A parameter of a sweep and the distribution of its values."""

    @abstractmethod
    def suggest(self, trial: Any, name: str) -> Any:
        """The value in an Optuna trial."""

    def grid(self) -> Sequence[Any] | None:
        """All values as Optuna stores them; None for a distribution that a grid cannot list."""
        return None

    @abstractmethod
    def examples(self) -> list[Any]:
        """Values to check: all of them, or those at the ends of a range and some between."""


@dataclass(frozen=True)
class Constant(Parameter):
    """Always the same value."""

    value: Any

    def suggest(self, trial: Any, name: str) -> Any:
        return self.value

    def examples(self) -> list[Any]:
        return [self.value]


@dataclass(frozen=True)
class Categorical(Parameter):
    """One of some values of any type, all with the same probability."""

    values: list[Any]

    def suggest(self, trial: Any, name: str) -> Any:
        return self._named()[trial.suggest_categorical(name, list(self._named()))]

    def grid(self) -> list[Any]:
        return list(self._named())

    def examples(self) -> list[Any]:
        return self.values

    def _named(self) -> dict[Any, Any]:
        """The values by what Optuna stores: numbers and text themselves, other values as JSON."""
        plain = all(isinstance(value, (int, float, str)) and not isinstance(value, bool) for value in self.values)
        plain = plain and len(set(self.values)) == len(self.values)
        return {value if plain else json.dumps(value): value for value in self.values}


@dataclass(frozen=True)
class IntUniform(Parameter):
    """An integer from `low` to `high`, both included."""

    low: int
    high: int

    def suggest(self, trial: Any, name: str) -> int:
        return trial.suggest_int(name, self.low, self.high)

    def grid(self) -> Sequence[int]:
        return range(self.low, self.high + 1)

    def examples(self) -> list[int]:
        span = self.high - self.low
        return list(dict.fromkeys(self.low + round(i * span / EXAMPLES) for i in range(EXAMPLES + 1)))


@dataclass(frozen=True)
class Interval(Parameter):
    """A real number between `low` and `high`, uniform or log-uniform."""

    low: float
    high: float
    log: bool = False

    def suggest(self, trial: Any, name: str) -> float:
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def examples(self) -> list[float]:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        inside = [low + i * (high - low) / EXAMPLES for i in range(1, EXAMPLES)]
        return list(dict.fromkeys([self.low, *(math.exp(x) if self.log else x for x in inside), self.high]))


@dataclass(frozen=True)
class Weighted(Parameter):
    """One of some values, each with its own probability; Optuna stores a number that is uniform in [0, 1]."""

    values: tuple[Any, ...]
    probabilities: tuple[float, ...]

    def suggest(self, trial: Any, name: str) -> Any:
        u = trial.suggest_float(name, 0.0, 1.0)
        below = zip(self.values, accumulate(self.probabilities), strict=True)
        return next((value for value, total in below if u < total), self.values[-1])

    def examples(self) -> list[Any]:
        return list(self.values)


@dataclass(frozen=True)
class Quantile(Parameter):
    """Any other distribution, by its quantile function of a number that is uniform in [0, 1], which is what Optuna stores.

    Args:
        law: a frozen scipy distribution, of the value or of its logarithm.
        log: whether it is that of the logarithm.
        q: the values are rounded to multiples of q; None: not rounded.
    """

    law: Any
    log: bool
    q: float | None

    def suggest(self, trial: Any, name: str) -> float:
        return self(trial.suggest_float(name, 0.0, 1.0))

    def grid(self) -> list[float] | None:
        """Only for a quantized uniform distribution: one quantile for each of its values."""
        if self.law.dist.name != "uniform" or self.log or self.q is None:
            return None
        low, high = map(float, self.law.support())
        few = (high - low) / self.q < LARGEST
        require(few, f"q={self.q:g}: more than {LARGEST} multiples from {low:g} to {high:g}; raise q, or use method random")
        multiples = range(round(low / self.q), round(high / self.q) + 1)
        return [min(max((k * self.q - low) / (high - low or 1.0), 0.0), 1.0) for k in multiples]

    def examples(self) -> list[float]:
        """The ends of a bounded distribution, the quantiles 0.01 and 0.99 of an unbounded one, and three between."""
        margin = 0.01 if self.law.dist.name == "norm" else 0.0
        return list(dict.fromkeys(self(margin + i * (1 - 2 * margin) / EXAMPLES) for i in range(EXAMPLES + 1)))

    def __call__(self, u: float) -> float:
        """The quantile u."""
        value = float(self.law.ppf(min(max(u, 1e-12), 1 - 1e-12)))
        value = math.exp(value) if self.log else value
        return value if self.q is None else round(value / self.q) * self.q


def parameter(name: str, given: Any) -> Parameter:
    """A parameter from its entry in a sweep file.

    Args:
        name: its dotted name, for errors.
        given: the entry, with `value`, `values`, or `min` and `max`, and perhaps a `distribution`.

    Raises:
        InputError: W&B refuses it, too: an unknown distribution, a missing number, a number as text, an empty range.
    """
    require(isinstance(given, Mapping), f"parameters: {name}={given!r}: must be a mapping, as {{values: [1, 2]}}")
    kind = given.get("distribution") or _default(name, given)
    require(kind in DISTRIBUTIONS, f"{name}: distribution={kind!r}: unknown; choose one of {', '.join(DISTRIBUTIONS)}")
    unknown = set(given) - DISTRIBUTIONS[kind] - {"distribution"}
    require(not unknown, f"{name}: {kind} does not take {', '.join(sorted(map(str, unknown)))}")
    missing = sorted(DISTRIBUTIONS[kind] - set(given) - set(DEFAULTS))
    require(not missing, f"{name}: {kind} needs {' and '.join(missing)}")
    for value in [given["value"]] if kind == "constant" else given.get("values") or []:
        require(
            _is_plain(value), f"{name}: {value!r}: must be a number, text, true, false, null, a list or a mapping; quote it"
        )
    if kind == "constant":
        return Constant(given["value"])
    if kind.startswith("categorical"):
        return _choices(name, given)
    numbers = {key: given.get(key, DEFAULTS.get(key)) for key in DISTRIBUTIONS[kind]}
    for key, value in numbers.items():
        fine = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        hint = " (YAML reads 1e-3 as text: write 1.0e-3)" if isinstance(value, str) else ""
        require(fine, f"{name}: {key}={value!r}: must be a number{hint}")
        require(value > 0 or key not in ("q", "sigma", "a", "b"), f"{name}: {key}={value}: must be above 0")
    return _law(name, kind, numbers)


def _is_plain(value: Any) -> bool:
    """Whether JSON can represent it; YAML also has dates such as 2024-01-31, and .nan."""
    try:
        return bool(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return False


def _default(name: str, given: Mapping[str, Any]) -> str:
    """The distribution of an entry without `distribution`."""
    if "value" in given:
        return "constant"
    if "values" in given:
        return "categorical_w_probabilities" if "probabilities" in given else "categorical"
    require("min" in given and "max" in given, f"{name}: needs value, values, or min and max; found {dict(given)}")
    return "int_uniform" if all(isinstance(given[key], int) for key in ("min", "max")) else "uniform"


def _choices(name: str, given: Mapping[str, Any]) -> Parameter:
    values = given["values"]
    require(
        isinstance(values, list) and len(values) > 0,
        f"{name}: values={values!r}: must be a list with at least one value, as [1, 2]",
    )
    if "probabilities" not in given:
        unique = {json.dumps(value, default=str): value for value in values}
        return Categorical(list(unique.values()))
    shares = given["probabilities"]
    fine = (
        isinstance(shares, list) and len(shares) == len(values) and all(isinstance(share, (int, float)) for share in shares)
    )
    require(
        fine and min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6,
        f"{name}: probabilities={shares!r}: must be one number for each of the {len(values)} values, with sum 1",
    )
    return Weighted(tuple(values), tuple(shares))


def _law(name: str, kind: str, numbers: dict[str, float]) -> Parameter:
    low, high = numbers.get("min", 0), numbers.get("max", 0)
    require(low <= high, f"{name}: min={low}, max={high}: min must not be above max")
    require(not kind.endswith("_values") or low > 0, f"{name}: min={low}: {kind}: min must be above 0")
    if kind.endswith(("log_uniform", "log_normal")):  # their numbers are logarithms of values
        ends = (low, high) if "min" in numbers else [numbers["mu"] + z * numbers["sigma"] for z in (-8, 8)]
        require(
            ends[0] > -LOGARITHM and ends[1] < LOGARITHM,
            f"{name}: {kind} takes natural logarithms, and {ends[0]:g} to {ends[1]:g} are too far from 0; "
            "log_uniform_values takes the values themselves",
        )
    q = numbers.pop("q", None)
    if kind == "int_uniform":
        require(
            isinstance(low, int) and isinstance(high, int),
            f"{name}: min={low}, max={high}: must be integers for int_uniform",
        )
        require(max(-low, high) <= 2**53, f"{name}: min={low}, max={high}: integers must be at most {2**53}")
        return IntUniform(low, high)
    if kind == "uniform":
        return Interval(float(low), float(high))
    if kind in ("log_uniform_values", "log_uniform"):
        ends = (math.exp(low), math.exp(high)) if kind == "log_uniform" else (low, high)
        return Interval(*map(float, ends), log=True)
    return _quantile(kind.removeprefix("q_"), numbers, q)


def _quantile(kind: str, numbers: dict[str, float], q: float | None) -> Parameter:
    from scipy import stats  # takes a second to import

    if kind == "beta":
        return Quantile(stats.beta(numbers["a"], numbers["b"]), False, q)
    if kind.endswith("normal"):
        return Quantile(stats.norm(numbers["mu"], numbers["sigma"]), kind == "log_normal", q)
    low, high = numbers["min"], numbers["max"]
    if kind.endswith("_values"):
        low, high = math.log(low), math.log(high)
    elif kind == "inv_log_uniform":
        low, high = -high, -low
    law = stats.uniform(low, max(high - low, math.ulp(0.0)))  # scipy returns NaN for an empty range
    return Quantile(law, "log" in kind, q)
