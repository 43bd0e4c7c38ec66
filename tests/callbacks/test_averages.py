"""Averages whose length is chosen after training: the law of their profiles, synthesis, resuming, and files on the disk."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from averaged import EMA, Line, Watch, averages, fit, flat
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_score.errors import InputError
from lightning_score.runs import averages as module
from lightning_score.runs.averages import Averages, combine, exponent, interval, kept_fraction, snapshot, thin
from lightning_score.runs.checkpoints import SafeCheckpointIO

LENGTHS = [0.05, 0.1]


def shares(length, n):
    """The share of each step in an average after n steps, by the closed form."""
    edges = (np.arange(n + 1) / n) ** (exponent(length) + 1)
    return np.diff(edges)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_recursion_has_the_profile_of_its_length(length):
    """Power-function shares of the steps, whose standard deviation is the length times the steps."""
    n, found = 3000, np.zeros(3000)
    for k in range(1, n + 1):
        found *= kept_fraction(length, k)
        found[k - 1] += 1 - kept_fraction(length, k)
    np.testing.assert_allclose(found, shares(length, n), rtol=1e-9, atol=1e-15)
    steps = np.arange(n) + 0.5
    mean = found @ steps
    assert np.sqrt(found @ (steps - mean) ** 2) / n == pytest.approx(length, rel=1e-3)
    assert mean / n == pytest.approx((exponent(length) + 1) / (exponent(length) + 2), rel=1e-3)


@pytest.mark.parametrize("length", [0.03, 0.07, 0.15])
def test_the_error_is_that_of_the_profile(length):
    """Against profiles of 4000 steps; no other combination with the sum 1 is nearer, and more snapshots are."""
    n, errors = 4000, []
    for every in (1000, 500, 250):
        kept = [(each, k) for k in range(every, n + 1, every) for each in LENGTHS]
        found, error = combine(kept, length, n)
        columns = np.stack([np.pad(shares(each, k), (0, n - k)) for each, k in kept], 1)
        target, norm = shares(length, n), np.linalg.norm(shares(length, n))
        assert found.sum() == pytest.approx(1, abs=1e-12)
        assert np.linalg.norm(columns @ found - target) / norm == pytest.approx(error, rel=0.02)
        slope = columns.T @ (columns @ found - target)
        assert np.ptp(slope) < 1e-3 * norm**2
        errors.append(error)
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2]


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(module, "FIRST", 2)


def test_synthesized_averages_are_those_kept_directly(tmp_path):
    """Of other lengths, also at an earlier step, within 1e-3; those that are kept bit for bit."""
    watch, others = Watch(), [0.04, 0.07, 0.13, 0.16]
    ema = EMA(0.9, lengths=[*LENGTHS, *others])
    fit(Line(), ema, watch, max_epochs=50, limit_val_batches=0, default_root_dir=tmp_path).save_checkpoint(
        tmp_path / "last.ckpt"
    )
    path, direct = torch.stack(watch.trained).numpy(), {}
    for file in [*(tmp_path / "averages").iterdir(), tmp_path / "last.ckpt"]:  # of which only two lengths are left
        saved = torch.load(file, weights_only=True)
        direct[saved["global_step"]] = {length: vector(state) for length, state in saved["averages"].items()}
        torch.save({**saved, "averages": {length: saved["averages"][length] for length in LENGTHS}}, file)
    assert sorted(direct) == [*range(16, 200, 16), 200]
    for step in (200, 128):
        made = Averages(tmp_path / "last.ckpt", torch.load(tmp_path / "last.ckpt", weights_only=True), step)
        for length, state in zip(others, made.make(*others), strict=True):
            closed = shares(length, step) @ path[:step]
            norm = np.linalg.norm(closed)
            assert np.linalg.norm(direct[step][length] - closed) < 1e-5 * norm
            assert np.linalg.norm(vector(state) - direct[step][length]) < 1e-3 * norm and made.error(length) > 0
        assert made.error(0.05) == 0 and np.array_equal(vector(made.make(0.05)[0]), direct[step][0.05])


def vector(state):
    """The parameters of a state."""
    return np.concatenate([state[name].double().flatten() for name, _ in Line().named_parameters()])


def test_averages_of_decay_are_the_same_with_and_without_lengths(tmp_path):
    """Bit for bit, and without lengths nothing is written."""
    found = []
    for lengths in (None, LENGTHS):
        model, ema = Line(), EMA(0.9, lengths=lengths)
        trainer = fit(model, ema, default_root_dir=tmp_path)
        found.append((flat(model).tolist(), averages(ema, model).tolist()))
        assert ("averages" in trainer._checkpoint_connector.dump_checkpoint()) == bool(lengths)
    assert found[0] == found[1] and not (tmp_path / "averages").exists()


def content(folder):
    return {file.name: torch.load(file, weights_only=True) for file in sorted(folder.glob("*.pt"))}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_has_the_same_averages_and_snapshots(tmp_path, accumulate, often):
    """Bit for bit; snapshots of later steps than the checkpoint's are written again."""
    options = {"accumulate_grad_batches": accumulate, "enable_checkpointing": True}
    runs = {name: tmp_path / name for name in ("whole", "resumed")}
    make = lambda: EMA(0.9, lengths=LENGTHS, snapshots=4)  # noqa: E731
    whole = fit(Line(), make(), ModelCheckpoint(runs["whole"]), max_epochs=6, default_root_dir=runs["whole"], **options)
    first = fit(Line(), make(), ModelCheckpoint(tmp_path), max_epochs=3, default_root_dir=runs["resumed"], **options)
    first.save_checkpoint(tmp_path / "first.ckpt")
    snapshot(runs["resumed"], 999).write_bytes(b"of an abandoned run")
    resumed = fit(Line(), make(), ModelCheckpoint(runs["resumed"]), max_epochs=6, default_root_dir=runs["resumed"],
                  ckpt_path=tmp_path / "first.ckpt", **options)  # fmt: skip
    one, two = ({"end": trainer._checkpoint_connector.dump_checkpoint(), **content(folder / "averages")}
                for trainer, folder in zip((whole, resumed), runs.values(), strict=True))  # fmt: skip
    assert one.keys() == two.keys() and 2 <= len(one) - 1 <= 4
    for name, saved in one.items():
        for length, average in saved["averages"].items():
            for key, value in average.items():
                assert torch.equal(value, two[name]["averages"][length][key]), (name, length, key)


def test_averages_may_begin_later(tmp_path):
    """All earlier weights then count as those of the step from which training continues."""
    fit(Line(), EMA(0.9), max_epochs=1).save_checkpoint(tmp_path / "first.ckpt")
    start = torch.load(tmp_path / "first.ckpt", weights_only=True)["current_model_state"]
    watch, ema, model = Watch(), EMA(0.9, lengths=LENGTHS), Line()
    trainer = fit(model, ema, watch, max_epochs=3, ckpt_path=tmp_path / "first.ckpt", default_root_dir=tmp_path)
    path = np.stack([vector(start)] * 4 + [each.numpy() for each in watch.trained])
    for length, average in trainer._checkpoint_connector.dump_checkpoint()["averages"].items():
        np.testing.assert_allclose(vector(average), shares(length, 12) @ path, rtol=1e-5, atol=1e-6)


def test_a_run_resumes_with_the_same_lengths_or_none(tmp_path):
    fit(Line(), EMA(0.9, lengths=LENGTHS), max_epochs=1).save_checkpoint(tmp_path / "first.ckpt")
    options = {"max_epochs": 2, "ckpt_path": tmp_path / "first.ckpt", "default_root_dir": tmp_path}
    with pytest.raises(InputError, match=r"lengths=\[0.2\]: the checkpoint has averages of the lengths \[0.05, 0.1\]"):
        fit(Line(), EMA(0.9, lengths=[0.2]), **options)
    ema = EMA(0.9)
    fit(Line(), ema, **options)
    assert ema.updates == 8


@pytest.mark.parametrize("snapshots", [2, 5, 16])
def test_the_disk_holds_at_most_so_many_even_snapshots(tmp_path, snapshots):
    (tmp_path / "averages").mkdir()
    for n in range(1, 6000):
        if n % interval(n, snapshots):
            continue
        snapshot(tmp_path, n).touch()
        thin(tmp_path, n, snapshots)
        steps = sorted(int(file.stem[5:]) for file in (tmp_path / "averages").iterdir())
        assert steps[-1] == n and len(steps) <= snapshots and {b - a for a, b in pairwise([0, *steps])} == {steps[0]}
        assert len(steps) >= snapshots // 2 or n < module.FIRST * snapshots


def test_training_continues_when_a_snapshot_cannot_be_written(tmp_path, capsys, often):
    (tmp_path / "averages").write_text("in the way")
    ema = EMA(0.9, lengths=LENGTHS)
    fit(Line(), ema, default_root_dir=tmp_path, plugins=[SafeCheckpointIO()])
    assert ema.updates == 8 and "checkpoint of step 2: not saved" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": [0.0]}, r"lengths=0: must lie between 0.0001 and 0.28"),
        ({"lengths": []}, r"lengths=\[\]: must hold a length"),
        ({"lengths": [0.05, 0.3]}, r"lengths=0.3: must lie between"),
        ({"lengths": [float("nan")]}, r"lengths=nan"),
        ({"lengths": [0.1, 0.1]}, r"lengths=\[0.1, 0.1\]: each must be given once"),
        ({"lengths": [0.1], "snapshots": 1}, r"snapshots=1: must be at least 2"),
    ],
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        EMA(**options)
