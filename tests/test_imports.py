"""Imports point down: the floors of the package, read from its sources."""

import ast
import pydoc
from functools import cache
from importlib import import_module
from pathlib import Path

from floors import FILES, FLOORS, PACKAGE

import lightning_score

TORCH_ALONE = {
    "process",
    "score",
    "networks",
    "objective",
    "sampling",
    "guidance",
    "interop",
    "observations",
    "errors",
    "tensors",
    "files",
}
"""Rule 2: the science knows torch alone; Lightning and its like are for the data, the metrics, the runs and above."""
HEAVY = {"lightning", "torchmetrics", "torchvision", "torch_fidelity", "wandb", "matplotlib"}


@cache
def imports(path):
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [alias.name for alias in node.names] if node.module == "lightning_score" else [""]
            found |= {f"{node.module}.{name}".rstrip(".") for name in names}
    return found


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_a_file_imports_its_own_room_and_the_floors_below():
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    wrong = [
        f"{path.relative_to(PACKAGE)} -> {name}"
        for path in FILES
        for name in {module.split(".")[1] for module in imports(path) if module.startswith("lightning_score.")}
        if name in floor.keys() - {room(path)} and floor[name] >= floor[room(path)]
    ]
    assert wrong == []


def test_the_science_knows_torch_alone():
    wrong = [
        f"{path.relative_to(PACKAGE)} -> {name}"
        for path in FILES
        if room(path) in TORCH_ALONE
        for name in {module.split(".")[0] for module in imports(path)} & HEAVY
    ]
    assert wrong == []


def test_what_imports_lightning_imports_it_lean():
    """It or its package: so that each module can be imported before all others."""
    lean = "lightning_score.lean_imports"
    wrong = []
    for path in FILES:
        first = path.parent / "__init__.py" if path.parent != PACKAGE else path
        if {name.split(".")[0] for name in imports(path)} & {"lightning", "torchmetrics", "torchvision"}:
            is_lean = path.stem == "lean_imports" or lean in imports(path) | imports(first)
            wrong += [] if is_lean else [str(path.relative_to(PACKAGE))]
    assert wrong == []


def test_the_root_holds_few_modules():
    assert len(list(PACKAGE.glob("*.py"))) <= 10
    assert {path.stem if path.suffix == ".py" else path.name for path in PACKAGE.iterdir()} - {"__pycache__"} <= {
        name for names in FLOORS for name in names
    }


def test_files_and_functions_are_short():
    wrong = []
    for path in FILES:
        text = path.read_text()
        if len(text.splitlines()) > 320:
            wrong.append(f"{path.relative_to(PACKAGE)}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno > 60:
                wrong.append(f"{path.relative_to(PACKAGE)}: {node.name}")
    assert wrong == []


def test_tests_share_by_support():
    """A test module imports no other; what several use is in tests/support/ or conftest.py."""
    folder = Path(__file__).parent
    wrong = [f"{path.relative_to(folder)} -> {name}" for path in sorted(folder.rglob("*.py"))
             for name in imports(path) if name.split(".")[0].startswith("test_")]  # fmt: skip
    assert wrong == []


def test_help_and_tab_show_the_public_names():
    """`help(lightning_score.sampling)` has an entry for each, with its docstring."""
    for name in (
        "process",
        "score",
        "objective",
        "sampling",
        "guidance",
        "observations",
        "networks",
        "data",
        "metrics",
        "callbacks",
    ):
        package = import_module(f"lightning_score.{name}")
        text = pydoc.render_doc(package, renderer=pydoc.plaintext)
        missing = [public for public in package.__all__ if f"class {public}(" not in text and f"\n    {public}(" not in text]
        assert missing == [] and set(package.__all__) <= set(dir(package)), name
    assert "lightning_score.sampling" in pydoc.render_doc(lightning_score) and "AnnealedLangevin" in dir(lightning_score)
