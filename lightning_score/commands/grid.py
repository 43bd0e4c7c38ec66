"""The command `grid`: the times of a solver of few steps, learned from a checkpoint."""

import inspect
import time
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

from lightning_score.commands.arguments import CONFIG, Arguments, Layer
from lightning_score.commands.configs import find_config, load_checkpoint, read_config, trusted_modules
from lightning_score.commands.learned_grid import forget_times
from lightning_score.commands.parser import Parser
from lightning_score.commands.schedule import data_from, require_new_files, save_plot
from lightning_score.errors import require
from lightning_score.files import replace_text
from lightning_score.guidance import Guidance
from lightning_score.interop.base import part
from lightning_score.runs.records import described, settings_of
from lightning_score.sampling import Learned, PredictorCorrector, Sampler
from lightning_score.sampling.exact_ends import EXACT_STEPS, ROWS, allowed, group_of
from lightning_score.sampling.grid import Karras, TimeGrid
from lightning_score.training.inference import inference
from lightning_score.training.learned_times import Drawn, learn_times
from lightning_score.training.model import ScoreModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def grid(arguments: Arguments) -> None:
    """Learns the times of a sampler, prints what they are and what they save, and writes a config and a picture on request.

    Args:
        arguments: `grid` and its options.

    Raises:
        InputError: times cannot be learned for this sampler, or an option is refused.
    """
    paths, parser, trusted = arguments.get("--ckpt_path"), _parser(), trusted_modules(arguments)
    require(bool(paths) or arguments.asks_for_help, "grid needs a checkpoint: --ckpt_path runs/NAME/latest/last.ckpt")
    layers = [Layer(_parts_of(load_checkpoint(path, trusted)["config"]), path) for path in paths[-1:]]
    layers += [Layer(_parts_of(read_config(file)), str(file)) for file in map(find_config, arguments.get(CONFIG))]
    config = parser.parse_args(arguments.drop(CONFIG).over(*layers))
    require_new_files(config)
    require(config.steps is None or config.steps >= 1, f"--steps {config.steps}: must be at least 1, as in 10")
    _set_steps(config)
    made = parser.instantiate_classes(config).model
    model = ScoreModel.load_from_checkpoint(paths[-1], map_location="cpu", trust=list(trusted)).eval()
    if model.conditional and not model.num_classes:
        model.conditions.take_from(data_from(load_checkpoint(paths[-1], trusted)["config"].get("data")))
    report = GridReport(model, made.sampler or PredictorCorrector(), made.guidance, config.steps)
    print(report.text())
    if config.output is not None:
        settings = yaml.safe_load(parser.dump(config, skip_none=False))["model"]["sampler"]
        replace_text(Path(config.output), report.config(settings))
        use = f"predict --ckpt_path {paths[-1]} --config {config.output}"
        print(f"\nwritten to {config.output}: python -m lightning_score {use}")
    save_plot(config.plot, report.figure)


def _parser() -> Parser:
    purpose = "Learns the times with which a solver of few steps ends nearest to the exact flow of a checkpoint."
    parser = Parser(prog="python -m lightning_score grid", description=purpose)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="Config: its sampler and guidance.")
    parser.add_argument("--ckpt_path", type=str, required=True, help="Checkpoint; its sampler and guidance by default.")
    parser.add_argument("--trust", type=str, help="Module of which the checkpoint may name classes, as my_parts.")
    parser.add_subclass_arguments(Sampler, "model.sampler", required=False)
    parser.add_subclass_arguments(Guidance, "model.guidance", required=False)
    parser.add_argument("--steps", type=int, help="Steps of the solver; those of the sampler's grid by default.")
    parser.add_argument("--output", type=str, help="File for the times, as a config of predict, test and others.")
    parser.add_argument("--plot", type=str, help="File for a picture of the times and errors (png, pdf or svg).")
    return parser


def _parts_of(config: Any) -> dict[str, Any]:
    """The sampler and the guidance of a configuration."""
    model = config.get("model") or {}
    return {"model": {name: model[name] for name in ("sampler", "guidance") if name in model}}


def _set_steps(config: Any) -> None:
    """Gives the grid that is compared with the learned one the steps that are asked for, where it has a number of steps."""
    sampler = config.model.sampler or {}
    inner = ((sampler.get("init_args") or {}).get("grid") or {}).get("init_args") or {}
    if config.steps is not None and "steps" in inner:
        inner["steps"] = config.steps
    forget_times(config)


class GridReport:
    """What was learned, and what it saves.

    Args:
        model: the model.
        sampler: the sampler for which times are learned.
        guidance: of the samples.
        steps: N; None: those of the sampler's grid.
    """

    def __init__(self, model: ScoreModel, sampler: Sampler, guidance: Guidance | None, steps: int | None):
        start, self._model, given = time.monotonic(), model, sampler.grid
        self._process, self._sampler = model.score_function.process, copy(sampler)
        times, levels = given(self._process), model.objective.levels(self._process)
        noisy, last = float(self._process.sigma(times[-1])) > 0, float(times[-1])
        own_end = noisy and levels is None and last != self._process.t_min
        steps = steps or max(1, len(times) - 1)
        self.grid = self._sampler.grid = Learned(steps, last if own_end else None)
        model.use(self._sampler, guidance)
        if torch.cuda.is_available():
            model.cuda()
        self._anew = learn_times(model, self._sampler, progress=True)
        self._exactly = f"in {EXACT_STEPS} steps" if levels is None else f"on the {len(levels)} levels of training"
        comparable = noisy and not given.learns and len(times) == steps + 1
        compared: TimeGrid = given if comparable else Karras(steps, self.grid.t_min)
        self._name = f"{type(compared).__name__}({steps})"
        self.before = times if comparable else allowed(self._process, levels, compared)
        self.after = self.grid(self._process)
        with torch.inference_mode(), inference(model):
            self._group = group_of(self._sampler, Drawn(model), 2, self.grid.t_min, levels)
            self.errors = [self._group.errors(times) for times in (self.before, self.after)]
        self.nfe, self.seconds = self._group.nfe, time.monotonic() - start

    def text(self) -> str:
        """The derivation in words and numbers."""
        solver = _described(self._sampler)
        levels = (self._process.sigma(self.after) / self._process.alpha(self.after)).tolist()
        before, after = ((float(e.square().mean().sqrt()), float(e.median())) for e in self.errors)
        shape = " x ".join(map(str, self._model.shape))
        return f"""\
1. Solver: {solver}.
   Cost: {self.nfe:g} network evaluations per sample in {len(levels) - 1} steps, the final denoise included.
2. Exact ends: those of the probability flow from {ROWS} latents of {shape}, by UniPC 3 {self._exactly} with
   the same final denoise. Times are fitted to their distance, {ROWS} other latents choose among the grids.
3. Times, as sigma/alpha, the standard deviation of the noise in the units of the data:
   {", ".join(f"{level:.4g}" for level in levels)}
4. Error per value, on {ROWS} latents that were used for neither:
   {"":24s}{"root mean square":>18s}{"median sample":>16s}
   {self._name:24s}{before[0]:18.4g}{before[1]:16.4g}
   {"learned":24s}{after[0]:18.4g}{after[1]:16.4g}{self._warning(after[0])}
5. {"Learned" if self._anew else "Taken from the cache"} in {self.seconds:.0f} s."""

    def _warning(self, error: float) -> str:
        """A line for times that end far from the exact flow, which few steps of a high order on a wide range do."""
        share = error / self._group.spread
        advice = "take more steps, or a solver of lower order"
        near = share <= 0.5  # which NaN is not
        return "" if near else f"\n   Warning: the error is {share:.0%} of the samples' standard deviation; {advice}"

    def config(self, sampler: dict[str, Any]) -> str:
        """The config that makes predict, test and others draw with these times, and refuses them for another model.

        Args:
            sampler: the settings of the sampler.
        """
        kept = {name: getattr(self.grid, name) for name in ("steps", "t_min", "times", "learned_for")}
        sampler["init_args"]["grid"] = part("Learned", **kept)
        header = f"# Times learned for {_described(self._sampler)}: {self.nfe:g} network evaluations per sample.\n"
        return header + yaml.safe_dump({"model": {"sampler": sampler}}, sort_keys=False)

    def figure(self) -> "Figure":
        """The grid, the error of every step, and the errors of the samples, each beside those of the grid before."""
        from matplotlib.figure import Figure  # takes a second to import

        figure = Figure(figsize=(13, 4.2), layout="constrained")
        figure.suptitle(f"{_described(self._sampler)}: {self.nfe:g} network evaluations per sample")
        left, middle, right = figure.subplots(1, 3)
        with torch.inference_mode(), inference(self._model):
            local = [self._group.local_errors(times) for times in (self.before, self.after)]
        for name, times, errors, steps, color in zip(
            (self._name, "learned"), (self.before, self.after), self.errors, local, ("tab:gray", "tab:blue"), strict=True
        ):
            levels = (self._process.sigma(times) / self._process.alpha(times)).tolist()
            style = {"marker": ".", "lw": 1, "color": color, "label": name}
            left.plot(range(len(levels)), levels, **style)
            middle.plot(levels[1:], steps, **style)
            right.plot(sorted(errors.tolist()), torch.linspace(0, 1, len(errors)), **{**style, "marker": None})
        left.set(title="times", xlabel="step", ylabel=r"$\sigma/\alpha$ (units of the data)", yscale="log")
        middle.set(title="error of a step from the exact path", xlabel=r"$\sigma/\alpha$ at its end", ylabel="per value")
        middle.set(xscale="log", yscale="log")
        middle.invert_xaxis()
        right.set(title="error of the samples", xlabel="per value", ylabel="share of samples", xscale="log")
        for axes in (left, middle, right):
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
        return figure


def _described(sampler: Any) -> str:
    """The solver, the final denoise and the clipping, in one line."""
    predictor, settings = type(sampler.predictor), settings_of(sampler.predictor)
    given = {name: settings[name] for name in inspect.signature(predictor).parameters if name in settings}
    solver, denoise = described({"class": predictor.__name__, **given}), type(sampler.denoise).__name__
    return f"{solver}, {denoise}" + (f", clip={list(sampler.clip)}" if sampler.clip is not None else "")
