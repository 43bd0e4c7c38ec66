"""A class that is named in a configuration starts from its own defaults, whatever class it takes the place of."""

import json
import re
from copy import deepcopy
from inspect import Parameter, signature
from itertools import permutations

import pytest
import torch
import yaml
from part_classes import descendants, parts

from lightning_score.commands.arguments import Arguments
from lightning_score.commands.configs import shipped
from lightning_score.commands.parser import Parser
from lightning_score.commands.plain_parser import UsageError
from lightning_score.data import ScoreData
from lightning_score.guidance import Guidance
from lightning_score.metrics import Features
from lightning_score.sweep.loaded import ParsedCommand
from lightning_score.training.model import ScoreModel

BASES = {**dict(parts(ScoreModel, set())), "data": ScoreData, "features": Features}
TORCH = {"optimizer": torch.optim.Optimizer, "lr_scheduler": torch.optim.lr_scheduler.LRScheduler}
VALUES = [0.37, 3, 0.5, True, False, [1, 2], [0.25, 0.75], "x", "auto", None]
"""One of these is another than the default of any parameter."""


def parser_of(base):
    parser = Parser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(base, "part", required=False, skip={"optimizer"})
    return parser


def outcome(parser, arguments):
    """The configuration, or the message with which the parser refuses it."""
    try:
        return parser.parse_args(arguments).part
    except UsageError as refusal:
        return refusal.message


def other_values(parser, kind, path):
    """Values other than the defaults for as many parameters of a class as can be had."""
    found = {}
    for name, parameter in signature(kind).parameters.items():
        for value in VALUES if parameter.kind is not Parameter.VAR_KEYWORD else []:
            given = {
                "class_path": path,
                "init_args": {name: deepcopy(value)},
            }  # the parser makes floats of a list's integers
            try:
                parser.parse_object({"part": given}, _skip_required=True, _skip_validation=True)
            except (UsageError, TypeError, ValueError):
                continue
            if value != parameter.default:
                found[name] = value
                break
    return found


LONG = {"network", "data", *TORCH}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in [*BASES, *TORCH]]
)
def test_no_class_keeps_a_value_of_another(name, capsys):
    """For every two classes of one place that share a parameter: B after A is B alone, and so is A after A."""
    base = {**BASES, **TORCH}[name]
    parser = parser_of(base)
    kinds = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in descendants(base)}
    kinds = {path: kind for path, kind in kinds.items() if path.startswith(("lightning_score.", "torch."))}
    values = {path: other_values(parser, kind, path) for path, kind in kinds.items()}
    alone = {path: outcome(parser, ["--part", path]) for path in kinds}
    layers = {path: json.dumps({"part": {"class_path": path, "init_args": each}}) for path, each in values.items()}
    pairs = [(a, b) for a, b in permutations(kinds, 2) if values[a].keys() & signature(kinds[b]).parameters.keys()]
    for a, b in [*pairs, *((a, a) for a in kinds)]:
        for second in (["--part", b], ["--config", json.dumps({"part": {"class_path": b}})]):
            assert outcome(parser, ["--config", layers[a], *second]) == alone[b], (a, b)
    capsys.readouterr()


BETAS = {"beta_min": 0.1, "beta_max": 20.0}
"""The defaults of VP."""


@pytest.fixture(scope="module")
def command():
    return ParsedCommand(["fit", "--config", "ddpm"])


class TestRoutes:
    """The ways by which a value comes in."""

    @pytest.fixture(autouse=True)
    def own(self, command, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        self.command, self.folder = command, tmp_path

    def parse(self, *arguments, config="ddpm"):
        return self.command.parse(["fit", "--config", config, *arguments])["model"].as_dict()

    def layer(self, **model):
        file = self.folder / f"{len(list(self.folder.iterdir()))}.yaml"
        file.write_text(yaml.safe_dump({"model": model}))
        return "--config", str(file)

    def test_a_process_is_trained_with_its_own_numbers(self):
        options = ["--model.sampler.grid", "Uniform", "--model.objective.times", "UniformTimes"]
        names = (["--model.process.class_path", "VP"], ["--model.process.class_path=VP"], ["--model={process: VP}"])
        for given in (*names, ["--model.process", "VP"], self.layer(process="VP"), self.layer(process={"class_path": "VP"})):
            found = self.parse(*given, *options)
            assert found["process"]["init_args"] == BETAS
            assert found["sampler"]["init_args"]["grid"]["init_args"] == {"steps": 1000, "t_min": None}
            (line,) = [line for line in self.command.messages.splitlines() if line.startswith("model.process: ")]
            assert "BetaTable -> VP; dropped beta_min=0.0001, beta_max=0.02; give them again" in line
            assert (
                "model.objective.times: LogNormalTimes -> UniformTimes; dropped mean=-0.4, std=0.9" in self.command.messages
            )

    @pytest.mark.parametrize("order", [1, -1])
    def test_a_value_of_the_command_line_is_kept_in_any_order(self, order):
        for inside in ("", ".init_args"):
            for name in ("", ".class_path"):
                options = [f"--model.process{name}=VP", f"--model.process{inside}.beta_max=10"]
                assert self.parse(*options[::order])["process"]["init_args"] == {**BETAS, "beta_max": 10.0}
                assert "beta_max" not in self.command.messages
        options = ["--model.sampler.grid.class_path=Uniform", "--model.sampler.init_args.grid.init_args.steps=3"]
        grid = self.parse(*options[::order])["sampler"]["init_args"]["grid"]
        assert grid["init_args"] == {"steps": 3, "t_min": None}
        assert self.parse(*["--model.process.class_path=VP", "--model.process=VE"][::order])

    def test_options_override_configs_wherever_they_are(self):
        found = self.command.parse(["fit", "--model.process.steps=7", "--name", "own", "--config", "ddpm"])
        assert found["model"]["process"]["init_args"]["steps"] == 7 and found["name"] == "own"

    def test_a_value_alone_changes_the_present_class(self):
        group = ["--model", "{process: {init_args: {steps: 7}}}"]
        for given in (group, ["--model.process.steps=7"], self.layer(process={"init_args": {"steps": 7}})):
            assert self.parse("--model.process.beta_max=0.5", *self.layer(process={"init_args": {"beta_max": 0.25}}))
            found = self.parse(*self.layer(process={"init_args": {"beta_max": 0.25}}), *given)["process"]
            assert found["init_args"] == {"beta_min": 1e-4, "beta_max": 0.25, "steps": 7, "zero_snr": False}
            assert not self.command.messages

    def test_a_plus_keeps_the_values_that_both_have(self):
        for given in (
            ["--model={process: +VP}"],
            ["--model.process", "+VP"],
            self.layer(process="+VP"),
            self.layer(process={"class_path": "+VP"}),
        ):
            assert self.parse(*given)["process"]["init_args"] == {"beta_min": 1e-4, "beta_max": 0.02}
            assert "model.process: BetaTable -> VP; kept beta_min=0.0001, beta_max=0.02" in self.command.messages
        found = self.parse("--model.optimizer=+SGD", "--model.optimizer.momentum=0.5")["optimizer"]["init_args"]
        assert found["lr"] == 6e-3 and found["momentum"] == 0.5
        found = self.parse("--model.process={class_path: +VP, init_args: {beta_max: 3}}")["process"]["init_args"]
        assert found == {"beta_min": 1e-4, "beta_max": 3.0}

    def test_a_whole_part_of_the_same_class_is_that_alone(self):
        grid = {"class_path": "Geometric", "init_args": {"steps": 3}}
        whole = {"class_path": "PredictorCorrector", "init_args": {"predictor": "DDIM", "grid": grid}}
        for given in (self.layer(sampler=whole), [f"--model.sampler={json.dumps(whole)}"]):
            found = self.parse(*given)["sampler"]["init_args"]
            assert found["denoise"] is None and found["grid"]["init_args"] == {"steps": 3, "t_min": None}
            assert re.search(
                r"model.sampler: PredictorCorrector given again; dropped .*grid.t_min=0.024, denoise=Tweedie; give",
                self.command.messages,
            )

    def test_lists_and_settings_of_torch(self):
        found = self.command.parse(["fit", "--config", "ncsn", "--trainer.callbacks=[{class_path: LangevinHealth}]"])
        assert [each.class_path.rpartition(".")[2] for each in found["trainer"]["callbacks"]] == ["LangevinHealth"]
        found = self.parse("--model.optimizer=SGD", "--model.lr_scheduler=ExponentialLR", "--model.lr_scheduler.gamma=0.5")
        assert found["optimizer"]["init_args"]["lr"] == 1e-3 and "total_iters" not in found["lr_scheduler"]["init_args"]

    def test_what_is_printed_can_be_read_again(self, capsys):
        found = self.parse("--model.process=VP")
        file = self.folder / "printed.yaml"
        file.write_text(self.command.cli.parser.dump(self.command.config, skip_none=False))
        printed = yaml.safe_load(file.read_text())
        assert printed["model"]["process"]["init_args"] == found["process"]["init_args"] == BETAS


def test_a_null_within_a_part_of_a_part():
    """Which jsonargparse writes as the text None on its way to the inner part."""
    guided = ["--part=Observed", "--part.operator=BlockMean", "--part.noise=GaussianNoise", "--part.noise.std=null"]
    assert parser_of(Guidance).parse_args(guided).part.init_args.noise.init_args.std is None


def test_the_order_of_options():
    words = ["fit", "--a.b", "1", "--config=x", "--a", "C", "-c", "y", "--a.d=2"]
    ordered = ["fit", "--config=x", "--config", "y", "--a", "C", "--a.b", "1", "--a.d=2"]
    assert Arguments.parse(words).in_order().command_line() == ordered
    added = ["--a+=B", "--a.x=1", "--a+=C", "--a.x=2"]
    assert Arguments.without_command(added).in_order().words() == added, "options of an element of a list follow it"


@pytest.mark.parametrize("name", sorted(path.stem for path in shipped().glob("*.yaml")))
def test_a_config_over_itself_is_that_config(name, monkeypatch, tmp_path):
    command = ParsedCommand(["fit", "--config", name])
    assert (
        command.parse(["fit", "--config", name, "--config", name])["model"]
        == command.parse(["fit", "--config", name])["model"]
    )
    assert not command.messages
