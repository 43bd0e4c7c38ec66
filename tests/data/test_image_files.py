"""Image data sets read from files: the published ones in torchvision's formats, and any folder of images."""

import gzip
import hashlib
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from image_files import pictures, write_idx
from PIL import Image
from torchvision import datasets

from lightning_score.commands.parser import Parser
from lightning_score.data import (
    CIFAR10,
    MNIST,
    Digits,
    FashionMNIST,
    ImageFolder,
    ImageStream,
    public as public_data,
)
from lightning_score.data.files import image_files, read_image
from lightning_score.data.public import resized
from lightning_score.errors import InputError


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test reaches for the network."""

    def refuse(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


pytestmark = pytest.mark.usefixtures("cache")


class TestPublic:
    @pytest.fixture
    def cifar10(self, tmp_path, monkeypatch):
        """Files in CIFAR-10's format, with their own check sums, 20 images each."""
        folder = tmp_path / "data" / "cifar-10-batches-py"
        folder.mkdir(parents=True)
        names = [name for name, _ in datasets.CIFAR10.train_list + datasets.CIFAR10.test_list]
        entries = {name: {"data": pictures(20, 3072), "labels": [i % 10 for i in range(20)]} for name in names}
        sums = {}
        for name, entry in (entries | {"batches.meta": {"label_names": list("abcdefghij")}}).items():
            data = pickle.dumps(entry)
            (folder / name).write_bytes(data)
            sums[name] = hashlib.md5(data).hexdigest()
        monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, sums[name]] for name in names[:5]])
        monkeypatch.setattr(datasets.CIFAR10, "test_list", [[name, sums[name]] for name in names[5:]])
        monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": sums["batches.meta"]})
        return tmp_path / "data", entries

    def test_cifar10(self, cifar10):
        root, entries = cifar10
        data = CIFAR10(str(root), data_range=(-1, 1))
        assert "splits" not in vars(data) and data.shape == (3, 32, 32) and data.num_classes == 10
        train, held_out = data.splits
        stored = np.concatenate([entries[f"data_batch_{i}"]["data"] for i in range(1, 6)]).reshape(-1, 3, 32, 32)
        assert np.array_equal(train.x, stored) and np.array_equal(
            held_out.x, entries["test_batch"]["data"].reshape(-1, 3, 32, 32)
        )
        assert train.y.tolist() == [i % 10 for i in range(20)] * 5
        x = torch.cat([x for x, _ in data.val_dataloader()])
        assert torch.equal(data.to_reference(x), held_out.x)

    @pytest.mark.parametrize(("kind", "folder"), [(MNIST, "MNIST"), (FashionMNIST, "FashionMNIST")])
    def test_mnist(self, kind, folder, tmp_path):
        (x, y), (test_x, _) = write_idx(tmp_path / folder / "raw", 12)
        train, held_out = kind(str(tmp_path)).splits
        assert np.array_equal(train.x[:, 0], x) and np.array_equal(held_out.x[:, 0], test_x)
        assert train.y.tolist() == y.tolist() and train.y.dtype == torch.int64

    def test_fashion_mnist_of_debian(self, tmp_path, monkeypatch):
        (x, _), _ = write_idx(tmp_path / "usr", 12, ".gz", gzip.compress)
        monkeypatch.setattr(public_data, "DEBIAN_FASHION_MNIST", tmp_path / "usr")
        for _ in range(2):
            assert np.array_equal(FashionMNIST(str(tmp_path / "data")).splits.train.x[:, 0], x)

    @pytest.mark.parametrize("kind", [CIFAR10, MNIST, FashionMNIST])
    def test_absent_files_are_an_error_with_the_folder_and_the_fix(self, kind, tmp_path, monkeypatch):
        monkeypatch.setattr(public_data, "DEBIAN_FASHION_MNIST", tmp_path / "usr")
        data = kind(str(tmp_path))
        with pytest.raises(InputError, match=rf"not in {tmp_path}.*no network.*--data\.root"):
            data.train_dataloader()
        assert data.shape and data.transform(False)  # all that sampling needs

    def test_sizes(self):
        """A border keeps the pixels; reducing keeps constants, means and the place of things."""
        x = torch.from_numpy(pictures(3, 1, 28, 28))
        assert torch.equal(resized(x, 28), x)
        larger = resized(x, 32)
        assert torch.equal(larger[..., 2:30, 2:30], x) and larger.sum() == x.sum()
        assert resized(torch.full((1, 1, 28, 28), 77, dtype=torch.uint8), 16).unique().tolist() == [77]
        ramp = torch.arange(28, dtype=torch.uint8).mul(9).expand(1, 1, 28, 28)
        expected = ((torch.arange(16) + 0.5) * 28 / 16 - 0.5) * 9
        assert (resized(ramp, 16)[0, 0, 0, 1:-1] - expected[1:-1]).abs().max() <= 1
        assert FashionMNIST(size=16).shape == (1, 16, 16)
        with pytest.raises(InputError, match="size=0"):
            MNIST(size=0)


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        """Forty images of several sizes, kinds and depths in two folders, some deeper, with another file."""
        for i in range(40):
            place = tmp_path / "images" / ("cats", "dogs/small")[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            pixels = np.full((20 + i, 30, 3), (i, 100, 200), np.uint8)
            mode, ending = [("RGB", "png"), ("L", "jpg"), ("RGBA", "webp"), ("P", "bmp")][i // 2 % 4]
            Image.fromarray(pixels).convert(mode).save(place / f"{i}.{ending}")
        (tmp_path / "images" / "notes.txt").write_text("no image")
        return tmp_path / "images"

    def test_every_image_once_in_its_color_and_class(self, folder):
        data = ImageFolder(str(folder), shape=[3, 8, 8], num_classes=2, held_out=0.25)
        train, held_out = data.splits
        assert train.x.shape == (30, 3, 8, 8) and held_out.x.shape == (10, 3, 8, 8) and train.x.dtype == torch.uint8
        x, y = torch.cat([train.x, held_out.x]), torch.cat([train.y, held_out.y])
        for file, image, label in zip(image_files(folder), x, y, strict=True):
            assert label == ("dogs" in str(file))
            if file.suffix in (".png", ".webp"):
                assert (image.float().mean((1, 2)) - torch.tensor([float(file.stem), 100, 200])).abs().max() <= 2
        assert 0 < train.y.float().mean() < 1, "the split is random"
        assert ImageFolder(str(folder), shape=[3, 8, 8]).splits.train.y.unique().tolist() == [0]

    def test_the_middle_is_cut_and_reduced(self, tmp_path):
        pixels = np.zeros((12, 40, 3), np.uint8)
        pixels[:, 14:26] = 255  # the middle square of 12
        pixels[4:8, 18:22] = 100  # the middle of the middle
        (tmp_path / "one").mkdir()
        for i in range(2):
            Image.fromarray(pixels).save(tmp_path / "one" / f"{i}.png")
        square = ImageFolder(str(tmp_path / "one"), shape=[1, 12, 12], held_out=0.5).splits.train.x[0, 0]
        assert torch.equal(square, torch.from_numpy(pixels[:, 14:26, 0]))
        cut = ImageFolder(str(tmp_path / "one"), shape=[1, 2, 2], crop=4, held_out=0.5).splits.train.x[0, 0]
        assert cut.unique().tolist() == [100]
        wide = ImageFolder(str(tmp_path / "one"), shape=[1, 6, 12], held_out=0.5).splits.train.x[0, 0]
        assert wide.shape == (6, 12) and 0 < float((wide == 255).float().mean()) < 1

    def test_decoded_once_until_a_file_changes(self, folder, monkeypatch):
        make = lambda: ImageFolder(str(folder), shape=[3, 8, 8])  # noqa: E731
        first = make().splits.train.x.clone()
        opened = []
        read = lambda file, *_: opened.append(file) or np.zeros((3, 8, 8), np.uint8)  # noqa: E731
        monkeypatch.setattr("lightning_score.data.files.read_image", read)
        assert torch.equal(make().splits.train.x, first) and not opened
        os.utime(folder / "cats" / "0.png", ns=(0, 0))
        assert make().splits.train.x.sum() == 0 and len(opened) == 40

    def test_the_images_stay_on_disk(self, folder):
        splits = ImageFolder(str(folder), shape=[3, 8, 8]).splits
        maps = Path("/proc/self/maps")
        assert splits.train.x.shape[0] == 36 and (not maps.exists() or "lightning_score/images-" in maps.read_text())

    def test_several_at_once(self, folder, monkeypatch):
        """One of them decodes the files; `splits` has a lock for all threads in Python 3.11."""
        opened = []

        def counted(file, *settings):
            opened.append(file)
            time.sleep(0.05)  # in which all begin
            return read_image(file, *settings)

        monkeypatch.setattr("lightning_score.data.files.read_image", counted)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: ImageFolder(str(folder), shape=[1, 4, 4]).load().train.x.sum(), range(4)))
        assert len({int(total) for total in found}) == 1 and len(opened) == len({*opened}) == 40

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"shape": [2, 8, 8]}, r"shape=\[2, 8, 8\]"),
            ({"shape": [8, 8]}, r"shape=\[8, 8\]"),
            ({"crop": 0}, "crop=0"),
            ({"held_out": 1.0}, "held_out=1.0"),
            ({"num_classes": -1}, "num_classes=-1"),
            ({"num_classes": 3}, r"num_classes=3: .* 2 folders or places \(cats, dogs\)"),
            ({"crop": 99}, r"none of its 40 images can be read \(40 smaller than crop=99\)"),
        ],
        ids=str,
    )
    def test_refuses(self, options, message, folder):
        with pytest.raises(InputError, match=message):
            ImageFolder(str(folder), **options).train_dataloader()

    def test_refuses_folders(self, tmp_path):
        with pytest.raises(InputError, match=r"absent: must be a folder that exists; set --data\.path"):
            ImageFolder(str(tmp_path / "absent")).train_dataloader()
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match="no images in it"):
            ImageFolder(str(tmp_path / "empty")).train_dataloader()
        for name in ("a", "b"):
            (tmp_path / "empty" / f"{name}.png").write_bytes(b"\x89PNG broken")
        with pytest.raises(InputError, match=r"none of its 2 images can be read .* [ab]\.png: damaged or not an image"):
            ImageFolder(str(tmp_path / "empty")).train_dataloader()
        assert not list((tmp_path / "cache").rglob("*.npy*")), "nothing half done is kept"


@pytest.mark.parametrize("kind", [CIFAR10, MNIST, FashionMNIST, ImageFolder, ImageStream, Digits])
def test_every_argument_has_help(kind):
    """The arguments of `ImageData` are documented there alone."""
    parser = Parser()
    parser.add_class_arguments(kind, "data")
    texts = {action.dest: action.help for action in parser._actions if action.dest.startswith("data.")}
    texts = {name: text for name, text in texts.items() if not name.endswith(".help")}
    assert {f"data.{name}" for name in ("batch_size", "data_range", "flip", "dequantize", "num_workers")} <= texts.keys()
    assert {name.removeprefix("data.") for name in texts} == {*signature(kind).parameters}, "and Python shows them all"
    assert all(texts.values()), texts
