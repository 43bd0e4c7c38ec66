"""The same panels on W&B, as a workspace or a report of a project."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning_score.errors import InputError, require

STEP = "trainer/global_step"
PICTURES = ["samples", "progress", "langevin", "loss_per_sigma", "score", "neighbors"]
"""Names of pictures for a project without pictures."""
LOOKED_AT = 100
"""Number of the newest runs whose metrics, pictures and sweeps get panels."""


class Project(NamedTuple):
    """The names of Frechet distances, of pictures, and of varied parameters in a project."""

    distances: list[str]
    pictures: list[str]
    varied: list[str]


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

    require(
        wandb.setup().settings.mode != "disabled" and bool(wandb.login(prompt=False, verify=False)),
        "--wandb: needs an account and its API key, by `wandb login` or in WANDB_API_KEY; without --wandb, `report` "
        "writes a page",
    )
    entity, project = path.split("/")
    try:
        found = _read_project(entity, project)
        made = (_workspace if kind == "workspace" else _report)(entity, project, _sections(found))
        made.save()
        return made.url
    except Exception as error:  # from the server, the network or W&B
        raise InputError(f"--wandb {path}: cannot be created ({' '.join(str(error).split())[:200]})") from error


def _read_project(entity: str, project: str) -> Project:
    """Reads the newest runs."""
    import wandb

    api = wandb.Api()
    distances, pictures, varied = set(), set(), set()
    for i, run in enumerate(api.runs(f"{entity}/{project}", order="-created_at", per_page=LOOKED_AT)):
        if i == LOOKED_AT:
            break
        summary = dict(run.summary)
        distances |= {name for name in summary if f"{name}_n" in summary}
        pictures |= {name for name, value in summary.items() if _is_picture(value)}
        if run.sweep_name:
            names = _varied(api, f"{entity}/{project}/{run.sweep_name}")
            varied |= {_place(run.config, name) for name in names}
    return Project(sorted(distances), sorted(pictures) or PICTURES, sorted(varied))


def _is_picture(value: Any) -> bool:
    return isinstance(value, Mapping) and str(value.get("_type", "")).startswith("image")


def _varied(api: Any, path: str) -> list[str]:
    """The parameters of a sweep with more than one value."""
    parameters = api.sweep(path).config.get("parameters", {})
    return [name for name, entry in parameters.items() if "value" not in entry and len(entry.get("values", "ab")) > 1]


def _place(config: Mapping[str, Any], name: str) -> str:
    """The path of an option in the nested config of a run: `model.sampler.steps` is `model.sampler.init_args.steps`."""
    found: Any = config
    path: list[str] = []
    for part in name.split("."):
        if isinstance(found, Mapping) and part not in found and isinstance(found.get("init_args"), Mapping):
            path, found = [*path, "init_args"], found["init_args"]
        if not isinstance(found, Mapping) or part not in found:
            return name
        path, found = [*path, part], found[part]
    return ".".join([*path, "class_path"] if isinstance(found, Mapping) and "class_path" in found else path)


def _sections(found: Project) -> list[tuple[str, list[Any]]]:
    """The panels, by their headings."""
    import wandb_workspaces.reports.v2 as wr

    training = [name for name in found.distances if name.startswith("val/")]
    after = [name for name in found.distances if name.startswith("test/")]
    distances = [
        wr.LinePlot(title=name, x=STEP, y=[name, f"{name}_floor"], log_y=True, title_x="training steps") for name in training
    ] or [wr.LinePlot(title="Frechet distance", x=STEP, metric_regex=r"val/fid_.*", log_y=True, title_x="training steps")]
    distances += [wr.ScalarChart(title=f"best {name}", metric=wr.SummaryMetric(f"best/{name}")) for name in training]
    losses = [wr.LinePlot(title=name, x=STEP, y=[name], title_x="training steps") for name in ("train/loss", "val/loss")]
    levels = [
        wr.LinePlot(title=f"{what}, {split.replace('_', ' ')} data, per noise level", x=STEP, title_x="training steps",
                    metric_regex=rf"val/{name}_{split}/.*")
        for name, what in (("excess_loss", "excess loss"), ("loss", "loss")) for split in ("held_out", "train")
    ]  # fmt: skip
    health = [wr.LinePlot(title=name, x=STEP, y=[f"val/{name}"], title_x="training steps")
              for name in ("langevin_variance_ratio", "langevin_snr")]  # fmt: skip
    pictures = [wr.MediaBrowser(title=name, media_keys=[name], num_columns=3) for name in found.pictures]
    sections = [("Distance to the data", distances), ("Pictures", pictures), ("Loss", losses),
                ("Loss per noise level", levels), ("Langevin dynamics", health)]  # fmt: skip
    sweeps: list[Any] = []
    for metric in [*after, *training]:
        axes = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name)) for name in found.varied]
        last = wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(metric), log=True)
        sweeps += [wr.ParallelCoordinatesPlot(title=metric, columns=[*axes, last])] if axes else []
        nfe = wr.SummaryMetric(f"{metric.partition('/')[0]}/nfe")
        sweeps.append(
            wr.ScatterPlot(title=f"{metric} and network evaluations", x=nfe, y=wr.SummaryMetric(metric), log_y=True)
        )
        sweeps += [wr.ParameterImportancePlot(with_respect_to=metric)] if axes else []
    return [*sections, ("Sweeps", [*sweeps, wr.RunComparer(diff_only="split")])]


def _workspace(entity: str, project: str, sections: list[tuple[str, list[Any]]]) -> Any:
    import wandb_workspaces.workspaces as ws

    made = [ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections]
    settings = ws.WorkspaceSettings(x_axis=STEP)
    return ws.Workspace(entity=entity, project=project, name="lightning_score", sections=made, settings=settings)


def _report(entity: str, project: str, sections: list[tuple[str, list[Any]]]) -> Any:
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = []
    for name, panels in sections:
        grid = wr.PanelGrid(runsets=[wr.Runset(entity=entity, project=project)], panels=panels)
        blocks += [wr.H1(text=name), grid]
    return wr.Report(entity=entity, project=project, title=f"{project}: score-based models", width="fluid", blocks=blocks)
