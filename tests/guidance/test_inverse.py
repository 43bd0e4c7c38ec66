"""Guidance by observations: the guided score against exact posteriors, samples, files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ImageScore, MixtureScore, times
from PIL import Image
from scipy import stats
from torch import nn

from lightning_score import ScoreModel
from lightning_score.cli import run
from lightning_score.data import Mixture
from lightning_score.errors import InputError
from lightning_score.guidance import (
    BlockMean,
    Colorization,
    Gray,
    Inpainting,
    Mask,
    Matrix,
    PseudoInverse,
    SuperResolution,
)
from lightning_score.networks import UNet
from lightning_score.process import VP
from lightning_score.sampling import DDIM, EulerMaruyama, PredictorCorrector, Uniform
from lightning_score.sampling.noise import NoiseStream

SHAPE = (3, 4, 2)
GENERATOR = torch.Generator().manual_seed(0)
RANDOM = torch.randn(5, 24, dtype=torch.float64, generator=GENERATOR)
OPERATORS = {
    "mask": Mask(torch.rand(SHAPE, generator=GENERATOR) < 0.4),
    "gray": Gray(),
    "downsample": BlockMean(2),
    "matrix": Matrix(RANDOM),
    "rank deficient": Matrix(torch.cat([RANDOM, RANDOM[:2]])),
    "tall": Matrix(torch.randn(30, 24, dtype=torch.float64, generator=GENERATOR)),
}


def dense(operator):
    """The matrix of an operator, (m, 24)."""
    return operator.apply(torch.eye(24, dtype=torch.float64).reshape(24, *SHAPE)).flatten(1).mT


@pytest.fixture(params=OPERATORS, name="operator")
def operator_fixture(request):
    return OPERATORS[request.param]


@pytest.mark.parametrize(("noise_std", "backprop"), [(0.0, True), (0.4, True), (0.0, False), (0.4, False)])
def test_pseudo_inverse_guidance_is_exact_for_gaussian_data(noise_process, operator, noise_std, backprop):
    """The score of p_t(x given y): x_0 given y is N(m + K (y - A m), d^2 (I - K A)), K = d^2 A^T (d^2 A A^T + s^2 I)^-1."""
    torch.manual_seed(0)
    d, t = 0.6, times(20)
    m, x = torch.randn(SHAPE, dtype=torch.float64), torch.randn(20, *SHAPE, dtype=torch.float64)
    a, eye = dense(operator), torch.eye(24, dtype=torch.float64)
    y = operator.apply(m + d * torch.randn(4, *SHAPE, dtype=torch.float64))
    y = y + noise_std * torch.randn_like(y)
    problem = PseudoInverse(operator, y, data_std=d, noise_std=noise_std, backprop=backprop)
    guided = problem.guide(ImageScore(noise_process, m, d), torch.arange(20) + 3)
    k = (
        d**2
        * a.mT
        @ torch.linalg.pinv(
            d**2 * a @ a.mT + noise_std**2 * torch.eye(len(a), dtype=torch.float64), hermitian=True, rtol=1e-10
        )
    )
    mean = m.flatten() + (y.flatten(1)[(torch.arange(20) + 3) % 4] - m.flatten() @ a.mT) @ k.mT
    alpha, sigma = noise_process.alpha(t).unsqueeze(1), noise_process.sigma(t).unsqueeze(1)
    covariance = (alpha**2).unsqueeze(2) * d**2 * (eye - k @ a) + (sigma**2).unsqueeze(2) * eye
    expected = torch.linalg.solve(covariance, alpha * mean - x.flatten(1))
    torch.testing.assert_close(guided(x, t).flatten(1), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(guided(x, t[3])[3], guided(x, t)[3])


def test_strength_zero_is_no_guidance_and_counts_one_evaluation():
    score = ImageScore(VP(), torch.zeros(SHAPE), 0.5)
    x, t = torch.randn(5, *SHAPE), torch.tensor(0.4)
    guided = PseudoInverse(BlockMean(2), torch.zeros(1, 3, 2, 1), strength=0.0).guide(score, torch.arange(5))
    torch.testing.assert_close(guided(x, t), score(x, t))
    assert score.evaluations == 10


def drawn(mixture, observed, predictor, n=1000, data_std=0.3, steps=250):
    """Samples of a mixture in the plane whose first coordinate is observed, with its exact scores."""
    problem = PseudoInverse(Mask([1, 0]), torch.tensor([[observed]], dtype=torch.float64), data_std=data_std, backprop=True)
    score = problem.guide(MixtureScore(VP(), mixture), torch.arange(n))
    sampler = PredictorCorrector(predictor, grid=Uniform(steps, 1e-3))
    return sampler(score, NoiseStream(0, range(n), [2], dtype=torch.float64)).x


def conditional(mixture, observed):
    """The distribution function of the second coordinate given the first."""
    normal = stats.norm(mixture.means[:, 0].numpy(), mixture.stds.numpy())
    weights = mixture.weights.numpy() * normal.pdf(observed)
    second = stats.norm(mixture.means[:, 1].numpy(), mixture.stds.numpy())
    return lambda x: second.cdf(np.asarray(x)[:, None]) @ (weights / weights.sum())


def test_inpainting_a_mixture_with_a_gaussian_coordinate_follows_the_conditional_law():
    """x_1 Gaussian, x_2 a mixture: the guidance is exact, so x_1 is matched and x_2 has its exact law."""
    mixture = Mixture([[0.2, -1.0], [0.2, 0.8]], [0.3, 0.3], [0.3, 0.7])
    x = drawn(mixture, -0.25, EulerMaruyama())
    assert (x[:, 0] + 0.25).abs().max() < 0.02
    assert stats.kstest(x[:, 1].numpy(), conditional(mixture, -0.25)).pvalue > 1e-3


def test_inpainting_a_mixture_with_dependent_coordinates_nearly_follows_the_conditional_law():
    """Here it is an approximation: the observation is matched; the law of the rest was 0.11 off in Kolmogorov distance."""
    mixture = Mixture([[-0.5, -1.0], [0.5, 0.8]], [0.3, 0.3])
    x = drawn(mixture, 0.1, EulerMaruyama())
    distance = stats.kstest(x[:, 1].numpy(), conditional(mixture, 0.1)).statistic
    assert (x[:, 0] - 0.1).abs().max() < 0.02
    assert 0.05 < distance < 0.15


@pytest.fixture(scope="module", name="images")
def images_fixture():
    """A model of 8x8 images with a random network, whose denoised image is far off where alpha is small."""
    torch.manual_seed(0)
    small = {"channels": 8, "multipliers": [1, 1], "blocks": 1, "attention": [], "groups": 4}
    model = ScoreModel(lambda shape, classes: UNet(shape, classes, **small), [3, 8, 8], VP())
    for parameter in model.score_function.network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model


@pytest.mark.parametrize(
    "operator", [Mask(torch.rand(3, 8, 8, generator=GENERATOR) < 0.5), Gray(), BlockMean(4)], ids=lambda o: type(o).__name__
)
def test_images_agree_with_their_observation_under_inference_mode(images, operator):
    """Sample k meets observation k mod 3, in any batch."""
    y = operator.apply(torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.5)
    images.guidance = PseudoInverse(operator, y)
    sampler = PredictorCorrector(DDIM(), grid=Uniform(20, 1e-4))
    x = images.draw(range(5), sampler=sampler)
    assert not x.x.requires_grad and x.nfe == 20
    torch.testing.assert_close(operator.apply(x.x), y[[0, 1, 2, 0, 1]], atol=0.02, rtol=0)
    torch.testing.assert_close(images.draw([3, 4], sampler=sampler).x, x.x[3:], atol=1e-4, rtol=1e-4)


QUICK = ["--trainer.max_steps=3", "--samples.num_samples=0", "--evaluate.features=null"]


@pytest.fixture(scope="module", name="trained")
def trained_fixture(tmp_path_factory):
    """A checkpoint of configs/vp_pc.yaml given labels, untrained: with EDM that is the score of N(0, 0.5^2 I)."""
    folder = tmp_path_factory.mktemp("trained")
    labeled = ["--model.conditional=true", "--model.label_dropout=0.2", "--model.guidance=ClassifierFree"]
    labeled += [
        "--model.optimizer.lr=0.0",
        "--model.parametrization.data_std=0.5",
        "--model.sampler.predictor=DDIM",
        "--model.sampler.grid=Geometric",
        "--model.sampler.grid.steps=20",
    ]
    assert run(["fit", "--config=vp_pc", f"--runs={folder}", *QUICK, *labeled]) == 0
    return folder / "vp_pc" / "latest" / "last.ckpt"


@pytest.fixture(name="predict")
def predict_fixture(trained, tmp_path, monkeypatch, capsys):
    """Runs `predict` in an empty folder; returns its arrays, or the error of a mistake, which leaves no folder."""
    monkeypatch.chdir(tmp_path)

    def predict(*options, output="out"):
        code = run(["predict", f"--ckpt_path={trained}", f"--output={output}", "--num_samples=6", *options])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        if code == 0:
            return np.load(f"{output}/samples.npz")
        assert code == 2 and len(lines) == 1 and not Path(output).exists()
        return lines[0]

    return predict


@pytest.mark.slow
def test_labels_on_the_command_line(predict, trained):
    """Repeated in turn; guidance costs two evaluations a step."""
    given = predict("--labels=[3,7]")
    model = ScoreModel.load_from_checkpoint(trained, weights_only=True)
    expected = model.draw(range(6), cond=torch.tensor([3, 7] * 3))
    np.testing.assert_allclose(given["x"], expected.x.numpy(), rtol=1e-4, atol=1e-4)
    assert float(given["nfe"]) == expected.nfe == 42 and given["labels"].tolist() == [3, 7] * 3
    assert predict(output="all")["labels"].tolist() == [0, 1, 2, 3, 4, 5]
    assert float(predict("--labels=[10]", "--model.guidance=null", output="plain")["nfe"]) == 21
    assert "0 to 9, or 10 for no class" in predict("--labels=[11]", output="wrong")
    assert "labels" in predict("--labels=[]", output="wrong")


@pytest.mark.parametrize("kind", ["npz", "npy", "png"])
def test_inpainting_on_the_command_line(predict, kind):
    """The known half of the pixels is matched, whatever the file holds: floats in the data range, or bytes."""
    unit = np.random.default_rng(0).integers(0, 17, (2, 1, 8, 8)) / 16
    data_range = []
    if kind == "npz":
        np.savez("half.npz", x=(2 * unit - 1).astype(np.float32), seed=0)
    elif kind == "npy":
        np.save("half.npy", 2 * unit - 1)
    else:
        unit = unit[:1]
        Image.fromarray(np.uint8(np.round(255 * unit[0, 0]))).save("half.png")
        data_range = ["--model.guidance.data_range=[-1,1]"]
    Image.fromarray(np.uint8([[255] * 4 + [0] * 4] * 8)).save("mask.png")
    files = [f"--model.guidance.observed=half.{kind}", "--model.guidance.mask=mask.png"]
    x = predict("--model.guidance=Inpainting", *files, *data_range)["x"]
    known = (2 * unit - 1)[np.arange(6) % len(unit)]
    np.testing.assert_allclose(x[..., :4], known[..., :4], atol=0.05)


def test_the_other_restorations_read_their_files(tmp_path):
    Image.fromarray(np.full((4, 4), 51, np.uint8)).save(tmp_path / "small.png")
    small = str(tmp_path / "small.png")
    for made in (SuperResolution(small, 2, data_range=[0, 1]), Colorization(small, data_range=[0, 1])):
        torch.testing.assert_close(made.observation, torch.full((1, 1, 4, 4), 0.2))
    Image.fromarray(np.full((4, 4, 3), 51, np.uint8)).save(tmp_path / "color.png")
    assert Inpainting(str(tmp_path / "color.png"), small, data_range=[0, 1]).observation.shape == (1, 48)


@pytest.mark.slow
def test_mistakes_on_the_command_line(predict):
    np.save("small.npy", np.zeros((2, 1, 4, 4)))
    np.save("bytes.npy", np.zeros((2, 1, 8, 8), np.uint8))
    np.savez("many.npz", a=np.zeros(3), b=np.zeros(3))
    np.savez("one.npz", only=np.zeros((2, 1, 8, 8)))
    np.save("ones.npy", np.ones((4, 4)))
    np.save("ones8.npy", np.ones((8, 8)))
    np.save("nothing.npy", np.zeros((8, 8)))
    Path("text.npy").write_text("hello")
    np.save("int16.npy", np.zeros((2, 1, 8, 8), np.int16))
    np.save("large.npy", np.full((2, 1, 8, 8), 200.0))
    np.save("nan.npy", np.full((2, 1, 8, 8), np.nan))
    Image.fromarray(np.zeros((8, 8), np.uint16)).save("deep.png")
    for kind, options, words in (
        ("Inpainting", ["observed=none.npz", "mask=nothing.npy"], ["none.npz", "does not exist"]),
        ("Inpainting", ["observed=one.npz", "mask=none.png"], ["none.png", "does not exist"]),
        ("Inpainting", ["observed=text.npy", "mask=nothing.npy"], ["text.npy", "not a readable NPY"]),
        ("Inpainting", ["observed=many.npz", "mask=nothing.npy"], ["many.npz", "a, b"]),
        ("Inpainting", ["observed=bytes.npy", "mask=nothing.npy"], ["bytes.npy holds bytes", "as [-1, 1]"]),
        ("Inpainting", ["observed=one.npz", "mask=ones.npy"], ["ones.npy", "[4, 4]", "[1, 8, 8]"]),
        ("Inpainting", ["observed=one.npz", "mask=nothing.npy"], ["nothing is observed"]),
        ("Inpainting", ["observed=small.npy", "mask=ones.npy"], ["[4, 4]", "[1, 8, 8]"]),
        ("Colorization", ["observed=int16.npy"], ["int16.npy", "holds int16; give bytes"]),
        ("Colorization", ["observed=deep.png"], ["deep.png", "16 bits"]),
        ("Colorization", ["observed=one.npz", "data_range=[1,0]"], ["data_range=[1.0, 0.0]"]),
        ("Inpainting", ["observed=nan.npy", "mask=ones8.npy"], ["NaN or infinity at known pixels"]),
        ("Inpainting", ["observed=large.npy", "mask=ones8.npy", "data_range=[-1,1]"], ["from 200 to 200", "data_range"]),
        ("Colorization", ["observed=small.npy"], ["[2, 1, 4, 4]", "[n, 1, 8, 8]"]),
        ("SuperResolution", ["observed=small.npy", "factor=3"], ["factor=3", "divide"]),
        ("SuperResolution", ["observed=small.npy", "factor=4"], ["[n, 1, 2, 2]"]),
        ("SuperResolution", ["observed=small.npy", "noise_std=-1"], ["noise_std=-1"]),
    ):
        line = predict(f"--model.guidance={kind}", *[f"--model.guidance.{option}" for option in options])
        assert all(word in line for word in words), line


def test_mistakes_in_python():
    for wrong, words in (
        (lambda: Matrix(torch.zeros(3)), "must be .m, D."),
        (lambda: Matrix(torch.zeros(3, 5)).check([2, 2]), "5 columns"),
        (lambda: Gray().check([2]), "only images"),
        (lambda: PseudoInverse(Gray(), torch.zeros(1), data_std=0.0), "data_std=0.0"),
    ):
        with pytest.raises(InputError, match=words):
            wrong()
