"""What the page's server sends: only what has changed, and only runs that have changed are read."""

import json
import os
import random
import time
from pathlib import Path

import pytest
from run_folders import picture, run_folder, status

from lightning_score.report import finding
from lightning_score.report.changes import changes
from lightning_score.report.server import WatchedRuns


def changed(old, change):
    """As `changed` in live.js."""
    if change == 0:
        return old
    if "new" in change:
        return change["new"]
    if "list" in change:
        made, i = [], 0
        for step in change["list"]:
            if not isinstance(step, int):
                made += step["add"] if "add" in step else [changed(old[i], step)]
                i += "add" not in step
            else:
                made += old[i : i + step] if step > 0 else []
                i += abs(step)
        return made
    parts = {key: changed(old.get(key), part) for key, part in change["set"].items()}
    return {key: value for key, value in {**old, **parts}.items() if key not in change["without"]}


def tree(draws, depth=4):
    """A random value of JSON."""
    kind = draws.random() if depth else 0
    if kind < 0.3:
        return draws.choice([1, 2.5, "a", None, 0, "new", "list", -3])
    if kind < 0.6:
        return {draws.choice(["a", "b", "new", "list", "set", "add"]): tree(draws, depth - 1) for _ in range(4)}
    return [tree(draws, depth - 1) for _ in range(draws.randrange(9))]


def mutated(draws, value):
    """A value with a few changes."""
    if draws.random() < 0.1:
        return tree(draws, 2)
    if isinstance(value, dict):
        return {key: mutated(draws, each) for key, each in value.items() if draws.random() > 0.1}
    if isinstance(value, list):
        kept = [mutated(draws, each) for each in value if draws.random() > 0.1]
        return [*kept[:2], tree(draws, 1), *kept[2:]] if draws.random() < 0.3 else kept
    return value


def test_a_change_makes_the_new_value_of_the_old():
    draws = random.Random(0)
    for _ in range(1000):
        old = tree(draws)
        new = mutated(draws, old)
        assert changed(old, json.loads(json.dumps(changes(old, new)))) == new
    assert changes({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) == 0


def test_a_change_is_small():
    curve = [0.5 * i for i in range(10_000)]
    assert changes(curve, [*curve, 1.0]) == {"list": [10_000, {"add": [1.0]}]}
    runs = [{"name": f"r{i}", "config": "x" * 1000, "steps": i} for i in range(200)]
    new = [{"name": "new"}, *runs[:7], runs[7] | {"steps": -1}, *runs[9:]]
    change = changes(runs, new)
    assert change == {"list": [{"add": [{"name": "new"}]}, 7, {"set": {"steps": {"new": -1}}, "without": []}, -1, 191]}


class TestWatchedRuns:
    @pytest.fixture
    def read(self, monkeypatch):
        """The names of the folders that are read."""
        names = []
        original = finding.read_run
        monkeypatch.setattr(finding, "read_run", lambda folder, root: names.append(folder.name) or original(folder, root))
        return names

    def test_only_what_has_changed_is_read_and_sent(self, tmp_path, read):
        for k in range(6):
            run_folder(tmp_path / f"r{k}", seed=k)
        watched = WatchedRuns(tmp_path)
        whole, is_change, version = watched.now()
        assert len(whole["runs"]) == len(read) == 6 and not is_change
        assert watched.now(version) == (None, False, version) and len(read) == 6
        with (tmp_path / "r3/metrics.csv").open("a") as file:
            file.write(f"0,1001,{time.time()},9.125\n")
        change, is_change, newer = watched.now(version)
        assert is_change and newer != version and read[6:] == ["r3"]
        new = watched.now()[0]
        assert changed(whole, change) == new
        assert len(json.dumps(change)) < 2000 < len(json.dumps(whole)) / 15
        run_folder(tmp_path / "r9", seed=-5)
        picture(tmp_path / "r1/samples/step_0002000.png", 2000)
        assert changed(new, watched.now(newer)[0]) == watched.now()[0] and sorted(read[7:]) == ["r1", "r9"]
        assert watched.now("unknown")[1] is False  # a page of another server gets everything

    def test_a_touched_file_with_the_same_content_is_not_news(self, tmp_path, read):
        folder = run_folder(tmp_path / "a")
        watched = WatchedRuns(tmp_path)
        version = watched.now()[2]
        os.utime(folder / "metrics.csv")
        assert watched.now(version)[0] is None and len(read) == 2

    def test_a_run_that_falls_silent_crashes_though_its_files_stay(self, tmp_path, monkeypatch):
        status(run_folder(tmp_path / "a"), state="running", host="elsewhere", pid=1)
        watched = WatchedRuns(tmp_path)
        whole, _, version = watched.now()
        later = time.time() + 1000
        monkeypatch.setattr(time, "time", lambda: later)
        change, _, _ = watched.now(version)
        assert whole["runs"][0]["state"] == "running" and changed(whole, change)["runs"][0]["state"] == "crashed"

    def test_evaluations_and_removed_runs(self, tmp_path):
        run_folder(tmp_path / "a")
        run_folder(tmp_path / "b", seed=1)
        watched = WatchedRuns(tmp_path)
        whole, _, version = watched.now()
        test = tmp_path / "a/test/2026-01-01_00-00-00"
        run_folder(test, pictures=("neighbors",))
        status(test, command="test")
        for file in sorted((tmp_path / "b").rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        Path(tmp_path / "b").rmdir()
        change = watched.now(version)[0]
        assert [each["name"] for each in changed(whole, change)["runs"]] == ["a"]
        assert len(changed(whole, change)["tests"]["rows"]) == 1
        for _ in range(3):  # reading again attaches them once
            (tmp_path / "a/metrics.csv").touch()
            assert len(watched.now()[0]["tests"]["rows"]) == 1
