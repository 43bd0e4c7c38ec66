"""Options of earlier versions: errors that give the new name, except in checkpoints and resumed runs."""

import pytest
import torch
import yaml

from lightning_score.commands.arguments import Arguments
from lightning_score.commands.base import IdleExperiment
from lightning_score.commands.fit import Fit
from lightning_score.commands.plain_parser import UsageError
from lightning_score.runs.old_names import new_classes, new_option, with_new_names


def test_only_old_names_have_new_ones():
    assert new_option("evaluate.neighbours") == "evaluate.neighbors" and not new_option("evaluate.neighbors")
    assert new_option("data.grey_range") == "data.gray_range" and not new_option("neighbours")
    assert new_classes("Chain") == {"BetaChain", "Composed"} and not new_classes("VP")
    assert with_new_names({"evaluate": {"neighbours": 3}}, options=False) == {"evaluate": {"neighbours": 3}}


def test_a_resumed_run_may_have_old_option_names(tmp_path, capsys):
    """In its config.yaml and its checkpoint; in any other config they are errors that give the new name."""
    made = IdleExperiment(["--data=GaussianMixture", "--model.network=MLP", "--model.process=SigmaTable",
                           "--model.process.levels=10", "--evaluate.neighbors=3", "--model.optimizer=Adam"])  # fmt: skip
    config = yaml.safe_load(made.parser.dump(made.config, skip_none=False))
    config["evaluate"]["neighbours"] = config["evaluate"].pop("neighbors")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save({"state_dict": {}, "config": config, "global_step": 1, "loops": {"fit_loop": {}}}, tmp_path / "last.ckpt")
    resumed = Fit(Arguments.parse(["fit", f"--ckpt_path={tmp_path}"]))
    assert resumed.config["evaluate"]["neighbors"] == 3 and resumed.resumed == tmp_path
    with pytest.raises(UsageError, match="2"):
        IdleExperiment(["--config", str(tmp_path / "config.yaml")])
    line = "evaluate.neighbours: this option has been renamed; give --evaluate.neighbors"
    assert f"error: {line} ({tmp_path}/config.yaml, line " in capsys.readouterr().err
