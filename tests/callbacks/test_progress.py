"""The progress bar, as it is read on a terminal and in a log file."""

import io
import logging
import math
import re
import sys

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from lightning_score.callbacks.progress import StepProgress
from lightning_score.errors import InputError

BATCHES = 4


class Tiny(LightningModule):
    """Its loss is its step, so that the bar shows a known number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        self.log("train/loss", float(self.global_step + 1), prog_bar=True)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.log_dict({"val/loss": math.nan, "val/fid_digits": 7.9}, prog_bar=True)
        self.log("hidden", 1.0)

    def test_step(self, batch, batch_idx):
        pass

    def predict_step(self, batch, batch_idx, dataloader_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self):
        return DataLoader(torch.zeros(BATCHES, 1), batch_size=1)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class Stream(io.StringIO):
    """A fake terminal, or a fake file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
        super().__init__()
        self.monkeypatch = monkeypatch
        self.terminal = terminal

    def trainer(self, *callbacks: Callback, **options) -> Trainer:
        """A trainer whose output goes here (not set in the fixture: pytest sets its own between that and the test)."""
        self.monkeypatch.setattr(sys, "stdout", self)
        self.monkeypatch.setattr(sys, "stderr", self)
        options = {"max_epochs": 5, "enable_checkpointing": False, **options}
        return Trainer(accelerator="cpu", logger=False, enable_model_summary=False, callbacks=[*callbacks], **options)

    def isatty(self) -> bool:
        return self.terminal

    def screen(self) -> list[str]:
        """The lines as a terminal shows them: after a carriage return it writes over the line."""
        lines = []
        for text in self.getvalue().split("\n"):
            line = ""
            for part in text.split("\r"):
                line = part + line[len(part) :]
            lines.append(line.rstrip())
        return lines


@pytest.fixture
def terminal(monkeypatch) -> Stream:
    monkeypatch.setenv("COLUMNS", "150")
    return Stream(monkeypatch, terminal=True)


@pytest.fixture
def file(monkeypatch) -> Stream:
    return Stream(monkeypatch, terminal=False)


def bars(stream: Stream, description: str) -> list[str]:
    """Every state of a bar that was drawn."""
    drawn = re.split(r"[\r\n]", stream.getvalue())
    return [state for state in drawn if state.startswith(f"{description}:")]


@pytest.mark.parametrize(
    "options, end",
    [
        ({}, "20/20"),
        ({"max_steps": 7}, "7/7"),
        ({"max_epochs": -1, "max_steps": 13}, "13/13"),
        ({"accumulate_grad_batches": 2}, "10/10"),
        ({"limit_train_batches": 3}, "15/15"),
    ],
)
def test_one_bar_counts_the_steps_of_the_whole_fit(terminal, options, end):
    terminal.trainer(StepProgress(1), **options).fit(Tiny())
    drawn = bars(terminal, "training")
    assert drawn[0].startswith("training:   0%")
    assert drawn[-1].startswith("training: 100%") and f" {end} [" in drawn[-1] and "step/s" in drawn[-1]
    assert sum(line.startswith("training:") for line in terminal.screen()) == 1
    assert not bars(terminal, "validating")


@pytest.mark.parametrize("options", [{"max_epochs": -1, "max_time": {"seconds": 1}}, {"max_epochs": 1}])
def test_an_unknown_number_of_steps_gives_a_bar_without_a_total(terminal, options):
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(torch.zeros(6, 1))

    terminal.trainer(StepProgress(1), limit_val_batches=0, **options).fit(Tiny(), DataLoader(Endless()))
    last = bars(terminal, "training")[-1]
    assert "/? [" in last and "%" not in last


def test_the_metrics_of_the_bar_are_shown_by_their_short_names(terminal):
    terminal.trainer(StepProgress(1)).fit(Tiny())
    assert "loss=20, " in bars(terminal, "training")[-1]
    assert "val/loss=nan" in bars(terminal, "training")[-1]
    assert "fid_digits=7.9" in bars(terminal, "training")[-1]
    assert "hidden" not in terminal.getvalue() and "train/" not in terminal.getvalue()


def test_the_metrics_are_read_every_so_many_steps(terminal, monkeypatch):
    looks = []
    bar = StepProgress(6)
    metrics = StepProgress.get_metrics
    monkeypatch.setattr(bar, "get_metrics", lambda *args: (looks.append(args[0].global_step), metrics(bar, *args))[1])
    terminal.trainer(bar).fit(Tiny())
    assert looks == [6, 12, 18, 20]
    assert " 20/20 [" in bars(terminal, "training")[-1]


def test_a_resumed_run_starts_at_its_step(terminal, tmp_path):
    first = terminal.trainer(StepProgress(1), max_epochs=2)
    first.fit(Tiny())
    first.save_checkpoint(tmp_path / "end.ckpt")
    terminal.truncate(0)
    terminal.trainer(StepProgress(1)).fit(Tiny(), ckpt_path=tmp_path / "end.ckpt")
    assert " 8/20 [" in bars(terminal, "training")[0] and " 20/20 [" in bars(terminal, "training")[-1]


def test_validate_test_and_predict_count_their_batches(terminal):
    model, run = Tiny(), terminal.trainer(StepProgress())
    run.validate(model, verbose=False)
    run.test(model, verbose=False)
    run.predict(model, [model.train_dataloader(), model.train_dataloader()])
    assert " 4/4 [" in bars(terminal, "validating")[-1]
    assert " 4/4 [" in bars(terminal, "testing")[-1]
    assert " 8/8 [" in bars(terminal, "predicting")[-1]


class Talk(Callback):
    def on_train_batch_end(self, trainer, pl_module, *_):
        pl_module.print("printed at", trainer.global_step)
        logging.getLogger("lightning.pytorch").warning(f"logged at {trainer.global_step}")
        logging.getLogger("lightning_score.test").warning(f"warned at {trainer.global_step}")


def test_printed_text_has_its_own_lines(terminal):
    terminal.trainer(Talk(), StepProgress(1), max_epochs=1).fit(Tiny())
    lines = terminal.screen()
    for step in range(1, 5):
        first = lines.index(f"printed at {step}")
        assert lines[first + 1 : first + 3] == [f"logged at {step}", f"warned at {step}"]


def test_a_log_file_has_a_line_every_ten_seconds(file, monkeypatch):
    monkeypatch.setattr("lightning_score.callbacks.progress.SECONDS_BETWEEN_LINES", 1000.0)
    file.trainer(StepProgress(1), max_epochs=50).fit(Tiny())
    assert "\r" not in file.getvalue()
    lines = [line for line in file.getvalue().splitlines() if "training:" in line]
    assert len(lines) == 2 and " 0/200 [" in lines[0] and " 200/200 [" in lines[1] and "fid_digits=7.9" in lines[1]

    monkeypatch.setattr("lightning_score.callbacks.progress.SECONDS_BETWEEN_LINES", 0.0)
    file.truncate(0)
    file.trainer(StepProgress(1), max_epochs=2).fit(Tiny())
    assert len([line for line in file.getvalue().splitlines() if "training:" in line]) >= 9


def test_a_disabled_bar_is_silent(terminal):
    bar = StepProgress(1)
    bar.disable()
    run = terminal.trainer(bar, Talk())
    run.fit(Tiny())
    run.validate(Tiny(), verbose=False)
    assert not bars(terminal, "training") and not bars(terminal, "validating")
    bar.enable()
    run.validate(Tiny(), verbose=False)
    assert bars(terminal, "validating")


def test_the_message_of_an_error_starts_on_its_own_line(terminal):
    class Failing(Tiny):
        def on_train_batch_end(self, *_):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        terminal.trainer(StepProgress(1)).fit(Failing())
    assert terminal.getvalue().endswith("\n")
    terminal.trainer(StepProgress(1)).fit(Tiny())  # and the logging is as it was
    assert not any("tqdm" in type(handler).__module__ for handler in logging.getLogger().handlers)


@pytest.mark.parametrize("refresh_every", [0, -5])
def test_a_refresh_below_one_step_is_refused(refresh_every):
    with pytest.raises(InputError, match="at least 1"):
        StepProgress(refresh_every)
