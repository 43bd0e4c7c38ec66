"""Files that are there whole or not at all, also where there is no room."""

import lightning_score.lean_imports  # noqa: F401

import errno
from pathlib import Path

import pytest
from tiny import TINY

from lightning_score.cli import run
from lightning_score.files import replacing
from lightning_score.runs import checkpoints

OF_TORCH = RuntimeError("[enforce fail at inline_container.cc:1] PytorchStreamWriter failed")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt(), ValueError("x"), OF_TORCH])
@pytest.mark.parametrize("old", [None, "before"])
def test_after_an_error_there_is_what_was_there_before(tmp_path, error, old):
    file = tmp_path / "file.txt"
    if old:
        file.write_text(old)
    expected = OSError if isinstance(error, RuntimeError) else type(error)
    with pytest.raises(expected) as raised, replacing(file) as temporary:
        temporary.write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == (["file.txt"] if old else [])
    assert not old or file.read_text() == old
    assert expected is not OSError or raised.value.filename == str(file)


@pytest.mark.parametrize("name", ["x" * 300, "folder", "x" * 250 + ".npz"])
def test_names_and_folders(tmp_path, name):
    (tmp_path / "folder").mkdir()
    try:
        with replacing(tmp_path / name) as temporary:
            temporary.write_text("whole")
        assert len(name) == 254
    except OSError as error:
        assert error.filename == str(tmp_path / name) and len(name) != 254
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_full_disk_in_fit_is_an_error_in_the_end(tmp_path, monkeypatch, capsys):
    """Training continues, the exit code shows that the final weights are lost, and no missing file is recommended."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints.torch, "save", full)
    Path("tiny.yaml").write_text(TINY)
    options = ["--config=tiny.yaml", "--evaluate.features=null", "--trainer.logger=false", "--output=run"]
    assert run(["fit", *options]) == 1
    printed = capsys.readouterr()
    assert "the weights of step 3 are not saved (No space left on device)" in printed.err
    assert "finished 3 steps" in printed.out and "next:" not in printed.out and not list(Path("run").glob("*.ckpt*"))
    assert not [path for path in Path("run").iterdir() if path.name.startswith(".")]
