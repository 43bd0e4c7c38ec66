"""Whatever a config or an image file holds, it works or it is refused in one line."""

import io
import math
import shutil
from copy import deepcopy

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from lightning_score.commands.base import IdleExperiment
from lightning_score.commands.configs import shipped
from lightning_score.data.files import Unreadable, as_bytes, read_image
from lightning_score.errors import InputError

MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LA", "PA", "I", "I;16", "F", "HSV", "LAB"]
FORMATS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "JPEG2000"]
NAMES = ["a.png", "a.jpg", "a.JPEG", "a.webp", "a", "a.txt", "ä b.png"]
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


def picture(mode, size, seed):
    """A random image of any mode."""
    width, height = size
    draws = np.random.RandomState(seed)
    if mode == "F":
        return Image.fromarray(draws.rand(height, width).astype(np.float32) * draws.choice([1, 255, 65535]))
    if mode in ("I", "I;16"):
        values = draws.randint(0, 65536, (height, width))
        return Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.int32))
    bands = len(Image.new(mode, (1, 1)).getbands()) if mode != "1" else 1
    shape = (height, width, bands) if bands > 1 else (height, width)
    values = draws.randint(0, 256, shape).astype(np.uint8)
    if mode == "P":
        image = Image.frombytes("P", size, values.tobytes())
        image.putpalette(draws.randint(0, 256, 768).astype(np.uint8).tobytes())
        return image
    if mode == "1":
        return Image.fromarray(values).convert("1")
    return Image.frombytes(mode, size, values.tobytes())


def encoded(image, kind):
    """The bytes of a file, in PNG where the format cannot hold the image, in the nearest mode where PNG cannot either."""
    for chosen, each in ((kind, image), ("PNG", image), ("TIFF", image), ("PNG", image.convert("RGB"))):
        file = io.BytesIO()
        try:
            each.save(file, chosen)
        except (OSError, ValueError, KeyError):
            continue
        return file.getvalue()
    raise AssertionError(image.mode)


damages = st.one_of(
    st.none(),
    st.tuples(st.just("cut"), st.floats(0, 1, allow_subnormal=False)),
    st.tuples(
        st.just("flip"),
        st.lists(
            st.tuples(st.floats(0, 1, exclude_max=True, allow_subnormal=False), st.integers(1, 255)), min_size=1, max_size=20
        ),
    ),
    st.tuples(st.just("noise"), st.binary(max_size=300)),
)


def damaged(content, damage):
    if damage is None:
        return content
    kind, how = damage
    if kind == "cut":
        return content[: int(len(content) * how)]
    if kind == "noise":
        return how
    changed = bytearray(content)
    for where, by in how:
        changed[int(where * len(changed))] ^= by
    return bytes(changed)


def check_images(n, folder):
    @settings(max_examples=n, derandomize=True, **QUIET)
    @given(
        mode=st.sampled_from(MODES),
        size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
        kind=st.sampled_from(FORMATS),
        name=st.sampled_from(NAMES),
        damage=damages,
        shape=st.sampled_from([(1, 8, 8), (3, 8, 8), (3, 5, 9)]),
        crop=st.sampled_from([None, 4]),
        seed=st.integers(0, 9),
    )
    def check(mode, size, kind, name, damage, shape, crop, seed):
        file = folder / name
        file.write_bytes(damaged(encoded(picture(mode, size, seed), kind), damage))
        try:
            found = read_image(file, shape, crop)
        except Unreadable:
            assert damage is not None or (crop is not None and min(size) < crop) or mode in ("HSV", "LAB")
        else:
            assert found.shape == shape and found.dtype == np.uint8

    check()


@pytest.mark.faults("image files: any mode, format, name, damage", 400)
def test_any_image_file(tmp_path):
    check_images(400, tmp_path)


@pytest.mark.slow
@pytest.mark.faults("image files: any mode, format, name, damage", 10_000)
def test_ten_thousand_image_files(tmp_path):
    check_images(10_000, tmp_path)


class TestModes:
    """What becomes of the numbers of an image."""

    LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(
        "image",
        [
            Image.fromarray(LEVELS),
            Image.fromarray(LEVELS.astype(np.uint16) * 257),
            Image.fromarray(LEVELS.astype(np.int32) * 257),
            Image.fromarray(LEVELS.astype(np.float32) / 255),
            Image.fromarray(LEVELS.astype(np.float32)),
            Image.fromarray(np.dstack([LEVELS] * 3)),
            Image.fromarray(np.dstack([LEVELS, np.full_like(LEVELS, 255)]), "LA"),
            Image.fromarray(np.dstack([255 - LEVELS] * 3 + [np.zeros_like(LEVELS)]), "CMYK"),
            Image.fromarray(LEVELS).convert("P"),
        ],
        ids=["8 bits", "16 bits", "32 bits", "0 to 1", "0 to 255", "color", "alpha", "CMYK", "palette"],
    )
    def test_every_gray_level_stays(self, image, channels):
        found = np.asarray(as_bytes(image, channels)).reshape(16, 16, channels)
        assert all(np.array_equal(found[..., channel], self.LEVELS) for channel in range(channels))

    def test_what_is_transparent_is_white(self):
        image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
        assert np.asarray(as_bytes(image, 3)).min() == 255
        palette = Image.new("P", (4, 4), 0)
        palette.putpalette([10, 20, 30])
        palette.info["transparency"] = 0
        assert np.asarray(as_bytes(palette, 3)).min() == 255

    @pytest.mark.parametrize("values", [[[-1.0, 2.0]], [[0.0, 1e9]], [[math.nan, 1.0]]])
    def test_other_numbers_are_no_pictures(self, values):
        with pytest.raises(ValueError, match="not of 8 or 16 bits"):
            as_bytes(Image.fromarray(np.array(values, dtype=np.float32)), 1)


NUMBERS = [0, -1, 1, 2**40, -(2**40), 0.5, -0.5, 1e300, 1e-300, math.inf, -math.inf, math.nan]
TEXTS = ["", "null", "auto", "a", "../x", "torch.nn.Linear", "Heun", "NCSN", "ä\n", "1e-3", "[1", "{", "!!python/none x"]
anything = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.lists(st.integers(-3, 3), max_size=3),
    st.dictionaries(st.sampled_from(["class_path", "init_args", "a"]), st.sampled_from(["Heun", 1, None]), max_size=3),
)
NAMED = ("ncsn", "ddpm", "vp_pc", "conditional")
CONFIGS = {name: yaml.safe_load((shipped() / f"{name}.yaml").read_text()) for name in NAMED}


def places(config, path=()):
    """The way to every value of a config."""
    for key, value in config.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def check_configs(n, folder):
    @settings(max_examples=n, derandomize=True, **QUIET)
    @given(data=st.data())
    def check(data):
        config = deepcopy(CONFIGS[data.draw(st.sampled_from(sorted(CONFIGS)))])
        for _ in range(data.draw(st.integers(1, 2))):
            *path, key = data.draw(st.sampled_from(sorted(places(config), key=str)))
            part = config
            for step in path:
                part = part[step]
            change = data.draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
            if change == "remove":
                del part[key]
            else:
                part[key if change == "replace" else f"{key}_"] = data.draw(anything)
        file = folder / "own.yaml"
        file.write_text(yaml.safe_dump(config))
        try:
            made = IdleExperiment(["--config", str(file)])
        except InputError:
            return
        except SystemExit as end:
            assert end.code == 2
            return
        except Exception as error:
            cause = error
            while cause is not None and not isinstance(cause, InputError):
                cause = cause.__cause__
            assert cause is not None, f"{type(error).__name__}: {error}"
            return
        batch = made.datamodule.splits.train.x[:2]
        assert torch.isfinite(made.datamodule.transform(train=False)(batch)).all()

    check()
    shutil.rmtree(folder / "lightning_logs", ignore_errors=True)


@pytest.mark.faults("configs: values replaced, left out, added", 30)
def test_any_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_configs(30, tmp_path)


@pytest.mark.slow
@pytest.mark.faults("configs: values replaced, left out, added", 400)
def test_many_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_configs(400, tmp_path)
