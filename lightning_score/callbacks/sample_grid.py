"""A grid of samples, and their way from noise to data, at every validation."""

from lightning.pytorch import Trainer

from lightning_score.callbacks.base import Periodic, data_of, fast_dev_run
from lightning_score.callbacks.loss_guard import measuring
from lightning_score.callbacks.pictures import Strip, picture_in_turn, publish
from lightning_score.errors import require
from lightning_score.training.model import ScoreModel


class SampleGrid(Periodic):
    """Draws samples with the model's own sampler at the end of validation and publishes their picture as `samples`.

    The numbers and the seed of the samples stay the same, so that the same noise becomes better samples as training
    proceeds. A second picture, `progress`, shows the first samples on their way from noise to data. In
    `fast_dev_run` it draws four and publishes none.

    Args:
        num_samples: samples in the grid; 0: none.
        seed: seed of the samples.
        every_n_validations: how often.
        progressive: samples in the second picture; 0: none.
    """

    def __init__(self, num_samples: int = 64, seed: int = 0, every_n_validations: int = 1, progressive: int = 8):
        require(num_samples >= 0, f"num_samples={num_samples}: must be 0 (no grid) or more, as in 64")
        require(every_n_validations >= 1, f"every_n_validations={every_n_validations}: must be at least 1")
        require(progressive >= 0, f"progressive={progressive}: must be 0 (none) or more, as in 8")
        self.num_samples, self.seed, self.every_n_validations = num_samples, seed, every_n_validations
        self.progressive = progressive

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Draws within validation, where the model holds the averaged weights."""
        if self.due(trainer) and self.num_samples and trainer.is_global_zero:
            with measuring(trainer, pl_module, "samples"):
                self._show(trainer, pl_module)

    def _show(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        fast, data = fast_dev_run(trainer), data_of(trainer)
        strip = Strip(pl_module, data, self.progressive) if self.progressive else None
        samples = pl_module.draw(range(min(self.num_samples, 4) if fast else self.num_samples), self.seed, observe=strip)
        picture = picture_in_turn(pl_module, data, data.to_reference(samples.x))
        if fast:
            return
        publish(trainer, "samples", picture, f"step {trainer.global_step}, NFE {samples.nfe:g}")
        if strip is not None:
            caption = f"step {trainer.global_step}, from noise to data, NFE {samples.nfe:g}"
            publish(trainer, "progress", strip.picture(samples), caption)
