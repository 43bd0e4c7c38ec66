"""What commands import: only what they use. Each in a process of its own."""

import json
import subprocess
import sys

import pytest
import torch
import torchmetrics
from lightning.fabric.wrappers import OptimizedModule
from lightning.pytorch.core.module import Metric
from torch import nn

SEEN = """
import json, runpy, sys
for words in json.loads(sys.argv[1]):
    sys.argv = ["lightning_score", *words]
    try:
        runpy.run_module("lightning_score", run_name="__main__")
    except SystemExit as end:
        assert not end.code, words
print("imported:", *sys.modules)
"""
OF_NONE = {"torchvision", "torch_fidelity", "torchmetrics.functional", "scipy.signal", "scipy.stats", "scipy.optimize",
           "sklearn", "pandas", "wandb", "tensorboard", "torch._dynamo", "torch._inductor", "torch.distributed.fsdp",
           "sympy", "optuna", "huggingface_hub", "diffusers", "transformers"}  # fmt: skip
"""Libraries that take from a tenth of a second to seconds to import."""


def imported(words, folder):
    """The modules that a process has imported after some commands."""
    done = subprocess.run([sys.executable, "-c", SEEN, json.dumps(words)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("imported:")[2].split())


def test_report_imports_no_torch(trained):
    found = imported([["report", str(trained), "--output=page.html"]], trained.parent)
    assert not found & (OF_NONE - {"optuna"} | {"torch", "lightning", "torchmetrics", "matplotlib"})


def test_a_fit_that_prints_its_config_and_predict_import_what_they_use(tmp_path):
    predict = ["predict", "--ckpt_path=digits/vp_pc", "--num_samples=2", f"--output={tmp_path / 'samples'}"]
    found = imported([["fit", "--config=ncsn", "--print_config"], [*predict, "--model.sampler.grid.steps=2"]], tmp_path)
    assert (tmp_path / "samples" / "samples.png").exists() and "lightning.pytorch" in found
    assert not found & OF_NONE


@pytest.mark.filterwarnings("ignore")
def test_what_was_left_out_comes_when_it_is_used():
    """Lightning recognizes what the compiler makes, and the objects of all of torchmetrics."""
    compiled = torch.compile(nn.Linear(1, 1))
    assert isinstance(compiled, OptimizedModule) and not isinstance(nn.Linear(1, 1), OptimizedModule)
    assert issubclass(torchmetrics.MeanMetric, Metric) and torchmetrics.Metric is Metric
    assert float(torchmetrics.functional.mean_squared_error(torch.tensor([1.0]), torch.tensor([3.0]))) == 4
