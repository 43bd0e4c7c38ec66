"""Checkpoints by path, or by the name of a trained model in the package or on the Hugging Face Hub."""

import os
import sys
from pathlib import Path

from lightning_score.runs.bundle import CONFIG, weights_in
from lightning_score.runs.hub import HUB, found_on_hub, name_on_hub, parse_name

FOLDER = Path(__file__).parent / "models"
"""Their folder, with a bundle for each name."""
_said: set[str] = set()


def pretrained() -> list[str]:
    """The names of the trained models in the package, as `digits/ncsn`."""
    return sorted(file.parent.relative_to(FOLDER).as_posix() for file in FOLDER.rglob(CONFIG))


def find_checkpoint(path: str | Path) -> Path:
    """The file of a checkpoint, or the folder of a bundle: of this path, of the model `hf://user/name` on the Hub, or of the
    model of this name in the package.

    A file, a run folder or a bundle wins over a model of the package that has the same name, which is printed once.

    Args:
        path: as given; it need not exist.
    """
    if on_hub := name_on_hub(path):
        return found_on_hub(on_hub)
    path, name = Path(path), str(path)
    if name not in pretrained():
        return path
    if not path.is_file() and not (path / CONFIG).is_file():
        return FOLDER / name
    if name not in _said:
        print(f"{name}: the one in this folder is used, not the model of this name in the package", file=sys.stderr)
    _said.add(name)
    return path


def pinned(path: str) -> str:
    """A path that does not change when links or branches do; the name of a model of the package stays, as does what is
    missing.
    """
    if on_hub := name_on_hub(path):
        return f"{HUB}{parse_name(on_hub)[0]}@{found_on_hub(on_hub).name}"
    found = find_checkpoint(path)
    return path if found.is_relative_to(FOLDER) or not found.exists() else os.path.realpath(path)


def weights_of(path: str | Path) -> Path:
    """The file that holds the weights of a checkpoint."""
    found = find_checkpoint(path)
    return weights_in(found) if found.is_dir() else found


def results_of(path: str | Path) -> Path:
    """The folder for results of a checkpoint: its own, or `runs/NAME` for a model of the package or of the Hub."""
    if on_hub := name_on_hub(path):
        return Path("runs") / parse_name(on_hub)[0]
    found = find_checkpoint(path)
    if found.is_relative_to(FOLDER):
        return Path("runs") / found.relative_to(FOLDER)
    return found if found.is_dir() else found.parent
