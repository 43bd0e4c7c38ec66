"""The command `langevin`: a user's density is sampled, judged and drawn, and a mistake leaves nothing behind."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_score.cli import run
from lightning_score.commands.chains import MOST, Chains
from lightning_score.errors import InputError
from lightning_score.sampling import MALA, LangevinDynamics, MarkovChain, NoiseStream, PredictorCorrector
from lightning_score.score import Banana, DensityScore, Mixture

PARTS = '''
import torch

class Tilted:
    """A Gaussian of correlated coordinates."""

    def __init__(self, correlation: float = 0.6):
        self.correlation = correlation

    def log_density(self, x):
        a, b = x.T
        return -(a**2 + b**2 - 2 * self.correlation * a * b) / (2 - 2 * self.correlation**2)

class Line:
    shape = (1,)

    def score(self, x):
        return -x / 4

class Cube:
    shape = (3, 3, 3)

    def log_density(self, x):
        return -x.square().flatten(1).sum(1) / 2

class Neither:
    pass

class Detached:
    def log_density(self, x):
        return -(x.detach()**2).sum(1)

class Scalar:
    def log_density(self, x):
        return -(x**2).sum()

class Undefined:
    def log_density(self, x):
        return x[:, 0].log()
'''


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    """A folder with the user's file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("own_densities.py").write_text(PARTS)
    yield
    sys.modules.pop("own_densities", None)


def outcome(*options):
    """What a run has written."""
    assert run(["langevin", "--output=out", *options]) == 0
    return dict(np.load("out/samples.npz")), json.loads(Path("out/langevin.json").read_text())


@pytest.mark.slow
def test_a_users_density_is_sampled(capsys):
    """Against its moments, with all files, and the acceptance and diagnostics in print."""
    arrays, report = outcome("--density=own_densities.Tilted", "--density.correlation=0.5", "--sampler=MarkovChain",
                             "--sampler.corrector=HMC", "--sampler.corrector.time_step=0.4", "--steps=600",
                             "--num_samples=50")  # fmt: skip
    x, draws = arrays["x"], arrays["chains"].reshape(-1, 2)
    for points, atol in ((x, 0.5), (draws, 0.05)):
        np.testing.assert_allclose(np.cov(points.T), [[1, 0.5], [0.5, 1]], atol=atol)
    assert arrays["chains"].shape == (50, 300, 2) and arrays["steps"].tolist() == list(range(301, 601))
    np.testing.assert_array_equal(arrays["chains"][:, -1], x)
    exact = -(draws**2 @ [1, 1] - draws.prod(1)) / 1.5
    np.testing.assert_allclose(arrays["log_density"].ravel(), exact, rtol=1e-3, atol=1e-4)
    assert 0.5 < report["acceptance"]["mean"] < 1 and arrays["acceptance"].mean() == report["acceptance"]["mean"]
    assert report["nfe"] == 6 * 600 and not [words for words in report["warnings"] if "x[" in words]
    assert report["options"]["density"] == {"class_path": "own_densities.Tilted", "init_args": {"correlation": 0.5}}
    first = report["coordinates"][0]
    assert first["name"] == "x[0]" and abs(first["mean"]) < 5 * first["error"] and first["r_hat"] < 1.01
    assert [row["name"] for row in report["coordinates"]] == ["x[0]", "x[1]", "log density"]
    assert first["ess_bulk"] > 4000 and first["low"] == pytest.approx(-1.645, abs=0.1)
    for name in ("chains", "cloud"):
        assert np.asarray(Image.open(f"out/{name}.png").convert("L")).std() > 10
    printed = capsys.readouterr().out
    assert "acceptance 0." in printed and "R-hat" in printed and "out/samples.npz" in printed


def test_the_diagnostics_of_langevin_dynamics_are_those_of_an_autoregressive_chain():
    """On N(0, 4) with step size 0.8: x' = 0.8 x + ..., of the variance 4/0.9 and ESS N (1 - 0.8)/(1 + 0.8)."""
    arrays, report = outcome("--density=own_densities.Line", "--sampler.step_size=0.8", "--steps=1000", "--num_samples=40",
                             "--burn_in=100", "--scale=2")  # fmt: skip
    (row,) = report["coordinates"]
    assert report["thin"] == 1 and report["draws"] == 900 and report["acceptance"] is None
    assert row["ess_bulk"] == pytest.approx(900 * 40 / 9, rel=0.15)
    assert row["std"] ** 2 == pytest.approx(4 / 0.9, rel=0.1)
    assert "log_density" not in arrays and not Path("out/cloud.png").exists() and Path("out/chains.png").exists()


def test_chain_k_is_the_same_for_any_number_and_a_config_runs_it_again():
    few, _ = outcome("--density=Banana", "--density.curvature=0.3", "--steps=6", "--num_samples=4", "--seed=5")
    Path("out").rename("few")
    many, _ = outcome("--config=few/config.yaml", "--num_samples=9")
    np.testing.assert_array_equal(few["chains"], many["chains"][:4])
    stream = NoiseStream(5, range(4), (2,))
    np.testing.assert_array_equal(few["x"], LangevinDynamics(0.01, 6)(DensityScore(Banana(0.3)), stream).x)


def test_a_run_goes_on_from_the_samples_of_another_and_cools_down(capsys):
    first, _ = outcome("--density=Banana", "--steps=5", "--num_samples=6")
    Path("out").rename("first")
    start = ["--sampler.initial=FromFile", "--sampler.initial.path=first/samples.npz"]
    second, _ = outcome("--density=Banana", "--sampler=LangevinDynamics", "--sampler.step_size=1e-12", "--steps=4",
                        "--num_samples=8", *start)  # fmt: skip
    np.testing.assert_allclose(second["x"], first["x"][[*range(6), 0, 1]], atol=1e-4)
    Path("out").rename("second")
    _, report = outcome("--density=Mixture", "--sampler=AnnealedLangevin", "--sampler.step_size=0.02", "--steps=6",
                        "--initial_temperature=20", "--levels=4", "--num_samples=5", "--temperature=0.5")  # fmt: skip
    assert report["nfe"] == 24 and report["steps"] == 6 and "at the last temperature" in capsys.readouterr().out


def test_images_are_judged_by_their_first_coordinates(capsys):
    arrays, report = outcome("--density=own_densities.Cube", "--sampler=MarkovChain", "--steps=6", "--num_samples=5")
    assert arrays["x"].shape == (5, 3, 3, 3) and arrays["chains"].shape == (5, 3, 20)
    assert report["coordinates"][4]["name"] == "x[0, 1, 1]" and "first 20 of 27" in capsys.readouterr().out


def test_what_is_kept_does_not_grow_with_the_steps():
    score = DensityScore(Banana())
    long, wide = (Chains(LangevinDynamics(0.1, 100_000), score, n, None, None) for n in (10, 4096))
    assert long.draws == MOST and long.thin == 50 and long.kept_steps[-1] == 100_000 and long.kept_steps[0] > 50_000
    assert wide.draws < 200 and wide.draws * 4096 * 3 < 2.2e6
    assert len(long.kept_steps) == long.draws and len(wide.kept_steps) == wide.draws


def test_acceptance_is_counted():
    """Of steps that are sometimes rejected, by the draws themselves."""
    score = DensityScore(Mixture())
    chains = Chains(MarkovChain(MALA(0.9), 50), score, 30, 10, 1)
    chains.draw(0)
    moved = (np.diff(chains.kept[:, :, :2], axis=1) != 0).any(2).mean(1)
    assert 0.1 < float(chains.acceptance.mean()) < 0.95
    np.testing.assert_allclose(chains.acceptance, moved, atol=1 / 40)


def test_a_few_steps_and_chains_that_stand_still_are_warned_of(capsys):
    _, report = outcome("--density=Banana", "--steps=2", "--num_samples=3")
    assert "too few" in report["warnings"][0] and report["coordinates"][0]["r_hat"] is None
    Path("out").rename("few")
    _, report = outcome("--density=Banana", "--sampler=MarkovChain", "--sampler.corrector.snr=50", "--steps=40",
                        "--sampler.corrector=MALA", "--num_samples=20")  # fmt: skip
    words = " ".join(report["warnings"])
    assert "R-hat of x[0], x[1]" in words and "effective sample size" in words and "never moved" in words
    assert capsys.readouterr().out.count("warning: ") == 4


MISTAKES = [
    (["--density=own_densities.Nothing"], "has no attribute 'Nothing'"),
    (["--density=no_such_module.Part"], "cannot be imported"),
    (["--density=Bananna"], "no such class; give one of Banana"),
    (["--density=own_densities.Neither"], "not a Density with log_density"),
    (["--density=own_densities.Detached"], "no gradient in x"),
    (["--density=own_densities.Scalar"], "must be a tensor of shape"),
    (["--density=own_densities.Undefined"], "NaN or infinite at"),
    ([], "langevin needs a density: --density Banana"),
    (["--density=Banana", "--num_samples=0"], "--num_samples 0: must be at least 1"),
    (["--density=Banana", "--steps=0"], "steps=0"),
    (["--density=Banana", "--steps=abc"], "steps"),
    (["--density=Banana", "--seed=-1"], "--seed -1"),
    (["--density=Banana", "--burn_in=20"], "--burn_in 20: must be below the number of steps, 20"),
    (["--density=Banana", "--thin=0"], "--thin 0"),
    (["--density=Banana", "--temperature=0"], "temperature=0.0"),
    (["--density=Banana", "--density.curve=1"], "Did you mean --density.curvature"),
    (["--density=Banana", "--sampler.step_size=500"], "chains diverged at step"),
    (["--density=Banana", "--sampler.step_size=-1"], "step_size=-1"),
    (["--density=Banana", "--sampler.denoise=Tweedie"], "denoise"),
    (["--density=Banana", "--sampler=PredictorCorrector"], "PredictorCorrector: needs the laws of a density with noise"),
    (["--density=Banana", "--sampler=ConsistentAnnealedLangevin"], "needs the laws of a density with noise"),
    (["--density=Banana", "--sampler=AnnealedLangevin"], "give its initial_temperature"),
    (["--density=Banana", "--initial_temperature=9"], "LangevinDynamics does not cool"),
    (["--density=Banana", "--sampler=MarkovChain", "--sampler.corrector=SampleLangevin"], "at least 1000"),
    (["--density=Banana", "--sampler.initial=FromFile", "--sampler.initial.path=none.npy"], "no such file"),
    (["--density=Banana", "--sampler.initial=FromFile", "--sampler.initial.path=own_densities.py"], "not a readable"),
]


@pytest.mark.parametrize(("options", "words"), MISTAKES, ids=lambda v: " ".join(v)[-60:] if isinstance(v, list) else "")
def test_a_mistake_is_one_line_and_leaves_nothing(options, words, capsys):
    try:
        code = run(
            ["langevin", *([] if any("steps" in o for o in options) else ["--steps=20"]), "--num_samples=8", *options]
        )
    except SystemExit as stop:
        code = stop.code
    errors = re.findall(r"error: .*", capsys.readouterr().err)
    assert code == 2 and len(errors) == 1 and words in errors[0], errors
    assert sorted(path.name for path in Path().iterdir() if path.name != "__pycache__") == ["own_densities.py"]


def test_an_existing_folder_is_not_touched(capsys):
    Path("out").mkdir()
    Path("out/mine").write_text("kept")
    assert run(["langevin", "--density=Banana", "--output=out", "--steps=5"]) == 2
    assert "already exists" in capsys.readouterr().err and [path.name for path in Path("out").iterdir()] == ["mine"]


def test_samplers_for_noise_are_refused_in_python_too():
    with pytest.raises(InputError, match="needs the laws"):
        Chains(PredictorCorrector(), DensityScore(Banana()), 3, None, None)
    assert torch.is_grad_enabled()
