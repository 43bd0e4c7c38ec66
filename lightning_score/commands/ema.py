"""The command `ema`: averages of the weights of other lengths than those that a training has kept."""

import copy
from pathlib import Path
from typing import Any

import torch

from lightning_score.commands.arguments import Arguments
from lightning_score.commands.configs import load_checkpoint, trusted_modules
from lightning_score.commands.parser import Parser
from lightning_score.errors import InputError
from lightning_score.files import replacing
from lightning_score.runs.averages import LENGTH, STATE, Averages
from lightning_score.runs.checkpoints import LAST
from lightning_score.runs.folders import new_dated_folder, new_folder
from lightning_score.runs.pretrained import find_checkpoint, results_of
from lightning_score.runs.trust import trust_for

OF_TRAINING = ("optimizer_states", "lr_schedulers", "callbacks", "random_states", "current_model_state", "averaging_state",
               STATE)  # fmt: skip
"""What a checkpoint of an average leaves out."""


def ema(arguments: Arguments) -> None:
    """Writes a checkpoint of the average of each length, which other commands take, and prints how exact they are.

    Args:
        arguments: `ema` and its options.

    Raises:
        InputError: the run has kept no averages, a length is out of reach, or an option is refused.
        OSError: the disk is full.
    """
    options = _parser().parse_args(arguments)
    source = find_checkpoint(options.ckpt_path)
    source = source / LAST if source.is_dir() and (source / LAST).is_file() else source
    checkpoint = load_checkpoint(str(source), trusted_modules(arguments))
    averages, lengths = Averages(source, checkpoint, options.step), list(dict.fromkeys(map(_length, options.lengths)))
    errors = [averages.error(length, "--lengths ") for length in lengths]
    folder = new_folder(Path(options.output)) if options.output else new_dated_folder(results_of(source) / "ema")
    shared = _at_step(checkpoint, averages.step)
    print(f"averages at step {averages.step} of {source}, of {len(averages.kept)} that are kept\n")
    print(f"{'length':>8} {'profile error':>14} {'MB':>8}  file")
    for length, error, state in zip(lengths, errors, averages.make(*lengths, progress=True), strict=True):
        file = folder / f"ema_{length}.ckpt"
        with replacing(file) as temporary, temporary.open("wb") as stream:
            torch.save({**shared, "state_dict": state, LENGTH: length}, stream)
        print(f"{length:8g} {error:14.1e} {file.stat().st_size / 1e6:8.1f}  {file}")
    print(f"\nnext: python -m lightning_score test --ckpt_path {file}{trust_for(checkpoint['config'])}")


def _length(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"--lengths {text}: must be numbers, as 0.05 0.1") from error


def _at_step(checkpoint: dict[str, Any], step: int) -> dict[str, Any]:
    """A checkpoint without the state of training, with an earlier step as that of its training."""
    kept = {name: value for name, value in checkpoint.items() if name not in OF_TRAINING}
    later = int(checkpoint["averaging_state"]["n_averaged"]) - step
    loops = copy.deepcopy(checkpoint.get("loops", {}))
    done = loops.get("fit_loop", {}).get("epoch_loop.automatic_optimization.optim_progress")
    for count in ("total", "current") if done else ():
        for name in ("ready", "completed"):
            done["optimizer"]["step"][count][name] -= later
    return {**kept, "loops": loops, "global_step": checkpoint.get("global_step", 0) - later}


def _parser() -> Parser:
    parser = Parser(
        prog="python -m lightning_score ema",
        description="Makes averages of the weights of any length of those that a training with ema.lengths has kept. Each "
        "is a checkpoint for test, predict, sweep and others.",
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help="A run folder, or a checkpoint in it.")
    lengths = "Standard deviations of the weighted steps, as fractions of the training: 0.05 0.1."
    parser.add_argument("--lengths", type=str, nargs="+", required=True, help=lengths)
    parser.add_argument("--step", type=int | None, default=None, help="The step of a snapshot, the end of the average.")
    parser.add_argument("--output", type=str | None, default=None, help="A new folder; by default in RUN/ema.")
    parser.add_argument("--trust", type=str, help="Modules of which the checkpoint may name classes, as my_parts.")
    return parser
