"""Loaded data are compared with their declaration, once, on every route, before anything is computed."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from subclasses import concrete
from tiny import TINY
from torch.utils.data import DataLoader, TensorDataset

from lightning_score import ScoreModel
from lightning_score.cli import run
from lightning_score.commands.base import IdleExperiment
from lightning_score.data import Examples, GaussianMixture, ImageData, ScoreData, Splits
from lightning_score.errors import InputError
from lightning_score.memory import require_room
from lightning_score.metrics import RawFeatures
from lightning_score.metrics.features import ModuleFeatures
from lightning_score.networks import MLP
from lightning_score.process import VE

N = 40
BYTES = torch.randint(0, 256, (N, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
LABELS = torch.arange(N) % 3


class Mine(ImageData):
    """Images as a user would write them; each test changes the result of `load` or a declaration."""

    shape, num_classes = (1, 8, 8), 3
    x, y, first = BYTES, LABELS, 30

    def load(self):
        return Splits(
            Examples(self.x[: self.first], self.y[: self.first]), Examples(self.x[self.first :], self.y[self.first :])
        )


class Floats(Mine):
    x = BYTES / 255


class Odd(ScoreData):
    """Floats with a transform."""

    shape, num_classes, data_range = (1, 8, 8), 3, (-1.0, 1.0)
    x, y, first = BYTES / 255, LABELS, 30
    load = Mine.load

    def transform(self, train):
        return lambda x: 2 * x - 1

    def to_reference(self, x):
        return (x + 1) / 2


class OddBatch(Odd):
    levels = 256

    def transform(self, train):
        return lambda x: x[:, 0].double()


def made(base=Mine, **changes):
    return type("Mine", (base,), changes)(batch_size=10)


WRONG = [
    ({"x": BYTES / 255}, r"Mine\.load: train\.x is torch\.float32 from 0 to 1, must be torch\.uint8 .*255 \* x"),
    ({"x": 255.0 * (BYTES / 255)}, "train.x is torch.float32 from 0 to 255"),
    ({"x": BYTES.to(torch.int16) * 16}, "is torch.int16 from 0 to 4080"),
    ({"x": BYTES.to(torch.uint16)}, "is torch.uint16"),
    ({"x": BYTES.double()}, "is torch.float64"),
    ({"x": BYTES.long()}, "is torch.int64"),
    ({"x": BYTES.numpy()}, r"train\.x is a numpy\.ndarray, must be a torch\.Tensor: return torch\.as_tensor\(x\)"),
    ({"x": BYTES.tolist()}, "train.x is a list"),
    ({"y": LABELS.numpy()}, "train.y is a numpy.ndarray"),
    ({"y": None, "load": lambda self: Splits(Examples(BYTES, None), Examples(BYTES, None))}, "train.y is a NoneType"),
    ({"load": lambda self: BYTES}, r"gives torch\.Tensor, must give Splits"),
    ({"load": lambda self: (BYTES, BYTES)}, "must give Splits"),
    ({"load": lambda self: None}, "gives NoneType"),
    ({"x": BYTES[:, 0]}, r"shape \(8, 8\), but shape = \(1, 8, 8\).*no channel axis; return x\.unsqueeze\(1\)"),
    ({"x": BYTES.permute(0, 2, 3, 1)}, r"channels come last; return x\.permute"),
    ({"shape": (1, 28, 28)}, r"shape \(1, 8, 8\), but shape = \(1, 28, 28\) is declared: declare shape = \(1, 8, 8\)"),
    ({"shape": (3, 8, 8)}, r"but shape = \(3, 8, 8\)"),
    ({"shape": 8}, "shape=8: must be the sizes"),
    ({"shape": (1, 8.0, 8)}, r"shape=\(1, 8\.0, 8\)"),
    ({"num_classes": -1}, "num_classes=-1"),
    ({"num_classes": 2}, "labels from 0 to 2, but num_classes = 2 is declared, which are 0 to 1: declare num_classes = 3"),
    ({"num_classes": 0}, "num_classes = 0 is declared, which are zeros"),
    ({"y": LABELS - 1}, "labels from -1 to 1.*number the classes from 0"),
    ({"y": LABELS.float()}, r"train\.y is torch\.float32.*y\.long\(\)"),
    ({"y": LABELS.int()}, "train.y is torch.int32"),
    ({"y": LABELS[:, None]}, r"train\.y is torch\.int64 of shape \(30, 1\)"),
    ({"y": torch.nn.functional.one_hot(LABELS)}, "one-hot"),
    ({"y": LABELS[:35]}, "held_out has 5 labels for 10 examples"),
    ({"first": 0}, r"Mine\.load: train is empty"),
    ({"first": N}, r"Mine\.load: held_out is empty"),
    ({"levels": 16}, r"9\d% of the bytes are none of the 16 levels that are declared.*declare levels = 256"),
    ({"levels": 65536}, r"levels=65536: must be .* \(bytes have at most 256\)"),
    ({"x": BYTES.to("meta")}, "train.x is torch.uint8, torch.strided, on meta, must be a plain tensor"),
    ({"y": LABELS.to("meta")}, "train.y is torch.int64, torch.strided, on meta"),
    ({"load": lambda self: ((BYTES.to_sparse(), LABELS),) * 2}, "torch.sparse_coo"),
    ({"transform": lambda self, train: None}, r"transform\(train=True\) gives a NoneType"),
    ({"levels": 17, "x": BYTES // 16}, "values up to 15 only, but 17 levels spread over 0..255"),
    ({"x": (BYTES > 128).to(torch.uint8)}, "values up to 1 only"),
    ({"transform": lambda self, train: lambda x: x.double()}, "gives torch.float64, must give torch.float32"),
    ({"transform": lambda self, train: lambda x: x.float()}, r"values from 0 to 255, but data_range = \(0\.0, 1\.0\)"),
    ({"transform": lambda self, train: lambda x: x.float()[..., :4]}, r"transform\(train=True\) gives the shape"),
    ({"transform": lambda self, train: lambda x: x.numpy()}, "gives a numpy.ndarray"),
    ({"transform": lambda self, train: lambda x: x.sub_(x).float()}, "in place"),
    ({"to_reference": lambda self, x: x}, r"to_reference gives torch\.float32.*stored as torch\.uint8"),
    ({"to_reference": lambda self, x: (x / 255).round().byte()}, "does not undo transform"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_data_that_differ_from_the_declaration_are_refused_in_one_line(changes, message):
    data = made(**changes)
    with pytest.raises(InputError, match=message) as found:
        data.train_dataloader()
    assert "Mine" in str(found.value) and "\n" not in str(found.value)
    with pytest.raises(InputError):
        data.val_dataloader()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": (BYTES / 255).double()}, "gives torch.float64, must give torch.float32"),
        ({"x": torch.where(torch.arange(N)[:, None, None, None] == 35, torch.nan, BYTES / 255)}, r"held_out\.x holds NaN"),
        ({"x": torch.where(torch.arange(N)[:, None, None, None] == 3, torch.inf, BYTES / 255)}, r"train\.x holds NaN"),
        ({"x": torch.where(torch.arange(N)[:, None, None, None] == 29, 9.0, BYTES / 255)}, "values from -1 to 17"),
        ({"data_range": (1.0, -1.0)}, "data_range"),
        ({"data_range": None, "levels": 256}, "levels=256"),
        ({"data_range": 5}, "data_range=5: must be two increasing numbers"),
        ({"data_range": {0.0, 1.0}}, "must be two increasing numbers"),
        ({"levels": 16}, r"values between the levels = 16 that are declared.*dequantize = True"),
        ({"x": (BYTES / 255).requires_grad_()}, "with gradients, must be a plain tensor"),
        ({"transform": lambda self, train: lambda x: x / (x.sum() - x.sum())}, "gives NaN or infinity"),
        ({"to_reference": lambda self, x: x}, "does not undo transform"),
    ],
)
def test_floats_are_refused_where_they_are_wrong(changes, message):
    with pytest.raises(InputError, match=message):
        made(Odd, **changes).train_dataloader()


def test_correct_data_pass_and_no_random_number_is_drawn():
    state = torch.get_rng_state()
    for data in (
        made(),
        made(Odd, levels=256),
        made(Odd, x=(BYTES / 255).half(), transform=lambda s, t: lambda x: 2 * x.float() - 1),
    ):
        assert len(data.splits.train.x) == 30 and torch.equal(torch.get_rng_state(), state)
    plain = made(load=lambda self: ((BYTES[:30], LABELS[:30]), (BYTES[30:], LABELS[30:])))
    assert isinstance(plain.splits.held_out, Examples)


def test_suspicious_data_give_a_warning():
    with pytest.warns(UserWarning, match="values up to 31 only, of 255"):
        made(x=BYTES // 8).splits  # noqa: B018
    with pytest.warns(UserWarning, match=r"values from 0 to 1, but data_range = \(-1\.0, 1\.0\) is declared"):
        made(Odd, transform=lambda s, t: lambda x: x, to_reference=lambda s, x: x).splits  # noqa: B018
    with pytest.warns(UserWarning, match="no training example has the label 3, 4 of num_classes = 5"):
        made(num_classes=5).splits  # noqa: B018


OPTIONS = ["--evaluate.features=null", "--samples.num_samples=0", "--trainer.callbacks=null", "--data.batch_size=8"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--config=ncsn", "--data=test_data_check.Floats", *OPTIONS], "Floats.load: train.x is torch.float32"),
        (["fit", "--config=ncsn", "--data=test_data_check.OddBatch", *OPTIONS], "OddBatch.transform(train=True) gives"),
        (["schedule", "--data=test_data_check.Floats"], "Floats.load"),
        (
            ["fit", "--config=ncsn", "--evaluate.features=RawFeatures"],
            "RawFeatures got torch.uint8 examples of shape (1, 8, 8)",
        ),
        (["fit", "--config=ncsn", "--evaluate.features=InceptionFeatures", "--evaluate.features.weights=x"], "from"),
        (["fit", "--config=ncsn", "--evaluate.reference=stats.npz"], "has 7 features, but digits has 64"),
        (["fit", "--config=ncsn", "--evaluate.num_samples=1000000000000"], "too large"),
        (
            ["fit", "--config=ncsn", "--evaluate.num_samples=1000000000", "--model.sampler.steps=9000"],
            "which would take months",
        ),
        (["fit", "--config=ncsn", "--samples.num_samples=1000000000"], "GB of memory"),
        (["fit", "--config=ncsn", "--model.process.levels=900000"], "levels x steps"),
        (["fit", "--config=toy", "--data.num_samples=1000000000"], "GB of memory"),
        (["fit", "--config=ncsn", "--data.batch_size=2000000000"], "too large"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_no_route_computes_or_writes_anything(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("stats.npz", mu=np.zeros(7), sigma=np.eye(7))
    before = sorted(tmp_path.rglob("*"))
    assert run(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("data: Digits -> ")]
    assert len(lines) == 1 and message in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_config_file_is_checked_too(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"data": {"class_path": "test_data_check.Floats"}}))
    with pytest.raises(InputError, match=r"Floats\.load"):
        IdleExperiment(["--config=configs/ncsn.yaml", f"--config={file}"]).datamodule.splits  # noqa: B018


class TestLoadersOfOthers:
    """Passed to a trainer in Python instead of a data module."""

    def fit(self, *tensors, shape=(2,), **settings):
        model = ScoreModel(lambda s, c: MLP(s, c, width=8, depth=1), shape, VE(), **settings)
        loader = DataLoader(TensorDataset(*tensors), batch_size=4)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        Trainer(max_steps=1, enable_model_summary=False, **quiet).fit(model, loader)

    @pytest.mark.parametrize(
        ("tensors", "settings", "message"),
        [
            ((torch.rand(8, 3), torch.zeros(8).long()), {}, r"shape \(3,\).*must be floats of shape \(2,\)"),
            ((torch.ones(8, 2).byte(), torch.zeros(8).long()), {}, "torch.uint8"),
            ((torch.rand(8, 2),), {}, "must be a pair"),
            ((torch.rand(8, 2), torch.ones(8)), {"num_classes": 2, "conditional": True}, "labels of torch.float32"),
            ((torch.rand(8, 2), torch.ones(8).long()), {"num_classes": 1, "conditional": True}, r"labels \[1\]: .* 0 to 0$"),
        ],
    )
    def test_batches_that_do_not_fit_are_refused(self, tensors, settings, message):
        with pytest.raises(InputError, match=message):
            self.fit(*tensors, **settings)

    def test_others_train(self):
        self.fit(torch.rand(8, 2), torch.zeros(8).long())


def test_features_refuse_examples_that_they_cannot_read():
    images = BYTES[:2]
    with pytest.raises(InputError, match=r"ModuleFeatures: cannot be computed from examples of torch.uint8.*mat1"):
        ModuleFeatures(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3)), 3).check(images)
    with pytest.raises(InputError, match="num_features=4"):
        ModuleFeatures(torch.nn.Flatten(), 4).check(images)
    with pytest.raises(InputError, match="GB of memory"):
        RawFeatures((3, 512, 512)).check(torch.zeros(2, 3, 512, 512))
    RawFeatures((1, 8, 8)).check(images)


def test_a_test_that_measures_nothing_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fast = ["--trainer.max_steps=1", "--trainer.val_check_interval=1", *OPTIONS]
    assert run(["fit", "--config=toy", *fast]) == 0
    for (command, part), limit in product((("test", "test"), ("validate", "val")), ("0", "0.0")):
        checkpoint = "--ckpt_path=runs/toy/latest/last.ckpt"
        assert run([command, checkpoint, f"--trainer.limit_{part}_batches={limit}"]) == 2
        assert f"--trainer.limit_{part}_batches {limit}: must be above 0" in capsys.readouterr().err
        assert not list(tmp_path.glob(f"runs/toy/*/{command}"))


def test_room():
    with pytest.raises(InputError, match=r"a thing: takes at least 1e\+06 GB of memory, and .* are free; shrink it"):
        require_room(1e15, "a thing", "shrink it")
    require_room(1000, "a thing")


def test_the_shipped_data_pass():
    for kind in concrete(ScoreData):
        if kind.__module__ in ("lightning_score.data.images", "lightning_score.data.toy"):
            assert len(kind().splits.held_out.y) > 0
    assert len(GaussianMixture(num_samples=100).splits.train.x) == 80


@pytest.mark.slow
def test_long_sampling_is_announced_before_the_start(tmp_path, monkeypatch, capsys):
    """With the number of samples and evaluations; the time is this machine's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_score.callbacks.sampling_cost.LONG", 0.0)
    Path("tiny.yaml").write_text(TINY)
    fast = ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--samples.num_samples=4", "--name=run"]
    assert run(["fit", "--config=tiny.yaml", *fast]) == 0
    checkpoint = "--ckpt_path=runs/run/latest/last.ckpt"
    assert run(["test", checkpoint, "--evaluate.repeats=2"]) == 0
    assert run(["validate", checkpoint]) == 0
    assert run(["predict", checkpoint, "--num_samples=5"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "about" in line]
    expected = [("each validation", 24), ("the test", 40), ("the validation", 24), ("the prediction", 5)]
    assert len(lines) == 4
    for line, (what, n) in zip(lines, expected, strict=True):
        assert line.startswith(f"{what} draws {n} samples at 6 network evaluations each: about ")
