"""The pictures of a report: embedded in the page as far as there is room, or served from where they are."""

import base64
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lightning_score.callbacks.pictures import KIND
from lightning_score.report.reading import Picture, Run

Image.MAX_IMAGE_PIXELS = 50_000_000


def read_description(file: Path) -> dict[str, Any]:
    """What a picture says of itself: what it shows, and whether it is a drawing; nothing where it says nothing."""
    try:
        with Image.open(file) as image:
            return {"caption": str(image.info.get("Description", "")), "drawing": image.info.get(KIND) == "drawing"}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return {"caption": "", "drawing": False}


def embed_pictures(runs: Sequence[Run], room: int) -> dict[Path, str]:
    """As many pictures as fit, by their files: the last samples of every run first, then its other last pictures, then
    earlier ones, evenly over training.

    Args:
        runs: the newest first.
        room: bytes in the page; a picture that is damaged becomes a problem of its run.
    """
    found: dict[Path, str] = {}
    for run, picture in _in_order(runs):
        try:
            source = _as_text(picture.file)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            run.problems.append(f"{picture.file.parent.name}/{picture.file.name}: cannot be read ({error})")
            continue
        if len(source) > room:
            break
        room -= len(source)
        found[picture.file] = source
    return found


def _in_order(runs: Sequence[Run]) -> Iterator[tuple[Run, Picture]]:
    """All pictures, the most telling first."""
    ranked = []
    for i, run in enumerate(runs):
        for kind, pictures in run.pictures.items():
            for rank, picture in enumerate(_spread(pictures)):
                ranked.append(((rank, kind != "samples", i), run, picture))
    for _, run, picture in sorted(ranked, key=lambda entry: entry[0]):
        yield run, picture


def _spread(pictures: Sequence[Picture]) -> list[Picture]:
    """The last, the first, then always one in the middle of the widest gap."""
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
    """A picture as a data URI: WebP without loss is the smallest for pixels and for drawings."""
    with Image.open(file) as image:
        image.load()
        packed = io.BytesIO()
        image.save(packed, "WEBP", lossless=True, quality=70, method=3)
    original = file.read_bytes()
    kind, data = ("webp", packed.getvalue()) if packed.tell() < len(original) else ("png", original)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def address(file: Path) -> str:
    """Under which the server gives a picture; a new version of the file has a new address."""
    status = file.stat()
    return hashlib.sha256(f"{file} {status.st_mtime_ns} {status.st_size}".encode()).hexdigest()[:24]


def run_pictures(run: Run, sources: dict[Path, str]) -> dict[str, list[dict[str, Any]]]:
    """The pictures of a run that have a source, by kind."""
    found = {}
    for kind, pictures in run.pictures.items():
        shown = [
            {"step": picture.step, "src": sources[picture.file], **read_description(picture.file)}
            for picture in pictures
            if picture.file in sources
        ]
        if shown:
            found[kind] = shown
    return found
