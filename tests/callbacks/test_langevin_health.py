"""Langevin dynamics per level, where its laws are known in closed form."""

import json
import math

import pytest
import torch
from conftest import ImageScore, QuickNoise
from lightning.pytorch import Trainer
from tiny import TINY

from lightning_score.callbacks import LangevinHealth
from lightning_score.callbacks.langevin_health import LevelRecorder, compare
from lightning_score.cli import run
from lightning_score.errors import InputError
from lightning_score.networks import MLP
from lightning_score.process import VP, SigmaTable
from lightning_score.process.ladder import Plan, variance_ratio
from lightning_score.sampling import (
    AnnealedLangevin,
    BatchLangevin,
    Geometric,
    Langevin,
    NoPredictor,
    PredictorCorrector,
    ReverseDiffusion,
)
from lightning_score.training.model import ScoreModel

SHAPE = (4000, 4, 4)


def levels_of(sampler, process, std, shape=SHAPE):
    """The health of every level for data from N(0, std^2 I), compared with exact draws of the levels' laws."""
    score, recorder = ImageScore(process, 0.0, std), LevelRecorder()
    sampler(score, QuickNoise(shape), observe=recorder)
    recorder.close()
    noise = QuickNoise(shape, seed=1)
    return compare(recorder, score, lambda t: process.alpha(t) * std * noise.normal() + process.sigma(t) * noise.normal())


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_the_variance_follows_technique_four_for_data_at_a_point(factor):
    """Too small, right and too large a step: measured and predicted ratio are one, and the ratio is the variance itself."""
    chosen = Plan(5.0, 16, 0.1, steps=3)
    process = SigmaTable(0.1, 5.0, chosen.levels)
    levels = levels_of(AnnealedLangevin(factor * chosen.step_size, 3), process, 1e-9)
    error = 5 * math.sqrt(4 / torch.Size(SHAPE).numel())
    expected = variance_ratio(factor * chosen.step_size, 0.1, 1.0, 3)
    for i, level in enumerate(levels):
        if i:
            expected = variance_ratio(factor * chosen.step_size, 0.1, chosen.ratio, 3, before=expected)
        assert level.predicted_ratio == pytest.approx(expected, rel=error)  # begins where the samples began
        assert level.variance_ratio == pytest.approx(expected, rel=error)
        assert (level.sample_norm / level.sigma) ** 2 == pytest.approx(expected, rel=error)
        assert level.score_norm**2 == pytest.approx(expected, rel=error)
        assert level.data_norm == pytest.approx(level.sigma, rel=error)
    assert [level.steps for level in levels] == [3] * chosen.levels


def test_step_sizes_and_signal_to_noise_ratio_are_those_of_the_sampler():
    """e_i = epsilon sigma_i^2/sigma_min^2, and e ||s||/sqrt(2 e D) = sqrt(e/(2 sigma_i^2)) sigma_i ||s||/sqrt(D)."""
    levels = levels_of(AnnealedLangevin(2e-3, 20), SigmaTable(0.1, 5.0, 8), 1e-9)
    for level in levels:
        assert level.step_size == pytest.approx(2e-3 * (level.sigma / 0.1) ** 2, rel=1e-5)
        assert level.snr == pytest.approx(math.sqrt(0.1) * level.score_norm, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_recursion_is_not_drawn_where_it_does_not_hold(temperature):
    """At a temperature T the variance tends to T 2/(2 - u) sigma^2, u = e/sigma^2 = 0.2."""
    levels = levels_of(AnnealedLangevin(2e-3, 40, temperature=temperature), SigmaTable(0.1, 5.0, 8), 1e-9)
    assert all(math.isnan(level.predicted_ratio) for level in levels)
    assert levels[-1].variance_ratio == pytest.approx(temperature * 2 / 1.8, rel=0.04)


@pytest.mark.parametrize("corrector", [Langevin(0.2), BatchLangevin(0.2)], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("process", [SigmaTable(0.05, 3.0, 30), VP()], ids=lambda p: type(p).__name__)
def test_correctors_have_the_ratio_that_they_are_given(process, corrector):
    """Their snr is that of their steps, of `Langevin` for a score of pure noise; samples keep the variance of their law."""
    sampler = PredictorCorrector(ReverseDiffusion(), corrector, grid=Geometric(30, 0.01), denoise=None)
    levels = levels_of(sampler, process, 0.5)
    assert len(levels) >= 29 and all(math.isnan(level.predicted_ratio) for level in levels)
    if isinstance(process, SigmaTable):  # where alpha_c = 1
        for level in levels:
            norm = level.score_norm if isinstance(corrector, Langevin) else 1.0
            assert level.snr == pytest.approx(0.2 * norm, rel=0.02)
    assert all(0.9 < level.variance_ratio < 1.4 for level in levels[:-1])
    assert all(level.sample_norm == pytest.approx(level.data_norm, rel=0.15) for level in levels)


def test_samplers_without_langevin_steps_have_no_levels():
    assert levels_of(PredictorCorrector(grid=Geometric(5)), VP(), 0.5) == []
    assert levels_of(PredictorCorrector(NoPredictor(), Langevin(), grid=Geometric(5)), VP(), 0.5) != []


@pytest.mark.slow
def test_every_validation_writes_a_line_and_a_picture(tmp_path):
    callbacks = ["{class_path: LossFloor, init_args: {num_examples: 64}}", "{class_path: LangevinHealth}"]
    options = ["--trainer.max_steps=4", "--trainer.val_check_interval=2", "--evaluate.features=null"]
    options += [f"--trainer.callbacks=[{', '.join(callbacks)}]", "--trainer.logger=false"]
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert run(["fit", f"--config={tmp_path / 'tiny.yaml'}", f"--output={tmp_path / 'run'}", *options]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/langevin.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert len(line["sigma"]) == 3 and line["steps"] == [2] * 3
        assert all(math.isfinite(value) and value > 0 for value in line["variance_ratio"])
        assert line["predicted_ratio"] == pytest.approx(line["predicted_ratio"])
    pictures = sorted(file.name for file in (tmp_path / "run/langevin").iterdir())
    assert pictures == ["step_0000002.png", "step_0000004.png"]
    header = (tmp_path / "run/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/langevin_variance_ratio", "val/langevin_snr", "val/loss_held_out/0.03", "time"} <= set(header)


def test_refuses():
    with pytest.raises(InputError, match="num_samples=0: must be at least 1"):
        LangevinHealth(num_samples=0)
    model = ScoreModel(lambda s, c: MLP(s, c, 8, 1), (2,), SigmaTable())
    with pytest.raises(InputError, match="LangevinHealth needs the training data"):
        Trainer(callbacks=[LangevinHealth()], max_steps=1, logger=False, accelerator="cpu").fit(
            model, torch.utils.data.DataLoader([(torch.zeros(2), 0)])
        )
