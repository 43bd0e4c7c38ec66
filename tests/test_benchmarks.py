"""The benchmarks run and sum up; what they find is nobody's pass or failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"


@pytest.mark.slow
def test_a_benchmark_prints_its_row():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "benchmark",
        "-p",
        "no:cacheprovider",
        str(FOLDER / "test_loader.py"),
    ]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # whoever runs this test
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=FOLDER.parents[1], env=alone).stdout
    rows = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("| ")]
    assert rows[0] == ["benchmark", "lightning_score", "against", "theirs", "ratio"]
    what, _, against, _, ratio = rows[2]
    assert what == "an epoch of 2000 images, 28x28" and "image by image" in against and float(ratio) > 1
