"""Evaluations: their metrics, references and records, and that interruptions and processes change nothing."""

import csv
import json
from functools import partial
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from tiny import TINY
from torch import nn

from lightning_score import ScoreModel
from lightning_score.callbacks import sampling_pass
from lightning_score.cli import run
from lightning_score.data import Digits
from lightning_score.metrics import (
    DigitFeatures,
    ModuleFeatures,
    RawFeatures,
    fit,
    frechet_distance,
    real_floor,
    reference as reference_module,
)
from lightning_score.metrics.reference import reference_statistics
from lightning_score.metrics.totals import KeptSamples
from lightning_score.networks import MLP
from lightning_score.process import VP, BetaTable, SigmaTable
from lightning_score.runs.records import FILE, Record, append_record, by_axis, metric_name, read_records
from lightning_score.score.parametrization import Denoised

OF_DRAWING = ("sampling_seconds", "memory_gb", "gpu_memory_gb")
"""Metrics of the machine, which differ from run to run."""


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    """An empty working directory with the config of a model that trains in a moment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)


def measure(checkpoint, name, *options):
    """The metrics and the records of `test`."""
    assert run(["test", f"--ckpt_path={checkpoint}", f"--output={name}", "--evaluate.num_samples=100", *options]) == 0
    (row,) = csv.DictReader(Path(name, "metrics.csv").read_text().splitlines())
    numbers = {key.removeprefix("test/"): float(value) for key, value in row.items() if value and key != "time"}
    return numbers, read_records(Path(name, FILE))


class ToFloat(nn.Module):
    def forward(self, x):
        return x.float()


def four_features(pooling=nn.AvgPool2d):
    """The mean, or another statistic, of each quarter of a digit: quick to compare."""
    return ModuleFeatures(nn.Sequential(ToFloat(), pooling(4)), 4)


class TestRecords:
    def record(self, **changes):
        values = {
            "metric": "fid_digits_100",
            "value": 3.0,
            "error": 0.1,
            "floor": 1.0,
            "floor_n": 100,
            "n": 100,
            "features": "digits",
            "features_hash": "a",
            "resize": "none",
            "data": "Digits",
            "split": "train and held out",
            "shape": [1, 8, 8],
            "data_hash": "b",
            "weights": "ema",
            "step": 5,
            "denoised": True,
            "sampler": {},
            "nfe": 9.0,
            "seed": 0,
            "seconds": 1.0,
        }
        return Record(**{**values, **changes})

    def test_records_are_read_back_without_broken_lines(self, tmp_path):
        for value in (3.0, float("nan")):
            append_record(tmp_path / FILE, self.record(value=value))
        with (tmp_path / FILE).open("a") as file:
            file.write('{"metric": "half')
        with pytest.warns(UserWarning, match="line 3: not a record"):
            first, second = read_records(tmp_path / FILE)
        assert first == self.record(time=first.time) and second.value is None
        assert first.versions["torch"] == torch.__version__

    @pytest.mark.parametrize(
        "change",
        [{"n": 50}, {"features_hash": "c"}, {"data_hash": "c"}, {"resize": "299"}, {"metric": "kid_digits_100"}],
        ids=str,
    )
    def test_other_provenance_has_an_axis_of_its_own(self, change):
        groups = by_axis([self.record(), self.record(step=9, weights="raw", sampler={"steps": 3}), self.record(**change)])
        assert [len(group) for group in groups.values()] == [2, 1]

    def test_a_name_mentions_the_number_of_samples(self):
        names = [metric_name("fid", "digits", n) for n in (898, 1000, 10_000, 50_000)]
        assert names == ["fid_digits_898", "fid_digits_1k", "fid_digits_10k", "fid_digits"]


class TestReference:
    @pytest.fixture
    def counted(self, monkeypatch, cache):
        """How often the reference was computed."""
        calls = []
        compute = reference_module.compute
        monkeypatch.setattr(reference_module, "compute", lambda *a, **k: calls.append(1) or compute(*a, **k))
        return calls

    def get(self, n=100, data_hash="d", features=None):
        return reference_statistics(data_hash, Digits().reference, features or four_features(), n)

    def test_statistics_and_floor(self):
        found, features = self.get(features=DigitFeatures()), DigitFeatures()(Digits().reference()).features
        assert frechet_distance(found.statistics, fit(features)) < 1e-6 and found.statistics.n == 1797
        order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(found.kept, features[order], rtol=1e-4, atol=1e-5)
        for n in (100, 5000):
            found = self.get(n=n, features=DigitFeatures())
            assert found.floor_n == n and found.floor == pytest.approx(real_floor(features, n), rel=0.1)

    @pytest.mark.parametrize("n", [100, 800])
    def test_a_floor_where_not_all_features_are_kept(self, n, monkeypatch, cache):
        monkeypatch.setattr(reference_module, "KEPT", 300)
        found = self.get(n=n, features=DigitFeatures())
        features = DigitFeatures()(Digits().reference()).features
        assert len(found.kept) == 300 and found.floor_n == n
        assert found.floor == pytest.approx(real_floor(features, n), rel=0.15)

    def test_a_known_one_is_read_while_another_process_computes(self, counted, cache):
        self.get()
        (path,) = cache.rglob("*.safetensors")
        with FileLock(f"{path}.lock"):
            thread = Thread(target=self.get, daemon=True)
            thread.start()
            thread.join(30)
        assert not thread.is_alive() and len(counted) == 1

    def test_it_is_computed_once_per_dependency(self, counted):
        for _ in range(2):
            self.get()
        assert len(counted) == 1
        self.get(n=50)
        self.get(data_hash="other")
        self.get(features=RawFeatures([1, 8, 8]))
        assert len(counted) == 4
        assert Digits().fingerprint == Digits(data_range=(-1, 1)).fingerprint

    def test_other_code_with_the_same_weights_has_another_reference(self, counted):
        """The fingerprint covers name and weights, but a user's code may have changed."""
        for pooling in (nn.AvgPool2d, nn.MaxPool2d):
            features = four_features(pooling)
            for _ in range(2):
                found = self.get(features=features)
            assert frechet_distance(found.statistics, fit(features(Digits().reference()).features)) < 1e-6
        assert len(counted) == 2

    def test_concurrent_threads_compute_once(self, counted):
        threads = [Thread(target=self.get) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(counted) == 1

    def test_a_corrupt_file_is_replaced_with_a_warning(self, counted, cache):
        first = self.get()
        (file,) = cache.rglob("*.safetensors")
        file.write_bytes(file.read_bytes()[:100])
        with pytest.warns(UserWarning, match="not readable"):
            again = self.get()
        assert again.floor == first.floor and len(counted) == 2
        self.get()
        assert len(counted) == 2


class TestTest:
    def test_every_metric_with_its_provenance(self, checkpoint, capsys):
        found, records = measure(checkpoint, "out", "--evaluate.fid_infinity=true")
        kinds = ["fid", "fid_infinity", "is", "kid", "precision", "recall", "density", "coverage"]
        assert {metric_name(kind, "digits", 100) for kind in kinds} <= set(found)
        assert {"fid_digits_100_error", "fid_digits_100_floor", "copied", "copied_held_out", "nfe"} <= set(found)
        assert [r.metric for r in records] == [metric_name(kind, "digits", 100) for kind in kinds]
        for record in records:
            assert record.value == pytest.approx(found[record.metric], rel=1e-5)
            assert (record.step, record.weights, record.n, record.seed, record.denoised) == (30, "ema", 100, 1, True)
            assert record.features_hash == DigitFeatures().fingerprint and record.data_hash == Digits().fingerprint
            assert (
                record.sampler["class"] == "AnnealedLangevin" and record.sampler["steps"] == 2 and record.nfe == found["nfe"]
            )
        assert "two standard errors" in capsys.readouterr().out
        assert list(Path("out/neighbors").glob("*.png"))
        json.loads(Path("out", FILE).read_text().splitlines()[0])

    @pytest.mark.slow
    def test_bits_per_dimension_of_the_held_out_images(self, checkpoint):
        callback = ["--trainer.callbacks+=BitsPerDim", "--trainer.callbacks.num_examples=3", "--trainer.callbacks.draws=1"]
        found, records = measure(checkpoint, "out", "--evaluate.features=null", *callback)
        (record,) = records
        assert (record.metric, record.n, record.split, record.step) == ("bits_per_dim", 3, "held out", 30)
        assert record.value == pytest.approx(found["bits_per_dim"], rel=1e-5) and record.nfe > 10

    @pytest.mark.slow
    def test_raw_weights_and_samples_before_the_final_denoising(self, checkpoint):
        found, records = measure(checkpoint, "out", "--evaluate.before_denoising=true", "--evaluate.raw_weights=true")
        names = ["fid_digits_100" + end for end in ("", "_noisy", "_raw_weights", "_noisy_raw_weights")]
        assert len({round(found[name], 6) for name in names}) == 4
        kinds = {(r.weights, r.denoised) for r in records}
        assert kinds == {("ema", True), ("ema", False), ("raw", True), ("raw", False)}
        plain, _ = measure(checkpoint, "plain")
        assert plain["fid_digits_100"] == pytest.approx(found["fid_digits_100"], rel=1e-6)

    @pytest.mark.slow
    def test_several_seeds_have_a_mean_and_an_error(self, checkpoint):
        found, records = measure(checkpoint, "out", "--evaluate.repeats=3")
        values = [r.value for r in records if r.metric == "fid_digits_100"]
        assert [r.seed for r in records if r.metric == "fid_digits_100"] == [1, 2, 3]
        assert found["fid_digits_100"] == pytest.approx(np.mean(values), rel=1e-5)
        errors = [r.error for r in records if r.metric == "fid_digits_100"]
        assert found["fid_digits_100_error"] == pytest.approx(np.linalg.norm(errors) / 3, rel=1e-4)
        spread = np.std([r.value for r in records if r.metric == "recall_digits_100"], ddof=1)
        assert found["recall_digits_100_error"] == pytest.approx(4.303 / 2 * spread / 3**0.5, rel=1e-3)
        kid = [r.error for r in records if r.metric == "kid_digits_100"]
        assert found["kid_digits_100_error"] == pytest.approx(np.linalg.norm(kid) / 3**0.5, rel=1e-4)

    @pytest.mark.slow
    def test_statistics_of_a_file(self, checkpoint):
        features = DigitFeatures()(Digits().reference()).features.double().numpy()
        np.savez("digits.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
        of_file, records = measure(checkpoint, "file", "--evaluate.reference=digits.npz")
        of_data, _ = measure(checkpoint, "data")
        assert of_file["fid_digits_100"] == pytest.approx(of_data["fid_digits_100"], rel=1e-5)
        assert (Path(records[0].data).name, records[0].split, records[0].floor) == ("digits.npz", "file", None)
        assert "fid_digits_100_floor" not in of_file

    def test_statistics_of_other_features_are_refused_before_sampling(self, checkpoint, monkeypatch, capsys):
        np.savez("other.npz", mu=np.zeros(3), sigma=np.eye(3))
        monkeypatch.setattr(ScoreModel, "draw", lambda *_, **__: pytest.fail("drawn"))
        assert run(["test", f"--ckpt_path={checkpoint}", "--evaluate.reference=other.npz"]) == 2
        assert "other.npz: has 3 features, but digits has 64" in capsys.readouterr().err

    @pytest.mark.faults("evaluations interrupted")
    @pytest.mark.slow
    def test_an_interrupted_evaluation_resumes(self, checkpoint, monkeypatch, capsys, tmp_path):
        monkeypatch.setattr(sampling_pass, "SAVE_EVERY", 0.0)
        monkeypatch.setattr(sampling_pass, "cache_folder", lambda: tmp_path)
        options = ["--evaluate.batch_size=10"]
        whole, _ = measure(checkpoint, "whole", *options)
        draw, drawn = ScoreModel.draw, []

        def interrupted(self, numbers, *arguments, **options):
            drawn.append(list(numbers))
            if len(drawn) == 5:
                raise KeyboardInterrupt
            return draw(self, numbers, *arguments, **options)

        monkeypatch.setattr(ScoreModel, "draw", interrupted)
        with pytest.raises(BaseException):  # noqa: B017
            measure(checkpoint, "broken", *options)
        found, _ = measure(checkpoint, "mended", *options)
        assert drawn[5] == list(range(40, 50)), "finished batches are not drawn again"
        assert "resumes after 40 samples" in capsys.readouterr().out
        for name, value in whole.items():
            assert found[name] == pytest.approx(value, rel=1e-9) or name in OF_DRAWING, name
        assert not list(tmp_path.glob("evaluations/*"))

    def test_an_interrupted_pass_is_of_one_model_and_precision(self):
        """Everything that changes the samples changes the file name, also what is not in the weights."""
        network = partial(MLP, width=8, depth=1)

        def path(process=None, parametrization=None, precision="32-true", mask=0.0):
            torch.manual_seed(0)
            data = Digits()
            model = ScoreModel(network, (2,), process or VP(), parametrization=parametrization)
            model.sampler.mask = torch.full((3,), mask)
            trainer, like = SimpleNamespace(global_rank=0, world_size=1), data.splits.held_out.x
            found = sampling_pass.SamplingResult(1, 100, {}, KeptSamples(0, like))
            source = sampling_pass.FromModel(model, data, precision=precision)
            return sampling_pass.SamplingPass(trainer, source, list, like, 10, model.device, [])._path(found)

        others = [path(VP(0.1, 10.0)), path(parametrization=Denoised()), path(precision="bf16-true"), path(mask=1.0)]
        others += [path(BetaTable(steps=steps)) for steps in (1000, 999)] + [path(SigmaTable(0.01, s, 9)) for s in (1, 2)]
        assert path() == path() and len({path(), *others}) == len(others) + 1

    @pytest.mark.slow
    def test_features_are_computed_while_the_next_samples_are_drawn(self, checkpoint, monkeypatch):
        """As on a GPU, with the same results."""
        alone, _ = measure(checkpoint, "alone", "--evaluate.batch_size=30")
        monkeypatch.setattr(sampling_pass.SamplingPass, "overlapping", True)
        both, _ = measure(checkpoint, "both", "--evaluate.batch_size=30")
        assert all(both[name] == pytest.approx(alone[name], rel=1e-9) for name in alone if name not in OF_DRAWING)

    def test_diverged_samples_are_an_error(self, checkpoint, capsys):
        state = torch.load(checkpoint, weights_only=True)
        for tensor in state["state_dict"].values():
            tensor.fill_(float("nan"))
        torch.save(state, "diverged.ckpt")
        assert run(["test", "--ckpt_path=diverged.ckpt", "--output=out"]) == 2
        assert "samples diverged (number 0, 1, 2, 3, 4, ...): |x| is nan after move 1" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--evaluate.num_samples=1"], "num_samples=1"),
            (["--evaluate.repeats=0"], "repeats=0"),
            (["--evaluate.num_samples=19", "--evaluate.fid_infinity=true"], "num_samples=19: must be at least 20"),
            (["--evaluate.max_share=0"], "max_share=0"),
            (["--evaluate.reference=absent.npz"], "absent.npz: must be a file of statistics that exists"),
        ],
        ids=str,
    )
    def test_refuses(self, options, message, checkpoint, capsys):
        assert run(["test", f"--ckpt_path={checkpoint}", *options]) == 2
        assert message in capsys.readouterr().err


class TestFit:
    def test_every_validation_is_recorded(self, checkpoint):
        records = read_records(checkpoint.parent / FILE)
        assert [(r.metric, r.step) for r in records] == [("fid_digits_40", 20), ("fid_digits_40", 30)]

    def test_every_n_validations_concerns_fit_alone(self, checkpoint):
        seldom = ["--evaluate.every_n_validations=9", "--evaluate.num_samples=10", "--samples.num_samples=1"]
        assert run(["validate", f"--ckpt_path={checkpoint}", "--output=out", *seldom]) == 0
        assert [record.metric for record in read_records(Path("out", FILE))] == ["fid_digits_10"]

    def test_all_metrics_on_request(self):
        assert run(["fit", "--config=tiny.yaml", "--evaluate.all_metrics=true", "--output=out"]) == 0
        found = {record.metric for record in read_records(Path("out", FILE))}
        assert {f"{kind}_digits_20" for kind in ("fid", "kid", "is", "precision", "coverage")} <= found

    def test_measurements_stay_within_their_share_of_the_time(self, capsys):
        options = ["--trainer.max_steps=6", "--trainer.val_check_interval=2", "--evaluate.max_share=1.0e-6"]
        with pytest.warns(UserWarning, match="num_samples=20 is not above the 64 features"):
            assert run(["fit", "--config=tiny.yaml", "--output=out", *options]) == 0
        records = read_records(Path("out", FILE))
        assert [r.step for r in records] == [2], "the first is measured, to know its time"
        assert "step 4: fid_digits_20 is skipped" in capsys.readouterr().out
