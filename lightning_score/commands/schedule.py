"""Noise levels from a data set: the command `schedule`, and `auto` in the process of `fit`."""

import os
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from torch import Tensor

from lightning_score.commands.arguments import CONFIG, Arguments, Layer
from lightning_score.commands.configs import find_config, read_config
from lightning_score.commands.parser import Parser
from lightning_score.data import ScoreData
from lightning_score.errors import require
from lightning_score.files import replace_text, replacing
from lightning_score.interop.base import part
from lightning_score.process import ladder
from lightning_score.seeds import seeded

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def schedule(arguments: Arguments) -> None:
    """Derives noise levels and a step size from data, prints the derivation, and writes a config and a picture on request.

    Args:
        arguments: `schedule` and its options.
    """
    parser = _parser()
    layers = [Layer(_parts_of(file), str(file)) for file in map(find_config, arguments.get(CONFIG))]
    config = parser.parse_args(arguments.drop(CONFIG).over(*layers))
    require(config.data is not None, "schedule needs data: --data Digits, or a config that names them: --config ncsn")
    require_new_files(config)
    data = parser.instantiate_classes(config).data
    dimension = prod(data.shape)
    # Refuses values before the long computation.
    ladder.choose_step_size(config.sigma_min, ladder.choose_gamma(dimension, config.coverage), config.steps)
    x = training_view(data)
    chosen = ladder.Plan(_rounded_max_distance(x), dimension, config.sigma_min, config.coverage, config.steps)
    source = f"{type(data).__name__}, {len(x)} training examples of {' x '.join(map(str, data.shape))}"
    print(f"{source}, values {float(x.min()):.4g} to {float(x.max()):.4g}, as the network sees them\n\n{derivation(chosen)}")
    if config.output is not None:
        text = f"# The noise ladder of {source}.\n{yaml.safe_dump(as_config(chosen), sort_keys=False)}"
        replace_text(Path(config.output), text)
        print(f"\nwritten to {config.output}: python -m lightning_score fit --config ncsn --config {config.output}")
    save_plot(config.plot, lambda: _figure(chosen, source))


def resolve_auto(config: Any) -> None:
    """Replaces `auto` in the process of a parsed config of `fit` by numbers, and prints them.

    By techniques 1 and 2 of Song and Ermon 2020 (2006.09011), with a coverage of 0.5.

    Args:
        config: the config, with `model.process` and `data`.
    """
    process = config["model"]["process"].get("init_args") or {}
    asked = [name for name in ("sigma_max", "levels") if process.get(name) == "auto"]
    if not asked:
        return
    data = data_from(config["data"].as_dict())
    chosen = []
    if "sigma_max" in asked:
        x = training_view(data)
        process["sigma_max"] = _rounded_max_distance(x)
        chosen.append(f"sigma_max={process['sigma_max']:g}, the largest distance between two of {len(x)} training examples")
    if "levels" in asked:
        dimension, largest, smallest = prod(data.shape), process["sigma_max"], process["sigma_min"]
        process["levels"] = levels = ladder.choose_levels(largest, smallest, dimension)
        ratio = (largest / smallest) ** (1 / (levels - 1))
        chosen.append(f"levels={levels}, a factor of {ratio:.4g} apart as fits {dimension} dimensions")
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"auto: {'; '.join(chosen)}", flush=True)


def data_from(settings: Any) -> ScoreData:
    """The data of a config, from its part `data`."""
    parser = Parser()
    parser.add_subclass_arguments(ScoreData, "data")
    return parser.instantiate_classes(parser.parse_object({"data": settings})).data


def training_view(data: ScoreData) -> Tensor:
    """The training examples as the network sees them, (N, ...), without augmentation."""
    with seeded(0):  # for data that are dequantized
        return data.as_input(data.splits.train.x)


def _rounded_max_distance(x: Tensor) -> float:
    return float(f"{ladder.max_distance(x, progress=True):.6g}")


def derivation(chosen: ladder.Plan) -> str:
    """The derivation of a ladder in words and numbers."""
    d, ratios = chosen.dimension, chosen.variance_ratios
    shown = [i for i in range(len(ratios)) if i < 4 or i == len(ratios) - 1]
    after = ", ".join(f"{'... ' if i >= 5 else ''}{ratios[i]:.4g} (level {i + 1})" for i in shown)
    least, few = ladder.LEAST_DIMENSION, ""
    if d < least:
        few = f"\n   (fewer than {least}, where the rule does not hold, count as {least})"
    return f"""\
1. Largest level: sigma_max = {chosen.sigma_max:g}, the largest distance between two training examples,
   so that noise of the first level can carry a sample from any example to any other.
   Smallest level: sigma_min = {chosen.sigma_min:g}, as given.
2. Ratio of adjacent levels: gamma = {chosen.gamma:.6g}, an overlap of C = {chosen.coverage:g} in D = {d} dimensions{few}.
   Levels: 1 + ln({chosen.sigma_max:g}/{chosen.sigma_min:g})/ln gamma = {chosen.exact_levels:.1f},
   rounded up to L = {chosen.levels}, which makes the ratio {chosen.ratio:.6g}.
3. Step size: epsilon = {chosen.step_size:.4g} at the smallest level, for T = {chosen.steps} steps per level;
   it keeps the variance of the samples over sigma_i^2 closest to 1. Predicted ratio after each level:
   {after}; a long ladder settles at {chosen.variance_limit:.4g}.
4. Cost: L T = {chosen.levels} x {chosen.steps} = {chosen.evaluations} network evaluations per sample,
   one more where the sampler denoises at the end.

Techniques 1, 2 and 4 of Song and Ermon 2020 (arXiv:2006.09011)."""


def as_config(chosen: ladder.Plan) -> dict[str, Any]:
    """The config that makes `fit` and its sampler use the ladder and leaves the rest unchanged."""
    process = part("+SigmaTable", sigma_min=chosen.sigma_min, sigma_max=chosen.sigma_max, levels=chosen.levels)
    sampler = part("+AnnealedLangevin", step_size=float(f"{chosen.step_size:.6g}"), steps=chosen.steps, temperature=1.0)
    return {"model": {"process": process, "sampler": sampler}}


def _figure(chosen: ladder.Plan, source: str) -> "Figure":
    from matplotlib.figure import Figure  # takes a second to import
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    figure.suptitle(f"{source}: L = {chosen.levels}, T = {chosen.steps}, NFE = {chosen.evaluations}")
    limit = chosen.variance_limit
    panels = [
        (rf"noise levels, ratio $\gamma$ = {chosen.ratio:.5g}", r"$\sigma_i$ (units of the data)", chosen.sigmas),
        (rf"Langevin step sizes, $\epsilon$ = {chosen.step_size:.4g}", r"$e_i$ (squared units)", chosen.step_sizes),
        (r"variance of the samples over $\sigma_i^2$", rf"$r_i$, which settles at {limit:.4g}", chosen.variance_ratios),
    ]
    for axes, (title, label, values) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.plot(range(1, chosen.levels + 1), values, marker=".", lw=1, ms=4 if chosen.levels > 50 else 7)
        axes.set(title=title, ylabel=label, xlabel="level $i$, in sampling order")
        axes.set_yscale("linear" if values is chosen.variance_ratios else "log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    axes.axhline(limit, color="gray", ls="--", lw=1)
    axes.set_ylim(1, 1.1 * limit - 0.1)
    return figure


def _parser() -> Parser:
    purpose = "Chooses noise levels and Langevin step size from the data (Song and Ermon 2020, arXiv:2006.09011)."
    parser = Parser(prog="python -m lightning_score schedule", description=purpose)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="Config of fit: its data, sigma_min and steps.")
    parser.add_subclass_arguments(ScoreData, "data", required=False)
    parser.add_argument("--sigma_min", type=float, default=0.01, help="Smallest noise level; that of the config by default.")
    parser.add_argument("--coverage", type=float, default=0.5, help="Overlap of adjacent levels, between 0 and 0.9973.")
    parser.add_argument("--steps", type=int, default=5, help="Langevin steps per level, T; that of the config by default.")
    parser.add_argument("--output", type=str, help="File for the ladder, as a config after --config ncsn of fit.")
    parser.add_argument("--plot", type=str, help="File for a picture of the ladder (png, pdf or svg).")
    return parser


def _parts_of(file: Path) -> dict[str, Any]:
    """The data, the smallest noise level and the steps of a config of `fit`."""
    config: Any = read_config(file)
    found = {"data": config.get("data")}
    for name, owner in (("sigma_min", "process"), ("steps", "sampler")):
        inside = config
        for key in ("model", owner, "init_args", name):
            inside = inside.get(key) if isinstance(inside, dict) else None
        found[name] = inside
    return {name: value for name, value in found.items() if value is not None}


def require_new_files(config: Any) -> None:
    """Raises `InputError` unless `--output` and `--plot` give new files of their kinds, which can be written, or none."""
    for name, kinds in (("output", (".yaml", ".yml")), ("plot", (".png", ".pdf", ".svg"))):
        if config[name] is not None:
            path = Path(config[name])
            place = f"--{name} {path}"
            require(path.suffix in kinds, f"{place}: must end in {' or '.join(kinds)}, as in ladder{kinds[0]}")
            require(not path.exists(), f"{place}: already exists and is not overwritten; give another name or remove it")
            writable = path.parent.is_dir() and os.access(path.parent, os.W_OK)
            require(writable, f"{place}: cannot be written; give a file in an existing folder that you may write to")


def save_plot(file: str | None, figure: Callable[[], "Figure"]) -> None:
    """Draws a figure into the file of `--plot`, if one is given."""
    if file is not None:
        with replacing(file) as temporary:
            figure().savefig(temporary, dpi=120)
        print(f"drawn in {file}")
