"""The picture of a learned weighting, and what it shows."""

import pytest
import torch
from lightning.pytorch import Trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lightning_score.callbacks import EMA, LearnedWeighting, learned_weighting
from lightning_score.data import GaussianMixture
from lightning_score.networks import MLP
from lightning_score.objective import DenoisingScoreMatching, EDMWeighting, LogNormalTimes, SigmaSquared, Uncertainty
from lightning_score.process import VE
from lightning_score.training.model import ScoreModel

TRAINER = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.mark.parametrize("weighting", [SigmaSquared(), Uncertainty(EDMWeighting())], ids=lambda w: type(w).__name__)
def test_a_picture_at_every_validation_of_a_learned_weighting(tmp_path, weighting):
    objective = DenoisingScoreMatching(weighting, LogNormalTimes(-0.5, 0.8), mean=True)
    model = ScoreModel(lambda s, c: MLP(s, c, 8, 1), (2,), VE(0.05, 5.0), objective=objective)
    trainer = Trainer(
        max_epochs=2, default_root_dir=tmp_path, callbacks=[LearnedWeighting(), EMA()], accelerator="cpu", **TRAINER
    )
    trainer.fit(model, datamodule=GaussianMixture(num_samples=200))
    pictures = [path.name for path in sorted(tmp_path.glob("weighting/*.png"))]
    steps = [trainer.global_step // 2, trainer.global_step]
    assert pictures == ([] if weighting.learned is None else [f"step_{step:07d}.png" for step in steps])


def test_it_shows_the_learned_error_and_its_inverse():
    sigma, error = torch.tensor([0.1, 1.0, 10.0]), torch.tensor([0.9, 0.5, 0.01])
    figure = learned_weighting._figure(sigma, error)
    FigureCanvasAgg(figure).draw()
    expected, weights = (axes.lines[0].get_xydata() for axes in figure.axes)
    assert expected == pytest.approx(torch.stack([sigma, error], 1).numpy())
    assert weights == pytest.approx(torch.stack([sigma, 1 / error], 1).numpy())
