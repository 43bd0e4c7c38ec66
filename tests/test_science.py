"""The configs of science: each trains, resumes bit for bit, and is measured in the units of its data, all in a few steps."""

import math
import os
import signal

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from recipes import SCIENCE
from sklearn.datasets import load_breast_cancer

from lightning_score.cli import run
from lightning_score.commands.configs import shipped
from lightning_score.data import Arrays
from lightning_score.runs.records import read_records

SHORT = ["--trainer.val_check_interval=4", "--model.lr_scheduler.total_iters=4", "--samples.num_samples=4",
         "--evaluate.num_samples=20", "--trainer.max_steps=4"]  # fmt: skip
FEW = "--trainer.callbacks=[{class_path: Nats, init_args: {num_examples: 2, draws: 1}}]"


class Stop(Callback):
    """Interrupts a run after two steps."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_the_table_is_that_of_scikit_learn():
    """Whose first line has the size of the table, not the names of its columns."""
    config = yaml.safe_load((shipped() / "science/cancer.yaml").read_text())["data"]["init_args"]
    data = Arrays(config["path"], key=config["key"], condition=config["condition"])
    table = load_breast_cancer()
    labels = torch.cat([split.y for split in data.splits])
    found = sorted(map(tuple, np.c_[data.reference().float().numpy(), labels]))
    assert found == sorted(map(tuple, np.c_[table.data.astype(np.float32), table.target]))


@pytest.mark.slow
@pytest.mark.faults("runs ended by a signal")
@pytest.mark.parametrize("name", SCIENCE)
def test_a_config_trains_resumes_and_is_measured(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    config = [f"--config=science/{name}", *SHORT]
    assert run(["fit", *config, "--output=whole"]) == 0
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        run(["fit", *config, "--output=parts", f"--trainer.callbacks+={__name__}.Stop"])
    signal.signal(signal.SIGINT, handler)
    assert run(["fit", "--ckpt_path=parts", f"--trust={__name__}"]) == 0
    whole, parts = (torch.load(f"{folder}/last.ckpt", weights_only=True)["state_dict"] for folder in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    assert run(["predict", "--ckpt_path=whole/last.ckpt", "--num_samples=2", "--output=drawn"]) == 0
    if "Nats" not in (shipped() / f"science/{name}.yaml").read_text():
        return
    assert run(["test", "--ckpt_path=whole/last.ckpt", FEW, "--evaluate.num_samples=20", "--output=test"]) == 0
    found = {record.metric: record.value for record in read_records(tmp_path / "test/evaluations.jsonl")}
    assert {"nats", "nats_per_dim", "sliced_wasserstein_20", "energy_distance_20"} <= found.keys()
    assert all(math.isfinite(value) for value in found.values())
