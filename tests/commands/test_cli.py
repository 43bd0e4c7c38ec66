"""The command line: fit, every command from the checkpoint alone, and clear errors."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_score import ScoreModel
from lightning_score.__main__ import __doc__ as HELP
from lightning_score.cli import COMMANDS, WITHOUT_TRAINER, run
from lightning_score.commands.configs import find_config, shipped
from lightning_score.errors import InputError
from lightning_score.runs.pretrained import FOLDER

CONFIGS = sorted(path.stem for path in shipped().glob("*.yaml") if path.stem not in ("arrays", "images", "ddo"))
"""Those on data that the package embeds; the others are in test_recipes.py, and ddo needs samples."""
TABLE = ["--model.sampler.grid=ProcessTable", "--model.sampler.denoise=LastMean"]
QUICK = ["--samples.num_samples=9", "--evaluate.num_samples=40", "--model.sampler.steps=2"]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_shipped_config_survives_a_fast_dev_run(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["fit", "--config", config, "--trainer.fast_dev_run=true"]) == 0
    assert not list(tmp_path.iterdir()), "a fast_dev_run leaves nothing behind"


def test_a_model_is_refined_with_its_own_samples(tmp_path, monkeypatch, capsys):
    """Without them, or without the model, one line says what to do, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    assert run(["predict", "--ckpt_path=digits/ddpm", "--num_samples=9", "--output=drawn"]) == 0
    quick = ["fit", "--config=ddo", "--trainer.fast_dev_run=true"]
    assert run([*quick, "--model.objective.samples=drawn/samples.npz"]) == 0
    capsys.readouterr()
    for wrong, message in (
        ([], "needs samples of the model from which training starts"),
        (["--model.objective.samples=drawn/samples.npz", "--model.start_from=null"], "give its checkpoint"),
        (["--model.objective.samples=drawn/samples.npz", "--model.network.dropout=0.1"], "set model.network.dropout=0"),
    ):
        assert run([*quick, *wrong]) == 2
        assert message in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["drawn"]


@pytest.mark.parametrize("name", ["ncsn", "ncsn.yaml", "configs/ncsn.yaml"])
def test_configs_are_found_by_short_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == shipped() / "ncsn.yaml"
    Path("ncsn.yaml").write_text("{}")
    assert find_config("ncsn.yaml") == Path("ncsn.yaml"), "a file of the user's comes first"
    assert find_config("digits/ddpm") == FOLDER / "digits/ddpm/config.yaml", "of a trained model"


def test_a_run_has_its_folder(trained):
    assert {"config.yaml", "metrics.csv", "last.ckpt", "best.ckpt", "samples"} <= {p.name for p in trained.iterdir()}
    assert trained.is_symlink() and trained.resolve().parent == trained.parent.resolve()
    assert sorted(p.name for p in (trained / "samples").iterdir()) == ["step_0000020.png", "step_0000030.png"]
    picture = Image.open(trained / "samples" / "step_0000030.png")
    assert picture.mode == "L" and min(picture.size) >= 3 * 48


def test_a_run_keeps_what_it_printed_and_how_busy_the_machine_was(trained):
    printed = (trained / "console.log").read_text()
    assert printed.startswith("$ python -m lightning_score fit ") and "finished 30 steps" in printed
    assert printed.count("training: ") == 1 and "30/30" in printed  # the last state of the bar
    rows = list(csv.DictReader((trained / "system.csv").open()))
    assert rows[-1]["step"] == "30" and all(float(row["memory_gb"]) > 0.1 for row in rows)
    assert not [name for name in csv.DictReader((trained / "metrics.csv").open()).fieldnames if "cpu" in name]


def test_metrics_have_their_names(trained):
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    logged = {key for row in rows for key, value in row.items() if value}
    assert {
        "train/loss",
        "train/lr",
        "val/loss",
        "val/fid_digits_40",
        "val/fid_digits_40_floor",
        "val/fid_digits_40_n",
    } <= logged
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert losses[-1] < losses[0]
    evaluations = [row for row in rows if row["val/fid_digits_40"]]
    assert len(evaluations) == 2 and float(evaluations[-1]["val/nfe"]) == 21, "the last weights are measured too"


def test_all_that_belongs_to_a_validation_is_at_one_step(trained):
    """The number of optimizer steps done: in rows, records, pictures; after the last step, too."""
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    found = {"rows": {int(row["step"]) for row in rows if any(row[key] for key in row if key.startswith("val/"))}}
    for file in trained.glob("*.jsonl"):
        found[file.name] = {json.loads(line)["step"] for line in file.read_text().splitlines()}
    for folder in {file.parent for file in trained.glob("*/step_*.png")}:
        found[folder.name] = {int(file.stem.removeprefix("step_")) for file in folder.iterdir()}
    assert set(found) >= {"evaluations.jsonl", "langevin.jsonl", "samples", "progress", "langevin", "loss_per_sigma"}
    assert all(steps == {20, 30} for steps in found.values()), found
    training = [int(row["step"]) for row in rows if row["train/loss"]]
    assert training and training[-1] == 30 and len(set(training)) == len(training)


def test_a_short_fit_lowers_loss_and_distance(tmp_path):
    options = ["--trainer.max_steps=120", "--trainer.val_check_interval=40", "--ema.decay=0.9"]
    options += ["--model.network.channels=16", "--model.network.multipliers=[1]", "--model.sampler=PredictorCorrector",
                "--model.sampler.grid=Karras", "--model.sampler.grid.steps=20", "--evaluate.num_samples=200",
                "--samples.num_samples=0", "--trainer.log_every_n_steps=20", "--trainer.callbacks=null"]  # fmt: skip
    assert run(["fit", "--config", "ncsn", f"--runs={tmp_path}", *options]) == 0
    rows = list(csv.DictReader((tmp_path / "ncsn" / "latest" / "metrics.csv").open()))
    for name, factor in (("train/loss", 0.8), ("val/loss", 0.9), ("val/fid_digits_200", 1)):
        values = [float(row[name]) for row in rows if row[name]]
        assert values[-1] < factor * values[0], (name, values)


def test_the_last_checkpoint_is_the_last_and_the_best_the_best(tmp_path):
    """Also where the last is not the best: here the learning rate ruins the model."""
    options = ["--trainer.max_steps=30", "--trainer.val_check_interval=10", "--model.sampler.steps=1", "--ema.decay=0.0"]
    options += [
        "--model.network.channels=8",
        "--model.optimizer.lr=1.0",
        "--evaluate.features=null",
        "--samples.num_samples=0",
        "--model.lr_scheduler=null",
        "--trainer.callbacks=null",
    ]
    assert run(["fit", "--config", "ncsn", f"--runs={tmp_path}", *options]) == 0
    latest = tmp_path / "ncsn" / "latest"
    rows = [row for row in csv.DictReader((latest / "metrics.csv").open()) if row["val/loss"]]
    losses = [float(row["val/loss"]) for row in rows]
    steps = {name: torch.load(latest / f"{name}.ckpt", weights_only=True)["global_step"] for name in ("last", "best")}
    assert steps == {"last": 30, "best": 10 * (1 + losses.index(min(losses)))}


def test_the_checkpoint_alone_rebuilds_the_model(trained):
    torch.load(trained / "last.ckpt", weights_only=True)
    model = ScoreModel.load_from_checkpoint(trained / "last.ckpt", weights_only=True)
    assert model.sampler.steps == 2 and model.shape == (1, 8, 8)
    samples = model.sample(5, seed=3)
    assert samples.shape == (5, 1, 8, 8)
    torch.testing.assert_close(samples[2:4], torch.stack([model.draw([k], 3).x[0] for k in (2, 3)]))


def test_predict_writes_a_grid_and_an_array(trained, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["predict", f"--ckpt_path={trained}/last.ckpt", "--num_samples=64", f"--output={output}"]
    assert run([*arguments, "--batch_size=40"]) == 0
    arrays = np.load(output / "samples.npz")
    assert arrays["images"].shape == (64, 8, 8, 1) and arrays["images"].dtype == np.uint8 and "labels" not in arrays
    model = ScoreModel.load_from_checkpoint(trained / "last.ckpt", weights_only=True)
    np.testing.assert_allclose(arrays["x"], model.sample(64, seed=0).numpy(), rtol=1e-4, atol=1e-4)
    assert Image.open(output / "samples.png").size == (8 * 50 + 2, 8 * 50 + 2)
    assert "samples.png" in capsys.readouterr().out
    assert run(arguments) == 2, "nothing is overwritten"


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_needs_the_checkpoint_alone(command, trained, tmp_path, capsys):
    output = tmp_path / "out"
    assert run([command, f"--ckpt_path={trained}/last.ckpt", f"--output={output}"]) == 0
    prefix = "val" if command == "validate" else "test"
    (row,) = csv.DictReader((output / "metrics.csv").open())
    training = [r for r in csv.DictReader((trained / "metrics.csv").open()) if r["val/fid_digits_40"]][-1]
    assert float(row[f"{prefix}/fid_digits_40"]) == pytest.approx(float(training["val/fid_digits_40"]), rel=1e-3)
    assert float(row[f"{prefix}/loss"]) == pytest.approx(float(training["val/loss"]), rel=1e-4)
    assert "a perfect model scores" in capsys.readouterr().out


def test_options_override_the_checkpoint(trained, tmp_path):
    for name, options, nfe in (
        ("a", ["--model.sampler.steps=3"], 31),
        (
            "b",
            ["--model.sampler=PredictorCorrector", "--model.sampler.corrector=Langevin", *TABLE],
            19,
        ),
    ):
        arguments = ["predict", f"--ckpt_path={trained}/last.ckpt", "--num_samples=4", f"--output={tmp_path / name}"]
        assert run([*arguments, *options]) == 0
        assert float(np.load(tmp_path / name / "samples.npz")["nfe"]) == nfe


def test_a_ddpm_checkpoint_samples_with_annealed_langevin(tmp_path):
    quick = ["--trainer.max_steps=2", "--trainer.val_check_interval=100", "--samples.num_samples=0"]
    quick += ["--evaluate.features=null", "--model.process.steps=50", "--model.process.beta_max=0.2"]
    assert run(["fit", "--config=ddpm", f"--runs={tmp_path}", *quick]) == 0
    options = ["--model.sampler=+AnnealedLangevin", "--model.sampler.steps=1", "--model.sampler.step_size=1.0e-5"]
    output, checkpoint = tmp_path / "out", tmp_path / "ddpm" / "latest" / "last.ckpt"
    assert run(["predict", f"--ckpt_path={checkpoint}", f"--output={output}", "--num_samples=4", *options]) == 0
    assert float(np.load(output / "samples.npz")["nfe"]) == 22  # at the 21 levels of the config's grid, and its denoising


def test_resuming_continues_from_the_step_of_the_checkpoint(trained, tmp_path):
    arguments = ["fit", f"--ckpt_path={trained}/last.ckpt", f"--runs={tmp_path}", "--trainer.max_steps=40",
                 "--trainer.callbacks=null"]  # fmt: skip
    assert run([*arguments, "--trainer.val_check_interval=40", "--trainer.check_val_every_n_epoch=null"]) == 0
    assert torch.load(tmp_path / "ncsn" / "latest" / "last.ckpt", weights_only=True)["global_step"] == 40


def test_the_run_config_reproduces_the_run(trained, tmp_path):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["sampler"]["init_args"]["steps"] == 2 and config["name"] == "ncsn"
    unmeasured = ["--trainer.callbacks=null", "--evaluate.features=null"]  # which changes nothing
    assert run(["fit", f"--config={trained}/config.yaml", f"--runs={tmp_path}", *unmeasured]) == 0
    mine, theirs = (torch.load(p / "last.ckpt", weights_only=True) for p in (tmp_path / "ncsn/latest", trained))
    for name, value in theirs["current_model_state"].items():
        torch.testing.assert_close(mine["current_model_state"][name], value, rtol=1e-4, atol=1e-5)


OWN = """
import torch
from torch import nn
from lightning_score import NoiseProcess, Network, ImageData
from lightning_score.data.base import Examples, Splits


class Ramp(NoiseProcess):
    def log_alpha(self, t):
        return torch.log1p(-0.99 * t)

    def sigma(self, t):
        return t


class Small(Network):
    def __init__(self, shape, num_classes=0, width=8):
        super().__init__(shape, num_classes)
        self.layers = nn.Sequential(nn.Conv2d(shape[0] + 1, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, shape[0], 1))

    def forward(self, x, noise_label, cond=None):
        return self.layers(torch.cat([x, noise_label[:, None, None, None].expand(-1, 1, *x.shape[2:])], 1))


class Stripes(ImageData):
    shape = (3, 6, 4)

    def load(self):
        images = torch.randint(256, (100, 3, 6, 1), dtype=torch.uint8).expand(-1, -1, -1, 4).contiguous()
        labels = torch.zeros(100, dtype=torch.long)
        return Splits(Examples(images[:80], labels[:80]), Examples(images[80:], labels[80:]))
"""


def test_network_process_and_data_of_the_users_own(tmp_path, monkeypatch, capsys):
    """In a file of their own, by class path; the checkpoint finds them again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("own_parts.py").write_text(OWN)
    parts = ["--model.network=own_parts.Small", "--model.network.width=5", "--model.process=own_parts.Ramp"]
    parts += ["--data=own_parts.Stripes", "--data.batch_size=20", "--trainer.max_steps=4"]
    grid = ["--model.sampler.grid=Uniform", "--model.sampler.grid.steps=3"]
    assert run(["fit", "--name=mine", *parts, "--model.sampler=PredictorCorrector", *grid]) == 0
    predict = ["predict", "--ckpt_path=runs/mine/latest/last.ckpt", "--num_samples=5", "--output=out"]
    assert run(predict) == 2 and "add --trust own_parts" in capsys.readouterr().err
    assert run([*predict, "--trust=own_parts"]) == 0
    assert np.load("out/samples.npz")["images"].shape == (5, 6, 4, 3)


def test_bare_help_lists_the_commands_without_importing_torch():
    code = "import sys, lightning_score.__main__ as m; sys.argv[1:] = ['--help']; m.main(); print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == HELP + "False\n"
    listed = [line.split()[0] for line in HELP.split("commands:\n")[1].split("\n\n")[0].splitlines()]
    assert sorted(listed) == sorted(COMMANDS)
    assert all(f" {name}" in HELP.split("configs are")[1] for name in CONFIGS)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in WITHOUT_TRAINER])
def test_help_shows_the_options_of_the_command(command, capsys):
    with pytest.raises(SystemExit) as stop:
        run([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "--ema.decay" in text and "--ckpt_path" in text
    assert ("--num_samples" in text.split()) == (command == "predict")


@pytest.mark.parametrize("command", WITHOUT_TRAINER)
def test_help_of_a_command_without_a_trainer(command, capsys):
    with pytest.raises(SystemExit) as stop:
        run([command, "--help"])
    text = capsys.readouterr().out
    own = {"benchmark": "--runs", "convert": "OUT", "sweep": "--storage"}.get(command, "--output")
    assert stop.value.code == 0 and own in text
    assert ("--trainer" in text) == (command == "tune")  # whose first screen is shorter


class TestBadInput:
    """Each mistake: exit code 2, one line that names the value, and no run folder."""

    def expect(self, arguments, *words):
        try:
            code = run(arguments)
        except SystemExit as stop:
            code = stop.code
        lines = self.capsys.readouterr().err.splitlines()
        assert code == 2, lines
        (line,) = [line for line in lines if line.startswith("error: ")]
        assert all(word in line for word in words), line
        assert not Path("runs").exists(), "a failed start leaves no run behind"

    @pytest.fixture(autouse=True)
    def inside(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        self.capsys = capsys

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--trainer.max_step=3"], ["trainer.max_step", "Did you mean --trainer.max_steps"]),
            (["--model.sampler.step_siz=3"], ["step_siz", "Did you mean", "step_size"]),
            (["--model.sampler.step_size=abc"], ["step_size=abc: must be a number, auto or a list"]),
            (["--model.sampler.step_size=-1.0"], ["step_size=-1.0", "above 0"]),
            (["--model.sampler.step_size=0.5"], ["step_size=0.5", "diverges", "0.0018"]),
            (["--model.sampler.steps=0"], ["steps=0", "at least one"]),
            (["--model.process.sigma_min=5.0"], ["sigma_min=5.0", "sigma_min < sigma_max"]),
            (["--model.process.levels=0"], ["levels=0"]),
            (["--model.process=VP"], ["VP is a continuous process", "BetaTable"]),
            (["--model.process=Foo"], ["model.process=Foo", "BetaChain, BetaTable, Cosine, ", "SubVP, VE, VP"]),
            (["--model.sampler.grid=Foo"], ["Foo", "Geometric, Given, Karras, ", "ProcessTable, "]),
            (["--model.network.channels=33"], ["channels=33"]),
            (["--model.network=MLP"], ["MLP"]),
            (["--data.batch_size=5000"], ["batch_size=5000", "1437"]),
            (["--data.data_range=[1,0]"], ["data_range"]),
            (["--data.batch_size=x"], ["batch_size=x: must be a whole number"]),
            (["--model.sampler.clip=3"], ["clip=3: must be a list or null"]),
            (["--model.optimizer.lr=fast"], ["lr=fast: must be a number"]),
            (["--model.optimizer.lr=-1"], ["optimizer", "Invalid learning rate: -1"]),
            (["--model.lr_scheduler.start_factor=3"], ["lr_scheduler", "Starting multiplicative factor"]),
            (["--model.compile=fast"], ["compile=fast: must be default, reduce-overhead, max-autotune or null"]),
            (["--model.sampler.initial.low=3"], ["initial.low=3: of which class?", "FromFile, NormalNoise, Prior, "]),
            (["--trainer.devices=none"], ["devices", "int > 0"]),
            (["--trainer.accelerator=tpu"], ["torch_xla"]),
            (["--ema.decay=1.5"], ["decay", "1.5"]),
            (["--evaluate.num_samples=1"], ["num_samples=1"]),
            (
                [
                    "--model.sampler=PredictorCorrector",
                    "--model.sampler.denoise=Tweedie",
                    "--model.sampler.grid=ProcessTable",
                ],
                ["Tweedie"],
            ),
        ],
    )
    def test_fit(self, options, words):
        self.expect(["fit", "--config", "ncsn", *options], *words)

    def test_unknown_config(self):
        self.expect(["fit", "--config", "nscn"], "nscn", "ncsn")

    def test_no_config(self):
        self.expect(["fit"], "model.network", "--config ncsn")

    def test_unknown_command(self):
        self.expect(["sampel"], "sampel", "predict")

    @pytest.mark.parametrize("command", ["validate", "test", "predict"])
    def test_no_checkpoint(self, command):
        self.expect([command], "--ckpt_path")

    def test_an_output_folder_that_cannot_be_written(self):
        Path("file").write_text("")
        self.expect(["fit", "--config", "ncsn", "--runs=file/runs"], "file/runs", "cannot be written")

    @pytest.mark.slow
    def test_checkpoints(self, trained):
        whole = (trained / "last.ckpt").read_bytes()
        Path("half.ckpt").write_bytes(whole[: len(whole) // 2])
        Path("text.ckpt").write_text("hello")
        torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, "other.ckpt")
        for path, word in (
            ("none.ckpt", "no such file"),
            (".", "folder"),
            ("half.ckpt", "truncated"),
            ("text.ckpt", "truncated"),
            ("other.ckpt", "another model"),
        ):
            self.expect(["predict", f"--ckpt_path={path}"], path, word)

    def test_a_checkpoint_that_would_run_code_does_not(self):
        class Hostile:
            def __reduce__(self):
                return os.mkdir, ("owned",)

        torch.save({"state_dict": {}, "config": Hostile()}, "hostile.ckpt")
        self.expect(["predict", "--ckpt_path=hostile.ckpt"], "hostile.ckpt")
        assert not Path("owned").exists()

    def test_weights_that_do_not_fit_the_options(self, trained):
        arguments = [f"--ckpt_path={trained}/last.ckpt", "--output=out"]
        self.expect(["predict", *arguments, "--model.network.channels=64"], "size mismatch")
        assert not Path("out").exists()

    def test_a_wrong_value_in_a_list(self, trained):
        options = [f"--ckpt_path={trained}/last.ckpt", "--output=out", "--labels=[1,b]"]
        self.expect(["predict", *options], "labels=[1, 'b']: b must be a whole number")

    @pytest.mark.parametrize("option", ["num_samples=0", "batch_size=0", "seed=-1"])
    def test_predict(self, option, trained):
        self.expect(["predict", f"--ckpt_path={trained}/last.ckpt", "--output=out", f"--{option}"], option.split("=")[0])
        assert not Path("out").exists()


def test_a_bug_is_not_hidden_as_a_mistake(monkeypatch):
    import lightning_score.cli as cli

    def broken(arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_run", broken)
    with pytest.raises(ZeroDivisionError):
        run(["fit"])


def test_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)


@pytest.mark.slow
def test_without_key_and_home_the_run_is_on_wandb_offline(tmp_path):
    """Loss, learning rate, distance, picture and the whole config, without a prompt."""
    environment = {"HOME": "/proc/nonexistent", "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    options = ["--trainer.max_steps=4", "--trainer.val_check_interval=4", "--trainer.log_every_n_steps=2", *QUICK,
               "--trainer.callbacks=null"]  # fmt: skip
    command = [sys.executable, "-m", "lightning_score", "fit", "--config=ncsn", *options]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "predict --ckpt_path runs/ncsn/latest/last.ckpt" in done.stdout and "a perfect model scores" in done.stdout
    (record,) = tmp_path.glob("runs/ncsn/latest/wandb/offline-run-*/*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(record)]
    lines = subprocess.run(inspect, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    records = [json.loads(line) for line in lines]
    history = {key for r in records if r["type"] == "history" for key in r["history"]["item"]}
    assert {"train/loss", "train/lr", "val/loss", "val/fid_digits_40", "val/fid_digits_40_floor"} <= history
    assert any(key.startswith("samples") for key in history)
    config = {key: value for r in records if r["type"] == "config" for key, value in r["config"]["update"].items()}
    assert config["model"]["sampler"]["init_args"]["step_size"] == 4.5e-4
