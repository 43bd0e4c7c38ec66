"""The command `grid`, and the times that commands keep in their config.yaml."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_score.cli import run
from lightning_score.commands.grid import GridReport
from lightning_score.process import SigmaTable
from lightning_score.sampling import exact_ends, learning

SOLVER = ["--model.sampler=PredictorCorrector", "--model.sampler.predictor=DPMSolver2M", "--model.sampler.denoise=Tweedie"]
SHORT = ["--trainer.max_steps=2", "--trainer.val_check_interval=1", "--samples.num_samples=4", "--evaluate.features=null"]
NETWORK = ["--model.network.channels=8", "--model.network.embedding.width=8"]


@pytest.fixture(autouse=True)
def _quick(tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = (
        (exact_ends, "ROWS", 8),
        (exact_ends, "EXACT_STEPS", 20),
        (learning, "ITERATIONS", 2),
        (learning, "EXHAUSTIVE", 0),
    )
    for module, name, value in small:
        monkeypatch.setattr(module, name, value)


def grid_of(config):
    return yaml.safe_load(Path(config).read_text())["model"]["sampler"]["init_args"]["grid"]["init_args"]


def error_of(words, capsys):
    capsys.readouterr()
    try:
        code = run(words)
    except SystemExit as stop:
        code = stop.code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2
    return line


@pytest.mark.slow
def test_grid_explains_writes_and_draws_and_predict_uses_it(checkpoint, capsys):
    command = ["grid", f"--ckpt_path={checkpoint}", *SOLVER, "--steps=2", "--output=times.yaml", "--plot=times.png"]
    assert run(command) == 0
    text, kept = capsys.readouterr().out, grid_of("times.yaml")
    levels = SigmaTable(0.03, 3.0, 10)
    assert set(kept["times"]) <= set(levels.table_times().tolist()) and len(kept["times"]) == 3
    sigmas = ", ".join(f"{float(levels.sigma(torch.tensor(t, dtype=torch.float64))):.4g}" for t in kept["times"])
    for part in ("DPMSolver2M", "Cost: 3 network evaluations", sigmas, "Karras(2)", "learned", "--config times.yaml"):
        assert part in text, part
    picture = np.asarray(Image.open("times.png").convert("L"))
    assert picture.shape[1] > 1000 and picture.std() > 10
    assert "already exists" in error_of(command, capsys)
    predict = ["predict", f"--ckpt_path={checkpoint}", "--config=times.yaml", "--num_samples=2"]
    assert run([*predict, "--output=out"]) == 0
    assert grid_of("out/config.yaml") == kept
    line = error_of([*predict, "--output=other", "--model.sampler.predictor=DDIM"], capsys)
    assert "learned for another checkpoint or another solver" in line and not Path("other").exists()


def test_times_that_end_far_from_the_flow_are_named():
    report = object.__new__(GridReport)
    report._group = SimpleNamespace(spread=0.4)
    assert "the error is 75% of the samples' standard deviation" in report._warning(0.3)
    assert report._warning(0.19) == ""


@pytest.mark.slow
def test_fit_learns_at_evaluations_and_its_checkpoint_has_the_same_times(capsys):
    learned = ["--model.sampler=PredictorCorrector", "--model.sampler.predictor=IPNDM", "--model.sampler.grid=Learned",
               "--model.sampler.denoise=Tweedie", "--model.sampler.grid.steps=3"]  # fmt: skip
    assert run(["fit", "--config=vp_pc", *SHORT, *NETWORK, *learned]) == 0
    config = "runs/vp_pc/latest/config.yaml"
    kept = grid_of(config)
    assert len(kept["times"]) == 4 and kept["learned_for"]
    last = "--ckpt_path=runs/vp_pc/latest/last.ckpt"
    assert run(["predict", last, "--num_samples=2", "--output=a"]) == 0
    assert grid_of("a/config.yaml") == kept, "the times of the averaged weights"
    checkpoint = torch.load("runs/vp_pc/latest/last.ckpt", weights_only=True)
    assert checkpoint["config"]["model"]["sampler"]["init_args"]["grid"]["init_args"]["times"] is None
    assert run(["predict", last, "--config=a/config.yaml", "--num_samples=2", "--output=b"]) == 0
    np.testing.assert_array_equal(np.load("a/samples.npz")["images"], np.load("b/samples.npz")["images"])
    assert run(["fit", f"--config={config}", "--seed_everything=3", "--name=again"]) == 0, "which learns anew"
    assert grid_of("runs/again/latest/config.yaml")["learned_for"] != kept["learned_for"]
    capsys.readouterr()
    assert run(["grid", last, "--steps=2"]) == 0
    assert "IPNDM(order=4)" in capsys.readouterr().out
    assert run(["grid", last, "--steps=2"]) == 0
    assert "Taken from the cache" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["AnnealedLangevin", "draws noise", "tune", "--model.sampler.predictor IPNDM"]),
        ([*SOLVER, "--steps=0"], ["--steps 0", "at least 1"]),
        ([*SOLVER, "--steps=10"], ["steps=10", "10 levels", "at most 9"]),
        ([*SOLVER, "--steps=x"], ["steps", "x"]),
        ([*SOLVER[:1], "--model.sampler.predictor=RK45", "--model.sampler.grid=ProcessTable"], ["RK45"]),
        ([*SOLVER[:1], "--model.sampler.predictor=SDEDPMSolver2M", "--steps=3"], ["SDEDPMSolver2M", "draws noise"]),
        (["--model.sampler=LangevinDynamics"], ["LangevinDynamics", "draws noise"]),
        ([*SOLVER, "--steps=2", "--output=times.txt"], ["times.txt", ".yaml"]),
        ([*SOLVER, "--steps=2", "--plot=none/times.png"], ["none/times.png", "cannot be written"]),
        ([*SOLVER, "--stepz=2"], ["stepz", "--steps"]),
    ],
)
def test_mistakes_are_one_line(options, words, checkpoint, capsys):
    line = error_of(["grid", f"--ckpt_path={checkpoint}", *options], capsys)
    assert all(word in line for word in words), line
    assert not list(Path().glob("*.*"))


def test_a_checkpoint_is_needed(capsys):
    assert "--ckpt_path runs/NAME/latest/last.ckpt" in error_of(["grid", "--steps=3"], capsys)
    assert "no such file" in error_of(["grid", "--ckpt_path=none.ckpt"], capsys)
