"""Images that stream from chunks: all of them once, shuffled, shared by processes and workers, and resumed bit for bit."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from litdata import StreamingDataset, optimize
from PIL import Image
from tiny import TINY
from torch.multiprocessing import start_processes

from lightning_score.cli import run
from lightning_score.data import ImageStream
from lightning_score.data.chunks import as_example
from lightning_score.errors import InputError

SHAPE = (1, 8, 8)
N = 600


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images, each with another gray level, in three folders; two more that cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    for k in range(N):
        (folder / str(k % 3)).mkdir(exist_ok=True)
        picture = np.full((9, 9), k % 256, np.uint8)
        picture[0, 0], picture[-1, -1] = k // 256, 255
        Image.fromarray(picture).resize((8, 8), Image.Resampling.NEAREST).save(folder / str(k % 3) / f"{k}.png")
    (folder / "0" / "torn.png").write_bytes((folder / "0" / "0.png").read_bytes()[:40])
    (folder / "1" / "text.jpg").write_text("no image")
    return folder


@pytest.fixture
def make(photos, tmp_path_factory):
    cache = tmp_path_factory.getbasetemp() / "chunks"

    def made(**settings):
        settings = {"num_classes": 3, "batch_size": 16, "num_workers": 0, "held_out": 50, **settings}
        return ImageStream(str(photos), SHAPE, cache=str(cache), **settings)

    return made


def rows(x):
    """Each image as a number, of its bytes."""
    return [hash(image.numpy().tobytes()) for image in x]


def equal(some, others):
    return all(torch.equal(a, b) for one, other in zip(some, others, strict=True) for a, b in zip(one, other, strict=True))


def test_unreadable_files_are_left_out_and_counted(make):
    with pytest.warns(UserWarning, match=r"2 of 602 images are left out \(2 damaged or not an image\)"):
        data = make()
        train, held_out = data.splits
    assert len(held_out.x) == 50 and len(train.x) == N - 50
    assert sorted(torch.cat([train.y, held_out.y]).bincount().tolist()) == [N // 3] * 3


def save_epoch(rank, make, folder):
    """The images that one of two processes sees in an epoch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    seen = torch.cat([(x * 255).round().byte() for x, _ in make().train_dataloader()])
    torch.save(seen, folder / f"{rank}.pt")


@pytest.mark.filterwarnings("ignore:.*left out.*")
class TestBatches:
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_an_epoch_is_all_images_once(self, make, num_workers):
        data = make(num_workers=num_workers)
        train, held_out = data.splits
        loader = data.train_dataloader()
        first, second = (list(loader) for _ in range(2))
        for epoch in first, second:
            seen = rows(torch.cat([(x * 255).round().byte() for x, _ in epoch]))
            assert len(epoch) == len(loader) and len(set(seen)) == len(seen) >= N - 50 - 32
            assert set(seen) <= set(rows(train.x)) and not set(seen) & set(rows(held_out.x))
        labels = dict(zip(rows(train.x), train.y.tolist(), strict=True))
        for x, y in first:
            assert [labels[row] for row in rows((x * 255).round().byte())] == y.tolist()

    def test_the_order_is_random_and_another_in_every_epoch(self, make):
        """The folder is sorted by classes; the stream is not, and neighbors of one epoch are not neighbors in the next."""
        data = make(batch_size=1)
        loader = data.train_dataloader()
        epochs = [[(rows((x * 255).round().byte())[0], int(y)) for x, y in loader] for _ in range(2)]
        neighbors = []
        for epoch in epochs:
            images, labels = zip(*epoch, strict=True)
            n, changes = len(labels) - 1, sum(a != b for a, b in pairwise(labels))
            assert abs(changes - n * 2 / 3) < 4 * (n * 2 / 9) ** 0.5
            neighbors.append({frozenset(pair) for pair in pairwise(images)})
        assert len(neighbors[0] & neighbors[1]) < 0.1 * n

    @pytest.mark.slow
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_resumes_bit_for_bit(self, make, num_workers):
        """In the middle of an epoch, with the same augmentation, and with the epochs that follow."""

        def loader(state=None):
            made = make(num_workers=num_workers, flip=True, dequantize=True, batch_size=48).train_dataloader()
            if state is not None:
                made.load_state_dict(state)
            return made

        whole, first, states = loader(), [], []
        for batch in whole:
            first.append(batch)
            states.append(whole.state_dict())
        second, n = list(whole), len(whole)
        for done in (1, 2, 7, n - 1, n) if num_workers == 0 else (1, 7, n):
            again = loader(states[done - 1])
            assert equal(list(again), first[done:] or second)
            if done in (7, n - 1):
                assert equal(list(again), second)
            if done in (1, 7, n):  # a batch that was fetched but not used in a step comes again
                state = {**states[done - 1], "batches": done - 1}
                assert equal(list(loader(state)), first[done - 1 :])

    def test_two_processes_share_them(self, make, tmp_path):
        make().splits  # noqa: B018  # packs
        start_processes(save_epoch, (make, tmp_path), nprocs=2, start_method="fork")
        mine, others = (rows(torch.load(tmp_path / f"{k}.pt", weights_only=True)) for k in range(2))
        assert len(mine) == len(others) >= (N - 50) // 2 - 16 and len({*mine, *others}) == 2 * len(mine)

    @pytest.mark.slow
    def test_a_model_trains_on_them_and_resumes(self, make, photos, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        cache = make().chunks.rsplit("/", 1)[0]
        Path("tiny.yaml").write_text(TINY)
        options = ["--config=tiny.yaml", "--data=ImageStream", f"--data.path={photos}", "--data.shape=[1, 8, 8]",
                   f"--data.cache={cache}", "--data.held_out=20", "--data.num_workers=0", "--evaluate.features=null",
                   "--trainer.val_check_interval=2", "--model.lr_scheduler.total_iters=2400"]  # fmt: skip
        assert run(["fit", *options, "--trainer.max_steps=6", "--name=whole"]) == 0
        assert run(["fit", *options, "--trainer.max_steps=4", "--name=parts"]) == 0
        assert run(["fit", *options, "--trainer.max_steps=6", "--name=parts", "--ckpt_path=last"]) == 0
        one, other = (
            torch.load(f"runs/{name}/latest/last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "parts")
        )
        assert all(torch.equal(one[key], other[key]) for key in one)


class TestItems:
    """Items of chunks that others have written."""

    PICTURE = np.arange(64, dtype=np.uint8).reshape(8, 8)

    @pytest.mark.parametrize(
        "item",
        [
            {"x": PICTURE[None], "y": 2},
            {"index": 5, "image": Image.fromarray(PICTURE), "class": 2},
            {"label": torch.tensor(2), "image": torch.from_numpy(PICTURE)[None].expand(3, 8, 8)},
            (Image.fromarray(PICTURE).convert("RGB"), 2),
            [PICTURE[..., None].repeat(3, -1), 2],
        ],
        ids=["ours", "named", "tensors", "tuple", "channels last"],
    )
    def test_they_are_images_with_labels(self, item):
        image, label = as_example(item, SHAPE, 3)
        assert label == 2 and image.dtype == np.uint8 and np.array_equal(image, self.PICTURE[None])
        assert as_example(item, (3, 8, 8))[0].shape == (3, 8, 8)

    @pytest.mark.parametrize(
        ("item", "message"),
        [
            ({"text": "a"}, "no image in an item"),
            ({"x": PICTURE[None]}, "has the label None"),
            ((PICTURE, 7), "has the label 7"),
            ((PICTURE, 0.9), r"has the label 0\.9; labels must be integers, 0 to 2"),
            ((PICTURE, "cat"), "has the label 'cat'"),
            ((np.zeros((8, 8, 5), np.uint8), 0), r"an array \(8, 8, 5\) of uint8, which is not a gray or color image"),
        ],
    )
    def test_refuses(self, item, message):
        with pytest.raises(InputError, match=message):
            as_example(item, SHAPE, 3)


def colored(k):
    """An item as others write it."""
    return {"image": Image.fromarray(np.full((16, 16, 3), k, np.uint8)), "class": k % 2}


def test_chunks_of_others_are_read_and_an_unreadable_item_is_replaced(tmp_path, monkeypatch):
    """Written by litdata itself; one of them cannot be decoded in the second epoch."""
    settings = {"chunk_bytes": "16KB", "num_workers": 1, "start_method": "fork", "verbose": False}
    with isolate_rng():
        optimize(colored, list(range(99)), output_dir=str(tmp_path / "chunks"), **settings)
    data = ImageStream(str(tmp_path / "chunks"), (3, 8, 8), num_classes=2, held_out=9, batch_size=8, num_workers=0)
    assert data.splits.train.x.shape == (90, 3, 8, 8) and data.splits.train.y.bincount().tolist() == [45, 45]
    loader = data.train_dataloader()
    assert sum(len(x) for x, _ in loader) == 88
    read, count = StreamingDataset.__getitem__, []

    def damaged(self, index):
        count.append(index)
        if len(count) == 20:
            raise OSError("broken data stream when reading image file")
        return read(self, index)

    monkeypatch.setattr(StreamingDataset, "__getitem__", damaged)
    with pytest.warns(UserWarning, match="an image cannot be read: broken data stream"):
        assert sum(len(x) for x, _ in loader) == 88


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"held_out": 0}, "held_out=0: must be a number of images above 0"),
        ({"in_memory": -1}, "in_memory=-1"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"shape": (2, 8, 8)}, r"shape=\[2, 8, 8\]"),
    ],
)
def test_refuses(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        ImageStream(str(tmp_path), **settings)


@pytest.mark.filterwarnings("ignore:.*left out.*")
def test_too_large_a_batch(make):
    with pytest.raises(InputError, match="choose batch_size <= 275, or fewer num_workers"):
        make(batch_size=300, num_workers=2).train_dataloader()
