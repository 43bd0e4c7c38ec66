"""Checkpoints and configs of earlier versions name classes where they were then."""

from importlib import import_module

import pytest
import torch
import yaml

from lightning_score.commands.arguments import Arguments
from lightning_score.commands.base import IdleExperiment
from lightning_score.commands.fit import Fit
from lightning_score.commands.parser import UsageError
from lightning_score.commands.resume import complete_arguments
from lightning_score.runs.checkpoints import read_checkpoint
from lightning_score.runs.old_names import CLASSES, MODULES, new_name, new_option, with_new_names
from lightning_score.runs.yaml_files import load


def test_every_new_place_exists():
    for module in MODULES.values():
        import_module(f"lightning_score.{module}")
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
    assert new_name("lightning_score.Chain") == "lightning_score.Composed"
    assert with_new_names({"evaluate": {"neighbours": 3}}) == {"evaluate": {"neighbors": 3}}
    assert with_new_names({"evaluate": {"neighbours": 3}}, options=False) == {"evaluate": {"neighbours": 3}}
    assert new_option("evaluate.neighbours") == "evaluate.neighbors" and not new_option("evaluate.neighbors")
    assert new_option("data.grey_range") == "data.gray_range" and not new_option("neighbours")
    assert new_name("lightning_score.sampling.predictor.DDIM") == "lightning_score.sampling.predictor.DDIM"


def test_checkpoints_and_configs_are_read_with_todays_names(tmp_path):
    old, new = (
        {"parametrization": {"class_path": f"lightning_score.{module}.Noise"}, "other": [1, "torch.nn.ReLU"]}
        for module in ("parametrization", "score.parametrization")
    )
    torch.save({"config": {"model": old}, "hyper_parameters": old, "step": 3}, tmp_path / "old.ckpt")
    assert read_checkpoint(tmp_path / "old.ckpt") == {"config": {"model": new}, "hyper_parameters": new, "step": 3}
    assert load(str(old)) == new


def test_a_resumed_run_may_have_old_option_names(tmp_path, capsys):
    """Its config.yaml and its checkpoint; in any other config they are errors that give the new name."""
    made = IdleExperiment(["--data=GaussianMixture", "--model.network=MLP", "--model.process=SigmaTable",
                           "--model.process.levels=10", "--evaluate.neighbors=3", "--model.optimizer=Adam"])  # fmt: skip
    config = yaml.safe_load(made.parser.dump(made.config, skip_none=False))
    config["evaluate"]["neighbours"] = config["evaluate"].pop("neighbors")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save({"state_dict": {}, "config": config, "global_step": 1, "loops": {"fit_loop": {}}}, tmp_path / "last.ckpt")
    resumed = Fit(complete_arguments(Arguments.parse(["fit", f"--ckpt_path={tmp_path}"])))
    assert resumed.config["evaluate"]["neighbors"] == 3 and resumed.invocation.folder == tmp_path
    with pytest.raises(UsageError, match="2"):
        IdleExperiment(["--config", str(tmp_path / "config.yaml")])
    line = "evaluate.neighbours: this option has been renamed; give --evaluate.neighbors"
    assert f"error: {line} ({tmp_path}/config.yaml, line " in capsys.readouterr().err
