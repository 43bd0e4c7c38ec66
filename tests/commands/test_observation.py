"""`predict --observation`: posteriors of observations in files, against the exact posterior and the same draws in Python."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_score import ScoreModel
from lightning_score.callbacks.posterior_pictures import Posteriors
from lightning_score.cli import run
from lightning_score.errors import InputError
from lightning_score.guidance import Composed, Observed, PseudoInverse
from lightning_score.observations import (
    BlockMean,
    GaussianNoise,
    Mask,
    Matrix,
    PoissonNoise,
    read_observation,
    write_observation,
)
from lightning_score.observations.files import settings

MASK = torch.ones(1, 8, 8).tril()
NOISE = GaussianNoise(0.2)


@pytest.fixture(scope="module", name="trained")
def trained_fixture(tmp_path_factory):
    """A checkpoint of configs/vp_pc.yaml, untrained: with EDM that is the score of N(0, 0.5^2 I)."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--trainer.max_steps=2", "--samples.num_samples=0", "--evaluate.features=null", "--model.optimizer.lr=0.0"]
    options += ["--model.parametrization.data_std=0.5", "--model.sampler.predictor=EulerMaruyama"]
    options += ["--model.sampler.grid=Geometric", "--model.sampler.grid.steps=40", "--model.network.channels=4"]
    assert run(["fit", "--config=vp_pc", f"--runs={folder}", *options]) == 0
    return folder / "vp_pc" / "latest" / "last.ckpt"


@pytest.fixture(name="predict")
def predict_fixture(trained, tmp_path, monkeypatch, capsys):
    """Runs `predict` in an empty folder; returns its arrays, or the error of a mistake, which leaves no folder."""
    monkeypatch.chdir(tmp_path)

    def predict(*options, guidance="PseudoInverse"):
        named = [f"--model.guidance={guidance}"] if guidance else []
        try:
            code = run(["predict", f"--ckpt_path={trained}", "--output=out", *named, *options])
        except SystemExit as end:  # of the parser
            code = end.code
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        if code == 0:
            return np.load("out/samples.npz")
        assert code == 2 and len(lines) == 1 and not Path("out").exists()
        return lines[0]

    return predict


@pytest.mark.slow
def test_the_maps_are_those_of_the_exact_posterior(predict, trained):
    """N(0, d^2 I) under a mask with noise s: mean d^2/(d^2 + s^2) y, variance d^2 s^2/(d^2 + s^2), where it is observed."""
    y = NOISE.sample(Mask(MASK).apply(0.5 * torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))))
    write_observation("y.npz", y, Mask(MASK), NOISE, (-1, 1))
    drawn, known = predict("--observation=y.npz", "--samples_per_observation=100"), MASK.bool().numpy()
    x = torch.from_numpy(drawn["x"]).reshape(2, 100, 1, 8, 8)
    assert drawn["observation"].tolist() == [0] * 100 + [1] * 100 and Image.open("out/posterior.png").width > 400
    for name, found in (("mean", x.mean(1)), ("std", x.std(1))):
        np.testing.assert_allclose(drawn[name], found, atol=1e-5)
    np.testing.assert_allclose(drawn["quantiles"], np.quantile(x, (0.05, 0.5, 0.95), axis=1).swapaxes(0, 1), atol=1e-5)
    gain, std = 0.25 / 0.29, 0.5 * 0.2 / 0.29**0.5
    deviations = (drawn["mean"][:, known] - gain * y.numpy()) / (std / 10)
    assert np.abs(deviations).max() < 4.5 and abs(drawn["std"][:, known].mean() / std - 1) < 0.1
    assert abs(drawn["std"][:, ~known].mean() / 0.5 - 1) < 0.1

    model = ScoreModel.load_from_checkpoint(trained)
    model.use(model.sampler, PseudoInverse(Mask(MASK), noise=NOISE).observe_with(y, 100))
    torch.testing.assert_close(model.draw([7, 101]).x, x.flatten(0, 1)[[7, 101]], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("operator", "noise"),
    [(Mask(MASK), GaussianNoise(None)), (BlockMean(4), PoissonNoise(7.0)), (Matrix(torch.randn(3, 64)), GaussianNoise(0.3))],
    ids=lambda part: type(part).__name__,
)
def test_settings_travel_with_their_arrays(operator, noise, tmp_path):
    """They are plain JSON in which arrays are nested lists, and make the same parts again."""
    file, y = str(tmp_path / "y.npz"), operator.apply(torch.randn(2, 1, 8, 8))
    write_observation(file, y, operator, noise, (0, 1))
    found = read_observation(file)
    assert torch.equal(found.y, y) and found.data_range == (0.0, 1.0)
    for part, spec in ((operator, found.settings["operator"]), (noise, found.settings["noise"])):
        json.dumps(spec)
        made = type(part)(**spec["init_args"])
        assert spec["class_path"].endswith(f".{type(part).__name__}")
        assert str(settings(part, "part")) == str(settings(made, "part"))
    torch.testing.assert_close(type(operator)(**found.settings["operator"]["init_args"]).apply(torch.ones(1, 1, 8, 8)),
                               operator.apply(torch.ones(1, 1, 8, 8)))  # fmt: skip


def test_summaries_belong_to_their_observation():
    """Sample k has the observation (k // 3) mod 4; one without samples has none, one with a single sample no deviation."""
    observed = Observed(BlockMean(2), torch.zeros(4, 1, 4, 4), samples_per_observation=3)
    numbers = torch.tensor([13, 0, 1, 2, 3, 12, 9])
    x = torch.randn(7, 1, 8, 8)
    found = Posteriors.of(x, observed.numbers_of(numbers), 4)
    for k, rows in enumerate(([0, 1, 2, 3, 5], [4], [], [6])):
        expected = (
            torch.from_numpy(np.quantile(x[rows], (0.05, 0.5, 0.95), axis=0))
            if rows
            else torch.full((3, 1, 8, 8), torch.nan)
        )
        torch.testing.assert_close(found.quantiles[k], expected.float(), equal_nan=True)
        assert bool(found.std[k].isnan().all()) == (len(rows) < 2) and bool(found.mean[k].isnan().all()) == (not rows)
    torch.testing.assert_close(found.std[0], x[[0, 1, 2, 3, 5]].std(0))


def test_an_operator_that_keeps_no_argument_is_not_written(tmp_path):
    class Forgetful(BlockMean):
        def __init__(self, side):
            super().__init__(side)

    with pytest.raises(InputError, match=r"operator=Forgetful: keep its argument as self.side"):
        write_observation(tmp_path / "y.npz", torch.zeros(1, 1, 4, 4), Forgetful(2))
    assert not list(tmp_path.iterdir())


def test_observations_reach_the_parts_of_a_composition():
    y = torch.randn(3, 1, 4, 4)
    whole = Composed([PseudoInverse(BlockMean(2))]).observe_with(y, 2)
    assert torch.equal(whole.observing()[0].given(), y) and whole.observing()[0].samples_per_observation == 2


@pytest.mark.slow
def test_mistakes_leave_nothing(predict):
    """Whatever is wrong with the file, the options or both."""
    y = np.zeros((2, 1, 4, 4), np.float32)
    write_observation("block.npz", torch.from_numpy(y), BlockMean(2), NOISE)
    np.savez("plain.npz", y=y)
    np.savez("many.npz", a=y, b=y)
    np.savez("nan.npz", y=y * np.nan)
    np.savez("large.npz", y=y + 9)
    np.savez("range.npz", y=y, data_range=[0, 1])
    np.savez("objects.npz", y=np.array([{}], dtype=object))
    np.savez("json.npz", y=y, operator="{")
    np.savez("evil.npz", y=y, operator='{"class_path": "os.system"}')
    np.savez("linear.npz", y=y, operator='{"class_path": "torch.nn.Linear"}')
    np.savez("bytes.npz", y=y.astype(np.uint8)[..., :3, 0])
    Path("text.npz").write_text("hello")
    block = "--model.guidance.operator=BlockMean"
    for options, words in (
        ([block], ["has no observation", "--observation y.npz"]),
        (["--observation=plain.npz"], ["--model.guidance.operator"]),
        ([block, "--observation=none.npz"], ["--observation none.npz", "does not exist"]),
        ([block, "--observation=text.npz"], ["--observation text.npz", "not a readable NPY or NPZ"]),
        ([block, "--observation=objects.npz"], ["objects.npz", "pickles"]),
        ([block, "--observation=many.npz"], ["a, b", "name the observation y"]),
        ([block, "--observation=nan.npz"], ["NaN or infinity"]),
        ([block, "--observation=large.npz"], ["from 9 to 9", "data_range=[-1.0, 1.0]"]),
        ([block, "--observation=range.npz"], ["[0.0, 1.0] of --observation range.npz and [-1.0, 1.0] of the data"]),
        ([block, "--observation=json.npz"], ["operator is not JSON"]),
        (["--observation=evil.npz"], ["os.system", "--trust os"]),
        (["--observation=linear.npz"], ["torch.nn.Linear", "not a LinearOperator"]),
        (["--model.guidance.operator=Gray", "--observation=plain.npz"], ["[2, 1, 4, 4]", "[n, 1, 8, 8]"]),
        (["--model.guidance.operator=Gray", "--observation=block.npz"], ["--model.guidance.operator: block.npz"]),
        (["--model.guidance.noise.std=0.3", "--observation=block.npz"], ["--model.guidance.noise: block.npz"]),
        ([block, "--observation=plain.npz", "--samples_per_observation=0"], ["--samples_per_observation 0"]),
        ([block, "--observation=plain.npz", "--observation_range=[0,1]"], ["[0.0, 1.0] of --observation_range"]),
        (["--observation=block.npz", "--model.compile=default", "--model.guidance.backprop=true"], ["compile"]),
    ):
        line = predict(*options)
        assert all(word in line for word in words), line
    assert "give --model.guidance" in predict("--observation=block.npz", guidance="")
    assert "give --model.guidance" in predict("--observation=block.npz", guidance="null")
