"""What a sweep checks before its first trial."""

import inspect
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Callback

import lightning_score.callbacks
from lightning_score.callbacks import Evaluate, LangevinHealth, LossFloor
from lightning_score.cli import run
from lightning_score.commands.configs import shipped
from lightning_score.data import Digits, GaussianMixture
from lightning_score.metrics import DigitFeatures, RawFeatures
from lightning_score.sweep.draws import plan_trials
from lightning_score.sweep.logged import OF_CALLBACKS, logged_metrics
from lightning_score.sweep.notes import notes
from lightning_score.sweep.spec import read_sweep_file
from lightning_score.sweep.study import Study
from lightning_score.sweep.summary import collect_results, concluded
from sweeps import FIT, TEST, contents, folder_fixture, trials  # noqa: F401

ANY = [*TEST["command"][:5], "${args}"]
SAMPLES = {"evaluate.num_samples": {"value": 40}}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=pytest.mark.slow if path.stem in ("branches", "few", "front", "posterior") else [])
        for path in sorted(shipped("sweeps").glob("*.yaml"))
    ],
)
def test_shipped_sweeps_fit_the_model_that_they_name(folder, capsys, name):
    run_as = ["--count=2", "--dry_run"]
    if name == "ema":
        quick = [
            "--trainer.max_steps=2",
            "--trainer.val_check_interval=2",
            "--evaluate.num_samples=4",
            "--samples.num_samples=0",
        ]
        assert run(["fit", "--config=ddpm", *quick, "--ema.lengths=[0.05, 0.1]"]) == 0
    cheap = read_sweep_file(str(shipped("sweeps") / f"{name}.yaml"))
    assert run(["sweep", f"sweeps/{name}.yaml", *run_as]) == 0
    printed = capsys.readouterr().out
    assert f"minimizing {cheap.metric}" in printed and "2 trials, " in printed and " network evaluations each" in printed
    lines = cheap.text.splitlines()
    assert lines[0].startswith("# ") and "change the path" in lines[1]


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ["--summary", "--retry=failed", "--count=3"], "--summary: does not take --count and --retry; leave it out"),
        ({"parameters": {"model.sampler.stepz": {"values": [1]}}}, [], "model.sampler.stepz=1: "),
        ({"parameters": {**SAMPLES, "model.sampler.steps": {"values": [1, "many"]}}}, [], "model.sampler.steps=many: "),
        ({"metric": {"name": "test/fid_digit_40"}}, [], "did you mean test/fid_digits_40?"),
        ({"metric_constraints": ["test/nef <= 9"]}, [], "metric test/nef: not logged by `test`; did you mean test/nfe?"),
        (
            {"metric": None, "metrics": [{"name": "test/fid_digits_40"}, {"name": "val/nfe"}]},
            [],
            "metric val/nfe: not logged by `test`; did you mean test/nfe?",
        ),
        ({"command": [*TEST["command"][:6], "none.ckpt", "${args}"]}, [], "none.ckpt: there is no such file"),
        ({"command": ["python", "train.py", "${args}"]}, [], "wandb agent runs other programs"),
        ({"parameters": {**SAMPLES, "model.sampler.steps": {"values": [1, 0]}}}, [], "model.sampler.steps=0: steps=0"),
        ({"parameters": {"evaluate.num_samples": {"values": [1, 40]}}}, [], "evaluate.num_samples=1: num_samples=1"),
        ({"parameters": {**SAMPLES, "output": {"values": ["a", "b"]}}}, [], "output: 'a' and 'b' give the same trial"),
        (
            {"parameters": {**SAMPLES, "ckpt_path": {"values": ["tiny.ckpt", "none.ckpt"]}}, "command": ANY},
            [],
            "ckpt_path=none.ckpt: --ckpt_path",
        ),
        ({"parameters": {**SAMPLES, "trainer.fast_dev_run": {"value": True}}}, [], "fast_dev_run true: saves no results"),
        ({"parameters": {"evaluate.num_samples": {"values": [40, 50]}}}, [], "did you mean test/fid_digits_50?"),
        ({"parameters": {**SAMPLES, "model.sampler.steps": {"values": [1, "1"]}}}, [], "1 and '1' give the same trial"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1}}, [], "measures only once"),
        ({"parameters": {**SAMPLES, "seed_everything": {"values": [0, 1]}}}, [], "`test`, which trains nothing"),
        ({"run_cap": 3}, ["--count=4"], "--count 4: run_cap in the file allows 3"),
        ({}, ["--seed=1"], "--seed 1: method grid draws nothing"),
        ({}, ["--name=../steps"], "must be the name of one folder"),
        ({}, ["--summary", "--storage=sqlite:///none.db"], "there is no such file"),
        ({"method": "random"}, [], "has no end: give --count"),
        ({}, ["--retry=0"], "--retry 0: trial 0 has not failed; those that have: none"),
        ({}, ["--jobs=0"], "--jobs 0"),
        ({}, ["--storage=postgresql://nobody@127.0.0.1:9/none"], "this database cannot be used"),
        ({}, ["--summary"], "has not been run yet"),
    ],
)
def test_mistakes_are_found_before_the_first_trial(folder, capsys, changes, arguments, message):
    Path("steps.yaml").write_text(yaml.safe_dump({**TEST, **changes}))
    assert run(["sweep", "steps.yaml", *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed and len(printed.strip().splitlines()) == 1
    assert {path.name for path in folder.iterdir()} <= {"tiny.ckpt", "steps.yaml", "lr.yaml", "cache"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"model.process.sigma_min": {"values": [0.1, -1]}}}, "model.process.sigma_min=-1: sigma_min=-1"),
        (
            {
                "parameters": {
                    "model.process.sigma_min": {"values": [0.02, 2]},
                    "model.process.sigma_max": {"values": [3, 1]},
                }
            },
            "model.process.sigma_max=1, model.process.sigma_min=2: sigma_min=2",
        ),
        (
            {"parameters": {"model": {"parameters": {"optimizer": {"parameters": {"lr": {"values": [0.1, -1.0]}}}}}}},
            "model.optimizer.lr=-1.0: ",
        ),
        ({"parameters": {"trainer.limit_val_batches": {"values": [1, 0]}}}, "limit_val_batches 0: there is no validation"),
        ({"parameters": {"trainer.max_epochs": {"values": [1, -5]}}}, "trainer.max_epochs=-5: "),
        ({"metric": {"name": "val/fid_digit_20"}}, "did you mean val/fid_digits_20?"),
        ({"metric": {"name": "test/fid_digits_20"}}, "did you mean val/fid_digits_20?"),
    ],
)
def test_constructor_errors_are_found_before_the_first_trial(folder, capsys, changes, message):
    """Also with the callbacks of the config."""
    Path("lr.yaml").write_text(yaml.safe_dump({**FIT, **changes}))
    assert run(["sweep", "lr.yaml"]) == 2
    printed = capsys.readouterr().err
    assert message in printed and len(printed.strip().splitlines()) == 1 and not Path("runs").exists()


def test_a_sweep_that_resumes_is_checked_with_the_draws_of_its_seed(folder, capsys, monkeypatch):
    entries = {**TEST, "method": "random", "run_cap": 3}
    Path("steps.yaml").write_text(yaml.safe_dump(entries))
    place, spec = Path("runs/sweeps/steps"), read_sweep_file("steps.yaml")
    place.mkdir(parents=True)
    study = Study(spec, f"sqlite:///{place.resolve()}/study.db", "steps", create=True, seed=5)
    study.queue(3)
    checked = []
    monkeypatch.setattr("lightning_score.sweep.cli.check_settings", lambda spec, plan: checked.append(plan) or "cost")
    before = contents(".")
    assert run(["sweep", "steps.yaml", "--dry_run"]) == 0
    assert ", seed 5\n" in capsys.readouterr().out
    assert checked[0].settings == plan_trials(spec, 3, 5).settings != plan_trials(spec, 3, 0).settings
    assert [each["model.sampler.steps"] for each in checked[0].settings] == [
        trial.system_attrs["fixed_params"]["model.sampler.steps"] for trial in study.trials()
    ]
    assert run(["sweep", "steps.yaml", "--seed=6", "--dry_run"]) == 2
    assert "--seed 6: the sweep steps was started with seed 5" in capsys.readouterr().err
    assert contents(".") == before
    assert collect_results(spec, study).seed == 5
    assert "settings drawn with --seed 5" in notes(concluded(spec, collect_results(spec, study)))


def test_a_metric_of_another_packages_callback_gives_a_warning(folder, capsys, monkeypatch):
    Path("my_callbacks.py").write_text("from lightning.pytorch import Callback\nclass Mine(Callback):\n    pass\n")
    monkeypatch.syspath_prepend(str(folder))
    command = [*FIT["command"][:-1], "--trainer.callbacks=my_callbacks.Mine", "${args}"]
    entries = {**FIT, "metric": {"name": "val/mine"}, "command": command}
    Path("lr.yaml").write_text(yaml.safe_dump(entries))
    assert run(["sweep", "lr.yaml", "--dry_run"]) == 0
    assert "metric val/mine: not checked, because only Mine may log it" in capsys.readouterr().err


def test_the_known_metrics_are_those_that_are_logged(checkpoint):
    """Those of `test` are compared in `test_a_loaded_model_takes_other_evaluations_and_guidance`."""
    header = (checkpoint.parent / "metrics.csv").read_text().splitlines()[0].split(",")
    callbacks = [LangevinHealth(), LossFloor()]
    known, strangers = logged_metrics("fit", Evaluate(DigitFeatures(), num_samples=40), callbacks, Digits())
    assert not strangers and not [
        name for name in header if "/" in name and not any(fnmatchcase(name, pattern) for pattern in known)
    ]
    assert not [name for name in known if not any(fnmatchcase(column, name) for column in header) and name[:6] != "train/"]
    assert "test/copied" in logged_metrics("test", Evaluate(DigitFeatures()), [], Digits())[0]
    assert "test/copied" not in logged_metrics("test", Evaluate(RawFeatures()), [], GaussianMixture())[0], (
        "copies are only searched among images"
    )
    for name in lightning_score.callbacks.__all__:
        kind = getattr(lightning_score.callbacks, name)
        own = [base for base in kind.__mro__ if base.__module__.startswith("lightning_score.")]
        logs = issubclass(kind, Callback) and any("pl_module.log" in inspect.getsource(base) for base in own)
        assert logs == (kind in OF_CALLBACKS or kind is Evaluate), name
