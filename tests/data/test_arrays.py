"""Arrays in files: formats, axes, windows, splits, standardization, conditions, and what checkpoints keep."""

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from conftest import concrete

from lightning_score import data as data_package
from lightning_score.conditions import Array, ClassLabel, Several, Vector
from lightning_score.data import Arrays, Asinh, AsStored, Constants, Log, MeanStd, MinMax, Standardization, split_indices
from lightning_score.data.sources import Source
from lightning_score.data.stored import Stored
from lightning_score.errors import InputError

RNG = np.random.default_rng(0)


def field(n=30, shape=(2, 6, 5), dtype=np.float32):
    """Positive data with a large offset, another spread in each channel, and many digits."""
    x = np.exp(RNG.standard_normal((n, *shape)) / 3) * np.arange(1, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1))
    return (3000 * (x + 1)).astype(dtype)


def everything(data):
    """All examples as stored, in the order of the file."""
    train, held_out = (split.x[:] for split in data.splits)
    return torch.cat([part.read() if isinstance(part, Stored) else part for part in (train, held_out)])


def in_order(x, held_out=0.1):
    """The rows of an array in the order in which they are split."""
    return torch.from_numpy(x[np.concatenate(split_indices(len(x), held_out))].astype(np.float32))


def write_hdf5(file, x, **settings):
    with pytest.importorskip("h5py").File(file, "w") as out:
        out.create_dataset("group/x", data=x, **settings)


def write_fits(file, x):
    fits = pytest.importorskip("astropy.io.fits")
    units = [fits.PrimaryHDU(), fits.ImageHDU(x, name="SCI")]
    fits.HDUList(units).writeto(file)


WRITERS = {
    "x.npy": np.save,
    "stored.npz": lambda file, x: np.savez(file, x=x, other=x[:3]),
    "packed.npz": lambda file, x: np.savez_compressed(file, x=x, other=x[:3]),
    "plain.h5": write_hdf5,
    "packed.h5": lambda file, x: write_hdf5(file, x, compression="gzip", chunks=(7, *x.shape[1:])),
    "x.zarr": lambda file, x: pytest.importorskip("zarr").save(str(file), x),
    "x.fits": write_fits,
    "x.fits.gz": write_fits,
}


@pytest.mark.parametrize(
    ("name", "dtype"), [*product(WRITERS, ("float32", "uint16")), ("x.npy", ">f4"), ("plain.h5", "float64")]
)
def test_formats_hold_the_same_numbers_in_memory_and_mapped(tmp_path, name, dtype):
    x = field(dtype=dtype)
    WRITERS[name](tmp_path / name, x)
    for in_memory in (True, False):
        data = Arrays(str(tmp_path / name), axes="NCHW", in_memory=in_memory, cache=str(tmp_path / "cache"))
        assert data.shape == (2, 6, 5) and "splits" not in vars(data)
        assert isinstance(data.splits.train.x, Stored) == (not in_memory)
        assert torch.equal(everything(data).float(), in_order(x))
        assert torch.equal(data.reference()[:], in_order(x)) or torch.equal(data.reference().clone(), in_order(x))


def test_one_of_several_copies_packed_arrays(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", x=field())
    copied, copy = [], Source._copy

    def counted(*given):
        copied.append(given)
        time.sleep(0.3)  # in which all begin
        return copy(*given)

    monkeypatch.setattr(Source, "_copy", counted)

    def total(_):
        data = Arrays(str(tmp_path / "x.npz"), axes="NCHW", in_memory=False, cache=str(tmp_path / "cache"))
        return float(data.load().train.x[:].sum())  # `splits` has a lock for all threads in Python 3.11

    with ThreadPoolExecutor(4) as pool:
        assert len({*pool.map(total, range(4))}) == len(copied) == 1


def test_images_volumes_and_tables(tmp_path):
    tifffile, nibabel = pytest.importorskip("tifffile"), pytest.importorskip("nibabel")
    deep = RNG.integers(0, 4096, (12, 6, 5)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", deep, photometric="minisblack")
    tifffile.imwrite(tmp_path / "packed.tif", deep, photometric="minisblack", compression="zlib")
    for name in ("stack.tif", "packed.tif"):
        data = Arrays(str(tmp_path / name))
        assert data.shape == (1, 6, 5) and torch.equal(everything(data)[:, 0], in_order(deep))
    (tmp_path / "folder").mkdir()
    from PIL import Image

    for k, page in enumerate(deep):
        Image.fromarray(page).save(tmp_path / f"folder/{k:02}.png")
    assert torch.equal(everything(Arrays(str(tmp_path / "folder")))[:, 0], in_order(deep))
    volume = field(9, (4, 5), np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "x.nii")
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "x.nii.gz")
    for name in ("x.nii", "x.nii.gz"):
        data = Arrays(str(tmp_path / name), window=[2, 4, 5], stride=[1, 1, 1], held_out=0.3)
        assert data.shape == (1, 2, 4, 5) and torch.equal(data.splits.train.x[1, 0], torch.from_numpy(volume[1:3]))
    lines = ['"a",b,name,kind', *(f'{k}.5,"{-k}","some, text",{k % 3}' for k in range(20))]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    table = Arrays(str(tmp_path / "table.csv"), condition=3)
    assert table.names == ["a", "b"] and table.shape == (2,) and table.num_classes == 3
    kept = np.concatenate(split_indices(20, 0.1))
    assert everything(table)[:, 0].tolist() == [k + 0.5 for k in kept]
    assert torch.cat([split.y for split in table.splits]).tolist() == [k % 3 for k in kept]


AXES = [
    ((40, 6, 5), {}, (1, 6, 5)),
    ((40, 3, 20), {}, (3, 20)),
    ((40, 20, 3), {}, (3, 20)),
    ((40, 3, 20), {"shape": [1, 3, 20]}, (1, 3, 20)),
    ((40, 8, 9, 10), {}, (1, 8, 9, 10)),
    ((40, 8, 9, 3), {}, (3, 8, 9)),
    ((40, 7), {}, (7,)),
    ((40,), {}, (1,)),
    ((2, 6, 5, 40), {"axes": "CHWN"}, (2, 6, 5)),
    ((400,), {"window": [16]}, (1, 16)),
    ((3, 400), {"axes": "CL", "window": [16], "stride": [3]}, (3, 16)),
    ((40, 3, 7, 8, 9), {}, (3, 7, 8, 9)),
]


@pytest.mark.parametrize(("size", "options", "shape"), AXES)
def test_axes_are_found_or_declared(tmp_path, size, options, shape):
    np.save(tmp_path / "x.npy", field(1, size)[0])
    data = Arrays(str(tmp_path / "x.npy"), **options)
    assert data.shape == shape == tuple(data.splits.train.x.shape[1:])
    x, _ = next(iter(data.val_dataloader()))
    assert x.shape[1:] == shape and x.dtype == torch.float32


@pytest.mark.parametrize("in_memory", [True, False])
def test_windows_of_both_splits_share_no_number(tmp_path, in_memory):
    for k, length in enumerate((89, 68)):  # recordings of two lengths
        np.save(tmp_path / f"{k}.npy", (1000 * k + np.arange(2 * length)).reshape(2, length).astype(np.float32))
    data = Arrays(str(tmp_path), axes="CL", window=[8], stride=[3], held_out=0.2, in_memory=in_memory)
    train, held_out = (split.x[:] for split in data.splits)
    train, held_out = (x.read() if isinstance(x, Stored) else x for x in (train, held_out))
    assert not {*train.flatten().tolist()} & {*held_out.flatten().tolist()}
    assert len(train) == len(range(0, 71 - 7, 3)) + len(range(0, 54 - 7, 3))
    for x in torch.cat([train, held_out]):  # each is a piece of both channels of one recording
        assert torch.equal(x[0], x[0, 0] + torch.arange(8)) and float(x[1, 0] - x[0, 0]) in (89, 68)


def test_few_rows_are_held_out_whole_if_a_part_of_one_is_shorter_than_a_window(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(9 * 40, dtype=np.float32).reshape(9, 40))
    data = Arrays(str(tmp_path / "x.npy"), axes="NL", window=[8])
    assert [len(split.x) for split in data.splits] == [8 * 5, 5]


def test_whole_groups_and_given_files_are_held_out(tmp_path):
    x, groups = field(60, (4,)), np.repeat(np.arange(12), 5)
    np.savez(tmp_path / "x.npz", x=x, patient=groups)
    data = Arrays(str(tmp_path / "x.npz"), key="x", group="patient", held_out=0.25)
    of = {tuple(row): group for row, group in zip(x.tolist(), groups.tolist(), strict=True)}
    train, held_out = ({of[tuple(row)] for row in split.x.tolist()} for split in data.splits)
    assert len(held_out) == 3 and not train & held_out and len(train | held_out) == 12
    np.savez(tmp_path / "y.npz", x=field(7, (4,)), patient=groups[:7])
    given = Arrays(str(tmp_path / "x.npz"), key="x", held_out=str(tmp_path / "y.npz"), condition="patient")
    assert torch.equal(given.splits.train.x, torch.from_numpy(x))
    assert len(given.splits.held_out.x) == 7 and given.splits.held_out.y.tolist() == groups[:7].tolist()


# Standardization


KINDS = {
    MeanStd: MeanStd(),
    MinMax: MinMax(),
    Asinh: Asinh(),
    Log: Log(),
    Constants: Constants([3000, 5000], 700),
    AsStored: AsStored(),
}


def test_kinds_are_all_of_them():
    assert set(KINDS) == set(concrete(data_package, Standardization))


@pytest.mark.parametrize(("kind", "dtype"), [*product(KINDS, ("float32", "uint16", "float64"))])
def test_round_trips_constants_and_slopes(tmp_path, kind, dtype):
    x = field(200, (2, 4, 4), dtype)
    np.save(tmp_path / "x.npy", x)
    if kind is AsStored and dtype == "uint16":
        with pytest.raises(InputError, match="uint16 numbers have no scale"):
            Arrays(str(tmp_path / "x.npy"), standardize=AsStored()).splits  # noqa: B018
        return
    data = Arrays(str(tmp_path / "x.npy"), standardize=KINDS[kind], batch_size=50)
    KINDS[kind].shift = None
    stored = data.splits.train.x
    z = data.transform(train=True)(stored)
    error = (data.to_reference(z).double() - stored.double()).abs().max() / stored.double().std()
    assert z.dtype == torch.float32 and error <= 1e-6
    other = Arrays(str(tmp_path / "gone.npy"), standardize=type(KINDS[kind])(*([0, 1] if kind is Constants else [])))
    other.load_state_dict(pickle.loads(pickle.dumps(data.state_dict())))  # without the file
    assert other.shape == (2, 4, 4) and torch.equal(other.to_reference(z), data.to_reference(z))
    assert other.state_dict() == data.state_dict()
    damaged = {"shape": "no", "conditions": [{}], "standardize": {"kind": kind.__name__, "shift": [0.0], "spread": [0.0]}}
    for name, value in damaged.items():
        with pytest.raises(InputError, match=r"damaged|must be one finite number"):
            other.load_state_dict({**data.state_dict(), name: value})
    point = stored[:3].double()
    slope = torch.autograd.functional.jacobian(lambda v: _exact(data.standardize, v).sum(0), point[:1])
    expected = slope.reshape(32, 32).diagonal().log().sum()
    assert data.log_det(z[:1].double()).item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-4)


def _exact(standardize, x):
    """z of x, in float64 and differentiable."""
    column = [each.reshape(-1, 1, 1) for each in (standardize.shift, standardize.spread)]
    return (standardize.warp(x) - column[0]) / column[1]


def test_constants_are_those_of_the_training_part_in_double_precision(tmp_path):
    x = (1e6 + RNG.standard_normal((1000, 2, 3, 3))).astype(np.float64)
    x[split_indices(1000, 0.1)[1]] += 1e6  # held out: seen by no constant
    np.save(tmp_path / "x.npy", x)
    found = x[split_indices(1000, 0.1)[0]]
    for in_memory in (True, False):
        data = Arrays(str(tmp_path / "x.npy"), in_memory=in_memory)
        data.splits  # noqa: B018
        np.testing.assert_allclose(data.standardize.shift, found.mean((0, 2, 3)), rtol=1e-14)
        np.testing.assert_allclose(data.standardize.spread, found.std((0, 2, 3)), rtol=1e-9)
        assert data.transform(False)(data.splits.train.x[:]).std() == pytest.approx(1, rel=1e-3)


def test_missing_numbers_are_nan_for_the_model_and_the_mean_for_metrics(tmp_path):
    x = field(100, (2, 5), np.float32)
    holes = RNG.random(x.shape) < 0.2
    expected = np.where(holes, np.nan, x)
    for name, value, missing in (("nan", np.nan, "nan"), ("fill", -999, -999.0)):
        np.save(tmp_path / f"{name}.npy", np.where(holes, np.float32(value), x))
        for in_memory in (True, False):
            data = Arrays(str(tmp_path / f"{name}.npy"), axes="NCL", missing=missing, in_memory=in_memory)
            z = torch.cat([batch for batch, _ in data.val_dataloader()])
            train, held_out = split_indices(100, 0.1)
            assert data.missing and torch.equal(z.isnan(), torch.from_numpy(holes[held_out]))
            mean = np.nanmean(expected[train], (0, 2), dtype=np.float64)
            np.testing.assert_allclose(data.standardize.shift, mean, rtol=1e-7)
            filled = np.where(holes, mean[None, :, None], x)[np.concatenate([train, held_out])]
            np.testing.assert_allclose(data.reference()[range(100)], filled, rtol=1e-6)


# Conditions


def test_stored_conditions_know_their_kinds_and_follow_their_examples(tmp_path):
    n, x = 80, field(80, (1, 6, 6))
    x[:, 0, 0, 0] = np.arange(n)
    stored = {
        "kind": RNG.integers(0, 4, n),
        "mass": 100 + RNG.standard_normal(n),
        "age": RNG.standard_normal(n),
        "place": np.float32(RNG.standard_normal((n, 2))),
        "coarse": x[:, :, ::2, ::2],
    }
    np.savez(tmp_path / "x.npz", x=x, **stored)
    kinds = {"kind": ClassLabel, "mass": Vector, "place": Vector, "coarse": Array}
    for (key, kind), in_memory in product(kinds.items(), (True, False)):
        data = Arrays(str(tmp_path / "x.npz"), key="x", condition=key, in_memory=in_memory, batch_size=20)
        assert type(data.condition) is kind and data.num_classes == (4 if key == "kind" else 0)
        values = torch.from_numpy(stored[key] if key != "mass" else stored[key][:, None])
        for split in data.splits:
            rows = split.x[:][range(len(split.x))][:, 0, 0, 0].long()
            assert torch.equal(split.y[range(len(rows))], data.to_condition(values[rows]))
        if key != "kind":
            y = data.splits.train.y[range(72)].double()
            assert y.transpose(0, 1).flatten(1).std(1, correction=0) == pytest.approx(1, rel=1e-4)
    several = Arrays(str(tmp_path / "x.npz"), key="x", condition=["kind", "mass", "age", "coarse"])
    kind = several.condition
    assert isinstance(kind, Several) and [type(part) for part in kind.parts] == [ClassLabel, Vector, Array]
    rows = several.splits.held_out.x[:, 0, 0, 0].long()
    pair = torch.tensor(np.stack([stored["mass"], stored["age"]], 1))
    packed = kind.pack([torch.from_numpy(stored["kind"])[rows], pair[rows], torch.from_numpy(stored["coarse"])[rows]])
    assert several.splits.held_out.y == pytest.approx(several.to_condition(packed), abs=1e-5)
    assert kind.unpack(several.from_condition(several.to_condition(packed)))[1] == pytest.approx(pair[rows].float())
    later = Arrays(str(tmp_path / "gone.npz"), key="x", condition=["kind", "mass", "age", "coarse"])
    later.load_state_dict(pickle.loads(pickle.dumps(several.state_dict())))
    assert later.condition.shape == kind.shape and torch.equal(later.to_condition(packed), several.to_condition(packed))


# Mistakes


class Opened:
    """Code that runs when a pickle is loaded."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def test_mistakes_are_one_clear_line(tmp_path):
    x = field(20, (1, 4, 4))
    np.savez(tmp_path / "x.npz", x=x, label=np.arange(20), other=x[:3])
    np.save(tmp_path / "objects.npy", np.array([Opened()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", x=np.array([Opened()], dtype=object))
    (tmp_path / "pickled.npy").write_bytes(pickle.dumps(Opened()))
    (tmp_path / "damaged.npy").write_bytes((tmp_path / "x.npz").read_bytes()[:50])
    holes = x.copy()
    holes[7, 0, 1, 2] = holes[9, 0, 0, 0] = np.nan
    np.save(tmp_path / "nan.npy", holes)
    np.save(tmp_path / "inf.npy", np.where(np.isnan(holes), np.inf, x))
    np.save(tmp_path / "negative.npy", x - 6000)
    np.save(tmp_path / "complex.npy", x.astype(np.complex64))
    wrong = [
        ("x.npz", {"key": "y"}, "has no y; it holds x, label, other"),
        ("x.npz", {"axes": "NHW"}, "axes=NHW: must be 4 different capital letters"),
        ("x.npz", {"shape": [3, 4, 4]}, r"has no examples of shape=\[3, 4, 4\]"),
        ("x.npz", {"window": [5, 5]}, r"with window=\[5, 5\]"),
        ("x.npz", {"condition": "size"}, "has no size"),
        ("x.npz", {"condition": "other"}, "has 3 rows, and the data have 20"),
        ("gone.npy", {}, "there is no such file"),
        ("package://numpy/x.npy", {}, "numpy has no file x.npy"),
        ("package://no_such_package/x.npy", {}, "no installed package no_such_package"),
        ("objects.npy", {}, "Python objects, which may run any code and are never loaded"),
        ("objects.npz", {}, "Python objects, which may run any code and are never loaded"),
        ("pickled.npy", {}, "never loaded"),
        ("damaged.npy", {}, "damaged.npy: cannot be read"),
        ("nan.npy", {}, r"of 320 values 2 NaN; the first is nan in row \d+ at \[0, \d, \d\]; missing: nan leaves them out"),
        ("inf.npy", {"missing": "nan"}, "2 infinite"),
        ("negative.npy", {"standardize": Log()}, r"not positive \(Asinh takes any sign\)"),
        ("complex.npy", {}, "real and the imaginary part as channels"),
    ]
    for name, options, message in wrong:
        key = {"key": "x"} if name == "x.npz" else {}
        place = name if "://" in name else str(tmp_path / name)
        with pytest.raises(InputError, match=message) as found:
            Arrays(place, **{**key, **options}).splits  # noqa: B018
        assert "\n" not in str(found.value)


def test_package_files_and_sizes(tmp_path):
    data = Arrays("package://lightning_score/data/digits.npz", key="images", condition="labels")
    assert data.shape == (1, 8, 8) and data.num_classes == 10 and data.integers == "uint8"
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (128, 1, 8, 8) and y.shape == (128,) and prod(data.splits.train.x.shape) == 1617 * 64
