"""The interface of networks: functions of noisy data, a noise label and a class."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from lightning_score.errors import require


class Network(nn.Module, ABC):
    """A function `f(x, noise_label, cond)` with an output shaped like `x`; the parametrization gives the output its meaning.

    Args:
        shape: shape of one sample without the batch, (C, H, W) for images, (D,) for points.
        num_classes: number of classes it can be conditioned on; 0 for none.

    Raises:
        InputError: for a shape with no positive sizes or a negative number of classes.
    """

    def __init__(self, shape: Sequence[int], num_classes: int = 0) -> None:
        super().__init__()
        require(
            len(shape) > 0 and min(shape) > 0,
            f"shape={list(shape)}: must hold positive sizes, [channels, height, width] or [dimension]",
        )
        require(num_classes >= 0, f"num_classes={num_classes}: must be 0 (unconditional) or the number of classes")
        self.shape = tuple(shape)
        self.num_classes = num_classes
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

    @abstractmethod
    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network's output for a batch.

        Args:
            x: noisy data, (B, *shape).
            noise_label: the number that encodes the noise level (log sigma, an index, ...), (B,), or () for all.
            cond: class labels, int64 (B,), from 0 to `num_classes`, which means "no class", as does None.
                A network without classes ignores them.

        Returns:
            A tensor shaped like `x`.
        """
