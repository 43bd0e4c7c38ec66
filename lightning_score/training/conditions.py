"""The conditions of a model: which ones it accepts, how training drops them, and those of samples that are given none."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor

from lightning_score.conditions import ClassLabel, Condition, condition_of
from lightning_score.data import ScoreData
from lightning_score.errors import InputError, require
from lightning_score.guidance import ModelFacts
from lightning_score.networks import Network

NetworkCallable = Callable[[Sequence[int], int], Network]
NO_CONDITION = (
    "takes no condition but class labels: let it take a parameter `condition` and give it to `super().__init__(shape, "
    "num_classes, condition)`, or use MLP, UNet, DDPMpp or NCSNpp, or set conditional=false"
)


class Conditions:
    """The conditions of a model.

    Args:
        num_classes: number of classes of the data.
        condition: what the data give instead of a class label; None: nothing else.
        conditional: whether the network is given the condition.
        dropout: probability with which training replaces a condition by "no condition".

    Attributes:
        kind: the condition; None for data without.
        in_turn: the conditions that samples have in turn, (n, ...); None while unknown, and for class labels.

    Raises:
        InputError: the three do not fit one another.
    """

    def __init__(self, num_classes: int, condition: Condition | None, conditional: bool, dropout: float) -> None:
        self.kind, self.conditional, self.dropout = condition_of(num_classes, condition), conditional, dropout
        self.num_classes = self.kind.num_classes if self.kind else 0
        self.in_turn: Tensor | None = None
        require(
            not conditional or self.kind is not None,
            "conditional=true: the data have no class labels or other conditions; set it to false",
        )
        require(0 <= dropout <= 1, f"label_dropout={dropout}: must be a probability, 0 to 1, as in 0.1")
        require(conditional or dropout == 0, f"label_dropout={dropout}: needs conditional=true, or set it to 0")

    @property
    def given(self) -> Condition | None:
        """What the network is given; None for an unconditional one."""
        return self.kind if self.conditional else None

    def facts(self, shape: tuple[int, ...], compiled: bool) -> ModelFacts:
        """What a guidance checks of a model for data of a shape."""
        return ModelFacts(shape, self.num_classes, self.conditional, self.dropout, compiled)

    def build(self, network: NetworkCallable, shape: tuple[int, ...]) -> Network:
        """The network for data of a shape.

        Raises:
            InputError: it does not take the condition.
        """
        if self.given is None or type(self.given) is ClassLabel:  # as networks take it that know class labels alone
            return network(shape, self.num_classes if self.conditional else 0)
        try:
            built: Network = cast(Any, network)(shape, 0, condition=self.given)
        except TypeError as error:
            if "'condition'" not in str(error):
                raise
            raise InputError(f"network: {NO_CONDITION}") from error
        require(getattr(built, "condition", None) is self.given, f"network={type(built).__name__}: {NO_CONDITION}")
        return built

    def of_batch(self, y: Tensor, training: bool) -> Tensor | None:
        """What the network is given for the conditions of the data, (B, ...); in training some are dropped."""
        if self.given is None or not training or self.dropout == 0:
            return y if self.conditional else None
        return self.given.drop(y, self.dropout)

    def check(self, cond: Tensor, taken: bool, n: int | None = None) -> None:
        """Raises `InputError` unless these are conditions as in training, or "no condition" where training drops them.

        Args:
            cond: the conditions.
            taken: whether the model or its guidance takes any.
            n: the number of samples, each of which needs one; None: any number.
        """
        name, kind = "labels" if self.num_classes else "conditions", self.require_taken(taken)
        kind.check(cond, empty=self.dropout > 0)
        require(n is None or len(cond) == n, f"{len(cond)} {name} for {n} samples: give one per sample")

    def require_taken(self, taken: bool) -> Condition:
        """The kind of conditions; raises `InputError` if the model or its guidance take none."""
        if self.kind is None or not taken:
            raise InputError("conditional=false: this model is unconditional; train one with conditional=true")
        return self.kind

    def take_from(self, data: ScoreData) -> None:
        """From now on samples have the conditions of the held-out examples in turn, or all labels."""
        if self.kind is not None and not self.num_classes:
            self.in_turn = data.held_out_conditions()

    def default(self, numbers: Tensor) -> Tensor:
        """The conditions of samples that are given none, (B, ...): sample k has the label k mod num_classes, or the
        condition k mod n of the n held-out examples.
        """
        if self.num_classes:
            return numbers % self.num_classes
        if self.in_turn is None:
            raise InputError(
                f"cond: this model needs a condition of shape {self.kind.shape if self.kind else ()} per sample: give cond, "
                "or model.conditions.take_from(data) for those of the held-out examples"
            )
        return in_turn(self.in_turn, numbers)


def in_turn(cond: Tensor, numbers: Tensor) -> Tensor:
    """The conditions of samples of these numbers, (B, ...), which have `cond` (n, ...) in turn."""
    return cond[(numbers % len(cond)).to(cond.device)].to(numbers.device)
