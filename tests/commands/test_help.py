"""The first screen of `COMMAND --help`: short, quick, and true."""

import re
import subprocess
import sys

import pytest
from part_classes import descendants

from lightning_score import stopping
from lightning_score.__main__ import main
from lightning_score.cli import run
from lightning_score.data import ImageData, ScoreData
from lightning_score.guidance import Guidance
from lightning_score.metrics import Distance, Features
from lightning_score.networks import Network
from lightning_score.process import NoiseProcess
from lightning_score.sampling import Sampler

COMMANDS = ["fit", "validate", "test", "evaluate", "predict", "tune"]
BASES = {
    "--model.network": Network,
    "--model.process": NoiseProcess,
    "--model.sampler": Sampler,
    "--model.guidance": Guidance,
    "--data": ScoreData,
    "--evaluate.features": Features,
    "--evaluate.distances": Distance,
}
OF_PARTS = {"--model.network.channels", "--model.sampler.steps", "--data.batch_size", "--model.optimizer.lr"}


def options(text):
    return set(re.findall(r"--[\w.]*\w", text))


@pytest.fixture
def start(monkeypatch, capsys):
    """Runs a command line and returns what it prints."""

    monkeypatch.setattr(stopping, "install", lambda: None)

    def start(*arguments):
        monkeypatch.setattr(sys, "argv", ["lightning_score", *arguments])
        try:
            assert main() == 0
        except SystemExit as stop:
            assert stop.code == 0
        return capsys.readouterr().out

    return start


@pytest.mark.parametrize("command", COMMANDS)
def test_first_screen_is_short_and_its_options_exist(command, start):
    screen = start(command, "--help")
    assert len(screen.splitlines()) <= 45 and max(map(len, screen.splitlines())) <= 120
    assert options(screen) <= options(start(command, "--help", "all")) | OF_PARTS | {"--model.sampler.help", "--data.help"}
    assert screen == start(command, "-h")


@pytest.mark.parametrize("command", COMMANDS)
def test_first_screen_names_all_classes_that_an_option_takes(command, start):
    lines = start(command, "--help").replace("\n" + " " * 12, " ").splitlines()
    for option, base in BASES.items():
        for listed in [line for line in lines if line.startswith(f"  {option} ") and " or " in line]:
            names = set(re.findall(r"\w+", listed.removeprefix(f"  {option}").partition(";")[0])) - {"or"}
            public = {part.__name__ for part in descendants(base) if part.__module__.startswith("lightning_score")}
            assert names == public - {ImageData.__name__}, option


def test_first_screen_comes_without_importing_torch():
    code = "import sys; from lightning_score.__main__ import main; sys.argv[1:] = ['fit', '--help']; main()"
    code += "; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.endswith("False\n")


def test_parts_of_the_first_screen_are_options(capsys):
    for part, owner in (("AnnealedLangevin", "sampler"), ("UNet", "network"), ("VP", "process")):
        with pytest.raises(SystemExit) as stop:
            run(["fit", "--config", "ncsn", f"--model.{owner}.help", part])
        assert stop.value.code == 0
        options_of_part = options(capsys.readouterr().out)
        assert {name for name in OF_PARTS if name.startswith(f"--model.{owner}.")} <= options_of_part
