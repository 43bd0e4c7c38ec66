"""Running sweeps: the numbers of the command itself, early termination, and files that are left alone."""

import json
import re
from pathlib import Path

import pytest
import yaml

from lightning_score.callbacks import Evaluate
from lightning_score.cli import run
from lightning_score.data import Digits
from lightning_score.metrics import DigitFeatures
from lightning_score.report.finding import Reader
from lightning_score.runs.status import read_status
from lightning_score.sweep.loaded import LoadedCommand
from lightning_score.sweep.logged import logged_metrics
from lightning_score.sweep.results import read_csv
from lightning_score.sweep.study import METRICS
from lightning_score.sweep.trial_run import last_metrics
from sweeps import TEST, contents, folder_fixture, trials  # noqa: F401

FROM_FILE = ["--config", "${args_json_file}"]
USUAL = ("trial.json", "study.db", "trials.csv", "summary.md", "sweep.yaml", "pareto.png", "config.yaml", "run.json",
         "metrics.csv", "wandb", "trials", "trials.log", "output", "latest")  # fmt: skip


@pytest.mark.slow
def test_a_sweep_gives_the_numbers_of_the_command_and_resumes(folder, capfd):
    parameters = {**TEST["parameters"], "model.sampler.steps": {"values": [1, 2]}}
    command = [*TEST["command"][:-1], *FROM_FILE]
    Path("steps.yaml").write_text(yaml.safe_dump({**TEST, "parameters": parameters, "command": command}))
    for name in USUAL:
        Path(name).write_text("mine")
    assert run(["sweep", "steps.yaml", "--count=3"]) == 0
    printed = capfd.readouterr().out
    assert "3 trials, 120 samples at 10 to 21 network evaluations each" in printed
    assert "best: test/fid_digits_40=" in printed
    done = trials("steps.yaml")
    assert [trial.state.name for trial in done] == ["COMPLETE"] * 3
    before = {trial.number: trial.datetime_complete for trial in done}
    assert run(["sweep", "steps.yaml"]) == 0
    printed = capfd.readouterr().out
    assert "resumes after 3 trials, 1 more" in printed and "importance: " in printed
    done = trials("steps.yaml")
    assert len(done) == 4 and all(trial.state.name == "COMPLETE" for trial in done)
    assert all(trial.datetime_complete == before[trial.number] for trial in done if trial.number in before)
    again = re.search(r"again: python -m lightning_score (.*)", printed)[1].split()
    assert run([*again, "--output=again"]) == 0
    best = min(done, key=lambda trial: trial.value)
    records = [json.loads(line) for line in Path("again/evaluations.jsonl").read_text().splitlines()]
    assert next(r["value"] for r in records if r["metric"] == "fid_digits_40") == pytest.approx(best.value, rel=1e-5)
    results = Path("runs/sweeps/steps")
    assert {"summary.md", "trials.csv", "pareto.png", "model_sampler_steps.png"} <= {file.name for file in results.iterdir()}
    assert all((Path(trial.user_attrs["folder"]) / "samples").exists() for trial in done)
    assert all(Path(name).read_text() == "mine" for name in USUAL)
    twice = run(["sweep", "steps.yaml", "--summary"])
    assert twice == 0 and "best: test/fid_digits_40=" in capfd.readouterr().out and len(trials("steps.yaml")) == 4


@pytest.mark.slow
def test_a_loaded_model_takes_other_evaluations_and_guidance(folder):
    base = ["test", "--ckpt_path=tiny.ckpt", "--evaluate.num_samples=40"]
    other = [*base, "--evaluate.seed=5", "--model.sampler=LangevinDynamics", "--model.sampler.steps=2"]
    loaded = LoadedCommand(base)
    first = loaded.run([*base, "--output=first"])
    changed = loaded.run([*other, "--output=changed"])
    back = loaded.run([*base, "--output=back"])
    assert run([*other, "--output=fresh"]) == 0
    assert back == {**first, **{name: back[name] for name in ("test/sampling_seconds", "test/memory_gb")}}
    records = [json.loads(line) for line in Path("fresh/evaluations.jsonl").read_text().splitlines()]
    fresh = {f"test/{record['metric']}": record["value"] for record in records}
    assert fresh["test/fid_digits_40"] == pytest.approx(changed["test/fid_digits_40"], rel=1e-5)
    known, _ = logged_metrics("test", Evaluate(DigitFeatures(), num_samples=40), [], Digits())
    assert {name for name in first if not name.startswith("test/loss")} <= known <= {*first}
    assert changed["test/fid_digits_40"] != first["test/fid_digits_40"] and records[0]["seed"] == 5


@pytest.mark.slow
def test_trials_that_train_end_early_or_fail_alone(folder, capfd):
    assert run(["sweep", "lr.yaml", "--jobs=1"]) == 0
    good, poor, wrong = trials("lr.yaml")
    place = Path("runs/sweeps/lr")
    printed = capfd.readouterr().out
    assert read_status(Path(poor.user_attrs["folder"]))["state"] == "stopped early" == read_csv(place).rows[1].state
    runs = Reader(Path("runs")).look().runs
    assert sorted(run.state for run in runs) == ["failed", "finished", "stopped early"]
    assert good.state.name == "COMPLETE" and len(good.intermediate_values) == 3
    assert poor.state.name == "PRUNED" and len(poor.intermediate_values) < 3, printed
    assert wrong.state.name == "FAIL"
    assert good.user_attrs[METRICS]["val/fid_digits_20"] == good.value
    assert "stopped early" in printed and "1 of 3 trials failed; --retry failed runs them again" in printed
    again = re.search(r"again: python -m lightning_score (.*)", printed)[1].split()
    assert run([*again, "--output=again"]) == 0
    assert read_csv(place).rows[0].value == pytest.approx(last_metrics(Path("again"))["val/fid_digits_20"], rel=1e-5)
    assert not (folder / "runs" / "sweeps" / "lr" / "trials" / "latest").exists()


@pytest.mark.slow
def test_no_user_file_is_overwritten(folder):
    for place in (".", "runs", "runs/sweeps", "runs/sweeps/steps", "runs/sweeps/other"):
        Path(place).mkdir(exist_ok=True, parents=True)
        for name in USUAL:
            (Path(place) / name).write_text("mine")
    before = contents(".")
    for mode in ("--dry_run", "--summary", "--count=1", "--storage=sqlite:///mine.db", "--name=other"):
        assert run(["sweep", "steps.yaml", mode]) == 2  # the folder of results is not free
        assert contents(".") == before
    for macro in (["${args}"], FROM_FILE):
        Path("steps.yaml").write_text(yaml.safe_dump({**TEST, "command": [*TEST["command"][:-1], *macro]}))
        before = contents(".")
        assert run(["sweep", "steps.yaml", "--dry_run", f"--runs={folder}/free"]) == 0
        assert contents(".") == before


@pytest.mark.slow
def test_another_file_or_another_checkpoint_needs_another_name(folder, capsys):
    Path("steps.yaml").write_text(yaml.safe_dump({**TEST, "parameters": {"evaluate.num_samples": {"value": 40}}}))
    assert run(["sweep", "steps.yaml"]) == 0
    with Path("tiny.ckpt").open("ab") as file:
        file.write(b"\0" * 8)
    assert run(["sweep", "steps.yaml"]) == 2
    assert "started with another checkpoint" in capsys.readouterr().err
    Path("steps.yaml").write_text(yaml.safe_dump(TEST))
    for options in ([], ["--dry_run"]):
        assert run(["sweep", "steps.yaml", *options]) == 2
        assert "another version of its file" in capsys.readouterr().err
