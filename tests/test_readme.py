"""Every README: its commands and its code run in its order, and what it lists is what there is."""

import re
import shlex
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHAINS, CORRECTORS, GRIDS, PARAMETRIZATIONS, PREDICTORS, PROCESSES, MixtureScore, QuickNoise, concrete
from floors import FILES, FLOORS, PACKAGE
from hub_server import Hub
from image_files import write_idx
from peers import saved
from PIL import Image
from recipes import PARAMETERS, header

from lightning_score import data, networks, objective, sampling
from lightning_score.cli import COMMANDS, run
from lightning_score.commands.base import GROUPS
from lightning_score.commands.configs import shipped

ROOT = Path(__file__).parent.parent
PATTERNS = ("README.md", ".github/*.md", "[!.]*/README.md", "lightning_score/**/README.md", "tests/**/README.md")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for pattern in PATTERNS
    for path in sorted(ROOT.glob(pattern))
    if "models" not in path.parts
}  # which are cards: tests/runs/test_pretrained.py
README, CONFIGS = PAGES["README.md"], PAGES["configs/README.md"]
every_page = pytest.mark.parametrize("page", PAGES)

QUICK = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--samples.num_samples=4", "--evaluate.num_samples=4"]
SHORT = {
    "fit": QUICK,
    "predict": ["--num_samples=4"],
    "validate": QUICK[2:],
    "schedule": [],
    "grid": [],
    "tune": ["--num_samples=8"],
    "ema": [],
    "langevin": ["--num_samples=50"],
    "evaluate": [],
    "gallery": ["--num_samples=20"],
    "convert": [],
    "sweep": ["--dry_run"],
    "benchmark": ["--samplers=own,IPNDM", "--steps=[2]", "--num_samples=20"],
    "report": [],
    "push": [],
    "pull": [],
}
FEWER = {"max_steps=1000": "max_steps=2", "model.sample(64": "model.sample(16", "Uniform(50)": "Uniform(2)"}
ELSEWHERE = ("wandb", "torchrun", "srun")
"""Programs whose lines are tested in tests/sweep/test_wandb_sweep.py and tests/runs/test_processes.py."""
CLASSES = {name for path in FILES for name in re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE)}
OTHERS = {"Args", "LocalPath", "Path", "UNet2DModel", "MLFlowLogger", "TensorBoardLogger", "LambdaLR", "DDPStrategy",
          "PyWavelets"}  # fmt: skip
"""Names in code that look like classes of this package but are not."""


def blocks(page, language):
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def lines(page, language="bash"):
    """The lines of all blocks; a line that continues below is joined."""
    return [line for block in blocks(page, language) for line in block.replace("\\\n", " ").splitlines() if line]


def commands(page):
    """The arguments of every `python -m lightning_score` in the blocks and the text."""
    inline = [" ".join(code.split()) for code in re.findall(r"`(python -m lightning_score [^`]*)`", PAGES[page])]
    calls = [line for line in [*lines(page), *inline] if "-m lightning_score" in line]
    return [shlex.split(line.split("-m lightning_score ", 1)[1]) for line in calls]


def write_parts(page):
    """Writes the blocks that begin with the name of a file."""
    for code in blocks(page, "python"):
        if name := re.match(r"# (my_\w+\.py)\n", code):
            Path(name[1]).write_text(code)


def run_code(page):
    """What the other blocks define, with fewer steps and samples."""
    names = {}
    for code in blocks(page, "python"):
        if not code.startswith("# my_"):
            for many, few in FEWER.items():
                code = code.replace(many, few)
            exec(code, names)
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the commands need: runs of the small configs, Fashion-MNIST, photographs, an observation, score_sde's file."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        write_idx(Path("data/FashionMNIST/raw"), 256)
        Path("photos").mkdir()
        for i, image in enumerate(np.random.RandomState(0).randint(0, 256, (80, 40, 50, 3)).astype(np.uint8)):
            Image.fromarray(image).save(f"photos/{i}.png")
        np.save("spectra.npy", np.zeros((2, 64)))
        np.save("signals.npy", np.random.RandomState(0).randn(80, 1, 64))
        np.savez("others.npz", arr_0=np.random.RandomState(0).randint(0, 256, (80, 8, 8, 1)).astype(np.uint8))
        np.save("y.npy", np.full((1, 1, 8, 8), 0.2, np.float32))
        np.savez("half.npz", x=np.full((1, 1, 8, 8), 255, np.uint8))
        Image.fromarray(np.repeat(np.uint8([[0], [255]]), 4, 0).repeat(8, 1)).save("mask.png")
        peer = Path("vp/cifar10_ddpmpp_continuous")
        peer.mkdir(parents=True)
        torch.save(saved("vp_ddpmpp_continuous_small"), peer / "checkpoint_26.pth")
        for name in ("ncsn", "ddpm", "conditional", "toy"):
            assert run(["fit", f"--config={name}", *QUICK, "--ema.lengths=[0.05, 0.1]"]) == 0
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of this test's own."""
    with Hub() as server:
        server.serve(monkeypatch, tmp_path)
        yield server


@pytest.mark.slow
@every_page
def test_commands_and_code_run(page, folder, monkeypatch, hub):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    write_parts(page)
    for arguments in commands(page):
        quick = SHORT.get(arguments[0], ["--evaluate.num_samples=20"])
        if "ddpmpp.ckpt" in arguments and arguments[0] != "convert":
            quick = [*quick, "--model.sampler.grid.steps=2"]
        if "configs/images.yaml" in arguments:  # there are 80 photographs
            quick = [*quick, "--data.batch_size=8", "--data.num_workers=0"]
        if any("help" in argument for argument in arguments):
            with pytest.raises(SystemExit, match="0"):
                run(arguments)
            continue
        assert run([*arguments, *quick]) == 0, arguments
    for name, drawn in run_code(page).items():
        if name in ("images", "photos"):
            assert len(drawn) == 16 and drawn.isfinite().all()


def test_the_first_code_trains_and_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run_code("README.md")
    assert found["images"].shape == (16, 1, 8, 8) and found["average"].updates == 2
    assert np.asarray(Image.open("digits.png").convert("RGB")).std() > 10


def test_the_users_own_process_is_sampled(tmp_path, monkeypatch):
    """The exact score of N((0.5, -1), 0.5^2) gives that distribution back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_parts("README.md")
    from my_process import Ramp

    score, sampler = MixtureScore(Ramp()), sampling.PredictorCorrector(sampling.DDIM(), grid=sampling.Geometric(60, 1e-3))
    with torch.no_grad():
        x = sampler(score, QuickNoise((4000, 2))).x
    torch.testing.assert_close(x.mean(0), torch.tensor([0.5, -1.0]).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(x.std(0), torch.tensor([0.5, 0.5]).double(), atol=0.03, rtol=0)


@every_page
def test_commands_and_options_are_known(page):
    """What is not run is tested elsewhere; files that are named exist, and so do the options of the named groups."""
    for line in lines(page):
        assert re.match(r"(pip install|python -m (lightning_score|pytest)|ruff) ", line), line
        assert all((ROOT / file).exists() for file in re.findall(r"(?<=\s)(?:configs|sweeps|tests)/\S+", line)), line
    for line in (line.removeprefix("$ ") for line in lines(page, "console")):
        program = line.split()[0]
        assert program in ELSEWHERE or (program == "python" and ("--wandb" in line or "edm." in line)), line
    assert {arguments[0] for arguments in commands(page)} <= set(COMMANDS)
    for group, option in re.findall(rf"--({'|'.join(GROUPS)})\.(\w+)", PAGES[page]):
        assert option in signature(GROUPS[group]).parameters, f"--{group}.{option}"


@every_page
def test_classes_exist(page):
    """Those named within the text, such as `UNet` and `+AnnealedLangevin`."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE))
    named = {name for span in spans for name in re.findall(r"\b(?<!/)[A-Z]\w*[a-z]\w*\b(?!/)", span)}
    assert named <= CLASSES | OTHERS


@every_page
def test_links_and_pictures_exist(page):
    """Also the headings that links name; pictures are not blank, and lines fit a screen."""
    here = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        file, _, heading = target.partition("#")
        if not file.startswith("https://"):
            assert (here / file).exists(), target
            titles = re.findall(r"^#+ (.*)$", (here / file).read_text() if file.endswith(".md") else "", re.MULTILINE)
            assert heading in {"", *(re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles)}, target
    for picture in re.findall(r'src="([^"]+)"', PAGES[page]):
        assert np.asarray(Image.open(here / picture).convert("RGB")).std() > 10, picture
    assert not [line for line in PAGES[page].splitlines() if len(line) > 125 and not line.startswith("|")]


def test_two_commands_install_and_run():
    install, test = (line for line in lines("README.md") if line.startswith("pip install -c"))
    script = (ROOT / ".ci" / "run").read_text()
    for part in test.split(" && "):
        assert part.replace("pip install", "pip install -q") in script or part in script, part
    assert install.endswith("python -m lightning_score fit --config configs/ncsn.yaml")


def test_every_command_has_a_line():
    assert sorted(re.findall(r"^\* `(\w+)` ", README, re.MULTILINE)) == sorted(COMMANDS)


def test_the_table_of_parts_lists_every_class():
    rows = re.findall(r"^\| `((?:model|data)[\w.]*)` \| (.*) \|$", README, re.MULTILINE)
    listed = {part: set(re.findall(r"`([A-Z]\w+)`", cells)) for part, cells in rows}
    classes = {
        "model.process": [*PROCESSES, *CHAINS],
        "model.network": concrete(networks, networks.Network),
        "data": [*concrete(data, data.ScoreData), data.stream.ImageStream],
        "data.standardize": concrete(data, data.Standardization),
        "data.augment": concrete(data, data.ArrayAugmentation),
        "model.parametrization": PARAMETRIZATIONS,
        "model.objective": concrete(objective, objective.Objective),
        "model.objective.weighting": concrete(objective, objective.Weighting),
        "model.sampler": concrete(sampling, sampling.Sampler),
        "model.sampler.predictor": [*PREDICTORS, sampling.Restart, sampling.DiffPIR, sampling.Consistency],
        "model.sampler.corrector": CORRECTORS,
        "model.sampler.grid": GRIDS,
    }
    assert listed == {part: {kind.__name__ for kind in kinds} for part, kinds in classes.items()}


def test_the_house_is_as_the_law_of_imports_has_it():
    listed = re.findall(r"^\d+\. (.*(?:\n   .*)*)", README, re.MULTILINE)
    rooms = [{name for name in names if (PACKAGE / name).is_dir()} for names in FLOORS]
    assert [set(re.findall(r"\]\(lightning_score/(\w+)\)", line)) for line in listed] == [names for names in rooms if names]


def test_the_table_lists_every_config():
    listed = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert sorted({*listed, "arrays", "images"} - {"data"}) == sorted(path.stem for path in shipped().glob("*.yaml"))


@pytest.mark.parametrize("row", re.findall(r"^\| `(\w+/\w+)` \|(.*)\|$", CONFIGS, re.MULTILINE), ids=lambda row: row[0])
def test_published_numbers_are_those_of_the_configs(row):
    name, cells = row[0], [cell.strip() for cell in row[1].split("|")]
    comments = header(name)
    for cell in cells[1:-1]:
        assert cell == "-" or cell in comments, f"{cell} is not in the header of {name}"
    assert cells[2] in comments and cells[-1] == "-"


def test_every_published_recipe_has_its_row():
    rows = re.findall(r"^\| `(\w+/\w+)` \|", CONFIGS, re.MULTILINE)
    assert sorted(rows) == sorted(PARAMETERS)
