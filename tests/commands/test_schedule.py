"""Noise levels and step size from the data: the published settings, the equations, the command, and `auto`."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import MixtureScore
from laws import moments
from PIL import Image

from lightning_score.cli import run
from lightning_score.commands.schedule import training_view
from lightning_score.data import Digits, Mixture
from lightning_score.errors import InputError
from lightning_score.process import VE, SigmaTable
from lightning_score.process.ladder import (
    LEAST_DIMENSION,
    Plan,
    choose_gamma,
    choose_levels,
    choose_step_size,
    coverage_of,
    max_distance,
    variance_limit,
    variance_ratio,
)
from lightning_score.sampling import AnnealedLangevin, ProcessTable

PUBLISHED = {  # D, sigma_1, L, T; then gamma, C at it, L at C = 0.5, epsilon
    "CIFAR-10": (3072, 50, 232, 5, "1.037559", "0.567", "219.2", "6.18e-06"),
    "CelebA 64": (12288, 90, 500, 5, "1.018414", "0.567", "472.2", "3.34e-06"),
    "bedroom 128": (49152, 190, 1086, 3, "1.009122", "0.566", "1025.7", "1.77e-06"),
    "FFHQ 256": (196608, 348, 2311, 3, "1.004537", "0.567", "2181.6", "8.93e-07"),
    "church 96": (27648, 140, 788, 4, "1.012205", "0.566", "744.5", "2.31e-06"),
}
SHORT = ["--trainer.max_steps=2", "--samples.num_samples=4", "--evaluate.features=null", "--model.sampler.steps=2",
         "--trainer.callbacks=null"]  # fmt: skip
AUTO = [f"--model.{name}=auto" for name in ("process.sigma_max", "process.levels", "sampler.step_size")]


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def model_of(config):
    return yaml.safe_load(config.read_text())["model"]


def ratio_of(sigma_max, levels, sigma_min=0.01):
    return (sigma_max / sigma_min) ** (1 / (levels - 1))


@pytest.mark.parametrize("row", PUBLISHED.values(), ids=PUBLISHED)
def test_the_published_settings_follow(row):
    dimension, sigma_max, levels, steps, *printed = row
    gamma, half = ratio_of(sigma_max, levels), choose_gamma(dimension)
    exact_levels = 1 + math.log(sigma_max / 0.01) / math.log(half)
    step_size = choose_step_size(0.01, gamma, steps)
    found = [f"{gamma:.6f}", f"{coverage_of(gamma, dimension):.3f}", f"{exact_levels:.1f}", f"{step_size:.2e}"]
    assert found == printed
    assert choose_levels(sigma_max, 0.01, dimension) == math.ceil(exact_levels)
    assert Plan(sigma_max, dimension, steps=steps).exact_levels == pytest.approx(exact_levels)


@pytest.mark.parametrize(("name", "once", "settled"), [("CIFAR-10", 1.055, 1.128), ("FFHQ 256", 1.009, 1.202)])
def test_the_quoted_variance_ratios(name, once, settled):
    _, sigma_max, levels, steps, *_ = PUBLISHED[name]
    gamma = ratio_of(sigma_max, levels)
    ladder = choose_step_size(0.01, gamma, steps), 0.01, gamma, steps
    assert variance_ratio(*ladder) == pytest.approx(once, abs=6e-4)
    assert variance_limit(*ladder) == pytest.approx(settled, abs=6e-4)
    ratio = 1.0
    for _ in range(2000):
        ratio = variance_ratio(*ladder, before=ratio)
    assert ratio == pytest.approx(variance_limit(*ladder), rel=1e-9)


@pytest.mark.parametrize("gamma", [1 + 1e-6, 1.0045, 1.04, 1.35, 2.1, 30.0])
@pytest.mark.parametrize("steps", [1, 3, 100])
def test_no_step_size_has_a_smaller_ratio(gamma, steps):
    """And r > 1 everywhere, so that the smallest is the one closest to 1; on its ladder the ratio settles."""
    best = choose_step_size(0.3, gamma, steps)
    least = variance_ratio(best, 0.3, gamma, steps)
    grid = (torch.logspace(-8, 0, 4001, dtype=torch.float64) * 2 * 0.3**2 * (1 - 1e-12)).tolist()
    assert 0 < best < 2 * 0.3**2
    assert 1 < least <= min(variance_ratio(e, 0.3, gamma, steps) for e in grid) * (1 + 1e-15)
    assert least <= variance_limit(best, 0.3, gamma, steps) < math.inf


def test_k_is_the_papers():
    e, sigma, steps = 0.02, 0.3, 4
    k = 2 * e / (sigma**2 - sigma**2 * (1 - e / sigma**2) ** 2)
    expected = (1 - e / sigma**2) ** (2 * steps) * (1.2**2 - k) + k
    assert variance_ratio(e, sigma, 1.2, steps) == pytest.approx(expected, rel=1e-12)


def test_a_ladder_that_diverges_is_refused():
    with pytest.raises(InputError, match=r"q gamma\^2 = 3\.9.*step_size="):
        variance_limit(1e-6, 0.01, 2.0, 1)


@pytest.mark.parametrize("dimension", [16, 64, 784, 3072, 196608])
@pytest.mark.parametrize("coverage", [0.01, 0.5, 0.99])
def test_the_coverage_holds_at_the_root(dimension, coverage):
    gamma = choose_gamma(dimension, coverage)
    assert gamma > 1 and coverage_of(gamma, dimension) == pytest.approx(coverage, abs=1e-9)
    chosen = Plan(40.0, dimension, coverage=coverage)
    assert coverage_of(chosen.ratio, dimension) >= coverage - 1e-9, "rounded up: no larger steps than asked for"


def test_coverage_is_the_overlap_of_shells():
    """Against draws: the share of N(0, I) whose radius lies within 3 deviations of the shell of gamma above."""
    dimension, gamma = 400, 1.12
    radius = torch.randn(20000, dimension, generator=torch.Generator().manual_seed(0)).norm(dim=1)
    inside = (radius / gamma - math.sqrt(dimension)).abs() < 3 / math.sqrt(2)
    assert float(inside.double().mean()) == pytest.approx(coverage_of(gamma, dimension), abs=0.02)


def test_few_dimensions_count_as_sixteen():
    assert choose_gamma(2) == choose_gamma(LEAST_DIMENSION) == pytest.approx(2.129, abs=1e-3)
    assert coverage_of(2.2, LEAST_DIMENSION) < 0.5 < coverage_of(100.0, 4), "in 4 dimensions nothing solves it"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("block", [1, 7, 64, None])
@pytest.mark.parametrize("offset", [0, 100])
def test_the_largest_distance_is_that_of_all_pairs(dtype, block, offset):
    x = (torch.rand(150, 3, 5, generator=torch.Generator().manual_seed(1)) * 100 + offset).to(dtype)
    x = torch.cat([x, x[:30], x[40:41].expand(20, -1, -1)])
    rows = x.double().flatten(1)
    expected = float((rows[:, None] - rows).norm(dim=-1).max())
    assert max_distance(x, block) == pytest.approx(expected, rel=1e-14)


def test_float32_misleads_nothing():
    """Far from the origin, where the differences are lost in float32, and for pairs that it cannot tell apart."""
    x = 1e6 + torch.rand(90, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert max_distance(x, 16) == pytest.approx(float(torch.cdist(x - 1e6, x - 1e6).max()), rel=1e-9)
    angles = torch.linspace(0, math.pi, 101, dtype=torch.float64)[:-1]
    half = torch.stack([angles.cos(), angles.sin()], 1) * (1 + 1e-9 * torch.arange(100).double())[:, None]
    assert max_distance(torch.cat([half, -half]), 16) == pytest.approx(2 + 2 * 99e-9, rel=1e-14)


def test_identical_examples_have_no_ladder():
    same = max_distance(torch.ones(5, 3))
    assert same == 0
    with pytest.raises(InputError, match="all are the same"):
        Plan(same, 3)


def test_the_sampler_obeys_the_plan():
    """On data at one point the variance after every level, computed by the sampler's own steps, is the plan's."""
    chosen = Plan(3.0, 64, sigma_min=0.1, steps=3)
    process = SigmaTable(chosen.sigma_min, chosen.sigma_max, chosen.levels)
    torch.testing.assert_close(process.sigmas.flip(0), torch.tensor(chosen.sigmas, dtype=torch.float64))
    sampler, times = AnnealedLangevin(chosen.step_size, chosen.steps), ProcessTable()(process)
    stages, score = sampler.plan(process, times), MixtureScore(process, Mixture([[0.0]], [1e-9]))
    state = {stage.method: stage.method.init(process, times) for stage in stages}
    for level in (1, 2, 5, chosen.levels):
        sigma, moves = chosen.sigmas[level - 1], level * chosen.steps + level - 1
        _, variance = moments(score, stages[:moves], state, 0.0, chosen.sigma_max**2)
        assert variance / sigma**2 == pytest.approx(chosen.variance_ratios[level - 1], rel=1e-6)
    by_itself = AnnealedLangevin("auto", chosen.steps).chosen_step_size(process, times[process.sigma(times) > 0])
    assert by_itself == pytest.approx(chosen.step_size, rel=1e-6)
    assert chosen.evaluations == sum(stage.method.evaluations for stage in stages)
    assert chosen.step_sizes[0] == pytest.approx(chosen.step_size * (3.0 / 0.1) ** 2)


def test_auto_in_python_is_refused():
    for make in (lambda: SigmaTable(sigma_max="auto"), lambda: SigmaTable(levels="auto"), lambda: VE(sigma_max="auto")):
        with pytest.raises(InputError, match=r"=auto: .*config of fit only"):
            make()


def test_schedule_explains_writes_and_draws(capsys):
    command = ["schedule", "--config=ncsn", "--output=ladder.yaml", "--plot", "ladder.png"]
    assert run(command) == 0
    text = capsys.readouterr().out
    chosen = Plan(max_distance(training_view(Digits())), 64, sigma_min=0.03, steps=2)
    for part in (
        f"sigma_max = {chosen.sigma_max:.6g}",
        f"gamma = {chosen.gamma:.6g}, an overlap of C = 0.5 in D = 64",
        f"L = {chosen.levels}",
        f"epsilon = {chosen.step_size:.4g}",
        f"{chosen.variance_ratios[1]:.4g} (level 2)",
        f"settles at {chosen.variance_limit:.4g}",
        f"{chosen.levels} x 2 = {chosen.evaluations} network evaluations",
    ):
        assert part in text, part
    model = model_of(Path("ladder.yaml"))
    expected = {"sigma_min": 0.03, "sigma_max": pytest.approx(chosen.sigma_max, rel=1e-5), "levels": chosen.levels}
    assert model["process"] == {"class_path": "+SigmaTable", "init_args": expected}
    assert model["sampler"]["init_args"] == {
        "step_size": pytest.approx(chosen.step_size, rel=1e-5),
        "steps": 2,
        "temperature": 1.0,
    }
    picture = np.asarray(Image.open("ladder.png").convert("L"))
    assert picture.shape[1] > 1000 and picture.std() > 10 and (picture < 128).sum() > 2000
    assert run(command) == 2 and "already exists" in capsys.readouterr().err
    assert run(["fit", "--config=ncsn", "--config=ladder.yaml", *SHORT]) == 0
    used = model_of(Path("runs/ladder/latest/config.yaml"))
    assert used["process"]["init_args"] == model["process"]["init_args"] | {"geometric": True}
    assert used["sampler"]["init_args"]["step_size"] == model["sampler"]["init_args"]["step_size"]
    assert used["sampler"]["init_args"]["denoise"], "the rest of the sampler is the config's"


def test_schedule_takes_options_over_the_config(capsys):
    options = ["--data.data_range=[-1,1]", "--sigma_min=0.01", "--steps=3", "--coverage=0.9"]
    assert run(["schedule", "--config=ncsn", *options]) == 0
    text = capsys.readouterr().out
    assert all(part in text for part in ("values -1 to 1", "sigma_max = 9.60062", "sigma_min = 0.01", "C = 0.9", "x 3 ="))
    assert run(["schedule", "--data=GaussianMixture", "--data.num_samples=500"]) == 0
    assert "fewer than 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["needs data", "--data Digits"]),
        (["--data=Digit"], ["Digit", "Digits", "GaussianMixture"]),
        (["--data=Digits", "--sigma_min=7"], ["sigma_min=7", "sigma_max=4.8", "try sigma_min=0.0048"]),
        (["--data=Digits", "--sigma_min=0"], ["sigma_min=0", "above 0"]),
        (["--data=Digits", "--steps=0"], ["steps=0", "at least one"]),
        (["--data=Digits", "--coverage=0"], ["coverage=0", "0.9973"]),
        (["--data=Digits", "--coverage=1"], ["coverage=1", "0.9973"]),
        (["--data=GaussianMixture", "--data.num_samples=2"], ["1 examples", "at least 2"]),
        (["--data=Digits", "--output=ladder.txt"], ["ladder.txt", ".yaml"]),
        (["--data=Digits", "--plot=none/ladder.png"], ["none/ladder.png", "cannot be written"]),
        (["--config=nscn"], ["nscn", "ncsn"]),
        (["--data=Digits", "--stepz=3"], ["stepz", "Did you mean --steps"]),
    ],
)
def test_mistakes_are_one_line(options, words, capsys):
    try:
        code = run(["schedule", *options])
    except SystemExit as stop:
        code = stop.code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2 and all(word in line for word in words), line


def test_help():
    with pytest.raises(SystemExit, match="0"):
        run(["schedule", "--help"])


def test_no_examples():
    for n in (0, 1):
        with pytest.raises(InputError, match=f"there are {n} examples"):
            max_distance(torch.zeros(n, 4))
    with pytest.raises(InputError, match="NaN or infinity"):
        max_distance(torch.tensor([[1.0], [math.nan]]))


@pytest.mark.slow
def test_auto_becomes_numbers_in_config_and_checkpoint(capsys):
    assert run(["fit", "--config=ncsn", *AUTO, *SHORT]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("auto: sigma_max=4.80031")]
    assert "largest distance" in line and "levels=18" in line
    process = {"sigma_min": 0.03, "sigma_max": 4.80031, "levels": 18, "geometric": True}
    checkpoint = torch.load("runs/ncsn/latest/last.ckpt", weights_only=True)
    for model in (model_of(Path("runs/ncsn/latest/config.yaml")), checkpoint["config"]["model"]):
        assert model["process"]["init_args"] == process
    assert run(["predict", "--ckpt_path=runs/ncsn/latest/last.ckpt", "--num_samples=2"]) == 0
    assert run(["predict", "--ckpt_path=runs/ncsn/latest/last.ckpt", "--model.process.levels=auto"]) == 2
    assert "config of fit only" in capsys.readouterr().err


@pytest.mark.slow
def test_auto_for_the_toy_and_a_continuous_process():
    dev = ["--trainer.callbacks=null", "--trainer.fast_dev_run=true"]
    assert run(["fit", "--config=toy", *AUTO, "--data.num_samples=1000", *dev]) == 0
    ve = [
        "--model.process=VE",
        "--model.process.sigma_max=auto",
        "--model.sampler.grid=Geometric",
        "--model.sampler.grid.steps=3",
    ]
    assert run(["fit", "--config=vp_pc", *ve, *dev]) == 0
    assert run(["fit", "--config=ncsn", "--model.process.levels=auto", "--model.process.sigma_max=3", *dev]) == 0
