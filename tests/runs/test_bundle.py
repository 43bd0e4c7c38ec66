"""Bundles: what is passed on draws the same samples, tells nothing of the machine, and is checked when it is read."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from lightning_score import ScoreModel
from lightning_score.cli import run
from lightning_score.errors import InputError
from lightning_score.runs.bundle import passed_on, read_bundle, without_machine, write_bundle
from lightning_score.runs.checkpoints import read_checkpoint
from lightning_score.runs.yaml_files import load


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "ncsn"
    write_bundle(folder, passed_on(read_checkpoint(checkpoint)), "# A model\n")
    return folder


@pytest.fixture
def copy(bundle, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in bundle.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_bundle_draws_the_samples_of_its_checkpoint(checkpoint, bundle):
    models = [ScoreModel.load_from_checkpoint(source) for source in (checkpoint, bundle, bundle / "model.safetensors")]
    first, *others = (model.sample(3, seed=5) for model in models)
    assert all(torch.equal(first, other) for other in others)


def test_a_model_of_any_training_step_loads_at_once(checkpoint, tmp_path):
    """Its schedule is not followed through all steps."""
    config, tensors, state = passed_on(read_checkpoint(checkpoint))
    write_bundle(tmp_path / "long", (config, tensors, state | {"step": 10**12}), "")
    assert ScoreModel.from_pretrained(tmp_path / "long").sample(1).isfinite().all()


def test_raw_weights_are_passed_on_instead_of_the_averages(checkpoint, tmp_path):
    given = read_checkpoint(checkpoint)
    write_bundle(tmp_path / "raw", passed_on(given, "raw"), "")
    found = read_bundle(tmp_path / "raw")["state_dict"]
    assert all(torch.equal(found[name], tensor) for name, tensor in given["current_model_state"].items())
    assert any(not torch.equal(found[name], tensor) for name, tensor in given["state_dict"].items())


def test_the_config_of_a_bundle_is_one_for_fit_and_for_the_commands(bundle, tmp_path):
    options = ["--num_samples=2", f"--output={tmp_path / 'drawn'}"]
    assert run(["predict", f"--ckpt_path={bundle}", *options]) == 0
    with pytest.raises(SystemExit) as end:
        run(["fit", f"--config={bundle / 'config.yaml'}", "--print_config"])
    assert not end.value.code


@pytest.mark.parametrize(
    ("name", "text", "left"),
    [
        ("path", "/home/me/my data/x.npy", "./x.npy"),
        ("path", "/scratch/photos/", "photos"),
        ("path", "~/x.npy", "./x.npy"),
        ("path", "C:\\Users\\me\\x.npy", "./x.npy"),
        ("path", "file:///home/me/x.npy", "./x.npy"),
        ("path", "https://me:secret@host/x.npy?token=1", "https://host/x.npy"),
        ("path", "package://mne/data/x.npy", "package://mne/data/x.npy"),
        ("note", "see /home/me/x.npy", "see x.npy"),
        ("key", "/entry/data", "/entry/data"),
        ("api_key", "abc", None),
        ("note", f"hf_{'a' * 30}", ""),
        ("note", "a / b, 1/2", "a / b, 1/2"),
    ],
)
def test_nothing_of_the_machine_is_passed_on(name, text, left):
    assert without_machine({"list": [{name: text}]}) == {"list": [{name: left}]}


def test_texts_that_look_like_numbers_stay_texts(checkpoint, tmp_path):
    given = read_checkpoint(checkpoint)
    texts = ["1e5", "1_0", "no", "1:30", "010", "null", "", " a", "- b", "é"]
    given["config"]["data"] = {"class_path": "lightning_score.Digits", "texts": texts}
    write_bundle(tmp_path / "b", passed_on(given), "")
    assert read_bundle(tmp_path / "b")["config"]["data"]["texts"] == texts
    assert load((tmp_path / "b" / "config.yaml").read_text())["data"]["texts"] == texts


def _tensors(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def _truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def _flipped(folder):
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def _bomb(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.gz").write_bytes(gzip.compress(bytes(1 << 24)))


def _foreign(folder):
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")


def _pickled(folder):
    torch.save({"a": torch.ones(2)}, folder / "model.safetensors")


def _damaged_state(folder):
    tensors, _ = _tensors(folder)
    save_file(tensors, folder / "model.safetensors", {"lightning_score": json.dumps({"format": 1, "step": "x"})})


def _newer(folder):
    tensors, metadata = _tensors(folder)
    newer = json.loads(metadata["lightning_score"]) | {"format": 99}
    save_file(tensors, folder / "model.safetensors", {"lightning_score": json.dumps(newer)})


def _large_config(folder):
    (folder / "config.yaml").write_text("a: " + "x" * 2_000_000)


def _tagged(folder):
    (folder / "config.yaml").write_text("model: !!python/object/apply:os.system [touch hacked]\n")


def _no_config(folder):
    (folder / "config.yaml").unlink()


def _function(folder):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["process"] = {"class_path": "os.system", "init_args": {"command": "touch hacked"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncated, "damaged or truncated"),
        (_flipped, "have changed"),
        (_bomb, "damaged or truncated"),
        (_foreign, "another program"),
        (_pickled, "damaged or truncated"),
        (_damaged_state, "damaged"),
        (_newer, "newer lightning_score"),
        (_large_config, "2,000,003 bytes"),
        (_tagged, "not a config"),
        (_no_config, "no such file"),
        (_function, "os.system"),
    ],
)
@pytest.mark.faults("a damaged or hostile bundle")
def test_damage_is_one_line(damage, message, copy, capsys, monkeypatch):
    monkeypatch.chdir(copy.parent)
    damage(copy)
    with pytest.raises(InputError, match=message):
        ScoreModel.load_from_checkpoint(copy)
    assert run(["predict", f"--ckpt_path={copy}", "--num_samples=2"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("hacked").exists() and sorted(path.name for path in copy.parent.iterdir()) == ["copy"]


def test_an_existing_folder_is_kept(checkpoint, copy):
    with pytest.raises(InputError, match="already exists"):
        write_bundle(copy, passed_on(read_checkpoint(checkpoint)), "")


QUICK = ["--trainer.max_steps=3", "--trainer.val_check_interval=3", "--samples.num_samples=4", "--evaluate.num_samples=4",
         "--model.sampler.grid.steps=3"]  # fmt: skip
OWN = """
from lightning_score import VP


class Mine(VP):
    def __init__(self, speed: float = 1.5):
        super().__init__(0.1, 10.0 * speed)
"""


def _predicted(source, output, *options):
    assert run(["predict", f"--ckpt_path={source}", "--num_samples=6", f"--output={output}", *options]) == 0
    with np.load(output / "samples.npz") as file:
        return dict(file)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["labels", "arrays with conditions", "a class of the user"])
def test_what_predict_needs_is_passed_on(kind, tmp_path, monkeypatch):
    """With the data gone, the bundle gives the samples of the checkpoint, in the units of the data, in another folder."""
    (tmp_path / "private").mkdir()
    monkeypatch.chdir(tmp_path / "private")
    random = np.random.default_rng(0)
    np.savez("data.npz", x=(random.standard_normal((80, 2, 16)) * 300 + 4000).astype(np.float32), c=random.random((80, 2)))
    arrays = ["--config=arrays", f"--data.path={tmp_path / 'private' / 'data.npz'}", "--data.key=x",
              "--data.condition=c", "--model.conditional=true"]  # fmt: skip
    words, options = {
        "labels": (["--config=conditional"], ["--labels=[3, 1]"]),
        "arrays with conditions": (arrays, ["--condition=[0.3, 0.7]"]),
        "a class of the user": (
            ["--config=vp_pc", "--model.process=my_own.Mine"],
            ["--trust=my_own"],
        ),
    }[kind]
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/my_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "parts")
    assert run(["fit", *words, *QUICK, "--name=passed", f"--runs={tmp_path / 'runs'}"]) == 0
    checkpoint = tmp_path / "runs/passed/latest/last.ckpt"
    shutil.rmtree(tmp_path / "private")
    monkeypatch.chdir(tmp_path)
    expected = _predicted(checkpoint, tmp_path / "expected", *options)
    assert run(["push", str(checkpoint), "me/passed", "--license=mit", f"--output={tmp_path / 'bundle'}"]) == 0
    shutil.rmtree(tmp_path / "runs")
    found = _predicted(tmp_path / "bundle", tmp_path / "found", *options)
    assert expected.keys() == found.keys() and all(np.array_equal(expected[name], found[name]) for name in expected)
    written = b"".join(file.read_bytes() for file in (tmp_path / "bundle").iterdir()).decode(errors="replace")
    assert str(tmp_path) not in written and "private" not in written
    if kind == "a class of the user":
        assert run(["predict", f"--ckpt_path={tmp_path / 'bundle'}"]) == 2
