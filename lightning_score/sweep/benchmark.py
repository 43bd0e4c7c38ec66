"""The command `benchmark`: the speed, the memory and the quality of samplers on this machine, as a sweep over them."""

import inspect
import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lightning_score import sampling, stopping
from lightning_score.commands.arguments import Arguments
from lightning_score.commands.configs import find_config, shipped
from lightning_score.commands.parser import Parser
from lightning_score.errors import require
from lightning_score.runs.pretrained import pinned
from lightning_score.runs.yaml_files import read_mapping
from lightning_score.sweep.attempts import SLOT
from lightning_score.sweep.charts import pareto_charts
from lightning_score.sweep.cli import run_sweep, sweep_parser
from lightning_score.sweep.drawing import draw_charts
from lightning_score.sweep.folder import FILE
from lightning_score.sweep.loaded import LoadedCommand
from lightning_score.sweep.processes import PATIENCE, Interruption
from lightning_score.sweep.results import Results
from lightning_score.sweep.rows import difference, format_number, setting_text, short_name, state_text
from lightning_score.sweep.spec import Sweep, from_entries
from lightning_score.sweep.study import METRICS, Study
from lightning_score.sweep.summary import collect_results, write_summary

OWN = "own"
"""The name of the checkpoint's own sampler."""
NAMES = f"{OWN},DDIM,Heun,IPNDM,UniPC,DPMSolver2M,SDEDPMSolver2M,SASolver"
SECONDS = "test/sampling_seconds"
NAMED = {"test/memory_gb": "GB", "test/gpu_memory_gb": "GB of GPU"}
"""The most memory while samples are drawn, and the titles of its columns."""
FEWEST = 20
"""Samples for an error of a distance, which leaves out a tenth of them at a time."""


def benchmark(arguments: Arguments) -> None:
    """Draws and measures samples of a checkpoint by one sampler after the other, and prints and draws the results.

    Args:
        arguments: `benchmark` and its options; others than its own are those of `test`.

    Raises:
        InputError: an option, the checkpoint or a sampler is refused, or nothing can be measured on its data.
    """
    parser = _parser()
    own = {action.dest for action in parser._actions} | {"h"}
    mine = [option for option in arguments.options if option.name.lstrip("-").partition(".")[0] in own or not option.name]
    options = parser.parse_args(Arguments("benchmark", tuple(mine)))
    n = options.num_samples
    require(n is None or n >= FEWEST, f"--num_samples {n}: must be at least {FEWEST}, so that the distance has an error")
    rest = Arguments("", tuple(option for option in arguments.options if option not in mine)).words()
    given = ["test", f"--ckpt_path={pinned(options.ckpt_path)}", *([f"--trust={options.trust}"] if options.trust else []),
             *([f"--evaluate.num_samples={n}"] if n else []), "--evaluate.neighbors=0", *rest]  # fmt: skip
    command = LoadedCommand(given)
    spec = _sweep(command, options, given)
    words = [f"--runs={options.runs}", f"--name={spec.name}"]
    conclude = partial(_conclude, _own(command), command.made["evaluate"].repeats)
    with stopping.patience(), Interruption(at_once=True, patience=3 * PATIENCE) as interruption:
        run_sweep(spec, Path(FILE), sweep_parser().parse_args(words), interruption, conclude)
        if interruption.requested:
            raise SystemExit(interruption.code)


def _sweep(command: LoadedCommand, options: Any, given: list[str]) -> Sweep:
    """The sweep over the samplers that the user names, on a loaded checkpoint."""
    evaluate, data = command.made["evaluate"], command.datamodule
    evaluate.check(data)
    require(
        evaluate.metric is not None,
        f"--ckpt_path {options.ckpt_path}: nothing measures samples of {type(data).__name__} of shape {list(data.shape)}; "
        "give --evaluate.features, as InceptionFeatures for images, or --evaluate.distances",
    )
    name = options.name or f"benchmark_{command.config['name']}"
    entries = {
        "name": name,
        "method": "grid",
        "metrics": [{"name": f"test/{evaluate.metric}"}, {"name": SECONDS}],
        "parameters": _parameters(command, options.samplers, options.steps),
        "command": ["${env}", "${interpreter}", "-m", "lightning_score", *given, "${args}"],
    }
    text = yaml.safe_dump(entries, sort_keys=False, width=120)
    return from_entries(yaml.safe_load(text), "benchmark", text, name)


def _parameters(command: LoadedCommand, wanted: str, steps: list[int]) -> dict[str, Any]:
    """The parameters of the sweep: samplers by their names, each with each number of steps, or those of a file."""
    names = [name.strip() for name in wanted.split(",")]
    kinds = {name: kind for name, kind in inspect.getmembers(sampling, inspect.isclass) if not inspect.isabstract(kind)}
    known = {name for name, kind in kinds.items() if issubclass(kind, sampling.Predictor | sampling.Sampler)}
    if not {*names} <= {OWN, *known}:
        return _from_file(wanted, sorted(known))
    own = _own(command)
    values: list[Any] = []
    for name in names:
        if name == OWN:
            values.append(own or None)  # null: the default one
        elif issubclass(kinds[name], sampling.Sampler):
            values.append({"class_path": name})
        else:
            values += _samplers(name, own, steps, command)
    require(bool(values), f"--steps {steps}: must have a number of steps, at most that of the model's levels; give [5, 10]")
    return {"model.sampler": {"values": values}}


def _own(command: LoadedCommand) -> dict[str, Any]:
    """The settings of the sampler of the checkpoint; empty for the default one."""
    own = command.config["model"]["sampler"]
    return {} if own is None else own.as_dict()


def _samplers(name: str, own: Mapping[str, Any], steps: list[int], command: LoadedCommand) -> Iterator[dict[str, Any]]:
    """A predictor with each number of steps, on the checkpoint's grid and with its final denoise where it has them; else on
    the levels at which the model was trained, or on those of Karras et al.
    """
    process = command.model.score_function.process
    levels = command.model.objective.levels(process)
    settings = own.get("init_args") or {}
    grid = settings.get("grid") or {}
    if "steps" not in (grid.get("init_args") or {}):
        grid = {"class_path": "Karras" if levels is None else "ProcessTable"}
    to_clean_data = grid["class_path"].endswith("ProcessTable")
    denoise = settings.get("denoise") if own.get("class_path", "").endswith("PredictorCorrector") else None
    for n in steps:
        if levels is None or not to_clean_data or n <= len(levels):
            inner = {**(grid.get("init_args") or {}), "steps": n}
            arguments = {"predictor": name, "grid": {**grid, "init_args": inner}}
            arguments["denoise"] = denoise or ("LastMean" if to_clean_data else "Tweedie")
            yield {"class_path": "PredictorCorrector", "init_args": arguments}


def _from_file(name: str, known: list[str]) -> dict[str, Any]:
    """The settings of samplers in a sweep file."""
    shown = f"the name of a sampler ({', '.join(known)}), {OWN}, or a sweep, as solvers"
    found = Path(name).is_file() or (shipped("sweeps") / f"{Path(name).stem}.yaml").is_file()
    require(found, f"--samplers {name}: must be {shown}; several names with commas")
    file = find_config(name, "sweeps", "--samplers ")
    parameters = read_mapping(file, "sweep", "parameters: {model.sampler: {values: [DDIM]}}")[0].get("parameters")
    given = parameters.items() if isinstance(parameters, dict) else ()
    kept = {key: value for key, value in given if str(key).startswith("model.")}
    require(bool(kept), f"--samplers {name}: has no samplers; give a sweep over model.sampler")
    return kept


@dataclass
class Benchmark(Results):
    """The results with speed and memory, the fastest sampler first.

    Attributes:
        metrics: all metrics of the trials, by their numbers.
        repeats: sampling seeds of each.
    """

    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    repeats: int = 1

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Titles and lines; differences are to the best."""
        front, best = {row.number for row in self.front()}, self.ranked[:1]
        memory = [name for name in NAMED if any(name in found for found in self.metrics.values())]
        titles = ["trial", *self.varied, "NFE", "images/s", "seconds", *(NAMED[name] for name in memory),
                  self.metric.partition("/")[2], "+-", "to the best", "+-", "front"]  # fmt: skip
        lines = []
        for row in sorted(self.rows, key=lambda row: (row.state != "complete", row.values.get(SECONDS, math.inf))):
            seconds, found = row.values.get(SECONDS, math.nan), self.metrics.get(row.number, {})
            gap, error = difference(row, best[0]) if best and row is not best[0] else (math.nan, math.nan)
            numbers = (row.nfe, row.n * self.repeats / seconds, seconds, *(found.get(name, math.nan) for name in memory),
                       row.value, 2 * row.error, gap, 2 * error)  # fmt: skip
            settings = (str(row.settings.get(name, "")) for name in self.varied)
            shown = "yes" if row.number in front else "" if row.state == "complete" else state_text(row)
            lines.append([str(row.number), *settings, *map(format_number, numbers), shown])
        return titles, lines


def _conclude(own: Any, repeats: int, spec: Sweep, study: Study, folder: Path) -> None:
    """Writes and prints the results.

    Args:
        own: the settings of the checkpoint's sampler.
        repeats: sampling seeds of each trial.
        spec: the sweep.
        study: its trials.
        folder: for the files.
    """
    found = collect_results(spec, study)
    metrics = {trial.user_attrs.get(SLOT, trial.number): trial.user_attrs.get(METRICS, {}) for trial in study.trials()}
    rows = [replace(row, settings=_short(row.settings, own)) for row in found.rows]
    names = dict.fromkeys(name for row in rows for name in row.settings)
    varied = [name for name in names if len({row.settings.get(name) for row in rows}) > 1] or [*names][:1]
    shown = Benchmark(**vars(found) | {"rows": rows, "varied": varied}, metrics=metrics, repeats=repeats)
    if shown.ranked:
        best = next(row for row in found.rows if row.number == shown.ranked[0].number)
        shown.again = f"python -m lightning_score {shlex.join(spec.arguments(best.settings).command_line())}"
    write_summary(found, shown, folder, _draw)


def _draw(found: Results, folder: Path) -> list[Path]:
    """The distance against seconds with two standard errors and the front."""
    return draw_charts(pareto_charts(found, colored=True), found.name, found.varied, folder)


def _short(settings: Mapping[str, Any], own: Any) -> dict[str, str]:
    """The settings of a trial for its row: the sampler, or its predictor and corrector, its grid, and what else there is."""
    short = {short_name(name): setting_text(value) for name, value in settings.items()}
    sampler = settings.get("model.sampler")
    if not isinstance(sampler, Mapping):
        return short | ({"sampler": OWN} if "model.sampler" in settings else {})
    inner = sampler.get("init_args") or {}
    parts = [setting_text(inner[name]) for name in ("predictor", "corrector") if inner.get(name)]
    if sampler == own:
        parts = [f"{OWN} ({' + '.join(part.partition('(')[0] for part in parts or [setting_text(sampler)])})"]
    others = {name: value for name, value in inner.items() if name in ("step_size", "steps") and not parts}
    text = ", ".join([" + ".join(parts) or setting_text({"class_path": sampler.get("class_path", "")}),
                      *(f"{name}={value}" for name, value in others.items())])  # fmt: skip
    return {**short, "sampler": text, "grid": setting_text(inner["grid"]) if inner.get("grid") else ""}


def _parser() -> Parser:
    parser = Parser(
        prog="python -m lightning_score benchmark",
        description="Measures images per second, memory and FID of samplers on this machine. Other options are test's.",
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help="The checkpoint, or a model of the package.")
    parser.add_argument("--trust", type=str, help="Modules of which a checkpoint may name classes, as my_parts,others.")
    samplers = f"Names with commas, or a sweep, as solvers; {OWN} is the sampler of the checkpoint."
    parser.add_argument("--samplers", type=str, default=NAMES, help=samplers)
    steps = "Steps of each named predictor, on the grid of the checkpoint's sampler."
    parser.add_argument("--steps", type=list[int], default=[5, 10, 20], help=steps)
    number = "Samples of each sampler; as many as the checkpoint measures by default."
    parser.add_argument("--num_samples", type=int | None, default=None, help=number)
    parser.add_argument("--name", type=str | None, default=None, help="Name of the results; benchmark_MODEL by default.")
    parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs; results go to RUNS/sweeps/NAME.")
    return parser
