"""The plan of a sampler, and the coefficients of its steps, kept from one draw to the next."""

import io
import pickle
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_score.process import NoiseProcess
from lightning_score.process.cache import CoefficientCache
from lightning_score.sampling.ends import Initial
from lightning_score.sampling.from_noise import states_of
from lightning_score.sampling.step import Move, SamplerStep

if TYPE_CHECKING:
    from lightning_score.sampling.sampler import Sampler


class Plan(NamedTuple):
    """What depends on the settings of a sampler and a process alone."""

    times: Tensor
    """Those of the grid, decreasing, (N + 1,), on the CPU, so that a GPU need not wait for coefficients."""
    moves: list[Move]
    states: dict[SamplerStep, Any]
    """The states of the methods at their first step."""
    kept: CoefficientCache
    """Coefficients at all times at which the methods evaluate the score."""


_PLANS: "WeakKeyDictionary[Sampler, tuple[bytes, Plan]]" = WeakKeyDictionary()
"""The last plan of each sampler, and the settings from which it was made."""


def plan_of(sampler: "Sampler", process: NoiseProcess) -> Plan:
    """The plan of a sampler: the one of the last draw if no setting of the sampler or the process has changed since.

    If the settings cannot be pickled, as an instance of a class that is defined in a function, each draw has a new plan.
    """
    with suppress(pickle.PicklingError, AttributeError, TypeError):
        settings, plan = _PLANS.get(sampler, (b"", None))
        if plan is None or _settings(sampler, process, plan) != settings:
            plan = _made(sampler, process)
            _PLANS[sampler] = _settings(sampler, process, plan), plan
        return plan
    return _made(sampler, process)


def _made(sampler: "Sampler", process: NoiseProcess) -> Plan:
    times, process = sampler.grid(process).cpu(), sampler.grid.discretized(process)
    kept = CoefficientCache(times)
    with process.cached_at(times, kept):
        moves = sampler.plan(process, times)
        methods = {move.method for move in moves}
        others = [at for method in methods if (at := method.evaluated(process, times)) is not times]
    if others:
        kept = CoefficientCache(torch.cat([times, *others]))
    with process.cached_at(kept.times, kept):
        return Plan(times, moves, states_of(methods, process, times), kept)


def _settings(sampler: "Sampler", process: NoiseProcess, plan: Plan) -> bytes:
    """All settings as bytes. The methods of the plan are among them: equal bytes mean that these are the sampler's own, not
    others with the same settings.
    """
    file = io.BytesIO()
    _Settings(file, pickle.HIGHEST_PROTOCOL).dump((sampler, process, [*plan.states]))
    return file.getvalue()


class _Settings(pickle.Pickler):
    """Writes tensors by their values, which takes a tenth of the time of their own format. It leaves out where sampling
    starts, which has no part in the plan, and may hold many points.
    """

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return obj.dtype, obj.shape, obj.detach().cpu().numpy().tobytes()
        return Initial.__name__ if isinstance(obj, Initial) else None
