"""Time to the first results: whole processes, from the command to its end."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

UNMEASURED = ["--evaluate.features=null", "--trainer.callbacks=null"]
COMMANDS = {
    "--help": (["--help"], 0.1),
    "fit, one step": (["fit", "--config=ncsn", "--trainer.max_steps=1", "--samples.num_samples=1", *UNMEASURED], 4.0),
    "predict, 16 samples": (["predict", "--ckpt_path=digits/vp_pc", "--num_samples=16"], 3.5),
    "report": (["report"], 2.0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a model trained for two steps."""
    folder = tmp_path_factory.mktemp("start")
    call(folder, ["fit", "--config=ncsn", "--trainer.max_steps=2", "--evaluate.features=null", "--samples.num_samples=1"])
    return folder


def call(folder, arguments, **variables):
    """Seconds until a command ends, with further environment variables."""
    environment = {**os.environ, **variables, "WANDB_MODE": "disabled", "PYTHONPATH": str(Path(__file__).parents[2])}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "lightning_score", *arguments], cwd=folder, env=environment, check=True, capture_output=True
    )
    return time.perf_counter() - start


@pytest.mark.parametrize("name", COMMANDS)
def test_start(name, folder, benchmark, note):
    arguments, aim = COMMANDS[name]
    benchmark.pedantic(lambda: call(folder, arguments), rounds=3, warmup_rounds=1)
    seconds = benchmark.stats.stats.median
    note(name, f"{seconds:.2f} s", "the aim", f"{aim:.0f} s", f"{aim / seconds:.2f}")
