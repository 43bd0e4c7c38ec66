"""Every command and every piece of code in the README runs, in its order, in a folder of its own."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from lightning_score.arguments import shipped_configs
from lightning_score.cli import run

README = (Path(__file__).parent.parent / "README.md").read_text()
QUICK = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--samples.num_samples=4", "--evaluate.num_samples=4"]


def blocks(language):
    """The code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    """The arguments of every `python -m lightning_score` in the README's blocks and lines."""
    inline = re.findall(r"`(python -m lightning_score [^`]*)`", README)
    text = "\n".join([*blocks("bash"), *inline]).replace("\\\n", " ")
    return [shlex.split(line.split("lightning_score ", 1)[1]) for line in text.splitlines() if "-m lightning_score" in line]


def test_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    python = blocks("python")
    Path("my_parts.py").write_text(next(code for code in python if "class Linear" in code))
    quick_table = ["--model.process.steps=20", "--model.process.beta_max=0.3"]
    assert run(["fit", "--config=configs/ddpm.yaml", *QUICK, *quick_table]) == 0  # the README's table names its run
    done = []
    first = ("schedule", "fit")  # the others need what these make
    for arguments in sorted(commands(), key=lambda arguments: (*first, arguments[0]).index(arguments[0])):
        quick = {"fit": QUICK, "schedule": [], "gallery": ["--num_samples=20"]}.get(
            arguments[0], ["--evaluate.num_samples=4"]
        )
        if any("help" in argument for argument in arguments):
            with pytest.raises(SystemExit, match="0"):
                run(arguments)
            continue
        assert run([*arguments, *quick]) == 0, arguments
        done.append(arguments[0])
    assert {"fit", "predict", "test"} <= set(done) and done.count("fit") >= 3
    names = {}
    exec(next(code for code in python if "load_from_checkpoint" in code), names)
    assert names["images"].shape == (16, 1, 8, 8)


def test_two_commands_install_and_run():
    install, test = (line for block in blocks("bash") for line in block.splitlines() if line.startswith("pip install"))
    script = (Path(__file__).parent.parent / ".ci" / "run").read_text()
    for part in test.split(" && "):
        assert part.replace("pip install", "pip install -q") in script or part in script, part
    assert install.endswith("python -m lightning_score fit --config configs/ncsn.yaml")


def test_the_table_lists_every_config():
    listed = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in shipped_configs().glob("*.yaml"))


@pytest.mark.parametrize("picture", re.findall(r'src="([^"]+)"', README))
def test_pictures_exist(picture):
    from PIL import Image

    image = np.asarray(Image.open(Path(__file__).parent.parent / picture))
    assert image.std() > 10
