"""The trained models in the package: found by name, small, and as good as their cards say."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from lightning_score import ScoreModel
from lightning_score.cli import run
from lightning_score.commands.configs import find_config
from lightning_score.runs.pretrained import FOLDER, find_checkpoint, pretrained
from lightning_score.runs.records import read_records
from lightning_score.sweep.spec import read_sweep_file

NAMES = ["digits/conditional", "digits/ddpm", "digits/ncsn", "digits/vp_pc", "fashion_mnist/edm16"]


def test_all_are_there_and_small_and_have_cards():
    """The card names the license of weights and data, the metric with its error, and the commands."""
    assert pretrained() == NAMES
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 3_000_000
    for name in NAMES:
        card = (FOLDER / name / "README.md").read_text()
        assert "license: mit" in card and "under" in card and "single precision" in card
        assert f"--ckpt_path {name}" in card and f"fit --config {name}\n" in card
        steps = int(re.search(r"\| trained \| ([\d,]+) steps", card).group(1).replace(",", ""))
        assert yaml.safe_load(find_config(name).read_text())["trainer"]["max_steps"] == steps
        assert not re.search(r"/(work|tmp|root|home)/", card + (FOLDER / name / "config.yaml").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_its_model_is_that_of_the_shipped_config(name):
    """The digits have the network and the data of their configs, which train for a shorter time with another objective."""
    ours, shipped = (yaml.safe_load(file.read_text()) for file in
                     (FOLDER / name / "config.yaml", find_config(name.removeprefix("digits/"))))  # fmt: skip

    def same(found, wanted):
        if isinstance(wanted, dict):
            assert all(same(found[key], part) for key, part in wanted.items())
        elif isinstance(wanted, str):
            found = found["class_path"] if isinstance(found, dict) else found
            assert str(found).rpartition(".")[2] == wanted.rpartition(".")[2] or wanted == "max_steps"
        else:
            assert found == wanted
        return True

    if name.startswith("digits/"):
        assert same(ours["model"]["network"], shipped["model"]["network"])
        assert same(ours["model"]["process"]["class_path"], shipped["model"]["process"]["class_path"])
        assert ours["data"]["init_args"]["data_range"] == shipped["data"]["init_args"]["data_range"]
        return
    for part in ("model", "data", "ema", "evaluate"):
        assert same(ours[part], {"class_path": shipped[part]} if isinstance(shipped[part], str) else shipped[part])


def test_one_in_the_working_folder_is_taken_instead(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("digits/ddpm/predict").mkdir(parents=True)  # results, not a model
    assert find_checkpoint("digits/ddpm") == FOLDER / "digits/ddpm" and capsys.readouterr().err == ""
    shutil.copytree(FOLDER / "digits/ddpm", "digits/ncsn")
    assert find_checkpoint("digits/ncsn") == Path("digits/ncsn")
    assert "the one in this folder is used" in capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    """An unknown name lists the known ones; weights alone are not resumed."""
    monkeypatch.chdir(tmp_path)
    assert run(["predict", "--ckpt_path=digits/nscn"]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in NAMES) and error.count("\n") == 1
    assert run(["fit", "--ckpt_path=digits/ncsn"]) == 2
    assert "holds weights without the state of the optimizer" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_samples_are_drawn_without_data_or_network(tmp_path, monkeypatch):
    """The command draws what the model in Python draws; the data of clothing are not there."""
    monkeypatch.chdir(tmp_path)
    assert run(["predict", "--ckpt_path=fashion_mnist/edm16", "--num_samples=2", "--model.sampler.grid.steps=2"]) == 0
    (drawn,) = Path("runs/fashion_mnist/edm16/predict").glob("*/samples.npz")
    assert drawn.is_file() and not Path("data").exists()
    model = ScoreModel.from_pretrained("digits/vp_pc")
    assert model.sample(2, seed=3).shape == (2, 1, 8, 8) and not model.training


@pytest.mark.slow
def test_its_card_is_true(tmp_path, monkeypatch):
    """The command of the card measures its number again, within a tenth of its error."""
    monkeypatch.chdir(tmp_path)
    (row,) = re.findall(r"^\| fid\S* \|.*$", (FOLDER / "digits/vp_pc/README.md").read_text(), re.MULTILINE)
    value, error = map(float, row.split("|")[2:4])
    assert run(["test", "--ckpt_path=digits/vp_pc", "--evaluate.num_samples=898", "--evaluate.neighbors=0"]) == 0
    (file,) = Path("runs/digits/vp_pc/test").glob("*/evaluations.jsonl")
    record = next(record for record in read_records(file) if record.metric == "fid_digits_898")
    assert record.value == pytest.approx(value, abs=0.1 * error) and record.step == 2600


def test_a_sweep_keeps_its_name():
    """The checkpoint of a sweep does not become a path of this machine."""
    sweep = read_sweep_file(str(find_config("eps", "sweeps")))
    assert sweep.arguments(sweep.grid()[0]).get("--ckpt_path") == ["digits/ncsn"]
