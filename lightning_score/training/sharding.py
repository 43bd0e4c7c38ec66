"""A network whose weights, gradients, averages and optimizer state are shared out among processes (FSDP)."""

import lightning_score.torchvision_guard  # noqa: F401

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    StrategyRegistry,
)
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_score.errors import require
from lightning_score.networks import Network

OTHERS = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)
"""Strategies that share out weights and do not gather them for samples."""
NAME = "fsdp2"


class FullyShard(DDPStrategy):
    """Each process keeps a share of the weights, of their averages, of the gradients and of the optimizer's state, which for
    N processes take 1/N of the memory; the weights of one of the network's units at a time are gathered when they are needed
    (Rajbhandari et al. 2020, arXiv:1910.02054, stage 3; PyTorch's `fully_shard`). For validation all are gathered, once, so
    that each process draws samples of its own. Checkpoints are those of any run, whole.

    Args:
        timeout: how long a process waits for the others.
        process_group_backend: how processes communicate; null: nccl on GPUs, gloo on CPUs.

    Raises:
        InputError: 16-bit precision other than bfloat16; a compiled network; an objective that differentiates the score;
            weights that are not the network's.
    """

    def __init__(self, timeout: timedelta = dist.default_pg_timeout, process_group_backend: str | None = None) -> None:
        super().__init__(timeout=timeout, process_group_backend=process_group_backend)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """A checkpoint's tensors are shared out as the weights are, which must have happened by then."""
        return True

    def setup(self, trainer: Trainer) -> None:
        """Shares out the weights for training; a model that is only evaluated stays whole."""
        if trainer.state.fn == TrainerFn.FITTING or not is_sharded(self.lightning_module):
            super().setup(trainer)
        else:  # evaluated after it was trained
            self.accelerator.setup(trainer)
            self.model_to_device()
            self.setup_precision_plugin()

    def configure_ddp(self) -> None:
        """Shares out the weights, in place of wrapping a network that every process has whole."""
        self._check()
        network = self.lightning_module.score_function.network
        if not is_sharded(network):
            shard(self.lightning_module, network, self.root_device)

    def _check(self) -> None:
        precision, objective = self.precision_plugin.precision, self.lightning_module.objective
        network = self.lightning_module.score_function.network
        require(
            precision not in ("16-mixed", "16-true"),
            f"--trainer.precision {precision}: not with the strategy {NAME}; take bf16-mixed, or 32-true",
        )
        require(
            network._compiled_call_impl is None,
            f"--model.compile: not with the strategy {NAME}, which gathers weights within the network; set it to null",
        )
        require(
            not objective.differentiates_score,
            f"objective {type(objective).__name__}: not with the strategy {NAME}, for it differentiates the score, "
            "with all weights at hand; take ddp",
        )
        inside = set(network.parameters())
        outside = [name for name, weight in self.lightning_module.named_parameters() if weight not in inside]
        require(not outside, f"strategy {NAME}: weights that are not the network's, {', '.join(outside[:3])}; take ddp")

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Takes this process's share of a checkpoint's weights."""
        load_weights(self.lightning_module, checkpoint["state_dict"], strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes this process's share of the optimizers' state."""
        shared = []
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
            numbers = chain.from_iterable(group["params"] for group in state["param_groups"])
            known = dict(zip(numbers, parameters, strict=True))
            shares = {
                number: {name: shard_like(value, known[number]) for name, value in values.items()}
                for number, values in state["state"].items()
            }
            shared.append({**state, "state": shares})
        super().load_optimizer_state_dict({"optimizer_states": shared})

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The shares of the weights: their last gathering may be older than they are."""
        reshard(self.lightning_module)
        return super().lightning_module_state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Gathers one tensor after the other, and writes them all on the first process."""
        super().save_checkpoint(apply_to_collection(checkpoint, DTensor, self._for_first), filepath, storage_options)

    def _for_first(self, tensor: DTensor) -> Tensor | None:
        gathered = tensor.full_tensor()
        return gathered.cpu() if self.is_global_zero else None

    def on_validation_start(self) -> None:
        """Comes after the callbacks, which give the model its averages."""
        unshard(self.lightning_module)

    def on_validation_end(self) -> None:
        """Training needs no more than shares."""
        reshard(self.lightning_module)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def teardown(self) -> None:
        """The shares stay on their devices."""
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()


StrategyRegistry.register(NAME, FullyShard, description="weights, averages and optimizer state shared out (PyTorch's FSDP2)")


def check_strategy(trainer: Trainer) -> None:
    """Refuses strategies that share out a network's weights among processes and do not gather them for samples: each process
    draws samples of its own here, and would wait for others that draw none.

    Args:
        trainer: the trainer.

    Raises:
        InputError: the strategy is one of these.
    """
    strategy = type(trainer.strategy).__name__
    require(
        not isinstance(trainer.strategy, OTHERS),
        f"--trainer.strategy {strategy}: shares out the weights, but every process draws samples of its own with the whole "
        f"network; take {NAME}, which gathers them for that, or ddp",
    )


def shard(module: nn.Module, network: Network, device: torch.device) -> None:
    """Leaves each process a share of a network's weights, those of the first.

    Args:
        module: holds the network; its other tensors become those of the first process.
        network: its `units` are gathered one at a time.
        device: where the weights are.
    """
    for tensor in chain(module.parameters(), module.buffers()):
        tensor.data = tensor.data.contiguous()  # channels-last weights cannot be shared out
        dist.broadcast(tensor.data, 0)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in reversed(list(network.modules())):  # from the inside
        if isinstance(part, network.units):
            fully_shard(part, mesh=mesh)
    fully_shard(network, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether this process has but a share of a module's weights."""
    return bool(_units(module))


def unshard(module: nn.Module) -> None:
    """Gives each process all weights until `scatter`; does nothing for weights that are not shared out. All must call it."""
    with torch.inference_mode(False):
        for part in _units(module):
            _reshard_after_use(part, False)
            part.unshard()


def reshard(module: nn.Module) -> None:
    """Leaves each process its share again."""
    for part in _units(module):
        _reshard_after_use(part, True)
        part.reshard()


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Each process has all weights inside a `with` block, which all must enter; those that are not shared out stay."""
    unshard(module)
    try:
        yield
    finally:
        reshard(module)


def refresh(module: nn.Module) -> None:
    """Where all weights are gathered: those of the shares, which have changed since. All must call it."""
    if is_sharded(module) and not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        reshard(module)
        unshard(module)


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Any, like: Tensor) -> Any:
    """A whole tensor, shared out as another of the same shape is; anything else as it is."""
    if not isinstance(like, DTensor) or not isinstance(tensor, Tensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device).contiguous(), like.device_mesh, like.placements, src_data_rank=None)


def load_weights(module: nn.Module, state: Mapping[str, Tensor], strict: bool = True) -> None:
    """`load_state_dict` with whole tensors, of which a module whose weights are shared out takes its shares."""
    mine = dict(module.named_parameters(remove_duplicate=False))
    shares = {name: shard_like(tensor, mine[name]) if name in mine else tensor for name, tensor in state.items()}
    module.load_state_dict(shares, strict=strict)


def full_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The `state_dict`, where all weights are gathered, in one process that asks no other."""
    if not is_sharded(module):
        return module.state_dict()
    return {name: tensor.detach() for name, tensor in chain(module.named_parameters(), module.named_buffers())}


def _reshard_after_use(part: FSDPModule, again: bool) -> None:
    """Whether a part's weights go back to shares once they were used, and gradients are summed over the processes."""
    part.set_reshard_after_forward(again, recurse=False)
    part.set_reshard_after_backward(again, recurse=False)
    part.set_requires_gradient_sync(again, recurse=False)


def _units(module: nn.Module) -> list[FSDPModule]:
    """The parts of a module that are gathered one at a time."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]
