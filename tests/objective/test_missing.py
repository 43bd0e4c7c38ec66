"""Missing entries: what the losses without them learn, and that nothing else sees them as numbers."""

import pytest
import torch
from conftest import MixtureScore
from lightning.pytorch import Trainer

from lightning_score.callbacks import LossFloor
from lightning_score.callbacks.langevin_health import examples_with_noise
from lightning_score.commands.schedule import training_view
from lightning_score.data import GaussianMixture, Mixture
from lightning_score.errors import InputError
from lightning_score.networks import MLP
from lightning_score.objective import (
    DenoisingScoreMatching,
    ExplicitScoreMatching,
    FixedTimes,
    ImplicitScoreMatching,
    SlicedScoreMatching,
)
from lightning_score.process import VE, VP
from lightning_score.score.empirical import EmpiricalScore
from lightning_score.score.function import ScoreWrapper
from lightning_score.tensors import broadcast_to, without_missing
from lightning_score.training.model import ScoreModel

TIMES = FixedTimes(0.7)


class Shifted(ScoreWrapper):
    """A score plus epsilon tanh(x + 0.3), over sigma."""

    def __init__(self, score, epsilon):
        super().__init__(score)
        self.epsilon = epsilon

    def forward(self, x, t, cond=None):
        return self.score(x, t, cond) + self.epsilon * torch.tanh(x + 0.3) / broadcast_to(self.process.sigma(t), x)


def slope_and_curvature(objective, score, x, known):
    """The derivatives of the mean loss in epsilon, each with its standard error, at the same noise."""

    def loss(epsilon):
        torch.manual_seed(0)
        return objective(Shifted(score, epsilon), x, None, known)

    up, middle, down = loss(0.1), loss(0.0), loss(-0.1)
    parts = (up - down) / 0.2, (up - 2 * middle + down) / 0.01
    return [(float(part.mean()), float(part.std()) / len(x) ** 0.5) for part in parts]


def with_gaps(x, share=0.4, seed=5):
    """Data in which entries are missing at random, and where they are known."""
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) > share
    return x.masked_fill(~known, torch.nan), known


@pytest.mark.parametrize(
    "objective",
    [
        DenoisingScoreMatching(times=TIMES),
        DenoisingScoreMatching(times=TIMES, mean=True),
        pytest.param(ImplicitScoreMatching(times=TIMES), marks=pytest.mark.slow),
        SlicedScoreMatching(times=TIMES),
        pytest.param(SlicedScoreMatching(times=TIMES, variance_reduced=False), marks=pytest.mark.slow),
    ],
    ids=["sum", "mean", "implicit", "sliced", "squares"],
)
def test_independent_entries_have_their_own_score(objective):
    """At the score of the complete law the loss of the known entries is least; at that of the filled data it is not."""
    process, mixture = VP(), Mixture([[1.5, -0.5, 0.0]], [0.8])
    x, known = without_missing(with_gaps(mixture.sample(8000, torch.Generator().manual_seed(1)))[0])
    (slope, error), (curvature, spread) = slope_and_curvature(objective, MixtureScore(process, mixture), x, known)
    assert abs(slope) < 4 * error and curvature > 10 * spread
    slope, error = slope_and_curvature(objective, EmpiricalScore(process, x[:200]), x, known)[0]
    assert abs(slope) > 5 * error


def test_the_empirical_score_is_the_minimizer_for_data_with_gaps():
    """Of dependent entries, too: E[-z_i/sigma given x_t, i known], each example over the share that it knows."""
    generator = torch.Generator().manual_seed(2)
    points = (
        torch.randn(6, 3, dtype=torch.float64, generator=generator)
        @ torch.tensor([[1.0, 2, 0], [0, 1, 1], [0, 0, 1]]).double()
    )
    points, known = with_gaps(points, 0.4, 3)
    points[0], known[0] = torch.nan, False  # nothing is known
    process, t = VP(), torch.tensor(0.4, dtype=torch.float64)
    filled, x_t = points.nan_to_num(0.0), torch.randn(20, 3, dtype=torch.float64, generator=generator)
    alpha, sigma = process.alpha(t), process.sigma(t)
    offset = alpha * filled - x_t[:, None]
    weight = (
        (-offset.square().sum(2) / (2 * sigma**2)).exp()[..., None] * known / known.double().mean(1).clamp(min=0.1)[:, None]
    )
    exact = (weight * offset).sum(1) / weight.sum(1) / sigma**2
    score = EmpiricalScore(process, points)
    torch.testing.assert_close(score(x_t, t), exact)
    x, known = filled.repeat(4000, 1), known.repeat(4000, 1)
    (slope, error), (curvature, spread) = slope_and_curvature(DenoisingScoreMatching(times=TIMES), score, x, known)
    assert abs(slope) < 4 * error and curvature > 10 * spread


def test_missing_entries_count_for_nothing():
    """Known entries keep their loss, as large as that of complete examples; the others have no gradient."""
    process, x = VP(), torch.randn(5, 4, dtype=torch.float64)
    given = torch.zeros(5, 4, dtype=torch.float64, requires_grad=True)

    class Given(MixtureScore):
        def forward(self, x, t, cond=None):
            return given

    score, known = Given(process, Mixture([[0.0] * 4], [1.0])), torch.rand(5, 4) > 0.5
    known[0], known[1] = True, False
    losses = []
    for objective in (DenoisingScoreMatching(), DenoisingScoreMatching(mean=True)):
        for mask in (None, torch.ones(5, 4, dtype=torch.bool), known):
            torch.manual_seed(0)
            losses.append(objective(score, x, None, mask))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(losses[2], 2 * losses[5])
    torch.testing.assert_close(losses[2][:2], torch.stack([losses[0][0], torch.zeros(())]).double())
    losses[2].sum().backward()
    assert torch.equal(given.grad != 0, known)


class Gaps(GaussianMixture):
    """Points of which coordinates are missing, standardized."""

    missing = True

    def load(self):
        return type(loaded := super().load())(*(part._replace(x=with_gaps(10 * part.x + 5)[0]) for part in loaded))

    def transform(self, train):
        return lambda x: (x - 5) / 10

    def to_reference(self, x):
        return 10 * x + 5


def model_of(**settings):
    torch.manual_seed(0)
    return ScoreModel(lambda s, c: MLP(s, c, 16, 1), (2,), VE(0.05, 5.0), **settings)


def test_a_model_is_trained_and_measured_with_gaps(tmp_path):
    data, model, floor = Gaps(num_samples=600), model_of(), LossFloor(num_examples=64)
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, callbacks=[floor], default_root_dir=tmp_path)  # fmt: skip
    trainer.fit(model, datamodule=data)
    assert 0 < float(trainer.callback_metrics["val/loss"]) < 5
    assert bool(torch.stack(floor.last).isfinite().all()) and bool((floor.last.train > floor.last.train_floor).all())
    _, noisy = examples_with_noise(model, data, 8, 0)
    assert bool(noisy(torch.tensor(0.5)).isfinite().all()) and bool(training_view(data).isfinite().all())
    assert not bool(data.reference().isnan().any())
    filled = data.reference()[data.splits.train.x.isnan().any(1).nonzero()[0, 0]]
    assert 5.0 in filled.tolist()


def test_what_needs_complete_examples_refuses_gaps():
    with pytest.raises(InputError, match="objective=ExplicitScoreMatching: needs complete examples"):
        model_of(objective=ExplicitScoreMatching()).check_missing(True)
    model_of(objective=ExplicitScoreMatching()).check_missing(False)
    complete = type("Complete", (Gaps,), {"missing": False})
    with pytest.raises(InputError, match="holds NaN or infinity"):
        complete(num_samples=100).splits  # noqa: B018
