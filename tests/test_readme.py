"""Every command and every piece of code in the README runs, in its order, in a folder of its own."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import write_idx
from peers import saved
from PIL import Image
from recipes import PARAMETERS, header

from lightning_score.cli import run
from lightning_score.commands.configs import shipped

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


@pytest.mark.slow
def test_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    python = blocks("python")
    Path("my_parts.py").write_text(next(code for code in python if "class Linear" in code))
    assert run(["fit", "--config=configs/ddpm.yaml", *QUICK]) == 0  # the README's table names its run
    others_files()
    done = []
    first = ("schedule", "fit", "convert")  # the others need what these make
    for arguments in sorted(commands(), key=lambda arguments: (*first, arguments[0]).index(arguments[0])):
        short = {"fit": QUICK, "schedule": [], "gallery": ["--num_samples=20"], "convert": [], "sweep": ["--dry_run"],
                 "report": []}  # fmt: skip
        quick = short.get(arguments[0], ["--evaluate.num_samples=20"])
        if "ddpmpp.ckpt" in arguments and arguments[0] != "convert":
            quick = [*quick, "--model.sampler.grid.steps=2"]
        if "ImageStream" in arguments:  # there are 80 photographs
            quick = [*quick, "--data.batch_size=8", "--data.num_workers=0"]
        if "--wandb" in arguments:  # tests/test_wandb_sweep.py does that
            continue
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
    exec(next(code for code in python if "interop" in code).replace("Uniform(50)", "Uniform(2)"), names)
    assert names["photos"].shape == (16, 3, 32, 32)


def others_files():
    """What the README's commands find elsewhere: Fashion-MNIST, a folder of photographs and a checkpoint of score_sde's."""
    write_idx(Path("data/FashionMNIST/raw"), 256)
    Path("photos").mkdir()
    for i, image in enumerate(np.random.RandomState(0).randint(0, 256, (80, 40, 50, 3)).astype(np.uint8)):
        Image.fromarray(image).save(f"photos/{i}.png")
    folder = Path("vp/cifar10_ddpmpp_continuous")
    folder.mkdir(parents=True)
    torch.save(saved("vp_ddpmpp_continuous_small"), folder / "checkpoint_26.pth")


def test_two_commands_install_and_run():
    install, test = (line for block in blocks("bash") for line in block.splitlines() if line.startswith("pip install -c"))
    script = (Path(__file__).parent.parent / ".ci" / "run").read_text()
    for part in test.split(" && "):
        assert part.replace("pip install", "pip install -q") in script or part in script, part
    assert install.endswith("python -m lightning_score fit --config configs/ncsn.yaml")


def test_the_table_lists_every_config():
    listed = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert sorted({*listed, "images"} - {"data"}) == sorted(path.stem for path in shipped().glob("*.yaml"))


@pytest.mark.parametrize("row", re.findall(r"^\| `(\w+/\w+)` \|(.*)\|$", README, re.MULTILINE), ids=lambda row: row[0])
def test_published_numbers_are_those_of_the_configs(row):
    name, cells = row[0], [cell.strip() for cell in row[1].split("|")]
    said = header(name)
    for cell in cells[1:-1]:
        assert cell == "-" or cell in said, f"{cell} is not in the header of {name}"
    assert cells[2] in said and cells[-1] == "-"


def test_every_published_recipe_has_its_row():
    rows = re.findall(r"^\| `(\w+/\w+)` \|", README, re.MULTILINE)
    assert sorted(rows) == sorted(PARAMETERS)


@pytest.mark.parametrize("picture", re.findall(r'src="([^"]+)"', README))
def test_pictures_exist(picture):
    image = np.asarray(Image.open(Path(__file__).parent.parent / picture))
    assert image.std() > 10
