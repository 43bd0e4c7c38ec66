"""The parameters of a sweep: W&B's distributions, from which Optuna draws, and whose values a grid lists."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from optuna.trial import BaseTrial

from lightning_score.errors import InputError, require

KEYS: dict[str, set[str]] = {
    "constant": {"value"},
    "categorical": {"values"},
    "categorical_w_probabilities": {"values", "probabilities"},
    **{name: {"min", "max"} for name in ("int_uniform", "uniform", "log_uniform", "log_uniform_values")},
    **{name: {"min", "max"} for name in ("inv_log_uniform", "inv_log_uniform_values")},
    **{name: {"mu", "sigma"} for name in ("normal", "log_normal")},
    "beta": {"a", "b"},
}
QUANTIZED = ("uniform", "log_uniform", "log_uniform_values", "normal", "log_normal", "beta")
DISTRIBUTIONS = {**KEYS, **{f"q_{name}": {*KEYS[name], "q"} for name in QUANTIZED}}
"""All distributions and their keys in a sweep file."""
EXAMPLES = 5
"""Number of examples of a distribution."""
LOGARITHM = 700.0
"""Largest absolute value of the natural logarithm of a value."""
LARGEST = 100_000
"""Maximal number of trials of a grid."""
DEFAULTS = {"mu": 0.0, "sigma": 1.0, "a": 1.0, "b": 1.0, "q": 1}


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Within it, the message of an `InputError` begins with the place that it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def check_keys(given: Mapping[str, Any], known: set[str]) -> None:
    """Raises `InputError` if an entry of a sweep file has keys that W&B does not know."""
    unknown = sorted({*map(str, given)} - known)
    require(not unknown, f"{', '.join(unknown)}: unknown; allowed are {', '.join(sorted(known))}")


class Parameter(ABC):
    """A parameter of a sweep and the distribution of its values."""

    @abstractmethod
    def suggest(self, trial: BaseTrial, name: str) -> Any:
        """The value in an Optuna trial."""

    def grid(self) -> Sequence[Any] | None:
        """All values as Optuna stores them; None for a distribution that a grid cannot list."""
        return None

    def listed(self) -> "Parameter":
        """The parameter as the grid of W&B's own engine has it."""
        return self

    @abstractmethod
    def examples(self) -> list[Any]:
        """Values to check: all of them, or those at the ends of a range and some between."""


@dataclass(frozen=True)
class Constant(Parameter):
    """Always the same value."""

    value: Any

    def suggest(self, trial: BaseTrial, name: str) -> Any:
        return self.value

    def examples(self) -> list[Any]:
        return [self.value]


@dataclass(frozen=True)
class Categorical(Parameter):
    """One of some values of any type, all with the same probability."""

    values: list[Any]

    def suggest(self, trial: BaseTrial, name: str) -> Any:
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

    def suggest(self, trial: BaseTrial, name: str) -> int:
        return trial.suggest_int(name, self.low, self.high)

    def grid(self) -> Sequence[int]:
        return range(self.low, self.high + 1)

    def examples(self) -> list[int]:
        return list(dict.fromkeys(map(round, np.linspace(self.low, self.high, EXAMPLES).tolist())))


@dataclass(frozen=True)
class Interval(Parameter):
    """A real number between `low` and `high`, uniform or log-uniform, or a value that is a function of it."""

    low: float = 0.0
    high: float = 1.0
    log: bool = False

    def __call__(self, drawn: float) -> Any:
        """The value for the number that Optuna has drawn, and stores."""
        return drawn

    def suggest(self, trial: BaseTrial, name: str) -> Any:
        return self(trial.suggest_float(name, self.low, self.high, log=self.log))

    def examples(self) -> list[Any]:
        space = np.geomspace if self.log else np.linspace
        return list(dict.fromkeys(map(self, space(self.low, self.high, EXAMPLES).tolist())))


@dataclass(frozen=True, kw_only=True)
class Weighted(Interval):
    """One of some values, each with its own probability; Optuna draws a number that is uniform in [0, 1]."""

    values: list[Any]
    probabilities: list[float]

    def __call__(self, drawn: float) -> Any:
        below = zip(self.values, accumulate(self.probabilities), strict=True)
        return next((value for value, total in below if drawn < total), self.values[-1])

    def examples(self) -> list[Any]:
        return self.values


@dataclass(frozen=True, kw_only=True)
class Quantile(Interval):
    """Any other distribution, by its quantile function of a number that is uniform in [0, 1].

    Args:
        law: a frozen scipy distribution, of the value or of its logarithm.
        exp: whether it is that of the logarithm.
        q: the values are rounded to multiples of q; None: not rounded.
    """

    law: Any
    exp: bool
    q: float | None

    def __call__(self, drawn: float) -> float:
        value = float(self.law.ppf(min(max(drawn, 1e-12), 1 - 1e-12)))
        value = math.exp(value) if self.exp else value
        return value if self.q is None else round(value / self.q) * self.q

    def grid(self) -> list[float] | None:
        """Only for a quantized uniform distribution: one quantile for each of its values."""
        if self.law.dist.name != "uniform" or self.exp or self.q is None:
            return None
        low, high = map(float, self.law.support())
        few = (high - low) / self.q < LARGEST
        require(few, f"q={self.q:g}: more than {LARGEST} multiples from {low:g} to {high:g}; raise q, or use method random")
        multiples = np.arange(round(low / self.q), round(high / self.q) + 1) * self.q
        return ((multiples - low) / (high - low or 1.0)).clip(0.0, 1.0).tolist()

    def listed(self) -> Parameter:
        """From the lower end in steps of q, without the upper end."""
        if self.q is None or self.grid() is None:
            return self
        low, high = self.law.support()
        return Categorical(np.arange(low, high, self.q).tolist())

    def examples(self) -> list[float]:
        """The ends of a bounded distribution, the quantiles 0.01 and 0.99 of an unbounded one, and three between."""
        margin = 0.01 if self.law.dist.name == "norm" else 0.0
        return list(dict.fromkeys(map(self, np.linspace(margin, 1 - margin, EXAMPLES).tolist())))


def parameter(name: str, given: Any) -> Parameter:
    """A parameter from its entry in a sweep file.

    Args:
        name: its dotted name, for errors.
        given: the entry, with `value`, `values`, or `min` and `max`, and perhaps a `distribution`.

    Raises:
        InputError: W&B refuses it, too: an unknown distribution, a missing number, a number as text, an empty range.
    """
    require(isinstance(given, Mapping), f"parameters: {name}={given!r}: must be a mapping, as {{values: [1, 2]}}")
    with naming(name):
        kind = given.get("distribution") or _default(given)
        require(kind in DISTRIBUTIONS, f"distribution={kind!r}: unknown; choose one of {', '.join(DISTRIBUTIONS)}")
        keys = DISTRIBUTIONS[kind]
        unknown, missing = {*map(str, given)} - keys - {"distribution"}, keys - {*given} - {*DEFAULTS}
        require(not unknown, f"{kind} does not take {', '.join(sorted(unknown))}")
        require(not missing, f"{kind} needs {' and '.join(sorted(missing))}")
        if kind == "constant":
            check_plain(given["value"])
            return Constant(given["value"])
        if kind.startswith("categorical"):
            return _choices(given)
        return _law(kind, {key: _number(key, given.get(key, DEFAULTS.get(key))) for key in keys})


def _default(given: Mapping[str, Any]) -> str:
    """The distribution of an entry without `distribution`."""
    if "value" in given:
        return "constant"
    if "values" in given:
        return "categorical_w_probabilities" if "probabilities" in given else "categorical"
    require("min" in given and "max" in given, f"needs value, values, or min and max; found {dict(given)}")
    return "int_uniform" if isinstance(given["min"], int) and isinstance(given["max"], int) else "uniform"


def check_plain(value: Any) -> None:
    """Refuses what JSON cannot represent; YAML also has dates such as 2024-01-31, and .nan."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        allowed = "must be a number, text, true, false, null, a list or a mapping; quote it"
        raise InputError(f"{value!r}: {allowed}") from error


def _number(key: str, value: Any) -> float:
    """A finite number of an entry, above 0 where the distribution needs that."""
    finite = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    hint = " (YAML reads 1e-3 as text: write 1.0e-3)" if isinstance(value, str) else ""
    require(finite, f"{key}={value!r}: must be a number{hint}")
    require(value > 0 or key not in ("q", "sigma", "a", "b"), f"{key}={value}: must be above 0")
    return value


def _choices(given: Mapping[str, Any]) -> Parameter:
    values = given["values"]
    listed = isinstance(values, list) and len(values) > 0
    require(listed, f"values={values!r}: must be a list with at least one value, as [1, 2]")
    for value in values:
        check_plain(value)
    if "probabilities" not in given:
        return Categorical(list({json.dumps(value): value for value in values}.values()))
    shares = given["probabilities"]
    numbers = isinstance(shares, list) and all(isinstance(share, (int, float)) and share >= 0 for share in shares)
    fit = numbers and len(shares) == len(values) and abs(sum(shares) - 1) < 1e-6
    require(fit, f"probabilities={shares!r}: must be one number for each of the {len(values)} values, with sum 1")
    return Weighted(values=values, probabilities=shares)


def _law(kind: str, numbers: Mapping[str, float]) -> Parameter:
    low, high = numbers.get("min", 0), numbers.get("max", 0)
    mu, sigma, q = numbers.get("mu", 0), numbers.get("sigma", 0), numbers.get("q")
    ends = f"min={low}, max={high}"
    require(low <= high, f"{ends}: min must not be above max")
    require(not kind.endswith("_values") or low > 0, f"min={low}: {kind}: min must be above 0")
    if kind.endswith(("log_uniform", "log_normal")):  # their numbers are logarithms of values
        least, most = (low, high) if "min" in numbers else (mu - 8 * sigma, mu + 8 * sigma)
        far = f"{kind} takes natural logarithms, and {least:g} to {most:g} are too far from 0"
        require(least > -LOGARITHM and most < LOGARITHM, f"{far}; log_uniform_values takes the values themselves")
    if kind == "int_uniform":
        require(isinstance(low, int) and isinstance(high, int), f"{ends}: must be integers for int_uniform")
        require(max(-low, high) <= 2**53, f"{ends}: integers must be at most {2**53}")
        return IntUniform(int(low), int(high))
    if kind in ("uniform", "log_uniform_values"):
        return Interval(float(low), float(high), kind != "uniform")
    if kind == "log_uniform":
        return Interval(math.exp(low), math.exp(high), True)
    from scipy import stats  # takes a second to import

    if kind.endswith("beta"):
        law = stats.beta(numbers["a"], numbers["b"])
    elif kind.endswith("normal"):
        law = stats.norm(mu, sigma)
    else:
        low, high = (math.log(low), math.log(high)) if kind.endswith("_values") else (low, high)
        low, high = (-high, -low) if kind == "inv_log_uniform" else (low, high)
        law = stats.uniform(low, max(high - low, math.ulp(0.0)))  # scipy returns NaN for an empty range
    return Quantile(law=law, exp="log" in kind, q=q)
