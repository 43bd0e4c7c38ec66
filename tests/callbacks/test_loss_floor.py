"""The loss floor: no network is below it, closed forms, and the same noise at every validation."""

import math
import re

import pytest
import torch
from conftest import SMALL, concrete
from lightning.pytorch import Trainer
from torch import nn

from lightning_score import process
from lightning_score.callbacks import LossFloor
from lightning_score.callbacks.loss_floor import LevelLosses, level_times
from lightning_score.data import Digits, GaussianMixture
from lightning_score.errors import InputError
from lightning_score.networks import MLP, UNet
from lightning_score.process import VE, VP, SigmaTable
from lightning_score.score.empirical import EmpiricalScore
from lightning_score.training.model import ScoreModel


def toy_model(noise_process=None, **settings):
    torch.manual_seed(0)
    return ScoreModel(lambda s, c: MLP(s, c, 16, 1), (2,), noise_process or VE(0.05, 5.0), **settings).eval()


class FixedScore(nn.Module):
    """A model with any score field as its score function."""

    def __init__(self, score, shape=(2,), conditional=False):
        super().__init__()
        self.score_function, self.shape, self.conditional = score, shape, conditional
        self.device, self.dtype = torch.device("cpu"), torch.float32


class Perturbed(EmpiricalScore):
    """The empirical score with an added error."""

    def forward(self, x, t, cond=None):
        return super().forward(x, t) + 0.5 * torch.tanh(x) / self.process.sigma(t)


@pytest.mark.parametrize("make", concrete(process, process.NoiseProcess), ids=lambda c: c.__name__)
def test_levels_are_evenly_spaced_in_log_snr(make):
    noise_process = make(**SMALL.get(make, {}))
    t = level_times(noise_process, 7)
    gaps = noise_process.log_snr(t).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(6), rtol=0.3 if make in SMALL else 1e-4, atol=0)
    assert bool((t.diff() > 0).all()) and float(t[0]) == pytest.approx(noise_process.t_min, rel=1e-6)


def test_levels_of_a_small_table_are_its_entries():
    torch.testing.assert_close(level_times(SigmaTable(levels=5), 20), SigmaTable(levels=5).table_times())


def test_the_empirical_score_itself_has_no_excess():
    data = GaussianMixture(num_samples=500)
    losses = LossFloor().measure(FixedScore(EmpiricalScore(VP(), data.splits.train.x)), data)
    torch.testing.assert_close(losses.train, losses.train_floor)
    torch.testing.assert_close(losses.held_out, losses.held_out_floor)


@pytest.mark.parametrize("noise_process", [VP(), VE(0.05, 5.0), SigmaTable(0.05, 5.0)], ids=lambda p: type(p).__name__)
def test_the_floor_is_the_minimum_on_the_training_data(noise_process):
    """The excess is sigma^2/2 E||score - empirical score||^2 up to Monte-Carlo noise, 1/2 E|0.5 tanh x|^2 for Perturbed."""
    data, callback = GaussianMixture(num_samples=2000), LossFloor(num_examples=1600)
    bent = callback.measure(FixedScore(Perturbed(noise_process, data.splits.train.x)), data)
    assert bool((bent.train > bent.train_floor).all())
    times = level_times(noise_process, 8)
    x = data.splits.train.x.double()
    for t, excess in zip(times, bent.train - bent.train_floor, strict=True):
        x_t = noise_process.perturb(x, t, torch.randn_like(x))
        assert float(excess) == pytest.approx(float(0.125 * torch.tanh(x_t).square().sum(1).mean()), rel=0.35, abs=0.02)
    untrained = callback.measure(toy_model(noise_process), data)
    torch.testing.assert_close(untrained.train_floor, bent.train_floor)
    assert float((untrained.train - untrained.train_floor).min()) > -0.02


def test_a_smooth_score_beats_the_empirical_one_on_held_out_data():
    data = GaussianMixture(num_samples=500)
    losses = LossFloor().measure(toy_model(), data)
    assert float(losses.held_out[0] - losses.held_out_floor[0]) < 0 < float(losses.train[0] - losses.train_floor[0])
    assert float(losses.train_floor[0]) < float(losses.held_out_floor[0])


def test_batch_size_changes_nothing():
    data, model = GaussianMixture(num_samples=500), toy_model()
    one, other = LossFloor().measure(model, data), LossFloor(batch_size=37).measure(model, data)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("conditional", [False, True])
def test_images(conditional):
    data = Digits(dequantize=True)
    torch.manual_seed(0)
    network = lambda s, c: UNet(s, c, 8, (1, 2), 1, (), groups=4)  # noqa: E731
    model = ScoreModel(network, data.shape, VE(0.01, 10.0), num_classes=10, conditional=conditional).eval()
    state = torch.get_rng_state()
    losses = LossFloor(levels=3, num_examples=64).measure(model, data)
    assert torch.equal(state, torch.get_rng_state())
    assert float(losses.train_floor[0]) < 0.1 and bool((losses.train > losses.train_floor - 0.5).all())
    labels = data.splits.train.y if conditional else None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = data.transform(train=False)(data.splits.train.x)
    memory = FixedScore(EmpiricalScore(VE(0.01, 10.0), images, labels), data.shape, conditional)
    torch.testing.assert_close(LossFloor(levels=3, num_examples=64).measure(memory, data).train, losses.train_floor)


def test_validation_logs_constant_names_and_a_picture(tmp_path, capsys):
    callback, data = LossFloor(levels=3, num_examples=64), GaussianMixture(num_samples=500)
    model = toy_model()
    trainer = Trainer(
        max_epochs=2,
        default_root_dir=tmp_path,
        callbacks=[callback],
        logger=False,
        accelerator="cpu",
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    names = {name for name in trainer.callback_metrics if "excess" in name}
    kinds = ("val/excess_loss_train", "val/excess_loss_held_out")
    assert names == {f"{kind}{level}" for kind in kinds for level in ("", "/0.05", "/0.5", "/5")}
    levels = [float(trainer.callback_metrics[f"val/excess_loss_train/{level}"]) for level in ("0.05", "0.5", "5")]
    assert float(trainer.callback_metrics["val/excess_loss_train"]) == pytest.approx(sum(levels) / 3, rel=1e-5)
    assert len(list(tmp_path.glob("loss_per_sigma/*.png"))) == 2
    printed = re.findall(r"--model.objective.times.mean (\S+) --model.objective.times.std (\S+)", capsys.readouterr().out)
    law = callback.last.times(float(data.splits.train.x.std()))
    assert len(printed) == 2 and printed[1] == (f"{law.mean:.2f}", f"{law.std:.2f}")
    assert float(trainer.callback_metrics["val/fitted_times_mean"]) == pytest.approx(law.mean, rel=1e-5)
    again = callback.measure(model.eval(), data)
    torch.testing.assert_close(again.train, callback.last.train)


@pytest.mark.parametrize("level", [0.05, 0.5, 3.0])
def test_displacement_is_what_an_error_of_the_score_does_to_samples(level):
    """The flow of N(0, d^2) from s = 20 to 0.001 in steps of ln s, with an error of the denoised image around one level."""
    d, error, log_s = 0.7, 1e-3, torch.linspace(math.log(20), math.log(0.001), 40_001, dtype=torch.float64)
    step, band = float(log_s[0] - log_s[1]), (log_s - math.log(level)).abs() < 0.05
    ends = []
    for size in (error, 0.0):
        x = 1.0
        for y, inside in zip(log_s.tolist(), band.tolist(), strict=True):
            denoised = d**2 / (d**2 + math.exp(2 * y)) * x + size * inside
            x -= step * (x - denoised)
        ends.append(x)
    per_log_s = (ends[0] - ends[1]) / (step * int(band.sum()))
    excess = torch.tensor([(error / level) ** 2 / 2], dtype=torch.float64)
    losses = LevelLosses(torch.tensor([level], dtype=torch.float64), excess, excess, 0 * excess, 0 * excess)
    assert per_log_s**2 == pytest.approx(float(losses.displacement(d)), rel=5e-3)


def test_the_fitted_law_has_the_moments_of_the_displacement():
    """For an excess that makes it a normal density of ln s; a negative excess counts as none."""
    d, x = 0.5, torch.linspace(-7, 5, 40, dtype=torch.float64)
    s = x.exp()
    normal = torch.exp(-(((x + 0.4) / 0.8) ** 2) / 2)
    excess = torch.where(x > 3.5, -1.0, normal / (s**2 * d**2 / (s**2 + d**2)))
    law = LevelLosses(s, excess + 1, excess, torch.ones_like(s), s).times(d)
    assert (law.mean, law.std) == (pytest.approx(-0.4, abs=1e-4), pytest.approx(0.8, rel=1e-4))
    assert LevelLosses(s, s, s, 2 * s, s).times(d) is None


def test_needs_a_data_module():
    with pytest.raises(InputError, match="LossFloor needs the training data"):
        LossFloor().setup(Trainer(logger=False, accelerator="cpu"), toy_model(), "fit")
    with pytest.raises(InputError, match="levels=1"):
        LossFloor(levels=1)
