"""Config and sweep files: what is ambiguous or damaged is refused, with the file and the line."""

import math
from pathlib import Path

import pytest
import yaml

from lightning_score.cli import run
from lightning_score.commands.configs import shipped
from lightning_score.errors import InputError
from lightning_score.runs.yaml_files import load, read_mapping

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
CONFIG = "data: {class_path: Digits}\n"
DAMAGED = {
    "keys given twice": ("trainer: {max_steps: 3}\nmodel:\n  process: VP\n  process: VE\n", ["process", "twice", "3", "4"]),
    "a leading zero": ("data:\n  init_args:\n    batch_size: 010\n", ["line 3", "010", "write 10"]),
    "binary": (bytes(range(256)), ["UTF-8"]),
    "zero bytes": (b"a: 1\0\n", ["not text"]),
    "UTF-16": (CONFIG.encode("utf-16"), ["UTF-16"]),
    "UTF-16 without a mark": (CONFIG.encode("utf-16-le"), ["not text"]),
    "Latin-1": (f"{CONFIG}# gr\xfc\xdfe".encode("latin-1"), ["UTF-8", "line 2"]),
    "empty": ("", ["empty"]),
    "comments only": ("# nothing\n", ["empty"]),
    "a list": ("- a\n- b\n", ["a list", "mapping"]),
    "text": ("ncsn", ["text", "mapping"]),
    "a number": ("3", ["mapping"]),
    "names that are numbers": ("1: 2", ["must be text"]),
    "many aliases": (LAUGHS, ["aliases"]),
    "an alias in its anchor": ("a: &a [*a]\n", ["anchor"]),
    "deep nesting": ("a: " + "[" * 200_000 + "]" * 200_000, ["nested"]),
    "a missing bracket": ("model: {a: [}\n", ["line 1"]),
    "a tag of Python": ("a: !!python/object/apply:os.system [ls]\n", ["line 1"]),
    "a tab": ("model:\n\tprocess: VP\n", ["line 2"]),
}


@pytest.mark.parametrize("command", [["fit", "--config"], ["schedule", "--config"], ["sweep"]], ids=lambda words: words[0])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_named(command, damage, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content, words = DAMAGED[damage]
    Path("own.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run([*command, "own.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: own.yaml: not a ") and all(word in line for word in words), line
    assert [file.name for file in tmp_path.iterdir()] == ["own.yaml"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1.5E3", 1500.0), (".5", 0.5), ("-.5", -0.5), ("0", 0), ("0x10", 16), ("1_000", 1000), ("-7", -7),
     ("true", True), ("False", False), ("~", None), ("null", None), (".inf", math.inf), ("1:30", "1:30"), ("yes", "yes"),
     ("no", "no"), ("on", "on"), ("off", "off"), ("y", "y"), ("1:30.5", "1:30.5"), ("0o17", "0o17"), ("+VP", "+VP"),
     ("2026-11-29", "2026-11-29"), ("1.2.3", "1.2.3"), ("'010'", "010")],
)  # fmt: skip
def test_values_have_one_meaning(text, value):
    found = load(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["010", "-010", "08", "00", "0_1", "+07"])
def test_leading_zeros_are_refused(text):
    with pytest.raises(yaml.YAMLError, match="leading zero"):
        load(text)


@pytest.mark.parametrize(
    "file", sorted([*shipped().rglob("*.yaml"), *shipped("sweeps").rglob("*.yaml")]), ids=lambda f: f.stem
)
def test_shipped_files_mean_the_same_to_every_reader(file):
    assert read_mapping(file, "config", "a: b")[0] == yaml.safe_load(file.read_text())


def test_what_is_written_is_read_back():
    values = {
        "a": ["yes", "on", "010", "1:30", "+VP", "~", "", "ä"],
        "b": [1e-5, 1e22, 10, None, True, math.inf, -0.5],
    }
    assert load(yaml.safe_dump(values)) == values


def test_a_merge_key_is_not_a_duplicate(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("base: &base {a: 1, b: 2}\nother: {<<: *base, b: 3}\n")
    assert read_mapping(file, "config", "a: b")[0]["other"] == {"a": 1, "b": 3}
    file.write_text("a: {b: 1, c: 2, b: 1}")
    with pytest.raises(InputError, match="b is given twice"):
        read_mapping(file, "config", "a: b")


@pytest.mark.parametrize(
    "text",
    [
        "trainer: {max_steps: 7}\ntrainer.max_steps: 5\n",
        "model.process: VP\nmodel.process.beta_max: 3\n",
        "model: {process: {init_args: {steps: 7}, init_args.steps: 8}}\n",
    ],
)
def test_a_value_is_not_given_in_two_places(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(text)
    assert run(["fit", "--config=ncsn", "--config=own.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: own.yaml: not a config: ")
