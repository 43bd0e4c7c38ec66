"""Checkpoints and configs of earlier versions name classes where they were then."""

from importlib import import_module
from inspect import signature

import pytest
import torch

from lightning_score.callbacks import Evaluate, LastCheckpoint
from lightning_score.cli import run
from lightning_score.runs.checkpoints import read_checkpoint
from lightning_score.runs.old_names import CLASSES, MODULES, MOVED, OPTIONS, new_name, with_new_names
from lightning_score.runs.records import Record, append_record, read_records
from lightning_score.runs.yaml_files import load


def test_every_new_place_exists():
    for module in MODULES.values():
        import_module(f"lightning_score.{module}")
    for path in MOVED.values():
        module, _, name = path.rpartition(".")
        assert hasattr(import_module(f"lightning_score.{module}"), name)
    for old, name in CLASSES.items():
        folder = import_module(f"lightning_score.{old.rpartition('.')[0]}".rstrip("."))
        module = folder if folder.__name__ != "lightning_score.data" else import_module("lightning_score.data.augmentation")
        assert hasattr(module, name) and not hasattr(module, old.rpartition(".")[2]), old


def test_paths_are_brought_up_to_date():
    assert new_name("lightning_score.parametrization.Noise") == "lightning_score.score.parametrization.Noise"
    assert new_name("lightning_score.VP") == "lightning_score.VP"
    assert new_name("lightning_score.process.Chain") == "lightning_score.process.BetaChain"
    assert new_name("lightning_score.sampling.grid.Table") == "lightning_score.sampling.grid.ProcessTable"
    assert new_name("lightning_score.augmentation.Geometric") == "lightning_score.data.augmentation.GeometricAugmentation"
    step = "lightning_score.sampling.langevin.AnnealedLangevinStep"
    assert new_name("lightning_score.sampling.corrector.AnnealedLangevinStep") == new_name(step) == step
    assert new_name("lightning_score.Chain") == "lightning_score.Composed"
    assert with_new_names({"evaluate": {"neighbours": 3}}) == {"evaluate": {"neighbors": 3}}
    assert new_name("lightning_score.sampling.predictor.DDIM") == "lightning_score.sampling.predictor.DDIM"


def test_checkpoints_and_configs_are_read_with_todays_names(tmp_path):
    old, new = (
        {"parametrization": {"class_path": f"lightning_score.{module}.Noise"}, "other": [1, "torch.nn.ReLU"]}
        for module in ("parametrization", "score.parametrization")
    )
    torch.save({"config": {"model": old}, "hyper_parameters": old, "step": 3}, tmp_path / "old.ckpt")
    assert read_checkpoint(tmp_path / "old.ckpt") == {"config": {"model": new}, "hyper_parameters": new, "step": 3}
    assert load(str(old)) == new


@pytest.mark.parametrize(("old", "new"), OPTIONS["evaluate"].items())
def test_an_option_that_was_renamed_names_the_new_one(old, new, capsys):
    with pytest.raises(SystemExit):
        run(["fit", "--config=ncsn", f"--evaluate.{old}=true"])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--evaluate.{new}" in line and new in signature(Evaluate).parameters


def test_old_records_are_read_under_the_names_of_today(tmp_path):
    made = Record(metric="fid_infinity_digits_100", value=3.0, error=0.1, n=100, features="digits", features_hash="a",
                  data="Digits", split="train", shape=[1, 8, 8], data_hash="b", step=5, sampler={}, nfe=9.0, seed=0,
                  seconds=1.0, jackknife=[2.0, 4.0])  # fmt: skip
    append_record(tmp_path / "records", made)
    line = (tmp_path / "records").read_text()
    assert '"without": [2.0, 4.0]' in line and "jackknife" not in line
    (tmp_path / "records").write_text(line.replace("fid_infinity", "fid_limit"))
    assert read_records(tmp_path / "records") == [made]


def test_the_states_of_renamed_callbacks_keep_their_keys(tmp_path):
    assert LastCheckpoint(tmp_path).state_key == "Keep"
