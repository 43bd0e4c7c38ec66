"""The benchmarks run and sum up; what they find is nobody's pass or failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"


def table(file, *options, **variables):
    """The rows that a file of benchmarks prints."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "benchmark",
        "-p",
        "no:cacheprovider",
        str(FOLDER / file),
        *options,
    ]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # whoever runs this test
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=FOLDER.parents[1], env={**alone, **variables}
    )
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in done.stdout.splitlines() if line[:2] == "| "]
    assert rows[0] == ["benchmark", "lightning_score", "against", "theirs", "ratio"]
    return rows[2:]


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_to_its_end_without_one():
    chosen = "(networks and ddpm and not large) or (sampling and vp_pc) or predict or pages"
    rows = table("test_gpu.py", "-n", "0", "-k", chosen, GPU_DRY_RUN="1")
    ratios = {f"{what}; {against}": ratio for what, _, against, _, ratio in rows}
    for part, aim in (("training step", 0.35), ("forward pass", 0.5)):
        what = f"cifar10/ddpm {part}, batch 1, bf16, CUDA graphs"
        assert float(ratios[f"{what}; a large matrix product (aim {aim})"]) > 0
        assert float(ratios[f"{what}; diffusers, compiled alike"]) > 0
    samplers = [float(ratio) for what, ratio in ratios.items() if what.endswith("its network alone (aim 0.95)")]
    assert len(samplers) > 20 and min(samplers) > 0
    assert ["predict, 16 samples", "done"] in [row[:2] for row in rows]
    assert any("NCCL on several GPUs" in row[3] for row in rows)


@pytest.mark.slow
def test_a_benchmark_prints_its_row():
    what, _, against, _, ratio = table("test_loader.py")[0]
    assert what == "an epoch of 2000 images, 28x28" and "image by image" in against and float(ratio) > 1
