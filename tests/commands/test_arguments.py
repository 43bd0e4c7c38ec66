"""The command line, parsed once: options with their values, and the configurations below them."""

import pytest

from lightning_score.commands.arguments import Arguments, Layer, Option
from lightning_score.commands.parser import Parser

WORDS = ["fit", "-c", "ncsn", "--config=b.yaml", "--a.b", "-1", "--a.c=x=y", "--flag", "--list+=A", "--labels", "[1]", "[2]"]


def test_options_have_their_values():
    arguments = Arguments.parse(WORDS)
    assert arguments.command == "fit" and arguments.get("--config") == ["ncsn", "b.yaml"]
    assert arguments.get("--a.b") == ["-1"] and arguments.get("--a.c") == ["x=y"] and arguments.get("--flag") == []
    assert arguments.options[-1] == Option("--labels", ("[1]", "[2]")), "the words up to the next option"
    assert arguments.command_line() == ["fit", "--config", "ncsn", *WORDS[3:]]


def test_words_without_an_option_stay_in_their_place():
    for words in (["sweep", "a.yaml", "--count", "3"], ["convert", "--from=ddpm", "a", "b", "--size=3"], ["fit"]):
        assert Arguments.parse(words).command_line() == words
    assert Arguments.parse([]).command == ""


def test_options_are_dropped_set_and_replaced():
    arguments = Arguments.parse(["fit", "--x=1", "--y", "2", "--x", "3"])
    assert arguments.drop("--x").words() == ["--y", "2"]
    assert arguments.set("--x", "4").words() == ["--y", "2", "--x=4"]
    assert arguments.replace("--x", lambda value: value + "0").words() == ["--x=10", "--y", "2", "--x", "30"]
    assert arguments.words() == ["--x=1", "--y", "2", "--x", "3"], "the arguments themselves never change"


@pytest.mark.parametrize(
    ("option", "asks"), [("--help", 1), ("-h", 1), ("--a.help", 1), ("--print_config", 1), ("--x=help", 0)]
)
def test_help_is_asked_for_by_options_alone(option, asks):
    assert Arguments.parse(["fit", option]).asks_for_help == bool(asks)


def test_options_override_configs_and_these_the_layers(tmp_path):
    parser = Parser()
    parser.add_argument("--config", action="config")
    for name in "abcd":
        parser.add_argument(f"--{name}", type=int, default=0)
    (tmp_path / "c.yaml").write_text("c: 3\nd: 3\n")
    layers = Layer({"a": 1, "b": 1, "c": 1}), Layer({"b": 2, "c": 2}, "x.yaml"), Layer({})
    arguments = Arguments.without_command(["--d=4", f"--config={tmp_path}/c.yaml"]).over(*layers)
    found = parser.parse_args(arguments)
    assert (found.a, found.b, found.c, found.d) == (1, 2, 3, 4)
    assert arguments.files == ["x.yaml", f"{tmp_path}/c.yaml"]
