"""Folders of images beyond 8 bits, with links, and with a cache that cannot be written: one scale, each image once."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY

from lightning_score.cli import run
from lightning_score.data import ImageFolder, ImageStream
from lightning_score.data.chunks import as_example
from lightning_score.data.files import image_files
from lightning_score.data.gray import as_levels
from lightning_score.errors import InputError

SIDE = 8


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def write(tmp_path):
    """Writes arrays as images into a folder, with one pixel that marks the image."""

    def written(arrays, ending="tif"):
        (tmp_path / "images").mkdir(exist_ok=True)
        for k, array in enumerate(arrays):
            Image.fromarray(array).save(tmp_path / "images" / f"{k:03d}.{ending}")
        return tmp_path / "images"

    return written


def made(folder, kind=ImageFolder, **options):
    more = {"num_workers": 0, "held_out": 2} if kind is ImageStream else {"held_out": 0.2}
    return kind(str(folder), shape=[1, SIDE, SIDE], **{"batch_size": 4, **more, **options})


def stored(data):
    """The image of each file, by its name."""
    x = torch.cat([data.splits.held_out.x, data.splits.train.x]) if isinstance(data, ImageStream) else data.reference()
    return dict(zip([file.stem for file in data.files] if isinstance(data, ImageFolder) else x, x, strict=True))


def ramps(n, high, dtype):
    """Images that all hold one value in their first pixel, and each another highest value in the last."""
    common = 0.8 * high[0]
    arrays = []
    for k in range(n):
        array = np.linspace(0, high[k % len(high)], SIDE * SIDE).reshape(SIDE, SIDE)
        array[0, 0] = common
        arrays.append(array.astype(dtype))
    return arrays


@pytest.mark.parametrize(
    ("dtype", "high", "white", "ending"),
    [
        (np.float32, (1.0, 0.95), 1.0, "tif"),
        (np.float32, (1.0, 1.86), 1.86, "tif"),
        (np.float32, (1.0, 1.0, 200.0), 255.0, "tif"),
        (np.float32, (1.0, 60000.0), 65535.0, "tif"),
        (np.uint16, (4095, 3000), 4095.0, "png"),
        (np.uint16, (255, 16), 255.0, "png"),
        (np.uint16, (16, 12), 16.0, "png"),
        (np.uint16, (60000, 1000), 65535.0, "png"),
        (np.int32, (255, 1000), 1023.0, "tif"),
        (np.int32, (1, 1), 1.0, "tif"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*gray levels of 256")
def test_a_value_is_the_same_gray_in_all_files(dtype, high, white, ending, write, capsys):
    data = made(write(ramps(10, high, dtype), ending))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_score.data.check.rank_zero_warn", lambda _: None)
        images = data.reference()
    expected = round(float(np.dtype(dtype).type(0.8 * high[0])) * 255 / white)
    assert {int(image[0, 0, 0]) for image in images} == {expected}
    line = capsys.readouterr().out
    kind = "float" if np.dtype(dtype).kind == "f" else "integer"
    assert f"10 gray images of {kind} values up to" in line and f"0 is black and {white:g} white" in line
    last = {int(image[0, -1, -1]) for image in images}
    assert last == {round(255 * float(np.dtype(dtype).type(each)) / white) for each in high}


def test_floats_beyond_one_keep_their_levels(write):
    """0.2 to 1.86 became 3 gray levels, 12 bits in files of 16 bits 21."""
    draws = np.random.RandomState(0)
    floats = made(write([draws.uniform(0.2, 1.86, (SIDE, SIDE)).astype(np.float32) for _ in range(20)]))
    assert len(floats.reference().unique()) > 200
    shutil.rmtree(floats.folder)
    deep = made(write([draws.randint(0, 3500, (SIDE, SIDE)).astype(np.uint16) for _ in range(20)], "png"))
    assert len(deep.reference().unique()) > 200


def test_the_scale_is_of_all_files_and_of_the_cache(write, monkeypatch):
    """A file more changes it for all; a chosen one is another entry of the cache, and another fingerprint."""
    folder = write(ramps(10, (1.0,), np.float32))
    first = made(folder)
    assert first.splits.train.x.max() == 255
    chosen = made(folder, gray_range=[-1, 1])
    assert int(chosen.splits.train.x.min()) == 130 and chosen.fingerprint != first.fingerprint
    assert int(made(folder, gray_range=[0.5, 0.6]).splits.train.x.min()) == 0, "beyond black is black"
    Image.fromarray(np.full((SIDE, SIDE), 2.0, np.float32)).save(folder / "more.tif")
    more = made(folder)
    assert more.fingerprint != first.fingerprint
    assert sorted(more.reference().flatten(1).amax(1).tolist()) == [*[128] * 10, 255]
    again = made(folder)
    monkeypatch.setattr("lightning_score.data.files.read_image", None)  # nothing is decoded again
    assert torch.equal(again.reference(), more.reference()) and again.fingerprint == more.fingerprint


def test_few_levels_give_a_warning(write):
    folder = write([*ramps(19, (0.9,), np.float32), np.full((SIDE, SIDE), 60000, np.float32)])
    with pytest.warns(UserWarning, match=r"only \d gray levels of 256 are left; .* --data\.gray_range"):
        made(folder).splits  # noqa: B018


@pytest.mark.parametrize("gray_range", [[1, 0], [0, 1, 2], [0, float("nan")]])
@pytest.mark.parametrize("kind", [ImageFolder, ImageStream])
def test_an_invalid_scale_is_refused(kind, gray_range, tmp_path):
    with pytest.raises(InputError, match="gray_range="):
        made(tmp_path, kind, gray_range=gray_range)


def test_chunks_have_the_same_scale(write, tmp_path):
    folder = write(ramps(30, (1.0, 1.86), np.float32))
    data = made(folder, ImageStream, cache=str(tmp_path / "chunks"))
    images = torch.cat(data.splits[0][:1] + data.splits[1][:1])
    assert {int(image[0, 0, 0]) for image in images} == {round(0.8 * 255 / 1.86)}
    for deep in (np.full((SIDE, SIDE), 0.5, np.float32), np.full((3, SIDE, SIDE), 0.5, np.float32)):
        with pytest.raises(InputError, match=r"more than 8 bits.*--data\.gray_range"):
            as_example({"x": deep}, (1, SIDE, SIDE))
        assert as_example({"x": deep}, (1, SIDE, SIDE), 0, {"any": (0.0, 1.0)})[0].max() == 128


def test_values_that_are_not_gray_levels():
    for values in (np.array([[-1.0, 2.0]]), np.array([[0.0, 1e9]]), np.array([[np.nan, 1.0]])):
        with pytest.raises(ValueError, match="not of 8 or 16 bits"):
            as_levels(values)
    assert as_levels(np.array([[-5.0, 1.0, 9.0]]), {"any": (0.0, 2.0)}).tolist() == [[0, 128, 255]]
    with pytest.raises(ValueError, match="not finite"):
        as_levels(np.array([[np.nan, 1.0]]), {"any": (0.0, 2.0)})


class TestLinks:
    @pytest.fixture
    def folder(self, tmp_path):
        for k in range(6):
            (tmp_path / "images" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((SIDE, SIDE), 40 * k, np.uint8)).save(tmp_path / "images" / "ab"[k % 2] / f"{k}.png")
        (tmp_path / "outside").mkdir()
        Image.new("L", (SIDE, SIDE)).save(tmp_path / "outside" / "other.png")
        return tmp_path / "images"

    @pytest.mark.parametrize("target", [".", "..", "../b", "../../outside", "../b/1.png", "../../outside/other.png", "gone"])
    def test_they_neither_multiply_nor_leave(self, folder, target):
        before = image_files(folder)
        (folder / "a" / "link.png").symlink_to(target)
        with pytest.warns(UserWarning, match=r"1 links are not followed, for example .*link\.png"):
            assert image_files(folder) == before

    def test_a_folder_that_is_a_link_itself_is_read(self, folder, tmp_path):
        (tmp_path / "alias").symlink_to(folder)
        assert len(image_files(tmp_path / "alias")) == 6

    def test_files_in_a_hidden_folder_inside_are_read(self, folder):
        """As git-annex keeps them."""
        (folder / ".annex").mkdir()
        (folder / "a" / "0.png").rename(folder / ".annex" / "key")
        (folder / "a" / "0.png").symlink_to("../.annex/key")
        assert sorted(file.name for file in image_files(folder)) == [f"{k}.png" for k in range(6)]

    def test_a_folder_of_links_alone_is_refused(self, folder, tmp_path):
        (tmp_path / "links").mkdir()
        (tmp_path / "links" / "all").symlink_to(folder)
        with pytest.raises(InputError, match=r"no images in it; 1 links are not followed, for example .*all -> .*images"):
            image_files(tmp_path / "links")


class TestCache:
    @pytest.fixture
    def folder(self, write):
        return write([np.full((SIDE, SIDE), 10 * k + 50, np.uint8) for k in range(20)], "png")

    @pytest.mark.parametrize("kind", [ImageFolder, ImageStream])
    @pytest.mark.parametrize("cache", ["file", "file/below"])
    def test_a_file_is_no_cache(self, kind, cache, folder, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match=r"--data\.cache .*file is a file; give a folder"):
            made(folder, kind, cache=str(tmp_path / cache)).train_dataloader()

    def full(self, monkeypatch, where):
        """A disk without room, found out before or in the middle of writing."""
        if where == "before":
            monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
            return
        header = ImageFolder._write_header

        def fails(self, file, n):
            header(self, file, n)
            file.close()
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(ImageFolder, "_write_header", fails)

    @pytest.mark.parametrize("where", ["before", "in the middle"])
    @pytest.mark.faults("a full disk for the images", 1)
    def test_a_full_disk_costs_the_cache_alone(self, where, folder, tmp_path, monkeypatch):
        expected = made(folder).splits
        self.full(monkeypatch, where)
        cache = tmp_path / "other" / "cache"
        with pytest.warns(UserWarning, match="cannot be written there .* this run keeps them in memory"):
            found = made(folder, cache=str(cache)).splits
        assert torch.equal(found.train.x, expected.train.x) and torch.equal(found.train.y, expected.train.y)
        assert not list(tmp_path.glob("other/**/*.npy*")) and not list(tmp_path.glob("other/**/tmp*"))

    def test_a_full_disk_ends_packing_in_one_line(self, folder, tmp_path, monkeypatch):
        self.full(monkeypatch, "before")
        with pytest.raises(InputError, match=r"--data\.cache .* cannot be written there .* give another folder"):
            made(folder, ImageStream, cache=str(tmp_path / "other" / "cache")).train_dataloader()
        left = [path for path in (tmp_path / "other").rglob("*") if path.is_file() and path.suffix != ".json"]
        assert not left, "except the scale of the files"

    def test_half_a_cache_is_made_anew(self, folder, tmp_path):
        first = made(folder).reference().clone()
        (file,) = (tmp_path / "cache").rglob("*.npy")
        os.truncate(file, 100)
        assert torch.equal(made(folder).reference(), first)

    def test_what_does_not_fit_is_found_before_all_is_decoded(self, folder, monkeypatch, tmp_path):
        monkeypatch.setattr("lightning_score.data.files.read_image", None)
        for options, message in (({"num_classes": 5}, "num_classes=5"), ({"held_out": 0.99}, "none is left for training")):
            with pytest.raises(InputError, match=message):
                made(folder, **options).train_dataloader()
        for file in sorted(folder.iterdir())[1:]:
            file.unlink()
        for kind, message in ((ImageFolder, "only 1 images"), (ImageStream, "only 1 images")):
            with pytest.raises(InputError, match=message):
                made(folder, kind).train_dataloader()
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()], "nothing was made"

    def test_more_than_fits_into_memory(self, folder, monkeypatch):
        self.full(monkeypatch, "before")
        with pytest.raises(InputError, match=r"20 images of shape \[3, 900000, 900000\]: takes at least .* GB of memory"):
            ImageFolder(str(folder), shape=[3, 900_000, 900_000]).train_dataloader()


@pytest.mark.parametrize("form", ["./../photos", "absolute"])
def test_paths_serve_in_any_folder(form, tmp_path, monkeypatch):
    """A checkpoint knows where its data and the statistics are, wherever one goes; so do old ones, in their folder."""
    draws = np.random.RandomState(0)
    for place in ("photos", "a", "b"):
        (tmp_path / place).mkdir()
    for k in range(20):
        Image.fromarray(draws.randint(0, 256, (SIDE, SIDE)).astype(np.uint8)).save(tmp_path / "photos" / f"{k}.png")
    np.savez(tmp_path / "stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    monkeypatch.chdir(tmp_path / "a")
    given = str(tmp_path / "photos") if form == "absolute" else form
    options = [f"--data.path={given}", "--data.cache=../cache", "--evaluate.reference=../stats.npz"]
    fast = ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--evaluate.num_samples=2", "--data.batch_size=8"]
    kind = ["--data=ImageFolder", f"--data.shape=[1,{SIDE},{SIDE}]", "--evaluate.features=RawFeatures"]
    raw = [f"--evaluate.features.shape=[1,{SIDE},{SIDE}]", "--evaluate.neighbors=0"]
    Path("tiny.yaml").write_text(TINY)
    assert run(["fit", "--config=tiny.yaml", "--name=run", *kind, *options, *raw, *fast]) == 0
    monkeypatch.chdir(tmp_path / "b")
    checkpoint = tmp_path / "a" / "runs" / "run" / "latest" / "last.ckpt"
    assert run(["test", f"--ckpt_path={checkpoint}"]) == 0
    kept = torch.load(checkpoint, weights_only=True)
    assert kept["config"]["data"]["init_args"]["path"] == str(tmp_path / "photos")
    assert kept["config"]["evaluate"]["reference"] == str(tmp_path / "stats.npz")
    kept["config"]["data"]["init_args"]["path"] = "../photos"
    torch.save(kept, tmp_path / "b" / "old.ckpt")
    assert run(["validate", "--ckpt_path=old.ckpt"]) == 0


def test_what_cannot_be_downloaded_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("urlopen", "urlretrieve"):
        monkeypatch.setattr(f"urllib.request.{name}", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr("lightning_score.data.public.DEBIAN_FASHION_MNIST", tmp_path / "usr")
    for kind in ("CIFAR10", "MNIST", "FashionMNIST"):
        assert run(["fit", "--config=ncsn", f"--data={kind}", "--evaluate.features=null"]) == 2
        assert "could not be downloaded" in capsys.readouterr().err
    assert not list(tmp_path.rglob("data*")) and not list(tmp_path.rglob("raw"))
