"""A network for points, such as the two-dimensional toys."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_score.conditions import Condition
from lightning_score.errors import require
from lightning_score.networks.base import Network
from lightning_score.networks.blocks import zero
from lightning_score.networks.conditioning import Conditioning, NoiseEmbedding, PositionalEmbedding


class MLPBlock(nn.Module):
    """Two linear maps, shifted in between by the conditioning vector, added to their input.

    `y = x + W_2 silu(W_1 silu(x) + W c)`

    Args:
        width: size of input, output and conditioning vector.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, width)
        self.shift = nn.Linear(width, width)
        self.linear2 = nn.Linear(width, width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return x + self.linear2(F.silu(self.linear1(F.silu(x)) + self.shift(c)))


class MLP(Network):
    """A residual multilayer perceptron for points.

    Args:
        shape: [D], the dimension of a point.
        num_classes: number of classes it can be conditioned on; 0 for none.
        width: size of the hidden layers.
        depth: number of residual blocks.
        embedding: features of the noise label; by default a PositionalEmbedding as wide as the hidden layers.
        condition: what it is conditioned on instead of classes, which the model gives it; null for nothing.

    Raises:
        InputError: for a shape that is not a point's, or a width or depth that is not positive.
    """

    units = (MLPBlock,)

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int = 0,
        width: int = 128,
        depth: int = 3,
        embedding: NoiseEmbedding | None = None,
        condition: Condition | None = None,
    ) -> None:
        super().__init__(shape, num_classes, condition)
        require(
            len(shape) == 1,
            f"shape={list(shape)}: an MLP takes points, [dimension]; use a UNet for signals, images and volumes",
        )
        require(width > 0 and depth > 0, f"width={width}, depth={depth}: both must be positive")
        self.conditioning = Conditioning(embedding or PositionalEmbedding(width), width, self.condition)
        self.linear_in = nn.Linear(self.inputs, width)
        self.blocks = nn.ModuleList(MLPBlock(width) for _ in range(depth))
        self.linear_out = zero(nn.Linear(width, shape[0]))

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor | None = None) -> Tensor:
        c = self.conditioning(noise_label, cond)
        h = self.linear_in(self.join(x, cond))
        for block in self.blocks:
            h = block(h, c)
        return self.linear_out(F.silu(h))
