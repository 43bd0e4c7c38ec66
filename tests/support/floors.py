"""The floors of the package, from the bottom up."""

from pathlib import Path

PACKAGE = Path(__file__).parent.parent.parent / "lightning_score"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = [
    {"stopping", "errors", "lean_imports"},
    {"tensors", "memory", "files"},
    {"seeds", "conditions", "observations", "estimates"},
    {"process", "networks", "metrics", "data"},
    {"score"},
    {"objective", "sampling"},
    {"guidance", "interop"},
    {"runs"},
    {"training"},
    {"callbacks"},
    {"commands"},
    {"sweep"},
    {"report"},
    {"cli"},
    {"__main__", "__init__"},
]
"""Rule 1: a file imports its own room and the floors below it."""
