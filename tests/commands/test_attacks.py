"""Attacks by configs and checkpoints from elsewhere, by every command: each would leave a file if it succeeded."""

import http.client
import os
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lightning_score import ScoreModel
from lightning_score.cli import run
from lightning_score.commands.arguments import Arguments
from lightning_score.commands.base import IdleExperiment
from lightning_score.commands.configs import trusted_modules
from lightning_score.errors import InputError
from lightning_score.files import read_tensors
from lightning_score.metrics import ReferenceFile
from lightning_score.observations.files import read_array, read_observation
from lightning_score.report import page
from lightning_score.report.server import server
from lightning_score.runs.folders import check_name
from lightning_score.runs.trust import check_origin, trust_for
from lightning_score.training.optimization import arrange_as_parameters

MODULE = """
from pathlib import Path
Path("imported").touch()
from torch.optim import Adam
from lightning_score.networks import MLP, Network
from lightning_score.process import SigmaTable

def touch(*_, **__):
    Path("called").touch()
    return 1.0

def make_network(*_) -> Network:
    touch()

def make_optimizer(*_) -> Adam:
    touch()

class Wrong:
    def __init__(self, *_, **__):
        Path("made").touch()

    def __call__(self, *_):
        return touch()

    static = staticmethod(touch)

class Evil(SigmaTable):
    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 1.0, levels: int = 10):
        Path("made").touch()
        super().__init__(sigma_min, sigma_max, levels)
"""
SCHEDULES = "torch.optim.lr_scheduler"


def made(class_path, **init_args):
    return {"class_path": class_path, "init_args": init_args}


FUNCTIONS = {
    "a function as a parameter": ("lr_scheduler", made(f"{SCHEDULES}.LambdaLR", lr_lambda="attackers.touch")),
    "functions in a list": ("lr_scheduler", made(f"{SCHEDULES}.LambdaLR", lr_lambda=["attackers.touch"])),
    "a function of the standard library": ("lr_scheduler", made(f"{SCHEDULES}.LambdaLR", lr_lambda="os.mkdir")),
    "a method": ("lr_scheduler", made(f"{SCHEDULES}.MultiplicativeLR", lr_lambda="torch.nn.Module.apply")),
    "an optional function": ("lr_scheduler", made(f"{SCHEDULES}.CyclicLR", base_lr=0.1, max_lr=1, scale_fn="os.mkdir")),
    "what can be called, as a function": ("lr_scheduler", made(f"{SCHEDULES}.LambdaLR", lr_lambda=made("attackers.Wrong"))),
    "a function in place of a class": ("lr_scheduler", made("attackers.touch")),
    "a function's name": ("optimizer", "attackers.touch"),
    "a function that says what it makes": ("network", "attackers.make_network"),
    "such a function, with parameters": ("optimizer", made("attackers.make_optimizer", lr=1)),
    "a static method": ("process", made("attackers.Wrong.static")),
    "a class of another kind": ("process", made("attackers.Wrong")),
    "a class of another kind, where any value is allowed": (
        "lr_scheduler",
        made("lightning.pytorch.cli.ReduceLROnPlateau", monitor="x", factor=made("attackers.Wrong")),
    ),
    "a file of another config": ("process", "evil.yaml"),
    "a shell": ("network", made("os.system", command="touch called")),
}
"""What no config may make: a part of the model and its value."""
NAMES = {
    "a class of the right kind": ("process", made("attackers.Evil")),
    "its name alone": ("process", "attackers.Evil"),
    "inside a text": ("process", "{class_path: attackers.Evil}"),
    "inside a text, written otherwise": ("process", '{"class\\u005fpath": "attackers.Evil"}'),
    "inside JSON that not every reader of YAML takes": ("process", '{"class_path"\t: "attackers.Evil"}'),
    "inside a text that gives it twice": ("process", '{"class_path": "VP", "class_path": "attackers.Evil", "name": "evil"}'),
    "in a list in a text": ("guidance", made("lightning_score.guidance.Chain", parts="- attackers.Evil")),
    "its name alone, with the present values": ("process", "+attackers.Evil"),
    "a function, with the present values": ("optimizer", "++attackers.make_optimizer"),
    "deep inside": ("sampler", made("lightning_score.sampling.PredictorCorrector", grid=[{"x": made("attackers.Evil")}])),
    "a name among parameters": ("process", {"attackers.Evil": 1}),
    "a package's part": ("process", made("attackers.parts.Evil")),
    "a module that is not there": ("process", made("not_there.Evil")),
    "a module that opens a browser": ("process", made("antigravity.Evil")),
    "a program of torch": ("process", made("torch.utils.bottleneck.__main__.main")),
    "a part of torch that is not loaded": ("process", "torch.utils.bottleneck.__main__.Evil"),
    "code from the network": ("network", made("torch.hub.load", repo_or_dir="a/b", model="c")),
    "another module, through ours": ("network", made("lightning_score.tensors.os.system", command="touch called")),
    "a class of ours that is no part": ("network", made("lightning_score.tensors.ZipFile", file="made", mode="w")),
    "a list in the place of parameters": ("process", ["attackers.Evil"]),
}
"""What no checkpoint may name."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "attackers", raising=False)
    Path("attackers.py").write_text(MODULE)
    Path("evil.yaml").write_text("class_path: attackers.Evil\n")
    return tmp_path


@pytest.fixture(scope="module")
def config():
    """Of a small model, as fit writes it into a checkpoint."""
    settings = ["--data=GaussianMixture", "--model.network=MLP", "--model.process=SigmaTable", "--model.process.levels=10",
                "--model.process.sigma_min=0.01", "--model.process.sigma_max=1", "--model.optimizer=Adam"]  # fmt: skip
    experiment = IdleExperiment(settings)
    plain = yaml.safe_load(experiment.parser.dump(experiment.config, skip_none=False))
    return {key: plain[key] for key in ("model", "data", "ema", "samples", "evaluate")}


def ended(arguments):
    """The exit code of a command."""
    try:
        return run(arguments)
    except SystemExit as end:
        return end.code


def left():
    return [name for name in ("imported", "called", "made") if Path(name).exists()]


def checkpoint(config, place, part):
    """A checkpoint, and a run folder with it, that name a part."""
    config = {**config, "model": {**config["model"], place: part}}
    parts = {**config["model"], "shape": [2], "_instantiator": "lightning.pytorch.cli.instantiate_module"}
    state = {"state_dict": {}, "config": config, "hyper_parameters": parts, "global_step": 1, "loops": {}}
    state["pytorch-lightning_version"] = "2.6.0"
    Path("runs/evil/latest").mkdir(parents=True, exist_ok=True)
    for file in ("evil.ckpt", "runs/evil/latest/last.ckpt"):
        torch.save(state, file)
    Path("runs/evil/latest/config.yaml").write_text(yaml.safe_dump(config))
    settings = {"ckpt_path": {"value": "evil.ckpt"}, "model.sampler.steps": {"values": [1, 2]}}
    command = ["${interpreter}", "-m", "lightning_score", "test", "${args}"]
    Path("sweep.yaml").write_text(yaml.safe_dump({"method": "grid", "parameters": settings, "command": command}))


WAYS = {
    "predict": ["predict", "--ckpt_path=evil.ckpt"],
    "test": ["test", "--ckpt_path", "evil.ckpt"],
    "validate": ["validate", "--ckpt_path=evil.ckpt"],
    "fit": ["fit", "--ckpt_path=evil.ckpt"],
    "fit with a config": ["fit", "--config=toy", "--ckpt_path=evil.ckpt"],
    "resume": ["fit", "--ckpt_path=runs/evil/latest"],
    "resume the newest": ["fit", "--name=evil", "--ckpt_path=last"],
    "sweep": ["sweep", "sweep.yaml"],
    "gallery": ["gallery", "--ckpt_path=evil.ckpt"],
    "convert": ["convert", "--from", "lightning_score", "evil.ckpt", "out", "--to", "diffusers"],
}


@pytest.mark.faults("hostile parts of checkpoints", len(WAYS) + 1)
@pytest.mark.parametrize("attack", [*FUNCTIONS, *NAMES])
def test_a_checkpoint_imports_and_makes_nothing_but_parts_of_ours(attack, config, folder, capsys):
    """By every command, and in Python."""
    checkpoint(config, *(FUNCTIONS | NAMES)[attack])
    for way, arguments in WAYS.items():
        assert ended(arguments) == 2, way
        printed = capsys.readouterr().err.strip()
        assert printed.startswith("error: ") and "\n" not in printed and "allowlist" not in printed, (way, printed)
        assert attack in FUNCTIONS or "evil" in printed, (way, printed)
        assert not left(), way
    with pytest.raises(InputError):
        ScoreModel.load_from_checkpoint("evil.ckpt")
    assert not left() and not Path("out").exists()


@pytest.mark.faults("hostile parts of checkpoints, under names of older versions of Lightning")
@pytest.mark.parametrize("name", ["hparams", "module_arguments"])
def test_parameters_under_older_names_make_nothing(name, config, folder):
    checkpoint(config, "process", made("attackers.Evil"))
    state = torch.load("evil.ckpt", weights_only=True)
    state[name], state["hyper_parameters"] = state["hyper_parameters"], {}
    torch.save(state, "evil.ckpt")
    with pytest.raises(InputError):
        ScoreModel.load_from_checkpoint("evil.ckpt")
    assert not left()


@pytest.mark.faults("hostile parts of configs")
@pytest.mark.parametrize("attack", FUNCTIONS)
def test_a_config_makes_only_classes_of_the_declared_kind(attack, config, folder, capsys):
    """What a config of the user's own names may be imported: it is the user's."""
    place, part = FUNCTIONS[attack]
    with pytest.raises((InputError, SystemExit)):
        IdleExperiment(["--config", yaml.safe_dump({**config, "model": {**config["model"], place: part}})])
    assert not {"called", "made"} & set(left())
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.faults("hostile parts on the command line")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.lr_scheduler=LambdaLR", "--model.lr_scheduler.lr_lambda=attackers.touch"], "makes only classes"),
        (["--trainer.callbacks=LambdaCallback", "--trainer.callbacks.on_fit_start=attackers.touch"], "makes only classes"),
        (["--model.network=attackers.make_network"], "makes only classes"),
    ],
)
def test_an_option_gives_no_function(options, message, folder, capsys):
    assert ended(["fit", "--config=toy", *options]) == 2
    assert message in capsys.readouterr().err and not {"called", "made"} & set(left()) and not Path("runs").exists()


def test_schedule_makes_only_classes_too(folder, capsys):
    assert ended(["schedule", "--data=attackers.touch"]) == 2
    assert not {"called", "made"} & set(left())


def test_the_attackers_class_is_made_once_it_is_trusted(config, folder):
    """So the attack is one, and the way out works: on the command line, as the user's own part, and in Python."""
    checkpoint(config, "process", made("attackers.Evil"))
    with pytest.raises(InputError, match="weights do not fit"):
        ScoreModel.load_from_checkpoint("evil.ckpt", trust="attackers")
    assert left() == ["imported", "made"]
    with pytest.raises(InputError, match=r"trust=\['attackers'\]"):
        ScoreModel.load_from_checkpoint("evil.ckpt", trust="other")
    parts = {"process": made("attackers.Evil")}
    for options in (["--trust", "attackers"], ["--trust=a,attackers"], ["--model.network=attackers.Net"]):
        check_origin(parts, trusted_modules(Arguments.parse(["predict", *options])), "x")
    Path("mine.yaml").write_text("model:\n  network: {class_path: attackers.Net}\n")
    check_origin(parts, trusted_modules(Arguments.parse(["fit", "--config=mine.yaml"])), "x")
    assert trust_for(parts) == " --trust attackers"


def test_files_and_the_usual_packages_do_not_become_trusted(folder):
    Path("attackers.Payload").touch()
    given = ["predict", "--ckpt_path", "attackers.Payload", "--output=attackers.ckpt", "--model.optimizer=torch.optim.Adam"]
    assert trusted_modules(Arguments.parse(given)) == set()


def test_an_infinite_config_is_refused(folder):
    endless: list = []
    endless.append(endless)
    wide = ["x"]
    for _ in range(40):
        wide = [wide, wide]
    for value in (endless, wide, "x" * 1_000_000):
        with pytest.raises(InputError, match=r"values|letters"):
            check_origin({"a": value}, [], "x")


def test_python_refuses_a_damaged_checkpoint_like_the_command_line(config, folder):
    checkpoint(config, "guidance", None)
    whole = Path("evil.ckpt").read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"GaussianMixture")] ^= 1
    for damaged in (flipped, whole[: len(whole) // 2], whole[:0], b"text"):
        Path("evil.ckpt").write_bytes(damaged)
        with pytest.raises(InputError, match="not a readable checkpoint, damaged or truncated"):
            ScoreModel.load_from_checkpoint("evil.ckpt")
    with pytest.raises(InputError, match="no such file"):
        ScoreModel.load_from_checkpoint("none.ckpt")


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("called",)


@pytest.mark.faults("hostile files", 6)
def test_no_reader_of_files_runs_code_or_advises_it(folder):
    torch.save(Hostile(), "hostile.pt")
    np.save("hostile.npy", np.array([Hostile()]), allow_pickle=True)
    np.savez("hostile.npz", x=np.array([Hostile()]), mu=np.array([Hostile()]), sigma=np.zeros(1))
    for read, file in (
        (read_tensors, Path("hostile.pt")),
        (ScoreModel.load_from_checkpoint, "hostile.pt"),
        (read_array, "hostile.npy"),
        (read_array, "hostile.npz"),
        (read_observation, "hostile.npz"),
        (ReferenceFile, "hostile.npz"),
        (
            lambda path: run(["convert", "--from", "ddpm", path, "out"]) and (_ for _ in ()).throw(InputError("")),
            "hostile.pt",
        ),
    ):
        with pytest.raises(InputError) as refused:
            read(file)
        assert not any(word in str(refused.value) for word in ("weights_only", "safe_globals", "allow_pickle"))
        assert not left()


@pytest.mark.faults("archives that unpack to far more", 3)
def test_an_archive_that_unpacks_to_far_more_is_not_unpacked(folder, monkeypatch):
    monkeypatch.setattr("lightning_score.files.UNPACKED", 1 << 20)
    zeros = np.zeros(8 << 20, dtype=np.uint8)
    np.savez_compressed("bomb.npz", x=zeros, mu=zeros)
    torch.save({"state_dict": {}, "config": {}}, "small.ckpt")
    with zipfile.ZipFile("small.ckpt") as small, zipfile.ZipFile("bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in small.namelist():
            bomb.writestr(entry, small.read(entry))
        bomb.writestr("archive/data/0", zeros.tobytes())
    for read in (lambda: read_array("bomb.npz"), lambda: ReferenceFile("bomb.npz"), lambda: read_tensors(Path("bomb.ckpt")),
                 lambda: ScoreModel.load_from_checkpoint("bomb.ckpt")):  # fmt: skip
        with pytest.raises(InputError, match="unpacks to"):
            read()


BAD_NAMES = (
    "../../evil",
    "/tmp/evil",
    "a/b",
    "a\\b",
    "",
    ".",
    "..",
    ".hidden",
    "-x",
    "latest",
    "a\nb",
    "a\0b",
    " a",
    "x" * 201,
)


@pytest.mark.faults("names that lead elsewhere", len(BAD_NAMES))
def test_a_name_is_that_of_one_folder(config, folder, capsys):
    for name in BAD_NAMES:
        with pytest.raises(InputError, match="must be the name of one folder"):
            check_name(name, "--name")
    for name in ("ncsn", "my run", "$(touch called)", "größer", "x" * 200, "a..b"):
        check_name(name, "--name")
    Path("inside").mkdir()
    os.chdir("inside")
    checkpoint(config, "guidance", None)
    state = torch.load("evil.ckpt", weights_only=True)
    named = {**state["config"], "name": "../../evil"}
    torch.save({**state, "config": named, "optimizer_states": []}, "evil.ckpt")
    sweep = {**yaml.safe_load(Path("sweep.yaml").read_text())}
    Path("named.yaml").write_text(yaml.safe_dump({**sweep, "name": "../../evil"}))
    for arguments in (["fit", "--config=toy", "--name=../../evil"], ["fit", "--ckpt_path=evil.ckpt"],
                      ["sweep", "named.yaml"], ["sweep", "sweep.yaml", "--name=../../evil"], ["sweep", "--wandb=a/b/.."],
                      ["fit", "--ckpt_path=last", "--name=../../evil"]):  # fmt: skip
        assert ended(arguments) == 2
        assert "must be the name of one folder" in capsys.readouterr().err, arguments
    assert not [path for path in folder.rglob("evil") if not path.is_relative_to(folder / "inside" / "runs")]


def test_a_checkpoint_makes_no_folder_for_its_data_elsewhere(config, folder, capsys):
    for key, value in (("cache", "/nowhere/cache"), ("root", "../../data")):
        data = made("lightning_score.data.FashionMNIST", **{key: value})
        checkpoint({**config, "data": data}, "guidance", None)
        assert ended(["test", "--ckpt_path=evil.ckpt"]) == 2
        assert f"give --data.{key} FOLDER" in capsys.readouterr().err


SECRET = "root:x:secret"


@pytest.fixture
def linked(folder):
    """Runs with links to a secret in every file that a report reads."""
    Path("secret").write_text(SECRET)
    for k, name in enumerate(("config.yaml", "metrics.csv", "run.json", "evaluations.jsonl", "langevin.jsonl")):
        run_folder = Path(f"runs/{k}/2026")
        run_folder.mkdir(parents=True)
        (run_folder / "config.yaml").write_text("name: x\n")
        (run_folder / name).unlink(missing_ok=True)
        (run_folder / name).symlink_to(Path("secret").resolve())
    pictures = Path("runs/pictures/2026/samples")
    pictures.mkdir(parents=True)
    (pictures.parent / "config.yaml").write_text("name: x\n")
    (pictures / "step_1.png").symlink_to(Path("secret").resolve())
    (pictures.parent / "score").symlink_to(folder)
    Path("step_2.png").write_text(SECRET)
    Path("runs/sweeps/s").mkdir(parents=True)
    Path("runs/sweeps/s/sweep.yaml").write_text("method: grid\n")
    Path("runs/sweeps/s/summary.md").symlink_to(Path("secret").resolve())
    return Path("runs")


@pytest.mark.faults("links out of the folder of runs", 8)
def test_a_report_shows_nothing_from_outside_of_the_runs(linked):
    data, runs = page.page_data(linked)
    assert SECRET not in repr(data) + repr(runs)
    assert not any(each.pictures for each in runs)
    assert sum("leads out" in problem for each in runs for problem in each.problems) == 7
    assert "leads out" in data["sweeps"][0]["problem"]


@pytest.mark.faults("requests for files from outside", 9)
def test_the_server_gives_nothing_but_the_pictures_of_the_page(linked):
    from PIL import Image

    picture = linked / "pictures/2026/samples/step_3.png"
    Image.new("L", (4, 4)).save(picture)
    with server(linked, "runs", 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        port = serving.server_address[1]

        def get(path, host=f"127.0.0.1:{port}"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", path, headers={"Host": host})
            answer = connection.getresponse()
            return answer.status, answer.read()

        assert serving.server_address[0] == "127.0.0.1"
        status, body = get("/data.json")
        (address,) = {name for name in body.decode().split('"') if name.startswith("/picture/")}
        assert status == 200 and get(address)[0] == 200
        for path in ("/secret", "/../secret", "/picture/../../secret", "/%2e%2e/secret", "//etc/passwd",
                     "/picture/%2fetc%2fpasswd", "/runs/pictures/2026/config.yaml"):  # fmt: skip
            assert get(path)[0] == 404
        assert get("/data.json", "attacker.example")[0] == get("/data.json", f"attacker.example:{port}")[0] == 403
        picture.unlink()
        picture.symlink_to(Path("secret").resolve())
        status, body = get(address)
        assert status == 404 and SECRET.encode() not in body
        serving.shutdown()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"config": {"model": {"process": torch.ones(2)}}}, "its config holds more than numbers, texts, lists and mappings"),
        ({"state_dict": {3: torch.ones(1)}}, "its state_dict has names that are not text"),
        ({"config": {"name": "\x1b[2J"}}, "error: --name"),
        ({"config": {"ema": {"decay": "\x1b[2J"}}}, "error: ema.decay=?[2J: must be a number"),
    ],
)
def test_a_checkpoint_of_other_values_is_one_plain_line(part, message, config, folder, capsys):
    torch.save({"state_dict": {}, **part, "config": {**config, **part.get("config", {})}}, "evil.ckpt")
    assert ended(WAYS["predict"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and line.isprintable()


def test_state_of_another_shape_is_not_given_to_a_fused_optimizer():
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.Adam([weight], fused=True)
    optimizer.register_load_state_dict_post_hook(arrange_as_parameters)
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][0]["exp_avg"] = torch.ones(1)
    with pytest.raises(ValueError, match="exp_avg of shape"):
        optimizer.load_state_dict(state)
