"""The command `tune`: the Langevin steps of a sampler, derived from a trained model for a budget of evaluations."""

import lightning_score.lean_imports  # noqa: F401

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from lightning_score.commands.arguments import Arguments
from lightning_score.commands.base import IdleExperiment
from lightning_score.commands.configs import load_checkpoint, over_checkpoint, trusted_modules, with_found_configs
from lightning_score.commands.derivations import Panel, choose
from lightning_score.commands.schedule import require_new_files, save_plot
from lightning_score.errors import require, require_passes
from lightning_score.files import replace_text
from lightning_score.memory import require_room

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Tuning(IdleExperiment):
    """Chooses the Langevin steps of a checkpoint's sampler for a budget of network evaluations.

    Args:
        arguments: `tune` and its options.
    """

    def __init__(self, arguments: Arguments):
        found, paths = with_found_configs(arguments), arguments.get("--ckpt_path")
        require(bool(paths) or arguments.asks_for_help, "tune needs a checkpoint: --ckpt_path runs/NAME/latest/last.ckpt")
        checkpoint = load_checkpoint(paths[-1], trusted_modules(arguments)) if paths else {"config": {}}
        self.checkpoint = checkpoint
        super().__init__(over_checkpoint(found, checkpoint))
        self.load_state(checkpoint["state_dict"])

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of this command."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="The checkpoint.")
        parser.add_argument("--trust", type=str, help="Modules of which a checkpoint may name classes, as my_parts,others.")
        budget = "Network evaluations per sample, with the final denoising; as many as now by default."
        parser.add_argument("--evaluations", type=int | None, default=None, help=budget)
        parser.add_argument("--num_samples", type=int, default=256, help="Samples with which the result is measured.")
        parser.add_argument("--output", type=str, help="File for the sampler, as a config for predict and test.")
        parser.add_argument("--plot", type=str, help="File for a picture of the derivation (png, pdf or svg).")

    def before_instantiate_classes(self) -> None:
        """Checks the options, and leaves out the present step size, which need not fit the grid."""
        config = self.config
        sampler = config["model"].get("sampler")
        if sampler is not None and sampler["class_path"].endswith(".AnnealedLangevin"):
            sampler["init_args"]["step_size"] = 1e-30
        require_new_files(config)
        require(config["num_samples"] >= 2, f"--num_samples {config['num_samples']}: must be at least 2")
        if config["evaluations"] is not None:
            require(config["evaluations"] >= 1, f"--evaluations {config['evaluations']}: must be at least 1, as in 100")
            require_passes(**{"--evaluations": config["evaluations"]})


def tune(arguments: Arguments) -> None:
    """Chooses the Langevin steps of a checkpoint's sampler, prints the derivation, and writes a config and a picture on
    request.

    Args:
        arguments: `tune` and its options.

    Raises:
        InputError: the sampler has no Langevin steps, or the budget is too small.
    """
    experiment = Tuning(arguments)
    config, model = experiment.config_init, experiment.model
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    require_room(64 * config["num_samples"] * prod(model.shape), f"--num_samples {config['num_samples']}")
    if model.takes_condition:
        model.conditions.take_from(experiment.datamodule)
    with torch.inference_mode():
        chosen = choose(model, experiment.datamodule, config["evaluations"], config["num_samples"])
    source = f"{config['ckpt_path']}, {type(model.sampler).__name__}"
    print(f"{source}\n\n{chosen.derivation}")
    if config["output"] is not None:
        content = yaml.safe_dump({"model": {"sampler": chosen.sampler}}, sort_keys=False, default_flow_style=None, width=120)
        replace_text(Path(config["output"]), f"# Tuned to {source}.\n{content}")
        print(f"\nwritten to {config['output']}: python -m lightning_score predict --ckpt_path {config['ckpt_path']} "
              f"--config {config['output']}")  # fmt: skip
    save_plot(config["plot"], lambda: _figure(source, chosen.panels))


def _figure(source: str, panels: list[Panel]) -> "Figure":
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(4.4 * len(panels), 4.2), layout="constrained")
    figure.suptitle(source)
    for axes, (title, label, curves) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name, (sigmas, values) in curves.items():
            axes.plot(sigmas, values, marker=".", lw=1, label=name)
        axes.set(title=title, ylabel=label, xlabel=r"noise level $\sigma/\alpha$ (units of the data)", xscale="log")
        axes.invert_xaxis()
        if label == "$T$":
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend(fontsize=8)
    return figure
