"""The page of the report: its data as JSON, and its HTML."""

import base64
import gzip
import json
import shlex
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from lightning_score.report import figures, sweeps, tables
from lightning_score.report.finding import Reader
from lightning_score.report.pictures import add_pictures, embed_pictures
from lightning_score.report.reading import LINES, Run
from lightning_score.report.standings import best_first, standings
from lightning_score.report.values import entry_of


def page_data(root: Path, reader: Reader | None = None) -> tuple[dict[str, Any], list[Run]]:
    """The data of the page without pictures, and the runs and the trials with pictures.

    Args:
        root: the folder of all runs.
        reader: one that has read them.
    """
    reader = reader or Reader(root).look()
    runs = reader.runs
    found = [reader.once(folder, version, sweeps.sweep_data) for folder, version in reader.sweeps.items()]
    return {
        "root": str(root),
        "made": time.time(),
        "runs": [_run(run) | _logs(run, len(runs)) | drawn for run, drawn in zip(runs, figures.data_of(runs), strict=True)],
        "measures": figures.floors(runs),
        "student": figures.student(len(runs)),
        "colors": figures.COLORS,
        "standings": standings(runs),
        "table": tables.runs_table(runs),
        "tests": tables.tests_table(runs),
        "sweeps": [entry | {"trials": [{**trial} for trial in entry["trials"]]} for entry, _ in found],
    }, [*runs, *(trial for _, trials in found for trial in trials)]


def _run(run: Run) -> dict[str, Any]:
    """One run, as the page's dialog shows it."""
    given = run.status.get("arguments")
    words = [str(word) for word in given] if isinstance(given, list) else []
    return entry_of(run) | {
        "config": run.config,
        "again": f"python -m lightning_score fit --config {shlex.quote(str(run.folder / 'config.yaml'))}",
        "given": shlex.join(["python", "-m", "lightning_score", *words]) if words else "",
        "notes_version": run.notes.version,
        "pictures": {},
    }


def _logs(run: Run, n: int) -> dict[str, Any]:
    """The console and the system metrics of one of n runs; for many runs less of each."""
    few = min(1.0, 50 / n)
    most = max(int(120 * few), 10)
    system = {name: figures.points(run, curve, figures.evenly(len(curve.steps), most)) for name, curve in run.system.items()}
    return {"console": run.console[-max(int(LINES * few), 20) :], "system": system}


@cache
def templates() -> dict[str, Any]:
    """Plotly's templates of the light and the dark theme."""
    import plotly.io

    themes = {"light": "plotly_white", "dark": "plotly_dark"}
    return {name: plotly.io.templates[theme].to_plotly_json() for name, theme in themes.items()}


@cache
def libraries() -> dict[str, str]:
    """The libraries of the page: Plotly, and DataTables from itables."""
    import itables
    from plotly.offline import get_plotlyjs

    folder = Path(itables.__file__).parent / "html"
    texts = {f"datatables.{kind}": (folder / f"dt_bundle.{kind}").read_text(encoding="utf-8") for kind in ("js", "css")}
    return {"plotly.js": get_plotlyjs(), **texts}


FIRST = ("root", "made", "runs", "standings", "table")
"""What the first screen needs; the page unpacks the rest later."""
LATER = ("config", "again", "given", "curves", "measures", "langevin", "system", "console")
"""What it does not need of a run."""
FOR_PROBLEMS = 2000
"""Bytes of the page that are kept for messages about damaged pictures."""


def split(data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data of the first screen, and the rest."""
    first = {name: data[name] for name in FIRST}
    first["runs"] = [{name: value for name, value in run.items() if name not in LATER} for run in data["runs"]]
    rest = {name: value for name, value in data.items() if name not in FIRST}
    rest["runs"] = [{name: run[name] for name in LATER if name in run} for run in data["runs"]]
    return first, rest


def render(data: Mapping[str, str] | None, title: str, token: str = "") -> str:
    """The page with its packed parts and libraries; without them, a page that requests both from its server.

    Args:
        data: packed parts of the data by their names.
        title: its heading.
        token: what the server wants with a change, so that it comes from this page.
    """
    template = Environment(loader=PackageLoader(__package__, "parts"), autoescape=True).get_template("page.html")
    own = None if data is None else {**packed_libraries(), **data}
    return template.render(title=title, data=own, token=token, templates=templates(), libraries=libraries())


def packed(text: str) -> str:
    """A text in the page: compressed, in base64."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


def packed_json(data: Mapping[str, Any]) -> str:
    """Data in the page."""
    return packed(json.dumps(data, separators=(",", ":"), allow_nan=False))


@cache
def packed_libraries() -> dict[str, str]:
    """The JavaScript libraries in the page."""
    return {name: packed(text) for name, text in libraries().items() if name.endswith(".js")}


def render_page(root: Path, title: str, size: int) -> str:
    """The page with as many embedded pictures as its size allows.

    Args:
        root: the folder of all runs.
        title: its heading.
        size: maximal size of the page in bytes.
    """
    data, runs = page_data(root)
    files = [picture.file for run in runs for pictures in run.pictures.values() for picture in pictures]
    add_pictures(data, runs, {file: i for i, file in enumerate(files)})
    first, more = split(data)
    parts = {"first": packed_json(first), "more": packed_json(more), "sources": "\n" * len(files)}
    room = size - len(render(parts, title).encode()) - FOR_PROBLEMS
    sources = embed_pictures([runs[i] for i in best_first(data["standings"], len(runs))], room)
    parts["first"] = packed_json(first)  # with the problems of damaged pictures
    parts["sources"] = "\n".join(sources.get(file, "") for file in files)  # the page forgets those without a source
    return render(parts, title)
