"""`console.log`: what a command prints, as a terminal shows it at the end, without a change to the terminal itself."""

import io
import logging
import os
import sys
import threading

import pytest
from tqdm import tqdm

from lightning_score.callbacks.progress import _Lines
from lightning_score.runs.console import recording_console, write_console
from lightning_score.runs.folders import CONSOLE

FIRST = "$ python -m lightning_score fit --name 'a b'\n"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def terminals(monkeypatch):
    """Two that replace the standard streams."""
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    return out, err


def recorded(folder, *actions):
    with recording_console(["fit", "--name", "a b"]):
        write_console(folder)
        for action in actions:
            action()
    return (folder / CONSOLE).read_text().removeprefix(FIRST)


def test_everything_is_printed_and_kept_from_the_beginning(tmp_path, monkeypatch):
    streams = terminals(monkeypatch)
    handler = logging.StreamHandler(sys.stderr)  # which holds the stream since before
    with recording_console(["fit", "--name", "a b"]):
        assert (sys.stdout, sys.stderr) == streams and sys.stdout.isatty()
        print("early", end=" ")
        print("line")
        write_console(tmp_path)
        handler.emit(logging.makeLogRecord({"msg": "a warning"}))
        sys.stdout.writelines(["\x1b[31mred\x1b[0m\n", "two\n", "\n"])
        assert (tmp_path / CONSOLE).read_text() == f"{FIRST}early line\na warning\nred\ntwo\n\n"
    print("later")
    assert (
        streams[0].getvalue() == "early line\n\x1b[31mred\x1b[0m\ntwo\n\nlater\n" and streams[1].getvalue() == "a warning\n"
    )
    assert (tmp_path / CONSOLE).read_text().endswith("two\n\n") and "write" not in vars(sys.stdout)


def test_a_bar_is_kept_in_its_last_state(tmp_path, monkeypatch):
    streams = terminals(monkeypatch)

    def bar():
        with tqdm(
            total=50, file=sys.stderr, ncols=60, mininterval=0, miniters=1, bar_format="{desc} {n_fmt}/{total_fmt}"
        ) as bar:
            for i in range(50):
                bar.set_description("training")
                bar.update()
                if i == 20:
                    tqdm.write("a message", file=sys.stderr)

    assert recorded(tmp_path, bar) == "a message\ntraining:  50/50\n"
    assert streams[1].getvalue().count("\r") > 50


def test_lines_of_a_bar_without_a_terminal_are_reduced_too(tmp_path, monkeypatch):
    streams = terminals(monkeypatch)

    def bar():
        lines = _Lines(sys.stderr)
        with tqdm(total=5, file=lines, mininterval=0, miniters=1, bar_format="{n_fmt}/{total_fmt}") as bar:
            for i in range(5):
                bar.update()
                if i == 2:
                    print("a message")

    assert recorded(tmp_path, bar) == "a message\n5/5\n"
    assert streams[1].getvalue().splitlines()[:3] == ["0/5", "1/5", "2/5"] and streams[1].getvalue().endswith("5/5\n")


def test_an_unfinished_line_is_at_the_end_of_the_file_until_it_is_replaced(tmp_path, monkeypatch):
    """So that a run that is killed keeps the last state of its bar."""
    terminals(monkeypatch)
    monkeypatch.setattr("lightning_score.runs.console.EVERY", 0.0)
    with recording_console(["fit", "--name", "a b"]):
        write_console(tmp_path)
        for text, shown in (
            ("1/9", "1/9\n"),
            ("\r2/9\r", "2/9\n"),
            ("\rlonger 3/9", "longer 3/9\n"),
            ("\r", "longer 3/9\n"),
        ):
            sys.stderr.write(text)
            assert (tmp_path / CONSOLE).read_text() == FIRST + shown
        print("out")
        assert (tmp_path / CONSOLE).read_text() == f"{FIRST}out\nlonger 3/9\n"
        sys.stderr.write("\nend\r\n")
    assert (tmp_path / CONSOLE).read_text() == f"{FIRST}out\nlonger 3/9\nend\n"


def test_a_resumed_run_appends(tmp_path, monkeypatch):
    terminals(monkeypatch)
    recorded(tmp_path, lambda: print("one"))
    assert recorded(tmp_path, lambda: print("two")) == f"one\n{FIRST}two\n"


def test_an_error_is_kept_with_its_traceback(tmp_path, monkeypatch):
    terminals(monkeypatch)

    def fail():
        raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError):
        recorded(tmp_path, fail)
    text = (tmp_path / CONSOLE).read_text()
    assert "Traceback" in text and text.endswith("RuntimeError: no such thing\n")
    with pytest.raises(SystemExit):
        recorded(tmp_path, lambda: sys.exit(3))
    assert (tmp_path / CONSOLE).read_text() == f"{text}{FIRST}"


def test_another_wrapper_of_the_streams_may_stay_longer(tmp_path, monkeypatch):
    """As W&B's, which is removed at the end of the process and puts back what it found."""
    streams = terminals(monkeypatch)
    kept = []
    with recording_console(["fit"]):
        write_console(tmp_path)
        ours = sys.stdout.write
        sys.stdout.write = lambda text: (kept.append(text), ours(text))[1]
        print("both")
    print("theirs")
    sys.stdout.write = ours
    print("nobody's")
    assert "".join(kept) == "both\ntheirs\n" and streams[0].getvalue() == "both\ntheirs\nnobody's\n"
    assert (tmp_path / CONSOLE).read_text().endswith("fit\nboth\n")


def test_threads_write_whole_lines(tmp_path, monkeypatch):
    terminals(monkeypatch)

    def talk(k):
        for i in range(200):
            sys.stdout.write(f"{k} {i}\n")

    def together():
        threads = [threading.Thread(target=talk, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    lines = recorded(tmp_path, together).splitlines()
    assert sorted(lines) == sorted(f"{k} {i}" for k in range(4) for i in range(200))


def test_a_forked_process_writes_only_to_the_terminal(tmp_path, monkeypatch):
    terminals(monkeypatch)

    def fork():
        if (child := os.fork()) == 0:
            print("child")
            os._exit(0)
        os.waitpid(child, 0)
        print("parent")

    assert recorded(tmp_path, fork) == "parent\n"


def test_without_a_folder_or_a_disk_the_command_runs_as_before(tmp_path, monkeypatch):
    streams = terminals(monkeypatch)
    with recording_console(["fit"]):
        print("one")
    (tmp_path / CONSOLE).mkdir()
    with recording_console(["fit"]):
        write_console(tmp_path)
        print("two")
    write_console(tmp_path)  # outside of a command: nothing
    assert streams[0].getvalue() == "one\ntwo\n"


def test_a_link_out_of_the_folder_is_not_followed(tmp_path, monkeypatch):
    terminals(monkeypatch)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONSOLE).symlink_to(tmp_path / "mine")
    recorded(tmp_path / "run", lambda: print("one"))
    assert (tmp_path / "mine").read_text() == "mine"
    (tmp_path / "mine").unlink()
    with recording_console(["fit"]):
        write_console(tmp_path / "run")
    assert not (tmp_path / "mine").exists()
