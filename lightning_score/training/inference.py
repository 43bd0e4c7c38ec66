"""A model outside of training steps: its modes, and batches that fit into memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error

from lightning_score.errors import InputError
from lightning_score.sampling.sampler import Samples, join


@contextmanager
def inference(model: LightningModule, eagerly: bool = False) -> Iterator[None]:
    """Puts a model into evaluation mode inside a `with` block, in the precision of its trainer if it has one.

    In `fit` and `validate` a compiled network runs without its compilation: their evaluations are too short for another one.

    Args:
        model: a `ScoreModel`.
        eagerly: run a compiled network without its compilation anywhere.
    """
    training, trainer = model.training, model._trainer
    short = trainer is not None and trainer.state.fn in (TrainerFn.FITTING, TrainerFn.VALIDATING)
    eager = torch.compiler.set_stance("force_eager") if model.compiled and (eagerly or short) else nullcontext()
    if training:
        model.eval()
    try:
        with trainer.precision_plugin.forward_context() if trainer else nullcontext(), eager:
            yield
    finally:
        if training:
            model.train()


class FittingBatches:
    """Draws samples in one batch or, where that does not fit into memory, in as few as do; it remembers how many fit.

    Attributes:
        size: samples that fit at once; None while no limit is known.
    """

    def __init__(self) -> None:
        self.size: int | None = None

    def draw(self, n: int, draw: Callable[[slice], Samples], particles: int = 1) -> Samples:
        """The samples 0 to n - 1 of a batch.

        Args:
            n: number of samples.
            draw: draws those of a slice; out of memory, it raises an error.
            particles: samples of a group, which are drawn together.

        Raises:
            InputError: a group does not fit into memory.
        """
        parts: list[Samples] = []
        while (first := sum(len(part.x) for part in parts)) < n:
            end = min(first + whole(self.size or n, particles), n)
            try:
                parts.append(draw(slice(first, end)))
            except RuntimeError as error:
                if not is_oom_error(error) or end - first == 1:
                    raise
                if end - first == particles:
                    raise InputError(
                        f"particles={particles}: so many samples do not fit into memory at once; give fewer"
                    ) from error
                self.size = whole((end - first + 1) // 2, particles)
            else:
                continue
            garbage_collection_cuda()  # after the error, which holds the tensors, is gone
            rank_zero_warn(f"{end - first} samples at once do not fit into memory: from here on {self.size}")
        return join(parts)


def whole(n: int, particles: int) -> int:
    """The largest multiple of `particles` up to n, and at least one group."""
    return max(n // particles, 1) * particles


def share(n: int, rank: int, processes: int, particles: int) -> list[int]:
    """The numbers of 0 to n - 1 that a process draws: groups of particles go to the processes in turn."""
    return [k for k in range(n) if k // particles % processes == rank]


def completed(indices: Sequence[int], particles: int) -> tuple[list[int], list[int], list[int]]:
    """All numbers of the groups of the given ones, (B,); which given one shares the group of each; where the given ones are.

    Args:
        indices: the numbers k, of the groups k // particles.
        particles: samples of a group.
    """
    groups = {k // particles: row for row, k in reversed([*enumerate(indices)])}
    order = sorted(groups)
    place = {group: i * particles for i, group in enumerate(order)}
    numbers = [group * particles + j for group in order for j in range(particles)]
    return numbers, [groups[k // particles] for k in numbers], [place[k // particles] + k % particles for k in indices]
