"""Tags and notes of a run, and whether it is archived: written by a person on the page, kept in the run folder."""

import json
import threading
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from lightning_score.errors import InputError, one_line, require
from lightning_score.files import replace_text
from lightning_score.runs.folders import LEADS_OUT, leads_out

FILE = "tags.json"
"""The name of the file in the run folder."""
MOST_TAGS, LONGEST_TAG, LONGEST_NOTES = 50, 60, 20_000
_writing = threading.Lock()


@dataclass(frozen=True)
class Notes:
    """What a person says about a run.

    Args:
        tags: short words, each once.
        notes: text of any length up to 20 000 letters.
        archived: whether the run is hidden unless archived runs are shown.

    Raises:
        InputError: a field has another type, or is too long.
    """

    tags: tuple[str, ...] = ()
    notes: str = ""
    archived: bool = False

    def __post_init__(self) -> None:
        tags, notes = self.tags, self.notes
        require(isinstance(tags, (list, tuple)) and len(tags) <= MOST_TAGS, f"tags: must be a list of at most {MOST_TAGS}")
        for tag in tags:
            plain = isinstance(tag, str) and tag.isprintable() and "," not in tag and tag == tag.strip()
            allowed = f"1 to {LONGEST_TAG} letters, no comma, no space at its ends"
            require(plain and 0 < len(tag) <= LONGEST_TAG, f"tag {str(tag)[:80]!r}: must have {allowed}")
        object.__setattr__(self, "tags", tuple(dict.fromkeys(tags)))
        fits = (
            isinstance(notes, str)
            and len(notes) <= LONGEST_NOTES
            and not any("\ud800" <= each <= "\udfff" for each in notes)
        )
        require(fits, f"notes: must be a text of at most {LONGEST_NOTES:,} letters")
        require(isinstance(self.archived, bool), "archived: must be true or false")

    @property
    def version(self) -> str:
        """Differs whenever a field does."""
        return sha256(repr(self).encode()).hexdigest()[:16]


def from_json(found: Any) -> Notes:
    """Notes from an object of JSON, whose other keys are ignored.

    Raises:
        InputError: it is not an object, or a field is not allowed.
    """
    require(isinstance(found, dict), "must be an object with tags, notes and archived")
    return Notes(**{each.name: found[each.name] for each in fields(Notes) if each.name in found})


def read_notes(folder: Path) -> Notes:
    """The notes of a run folder; empty ones if there are none.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    try:
        return from_json(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Notes()


def write_notes(folder: Path, root: Path, notes: Notes, version: str) -> Notes:
    """Writes the notes of an existing run folder, atomically.

    Args:
        folder: the run folder.
        root: the folder of all runs, which must contain it.
        notes: the new ones.
        version: of the notes that they replace.

    Returns:
        The notes that are in the folder now: others, if they have been changed since that version.

    Raises:
        InputError: the folder is gone or leads elsewhere, the file is damaged, or the folder cannot be written.
    """
    require(folder.is_dir(), f"{folder}: there is no such run any more")
    inside = folder.resolve().is_relative_to(root.resolve())
    require(inside and not (folder / FILE).is_symlink() and not leads_out(folder / FILE, root), f"{folder}: {LEADS_OUT}")
    with _writing:
        try:
            before = read_notes(folder)
            if before.version != version:
                return before
            replace_text(folder / FILE, json.dumps(asdict(notes), ensure_ascii=False, indent=1) + "\n")
        except OSError as error:
            raise InputError(f"{folder / FILE}: cannot be written ({error.strerror}); change who may write there") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{folder / FILE}: is damaged ({one_line(error, 160)}); mend or remove it") from error
    return notes
