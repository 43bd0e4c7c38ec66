"""No code that others wrote runs, nothing passes through a shell, and secrets stay where they are."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from litdata import StreamingDataset, optimize

from lightning_score import ScoreModel
from lightning_score.cli import run
from lightning_score.data import ImageStream
from lightning_score.errors import InputError

ROOT = Path(__file__).parent.parent
SECRET = "5ec2e7" + "c0ffee" * 5 + "5ec2"
QUICK = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--evaluate.features=null", "--samples.num_samples=2",
         "--trainer.callbacks=null", "--model.sampler.steps=1"]  # fmt: skip


class Hostile:
    """Its pickle makes a file where it is read."""

    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.faults("hostile configs in checkpoints", 2)
@pytest.mark.parametrize(
    "part",
    [
        {"class_path": "os.system", "init_args": {"command": "touch pwned"}},
        {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "pwned"]}},
        {"class_path": "builtins.exec", "init_args": {"source": "open('pwned', 'w')"}},
        {"class_path": "torch.load", "init_args": {"f": "hostile.pt", "weights_only": False}},
        "$(touch pwned); `touch pwned`",
        "!!python/object/apply:os.system ['touch pwned']",
    ],
    ids=str,
)
@pytest.mark.parametrize("place", ["network", "process", "sampler", "optimizer", "objective"])
def test_a_checkpoint_that_names_something_else_than_a_model_is_refused(place, part, checkpoint, folder, capsys):
    torch.save(Hostile(), "hostile.pt")
    state = torch.load(checkpoint, weights_only=True)
    state["config"]["model"][place] = part
    torch.save(state, "other.ckpt")
    try:
        code = run(["predict", "--ckpt_path=other.ckpt", "--num_samples=1", "--output=out"])
    except SystemExit as end:
        code = end.code
    assert code == 2 and not Path("pwned").exists()
    assert "Traceback" not in capsys.readouterr().err
    state["hyper_parameters"][place] = part
    torch.save(state, "other.ckpt")
    with pytest.raises((Exception, SystemExit)):
        ScoreModel.load_from_checkpoint("other.ckpt")
    assert not Path("pwned").exists()


@pytest.mark.faults("hostile values in configs", 3)
@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['touch pwned']", "$(touch pwned)", "`touch pwned`"])
def test_values_are_values(text, folder):
    """In a config, a sweep and a name, which become files and processes."""
    Path("own.yaml").write_text(f"name: {text}\n")
    Path("sweep.yaml").write_text(f"name: x\nmethod: grid\nparameters:\n  seed_everything: {{values: [{text}]}}\n")
    for arguments in (
        ["fit", "--config=own.yaml"],
        ["sweep", "sweep.yaml"],
        ["fit", "--config=ncsn", f"--name={text}", *QUICK],
    ):
        try:
            run(arguments)
        except SystemExit as end:
            assert end.code
        assert not list(Path().rglob("pwned"))


@pytest.mark.faults("hostile pickles")
def test_pickles_in_chunks_are_not_read(folder):
    """litdata itself would read them."""
    optimize(
        hostile_item, list(range(40)), output_dir="chunks", chunk_size=10, num_workers=1, verbose=False, start_method="fork"
    )
    with pytest.raises(InputError, match="contain pickles"):
        ImageStream("chunks", (1, 8, 8), held_out=2, num_workers=0).splits  # noqa: B018
    assert not Path("pwned").exists()
    StreamingDataset("chunks")[0]
    assert Path("pwned").exists(), "the pickle is hostile indeed"


def hostile_item(k):
    """An item for the chunks that only a pickle can hold."""
    return {"x": Hostile()}


@pytest.mark.slow
@pytest.mark.faults("secrets looked for")
def test_the_key_of_wandb_stays_where_it_is(folder, monkeypatch, capsys):
    """Neither in what is printed nor in any file: configs, checkpoints, logs, W&B's own offline run."""
    settings = {"PYTHONPATH": os.pathsep.join(sys.path), "WANDB_API_KEY": SECRET, "WANDB_MODE": "offline",
                "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "lightning_score", "fit", "--config=ncsn", *QUICK]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert run(["report", "runs"]) == 0
    printed = done.stdout + done.stderr + "".join(capsys.readouterr())
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 10 and any(file.suffix == ".wandb" for file in files)
    assert SECRET not in printed
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]
    checkpoint = torch.load("runs/ncsn/latest/last.ckpt", weights_only=True)
    assert SECRET.encode() not in pickle.dumps(checkpoint)


@pytest.mark.faults("secrets looked for")
@pytest.mark.slow
def test_a_password_for_the_database_is_not_repeated(folder, capsys):
    Path("sweep.yaml").write_text((ROOT / "sweeps" / "train.yaml").read_text())
    url = f"--storage=postgresql://me:{SECRET}@127.0.0.1:9/none"
    assert run(["sweep", "sweep.yaml", url]) == 2
    printed = capsys.readouterr()
    assert "this database cannot be used" in printed.err and SECRET not in printed.out + printed.err
    assert not [file for file in folder.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
