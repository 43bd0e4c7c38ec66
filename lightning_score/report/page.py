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

import yaml
from jinja2 import Environment, PackageLoader

from lightning_score.errors import one_line
from lightning_score.report import figures, sweeps, tables
from lightning_score.report.finding import Reader
from lightning_score.report.pictures import add_pictures, embed_pictures
from lightning_score.report.reading import LINES, Run, folder_name
from lightning_score.report.values import plain_settings, values
from lightning_score.runs.folders import LEADS_OUT, leads_out
from lightning_score.sweep.results import ENDED, Results, read_csv


def page_data(root: Path, reader: Reader | None = None) -> tuple[dict[str, Any], list[Run]]:
    """The data of the page without pictures, and the runs.

    Args:
        root: the folder of all runs.
        reader: one that has read them.
    """
    reader = reader or Reader(root).look()
    runs = reader.runs
    return {
        "root": str(root),
        "made": time.time(),
        "runs": [_run(run) | _logs(run, len(runs)) | drawn for run, drawn in zip(runs, figures.data_of(runs), strict=True)],
        "measures": figures.floors(runs),
        "student": figures.student(len(runs)),
        "colors": figures.COLORS,
        "table": tables.runs_table(runs),
        "tests": tables.tests_table(runs),
        "sweeps": [reader.once(folder, version, _sweep) for folder, version in reader.sweeps.items()],
    }, runs


def _run(run: Run) -> dict[str, Any]:
    """One run, as the page's dialog shows it."""
    given = run.status.get("arguments")
    words = [str(word) for word in given] if isinstance(given, list) else []
    return {
        "name": run.name,
        "state": run.state,
        "note": run.note,
        "problems": run.problems,
        "config": run.config,
        "again": f"python -m lightning_score fit --config {shlex.quote(str(run.folder / 'config.yaml'))}",
        "given": shlex.join(["python", "-m", "lightning_score", *words]) if words else "",
        "folder": str(run.folder.absolute()),
        "settings": plain_settings(run),
        "values": values(run),
        "tags": [*run.notes.tags],
        "notes": run.notes.notes,
        "archived": run.notes.archived,
        "notes_version": run.notes.version,
        "pictures": {},
    }


def _logs(run: Run, n: int) -> dict[str, Any]:
    """The console and the system metrics of one of n runs; for many runs less of each."""
    few = min(1.0, 50 / n)
    system = {}
    for name, curve in run.system.items():
        kept = figures.evenly(len(curve.steps), max(int(120 * few), 10))
        hours = figures.rounded((curve.times[i] - run.started) / 3600 for i in kept)
        values = figures.rounded(curve.values[i] for i in kept)
        system[name] = {"steps": [curve.steps[i] for i in kept], "hours": hours, "values": values}
    return {"console": run.console[-max(int(LINES * few), 20) :], "system": system}


def _panel(section: str, title: str, views: Mapping[str, Any], caption: str, run: int | None = None) -> dict[str, Any]:
    figures_by_label = [{"label": label, "figure": figure} for label, figure in views.items()]
    return {"section": section, "title": title, "caption": caption, "run": run, "views": figures_by_label}


def _sweep(folder: Path, root: Path) -> dict[str, Any]:
    """A sweep with its figures and its table, or the reason why there are none."""
    name = folder_name(folder, root)
    entry: dict[str, Any] = {"name": name, "problem": "", "text": "", "table": None, "panel": None, "summary": ""}
    files = [folder / file for file in ("trials.csv", "sweep.yaml", "summary.md")]
    if any(leads_out(file, root) for file in files):
        return entry | {"problem": f"a file of it {LEADS_OUT}"}
    try:
        found = read_csv(folder)
        summary = _summary(found)
        panel = _panel("sweeps", f"Sweep {name}", sweeps.views(found), summary)
        entry |= {"table": sweeps.trials_table(found), "panel": panel, "summary": summary}
    except FileNotFoundError:
        entry["problem"] = "it has no table of trials yet"
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        entry["problem"] = f"its trials.csv cannot be read ({one_line(error, 160)})"
    shown = [file for file in files[1:] if file.is_file()]
    entry["text"] = "".join(f"# {file.name}\n\n{file.read_text(encoding='utf-8', errors='replace')}\n" for file in shown)
    return entry


def _summary(found: Results) -> str:
    """A sentence about the best trial."""
    ended = [row for row in found.rows if row.state in ENDED]
    counts = f"{len(ended)} of {len(found.rows)} trials have ended."
    if not found.ranked:
        return counts
    best = found.ranked[0]
    settings = ", ".join(best.texts(found.varied))
    value = tables.with_two_errors(best.value, best.error)
    return f"{counts} Best: trial {best.number}, {found.metric} {value} with {settings}."


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


def render(data: Mapping[str, Any] | None, title: str, token: str = "") -> str:
    """The page with all libraries and data; without data, a page that requests them from its server.

    Args:
        data: the data of the page.
        title: its heading.
        token: what the server wants with a change, so that it comes from this page.
    """
    template = Environment(loader=PackageLoader(__package__, "parts"), autoescape=True).get_template("page.html")
    own = None if data is None else packed(data)
    return template.render(title=title, data=own, token=token, templates=templates(), libraries=libraries())


def packed(data: Mapping[str, Any]) -> str:
    """The data in the page: compressed JSON in base64."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def render_page(root: Path, title: str, size: int) -> str:
    """The page with as many embedded pictures as its size allows.

    Args:
        root: the folder of all runs.
        title: its heading.
        size: maximal size of the page in bytes.
    """
    data, runs = page_data(root)
    room = size - len(render(data, title).encode())
    sources = embed_pictures(runs, int(0.95 * room))  # compression removes most of the second base64
    add_pictures(data, runs, sources)
    data["left_out"] = sum(len(pictures) for run in runs for pictures in run.pictures.values()) - len(sources)
    return render(data, title)
