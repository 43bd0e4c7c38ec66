"""The class labels of a model: which ones it accepts, and how training drops them."""

import torch
from torch import Tensor

from lightning_score.errors import require


class ClassLabels:
    """The class labels of a model.

    Args:
        num_classes: number of classes of the data.
        conditional: whether the network is given the label.
        dropout: probability with which training replaces a label by "no class", which is `num_classes`.

    Raises:
        InputError: the three do not fit one another.
    """

    def __init__(self, num_classes: int, conditional: bool, dropout: float) -> None:
        require(not conditional or num_classes > 0, "conditional=true: the data have no class labels; set it to false")
        require(0 <= dropout <= 1, f"label_dropout={dropout}: must be a probability, 0 to 1, as in 0.1")
        require(conditional or dropout == 0, f"label_dropout={dropout}: needs conditional=true, or set it to 0")
        self.num_classes, self.conditional, self.dropout = num_classes, conditional, dropout

    def of_batch(self, y: Tensor, training: bool) -> Tensor | None:
        """The labels that the network is given for those of the data, (B,); in training some are dropped."""
        if not self.conditional or not training or self.dropout == 0:
            return y if self.conditional else None
        return torch.where(torch.rand(y.shape, device=y.device) < self.dropout, self.num_classes, y)

    def check(self, labels: Tensor) -> None:
        """Raises `InputError` unless every label is a class of the data, or "no class" where training drops labels."""
        last = self.num_classes - (self.dropout == 0)
        known = f"0 to {self.num_classes - 1}" + (f", or {last} for no class" if last == self.num_classes else "")
        wrong = labels[(labels < 0) | (labels > last)].tolist()
        require(len(labels) > 0 and not wrong, f"labels {wrong or '[]'}: the model knows the classes {known}")
