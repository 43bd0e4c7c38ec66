"""Other dashboards: W&B, with its real client and a server of the tests, and TensorBoard."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_server import serving

from lightning_score.cli import run

FIT = ["fit", "--config=ncsn", "--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=2",
       "--samples.num_samples=4", "--evaluate.num_samples=20", "--model.process.levels=10",
       "--trainer.callbacks+=LangevinHealth"]  # fmt: skip


REPORTS = """
from lightning_score.cli import run
for kind in ("workspace", "report"):
    assert run(["report", "--wandb", "somebody/scores", "--kind", kind]) == 0
"""
"""Both kinds in one process."""


def started(words, folder, **environment):
    """A Python process with its own home."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    variables = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    command = [sys.executable, *words]
    return subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A W&B project with one run, and the panels that both kinds of `report --wandb` have made for it."""
    folder = tmp_path_factory.mktemp("wandb")
    with serving() as (state, url):
        key = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "k" * 40, "WANDB_ERROR_REPORTING": "false", "OMP_NUM_THREADS": "1"}
        fit = started(["-m", "lightning_score", *FIT, "--output=run"], folder, **key)
        assert fit.returncode == 0, fit.stderr
        (name,) = state.runs
        state.runs[name]["sweep"] = "sweep0"
        state.sweeps["sweep0"] = {"method": "grid", "parameters": {"model.sampler.steps": {"values": [1, 2]},
                                  "model.sampler.denoise": {"value": "Tweedie"}}}  # fmt: skip
        made = started(["-c", REPORTS], folder, **key)
        assert made.returncode == 0, made.stderr
        state.printed, state.url, state.folder = made.stdout, url, folder
        yield state


@pytest.mark.slow
def test_a_run_suits_the_default_workspace(project):
    """Step metrics, the best distance in the summary, pictures with captions, a table of measurements."""
    ((_, found),) = project.runs.items()
    summary = found["summary"]
    distances = [line["val/fid_digits_20"] for line in found["history"] if "val/fid_digits_20" in line]
    assert len(distances) == 2 and summary["best/val/fid_digits_20"] == min(distances)
    assert summary["best/val/fid_digits_20_step"] in (1, 2, 3, 4)
    assert all("trainer/global_step" in line for line in found["history"] if "train/loss" in line)
    placed = [line for line in found["history"] if "samples" in line or "val/fid_digits_20" in line]
    assert len(placed) == 2 and all("samples" in line and "val/fid_digits_20" in line for line in placed)
    assert all(line["_step"] == line["trainer/global_step"] for line in found["history"] if "evaluations" not in line)
    for kind in ("samples", "progress", "langevin", "loss_per_sigma"):
        assert "step 4" in summary[kind]["captions"][0], kind
    assert summary["evaluations"]["_type"] == "table-file" and summary["evaluations"]["nrows"] == 2
    table = next(content for name, content in project.uploaded.items() if "media/table/evaluations" in name)
    columns, (first, last) = (json.loads(table)[key] for key in ("columns", "data"))
    assert columns[:6] == ["metric", "value", "error", "floor", "n", "nfe"]
    assert first[0] == "fid_digits_20" and last[columns.index("step")] == 4 and last[5] == 21
    assert float(last[1]) == pytest.approx(distances[-1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("address", [r"\?nw=", "/reports/"], ids=["workspace", "report"])
def test_one_command_sets_up_the_panels(project, address):
    assert re.search(rf"on W&B: {project.url}/somebody/scores.*{address}", project.printed)


def headings():
    """The headings of the page, but for those of its own tables."""
    page = (Path(__file__).parents[2] / "lightning_score" / "report" / "parts" / "page.html").read_text()
    return sorted({*re.findall(r"<section id=\"\w+\"[^>]*><h2>([^<]+)</h2>", page)} - {"Runs"})


@pytest.mark.slow
@pytest.mark.parametrize("i", [0, 1], ids=["workspace", "report"])
def test_the_panels_suit_the_runs(project, i):
    view = project.views[i]
    assert (view["entityName"], view["projectName"]) == ("somebody", "scores")
    spec = view["spec"]
    for text in ("val/fid_digits_20", "val/fid_digits_20_floor", "best/val/fid_digits_20", "val/loss", "samples", "progress",
                 "excess_loss_held_out", "langevin_variance_ratio", "Parallel Coordinates",
                 "config:model.value.sampler.init_args.steps",
                 "best val/fid_digits_20 so far", "val/nfe", "summary:_timestamp", *headings()):  # fmt: skip
        assert text in spec, text
    assert "init_args.denoise" not in spec  # which the sweep does not vary
    kinds = set(re.findall(r'"viewType": ?"([^"]+)"', spec))
    assert {"Run History Line Plot", "Media Browser", "Parallel Coordinates Plot", "Scalar Chart", "Scatter Plot"} <= kinds


@pytest.mark.slow
def test_a_project_that_cannot_be_reached_is_a_mistake(project):
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "k" * 40, "WANDB_HTTP_TIMEOUT": "1"}
    done = started(["-m", "lightning_score", "report", "--wandb", "somebody/scores"], project.folder, **nowhere)
    assert done.returncode == 2 and "error: --wandb somebody/scores: http://127.0.0.1:9 cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def documented(tracker):
    """The options of a tracker in the report's README."""
    readme = (Path(__file__).parents[2] / "lightning_score" / "report" / "README.md").read_text()
    (options,) = re.findall(rf"`(--trainer\.logger {tracker} [^`]*)`", readme)
    return options.split()


SCALARS = {"train/loss", "val/loss", "val/fid_digits_20", "val/fid_digits_20_floor", "val/excess_loss_held_out/0.03"}


@pytest.mark.slow
def test_mlflow_has_metrics_settings_and_pictures(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    assert run([*FIT, *documented("MLFlowLogger")]) == 0
    client = mlflow.MlflowClient("sqlite:///mlflow.db")
    ((found,),) = [client.search_runs([experiment.experiment_id]) for experiment in client.search_experiments()
                   if experiment.name != "Default"]  # fmt: skip
    assert found.info.status == "FINISHED" and {*found.data.metrics} >= SCALARS
    assert found.data.params["trainer/max_steps"] == "4"
    assert [point.step for point in client.get_metric_history(found.info.run_id, "val/fid_digits_20")] == [2, 4]
    pictures = [Path(file.path).name.split("+") for file in client.list_artifacts(found.info.run_id, "images")]
    assert {parts[0] for parts in pictures} == {"samples", "progress", "langevin", "loss_per_sigma"}
    assert {parts[2] for parts in pictures if parts[0] == "samples"} == {"2", "4"}
    assert (tmp_path / "runs/ncsn/latest/metrics.csv").exists()


@pytest.mark.slow
def test_tensorboard_has_scalars_and_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run([*FIT, *documented("TensorBoardLogger")]) == 0
    (events,) = tmp_path.rglob("events.out.tfevents*")
    found = EventAccumulator(str(events), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    tags = found.Tags()
    assert set(tags["images"]) == {"samples", "progress", "langevin", "loss_per_sigma"}
    assert set(tags["scalars"]) >= SCALARS
    assert [event.step for event in found.Scalars("val/fid_digits_20")] == [2, 4]
    assert [event.step for event in found.Images("samples")] == [2, 4]
    assert (tmp_path / "runs/ncsn/latest/metrics.csv").exists()
