"""The gradient noise scale equals tr(S)/|G|^2 of gradients whose law is known."""

import lightning_score.lean_imports  # noqa: F401

import pytest
import torch
from lightning import Trainer

from lightning_score import VE, Digits, InputError, ScoreModel
from lightning_score.callbacks import GradientNoiseScale
from lightning_score.callbacks.gradient_noise import noise_and_signal
from lightning_score.networks import Network
from lightning_score.objective import DenoisingScoreMatching, FixedTimes


def test_estimates_are_unbiased():
    torch.manual_seed(0)
    mean, std = torch.tensor([0.3, -0.1, 0.2], dtype=torch.float64), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    for batches, examples in ((2, 8), (6, 3)):
        g = mean + std * torch.randn(40_000, batches, examples, 3, dtype=torch.float64)
        g = g.mean(2)
        squares, of_mean = g.square().sum(2).mean(1), g.mean(1).square().sum(1)
        pairs = zip(squares.tolist(), of_mean.tolist(), strict=True)
        found = torch.tensor([noise_and_signal(*pair, batches, examples) for pair in pairs])
        exact = torch.tensor([std.square().sum(), mean.square().sum()])
        error = found.std(0) / len(found) ** 0.5
        assert ((found.mean(0) - exact).abs() < 3.5 * error).all()
        assert (error < 0.02 * exact).all()


class Offset(Network):
    """A network that predicts its only weight, whose gradient has a known law."""

    def __init__(self, shape, num_classes=0, condition=None):
        super().__init__(shape, num_classes, condition)
        self.value = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, noise_label, cond=None):
        return self.value + 0 * x


def trained(steps, callback, batch_size=64):
    """The trainer of a model that was trained with a learning rate of 0."""
    torch.manual_seed(0)
    model = ScoreModel(Offset, (1, 8, 8), VE(0.1, 1.0), objective=DenoisingScoreMatching(times=FixedTimes(0.5)),
                       optimizer=lambda weights: torch.optim.SGD(weights, lr=0.0))  # fmt: skip
    trainer = Trainer(max_steps=steps, callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu",
                      enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0)  # fmt: skip
    trainer.fit(model, Digits(batch_size=batch_size, data_range=(-1, 1)))
    return trainer


def test_training_logs_that_of_the_loss():
    # the loss of z predicted by c is sum_i (c - z_i)^2/2 over D = 64 entries: gradient D c - sum z, mean D c, variance D
    callback = GradientNoiseScale(every_n_steps=1, decay=0.99)
    logged = trained(400, callback).callback_metrics["train/gradient_noise_scale"]
    assert float(logged) == pytest.approx(64 / (64 * 0.5) ** 2, rel=0.05)


def test_a_resumed_run_continues_the_averages():
    first, second = GradientNoiseScale(every_n_steps=2), GradientNoiseScale(every_n_steps=2)
    trained(4, first)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict() != GradientNoiseScale().state_dict()


@pytest.mark.parametrize(
    ("option", "message"), [({"every_n_steps": 0}, "every_n_steps=0: must be"), ({"decay": 1.0}, "decay")]
)
def test_wrong_values(option, message):
    with pytest.raises(InputError, match=message):
        GradientNoiseScale(**option)


def test_one_example_is_too_few():
    with pytest.raises(InputError, match="batch has one example"):
        trained(1, GradientNoiseScale(1), batch_size=1)
