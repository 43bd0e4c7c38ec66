"""The built wheel works outside the clone: configs, weights and data are in it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lightning_score.runs.pretrained import pretrained

ROOT = Path(__file__).parent.parent


def call(*arguments, **options):
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_has_configs_and_weights_and_runs_elsewhere(tmp_path):
    pip = [sys.executable, "-m", "pip"]
    call(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {f"lightning_score/{p.relative_to(ROOT)}" for kind in ("configs", "sweeps")
               for p in (ROOT / kind).rglob("*.yaml")}  # fmt: skip
    assert shipped | {"lightning_score/data/digits.npz", "lightning_score/metrics/digit_features.safetensors"} <= names
    assert "lightning_score/metrics/fashion_features.safetensors" in names
    assert {f"lightning_score/runs/models/{name}/model.safetensors.gz" for name in pretrained()} <= names
    call(*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    where = "import lightning_score; print(lightning_score.__file__)"
    assert str(tmp_path / "site") in call(sys.executable, "-c", where, cwd=elsewhere, env=environment)
    for name in ("ncsn", "configs/ncsn.yaml"):
        command = [sys.executable, "-m", "lightning_score", "fit", "--config", name, "--trainer.fast_dev_run=true"]
        assert "every part ran once" in call(*command, cwd=elsewhere, env=environment)
    command = [sys.executable, "-m", "lightning_score", "predict", "--ckpt_path", "digits/ncsn", "--num_samples", "4"]
    assert "4 samples: runs/digits/ncsn/predict/" in call(*command, cwd=elsewhere, env=environment)
