"""An optimizer and a learning-rate schedule that resume from a checkpoint with new settings."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_score.errors import InputError, require

AHEAD = 100_000
"""Most steps that are searched for a learning rate above 0."""
LARGE = 2**15
"""Most numbers that are copied faster than viewed."""
DERIVED = ("schedule_phases", "total_size", "step_ratio")
"""Values that torch's schedules compute from their parameters, and save in checkpoints."""


_trying = ContextVar("trying", default=True)


@contextmanager
def untried() -> Iterator[None]:
    """Within it, `Optimization` makes no optimizer before it is asked for one: for models that are not trained, because
    torch imports its compiler, which takes a second, with the first optimizer.
    """
    token = _trying.set(False)
    try:
        yield
    finally:
        _trying.reset(token)


class Optimization:
    """An optimizer and its learning-rate schedule, stepped after every optimizer step.

    In torch a checkpoint restores the settings of both along with their state. Here it restores only the state (moments,
    steps, the position in the schedule), so that a run can resume with another learning rate.

    Args:
        optimizer: makes the optimizer from parameters.
        schedule: makes the schedule from the optimizer; null: a constant learning rate.

    Raises:
        InputError: their arguments are invalid, as a learning rate below 0.
    """

    def __init__(self, optimizer: OptimizerCallable, schedule: LRSchedulerCallable | None):
        self._make_optimizer, self._make_schedule = optimizer, schedule
        self._schedule: Any = None
        self._settings: list[dict[str, Any]] = []
        self._replaced = False
        self._needs: Set[str] = set()
        if not _trying.get():
            return
        try:
            self._try()
        except (ValueError, TypeError, RuntimeError, ArithmeticError, KeyError) as error:
            raise InputError(f"optimizer, lr_scheduler: {error}") from error

    def _try(self) -> None:
        """Takes one step with a dummy parameter, so that errors appear before training."""
        self.configure(iter([Parameter(torch.zeros(1))]))
        (parameter,) = self._optimizer.param_groups[0]["params"]
        parameter.grad = torch.zeros(1)
        with suppress(AssertionError):  # raised by options for GPUs, as capturable
            self._optimizer.step(lambda: 0.0)
        self._needs = self._optimizer.state[parameter].keys()
        require(
            not isinstance(self._optimizer, torch.optim.LBFGS),
            "model.optimizer=LBFGS: needs the same noise in each evaluation of a step, and contiguous weights; use Adam",
        )
        require(
            not isinstance(self._schedule, torch.optim.lr_scheduler.ReduceLROnPlateau),
            "model.lr_scheduler=ReduceLROnPlateau: follows a metric, but is stepped after every optimizer step; use another",
        )
        if self._schedule is not None:
            _stepped(self._schedule)

    def configure(self, parameters: Iterator[Parameter]) -> Any:
        """The return value of Lightning's `configure_optimizers`."""
        self._optimizer = optimizer = self._make_optimizer(parameters)
        self._first = _rates(optimizer)
        optimizer.register_load_state_dict_pre_hook(_with_settings)
        optimizer.register_load_state_dict_post_hook(arrange_as_parameters)
        if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
            optimizer._init_group = partial(_in_memory_order, optimizer._init_group)  # type: ignore[method-assign]
        if self._make_schedule is None:
            return optimizer
        self._schedule = self._make_schedule(optimizer)
        self._settings = [_settings(part) for part in _parts(self._schedule)]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule, "interval": "step"}}

    def adapt(self, checkpoint: dict[str, Any]) -> None:
        """Adapts a checkpoint: the state of a schedule of another class is replaced by that of this one after as many steps,
        and that of an optimizer of another class is dropped.
        """
        for optimizer in checkpoint.get("optimizer_states", []):
            if any(self._needs - kept.keys() for kept in optimizer.get("state", {}).values()):
                optimizer["state"] = {}
        states = checkpoint.get("lr_schedulers", [])
        if self._make_schedule is None:
            self._replaced = bool(states)
            states.clear()
        elif not states or states[0].keys() != self._after(0).state_dict().keys():
            step = states[0].get("last_epoch", 0) if states else checkpoint.get("global_step", 0)
            checkpoint["lr_schedulers"], self._replaced = [self._after(step).state_dict()], True

    def keep_settings(self, steps: float = 0, resumed: bool = False) -> None:
        """Restores the settings of the schedule after a checkpoint was loaded, and the learning rate that follows.

        Warns if that is 0 in all remaining steps, as after the end of a schedule, and if the optimizer got no state.

        Args:
            steps: number of remaining steps.
            resumed: whether there were steps before.

        Raises:
            InputError: the schedule ends before that.
        """
        if resumed and self._needs and not self._optimizer.state:
            name = type(self._optimizer).__name__
            rank_zero_warn(f"{name} starts without its state: the checkpoint has none, or that of another optimizer")
        parts = _parts(self._schedule)
        changed = self._replaced or self._settings != [_settings(part) for part in parts]
        for part, settings in zip(parts, self._settings, strict=True):
            vars(part).update(settings)
        if changed:
            self._follow_schedule()
        total = getattr(self._schedule, "total_steps", None)  # of OneCycleLR, which raises an error at the next step
        require(
            total is None or self._schedule.last_epoch + steps <= total,
            f"model.lr_scheduler.total_steps={total}: must be at least the number of training steps; give max_steps, which "
            "follows trainer.max_steps",
        )
        ahead = int(min(steps, AHEAD))
        if ahead > 0 and self._idle(ahead):
            rank_zero_warn(
                f"the learning rate is 0 in all of the next {ahead} steps, so nothing is learned: change "
                "--model.optimizer.lr or --model.lr_scheduler (total_iters or T_max as max_steps follow trainer.max_steps)"
            )

    def _follow_schedule(self) -> None:
        """Sets the optimizer's learning rates to those of the schedule at its step."""
        if self._schedule is None:
            rates = self._first
        elif hasattr(self._schedule, "_get_closed_form_lr"):  # differs from the product of all changes so far
            rates = self._schedule._get_closed_form_lr()
        else:
            fresh = self._after(self._schedule.last_epoch)
            self._schedule.load_state_dict(fresh.state_dict())
            rates = _rates(fresh.optimizer)
        _set_rates(self._optimizer, rates)

    def _idle(self, steps: int) -> bool:
        rates = _rates(self._optimizer)
        if any(rates) or self._schedule is None:
            return not any(rates)
        ahead = self._after(0)
        ahead.load_state_dict(deepcopy(self._schedule.state_dict()))
        _set_rates(ahead.optimizer, rates)
        return not any(any(_rates(_stepped(ahead).optimizer)) for _ in range(steps - 1))

    def _after(self, steps: int) -> Any:
        """A new schedule after some steps, of a dummy parameter and optimizer."""
        schedule = self._make_schedule(self._make_optimizer(iter([Parameter(torch.zeros(1))])))  # type: ignore[misc]
        for _ in range(steps):
            _stepped(schedule)
        return schedule


def _stepped(schedule: Any) -> Any:
    schedule.optimizer._opt_called = True  # else torch warns that the optimizer was not stepped
    schedule.step()
    return schedule


def _rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def _set_rates(optimizer: Optimizer, rates: Sequence[float]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _with_settings(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """A saved state with the settings of the optimizer; its learning rate has the same ratio to the initial one."""
    groups = []
    for given, saved in zip(optimizer.param_groups, state["param_groups"], strict=False):
        # the schedule changes these, as it does the learning rate
        cycled = {"betas", "momentum"} & saved.keys() if "base_momentum" in saved else set()
        group = {**saved, **{name: given[name] for name in given.keys() - {"params", "lr"} - cycled}}
        first, before = (one.get("initial_lr", one["lr"]) for one in (given, saved))
        if first != before:
            group["lr"] = saved["lr"] / before * first if before else first
        groups.append(group)
    return {**state, "param_groups": groups + state["param_groups"][len(groups) :]}


def _parts(schedule: Any) -> list[Any]:
    """A schedule and the schedules that it contains; empty without a schedule."""
    inner = [part for each in getattr(schedule, "_schedulers", []) for part in _parts(each)]
    return [] if schedule is None else [schedule, *inner]


def _settings(schedule: Any) -> dict[str, Any]:
    """The arguments of a schedule, and its initial learning rates."""
    names = {"base_lrs", *DERIVED, *inspect.signature(type(schedule)).parameters} - {"optimizer", "last_epoch", "schedulers"}
    return {name: value for name, value in vars(schedule).items() if name.removeprefix("_") in names}


def _in_memory_order(collect: Callable[..., bool], group: dict[str, Any], *lists: list[Tensor]) -> bool:
    """Collects weights, gradients and moments for Adam; large ones on a CPU as views whose elements follow one another as in
    memory: fused Adam copies all others, which for channels-last weights takes longer than its step.
    """
    has_complex = collect(group, *lists)
    for i, weight in enumerate(lists[0] if group["fused"] else []):
        if weight.numel() > LARGE and type(weight) is Parameter and weight.is_cpu and not weight.is_contiguous():
            for tensors in lists:
                if tensors and tensors[i].ndim == weight.ndim:
                    tensors[i] = tensors[i].movedim(1, -1)
    return has_complex


def arrange_as_parameters(optimizer: Optimizer) -> None:
    """Gives the optimizer's state the memory format of the parameters: a fused optimizer reads both in memory order, and
    would mix up weights where they differ, as after loading contiguous state for channels-last weights.

    Raises:
        ValueError: a state has another shape than its weight: a fused optimizer would write outside of its memory.
    """
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if fused and isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(f"{name} of shape {tuple(value.shape)} for a weight of shape {tuple(parameter.shape)}")
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
