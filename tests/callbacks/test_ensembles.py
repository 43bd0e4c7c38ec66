"""The measurement of conditional models: of samples with a known law, on any number of processes, records and pictures."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from lightning_score import VP, Network, ScoreModel
from lightning_score.callbacks import Ensembles
from lightning_score.cli import run
from lightning_score.conditions import Condition, Vector
from lightning_score.data import Digits, Examples, GaussianMixture, ScoreData, Splits
from lightning_score.errors import InputError
from lightning_score.observations import BlockMean, LinearOperator
from lightning_score.runs.records import FILE, read_records
from lightning_score.sampling import NoiseStream, Samples
from lightning_score.sweep.logged import OF_CALLBACKS


class Linear(ScoreData):
    """x = y 1 + e 0.5, y ~ N(0, 1): stored in other units than the model's, 3 x + 10."""

    def __init__(self, shape=(4,), given: LinearOperator | None = None):
        super().__init__(batch_size=100, given=given)
        self.shape = shape

    @property
    def condition(self) -> Condition | None:
        return Vector(1) if self.given is None else super().condition

    def load(self):
        generator = torch.Generator().manual_seed(0)
        y = torch.randn(2000, 1, generator=generator)
        x = y.view(-1, *[1] * len(self.shape)) + 0.5 * torch.randn(2000, *self.shape, generator=generator)
        y = torch.zeros(2000, dtype=torch.long) if self.given else y
        return Splits(*(Examples(3 * x[rows] + 10, y[rows]) for rows in (slice(1000), slice(1000, 2000))))

    def transform(self, train):
        return lambda x: (x - 10) / 3

    def to_reference(self, x):
        return 3 * x + 10


class Unused(Network):
    def forward(self, x, noise_label, cond=None):
        return x


def model_of(data, draw):
    """A conditional model of the data whose samples, given numbers and conditions, `draw` makes from normal noise."""
    model = ScoreModel(Unused, data.shape, VP(), condition=data.condition, conditional=True)

    def exact(numbers, seed, cond):
        noise = NoiseStream(seed, list(numbers), data.shape, torch.device("cpu"), torch.float32).normal()
        return Samples(draw(cond, noise), draw(cond, noise), 1, None)

    model.draw = exact
    return model


def measured(data, model, folder, **settings):
    callback = Ensembles(**settings)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=folder, callbacks=[callback], accelerator="cpu", limit_test_batches=1, **quiet)
    (logged,) = trainer.test(model, data, verbose=False)
    return callback, logged


def test_exact_samples_score_as_their_law(tmp_path):
    """In the units of the data the CRPS is 3 0.5/pi^(1/2), and that of the climatology 3 1.25^(1/2)/pi^(1/2)."""
    data = Linear()
    model = model_of(data, lambda y, noise: y + 0.5 * noise)
    callback, logged = measured(data, model, tmp_path, conditions=400, members=8)
    expected = {"crps": 1.5 / math.pi**0.5, "crps_skill": 1 - 0.5 / 1.25**0.5, "spread_skill": 1.0}
    for name, value in expected.items():
        assert abs(logged[f"test/{name}"] - value) < 3 * logged[f"test/{name}_error"] < 0.1, name
    assert callback.last.histogram().deviation < callback.last.histogram().limit
    records = {record.metric: record for record in read_records(tmp_path / FILE)}
    assert set(records) == {"crps", "crps_skill", "spread_skill", "rank_deviation"}
    assert {each.n for each in records.values()} == {3200}
    assert records["crps"].value == pytest.approx(logged["test/crps"]) and len(records["crps"].jackknife) == 10
    assert records["rank_deviation"].floor == pytest.approx(logged["test/rank_deviation_floor"])
    assert logged.keys() - {"test/loss"} <= set(OF_CALLBACKS[Ensembles])
    for name in ("ranks", "ensembles"):
        assert Image.open(next((tmp_path / name).glob("*.png"))).info["Kind"] == "drawing"


SLOW = pytest.mark.slow


@pytest.mark.parametrize("shape", [pytest.param((1, 8), marks=SLOW), (1, 4, 4), pytest.param((1, 4, 2, 4), marks=SLOW)])
def test_residual_of_observations_in_any_dimension(shape, tmp_path):
    """Samples whose block means are off by N(0, 0.1^2) have the residual 0.1/1.25^(1/2)."""
    data, operator = Linear(shape, BlockMean(2)), BlockMean(2)

    def draw(y, noise):
        x = noise - operator.lift(operator.apply(noise), shape)
        return x + operator.lift(y + 0.1 * operator.apply(noise) * operator.averaged**0.5, shape)

    _, logged = measured(data, model_of(data, draw), tmp_path, conditions=100, members=4)
    assert logged["test/residual"] == pytest.approx(0.1 / 1.25**0.5, rel=0.1) and logged["test/residual_error"] < 0.01
    assert logged["test/crps_skill"] > 0


def test_examples_without_a_known_entry_are_left_out():
    data = Linear()
    data.missing = True
    data.splits.held_out.x[:300] = data.splits.train.x[:300] = math.nan
    truths = Ensembles()._truths(data, 100)
    assert 50 < len(truths.x) == len(truths.y) < 90 and bool(truths.truth.isfinite().all())


def test_numbers_do_not_depend_on_processes_and_batches():
    data = Linear()
    model = model_of(data, lambda y, noise: y + 0.5 * noise)

    def sums(rank, processes, batch_size):
        strategy = SimpleNamespace(reduce=lambda values, reduce_op: values, reduce_boolean_decision=lambda *_, **__: False)
        trainer = SimpleNamespace(global_rank=rank, world_size=processes, strategy=strategy, datamodule=data,
                                  is_global_zero=False, progress_bar_callback=None)  # fmt: skip
        callback = Ensembles(batch_size=batch_size)
        scores, shown = callback._scores(trainer, model, callback._truths(data, 7), 5)
        return {**scores.sums, "shown": shown.nan_to_num()}

    alone = sums(0, 1, 1024)
    for parts in ([sums(0, 1, 3)], [sums(rank, 3, 7) for rank in range(3)]):
        for name, value in alone.items():
            assert torch.equal(sum(part[name] for part in parts), value), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ensembles(conditions=1), "conditions=1"),
        (lambda: Ensembles(members=1), "members=1"),
        (lambda: Ensembles(every_n_validations=0), "every_n_validations=0"),
        (lambda: Ensembles().check(GaussianMixture()), "GaussianMixture has no labels"),
        (
            lambda: Ensembles().setup(SimpleNamespace(datamodule=Digits()), SimpleNamespace(takes_condition=False), "test"),
            "the model is unconditional",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.slow
def test_super_resolution_on_the_command_line(tmp_path, capsys):
    """Trained, measured in fit and test, sampled given an observation; another operator than in training is refused."""
    folder, quick = tmp_path / "run", ["--evaluate.features=null", "--samples.num_samples=0"]
    steps = ["--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    fewer = ["--trainer.callbacks.conditions=4", "--trainer.callbacks.members=3"]
    assert run(["fit", "--config=science/superresolution", f"--output={folder}", *steps, *quick, *fewer]) == 0
    records = read_records(folder / FILE)
    assert {each.metric for each in records} == {"crps", "crps_skill", "spread_skill", "rank_deviation", "residual"}
    assert all(each.n == 12 and each.split == "held out, 3 samples each" for each in records)
    checkpoint = f"--ckpt_path={folder}/last.ckpt"
    tested = tmp_path / "tested"
    assert run(["test", checkpoint, f"--output={tested}", *quick, "--trainer.callbacks+=Ensembles", *fewer]) == 0
    found = {each.metric: each.value for each in read_records(tested / FILE)}
    assert found == pytest.approx({each.metric: each.value for each in records})
    np.save(tmp_path / "y.npy", np.full((1, 4, 4), 100.0, np.float32))
    observed = f"--condition={tmp_path}/y.npy"
    assert run(["predict", checkpoint, observed, "--num_samples=2", f"--output={tmp_path}/drawn"]) == 0
    with np.load(tmp_path / "drawn/samples.npz") as file:
        assert file["condition"] == pytest.approx(np.full((2, 1, 4, 4), 100.0), abs=0.1)
    capsys.readouterr()
    assert run(["predict", checkpoint, "--data.given.factor=4", f"--output={tmp_path}/other"]) == 2
    assert "trained with Array(shape=[1, 4, 4])" in capsys.readouterr().err
