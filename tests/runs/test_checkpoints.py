"""Checkpoints: written in one move, checked byte by byte, read without running code."""

import csv
import errno
import os
import random
import zipfile
from functools import partialmethod
from pathlib import Path

import pytest
import torch

from lightning_score.cli import run
from lightning_score.commands.configs import load_checkpoint
from lightning_score.errors import InputError
from lightning_score.runs import checkpoints
from lightning_score.runs.checkpoints import PREVIOUS, SafeCheckpointIO, verify_checksums
from lightning_score.runs.records import append_line
from lightning_score.runs.wandb_logger import RunCSVLogger

QUICK = ["--trainer.max_steps=4", "--trainer.val_check_interval=2", "--evaluate.features=null", "--samples.num_samples=0",
         "--trainer.callbacks=null", "--trainer.logger=false"]  # fmt: skip


def checkpoint(step):
    return {"state_dict": {"weight": torch.full((100, 10), float(step))}, "global_step": step, "config": {}}


@pytest.fixture
def file(tmp_path):
    """The second of two checkpoints of one name."""
    for step in (1, 2):
        SafeCheckpointIO().save_checkpoint(checkpoint(step), tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_a_checkpoint_is_read_back_and_the_previous_one_stays(file):
    assert SafeCheckpointIO().load_checkpoint(file)["global_step"] == 2
    assert torch.load(str(file) + PREVIOUS, weights_only=True)["global_step"] == 1
    assert sorted(each.name for each in file.parent.iterdir()) == ["last.ckpt", "last.ckpt.previous"]


@pytest.mark.faults("checkpoints cut off", 40)
def test_every_truncation_is_found(file):
    whole = file.read_bytes()
    for length in range(0, len(whole), 97):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"damaged or truncated.*the previous one is undamaged"):
            verify_checksums(file)


@pytest.mark.faults("checkpoints with a flipped bit", 300)
def test_every_flipped_bit_of_the_weights_is_found(file):
    """Of 300 random bits of the stored tensors none passes, where torch.load alone would take them."""
    whole, draws = file.read_bytes(), random.Random(0)
    with zipfile.ZipFile(file) as archive:
        (info,) = [each for each in archive.infolist() if "/data/" in each.filename]
    start = whole.index(torch.full((100, 10), 2.0).numpy().tobytes())
    for _ in range(300):
        at = draws.randrange(start, start + info.file_size)
        damaged = bytearray(whole)
        damaged[at] ^= 1 << draws.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"has changed since it was written.*last.ckpt.previous"):
            load_checkpoint(str(file))


def test_when_both_are_damaged_none_is_offered(file):
    for each in (file, file.with_name(file.name + PREVIOUS)):
        each.write_bytes(each.read_bytes()[:500])
    with pytest.raises(InputError) as refused:
        verify_checksums(file)
    assert "damaged or truncated" in str(refused.value) and "undamaged" not in str(refused.value)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile",)


@pytest.mark.faults("hostile pickles", 3)
def test_a_hostile_pickle_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "config": {}, "evil": Hostile()}, "evil.ckpt")
    with pytest.raises(InputError, match=r"holds code \(posix.system\)") as refused:
        load_checkpoint("evil.ckpt")
    assert "weights_only" not in str(refused.value) and "safe_globals" not in str(refused.value)
    with pytest.raises(InputError, match="holds code"):
        SafeCheckpointIO().load_checkpoint("evil.ckpt", weights_only=False)  # which it ignores
    assert run(["predict", "--ckpt_path=evil.ckpt"]) == 2
    assert not Path("hostile").exists()


@pytest.mark.faults("crashes while a checkpoint is written")
def test_a_crash_while_it_is_written_leaves_the_previous_one(file, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        SafeCheckpointIO().save_checkpoint(checkpoint(3), file)
    assert SafeCheckpointIO().load_checkpoint(file)["global_step"] == 2


@pytest.mark.faults("full disks")
def test_a_full_disk_is_reported_and_harms_nothing(file, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    SafeCheckpointIO().save_checkpoint(checkpoint(3), file)
    printed = capsys.readouterr()
    assert "checkpoint of step 3: not saved (No space left on device)" in printed.out + printed.err
    assert SafeCheckpointIO().load_checkpoint(file)["global_step"] == 2
    assert sorted(each.name for each in file.parent.iterdir()) == ["last.ckpt", "last.ckpt.previous"]


@pytest.mark.faults("full disks", 3)
def test_training_continues_on_a_full_disk_and_saves_when_there_is_room(tmp_path, monkeypatch, capsys):
    """The disk is full at the first three attempts."""
    fsync, attempts = os.fsync, []

    def full_at_first(number):
        attempts.append(number)
        if len(attempts) <= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    monkeypatch.setattr(checkpoints.os, "fsync", full_at_first)
    assert run(["fit", "--config=ncsn", f"--output={tmp_path / 'run'}", *QUICK]) == 0
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("No space left on device") == 3
    assert load_checkpoint(str(tmp_path / "run/last.ckpt"))["global_step"] == 4


def test_a_file_system_without_hard_links_has_one_checkpoint(file, monkeypatch):
    def no_links(*_):
        raise PermissionError(errno.EPERM, "not supported")

    monkeypatch.setattr(os, "link", no_links)
    SafeCheckpointIO().save_checkpoint(checkpoint(3), file)
    assert SafeCheckpointIO().load_checkpoint(file)["global_step"] == 3


class TestRows:
    """metrics.csv on a disk that is full for a while."""

    @pytest.mark.faults("full disks", 2)
    @pytest.mark.parametrize("new_column", [False, True])
    def test_rows_wait_for_room(self, tmp_path, monkeypatch, capsys, new_column):
        logger = RunCSVLogger(tmp_path)
        logger.log_metrics({"a": 1.0}, step=0)
        written = (tmp_path / "metrics.csv").read_text()
        with monkeypatch.context() as full:
            full.setattr(csv.DictWriter, "writerows", partialmethod(_fill_up))
            logger.log_metrics({"b" if new_column else "a": 2.0}, step=1)
            logger.log_metrics({"a": 3.0}, step=2)
        assert (tmp_path / "metrics.csv").read_text() == written
        assert capsys.readouterr().err.count("cannot be written (No space left on device)") == 1  # once
        logger.log_metrics({"a": 4.0}, step=3)
        with (tmp_path / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
        assert rows[1]["b" if new_column else "a"] == "2.0" and rows[3]["a"] == "4.0"
        assert [each.name for each in tmp_path.iterdir()] == ["metrics.csv"]


def _fill_up(writer, rows):
    """Half a row, then no more room."""
    writer.writer.writerow(["half", "a"])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.faults("full disks")
def test_records_and_pictures_that_do_not_fit_are_reported(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    append_line(tmp_path / "file" / "evaluations.jsonl", {"a": 1})  # where no folder can be made
    assert "evaluations.jsonl: cannot be written" in capsys.readouterr().err
