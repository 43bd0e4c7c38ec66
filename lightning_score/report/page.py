"""The page of the report: its data as JSON, and its HTML."""

import base64
import gzip
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from lightning_score.report import figures, sweeps, tables
from lightning_score.report.pictures import embed_pictures, run_pictures
from lightning_score.report.reading import Run, find_runs
from lightning_score.runs.folders import LEADS_OUT, leads_out
from lightning_score.sweep.results import ENDED, Results, read_csv

SCRIPTS = ("state.js", "table.js", "figures.js", "pictures.js", "page.js")
STAGES = 12
"""Maximal number of validations with a Langevin figure."""


def page_data(root: Path) -> tuple[dict[str, Any], list[Run]]:
    """The data of the page without pictures, and the runs.

    Args:
        root: the folder of all runs.
    """
    runs, folders = find_runs(root)
    found = [_sweep(folder, root) for folder in folders]
    return {
        "root": str(root),
        "made": time.time(),
        "runs": [_run(run) for run in runs],
        "table": tables.runs_table(runs),
        "tests": tables.tests_table(runs),
        "panels": _panels(runs),
        "sweeps": found,
    }, runs


def _run(run: Run) -> dict[str, Any]:
    """One run, as the page's dialog shows it."""
    given = run.status.get("arguments")
    words = [str(word) for word in given] if isinstance(given, list) else []
    return {
        "name": run.name,
        "color": figures.color(run),
        "state": run.state,
        "note": run.note,
        "problems": run.problems,
        "config": run.config,
        "again": f"python -m lightning_score fit --config {shlex.quote(str(run.folder / 'config.yaml'))}",
        "given": shlex.join(["python", "-m", "lightning_score", *words]) if words else "",
        "folder": str(run.folder.absolute()),
        "pictures": {},
    }


MEASURED_ALIKE = "Two standard errors; values on one axis have the same features, data, split and number of samples."
EXCESS = (
    "Loss is 1/2 E||sigma s + z||^2, with weight sigma^2; the excess loss is its difference from the loss of the training "
    "data's exact score."
)
VARIANCE = "A variance ratio above 1 means remaining noise, or noise from too large a step; below 1 it means lost diversity."


def _panels(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """All figures of runs with their sections; figures of a single run have its number."""
    axes = figures.by_axis_of_runs(runs)
    labels = figures.axis_labels(axes)
    measures = {labels[axis]: figures.measurements(runs, records, labels[axis]) for axis, records in axes.items()}
    curves = {name: figures.curves(runs, name) for name in figures.metrics(runs)}
    panels = [
        _panel("measures", "Distance to the data", measures, MEASURED_ALIKE),
        _panel("curves", "Losses and other metrics", curves, "As logged in metrics.csv."),
    ]
    for i, run in enumerate(runs):
        panels.append(_panel("levels", "Loss per noise level", figures.levels(run), EXCESS, i))
        kept = _spread(run.langevin)
        stages = {f"step {entries['step']}": figures.langevin(entries) for entries in reversed(kept)}
        panels.append(_panel("langevin", "Langevin dynamics per noise level", stages, VARIANCE, i))
    return [panel for panel in panels if panel["views"]]


def _panel(
    section: str, title: str, views: Mapping[str, dict[str, Any]], caption: str, run: int | None = None
) -> dict[str, Any]:
    shown_views = [{"label": label, "figure": figure} for label, figure in views.items()]
    return {"section": section, "title": title, "caption": caption, "run": run, "views": shown_views}


def _spread(entries: Sequence[Any]) -> list[Any]:
    """At most `STAGES` entries, evenly spaced, including the first and the last."""
    n = len(entries)
    return list(entries) if n <= STAGES else [entries[round(i * (n - 1) / (STAGES - 1))] for i in range(STAGES)]


def _sweep(folder: Path, root: Path) -> dict[str, Any]:
    """A sweep with its figures and its table, or the reason why there are none."""
    name = str(folder.relative_to(root)) if folder != root else folder.resolve().name
    entry: dict[str, Any] = {"name": name, "problem": "", "text": "", "table": None, "panel": None, "summary": ""}
    files = ("trials.csv", "sweep.yaml", "summary.md")
    if any(leads_out(folder / file, root) for file in files):
        return entry | {"problem": f"a file of it {LEADS_OUT}"}
    try:
        found = read_csv(folder)
        entry["table"] = _with_columns(sweeps.table(found))
        entry["summary"] = _summary(found)
        entry["panel"] = _panel("sweeps", f"Sweep {name}", sweeps.views(found), _summary(found))
    except FileNotFoundError:
        entry["problem"] = "it has no table of trials yet"
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        entry["problem"] = f"its trials.csv cannot be read ({' '.join(str(error).split())[:160]})"
    for file in files[1:]:
        if (folder / file).is_file():
            entry["text"] += f"# {file}\n\n{(folder / file).read_text(encoding='utf-8', errors='replace')}\n"
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


def _with_columns(table: dict[str, Any]) -> dict[str, Any]:
    rows = table["rows"]
    columns = [{"title": title, "number": any(isinstance(row[j][0], (int, float)) for row in rows)}
               for j, title in enumerate(table["titles"])]  # fmt: skip
    return {"columns": columns, "rows": rows}


@cache
def _environment() -> Environment:
    return Environment(loader=PackageLoader("lightning_score.report", "parts"), autoescape=True)


@cache
def templates() -> dict[str, Any]:
    """Plotly's templates of the light and the dark theme."""
    import plotly.io

    return {name: plotly.io.templates[f"plotly_{theme}"].to_plotly_json() for name, theme in
            (("light", "white"), ("dark", "dark"))}  # fmt: skip


@cache
def own_file(name: str) -> str:
    """A file of the page from this package."""
    return (Path(__file__).parent / "parts" / name).read_text(encoding="utf-8")


@cache
def libraries() -> dict[str, str]:
    """The libraries of the page: Plotly, and DataTables from itables."""
    import itables
    from plotly.offline import get_plotlyjs

    folder = Path(itables.__file__).parent / "html"
    found = {name: (folder / name).read_text(encoding="utf-8") for name in ("dt_bundle.js", "dt_bundle.css")}
    return {"plotly.js": get_plotlyjs(), "datatables.js": found["dt_bundle.js"], "datatables.css": found["dt_bundle.css"]}


def render(data: Mapping[str, Any] | None, title: str) -> str:
    """The page with all libraries and data; without data, a page that requests them from its server.

    Args:
        data: the data of the page.
        title: its heading.
    """
    return _environment().get_template("page.html").render(
        title=title,
        data=None if data is None else packed(data),
        templates=htmlsafe_json_dumps(templates()),
        style=Markup(own_file("page.css")),
        script=Markup("\n".join(own_file(name) for name in SCRIPTS)),
        libraries={} if data is None else {name: Markup(text) for name, text in libraries().items()},
    )  # fmt: skip


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
    for entry, run in zip(data["runs"], runs, strict=True):
        entry["pictures"] = run_pictures(run, sources)
        entry["problems"] = run.problems
    data["left_out"] = sum(len(pictures) for run in runs for pictures in run.pictures.values()) - len(sources)
    return render(data, title)
