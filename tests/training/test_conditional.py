"""Models given any condition: dropout, guidance, samples in turn, checkpoints, and the law that training finds."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lightning_score import ScoreModel
from lightning_score.cli import run
from lightning_score.conditions import Array, ClassLabel, Several, Vector
from lightning_score.errors import InputError
from lightning_score.guidance import ClassifierFree, Guidance
from lightning_score.networks import MLP, Network, UNet
from lightning_score.objective import DenoisingScoreMatching
from lightning_score.objective.times import TimeDistribution
from lightning_score.process import VP
from lightning_score.sampling import DDIM, PredictorCorrector, Uniform
from lightning_score.score import Score
from lightning_score.score.function import ScoreWrapper

SLOPE, OFFSET = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]]), torch.tensor([0.5, -0.2])
COVARIANCE = torch.tensor([[0.25, 0.1], [0.1, 0.2]])
POINTS = partial(MLP, width=8, depth=1)
IMAGES = partial(UNet, channels=8, multipliers=[1], blocks=1, attention=[], dropout=0.0, groups=4)
KINDS = {
    "label": (ClassLabel(3), POINTS, (2,)),
    "vector": (Vector(3), POINTS, (2,)),
    "array": (Array([2, 2, 2]), IMAGES, (1, 4, 4)),
    "several": (Several([ClassLabel(3), Vector(2), Array([1, 4, 4])]), IMAGES, (1, 4, 4)),
}


def conditions(kind, n):
    """Conditions of a kind, different in every row."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(kind, Several):
        return kind.pack([conditions(part, n) for part in kind.parts])
    return torch.arange(n) % 3 if isinstance(kind, ClassLabel) else torch.randn(n, *kind.shape, generator=generator)


@pytest.fixture(params=KINDS)
def conditional(request):
    """A model that is not trained, whose score depends on the condition."""
    kind, network, shape = KINDS[request.param]
    torch.manual_seed(0)
    sampler = PredictorCorrector(DDIM(), grid=Uniform(2))
    model = ScoreModel(network, shape, VP(), condition=kind, conditional=True, label_dropout=0.3, sampler=sampler)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


class TestEveryKind:
    def test_training_drops_the_condition_as_often_as_asked(self, conditional):
        kind, x = conditional.conditions.kind, torch.zeros(8, *conditional.shape)
        y = conditions(kind, 8)
        torch.manual_seed(3)
        losses = conditional.train().losses((x, y))
        torch.manual_seed(3)
        dropped = torch.rand(8) < 0.3
        expected = conditional.objective(conditional.score_function, x, y.masked_scatter(
            dropped.reshape(-1, *[1] * (y.ndim - 1)), kind.empty(8).to(y.dtype)))  # fmt: skip
        assert 0 < dropped.sum() < 8
        torch.testing.assert_close(losses, expected, rtol=0, atol=0)
        torch.manual_seed(3)
        kept = conditional.eval().losses((x, y))
        torch.manual_seed(3)
        torch.testing.assert_close(kept, conditional.objective(conditional.score_function, x, y), rtol=0, atol=0)

    def test_guidance_takes_both_scores_from_one_call(self, conditional):
        score, kind = conditional.score_function, conditional.conditions.kind
        x, t, y = torch.randn(5, *conditional.shape), torch.tensor(0.4), conditions(kind, 5)
        guided, before = ClassifierFree(2.5).guide(score, torch.arange(5)), score.evaluations
        with torch.no_grad():
            found, calls = guided(x, t, y), score.evaluations - before
            given, empty = score(x, t, y), score(x, t)
        assert calls == 10 and not torch.allclose(given, empty, atol=1e-3)
        torch.testing.assert_close(found, empty + 2.5 * (given - empty), rtol=1e-4, atol=1e-4)

    def test_samples_have_the_conditions_in_turn_in_any_batch(self, conditional):
        y = conditions(conditional.conditions.kind, 3)
        if not conditional.num_classes:
            with pytest.raises(InputError, match="this model needs a condition"):
                conditional.draw([0])
            conditional.conditions.in_turn = y
        expected = conditional.draw(range(5), cond=y[[0, 1, 2, 0, 1]]).x
        for samples in (conditional.draw(range(5)).x, conditional.sample(5, batch_size=2), conditional.sample(5, cond=y)):
            torch.testing.assert_close(samples, expected, rtol=1e-4, atol=1e-3)
        assert not torch.allclose(expected[:1], conditional.draw([0], cond=y[1:2]).x, atol=1e-2)


class Fixed(Network):
    """A network of the time before conditions were anything but labels."""

    def __init__(self, shape, num_classes=0):
        super().__init__(shape, num_classes)

    def forward(self, x, noise_label, cond=None):
        return x


class Deaf(Fixed):
    """A network that takes the condition and forgets it."""

    def __init__(self, shape, num_classes=0, condition=None):
        super().__init__(shape, num_classes)


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (Fixed, {"condition": Vector(2), "conditional": True}, "network: takes no condition but class labels"),
        (Deaf, {"condition": Vector(2), "conditional": True}, "network=Deaf: takes no condition but class labels"),
        (Fixed, {"conditional": True}, "conditional=true: the data have no class labels or other conditions"),
    ],
)
def test_networks_without_conditions_are_refused(network, settings, message):
    with pytest.raises(InputError, match=message):
        ScoreModel(network, (2,), VP(), **settings)
    assert ScoreModel(Fixed, (2,), VP(), condition=Vector(2)).score_function.condition is None


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(3, 3), "has shape .3,."),
        (torch.zeros(3, dtype=torch.long), "must be one row of floats"),
        (torch.zeros(1, 2), "1 conditions for 3 samples"),
        (torch.tensor(1.0), "must be one row of floats"),
        (torch.full((3, 2), torch.nan), "row 0 is NaN, which means no condition"),
    ],
)
def test_conditions_that_the_model_was_not_trained_with_are_refused(y, message):
    model = ScoreModel(POINTS, (2,), VP(), condition=Vector(2), conditional=True)
    with pytest.raises(InputError, match=message):
        model.draw(range(3), cond=y)


class Towards(Guidance):
    """Moves samples to their conditions, which the network is not given."""

    labeled = True

    def guide(self, score, indices):
        return Pulled(score)


class Pulled(ScoreWrapper):
    def forward(self, x, t, cond=None):
        return self.score(x, t) + cond - x


def test_guidance_of_ones_own_takes_conditions_that_the_network_is_not_given():
    sampler = PredictorCorrector(DDIM(), grid=Uniform(2))
    model = ScoreModel(POINTS, (2,), VP(), condition=Vector(2), guidance=Towards(), sampler=sampler)
    y = torch.tensor([[1.0, 2.0], [-3.0, 0.5]])
    model.conditions.take_from(SimpleNamespace(held_out_conditions=lambda: y))
    torch.testing.assert_close(model.draw(range(4)).x, model.draw(range(4), cond=y.repeat(2, 1)).x, rtol=0, atol=0)


class AtOneTime(TimeDistribution):
    """Trains a single noise level."""

    def quantile(self, process, u):
        return torch.full_like(u, 0.3)


class Affine(Network):
    """W x + V y + c, with other numbers where there is no condition: the scores of a Gaussian at one noise level."""

    def __init__(self, shape, num_classes=0, condition=None):
        super().__init__(shape, num_classes, condition)
        self.given, self.empty = nn.Linear(5, 2), nn.Linear(2, 2)

    def forward(self, x, noise_label, cond=None):
        given = self.given(torch.cat([x, cond.nan_to_num()], 1))
        return torch.where(self.condition.is_empty(cond)[:, None], self.empty(x), given)


def trained(seed, steps=300):
    """The numbers of a network after training on x given y from N(A y + b, S), y from N(0, I)."""
    torch.manual_seed(seed)
    objective = DenoisingScoreMatching(times=AtOneTime())
    settings = {"condition": Vector(3), "conditional": True, "label_dropout": 0.2, "objective": objective}
    model = ScoreModel(Affine, (2,), VP(), Score(), **settings).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for k in range(steps):
        y = torch.randn(500, 3)
        x = y @ SLOPE.mT + OFFSET + torch.randn(500, 2) @ torch.linalg.cholesky(COVARIANCE).mT
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - k / steps)
        optimizer.zero_grad()
        model.loss((x, y)).backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.slow
def test_training_finds_the_law_of_a_conditional_gaussian():
    """Score -(alpha^2 S + sigma^2 I)^-1 (x - alpha (A y + b)), and with S + A A^T without y: each of its 18 numbers within 3
    standard errors, which are about half a percent.
    """
    alpha, sigma = VP().alpha(torch.tensor(0.3)), VP().sigma(torch.tensor(0.3))
    exact = []
    for covariance, slope in ((COVARIANCE, SLOPE), (COVARIANCE + SLOPE @ SLOPE.mT, SLOPE[:, :0])):
        precision = torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(2))
        exact += [torch.cat([-precision, alpha * precision @ slope], 1).flatten(), alpha * precision @ OFFSET]
    found = torch.stack([trained(seed) for seed in range(8)])
    error = found.std(0) / len(found) ** 0.5
    assert error.max() < 0.01
    assert ((found.mean(0) - torch.cat(exact)).abs() <= 3 * error).all()


CLASSES = """
import torch
from torch import nn

from lightning_score import ScoreData
from lightning_score.conditions import Condition, Known
from lightning_score.data import Examples, Splits


class Spectrum(Condition):
    def __init__(self, size: int = 16):
        self.size, self.shape = size, (size,)

    def embedding(self, width):
        return nn.Sequential(Known(), nn.Conv1d(2, 4, 5, stride=2), nn.SiLU(), nn.Flatten(),
                             nn.Linear(4 * ((self.size - 3) // 2), width))


class Stars(ScoreData):
    shape = (2,)
    condition = Spectrum(16)

    def load(self):
        x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
        y = x[:, :1] + x[:, 1:] * torch.linspace(-1, 1, 16)
        return Splits(Examples(x[:250], y[:250]), Examples(x[250:], y[250:]))

    def transform(self, train):
        return lambda x: x

    def to_reference(self, x):
        return x

    def to_condition(self, values):
        return values / 10

    def from_condition(self, y):
        return 10 * y
"""


@pytest.mark.slow
def test_a_users_condition_goes_through_fit_checkpoints_and_predict(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_stars.py").write_text(CLASSES)
    network = ["--model.network=MLP", "--model.network.width=16", "--model.network.depth=1"]
    model = [*network, "--model.conditional=true", "--model.label_dropout=0.2", "--model.sampler.grid.steps=3"]
    quick = ["--trainer.max_steps=4", "--trainer.val_check_interval=4", "--samples.num_samples=4", "--trainer.logger=false"]
    fit = ["fit", "--config=vp_pc", "--name=stars", "--data=my_stars.Stars", "--evaluate.features=null", *model, *quick]
    assert run(fit) == 0
    checkpoint = str(next(tmp_path.glob("runs/stars/2*/last.ckpt")))
    made = ScoreModel.load_from_checkpoint(checkpoint, trust="my_stars")
    kind = made.conditions.kind
    assert kind.settings == {"class_path": "my_stars.Spectrum", "init_args": {"size": 16}}
    with pytest.raises(InputError, match="trust"):
        ScoreModel.load_from_checkpoint(checkpoint)
    spectra = 10 * torch.randn(2, 16)
    np.savez("spectra.npz", condition=spectra.numpy())
    np.save("short.npy", np.zeros((2, 5)))
    predict = ["predict", f"--ckpt_path={checkpoint}", "--trust=my_stars", "--num_samples=5"]
    guided = ["--model.guidance=ClassifierFree", "--model.guidance.scale=1.5"]
    assert run([*predict, "--output=given", "--condition=spectra.npz", *guided]) == 0
    with np.load("given/samples.npz") as written:
        np.testing.assert_allclose(written["condition"], spectra[[0, 1, 0, 1, 0]], rtol=1e-5)
        weights = torch.load(checkpoint, weights_only=True)["state_dict"]
        made.load_state_dict(weights)
        made.use(made.sampler, ClassifierFree(1.5))
        np.testing.assert_allclose(written["x"], made.sample(5, cond=spectra / 10), rtol=1e-4, atol=1e-4)
    assert run([*predict, "--output=held_out"]) == 0
    with np.load("held_out/samples.npz") as written:
        import my_stars

        np.testing.assert_allclose(written["condition"], 10 * my_stars.Stars().splits.held_out.y[:5], rtol=1e-5)
    capsys.readouterr()
    for wrong, message in (
        (["--condition=short.npy"], "has shape [2, 5]; must be [16] for one condition, or [n, 16] for n"),
        (["--condition=missing.npz"], "no such file"),
        (["--condition=[1, two]"], "must be numbers"),
        (["--labels=[1]"], "takes no class labels; give --condition"),
        (["--labels=[1]", "--condition=[1]"], "give one of them"),
    ):
        assert run([*predict, "--output=refused", *wrong]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
