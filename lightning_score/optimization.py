"""An optimiser and a learning-rate schedule that go on from a checkpoint with the settings that they are given."""

import lightning_score.torchvision_guard  # noqa: F401

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_score.utils import InputError


class Optimization:
    """An optimiser, and the schedule of its learning rate after every step.

    A checkpoint of torch's brings the settings of both along with their state. Here it brings the state alone (moments,
    steps, the place in the schedule), so that a run that goes on with another learning rate has that.

    Args:
        optimizer: makes the optimiser of parameters.
        schedule: makes the schedule of the optimiser; null: the learning rate is constant.

    Raises:
        InputError: they cannot be made so, as with a learning rate below 0.
    """

    def __init__(self, optimizer: OptimizerCallable, schedule: LRSchedulerCallable | None):
        self._make_optimizer, self._make_schedule = optimizer, schedule
        try:
            self.configure(iter([Parameter(torch.zeros(1))]))  # for once, so that training need not begin to find out
        except (ValueError, TypeError) as error:
            raise InputError(f"optimizer, lr_scheduler: {error}") from error
        self._schedule, self._settings = None, []

    def configure(self, parameters: Iterator[Parameter]) -> Any:
        """What Lightning wants of `configure_optimizers`."""
        optimizer = self._make_optimizer(parameters)
        optimizer.register_load_state_dict_pre_hook(_with_settings)
        optimizer.register_load_state_dict_post_hook(arrange_as_parameters)
        if self._make_schedule is None:
            return optimizer
        self._schedule = self._make_schedule(optimizer)
        self._settings = [_settings(part) for part in _parts(self._schedule)]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule, "interval": "step"}}

    def keep_settings(self) -> None:
        """Gives the schedule its settings back, once a checkpoint has been loaded, and the learning rate that follows."""
        parts = _parts(self._schedule)
        changed = self._settings != [_settings(part) for part in parts]
        for part, settings in zip(parts, self._settings, strict=True):
            vars(part).update(settings)
        rates = getattr(self._schedule, "_get_closed_form_lr", None)  # others than the product of all changes so far
        if changed and rates is not None:
            for group, rate in zip(self._schedule.optimizer.param_groups, rates(), strict=True):
                group["lr"] = rate


def _with_settings(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """A saved state with the settings of the optimiser, its learning rate at the same fraction of the first one."""
    groups = []
    for given, saved in zip(optimizer.param_groups, state["param_groups"], strict=False):
        cycled = {"betas", "momentum"} if "base_momentum" in saved else set()  # by the schedule, as the learning rate is
        group = {**saved, **{name: given[name] for name in given.keys() - {"params", "lr"} - cycled}}
        first, before = (one.get("initial_lr", one["lr"]) for one in (given, saved))
        if first != before:
            group["lr"] = saved["lr"] / before * first if before else first
        groups.append(group)
    return {**state, "param_groups": groups + state["param_groups"][len(groups) :]}


def _parts(schedule: Any) -> list[Any]:
    """A schedule and all those that it is made of; none without one."""
    inner = [part for each in getattr(schedule, "_schedulers", []) for part in _parts(each)]
    return [] if schedule is None else [schedule, *inner]


def _settings(schedule: Any) -> dict[str, Any]:
    """What a schedule was made with, and the learning rates from which it begins."""
    names = {"base_lrs", *inspect.signature(type(schedule)).parameters} - {"optimizer", "last_epoch"}
    return {name: value for name, value in vars(schedule).items() if name in names}


def arrange_as_parameters(optimizer: Optimizer) -> None:
    """Gives the optimizer's state the parameters' order in memory: a fused optimizer goes through both in that order, and
    would take the state of one weight for that of another where they differ, as after loading contiguous state for
    channels-last weights.
    """
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
