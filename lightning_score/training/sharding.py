"""A network whose weights, gradients, averages and optimizer state are sharded over processes (FSDP)."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer, strategies
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_score.errors import require
from lightning_score.networks import Network
from lightning_score.training.model import ScoreModel

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

OTHERS = (strategies.FSDPStrategy, strategies.ModelParallelStrategy, strategies.DeepSpeedStrategy)
"""Strategies that shard weights and do not unshard them for sampling."""
NAME = "fsdp2"


class FullyShard(strategies.DDPStrategy):
    """Each process holds a shard of the weights, of their averages, of the gradients and of the optimizer's state, which for
    N processes take 1/N of the memory; the network's units are unsharded one at a time, when they are needed (Rajbhandari et
    al. 2020, arXiv:1910.02054, stage 3; PyTorch's `fully_shard`). For validation all weights are unsharded, once, so that
    each process draws its own samples. Checkpoints hold full tensors, as those of any run.

    Args:
        timeout: longest time that a process waits for the others.
        process_group_backend: how processes communicate; null: nccl on GPUs, gloo on CPUs.

    Raises:
        InputError: 16-bit precision other than bfloat16; a compiled network; an objective that differentiates the score;
            weights that are not the network's.
    """

    def __init__(self, timeout: timedelta = dist.default_pg_timeout, process_group_backend: str | None = None) -> None:
        super().__init__(timeout=timeout, process_group_backend=process_group_backend)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """A checkpoint is loaded after the weights are sharded, because its tensors are sharded like them."""
        return True

    @property
    def score_model(self) -> ScoreModel:
        return cast(ScoreModel, self.lightning_module)

    def setup(self, trainer: Trainer) -> None:
        """Shards the weights for training; a model that is only evaluated is not sharded."""
        if trainer.state.fn == TrainerFn.FITTING or not is_sharded(self.score_model):
            super().setup(trainer)
        else:  # evaluated after it was trained
            trainer.accelerator.setup(trainer)
            self.model_to_device()
            self.setup_precision_plugin()

    def configure_ddp(self) -> None:
        """Shards the weights, instead of wrapping the network in DDP."""
        self._check()
        network = cast(Network, self.score_model.score_function.network)
        if not is_sharded(network):
            shard(self.score_model, network, self.root_device, self.score_model.learned)

    def _check(self) -> None:
        """Refuses settings with which weights cannot be sharded."""
        model, precision = self.score_model, self.precision_plugin.precision
        inside = {w for part in (model.score_function.network, model.learned) if part is not None for w in part.parameters()}
        outside = [name for name, weight in model.named_parameters() if weight not in inside]
        for refused, setting, reason in (
            (precision in ("16-mixed", "16-true"), f"--trainer.precision {precision}", "; use bf16-mixed or 32-true"),
            (model.compiled, "--model.compile", ", which unshards weights within the network; set it to null"),
            (
                model.objective.differentiates_score,
                f"--model.objective {type(model.objective).__name__}",
                ", because it differentiates the score, which needs all weights; use ddp",
            ),
            (bool(outside), f"weights outside of the network ({', '.join(outside[:3])})", "; use ddp"),
        ):
            require(not refused, f"{setting}: not with --trainer.strategy {NAME}{reason}")

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Loads this process's shard of a checkpoint's weights."""
        load_weights(self.score_model, checkpoint["state_dict"], strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Loads this process's shard of the optimizers' state."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            numbers = chain.from_iterable(group["params"] for group in saved["param_groups"])
            parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
            for number, parameter in zip(numbers, parameters, strict=True):
                values = saved["state"].get(number, {})
                values |= {name: shard_like(value, parameter) for name, value in values.items()}
        super().load_optimizer_state_dict(checkpoint)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The shards of the weights: the unsharded ones may be older."""
        set_sharded(self.score_model, True)
        return super().lightning_module_state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Unshards one tensor after the other, and writes them all on the first process."""
        from torch.distributed.tensor import DTensor

        super().save_checkpoint(apply_to_collection(checkpoint, DTensor, self._for_first), filepath, storage_options)

    def _for_first(self, tensor: "DTensor") -> Tensor | None:
        full = tensor.full_tensor()
        return full.cpu() if self.is_global_zero else None

    def on_validation_start(self) -> None:
        """Unshards the weights, after the callbacks have written the averages into them."""
        set_sharded(self.score_model, False)

    def on_validation_end(self) -> None:
        """Shards the weights again for training."""
        set_sharded(self.score_model, True)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def teardown(self) -> None:
        """Ends the strategy; the shards stay on their devices."""
        for part in (self.cluster_environment, self.precision_plugin, self.accelerator, self.checkpoint_io):
            part.teardown()  # type: ignore[union-attr]


strategies.StrategyRegistry.register(NAME, FullyShard, "weights, averages and optimizer state sharded (PyTorch's FSDP2)")


def check_strategy(trainer: Trainer) -> None:
    """Refuses strategies that shard a network's weights and do not unshard them for sampling: each process draws its own
    samples, and would wait for the weights of others forever.

    Args:
        trainer: the trainer.

    Raises:
        InputError: the strategy is one of these.
    """
    strategy = type(trainer.strategy).__name__
    require(
        not isinstance(trainer.strategy, OTHERS),
        f"--trainer.strategy {strategy}: shards the weights, but every process draws its own samples with all of them; use "
        f"{NAME}, which unshards them for that, or ddp",
    )


def shard(module: nn.Module, network: Network, device: torch.device, learned: nn.Module | None = None) -> None:
    """Shards a network's weights, those of the first process.

    Args:
        module: contains the network; its other tensors are copied from the first process.
        network: its `units` are unsharded one at a time.
        device: where the weights are.
        learned: another part with weights, those of the objective; null: none.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # takes a second to import

    for tensor in chain(module.parameters(), module.buffers()):
        tensor.data = tensor.data.contiguous()  # channels-last weights cannot be sharded
        dist.broadcast(tensor.data, 0)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in reversed(list(network.modules())):  # inner parts first
        if isinstance(part, network.units):
            fully_shard(part, mesh=mesh)
    fully_shard(network, mesh=mesh)
    if learned is not None:
        fully_shard(learned, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's weights are sharded."""
    return bool(_units(module))


def set_sharded(module: nn.Module, sharded: bool) -> None:
    """Leaves each process its shard of the weights, or gives it all of them; all processes must call it. Does nothing to a
    module that is not sharded.
    """
    with torch.inference_mode(False):
        for part in _units(module):
            part.set_reshard_after_forward(sharded, recurse=False)
            part.set_reshard_after_backward(sharded, recurse=False)
            part.set_requires_gradient_sync(sharded, recurse=False)
            part.reshard() if sharded else part.unshard()


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Gives each process all weights inside a `with` block, if they are sharded; all processes must enter it."""
    set_sharded(module, False)
    try:
        yield
    finally:
        set_sharded(module, True)


def refresh(module: nn.Module) -> None:
    """Updates unsharded weights after a change of their shards; all processes must call it."""
    if is_sharded(module) and not any(map(_is_shard, module.parameters())):
        set_sharded(module, True)
        set_sharded(module, False)


def local(tensor: Tensor) -> Tensor:
    """The local shard of a tensor."""
    return tensor.to_local() if _is_shard(tensor) else tensor


def shard_like(tensor: Any, like: Tensor) -> Any:
    """A full tensor, sharded like another of the same shape; anything else is returned as it is."""
    if not _is_shard(like) or not isinstance(tensor, Tensor) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device).contiguous(), like.device_mesh, like.placements, src_data_rank=None)


def load_weights(module: nn.Module, state: Mapping[str, Tensor], strict: bool = True) -> None:
    """`load_state_dict` with full tensors, which are sharded like the weights of the module."""
    own = dict(module.named_parameters(remove_duplicate=False))
    shards = {name: shard_like(tensor, own[name]) if name in own else tensor for name, tensor in state.items()}
    module.load_state_dict(shards, strict=strict)


def full_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` of unsharded weights, on one process, without communication."""
    if not is_sharded(module):
        return module.state_dict()
    tensors = chain(module.named_parameters(), module.named_buffers())
    return {name: tensor.detach() for name, tensor in tensors if _is_saved(module, name)}


def _is_saved(module: nn.Module, name: str) -> bool:
    """Whether a parameter or buffer is part of the `state_dict`, which would shard the weights again."""
    path, _, last = name.rpartition(".")
    return last not in module.get_submodule(path)._non_persistent_buffers_set


def _units(module: nn.Module) -> "list[FSDPModule]":
    """The parts of a module that are unsharded one at a time."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # takes a second to import, before which nothing is sharded
    return [part for part in module.modules() if isinstance(part, fsdp.FSDPModule)] if fsdp else []


def _is_shard(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether a tensor is the shard of another."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)
