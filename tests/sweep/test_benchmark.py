"""The command `benchmark`: samplers of a model, measured on this machine."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lightning_score.cli import run

FEW = ["benchmark", "--ckpt_path=digits/vp_pc", "--num_samples=20"]


@pytest.mark.slow
def test_it_measures_time_memory_and_distance_with_the_same_noise(tmp_path, monkeypatch, capsys):
    """And resumes: what is measured is not measured again."""
    monkeypatch.chdir(tmp_path)
    command = [*FEW, "--samplers=own,IPNDM", "--steps=[2]"]
    assert run(command) == 0
    first = capsys.readouterr().out
    folder = Path("runs/sweeps/benchmark_vp_pc")
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [row["state"] for row in rows] == ["complete"] * 2 and [float(row["nfe"]) for row in rows] == [12, 3]
    assert len({row["paired"] for row in rows}) == 1 and all(float(row["error"]) > 0 for row in rows)
    table = [line.split("|")[1:-1] for line in (folder / "summary.md").read_text().splitlines() if line.startswith("|")]
    titles = [cell.strip() for cell in table[0]]
    speed, seconds, memory = (
        [float(row[titles.index(name)]) for row in table[2:]] for name in ("images/s", "seconds", "GB")
    )
    assert seconds == sorted(seconds) and np.allclose(np.multiply(speed, seconds), 20, rtol=0.02)
    assert all(0.1 < each < 100 for each in memory)
    assert {row[1].strip() for row in table[2:]} == {"own (SASolver)", "IPNDM"}
    assert np.asarray(Image.open(folder / "pareto.png").convert("L")).std() > 10
    assert len(list(folder.glob("trials/*/evaluations.jsonl"))) == 2
    assert run(command) == 0
    again = capsys.readouterr().out
    assert "resumes after 2 trials" in again and first.splitlines()[-3:-1] == again.splitlines()[-3:-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_samples=19"], "--num_samples 19: must be at least 20"),
        (["--samplers=Hoin"], "--samplers Hoin: must be the name of a sampler (AdamsBashforth, "),
        (["--ckpt_path=digits/ncsn", "--samplers=DDIM", "--steps=[2000]"], "--steps [2000]: must have a number of steps"),
        (["--samplers=empty.yaml"], "--samplers empty.yaml: has no samplers"),
        (["--ckpt_path=digits/vp"], "--ckpt_path digits/vp: there is no such file"),
        (["--evaluate.features=null", "--evaluate.distances=[]"], "nothing measures samples of Digits"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    Path("empty.yaml").write_text(yaml.safe_dump({"parameters": {"evaluate.num_samples": {"value": 40}}}))
    assert run([*FEW, *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("runs").exists()
