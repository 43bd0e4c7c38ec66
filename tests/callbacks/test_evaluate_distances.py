"""Distances without features in runs: chosen by themselves for signals, recorded, drawn, resumed, shared by processes."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_score import ScoreModel
from lightning_score.callbacks import Evaluate, sampling_pass
from lightning_score.callbacks.distances import automatic_distances, curves_figure
from lightning_score.cli import run
from lightning_score.data import Arrays, Digits, GaussianMixture
from lightning_score.metrics import EnergyDistance, Histogram, PowerSpectrum
from lightning_score.metrics.summaries import summaries_of
from lightning_score.report.figures import floors
from lightning_score.report.reading import read_run
from lightning_score.report.values import kind_of, values
from lightning_score.runs.records import FILE, metric_name, read_records
from lightning_score.sweep.logged import logged_metrics

CONFIG = """\
trainer: {max_steps: 2, val_check_interval: 2, check_val_every_n_epoch: null, log_every_n_steps: 1, accelerator: cpu}
data: {class_path: Arrays, init_args: {path: signals.npy, axes: NCL, batch_size: 32, units: mV, names: [one, two]}}
model:
  process: VP
  network: {class_path: UNet, init_args: {channels: 8, multipliers: [1], blocks: 1, attention: [], groups: 4}}
  objective: DenoisingScoreMatching
  sampler: {class_path: PredictorCorrector, init_args: {predictor: DDIM, grid: {class_path: Uniform, init_args: {steps: 2}}}}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1.0e-3}}
samples: {num_samples: 0}
evaluate: {num_samples: 60}
"""
OF_DRAWING = {"test/sampling_seconds", "test/memory_gb", "test/gpu_memory_gb"}
QUICK, SLOW = ["sliced_wasserstein_60", "power_spectrum_60", "histogram_60"], ["energy_distance_60"]


@pytest.fixture(scope="module")
def signals(tmp_path_factory):
    """The folder of a run on signals of two channels with different units, in which nothing is asked for."""
    folder = tmp_path_factory.mktemp("signals")
    noise = np.random.default_rng(0).normal(size=(120, 2, 16)).astype(np.float32)
    np.save(folder / "signals.npy", noise.cumsum(2) * np.array([[1], [1000]], np.float32) + 5)
    (folder / "signals.yaml").write_text(CONFIG.replace("signals.npy", str(folder / "signals.npy")))
    assert run(["fit", f"--config={folder}/signals.yaml", f"--output={folder}/fit"]) == 0
    return folder


def test(folder, output, *options):
    """The metrics and the records of a test."""
    assert run(["test", f"--ckpt_path={folder}/fit/last.ckpt", f"--output={output}", *options]) == 0
    (row,) = csv.DictReader((Path(output) / "metrics.csv").read_text().splitlines())
    return {name: float(value) for name, value in row.items() if name.startswith("test/")}, read_records(Path(output) / FILE)


test.__test__ = False


def test_data_without_features_are_measured_by_themselves(signals, tmp_path):
    in_fit, (found, in_test) = read_records(signals / "fit" / FILE), test(signals, tmp_path / "out")
    assert [record.metric for record in in_fit] == QUICK and {record.metric for record in in_test} == {*QUICK, *SLOW}
    assert (signals / "fit" / "best.ckpt").exists(), "of the first distance"
    known, _ = logged_metrics("test", Evaluate(num_samples=60), [], Arrays(str(signals / "signals.npy"), axes="NCL"))
    assert known == {*found}
    for record in in_test:
        assert record.error > 0 and record.n == record.floor_n == 60 and len(record.jackknife) == 10
        logged = [found[f"test/{record.metric}{end}"] for end in ("", "_error", "_floor")]
        assert logged == pytest.approx([record.value, record.error, record.floor], rel=1e-6) and record.value > record.floor
        assert metric_name(kind_of(record), "", 60) == record.metric
    for folder in (signals / "fit", tmp_path / "out"):
        assert {file.parent.name for file in folder.glob("*/step_0000002.png")} >= {"spectrum", "histogram"}


def test_the_report_shows_each_with_its_floor(signals):
    made = read_run(signals / "fit", signals)
    assert [each["label"] for each in floors([made])] == QUICK
    assert all(each["floors"][0]["value"] > 0 for each in floors([made]))
    assert {"sliced_wasserstein", "sliced_wasserstein_60_last", "nfe"} <= values(made).keys()


@pytest.mark.slow
def test_an_interrupted_evaluation_resumes(signals, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling_pass, "SAVE_EVERY", 0.0)
    options, (whole, _) = ["--evaluate.batch_size=10"], test(signals, tmp_path / "whole")
    draw, drawn = ScoreModel.draw, []

    def interrupted(self, numbers, *arguments, **options):
        drawn.append(list(numbers))
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(self, numbers, *arguments, **options)

    monkeypatch.setattr(ScoreModel, "draw", interrupted)
    with pytest.raises(BaseException):  # noqa: B017
        test(signals, tmp_path / "broken", *options)
    found, _ = test(signals, tmp_path / "mended", *options)
    assert drawn[4] == list(range(30, 40)), "finished batches are not drawn again"
    assert {name for name in whole if found[name] != pytest.approx(whole[name], rel=1e-4)} <= OF_DRAWING


@pytest.mark.slow
def test_two_processes_measure_the_same(signals, tmp_path):
    whole, _ = test(signals, tmp_path / "one")
    two, records = test(signals, tmp_path / "two", "--trainer.devices=2", "--trainer.strategy=ddp_fork")
    assert {name for name in whole if two[name] != pytest.approx(whole[name], rel=1e-4)} <= OF_DRAWING
    assert len(records) == 4


def test_only_continuous_data_are_measured_by_themselves():
    assert automatic_distances(Digits(), slow=True) == []
    assert [each.name for each in automatic_distances(GaussianMixture(), slow=True)] == [
        "sliced_wasserstein", "energy_distance", "histogram",
    ]  # fmt: skip
    assert Evaluate(distances=[]).chosen(GaussianMixture()) == []
    large = SimpleNamespace(levels=None, shape=(3, 256, 256, 256))
    assert "energy_distance" not in [each.name for each in automatic_distances(large, slow=True)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data=GaussianMixture", "--evaluate.distances=[PowerSpectrum]"], "a table has no frequencies; leave it out"),
        (["--evaluate.distances=[Histogram, Histogram]"], "distances: histogram, histogram: each must be given once"),
    ],
)
def test_refuses(options, message, capsys):
    assert run(["fit", "--config=toy", *options]) == 2
    assert message in capsys.readouterr().err


def test_pictures_have_a_panel_for_each_channel_with_names_and_units():
    x = torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for reference in summaries_of([PowerSpectrum(), Histogram()], x, 50):
        curves = reference.curves(reference.data)
        panels = [axes for axes in curves_figure(curves, curves, ["u", "v"], "m/s").axes if axes.lines]
        assert [axes.get_title() for axes in panels] == ["u", "v", "channel 2"]
        assert "m/s" in panels[0].get_ylabel() and len(panels[0].lines) == 2
    table = x.flatten(1)[:, :40]
    (reference,) = summaries_of([Histogram()], table, 50)
    figure = curves_figure(*[reference.curves(reference.data)] * 2, [], "")
    assert sum(bool(axes.lines) for axes in figure.axes) == 36 and "the first 36 of 40" in figure.get_suptitle()
    with pytest.raises(NotImplementedError):
        EnergyDistance().curves(x, reference.channels, (3, 8, 8), 50)
