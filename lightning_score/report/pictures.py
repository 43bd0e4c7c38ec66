"""The pictures of a report: embedded in the page as far as its size allows, or served from their files."""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from lightning_score.report.reading import Picture, Run
from lightning_score.runs.folders import KIND

Image.MAX_IMAGE_PIXELS = 50_000_000
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""Errors of damaged pictures."""
UNKNOWN = {"caption": "", "drawing": False, "wide": False}
"""The description of a damaged picture."""
NARROW = 600
"""Pixels of a drawing that is still legible in a narrow column."""


def read_description(file: Path) -> dict[str, Any]:
    """A picture's caption, whether it is a drawing, from its metadata, and whether that needs a wide place."""
    with suppress(OSError):
        return _description(file, file.stat().st_mtime_ns)
    return UNKNOWN


@lru_cache(100_000)
def _description(file: Path, version: int) -> dict[str, Any]:
    try:
        with Image.open(file) as image:
            drawing = image.info.get(KIND) == "drawing"
            return {
                "caption": str(image.info.get("Description", "")),
                "drawing": drawing,
                "wide": drawing and image.width > NARROW,
            }
    except UNREADABLE:
        return UNKNOWN


def embed_pictures(runs: Sequence[Run], room: int) -> dict[Path, str]:
    """As many pictures as fit, by file: first the last samples of every run, then its other last pictures, then earlier
    ones, evenly spaced over training.

    Args:
        runs: the most important first.
        room: bytes in the page. A damaged picture is added to its run's problems.
    """
    found: dict[Path, str] = {}
    for run, picture in _in_order(runs):
        try:
            source = _as_text(picture.file)
        except UNREADABLE as error:
            run.problems.append(f"{picture.file.parent.name}/{picture.file.name}: cannot be read ({error})")
            continue
        if len(source) > room:
            break
        room -= len(source)
        found[picture.file] = source
    return found


def _in_order(runs: Sequence[Run]) -> list[tuple[Run, Picture]]:
    """All pictures, the most important first."""
    ranked = [
        ((rank, kind != "samples", i), run, picture)
        for i, run in enumerate(runs)
        for kind, pictures in run.pictures.items()
        for rank, picture in enumerate(_spread(pictures))
    ]
    return [(run, picture) for _, run, picture in sorted(ranked, key=lambda entry: entry[0])]


def _spread(pictures: Sequence[Picture]) -> list[Picture]:
    """The last, the first, then the middle of the widest gap, again and again."""
    order = [len(pictures) - 1, 0] if len(pictures) > 1 else [0]
    gaps = [(0, len(pictures) - 1)]
    while gaps:
        low, high = gaps.pop(0)
        if high - low > 1:
            middle = (low + high) // 2
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return [pictures[i] for i in order]


def _as_text(file: Path) -> str:
    """A picture as a data URI; lossless WebP is the smallest format for pixels and for drawings."""
    with Image.open(file) as image:
        packed = io.BytesIO()
        image.save(packed, "WEBP", lossless=True, quality=50, method=1)  # half the time of more effort, 1 % larger
    original = file.read_bytes()
    kind, data = ("webp", packed.getvalue()) if packed.tell() < len(original) else ("png", original)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def version_name(file: Path) -> str:
    """The name of a picture on the server; a new version of the file has a new name."""
    status = file.stat()
    return hashlib.sha256(f"{file} {status.st_mtime_ns} {status.st_size}".encode()).hexdigest()[:24]


def add_pictures(data: dict[str, Any], runs: Sequence[Run], sources: Mapping[Path, Any]) -> None:
    """Adds the pictures that have a source to the page's data of their runs and trials, by kind."""
    trials = [trial for sweep in data["sweeps"] for trial in sweep["trials"] if "pictures" in trial]
    for entry, run in zip([*data["runs"], *trials], runs, strict=True):
        entry["pictures"] = {}
        for kind, pictures in run.pictures.items():
            shown = [
                {"step": picture.step, "src": sources[picture.file], **read_description(picture.file)}
                for picture in pictures
                if picture.file in sources
            ]
            if shown:
                entry["pictures"][kind] = shown
