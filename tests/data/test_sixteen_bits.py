"""Images of 16 bits: nothing is lost from file to model and back, and what needs bytes gets them."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from lightning_score.data import ImageFolder, ImageStream, from_uint8, to_uint8
from lightning_score.data.files import Unreadable, read_image
from lightning_score.data.gray import as_levels
from lightning_score.errors import InputError
from lightning_score.metrics import RawFeatures
from lightning_score.metrics.neighbors import nearest_neighbors
from lightning_score.sampling.likelihood import Dequantization


def write_png(path, values):
    """A PNG (H, W, C) of 16 bits."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def values(*shape, top=65536, seed=0):
    return np.random.RandomState(seed).randint(0, top, shape).astype(np.uint16)


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"byteorder": ">"}, None], ids=["tiff", "zip", "big endian", "png"]
)
def test_all_bits_of_gray_and_color_are_read(tmp_path, options):
    for channels in (1, 3):
        stored, file = values(5, 7, channels), tmp_path / f"{channels}.{'png' if options is None else 'tif'}"
        if options is None:
            write_png(file, stored)
        else:
            tifffile.imwrite(file, stored.squeeze(), photometric="rgb" if channels == 3 else "minisblack", **options)
        found = read_image(file, (channels, 5, 7), levels=65536, scale={"integer": (0, 65535)})
        assert found.dtype == np.uint16 and np.array_equal(found, stored.transpose(2, 0, 1))
        bytes_ = read_image(file, (channels, 5, 7), scale={"integer": (0, 65535)})
        assert np.abs(found / 257 - bytes_.astype(float)).max() <= 1


def test_other_images_become_as_they_are_with_bytes(tmp_path):
    """8 bits are exact, color becomes gray by the same weights, transparency white, and a scale of 12 bits loses nothing."""
    color = np.random.RandomState(1).randint(0, 256, (6, 6, 4), dtype=np.uint8)
    for mode in ("L", "RGB", "RGBA", "P", "1", "LA"):
        Image.fromarray(color).convert(mode).save(tmp_path / f"{mode}.png")
        for channels in (1, 3):
            deep, plain = (read_image(tmp_path / f"{mode}.png", (channels, 6, 6), levels=n) for n in (65536, 256))
            assert np.abs(deep.astype(float) / 257 - plain).max() <= (
                0 if mode in ("L", "1") or (mode, channels) == ("RGB", 3) else 1.01
            )
    write_png(tmp_path / "deep.png", values(6, 6, 4))
    clear = values(6, 6, 4)
    opaque = clear[..., 3:] / 65535
    expected = clear[..., :3] * opaque + 65535 * (1 - opaque)
    assert np.abs(read_image(tmp_path / "deep.png", (3, 6, 6), levels=65536).transpose(1, 2, 0) - expected).max() <= 0.51
    twelve = np.arange(4096)
    levels = as_levels(twelve, {"any": (0, 4095)}, 65536)
    assert np.array_equal(np.round(levels / 65535 * 4095), twelve)
    write_png(tmp_path / "gray and clear.png", values(6, 6, 2))
    with pytest.raises(Unreadable, match="of its 16 bits only 8 can be read"):
        read_image(tmp_path / "gray and clear.png", (1, 6, 6), levels=65536)


def test_model_values_are_exact():
    levels = torch.arange(65536).reshape(1, 1, 256, 256).to(torch.uint16)
    for data_range in ((0.0, 1.0), (-1.0, 1.0)):
        x = from_uint8(levels, data_range, 65536)
        assert float(x.min()) == data_range[0] and float(x.max()) == data_range[1]
        assert torch.equal(to_uint8(x, data_range, 65536), levels)
        torch.manual_seed(0)
        back = to_uint8(from_uint8(levels, data_range, 65536, dequantize=True), data_range, 65536, dequantized=True)
        apart = (back.int() - levels.int()).abs()
        assert int(apart.max()) <= 1 and float((apart > 0).float().mean()) < 5e-3
    assert Dequantization(65536, (-1.0, 1.0), True).offset == 15, "bits of the bins per unit"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for k in range(40):
        tifffile.imwrite(tmp_path / "images" / f"{k:02}.tif", values(8, 8, top=4000, seed=k))
    return tmp_path / "images"


def settings(folder):
    return {"path": str(folder), "shape": (1, 8, 8), "cache": str(folder.parent / "cache"), "batch_size": 4}


def test_a_folder_keeps_its_bits_with_one_scale(folder):
    data = ImageFolder(**settings(folder), bits=16, flip=True)
    stored = data.reference()
    assert stored.dtype == torch.uint16 and data.levels == 65536 and data.scale == {"integer": (0.0, 4095.0)}
    files = {np.round(np.asarray(Image.open(file)) / 4095 * 65535).astype(np.uint16).tobytes() for file in folder.iterdir()}
    assert {image.numpy().tobytes() for image in stored} == files
    x, _ = next(iter(data.val_dataloader()))
    assert torch.equal(data.to_reference(x), data.splits.held_out.x[:4])
    assert not torch.equal(next(iter(data.train_dataloader()))[0], x)
    again, plain = ImageFolder(**settings(folder), bits=16), ImageFolder(**settings(folder))
    assert torch.equal(again.reference(), stored) and again.fingerprint != plain.fingerprint
    assert plain.reference().dtype == torch.uint8 and plain.levels == 256
    assert torch.equal((stored.float() / 257).round().byte(), plain.reference())
    neighbors = nearest_neighbors(stored[:3].int(), stored, stored[3:6])
    assert neighbors.index.tolist() == [0, 1, 2]
    assert float(RawFeatures((1, 8, 8))(stored[:2]).features.max()) == float(stored[:2].float().max())
    with pytest.raises(InputError, match="bits=12: must be 8 or 16"):
        ImageFolder(**settings(folder), bits=12)


def test_a_stream_keeps_its_bits(folder):
    pytest.importorskip("litdata")
    data = ImageStream(**settings(folder), bits=16, held_out=4, num_workers=0)
    found = torch.cat([data.splits.held_out.x, data.splits.train.x])
    whole = ImageFolder(**settings(folder), bits=16).reference()
    assert found.dtype == torch.uint16
    assert {image.numpy().tobytes() for image in found} == {image.numpy().tobytes() for image in whole}
    x, _ = next(iter(data.train_dataloader()))
    assert {image.numpy().tobytes() for image in data.to_reference(x)} <= {image.numpy().tobytes() for image in whole}
