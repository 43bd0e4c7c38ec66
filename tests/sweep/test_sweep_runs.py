"""Running sweeps: the numbers of the command itself, and no trial is lost or repeated when processes are killed."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import yaml

from lightning_score.callbacks import Evaluate
from lightning_score.cli import run
from lightning_score.metrics import DigitFeatures
from lightning_score.report.reading import find_runs
from lightning_score.runs.status import read_status
from lightning_score.sweep.loaded import LoadedCommand
from lightning_score.sweep.logged import logged_metrics
from lightning_score.sweep.results import read_csv
from lightning_score.sweep.study import METRICS, SLOT
from lightning_score.sweep.trials import last_metrics
from sweeps import FIT, TEST, folder_fixture, running, started, trials, wait_for  # noqa: F401

FROM_FILE = ["--config", "${args_json_file}"]
USUAL = ("trial.json", "study.db", "trials.csv", "summary.md", "sweep.yaml", "pareto.png", "config.yaml", "run.json",
         "metrics.csv", "wandb", "trials", "trials.log", "output", "latest")  # fmt: skip


def test_a_sweep_gives_the_numbers_of_the_command_and_resumes(folder, capfd):
    Path("steps.yaml").write_text(yaml.safe_dump({**TEST, "command": [*TEST["command"][:-1], *FROM_FILE]}))
    for name in USUAL:
        Path(name).write_text("mine")
    assert run(["sweep", "steps.yaml", "--count=4", "--jobs=2"]) == 0
    said = capfd.readouterr().out
    assert "4 trials, 160 samples at 11 to 31 network evaluations each" in said
    assert "best: test/fid_digits_40=" in said
    done = trials("steps.yaml")
    assert [trial.state.name for trial in done] == ["COMPLETE"] * 4
    before = {trial.number: trial.datetime_complete for trial in done}
    assert run(["sweep", "steps.yaml"]) == 0
    said = capfd.readouterr().out
    assert "resumes after 4 trials, 2 more" in said and "importance: " in said
    done = trials("steps.yaml")
    assert len(done) == 6 and all(trial.state.name == "COMPLETE" for trial in done)
    assert all(trial.datetime_complete == before[trial.number] for trial in done if trial.number in before)
    again = re.search(r"again: python -m lightning_score (.*)", said)[1].split()
    assert run([*again, "--output=again"]) == 0
    best = min(done, key=lambda trial: trial.value)
    records = [json.loads(line) for line in Path("again/evaluations.jsonl").read_text().splitlines()]
    assert next(r["value"] for r in records if r["metric"] == "fid_digits_40") == pytest.approx(best.value, rel=1e-5)
    results = Path("runs/sweeps/steps")
    assert {"summary.md", "trials.csv", "pareto.png", "model_sampler_steps.png"} <= {file.name for file in results.iterdir()}
    assert all((Path(trial.user_attrs["folder"]) / "samples").exists() for trial in done)
    assert all(Path(name).read_text() == "mine" for name in USUAL)
    twice = run(["sweep", "steps.yaml", "--summary"])
    assert twice == 0 and "best: test/fid_digits_40=" in capfd.readouterr().out and len(trials("steps.yaml")) == 6


def test_a_loaded_model_takes_other_evaluations_and_guidance(folder):
    base = ["test", "--ckpt_path=tiny.ckpt", "--evaluate.num_samples=40"]
    other = [*base, "--evaluate.seed=5", "--model.sampler=LangevinDynamics", "--model.sampler.steps=2"]
    loaded = LoadedCommand(base)
    first = loaded.run([*base, "--output=first"])
    changed = loaded.run([*other, "--output=changed"])
    back = loaded.run([*base, "--output=back"])
    assert run([*other, "--output=fresh"]) == 0
    assert back == {**first, "test/sampling_seconds": back["test/sampling_seconds"]}
    records = [json.loads(line) for line in Path("fresh/evaluations.jsonl").read_text().splitlines()]
    fresh = {f"test/{record['metric']}": record["value"] for record in records}
    assert fresh["test/fid_digits_40"] == pytest.approx(changed["test/fid_digits_40"], rel=1e-5)
    known, _ = logged_metrics("test", Evaluate(DigitFeatures(), num_samples=40), [])
    assert {name for name in first if not name.startswith("test/loss")} <= known <= {*first}
    assert changed["test/fid_digits_40"] != first["test/fid_digits_40"] and records[0]["seed"] == 5


@pytest.mark.slow
def test_killed_workers_and_a_killed_sweep_lose_no_trial(folder):
    slow = {**TEST, "parameters": {**TEST["parameters"], "evaluate.num_samples": {"value": 1200}},
            "metric": {"name": "test/fid_digits_1200"}}  # fmt: skip
    Path("steps.yaml").write_text(yaml.safe_dump(slow))
    sweep = started("steps.yaml")
    os.kill(wait_for(lambda: running("steps.yaml"))[0], signal.SIGKILL)  # a worker: the sweep begins another
    first = wait_for(lambda: [trial for trial in trials("steps.yaml") if trial.state.name == "COMPLETE"])
    wait_for(lambda: running("steps.yaml"))
    os.killpg(sweep.pid, signal.SIGKILL)  # all of it, as in a power cut
    sweep.communicate()
    again = started("steps.yaml", "--jobs=2")
    wait_for(lambda: len(running("steps.yaml")) == 2 or again.poll() is not None)
    os.killpg(again.pid, signal.SIGINT)  # Ctrl-C
    said, _ = again.communicate(timeout=120)
    assert "to resume: python -m lightning_score sweep steps.yaml --jobs=2" in said and again.returncode == 130, said
    assert run(["sweep", "steps.yaml"]) == 0
    done = trials("steps.yaml")
    assert [trial.user_attrs[SLOT] for trial in done] == list(range(6))
    assert all(trial.state.name == "COMPLETE" for trial in done)
    assert len({json.dumps(trial.params, sort_keys=True) for trial in done}) == 6
    assert first[0].number in {trial.number for trial in done}  # what was complete was not done again


@pytest.mark.slow
def test_trials_that_train_end_early_or_fail_alone(folder, capfd):
    assert run(["sweep", "lr.yaml", "--jobs=1"]) == 0
    good, poor, wrong = trials("lr.yaml")
    place = Path("runs/sweeps/lr")
    said = capfd.readouterr().out
    assert read_status(Path(poor.user_attrs["folder"]))["state"] == "stopped early" == read_csv(place).rows[1].state
    runs, _ = find_runs(Path("runs"))
    assert sorted(run.state for run in runs) == ["failed", "finished", "stopped early"]
    assert good.state.name == "COMPLETE" and len(good.intermediate_values) == 3
    assert poor.state.name == "PRUNED" and len(poor.intermediate_values) < 3, said
    assert wrong.state.name == "FAIL"
    assert good.user_attrs[METRICS]["val/fid_digits_20"] == good.value
    assert "stopped early" in said and "1 of 3 trials failed; --retry_failed runs them again" in said
    again = re.search(r"again: python -m lightning_score (.*)", said)[1].split()
    assert run([*again, "--output=again"]) == 0
    assert read_csv(place).rows[0].value == pytest.approx(last_metrics(Path("again"))["val/fid_digits_20"], rel=1e-5)
    assert not (folder / "runs" / "sweeps" / "lr" / "trials" / "latest").exists()


def contents(place):
    """The files below a folder, with their bytes."""
    return {path: path.read_bytes() for path in Path(place).rglob("*") if path.is_file() and "cache" not in path.parts}


@pytest.mark.parametrize("macro", [["${args}"], FROM_FILE])
def test_no_user_file_is_overwritten(folder, macro):
    for place in (".", "runs", "runs/sweeps", "runs/sweeps/steps", "runs/sweeps/other"):
        Path(place).mkdir(exist_ok=True, parents=True)
        for name in USUAL:
            (Path(place) / name).write_text("mine")
    Path("steps.yaml").write_text(yaml.safe_dump({**TEST, "command": [*TEST["command"][:-1], *macro]}))
    before = contents(".")
    for mode in ("--dry_run", "--summary", "--count=1", "--storage=sqlite:///mine.db", "--name=other"):
        assert run(["sweep", "steps.yaml", mode]) == 2  # the folder of results is not free
        assert contents(".") == before
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
