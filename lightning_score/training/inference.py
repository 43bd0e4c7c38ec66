"""A model outside of training steps: its modes, and batches that fit into memory."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error

from lightning_score.sampling.sampler import Samples, join


def eager(wanted: bool) -> AbstractContextManager[None]:
    """Runs compiled networks without their compilation inside a `with` block, if that is wanted."""
    return torch.compiler.set_stance("force_eager") if wanted else nullcontext()


@contextmanager
def inference(model: LightningModule, eagerly: bool = False) -> Iterator[None]:
    """Puts a model into evaluation mode inside a `with` block, in the precision of its trainer if it has one.

    Args:
        model: the model.
        eagerly: run a compiled network without its compilation.
    """
    training, trainer = model.training, model._trainer
    model.eval()
    try:
        with trainer.precision_plugin.forward_context() if trainer else nullcontext(), eager(eagerly):
            yield
    finally:
        model.train(training)


class FittingBatches:
    """Draws samples in one batch or, where that does not fit into memory, in as few as do; it remembers how many fit.

    Attributes:
        size: samples that fit at once; None while no limit is known.
    """

    def __init__(self) -> None:
        self.size: int | None = None

    def draw(self, n: int, draw: Callable[[slice], Samples]) -> Samples:
        """The samples 0 to n - 1 of a batch.

        Args:
            n: number of samples.
            draw: draws those of a slice; out of memory, it raises.
        """
        parts: list[Samples] = []
        while (first := sum(len(part.x) for part in parts)) < n:
            end = min(first + (self.size or n), n)
            try:
                parts.append(draw(slice(first, end)))
            except RuntimeError as error:
                if not is_oom_error(error) or end - first == 1:
                    raise
                self.size = (end - first + 1) // 2
            else:
                continue
            garbage_collection_cuda()  # after the error, which holds the tensors, is gone
            rank_zero_warn(f"{end - first} samples at once do not fit into memory: from here on {self.size}")
        return join(parts)
