"""Streams of arrays: the same examples, conditions and constants as in memory, in chunks, and an exact resume."""

import json

import numpy as np
import pytest
import torch

from lightning_score.data import Arrays, ArrayStream, Flips
from lightning_score.errors import InputError

litdata = pytest.importorskip("litdata")


@pytest.fixture
def file(tmp_path):
    random = np.random.RandomState(0)
    x = (random.randn(200, 3, 5) * [[[1.0], [10.0], [100.0]]] + 7).astype(np.float32)
    x[3, 1, 2] = np.nan
    np.savez(tmp_path / "x.npz", x=x, y=random.randn(200, 2), z=random.randn(200, 1, 5))
    return str(tmp_path / "x.npz")


def settings(file, **options):
    named = {"key": "x", "axes": "NCL", "condition": ["y", "z"], "missing": float("nan"), "batch_size": 16}
    return {"path": file, "num_workers": 0, **named, **options}


def stream_of(file, tmp_path, **options):
    return ArrayStream(**settings(file, kept=40, cache=str(tmp_path / "cache"), **options))


def rows_of(x, y):
    return sorted((*a.nan_to_num(-1e9).flatten().tolist(), *b.tolist()) for a, b in zip(x, y, strict=True))


@pytest.mark.slow
def test_chunks_hold_what_is_in_memory_with_its_constants(file, tmp_path):
    whole, stream = Arrays(**settings(file)), stream_of(file, tmp_path)
    assert rows_of(*stream.splits.held_out) == rows_of(*whole.splits.held_out)
    assert set(rows_of(*stream.splits.train)) < set(rows_of(*whole.splits.train)) and len(stream.splits.train.x) == 40
    torch.manual_seed(0)
    batches = list(stream.train_dataloader())
    seen, stored = rows_of(*map(torch.cat, zip(*batches, strict=True))), whole.splits.train
    assert len(seen) == 176 and set(seen) <= set(rows_of(whole.transform(True)(stored.x), stored.y))
    assert stream.standardize.state_dict() == whole.standardize.state_dict() and stream.missing
    assert stream.condition.shape == whole.condition.shape and stream.shape == (3, 5)
    values = torch.randn(4, *whole.condition.shape)
    assert torch.equal(stream.to_condition(values), whole.to_condition(values))


@pytest.mark.slow
def test_chunks_are_packed_once_and_can_be_moved(file, tmp_path, monkeypatch):
    first = stream_of(file, tmp_path)
    moved = tmp_path / "moved"
    (tmp_path / first.chunks).rename(moved)
    stream = ArrayStream(**settings(str(moved), condition=None, kept=40))
    assert stream.shape == (3, 5) and stream.condition.shape == first.condition.shape
    assert stream.standardize.state_dict() == first.standardize.state_dict()
    assert len(next(iter(stream.train_dataloader()))[0]) == 16
    moved.rename(first.chunks)
    monkeypatch.setattr("lightning_score.data.packing.pack_arrays", None)
    again = stream_of(file, tmp_path)
    assert again.fingerprint == first.fingerprint
    assert len(again.splits.held_out.x) == 20 and again.standardize.state_dict() == first.standardize.state_dict()
    values = torch.randn(2, *first.condition.shape)
    assert torch.equal(again.to_condition(values), first.to_condition(values))


@pytest.mark.parametrize("after", [3, pytest.param(11, marks=pytest.mark.slow)])
def test_a_resumed_run_sees_the_same_batches(file, tmp_path, after):
    """With augmentation, in the middle and after the end of an epoch."""

    def batches(loader, n):
        found = []
        while len(found) < n:
            for batch in loader:
                found.append(batch)
                if len(found) == n or loader.given == len(loader):  # as Lightning, which asks for no more
                    break
        return found

    def loader():
        return stream_of(file, tmp_path, augment=[Flips(["x"])]).train_dataloader()

    whole, part = loader(), loader()
    expected = batches(whole, 16)[after:]
    batches(part, after)
    resumed = loader()
    resumed.load_state_dict(json.loads(json.dumps(part.state_dict())))
    for (x, y), (a, b) in zip(batches(resumed, 16 - after), expected, strict=True):
        assert torch.equal(x.nan_to_num(), a.nan_to_num()) and torch.equal(y.nan_to_num(), b.nan_to_num())


def numbered(k):
    values = np.full((4, 2, 3), float(k), np.float32)
    values[0, 0, 0] = -999.0
    return {"field": values}


@pytest.mark.slow
def test_chunks_written_otherwise(tmp_path):
    litdata.optimize(
        numbered, list(range(50)), output_dir=str(tmp_path / "c"), chunk_size=8, num_workers=1, start_method="fork"
    )
    stream = ArrayStream(str(tmp_path / "c"), missing=-999.0, batch_size=8, num_workers=0, kept=100)
    assert stream.shape == (4, 2, 3) and stream.condition is None
    held_out, train = stream.splits.held_out.x, stream.splits.train.x
    assert held_out[:, 1, 0, 0].tolist() == [0, 1, 2, 3, 4] and len(train) == 45
    x = torch.cat([x for x, _ in stream.train_dataloader()])
    assert len(x) == 40 and bool(x[:, 0, 0, 0].isnan().all()) and int(x.isnan().sum()) == 40
    assert stream.standardize.shift[1] == pytest.approx(27.0) and not bool(stream.reference().isnan().any())
    with pytest.raises(InputError, match="have no conditions"):
        ArrayStream(str(tmp_path / "c"), condition="y")
