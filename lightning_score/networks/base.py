"""The interface of networks: functions of noisy data, a noise label and a condition."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_score.conditions import Condition, condition_of
from lightning_score.errors import require


class Network(nn.Module, ABC):
    """A function `f(x, noise_label, cond)` with an output shaped like `x`; the parametrization gives the output its meaning.

    Args:
        shape: shape of one sample without the batch, (C, L) for signals, (C, H, W) for images, (C, D, H, W) for
            volumes, (D,) for points.
        num_classes: number of classes it can be conditioned on; 0 for none.
        condition: what it is conditioned on instead of classes; null for nothing.

    Attributes:
        inputs: channels of x joined with those of the condition.

    Raises:
        InputError: for a shape with no positive sizes, a negative number of classes, or a condition besides classes or one
            that does not fit the shape.
    """

    def __init__(self, shape: Sequence[int], num_classes: int = 0, condition: Condition | None = None) -> None:
        super().__init__()
        require(
            len(shape) > 0 and min(shape) > 0,
            f"shape={list(shape)}: must hold positive sizes, the channels first, or the dimension of a point",
        )
        require(num_classes >= 0, f"num_classes={num_classes}: must be 0 (unconditional) or the number of classes")
        require(
            condition is None or num_classes == 0,
            f"num_classes={num_classes}: must be 0 with a condition; give Several conditions, one of them a ClassLabel",
        )
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.condition = condition_of(num_classes, condition)
        self.inputs = shape[0] + (self.condition.channels if self.condition else 0)
        self.join(torch.zeros(1, *shape), None)  # refuses arrays that do not fit
        self._augmented: Tensor | None = None

    units: tuple[type[nn.Module], ...] = ()
    """Modules that are unsharded one at a time under FSDP."""

    augmentations: int = 0
    """Number of augmentation labels that the network takes."""

    @contextmanager
    def augmented(self, labels: Tensor) -> Iterator[None]:
        """Gives the network, inside a `with` block, the augmentation labels of its images, (B, augmentations)."""
        self._augmented = labels
        try:
            yield
        finally:
            self._augmented = None

    def join(self, x: Tensor, cond: Tensor | None) -> Tensor:
        """x and the channels of the condition, (B, inputs, ...)."""
        if self.condition is None or self.condition.channels == 0:
            return x
        given = self.condition.empty(1, x.device) if cond is None else cond
        planes = self.condition.planes(given, x.shape[2:]).to(x.dtype)
        return torch.cat([x, planes.expand(len(x), *planes.shape[1:])], dim=1)

    @abstractmethod
    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network's output for a batch.

        Args:
            x: noisy data, (B, *shape).
            noise_label: the number that encodes the noise level (log sigma, an index, ...), (B,), or () for all.
            cond: conditions (B, *shape of the condition), such as class labels, int64 (B,); None for "no condition".
                A network without a condition ignores them.

        Returns:
            A tensor shaped like `x`.
        """
