"""The same panels on W&B, as a workspace or a report of a project."""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import combinations, islice
from typing import Any

import requests

from lightning_score.errors import InputError, one_line, require
from lightning_score.runs.wandb_logger import STEP

PICTURES = ["samples", "progress", "spectrum", "histogram", "ranks", "ensembles", "coverage", "posterior", "langevin",
            "loss_per_sigma", "weighting", "score", "neighbors"]  # fmt: skip
"""Names of pictures for a project without pictures."""
LOOKED_AT = 100
"""Number of the newest runs whose metrics, pictures and sweeps get panels."""


def publish(path: str, kind: str) -> str:
    """Creates the panels for a project and returns their address.

    Args:
        path: `entity/project`.
        kind: workspace, which shows new runs, or report, which is a document.

    Raises:
        InputError: the project or the account is missing, or the server does not answer.
    """
    require(path.count("/") == 1 and all(path.split("/")), f"--wandb {path}: must be ENTITY/PROJECT")
    import wandb

    settings = wandb.setup().settings
    if enabled := settings.mode != "disabled":
        _check_reachable(path, settings.base_url)
    has_account = enabled and wandb.login(prompt=False, verify=False)
    require(has_account, "--wandb: needs an account and its API key; run `wandb login`, or set WANDB_API_KEY")
    entity, project = path.split("/")
    try:
        sections = _sections(*_read_project(entity, project))
        made = (_workspace if kind == "workspace" else _report)(entity, project, sections)
        made.save()
        return made.url
    except Exception as error:  # from the server, the network or W&B
        raise InputError(f"--wandb {path}: cannot be created ({one_line(error, 200)})") from error


def _check_reachable(path: str, url: str) -> None:
    """Asks the server before W&B's client does, which retries for minutes and can hang at the end of the process."""
    try:
        requests.head(url, timeout=20)
    except requests.exceptions.SSLError:
        pass  # W&B's client has its own certificates
    except requests.RequestException as error:
        raise InputError(f"--wandb {path}: {url} cannot be reached; check the network or WANDB_BASE_URL") from error


def _read_project(entity: str, project: str) -> tuple[list[str], list[str], list[str], list[tuple[str, str]]]:
    """The names of Frechet distances, of pictures, and of varied parameters in the newest runs of a project, and the pairs
    of objectives of its sweeps.
    """
    import wandb

    api = wandb.Api()
    distances, pictures, varied, pairs = set(), set(), set(), set()
    for run in islice(api.runs(f"{entity}/{project}", order="-created_at", per_page=LOOKED_AT), LOOKED_AT):
        summary = dict(run.summary)
        distances |= {name for name in summary if f"{name}_n" in summary}
        pictures |= {name for name, value in summary.items()
                     if isinstance(value, Mapping) and str(value.get("_type", "")).startswith("image")}  # fmt: skip
        if run.sweep_name:
            sweep = api.sweep(f"{entity}/{project}/{run.sweep_name}").config
            # a search space does not list its parameters
            drawn: dict[str, Any] = {name: {} for name in run.config if "." in name}
            parameters = sweep.get("parameters") or drawn
            pairs |= {*combinations([objective["name"] for objective in sweep.get("metrics", [])], 2)}
            places = _places(run.config)
            varied |= {places.get(name, name) for name, entry in parameters.items()
                       if "value" not in entry and len(entry.get("values", "ab")) > 1}  # fmt: skip
    return sorted(distances), sorted(pictures) or PICTURES, sorted(varied), sorted(pairs)


def _places(config: Mapping[str, Any]) -> dict[str, str]:
    """The paths in the nested config of a run, by option: `model.sampler.steps` is `model.sampler.init_args.steps`."""
    paths = sorted(_paths(config), key=len)  # the nested path after an agent's option, which is one key
    return {re.sub(r"\.(init_args|class_path)(?=\.|$)", "", path): path for path in paths}


def _paths(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        yield from _paths(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [f"{prefix}{name}"]


def _sections(
    distances: list[str], pictures: list[str], varied: list[str], pairs: list[tuple[str, str]]
) -> list[tuple[str, list[Any]]]:
    """The panels with the headings of the page, for names that the runs have logged."""
    import wandb_workspaces.reports.v2.interface as wr

    plot = partial(wr.LinePlot, x=STEP, title_x="training steps")
    training = [name for name in distances if name.startswith("val/")]
    after = [name for name in distances if name.startswith("test/")]
    measures: list[Any] = [plot(title=name, y=[name, f"{name}_floor"], log_y=True) for name in training]
    measures = measures or [plot(title="Frechet distance", metric_regex=r"val/fid_.*", log_y=True)]
    measures += [wr.ScalarChart(title=f"best {name}", metric=wr.SummaryMetric(f"best/{name}")) for name in training]
    levels = [
        plot(title=f"{loss}, {split} data, per noise level".replace("_", " "), metric_regex=rf"val/{loss}_{split}/.*")
        for loss in ("excess_loss", "loss") for split in ("held_out", "train")
    ]  # fmt: skip
    health = ("langevin_variance_ratio", "langevin_snr")
    sweeps: list[Any] = [
        wr.ScatterPlot(title=f"{one} and {other}", x=wr.SummaryMetric(other), y=wr.SummaryMetric(one))
        for one, other in pairs
    ]
    time = wr.SummaryMetric("_timestamp")
    for metric in [*after, *training]:
        value, nfe = wr.SummaryMetric(metric), wr.SummaryMetric(f"{metric.partition('/')[0]}/nfe")
        axes = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name)) for name in varied]
        axes += [wr.ParallelCoordinatesPlotColumn(metric=value, log=True)]
        panels = [
            wr.ParallelCoordinatesPlot(title=metric, columns=axes),
            wr.ScatterPlot(title=f"{metric} and network evaluations", x=nfe, y=value, log_y=True),
            wr.ParameterImportancePlot(with_respect_to=metric),
            wr.ScatterPlot(title=f"best {metric} so far", x=time, y=value, log_y=True, running_ymin=True),
            *(wr.ScatterPlot(title=f"{metric} and {name}", x=wr.Config(name), y=value, log_y=True) for name in varied),
        ]
        sweeps += panels if varied else panels[1:2]
    return [
        ("Distance to the data", measures),
        ("Pictures", [wr.MediaBrowser(title=name, media_keys=[name], num_columns=3) for name in pictures]),
        ("Losses and other metrics", [plot(title=name, y=[name]) for name in ("train/loss", "val/loss", "train/lr")]),
        ("Loss per noise level", levels),
        ("Langevin dynamics", [plot(title=name, y=[f"val/{name}"]) for name in health]),
        ("Sweeps", sweeps),
        ("Measured afterwards", [wr.BarPlot(title=name, metrics=[name]) for name in after]),
        ("Two runs side by side", [wr.RunComparer(diff_only="split")]),
    ]


def _workspace(entity: str, project: str, sections: list[tuple[str, list[Any]]]) -> Any:
    import wandb_workspaces.workspaces as ws

    made = [ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections]
    settings = ws.WorkspaceSettings(x_axis=STEP)
    return ws.Workspace(entity=entity, project=project, name="lightning_score", sections=made, settings=settings)


def _report(entity: str, project: str, sections: list[tuple[str, list[Any]]]) -> Any:
    import wandb_workspaces.reports.v2.interface as wr

    blocks: list[Any] = []
    for name, panels in sections:
        grid = wr.PanelGrid(runsets=[wr.Runset(entity=entity, project=project)], panels=panels)
        blocks += [wr.H1(text=name), grid]
    return wr.Report(entity=entity, project=project, title=f"{project}: score-based models", width="fluid", blocks=blocks)
