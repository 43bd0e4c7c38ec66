"""Averages of other lengths on the command line: the command `ema`, the option `--ema_length`, and sweeps."""

import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tiny import TINY

from lightning_score.cli import run
from lightning_score.commands.configs import load_checkpoint
from lightning_score.runs.averages import Averages, combine
from lightning_score.runs.bundle import read_bundle
from lightning_score.runs.records import FILE, read_records
from lightning_score.sweep.rows import leave_one_out
from lightning_score.sweep.spec import read_sweep_file
from lightning_score.sweep.trials import InProcessTrials, choose_runner

SWEEP = {
    "name": "lengths",
    "method": "grid",
    "metric": {"name": "test/fid_digits_20", "goal": "minimize"},
    "parameters": {"ema_length": {"values": [0.04, 0.07]}},
    "command": ["${env}", "${interpreter}", "-m", "lightning_score", "test", "--ckpt_path", "trained/last.ckpt", "${args}"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 40 steps that has kept averages."""
    folder = tmp_path_factory.mktemp("averages")
    (folder / "tiny.yaml").write_text(TINY)
    fit = ["fit", f"--config={folder}/tiny.yaml", f"--output={folder}/trained", "--ema.lengths=[0.05, 0.1]"]
    assert run([*fit, "--trainer.max_steps=40", "--trainer.val_check_interval=40"]) == 0
    return folder / "trained"


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """The current folder, with the run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "trained")
    return tmp_path


def measured(folder):
    return [(record.metric, record.value, record.weights, record.step) for record in read_records(Path(folder) / FILE)]


def test_what_is_written_is_what_the_option_measures(place, capsys):
    """The same numbers, whose records name the length; an earlier step is that of the records."""
    assert run(["ema", "--ckpt_path", "trained", "--lengths", "0.04", "0.07", "--output", "made"]) == 0
    printed = capsys.readouterr().out
    assert "at step 40" in printed and "next: python -m lightning_score test --ckpt_path made/ema_0.07.ckpt" in printed
    assert run(["test", "--ckpt_path=made/ema_0.07.ckpt", "--output=one"]) == 0
    assert run(["test", "--ckpt_path=trained/last.ckpt", "--ema_length=0.07", "--output=two"]) == 0
    assert measured("one") == measured("two") and {each[2:] for each in measured("one")} == {("ema 0.07", 40)}
    made, kept = torch.load("made/ema_0.04.ckpt", weights_only=True), torch.load("trained/last.ckpt", weights_only=True)
    assert made["ema_length"] == 0.04 and "optimizer_states" not in made and made.keys() < {*kept, "ema_length"}
    assert run(["ema", "--ckpt_path", "trained/last.ckpt", "--lengths", "0.1", "--step", "32"]) == 0
    (early,) = Path("trained/ema").glob("*/ema_0.1.ckpt")
    snapshot = torch.load("trained/averages/step_0000032.pt", weights_only=True)["averages"][0.1]
    assert all(torch.equal(load_checkpoint(str(early))["state_dict"][name], value) for name, value in snapshot.items())
    assert run(["validate", f"--ckpt_path={early}", "--output=three"]) == 0
    assert {each[2:] for each in measured("three")} == {("ema 0.1", 32)}


def test_a_model_to_pass_on_has_its_length_and_its_own_numbers(place, capsys):
    """Not those of the averages of the run with which it shares a folder."""
    shutil.copy("trained/evaluations.jsonl", ".")
    assert run(["ema", "--ckpt_path", "trained", "--lengths", "0.07", "--output", "made"]) == 0
    shutil.copy("trained/evaluations.jsonl", "made")
    assert run(["push", "made/ema_0.07.ckpt", "user/digits", "--license=mit", "--output=passed_on"]) == 0
    assert "has no evaluation of these weights" in capsys.readouterr().out
    assert (
        read_bundle("passed_on")["ema_length"] == 0.07
        and "averages of length 0.07" in Path("passed_on/README.md").read_text()
    )


def test_a_sweep_over_the_length_loads_the_model_once(place, capsys):
    """Its trials have the numbers of the command, and differences of the same samples."""
    Path("lengths.yaml").write_text(yaml.safe_dump(SWEEP))
    sweep = read_sweep_file("lengths.yaml")
    trials, rows = choose_runner(sweep, sweep.arguments({"ema_length": 0.04}), 1, lambda *_: None), []
    assert isinstance(trials, InProcessTrials)
    for length in (0.07, 0.04):
        folder = Path(f"trial_{length}")
        trials.run(sweep.arguments({"ema_length": length}), folder, None, lambda *_: None)
        assert run(["test", "--ckpt_path=trained/last.ckpt", f"--ema_length={length}", f"--output=alone_{length}"]) == 0
        assert measured(folder) == measured(f"alone_{length}")
        rows.append(leave_one_out(read_records(folder / FILE), "fid_digits_20"))
    (values, paired), (others, as_paired) = rows
    assert len(values) == len(others) == 10 and values != others and paired == as_paired
    far = {"name": "far", "parameters": {"ema_length": {"values": [0.07, 0.005]}}}
    Path("far.yaml").write_text(yaml.safe_dump({**SWEEP, **far}))
    assert run(["sweep", "far.yaml", "--dry_run"]) == 2
    assert "sweep far: ema_length=0.005: --ema_length 0.005: too far from the lengths 0.05, 0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ema", "--ckpt_path", "trained", "--lengths", "0.3"], "--lengths 0.3: must lie between 0.0001 and 0.28"),
        (["ema", "--ckpt_path", "trained", "--lengths", "-1"], "--lengths -1: must lie between"),
        (["ema", "--ckpt_path", "trained", "--lengths", "1e-200"], "--lengths 1e-200: must lie between"),
        (["ema", "--ckpt_path", "trained", "--lengths", "nan"], "--lengths nan: must lie between"),
        (["ema", "--ckpt_path", "trained", "--lengths", "0.01"], "--lengths 0.01: too far from the lengths 0.05, 0.1 of 3"),
        (
            ["ema", "--ckpt_path", "trained", "--lengths", "0.1", "--step", "33"],
            "--step 33: there are averages of the steps",
        ),
        (["ema", "--ckpt_path", "trained", "--lengths", "x"], "--lengths x: must be numbers, as 0.05 0.1"),
        (["ema", "--ckpt_path", "digits/ddpm", "--lengths", "0.1"], "has kept no averages of several lengths; train with"),
        (["ema", "--ckpt_path", "none", "--lengths", "0.1"], "none: there is no such file"),
        (["ema", "--ckpt_path", "trained", "--lengths", "0.1", "--output", "trained"], "trained: already exists"),
        (["test", "--ckpt_path=digits/ncsn", "--ema_length=0.1"], "has kept no averages of several lengths"),
        (["test", "--ckpt_path=trained/last.ckpt", "--ema_length=0.5"], "--ema_length 0.5: must lie between"),
        (["test", "--ckpt_path=trained/last.ckpt", "--ema_length=1e-200"], "--ema_length 1e-200: must lie between"),
        (["fit", "--config=ncsn", "--ema.lengths=[0.5]"], "lengths=0.5: must lie between"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments, message, place, capsys):
    before = sorted(str(path) for path in place.rglob("*"))
    assert run(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert sorted(str(path) for path in place.rglob("*")) == before


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", "another model", "another run"])
def test_a_damaged_snapshot_is_named(damage, place, capsys):
    file = place / "trained/averages/step_0000016.pt"
    found = {"another model": {0.05: {"w": torch.zeros(2)}, 0.1: {}}, "another run": {0.2: {}}}
    if isinstance(damage, str):
        torch.save({"averages": found[damage]}, file)
    else:
        file.write_bytes(damage)
    assert run(["ema", "--ckpt_path", "trained", "--lengths", "0.07", "--output", "made"]) == 2
    assert "step_0000016.pt: " in capsys.readouterr().err and not (place / "made").exists()


def test_a_full_disk_is_one_line(place, monkeypatch, capsys):
    def full(content, stream):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(torch, "save", full)
    assert run(["ema", "--ckpt_path", "trained", "--lengths", "0.07", "--output", "made"]) == 1
    assert "made/ema_0.07.ckpt: No space left on device" in capsys.readouterr().err and not (place / "made").exists()


def test_averages_are_made_in_double_precision(place):
    """A sum over many snapshots has the rounding error of one number."""
    checkpoint = load_checkpoint("trained/last.ckpt")
    made = Averages(place / "trained/last.ckpt", checkpoint)
    parts = [{name: value.double() for name, value in made._read(n)[length].items()} for length, n in made.kept]
    (state,) = made.make(0.07)
    shares = combine(made.kept, 0.07, 40)[0]
    for name in parts[0]:
        exact = sum(share * part[name] for share, part in zip(shares, parts, strict=True))
        assert torch.equal(state[name], exact.float())
