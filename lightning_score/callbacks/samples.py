"""A grid of samples at every validation."""

from lightning.pytorch import Callback, Trainer

from lightning_score.callbacks.pictures import publish, sample_picture
from lightning_score.model import ScoreModel
from lightning_score.utils import require


class SampleGrid(Callback):
    """Draws samples with the model's own sampler at the end of validation and publishes their picture as `samples`.

    The numbers and the seed of the samples stay the same, so that one sees the same noise turn into better and better
    samples. In `fast_dev_run` it draws four and keeps none.

    Args:
        num_samples: samples in the grid; 0: none.
        seed: seed of the samples.
        every_n_validations: how often.
    """

    def __init__(self, num_samples: int = 64, seed: int = 0, every_n_validations: int = 1):
        require(num_samples >= 0, f"num_samples={num_samples}: must be 0 (no grid) or more, as in 64")
        require(every_n_validations >= 1, f"every_n_validations={every_n_validations}: must be at least 1")
        self.num_samples, self.seed, self.every_n_validations = num_samples, seed, every_n_validations
        self._validations = 0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Within validation, because the weights are the averaged ones there."""
        self._validations += not trainer.sanity_checking
        due = self._validations % self.every_n_validations == 0 and not trainer.sanity_checking
        if not (due and self.num_samples and trainer.is_global_zero):
            return
        fast = bool(trainer.fast_dev_run)
        samples = pl_module.draw(range(min(self.num_samples, 4) if fast else self.num_samples), self.seed)
        picture = sample_picture(trainer.datamodule.to_reference(samples.x))
        if not fast:
            publish(trainer, "samples", picture, f"step {trainer.global_step}, NFE {samples.nfe:g}")
