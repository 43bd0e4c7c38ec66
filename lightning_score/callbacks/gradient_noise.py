"""The gradient noise scale: from which batch size on more examples no longer save steps."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_score.errors import require
from lightning_score.seeds import counted_seed, seeded
from lightning_score.training.model import ScoreModel
from lightning_score.training.sharding import is_sharded


class GradientNoiseScale(Callback):
    """Logs `train/gradient_noise_scale`, B = tr(S)/|G|^2, with G the gradient of the mean loss and S the covariance of the
    gradients of single examples: batches far below B make almost as many times more progress as they are larger, batches
    far above it make hardly more (McCandlish et al. 2018, 1812.06162, eq. 2.8).

    Every `every_n_steps` steps the gradients of both halves of the batch, on every process and with new noise, estimate
    tr(S) and |G|^2 without bias (appendix A.1). Their ratio is one of averages over measurements: |G|^2 alone is often
    estimated below 0. A measurement takes as long as a training step.

    Args:
        every_n_steps: training steps between two measurements.
        decay: of the averages over measurements, in [0, 1): they are over about 1/(1 - decay) of them.

    Raises:
        InputError: a number is out of range; in training, the weights are sharded or a batch has one example.
    """

    def __init__(self, every_n_steps: int = 50, decay: float = 0.9) -> None:
        super().__init__()
        require(every_n_steps >= 1, f"every_n_steps={every_n_steps}: must be at least 1, as in 50")
        require(0 <= decay < 1, f"decay={decay}: must be in [0, 1), as in 0.9")
        self.every_n_steps, self.decay = every_n_steps, decay
        self._averages, self._step = [0.0, 0.0], 0  # of tr(S) and |G|^2

    def on_train_start(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Counts optimizer steps from here."""
        require(not is_sharded(pl_module), "GradientNoiseScale: needs whole weights on every process; use strategy ddp")
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: ScoreModel, outputs: Any, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> None:
        """Measures after the last batch of an optimizer step, if it is due."""
        step = trainer.global_step
        if step == self._step or step % self.every_n_steps:
            return
        self._step, n = step, len(batch[0])
        require(n > 1, "GradientNoiseScale: a batch has one example, and needs two; increase data.batch_size")
        x, y = batch
        halves = [(x[rows], y[rows]) for rows in torch.arange(n // 2 * 2).chunk(2)]
        with seeded(counted_seed(step, trainer.global_rank), pl_module.device), trainer.precision_plugin.forward_context():
            gradients = torch.stack([_gradient(pl_module, half) for half in halves])
        square, mean = gradients.square().sum(1).mean(), gradients.mean(0)
        if trainer.world_size > 1:
            square, mean = (trainer.strategy.reduce(value, reduce_op="mean") for value in (square, mean))
        found = noise_and_signal(float(square), float(mean.square().sum()), 2 * trainer.world_size, n // 2)
        self._averages = [self.decay * old + (1 - self.decay) * new for old, new in zip(self._averages, found, strict=True)]
        noise, signal = self._averages
        pl_module.log("train/gradient_noise_scale", noise / signal if signal > 0 else float("inf"))

    def state_dict(self) -> dict[str, Any]:
        """The averages so far."""
        return {"averages": self._averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues them."""
        self._averages = list(state_dict["averages"])


def noise_and_signal(square: float, square_of_mean: float, batches: int, examples: int) -> tuple[float, float]:
    """Unbiased estimates of tr(S) and |G|^2 from the gradients of several batches (McCandlish et al. 2018, appendix A.1).

    Args:
        square: the mean of the squared norms of their gradients, with the expectation |G|^2 + tr(S)/examples.
        square_of_mean: the squared norm of the mean gradient, |G|^2 + tr(S)/(batches examples) on average.
        batches: their number, 2 or more.
        examples: in each of them.
    """
    noise = (square - square_of_mean) * examples * batches / (batches - 1)
    return noise, square_of_mean - noise / (examples * batches)


def _gradient(model: ScoreModel, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The gradient of the mean loss of a batch in all weights, (N,)."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(model.loss(batch), weights, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten().float() for gradient in found])
