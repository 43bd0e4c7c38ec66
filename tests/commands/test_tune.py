"""The command `tune`: its derivation, its config in `predict`, the budget, other processes and samplers, mistakes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ImageScore
from PIL import Image

from lightning_score.cli import run
from lightning_score.commands.arguments import Arguments
from lightning_score.commands.base import IdleExperiment
from lightning_score.commands.configs import load_checkpoint, over_checkpoint
from lightning_score.commands.derivations import choose
from lightning_score.data import Digits, GaussianMixture
from lightning_score.networks import MLP
from lightning_score.process import VP, SigmaTable
from lightning_score.sampling import AnnealedLangevin, BatchLangevin, Geometric, KeepNoise, PredictorCorrector, Tweedie
from lightning_score.training.model import ScoreModel


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def drawn_by(checkpoint, config):
    """The model of a checkpoint with a config over it, and two of its samples."""
    arguments = Arguments.without_command([f"--config={config}"])
    model = IdleExperiment(over_checkpoint(arguments, load_checkpoint(str(checkpoint)))).model
    with torch.inference_mode():
        return model, model.draw(range(2), 0)


@pytest.mark.slow
def test_tune_explains_writes_and_draws_and_predict_takes_its_config(checkpoint, capsys):
    command = ["tune", f"--ckpt_path={checkpoint}", "--evaluations=30", "--num_samples=8"]
    assert run([*command, "--output=tuned.yaml", "--plot=tuned.png"]) == 0
    text = capsys.readouterr().out
    for part in (
        "1. Score norms",
        "2. The Gaussian",
        "3. Levels",
        "29 Langevin steps and the final denoising, 30 evaluations",
    ):
        assert part in text, part
    settings = yaml.safe_load(Path("tuned.yaml").read_text())["model"]["sampler"]["init_args"]
    levels = settings["grid"]["init_args"]["sigmas"]
    assert len(settings["steps"]) == len(settings["step_size"]) == len(levels) and sum(settings["steps"]) == 29
    model, samples = drawn_by(checkpoint, "tuned.yaml")
    assert samples.nfe == 30 and samples.x.isfinite().all()
    assert (model.sampler.step_size, model.sampler.steps) == (settings["step_size"], settings["steps"])
    picture = np.asarray(Image.open("tuned.png").convert("L"))
    assert picture.shape[1] > 1000 and (picture < 128).sum() > 2000
    assert run(["predict", f"--ckpt_path={checkpoint}", "--config=tuned.yaml", "--num_samples=2", "--output=samples"]) == 0
    used = yaml.safe_load(Path("samples/config.yaml").read_text())["model"]["sampler"]["init_args"]
    assert used["steps"] == settings["steps"] and used["denoise"]["class_path"].endswith("Tweedie")
    capsys.readouterr()
    assert run(command) == 0
    assert capsys.readouterr().out.strip() == text.partition("\n\nwritten")[0].strip(), "the same again"


@pytest.mark.slow
@pytest.mark.slow
def test_tune_chooses_the_ratios_of_a_corrector(checkpoint, capsys):
    options = ["--model.sampler=+PredictorCorrector", "--model.sampler.corrector=Langevin"]
    command = ["tune", f"--ckpt_path={checkpoint}", *options, "--model.sampler.grid=ProcessTable", "--num_samples=8"]
    assert run([*command, "--model.sampler.denoise=LastMean", "--evaluations=37", "--output=tuned.yaml"]) == 0
    assert "with 3 at each of 9 levels there are\n   37 per sample" in capsys.readouterr().out
    sampler = yaml.safe_load(Path("tuned.yaml").read_text())["model"]["sampler"]["init_args"]
    assert sampler["corrector_steps"] == 3 and len(sampler["corrector"]["init_args"]["snr"]) == 9


MODELS = {
    "VP": (VP(), AnnealedLangevin(1e-30, 1, Geometric(30, 1e-3), Tweedie()), (1, 8, 8)),
    "2-D": (SigmaTable(0.05, 5.0, 20), AnnealedLangevin(5e-4, 30, denoise=KeepNoise()), (2,)),
    "corrector": (VP(), PredictorCorrector(corrector=BatchLangevin(), grid=Geometric(8)), (2,)),
}


@pytest.mark.parametrize(("process", "sampler", "shape"), MODELS.values(), ids=MODELS)
def test_other_processes_shapes_and_samplers(process, sampler, shape):
    """With the exact score of N(0, I/4): the budget is kept whatever the process and the shape."""
    data = GaussianMixture(num_samples=500) if shape == (2,) else Digits()
    model = ScoreModel(lambda s, c: MLP((2,), c, 8, 1), shape, process, sampler=sampler)
    model.score_function = ImageScore(process, 0.0, 0.5)
    with torch.inference_mode():
        chosen = choose(model, data, 44, 16)
    settings = chosen.sampler["init_args"]
    if isinstance(sampler, AnnealedLangevin):
        assert sum(settings["steps"]) + isinstance(sampler.denoise, Tweedie) == 44
    else:
        assert settings["corrector_steps"] == 4
    assert len(chosen.panels) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--evaluations=2"], ["--evaluations 2", "at least 3", "two noise levels"]),
        (["--evaluations=0"], ["--evaluations 0", "at least 1"]),
        (["--evaluations=1000000000"], ["1000000000", "at most 1000000"]),
        (["--evaluations=many"], ["evaluations", "whole number"]),
        (["--num_samples=1"], ["--num_samples 1", "at least 2"]),
        (["--output=tuned.txt"], ["tuned.txt", ".yaml"]),
        (["--output=old.yaml"], ["old.yaml", "already exists"]),
        (["--plot=none/tuned.png"], ["none/tuned.png", "cannot be written"]),
        (["--model.sampler.temperature=0"], ["temperature=0"]),
        (["--model.sampler=ConsistentAnnealedLangevin", "--model.sampler.step_size=9e-4"], ["no Langevin steps", "give"]),
        (["--evaluation=9"], ["evaluation", "Did you mean --evaluations"]),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(options, words, checkpoint, capsys):
    Path("old.yaml").touch()
    try:
        code = run(["tune", f"--ckpt_path={checkpoint}", *options])
    except SystemExit as stop:
        code = stop.code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2 and all(word in line for word in words), line
    assert sorted(file.name for file in Path().iterdir()) == ["old.yaml"]


def test_tune_needs_a_checkpoint(capsys):
    assert run(["tune", "--evaluations=9"]) == 2
    assert "tune needs a checkpoint: --ckpt_path" in capsys.readouterr().err
