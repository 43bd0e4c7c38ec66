"""Peers' checkpoints as score functions: `load(path, kind)`."""

from lightning_score.interop.base import Imported, Renaming
from lightning_score.interop.load import KINDS, build, load, read

__all__ = ["KINDS", "Imported", "Renaming", "build", "load", "read"]
