"""What a network is to the rest of the package: a function of noisy data, the number of its noise level and a class."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from lightning_score.errors import require


class Network(nn.Module, ABC):
    """A function `f(x, noise_label, cond)` with an output shaped like `x`; what the output means is not its business.

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
            f"shape={list(shape)}: sizes must be positive; give [channels, height, width] or [dimension]",
        )
        require(num_classes >= 0, f"num_classes={num_classes}: must be 0 (unconditional) or the number of classes")
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self._augmented: Tensor | None = None

    units: tuple[type[nn.Module], ...] = ()
    """Parts whose weights are gathered one part at a time where they are shared out among processes."""

    augmentations: int = 0
    """How many numbers can tell the network how its input was augmented."""

    @contextmanager
    def augmented(self, done: Tensor) -> Iterator[None]:
        """Tells the network, inside a `with` block, how the images that it sees were augmented, (B, augmentations)."""
        self._augmented = done
        try:
            yield
        finally:
            self._augmented = None

    @abstractmethod
    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network's output for a batch.

        Args:
            x: noisy data, (B, *shape).
            noise_label: the number that stands for the noise level (log sigma, an index, ...), (B,), or () for all.
            cond: class labels, int64 (B,), from 0 to `num_classes`, which means "no class", as does None.
                A network of no classes ignores them.

        Returns:
            A tensor shaped like `x`.
        """
