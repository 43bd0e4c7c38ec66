"""The progress bar: one line for the whole fit."""

import logging
import math
import sys
from contextlib import ExitStack
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lightning_score.errors import require
from lightning_score.runs.console import print_state

LAYOUT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
SECONDS_BETWEEN_LINES = 10.0


class StepProgress(ProgressBar):
    """A bar over the optimizer steps of the whole fit, because epochs of small data sets are too short for one each.

        training:  45%|####      | 1350/3000 [01:02<01:15, 21.9 step/s, loss=0.123, fid_digits=7.9]

    It shows the metrics logged with `prog_bar=True`, without the prefix `train/` or `val/`. A resumed run starts at its
    step; validation within a fit has no bar, but `validate`, `test` and `predict` count their batches. If the standard
    error is not a terminal, a line is written every ten seconds.

    Args:
        refresh_every: optimizer steps between updates of the bar.

    Raises:
        InputError: refresh_every is below 1.
    """

    def __init__(self, refresh_every: int = 20) -> None:
        super().__init__()
        require(refresh_every >= 1, f"refresh_every={refresh_every}: must be at least 1")
        self.refresh_every = refresh_every
        self.is_enabled = True
        self._bar: tqdm | None = None
        self._display = ExitStack()

    def enable(self) -> None:
        """Shows bars from now on."""
        self.is_enabled = True

    def disable(self) -> None:
        """Shows no more bars; Lightning calls it on all ranks but the first."""
        self.is_enabled = False

    def print(self, *values: Any, sep: str = " ", end: str = "\n", file: TextIO | None = None) -> None:
        """Prints a line above the bar."""
        if self.is_enabled:
            tqdm.write(sep.join(map(str, values)), file=file, end=end)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics by their short names; if both `train/` and `val/` have one, the latter keeps its prefix."""
        shown: dict[str, Any] = {}
        metrics = trainer.progress_bar_metrics
        for name in sorted(metrics, key=lambda name: not name.startswith("train/")):
            short = name.removeprefix("train/").removeprefix("val/")
            shown[name if short in shown else short] = metrics[name]
        return shown

    # A fit: one bar over its optimizer steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar, at the step from which the run resumes."""
        total = trainer.estimated_stepping_batches
        self._open("training", "step", total if total > 0 else math.inf, initial=trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Updates the bar at every `refresh_every`-th optimizer step."""
        if trainer.global_step % self.refresh_every == 0:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the last step, and leaves the bar on the screen."""
        self._show(trainer, pl_module)
        self._close()

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)

    # Validation, test and prediction outside of a fit: a bar over their batches

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens a bar, unless the validation is part of a fit."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._open("validating", "batch", sum(trainer.num_val_batches))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens a bar over the batches of the test."""
        self._open("testing", "batch", sum(trainer.num_test_batches))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens a bar over the batches to predict."""
        self._open("predicting", "batch", sum(trainer.num_predict_batches))

    def _advance(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if self._bar is not None and trainer.state.fn != TrainerFn.FITTING:
            self._bar.update()

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._close()

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _advance
    on_validation_end = on_test_end = on_predict_end = _finish

    def _open(self, description: str, unit: str, total: float, initial: int = 0) -> None:
        self._close()
        if not self.is_enabled or sys.stderr is None:
            return
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            desc=description,
            unit=f" {unit}",
            total=None if math.isinf(total) else int(total),
            initial=initial,
            file=sys.stderr if terminal else _Lines(sys.stderr),
            dynamic_ncols=terminal,
            mininterval=0.1 if terminal else SECONDS_BETWEEN_LINES,
            miniters=1,
            smoothing=0.0,  # the mean speed, which includes validations
            bar_format=LAYOUT,
        )
        self._display.enter_context(logging_redirect_tqdm(_loggers()))
        self._display.callback(self._bar.close)

    def _close(self, *_: Any, **__: Any) -> None:
        self._display.close()
        self._bar = None

    on_exception = _close  # ends the line of the bar before the error message


class _Lines:
    """A stream on which each update of a bar is a new line, for log files and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        """Writes the visible part of the text, without carriage returns and trailing blanks; a new line ends the bar."""
        if text.strip() or text == "\n":
            print_state(self.stream, text.strip())

    def flush(self) -> None:
        """Flushes the stream."""
        self.stream.flush()


def _loggers() -> list[logging.Logger]:
    """The loggers that write to the console, whose messages are printed above the bar, too."""
    root, lightning = logging.getLogger(), logging.getLogger("lightning.pytorch")
    return [root] if lightning.propagate else [root, lightning]
