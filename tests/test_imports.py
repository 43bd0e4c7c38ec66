"""Imports point down: the layers of the package, read from its sources."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_score"
CORE = ["utils", "process", "parametrization", "score", "empirical"]  # each may import those before it

ALLOWED = {
    **{name: set(CORE[:i]) for i, name in enumerate(CORE)},
    "torchvision_guard": set(),
    "help": set(),
    "schedule": {"utils"},
    "objective": {*CORE},
    "guidance": {"files", "seeds", *CORE},
    "sampling": {*CORE, "schedule"},
    "likelihood": {*CORE, "sampling"},
    "networks": {"utils"},
    "augmentation": {"utils"},
    "interop": {"files", "seeds", *CORE, "networks", "sampling", "objective"},
    "stopping": set(),
    "files": {"stopping", "utils"},
    "seeds": {"utils"},
    "metrics": {"files", "seeds", "utils"},
    "data": {"files", "seeds", "utils"},
    "sharding": {"networks", "utils"},
    "optimization": {"utils"},
    "trust": {"checkpoints", "utils", "yaml_files"},
    "steps": {"files", "seeds", "utils"},
    "model": {
        "files",
        "seeds",
        *CORE,
        "trust",
        "augmentation",
        "objective",
        "optimization",
        "guidance",
        "sampling",
        "networks",
        "steps",
    },
    "callbacks": {
        "seeds",
        "checkpoints",
        "files",
        "model",
        "likelihood",
        "metrics",
        "data",
        "sampling",
        "objective",
        "empirical",
        "process",
        "schedule",
        "score",
        "sharding",
        "stopping",
        "utils",
    },
    "csv_logger": set(),
    "loggers": {"csv_logger", "metrics", "runs"},
    "runs": {"files", "stopping", "utils"},
    "checkpoints": {"files", "seeds", "utils"},
    "processes": {"stopping", "utils"},
    "total_steps": {"utils"},
    "resume": {"parser", "files", "seeds", "arguments", "checkpoints", "processes", "runs", "total_steps", "trust", "utils"},
    "summary": {"files", "seeds", "callbacks", "model", "utils"},
    "class_names": {"trust", "yaml_files"},
    "class_changes": {"class_names", "trust"},
    "origins": set(),
    "yaml_files": {"utils"},
    "parser": {
        "arguments",
        "class_changes",
        "class_names",
        "data",
        "metrics",
        "model",
        "origins",
        "total_steps",
        "trust",
        "utils",
    },
    "arguments": {
        "files",
        "checkpoints",
        "class_changes",
        "class_names",
        "model",
        "data",
        "metrics",
        "origins",
        "total_steps",
        "trust",
        "utils",
        "yaml_files",
    },
    "mistakes": {"utils"},
    "experiment": {"parser", "files", "seeds", "arguments", "callbacks", "data", "mistakes", "model", "refusals", "utils"},
    "refusals": {"utils"},
    "run_config": {"loggers", "runs", "stopping"},
    "convert": {"parser", "files", "seeds", "arguments", "experiment", "interop", "model", "trust", "utils"},
    "ladder": {"parser", "files", "seeds", "arguments", "data", "runs", "schedule", "utils"},
    "commands": {
        "parser",
        "files",
        "seeds",
        "arguments",
        "callbacks",
        "checkpoints",
        "data",
        "experiment",
        "ladder",
        "loggers",
        "model",
        "processes",
        "refusals",
        "resume",
        "run_config",
        "runs",
        "sharding",
        "summary",
        "trust",
        "utils",
    },
    "sweep": {
        "resume",
        "parser",
        "files",
        "seeds",
        "arguments",
        "callbacks",
        "commands",
        "data",
        "experiment",
        "guidance",
        "metrics",
        "model",
        "runs",
        "sampling",
        "score",
        "utils",
        "yaml_files",
    },
    "report": {"parser", "files", "seeds", "arguments", "callbacks", "metrics", "runs", "sweep", "trust", "utils"},
    "gallery": {
        "parser",
        "files",
        "seeds",
        *CORE,
        "trust",
        "arguments",
        "callbacks",
        "data",
        "empirical",
        "model",
        "runs",
        "sampling",
    },
}
FREE = {"cli", "__init__", "__main__"}
LIGHT = {*CORE, "schedule", "objective", "guidance", "sampling", "likelihood", "networks", "augmentation"}  # torch only
HEAVY = {"lightning", "torchmetrics", "torchvision", "torch_fidelity", "wandb", "matplotlib"}


def imports(path):
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    layer = path.relative_to(PACKAGE).with_suffix("").parts[0]
    own = {name.split(".")[1] for name in imports(path) if name.startswith("lightning_score.")}
    if path.name == "train_features.py":  # a script, imported by nothing
        own -= {"data"}
    if layer not in FREE:
        assert own - {layer, "torchvision_guard"} <= ALLOWED[layer]
    if layer in LIGHT:
        assert not {name.split(".")[0] for name in imports(path)} & HEAVY


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_imports_lightning_guards_itself_first(path):
    """It or its package: so that each module can be imported before all others."""
    guard = "lightning_score.torchvision_guard"
    first = path.parent / "__init__.py" if path.parent != PACKAGE else path
    if {name.split(".")[0] for name in imports(path)} & {"lightning", "torchmetrics", "torchvision"}:
        assert path.stem == "torchvision_guard" or guard in imports(path) or guard in imports(first)


def test_nothing_imports_the_command_line():
    users = [path for path in FILES if "lightning_score.cli" in imports(path)]
    assert [path.name for path in users] == ["__main__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path):
    assert len(path.read_text().splitlines()) <= 320
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno <= 60, node.name
