"""What a run prints: its start, and its results."""

import lightning_score.lean_imports  # noqa: F401

import math
import shlex
from errno import EIO
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from lightning_score.callbacks import Evaluate
from lightning_score.callbacks.base import callbacks_of
from lightning_score.files import unwritten
from lightning_score.runs.records import Record
from lightning_score.training.model import ScoreModel


@rank_zero_only
def print_start(model: ScoreModel, folder: Path | None) -> None:
    """Prints the parts of the model and the run folder."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    score, unused = model.score_function, model.conditions.kind and not model.num_classes and not model.takes_condition
    note = "; the condition of the data is not used without --model.conditional true" if unused else ""
    print(
        f"{type(score.network).__name__} with {parameters / 1e6:.3g} M parameters, {type(score.process).__name__} process, "
        f"{type(model.sampler).__name__} sampler{note}; everything goes to {folder or 'nowhere (fast_dev_run)'}",
        flush=True,
    )


@rank_zero_only
def print_training(trainer: Trainer, folder: Path | None, seconds: float, kept: bool = True, options: str = "") -> None:
    """Prints the results of training, where they are, and, if the final weights are kept, the next command."""
    if folder is None:
        print("fast_dev_run: every part ran once and nothing was kept")
        return
    latest = folder.parent / "latest"
    is_latest = latest.exists() and latest.samefile(folder)
    rows = {
        "run folder": f"{folder} (also {latest})" if is_latest else str(folder),
        "metrics": "metrics.csv",
        "config": "config.yaml",
        "checkpoints": ", ".join(sorted(file.name for file in folder.glob("*.ckpt"))) or "none",
    }
    for kind in ("samples", "spectrum", "histogram", "score", "loss_per_sigma", "weighting"):
        pictures = sorted(folder.glob(f"{kind}/*.png"))
        rows |= {kind: str(pictures[-1].relative_to(folder))} if pictures else {}
    print(f"\nfinished {trainer.global_step} steps after {seconds:.0f} s")
    for name, value in rows.items():
        print(f"  {name:<14} {value}")
    for evaluation in evaluations(trainer):
        print(f"  {evaluation.metric:<14} {sentence(evaluation)}")
    if not kept:
        return
    checkpoint = shlex.quote(str((latest if is_latest else folder) / "last.ckpt"))
    print(f"\nnext: python -m lightning_score predict --ckpt_path {checkpoint}{options} --num_samples 64")


@rank_zero_only
def print_evaluation(trainer: Trainer, folder: Path | None) -> None:
    """Prints the results of an evaluation, and where they are.

    Raises:
        OSError: some of them could not be written.
    """
    width = max([24, *map(len, trainer.callback_metrics)])
    for name, value in trainer.callback_metrics.items():
        print(f"  {name:<{width}} {float(value):.6g}")
    for evaluation in evaluations(trainer):
        print(f"  {evaluation.metric:<{width}} {sentence(evaluation)}")
    print(f"  written to {folder or 'nowhere (fast_dev_run)'}")
    missing = [file for file in unwritten if folder is not None and Path(file).is_relative_to(folder)]
    if missing:
        raise OSError(EIO, "not written, for the reason above", ", ".join(dict.fromkeys(missing)))


def evaluations(trainer: Trainer) -> list[Record]:
    """The last result of every evaluation."""
    return [each.last for each in callbacks_of(trainer, Evaluate) if each.last is not None]


def sentence(found: Record) -> str:
    """A distance with its error, samples, evaluations and floor."""
    known = found.error is not None and not math.isnan(found.error)
    error = f" +- {2 * (found.error or 0):.2g} (two standard errors)" if known else ""
    floor = "" if found.floor is None else f"; a perfect model scores {found.floor:.3g} at this n"
    drawn = f" at {found.nfe:g} network evaluations each" if found.nfe else ""
    return f"{found.value:.3g}{error} for n = {found.n} samples{drawn}{floor}"
