"""Whole steps of samplers compiled by torch.compile: the network and all arithmetic on samples in one graph."""

from collections.abc import Callable
from copy import copy
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_score.sampling.step import Numbers, SamplerStep, Times
from lightning_score.score.function import ScoreField

_KEPT: "WeakKeyDictionary[SamplerStep, dict[str, SamplerStep]]" = WeakKeyDictionary()
"""The compiled methods by mode."""


def compiled(method: SamplerStep, mode: str) -> SamplerStep:
    """The method with its `move` compiled; itself if it has none. Times and coefficients are given to the graph as a tensor,
    so that one graph does for all steps of a batch size.

    Args:
        method: a step of a sampler.
        mode: the mode of torch.compile; reduce-overhead records CUDA graphs.
    """
    move = type(method).move
    if move is None:
        return method
    kept = _KEPT.setdefault(method, {})
    if mode not in kept:
        kept[mode] = copy(method)
        kept[mode].move = _Compiled(move, kept[mode], mode)
    vars(kept[mode]).update(vars(method))  # settings that have changed
    return kept[mode]


class _Compiled:
    """A `move` in one graph, with whatever the score counts: a number that changes would be compiled anew."""

    def __init__(self, move: Callable[..., Any], method: SamplerStep, mode: str):
        self._move, self._method, self._mode = move, method, mode

    def __call__(self, score: ScoreField, x: Tensor, times: Times, numbers: Numbers, *given: Any) -> Any:
        row = torch.tensor([*map(float, (*times, *numbers))], dtype=torch.float64).to(x.device, non_blocking=True)
        counters = [vars(part) for part in score.modules() if "evaluations" in vars(part)]
        before = [counter.pop("evaluations") for counter in counters]
        torch.compiler.cudagraph_mark_step_begin()
        found = _graph(self._mode)(self._move, self._method, score, x, row, len(times), *given)
        for counter, count in zip(counters, before, strict=True):
            counter["evaluations"] = counter.get("evaluations", 0) + count
        if x.device.type == "cpu":
            return found
        return tuple(each.clone() for each in found) if isinstance(found, tuple) else found.clone()  # of a CUDA graph


@cache
def _graph(mode: str) -> Callable[..., Any]:
    """A function that calls a `move` with times and coefficients from one tensor, compiled."""

    @torch.compile(mode=mode)
    def whole(
        move: Callable[..., Any], method: SamplerStep, score: ScoreField, x: Tensor, row: Tensor, n: int, *given: Any
    ) -> Any:
        scalars = row.unbind()
        return move(method, score, x, scalars[:n], scalars[n:], *given)

    return whole
