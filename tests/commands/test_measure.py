"""The command `evaluate`: samples in files have the numbers that `test` finds, and others are refused."""

import csv
import json
import shutil
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_score.cli import run
from lightning_score.data import Digits, GaussianMixture
from lightning_score.data.sample_files import read_samples, write_images
from lightning_score.errors import InputError
from lightning_score.report.finding import Reader
from lightning_score.runs.records import FILE, read_records

N = 70


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def numbers(folder):
    (row,) = csv.DictReader(Path(folder, "metrics.csv").read_text().splitlines())
    return {name: float(value) for name, value in row.items() if name.startswith("test/")}


@pytest.mark.slow
def test_the_same_samples_have_the_same_numbers(checkpoint, capsys):
    """Of several features, from the files that `test` keeps; with the numbers of `test`, but without those of drawing."""
    raw = ["--evaluate.features+=RawFeatures", "--evaluate.features.shape=[1,8,8]"]
    options = [f"--evaluate.num_samples={N}", "--evaluate.neighbors=20", *raw]
    assert run(["test", f"--ckpt_path={checkpoint}", "--output=test", "--evaluate.images=zip", *options]) == 0
    with ZipFile("test/images.zip") as archive:
        assert archive.namelist()[0] == "00000/img00000000.png" and len(archive.namelist()) == N + 1
        assert json.loads(archive.read("dataset.json")) == {"labels": None}
        archive.extractall("images")
    assert run(["evaluate", "images", "--config=ncsn", "--evaluate.neighbors=20", *raw]) == 0
    (folder,) = Path("runs/images/evaluate").iterdir()
    expected, found = numbers("test"), numbers(folder)
    drawing = {"test/loss", "test/nfe", "test/sampling_seconds", "test/memory_gb", "test/gpu_memory_gb"}
    assert {"test/fid_digits_70", "test/fid_raw_70", "test/copied"} <= {*found} == {*expected} - drawing
    assert found == pytest.approx({name: value for name, value in expected.items() if name in found}, rel=1e-6)
    ours, theirs = (read_records(Path(each, FILE)) for each in ("test", folder))
    for one, other in zip(ours, theirs, strict=True):
        assert (one.metric, one.floor, one.data_hash, one.features_hash) == (
            other.metric, other.floor, other.data_hash, other.features_hash,
        )  # fmt: skip
        assert one.value == pytest.approx(other.value, rel=1e-6) and other.sampler["file"].endswith("/images")
    assert "for n = 70 samples; a perfect model" in capsys.readouterr().out
    (shown,) = Reader(Path("runs")).look().runs
    assert shown.name == "images" and len(shown.evaluations[0]) == len(theirs)


def test_forms_of_samples_are_the_same_samples():
    data = Digits(data_range=(-1, 1))
    images = data.reference()[:5]
    for form in ("png", "npz", "zip"):
        written = write_images(images, Path.cwd(), form, [1, 2, 3, 4, 5])
        assert torch.equal(read_samples(written, data), images)
    with np.load("images.npz") as arrays:  # ADM's evaluator reads colors
        assert arrays["arr_0"].shape == (5, 8, 8, 3) and arrays["arr_1"].tolist() == [1, 2, 3, 4, 5]
    np.savez("x.npz", x=data.as_input(images).numpy())
    np.savez("both.npz", x=np.zeros((5, 1, 8, 8), np.float32), images=images.permute(0, 2, 3, 1).numpy())
    np.save("gray.npy", images[:, 0].numpy())
    for name in ("x.npz", "both.npz", "gray.npy"):
        assert torch.equal(read_samples(Path(name), data), images), name
    points = GaussianMixture(num_samples=20).reference()
    np.save("points.npy", points.numpy())
    assert torch.equal(read_samples(Path("points.npy"), GaussianMixture(num_samples=20)), points)


def arrays():
    x = Digits().reference()[:10]
    return {
        "size": {"arr_0": x[:, :, :7].permute(0, 2, 3, 1).numpy()},
        "colors": {"arr_0": np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)},
        "floats as bytes": {"arr_0": (x > 100).permute(0, 2, 3, 1).numpy().astype(np.uint8)},
        "type": {"arr_0": x.permute(0, 2, 3, 1).numpy().astype(np.int64)},
        "range": {"x": x.float().numpy()},
        "half of the range": {"x": x.float().numpy() / 255},
        "nan": {"x": np.full((10, 1, 8, 8), np.nan, np.float32)},
        "one": {"x": np.zeros((1, 1, 8, 8), np.float32)},
        "names": {"samples": x.numpy()},
        "text": {"arr_0": np.array(["a", "b"])},
    }


@pytest.mark.parametrize(
    ("kind", "message"),
    {
        "size": r"has samples of shape \[1, 7, 8\], and the data have \[1, 8, 8\]",
        "colors": r"has samples of shape \[3, 8, 8\]",
        "floats as bytes": "bytes of 0 and 1 only",
        "type": "int64; must be uint8 from 0 to 255, or floats in the range",
        "range": r"values from 0 to 255, and data_range is \[-1, 1\]",
        "half of the range": r"values from 0 to 1, and data_range is \[-1, 1\]",
        "nan": "NaN or infinite",
        "one": "has 1 samples",
        "names": "holds samples; must hold one of images, arr_0, x",
        "text": "must be numbers",
    }.items(),
)
def test_other_samples_are_refused(kind, message):
    np.savez("samples.npz", **arrays()[kind])
    with pytest.raises(InputError, match=rf"samples.npz.*{message}"):
        read_samples(Path("samples.npz"), Digits(data_range=(-1, 1)))


def test_other_images_are_refused():
    places = {"empty": None, "modes": Image.new("RGBA", (8, 8)), "sizes": Image.new("L", (9, 8)), "broken": b"x"}
    messages = ["has no images", "has mode RGBA", r"shape \[1, 8, 9\]", "not a readable image"]
    for (name, content), message in zip(places.items(), messages, strict=True):
        Path(name).mkdir()
        if isinstance(content, bytes):
            Path(name, "a.png").write_bytes(content)
        elif content is not None:
            content.save(Path(name, "a.png"))
        shutil.make_archive(name, "zip", name)
        for path in (name, f"{name}.zip"):
            with pytest.raises(InputError, match=f"{name}.*{message}"):
                read_samples(Path(path), Digits())
    with pytest.raises(InputError, match=r"absent.*does not exist"):
        read_samples(Path("absent"), Digits())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["few.npz", "--data=Digits", "--evaluate.features=DigitFeatures"], "10 samples; give at least 65: digits has 64"),
        (
            ["few.npz", "--data=Digits"],
            "--evaluate.features: nothing is measured of images without them; give one or several",
        ),
        (["few.npz"], "evaluate needs samples and the data"),
        (["few.npz", "--data=Digits", "--num_samples=11"], "--num_samples 11: must be from 2 to 10"),
        (
            ["few.npz", "--data=Digits", "--evaluate.features=[DigitFeatures, CLIPFeatures]"],
            "CLIP's weights could not be read",
        ),
    ],
    ids=str,
)
def test_refuses(options, message, monkeypatch, capsys):
    monkeypatch.setenv("LIGHTNING_SCORE_CLIP", "absent.pt")
    write_images(Digits().reference()[:10], Path.cwd(), "npz")
    Path("images.npz").rename("few.npz")
    assert run(["evaluate", *options]) == 2
    assert message in capsys.readouterr().err and not Path("runs").exists()


def test_unknown_features_are_listed(capsys):
    with pytest.raises(SystemExit):
        run(["evaluate", "x.npz", "--data=Digits", "--evaluate.features=[DigitFeatures, DINOFeatures]"])
    assert "DINOFeatures: no such class; give one of DINOv2Features" in capsys.readouterr().err
