"""Reading run folders in any state, and the content of the report's page."""

import base64
import gzip
import json
import math
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import asdict, replace

import pytest
from run_folders import config, measured, picture, record, run_folder, status

from lightning_score.callbacks.pictures import KIND, save_picture
from lightning_score.cli import run
from lightning_score.metrics import jackknife_error
from lightning_score.report import figures, page, tables
from lightning_score.report.finding import Reader
from lightning_score.report.pictures import _description, _spread, embed_pictures
from lightning_score.report.reading import read_run
from lightning_score.report.server import server
from lightning_score.report.standings import best_first, standings
from lightning_score.report.values import values
from lightning_score.sweep.objectives import Objective
from lightning_score.sweep.results import Results, Row, difference, read_csv

MOST = {name: few for name, (few, _) in figures.MOST.items()}


def contents(file):
    """The data of a page, with the pictures in their places."""

    def part(name):
        return re.search(rf'<script type="text/plain" id="{name}">([^<]*)</script>', file.read_text()).group(1)

    first, more = (json.loads(gzip.decompress(base64.b64decode(part(name)))) for name in ("data", "more"))
    sources = part("sources").split("\n")
    first["left_out"] = 0
    for entry, rest in zip(first["runs"], more.pop("runs"), strict=True):
        entry |= rest
    for entry in [*first["runs"], *(trial for sweep in more["sweeps"] for trial in sweep["trials"] if "pictures" in trial)]:
        for kind, pictures in list(entry["pictures"].items()):
            entry["pictures"][kind] = [shown | {"src": sources[shown["src"]]} for shown in pictures if sources[shown["src"]]]
            first["left_out"] += len(pictures) - len(entry["pictures"][kind])
    return first | more


def reported(root, *options):
    assert run(["report", str(root), *options]) == 0
    return contents(root / "report.html")


def column(table, title):
    """The texts of a column, by run."""
    j = [entry["title"] for entry in table["columns"]].index(title)
    return {row[0][1]: row[j][1] for row in table["rows"]}


class TestStates:
    """The state of a run, from its files."""

    @pytest.mark.parametrize("state", ["finished", "failed", "interrupted"])
    def test_recorded(self, tmp_path, state):
        status(run_folder(tmp_path / "a"), state=state, message="because")
        found = read_run(tmp_path / "a", tmp_path)
        assert (found.state, found.note, found.problems) == (state, "because", [])

    def test_running(self, tmp_path):
        folder = run_folder(tmp_path / "a")
        here = {"state": "running", "host": socket.gethostname()}
        status(folder, **here, pid=os.getpid())
        assert read_run(folder, tmp_path).state == "running"
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        status(folder, **here, pid=ended.pid)
        assert read_run(folder, tmp_path).state == "crashed"
        status(folder, state="running", host="elsewhere", pid=ended.pid)
        assert read_run(folder, tmp_path).state == "running"
        status(folder, state="running", host="elsewhere", updated=time.time() - 1000)
        found = read_run(folder, tmp_path)
        assert found.state == "crashed" and "no update since" in found.note

    def test_empty(self, tmp_path):
        (tmp_path / "a").mkdir()
        config(tmp_path / "a")
        assert read_run(tmp_path / "a", tmp_path).state == "empty"

    def test_older_versions_have_no_status(self, tmp_path):
        (run_folder(tmp_path / "a") / "run.json").unlink()
        assert read_run(tmp_path / "a", tmp_path).state == "finished"  # its 1000 steps are done
        config(tmp_path / "a", trainer={"max_steps": 5000})
        assert read_run(tmp_path / "a", tmp_path).state == "unknown"

    def test_older_versions_have_no_times(self, tmp_path):
        folder = run_folder(tmp_path / "2026-01-02_03-04-05")
        (folder / "run.json").unlink()
        (folder / "metrics.csv").write_text("step,train/loss\n10,3.5\n20,3.0\n")
        found = read_run(folder, tmp_path)
        assert found.curves["train/loss"].values == [3.5, 3.0] and math.isnan(found.curves["train/loss"].times[0])
        assert time.strftime("%H:%M:%S", time.localtime(found.started)) == "03:04:05"
        assert figures.curves(found, MOST)["train/loss"]["hours"] == [None, None]


DAMAGES = {
    "config.yaml": [b"a: [1, 2", b"\xff\xfe\x00", b"just text", b"- a\n- b", b""],
    "run.json": [b"{", b"[]", b"\x00\x01", b'{"state": "running"', b'{"state": 3, "started": "now", "step": null}'],
    "metrics.csv": [b"\x00" * 50, b"step,a\n1", b"step,a\nx,y\n3,4\n", b"\xff\xfe", b"a,b\n1,2\n", b'step,a\n1,"2'],
    "evaluations.jsonl": [b"{}\n", b"nonsense\n", b"[1]\n", b'{"metric": 3}\n', b"\xff\xff\n", b"null\n"],
    "langevin.jsonl": [
        b"{}\n",
        b"nonsense\n",
        b'{"sigma": [1], "step_size": [], "snr": [], "variance_ratio": []}\n',
        b"3\n",
    ],
    "samples/step_0001000.png": [b"", b"\x89PNG\r\n\x1a\n", b"not a picture"],
}


HARMLESS = [("config.yaml", b"just text"), ("config.yaml", b"- a\n- b"), ("config.yaml", b""), ("run.json", b"[]"),
            ("run.json", DAMAGES["run.json"][-1]), ("metrics.csv", b"step,a\n1"),
            ("metrics.csv", b'step,a\n1,"2')]  # fmt: skip
"""Damages without a problem in the report: the rest can be read, or there is nothing."""


@pytest.mark.parametrize(("name", "damage"), [(name, each) for name, all_ in DAMAGES.items() for each in all_], ids=repr)
def test_a_damaged_file_is_named_and_the_page_still_opens(tmp_path, name, damage):
    run_folder(tmp_path / "sound", seed=1)
    folder = run_folder(tmp_path / "damaged")
    (folder / name).write_bytes(damage)
    data = reported(tmp_path)
    by_name = {each["name"]: each for each in data["runs"]}
    assert by_name["sound"]["problems"] == []
    assert set(by_name) == {"sound", "damaged"}
    if (name, damage) not in HARMLESS:
        assert any(name.rpartition("/")[2].partition(".")[0] in problem for problem in by_name["damaged"]["problems"])


@pytest.mark.parametrize("changed", [{"shape": None}, {"without": [1.0, None]}, {"data_hash": None}, {"seed": []}], ids=str)
def test_a_record_of_other_types_is_left_out(tmp_path, changed):
    with (run_folder(tmp_path / "a") / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps(asdict(record(metric="kid")) | changed) + "\n")
    assert len(reported(tmp_path)["measures"]) == 1


def test_infinite_steps_are_no_steps(tmp_path):
    folder = run_folder(tmp_path / "a")
    status(folder, step=math.nan)
    line = {name: [1.0] for name in ("sigma", "step_size", "snr", "variance_ratio")} | {"step": math.inf}
    (folder / "langevin.jsonl").write_text(json.dumps(line))
    (found,) = reported(tmp_path)["runs"]
    assert found["values"]["steps"] == 1000 and found["problems"] == ["langevin.jsonl, line 1: cannot be read; left out"]


def test_values_that_json_does_not_know(tmp_path):
    folder = run_folder(tmp_path / "a", pictures=())
    (folder / "config.yaml").write_text("a: !!binary aGVsbG8=\nb: 2024-01-31\nc: .inf\nd: !!set {x}\n")
    (folder / "run.json").write_text(json.dumps({"started": 10**400, "step": 10**400, "state": "finished"}))
    data, _ = page.page_data(tmp_path)
    json.dumps(data, allow_nan=False)
    assert data["runs"][0]["settings"] == {"a": "b'hello'", "b": "2024-01-31", "c": None, "d": "{'x'}"}


def test_files_that_end_anywhere(tmp_path):
    """As after a full disk or a power cut: every file of a run, truncated at many places."""
    folder = run_folder(tmp_path / "a", pictures=("samples",), validations=2)
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        whole = file.read_bytes()
        for length in range(0, len(whole), max(len(whole) // 12, 1)):
            file.write_bytes(whole[:length])
            data, _ = page.page_data(tmp_path)
            json.dumps(data, allow_nan=False)
        file.write_bytes(whole)


class TestRuns:
    def test_the_newest_first_and_links_once(self, tmp_path):
        for k in range(3):
            run_folder(tmp_path / f"ncsn/run{k}", seed=k)
        (tmp_path / "ncsn/latest").symlink_to("run0")
        runs = Reader(tmp_path).look().runs
        assert [each.name for each in runs] == ["ncsn/run0", "ncsn/run1", "ncsn/run2"]
        assert [each.order for each in runs] == [2, 1, 0]

    def test_evaluations_belong_to_the_run_of_their_checkpoint(self, tmp_path):
        folder = run_folder(tmp_path / "ncsn/a")
        beside, elsewhere = folder / "test/2026-01-01_00-00-00", tmp_path / "elsewhere"
        for place, value in ((beside, 5.0), (elsewhere, 6.0)):
            place.mkdir(parents=True)
            config(place, ckpt_path=str(folder / "last.ckpt"))
            status(place, command="test")
            (place / "evaluations.jsonl").write_text(json.dumps(asdict(record(value=value))) + "\n")
            for kind in ("samples", "neighbors"):
                picture(place / kind / "step_0001000.png", 1000)
        runs = Reader(tmp_path).look().runs
        assert [each.name for each in runs] == ["ncsn/a"]
        counts = {kind: len(pictures) for kind, pictures in runs[0].pictures.items()}
        assert counts == {"samples": 4, "progress": 4, "samples of test": 2, "neighbors": 2}
        assert sorted(each.value for each in runs[0].tests) == [5.0, 6.0]
        assert column(tables.tests_table(runs), "fid_digits_898")["ncsn/a"] in ("5 ± 0.6", "6 ± 0.6")

    def test_a_checkpoint_that_was_only_evaluated_is_shown(self, tmp_path):
        place = tmp_path / "converted/test/2026-01-01_00-00-00"
        place.mkdir(parents=True)
        (place / "evaluations.jsonl").write_text(json.dumps(asdict(record(metric="bits_per_dim", value=3.5))) + "\n")
        runs = Reader(tmp_path).look().runs
        assert [(each.name, each.state) for each in runs] == [("converted", "measured")]
        (measure,) = standings(runs)
        assert measure["label"] == "bits_per_dim, test" and measure["entries"][0]["value"] == 3.5

    def test_the_table(self, tmp_path):
        run_folder(tmp_path / "a", lr=1e-3, best=2.0)
        run_folder(tmp_path / "b", lr=2e-3, best=1.5, seed=5)
        table = tables.runs_table(Reader(tmp_path).look().runs)
        assert column(table, "model.optimizer.lr") == {"a": "0.001", "b": "0.002"}
        assert column(table, "steps") == {"a": "1,000", "b": "1,000"}
        assert column(table, "duration") == {"a": "60 min", "b": "60 min"} and table["rows"][0][3][0] == 1
        assert not {"seed_everything", "model.sampler.steps", "ckpt_path"} & {each["title"] for each in table["columns"]}

    def test_a_setting_may_be_infinite(self, tmp_path):
        for k, value in enumerate((math.inf, 2.0)):
            config(run_folder(tmp_path / f"r{k}", seed=k), trainer={"gradient_clip_val": value})
        assert column(reported(tmp_path)["table"], "trainer.gradient_clip_val") == {"r0": "inf", "r1": "2"}

    @pytest.mark.parametrize("old", [True, False])
    def test_rows_of_older_versions_are_at_the_step_of_their_pictures(self, tmp_path, old):
        """These counted from 0, except for a validation after the last step."""
        folder = run_folder(tmp_path / "a")
        (folder / "metrics.csv").write_text("step,train/loss,val/loss\n249,3,\n249,,4\n499,3,\n750,,4\n1000,,4\n")
        if old:
            (folder / "run.json").unlink()
        (run,) = Reader(tmp_path).look().runs
        assert run.curves["val/loss"].steps == ([250, 750, 1000] if old else [249, 750, 1000])
        assert run.curves["train/loss"].steps == ([250, 500] if old else [249, 499])
        assert [picture.step for picture in run.pictures["samples"]] == [250, 500, 750, 1000]

    def test_floors_of_older_versions_differ_from_those_of_a_perfect_model(self, tmp_path):
        """Old lines have no kind of floor."""
        folder = run_folder(tmp_path / "a")
        lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
        old = [{name: value for name, value in line.items() if name != "floor_kind"} for line in lines[:2]]
        new = [line | {"floor": 1.29, "floor_kind": "perfect", "value": 1.0} for line in lines[2:]]
        (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old + new))
        data = reported(tmp_path)
        floors = {floor["name"]: floor["value"] for floor in data["measures"][0]["floors"]}
        assert floors == {"subset of the data (older version)": 1.72, "perfect model": 1.29}
        (entry,) = standings(Reader(tmp_path).look().runs)[0]["entries"]
        assert (entry["value"], entry["floor"], entry["floor_name"]) == (1, 1.29, "perfect model")

    def test_the_best_is_of_averaged_weights_and_denoised_samples(self, tmp_path):
        folder = run_folder(tmp_path / "a", best=2.0)
        with (folder / "evaluations.jsonl").open("a") as file:
            for changed in ({"weights": "raw"}, {"denoised": False}):
                file.write(json.dumps(asdict(record(value=0.1, step=1000, **changed))) + "\n")
        runs = Reader(tmp_path).look().runs
        assert standings(runs)[0]["entries"][0]["value"] == pytest.approx(2 * (1 + 3 * math.exp(-3)), rel=1e-5)
        (lines,) = figures.data_of(runs)[0]["measures"].values()
        assert [line["kind"] for line in lines] == ["", "raw weights", "not denoised"]


class TestTests:
    def test_a_row_is_a_test_and_a_column_is_a_measure(self, tmp_path):
        """Two seeds are one value; other weights are another row; what was not measured stays empty."""
        seeds = [record(value=value, seed=seed, seconds=6.0) for seed, value in enumerate((2.0, 3.0))]
        metrics = [record(metric=f"{kind}_digits_898", value=0.5, error=None) for kind in ("recall", "precision")]
        measured(run_folder(tmp_path / "a"), *seeds, *metrics, record(value=9.0, weights="raw"))
        measured(tmp_path / "a", record(metric="fid_digits_200", n=200, value=7.0))
        table = tables.tests_table(Reader(tmp_path).look().runs)
        titles = [column["title"] for column in table["columns"]]
        rows = [{title: text for title, (_, text) in zip(titles, row, strict=True)} for row in table["rows"]]
        assert len(rows) == 3
        ema, raw, small = sorted(rows, key=lambda row: (row["n"] == "200", row["weights"]))
        assert ema["fid_digits_898"] == "2.5 ± 0.42"  # 2 x 0.3 / 2^(1/2)
        assert ema["fid_digits_898 ± 2 s.e."] == "0.424" and ema["seeds"] == "0, 1" and ema["sampling s"] == "12"
        assert ema["recall_digits_898"] == ema["precision_digits_898"] == "0.5" and ema["fid_digits_200"] == ""
        assert raw["fid_digits_898"] == "9 ± 0.6" and raw["weights"] == "raw" and raw["recall_digits_898"] == ""
        assert small["fid_digits_200"] == "7 ± 0.6" and small["fid_digits_898"] == ""

    def test_many_measures_are_hidden_at_first(self, tmp_path):
        metrics = [record(metric=f"fid_digits_{n}", n=n) for n in range(100, 112)]
        measured(run_folder(tmp_path / "a"), *metrics)
        columns = tables.tests_table(Reader(tmp_path).look().runs)["columns"]
        assert sum(column["title"].startswith("fid") and not column["hidden"] for column in columns) == tables.MEASURES


class TestStandings:
    """What the first screen and the table of runs rank by."""

    def test_the_main_measure_is_shared_by_most_runs_then_of_most_samples_then_of_tests(self, tmp_path):
        for k in range(3):
            run_folder(tmp_path / f"r{k}", seed=k)
        measured(tmp_path / "r0", record(metric="fid_digits_5k", n=5000))
        found = standings(Reader(tmp_path).look().runs)
        assert [each["label"] for each in found] == ["fid_digits_898, validation", "fid_digits_5k, test"]
        for k in range(3):
            measured(
                tmp_path / f"r{k}", record(), record(metric="fid_digits_200", n=200), record(metric="kid_digits_5k", n=5000)
            )
        found = standings(Reader(tmp_path).look().runs)
        labels = [each["label"] for each in found]
        assert labels[:2] == ["fid_digits_898, test", "fid_digits_898, validation"]
        assert labels[2:] == ["fid_digits_200, test", "kid_digits_5k, test", "fid_digits_5k, test"]

    def test_the_best_come_first_then_the_others_in_their_order(self, tmp_path):
        for k, value in enumerate((3.0, 1.0, 2.0)):
            run_folder(tmp_path / f"r{k}", seed=k, best=value)
        (run_folder(tmp_path / "r3", seed=3) / "evaluations.jsonl").unlink()
        found = standings(Reader(tmp_path).look().runs)
        assert best_first(found, 4) == [1, 2, 0, 3] and best_first(found, 4, most=1) == [1, 0, 2, 3]
        assert best_first([], 2) == [0, 1]

    def test_larger_values_of_recall_are_better(self, tmp_path):
        folder = measured(run_folder(tmp_path / "a"), record(metric="recall_digits_898", value=0.4))
        measured(folder, record(metric="recall_digits_898", value=0.6, nfe=99.0))
        found = standings(Reader(tmp_path).look().runs)[-1]
        assert found["larger"] and found["entries"][0]["value"] == 0.6

    def test_paired_samples_have_the_error_of_their_difference(self, tmp_path):
        """The norm of the difference of two vectors of parts is the sweep's standard error."""
        draws = random.Random(0)
        common = [draws.gauss(0, 1) for _ in range(10)]
        for name, value in (("a", 2.0), ("b", 3.0)):
            parts = [value + each + draws.gauss(0, 0.1) for each in common]
            measured(run_folder(tmp_path / name), record(value=value, jackknife=parts, error=jackknife_error(parts)))
        runs = Reader(tmp_path).look().runs
        one, other = standings(runs)[0]["entries"]
        tests = [run.tests[0] for run in runs]
        rows = [Row(0, "complete", {}, test.value, jackknife=tuple(test.jackknife), paired="p") for test in tests]
        assert one["paired"] == other["paired"]
        assert math.dist(one["parts"], other["parts"]) == pytest.approx(difference(rows[0], rows[1])[1], rel=1e-3)
        assert math.hypot(*one["parts"]) == pytest.approx(one["error"], rel=1e-3)
        assert math.dist(one["parts"], other["parts"]) < 0.3 * one["error"]


class TestValues:
    """The numbers of a run by plain names."""

    def test_the_largest_test_names_the_kind(self, tmp_path):
        folder = run_folder(tmp_path / "a", best=2.0)
        tests = [record(value=5.0, n=300, metric="fid_digits_300"),
                 record(value=1.5, n=500, metric="fid_digits_500", nfe=99.0),
                 record(value=0.7, metric="recall_digits_898"), record(value=0.8, metric="recall_digits_898"),
                 record(value=0.75, metric="recall_digits_898"), record(value=9.0, metric="is_digits_898"),
                 record(value=math.nan, metric="kid_digits_898")]  # fmt: skip
        test = folder / "test/2026-01-01_00-00-00"
        test.mkdir(parents=True)
        config(test)
        status(test, command="test")
        (test / "evaluations.jsonl").write_text("".join(json.dumps(asdict(each)) + "\n" for each in tests))
        (found,) = reported(tmp_path)["runs"]
        numbers = found["values"]
        assert numbers["fid"] == 1.5 and numbers["fid_digits_300"] == 5 and numbers["nfe"] == 99
        assert numbers["fid_digits_898"] == pytest.approx(2 * (1 + 3 * math.exp(-3)), rel=1e-5)
        assert (numbers["recall"], numbers["recall_last"]) == (0.8, 0.75)
        assert numbers["inception_score"] == 9 and "kid" not in numbers and "is" not in numbers
        assert all(name.isidentifier() and math.isfinite(number) for name, number in numbers.items())

    def test_without_tests_they_are_those_of_training(self, tmp_path):
        (found,) = Reader(run_folder(tmp_path / "a", best=2.0).parent).look().runs
        numbers = values(found)
        assert numbers["fid"] == numbers["fid_last"] == numbers["fid_digits_898"] and numbers["nfe"] == 201
        assert (numbers["steps"], numbers["seconds"], numbers["hours"]) == (1000, 3600, 1)
        losses = found.curves["val/loss"].values
        assert numbers["loss"] == pytest.approx(min(losses), rel=1e-5)
        assert numbers["loss_last"] == pytest.approx(losses[-1], rel=1e-5) and numbers["train_loss"] > 8
        assert not any("excess" in name for name in numbers)  # a loss of one noise level

    def test_settings_are_plain(self, tmp_path):
        config(run_folder(tmp_path / "a"), lr=3e-3, trainer={"gradient_clip_val": math.inf})
        settings = reported(tmp_path)["runs"][0]["settings"]
        assert settings["model.optimizer.lr"] == 3e-3 and settings["model.sampler"] == "AnnealedLangevin"
        assert settings["trainer.gradient_clip_val"] is None


class TestProvenance:
    """Measurements with another provenance have another axis."""

    @pytest.mark.parametrize(
        "changed",
        [{"n": 500}, {"features_hash": "other"}, {"data_hash": "other"}, {"resize": "bilinear"}, {"split": "train"}],
    )
    def test_decides_what_shares_an_axis(self, tmp_path, changed):
        run_folder(tmp_path / "a")
        other = run_folder(tmp_path / "b", seed=1)
        (other / "evaluations.jsonl").write_text(json.dumps(asdict(record(**changed))) + "\n")
        data = reported(tmp_path)
        labels = [each["label"] for each in data["measures"]]
        assert [list(each["measures"]) for each in data["runs"]] in ([[labels[0]], [labels[1]]], [[labels[1]], [labels[0]]])
        (name,) = changed
        assert len(set(labels)) == 2 and all(name.partition("_")[0] in label for label in labels)

    def test_equal_measures_share_one(self, tmp_path):
        for k in range(3):
            run_folder(tmp_path / f"r{k}", seed=k)
        data = reported(tmp_path)
        assert [each["label"] for each in data["measures"]] == ["fid_digits_898"]
        assert all(list(each["measures"]) == ["fid_digits_898"] for each in data["runs"])

    def test_first_comes_that_of_the_most_runs_and_the_most_samples(self, tmp_path):
        for k in range(3):
            folder = run_folder(tmp_path / f"r{k}", seed=k)
            made = [record(metric="fid_digits_40", n=40, step=step) for step in range(9)] + [record()]
            made += [record(metric="bits_per_dim", n=5000)] + [record(metric="fid_digits_5k", n=5000)] * (k == 0)
            (folder / "evaluations.jsonl").write_text("".join(json.dumps(asdict(each)) + "\n" for each in made))
        labels = [each["label"] for each in reported(tmp_path)["measures"]]
        assert labels == ["fid_digits_898", "fid_digits_40", "fid_digits_5k", "bits_per_dim"]

    def test_hours_and_steps_and_two_standard_errors(self, tmp_path):
        run_folder(tmp_path / "a")
        (line,) = reported(tmp_path)["runs"][0]["measures"]["fid_digits_898"]
        assert line["steps"] == [250, 500, 750, 1000]
        assert line["hours"] == pytest.approx([3 * step / 3600 for step in line["steps"]], abs=1e-3)
        assert line["errors"] == [0.6] * 4 and line["n"] == [898] * 4 and line["nfe"] == [201.0] * 4


def _sweep(folder, rows=12, floor_kind=""):
    settings = [{"model.sampler.step_size": 1e-5 * (1 + k % 3), "model.sampler.steps": 5 * (1 + k // 3),
                 "model.sampler.denoise": "Tweedie"} for k in range(rows)]  # fmt: skip
    trials = [
        Row(
            k,
            "complete",
            settings[k],
            2.0 + k,
            0.3,
            1.7,
            898,
            50.0 * (1 + k // 3),
            10.0,
            tuple(2.0 + k + i for i in range(10)),
            "p",
            floor_kind=floor_kind,
        )
        for k in range(rows)
    ]
    trials += [Row(rows, "failed", settings[0], message='it "broke", at last'), Row(rows + 1, "waiting", settings[1])]
    found = Results(folder.name, "test/fid_digits_898", False, ["model.sampler.step_size", "model.sampler.steps"], trials)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trials.csv").write_text(found.csv())
    return found


class TestSweeps:
    def test_a_table_of_trials_is_read_as_it_was_written(self, tmp_path):
        written = _sweep(tmp_path / "eps")
        found = read_csv(tmp_path / "eps")
        assert found.varied == written.varied and found.metric == written.metric and not found.maximize
        for one, other in zip(found.rows, written.rows, strict=True):
            assert one.settings == other.settings
            assert repr(replace(one, settings={}, measures={})) == repr(replace(other, settings={}, measures={}))
            assert one.measures.keys() == other.measures.keys()
        assert [row.number for row in found.front()] == [0]

    def test_the_direction_is_that_of_the_file(self, tmp_path):
        _sweep(tmp_path / "eps")
        (tmp_path / "eps/sweep.yaml").write_text("metric: {name: test/fid_digits_898, goal: maximize}\n")
        assert read_csv(tmp_path / "eps").ranked[0].number == 11

    def test_tables_of_older_versions(self, tmp_path):
        _sweep(tmp_path / "eps")
        lines = (tmp_path / "eps/trials.csv").read_text().splitlines()[:4]
        old = [re.sub(r',(without,paired|"\[.*\]",p)$', "", line) for line in lines]
        (tmp_path / "eps/trials.csv").write_text("\n".join(old))
        assert len(read_csv(tmp_path / "eps").rows) == 3

    @pytest.mark.parametrize("damage", ["", "a,b\n1,2\n", "trial,state\n", "\0\0\0"])
    def test_others_are_refused(self, tmp_path, damage):
        (tmp_path / "trials.csv").write_text(damage)
        with pytest.raises(ValueError, match="not a table of trials"):
            read_csv(tmp_path)

    @pytest.mark.parametrize("kind", ["perfect", "subset", "", None])
    def test_floors_have_their_names(self, tmp_path, kind):
        """Tables of older versions have no kind of floor."""
        found = _sweep(tmp_path / "runs/sweeps/eps", floor_kind=kind or "")
        if kind is None:
            text = "\n".join(line.rsplit(",", 2)[0] for line in found.csv().splitlines())
            (tmp_path / "runs/sweeps/eps/trials.csv").write_text(text)
        (each,) = reported(tmp_path / "runs")["sweeps"]
        names = {"perfect": "perfect model", "": "floor"}
        name = names.get(kind, "subset of the data (older version)")
        assert each["objectives"] == [{"name": "test/fid_digits_898", "maximize": False, "floor": [1.7, name]}]

    def test_its_data(self, tmp_path):
        _sweep(tmp_path / "runs/sweeps/eps")
        (each,) = reported(tmp_path / "runs")["sweeps"]
        assert (each["name"], each["state"], each["ended"], each["total"]) == ("sweeps/eps", "interrupted", 13, 14)
        assert (
            "13 of 14 trials have ended. Best: trial 0, test/fid_digits_898 2 ± 0.6 with step_size=1e-05" in each["summary"]
        )
        assert [parameter["title"] for parameter in each["parameters"]] == ["step_size", "steps"]
        assert {parameter["texts"] is None for parameter in each["parameters"]} == {True}
        shares = [share for parameter in each["parameters"] for share in parameter["importances"]]
        assert sum(shares) == pytest.approx(1, abs=1e-3) and shares[1] > shares[0]  # steps add 3 each, step sizes 1
        first, second, *_, failed, waiting = each["trials"]
        assert (
            first["number"] == 0 and first["settings"] == [1e-5, 5] and first["values"] == [2] and first["errors"] == [0.3]
        )
        assert (second["gap"], second["gapError"]) == (1, 0)  # a difference of 1 at every tenth: paired, without an error
        assert failed["state"] == "failed" and failed["message"] == 'it "broke", at last' and failed["values"] == [None]
        assert waiting["state"] == "waiting" and "message" not in waiting

    def test_a_trial_has_its_command_log_and_pictures(self, tmp_path):
        folder = tmp_path / "runs/sweeps/eps"
        found = _sweep(folder)
        table = (folder / "trials.csv").read_text()
        (folder / "sweep.yaml").write_text(
            "method: grid\nmetric: {name: test/fid_digits_898}\nparameters: {model.sampler.steps: {values: [5, 10]}}\n"
            "command: ['${env}', '${interpreter}', -m, lightning_score, test, --ckpt_path=a.ckpt, '${args}']\n"
        )
        for row in found.rows:
            table = table.replace(f"{row.nfe},10.0,,", f"{row.nfe},10.0,elsewhere/trials/{row.number:04d},", 1)
        (folder / "trials.csv").write_text(table)
        picture(folder / "trials/0001/samples/step_0000010.png", 10)
        (folder / "trials/0001.log").write_text("x" * 5000 + "\nthe end\n")
        (each,) = reported(tmp_path / "runs")["sweeps"]
        first, second = each["trials"][:2]
        assert "python -m lightning_score test" in second["again"] and "--model.sampler.steps=5" in second["again"]
        assert second["log"] == "x" * 1000 + "\nthe end" and second["run"] == "sweeps/eps/trials/0001"
        assert second["pictures"]["samples"][0]["src"].startswith("data:image/") and "pictures" not in first

    def test_logs_and_pictures_of_elsewhere_are_left_out(self, tmp_path):
        (tmp_path / "secret.log").write_text("secret")
        picture(tmp_path / "0001/samples/step_0000010.png", 10)
        found = _sweep(tmp_path / "runs/eps")
        text = found.csv().replace("50.0,10.0,,", f"50.0,10.0,{tmp_path}/0001,")
        (tmp_path / "runs/eps/trials.csv").write_text(text.replace("50.0,10.0,,", "50.0,10.0,..,"))
        (tmp_path / "runs/eps/trials").mkdir()
        (tmp_path / "runs/eps/trials/0001").symlink_to(tmp_path / "0001")
        (tmp_path / "runs/eps/trials/0001.log").symlink_to(tmp_path / "secret.log")
        (each,) = reported(tmp_path / "runs")["sweeps"]
        assert each["problem"] == "" and not any(trial.get("log") or trial.get("pictures") for trial in each["trials"])

    def test_training_seeds_are_one_trial(self, tmp_path):
        rows = [Row(k, "complete", {"model.optimizer.lr": lr, "seed_everything": seed}, lr + seed, started=float(k))
                for k, (lr, seed) in enumerate((lr, seed) for lr in (1.0, 2.0) for seed in (0, 1, 2))]  # fmt: skip
        rows[5] = replace(rows[5], state="failed", value=math.nan, message="no")
        (tmp_path / "lr").mkdir()
        text = Results("lr", "val/loss", False, ["model.optimizer.lr", "seed_everything"], rows).csv()
        (tmp_path / "lr/trials.csv").write_text(text)
        (each,) = reported(tmp_path)["sweeps"]
        one, two = each["trials"]
        assert [len(trial["members"]) for trial in (one, two)] == [3, 3] and len(each["parameters"]) == 1
        assert one["values"] == [2] and one["spread"] == 1 and one["seeds"] == [0, 1, 2]
        # half of the 95 % t-interval: t(0.975, 2) / sqrt(3)
        assert 2 * one["errors"][0] == pytest.approx(4.30265 / 3**0.5, rel=1e-4)
        assert two["values"] == [2.5] and [member.get("message") for member in two["members"]] == [None, None, "no"]
        assert [member["started"] for member in two["members"]] == [3, 4, 5]

    def test_the_hypervolume_of_two_objectives(self, tmp_path):
        """Boxes between (4, -4), (1, -3), (2, -2) and the worst values, (4, -4); the second objective is maximized."""
        rows = [
            Row(k, "complete", {"a": k}, x, values={"x": x, "y": y}) for k, (x, y) in enumerate([(4, -4), (1, -3), (2, -2)])
        ]
        objectives = (Objective("x"), Objective("y", True))
        (tmp_path / "two").mkdir()
        (tmp_path / "two/trials.csv").write_text(Results("two", "x", False, ["a"], rows, objectives=objectives).csv())
        (tmp_path / "two/sweep.yaml").write_text("metrics: [{name: x}, {name: y, goal: maximize}]\n")
        (each,) = reported(tmp_path)["sweeps"]
        assert each["hypervolume"] == {"numbers": [0, 1, 2], "values": [0, 3, 5], "reference": [4, -4]}
        assert [objective["maximize"] for objective in each["objectives"]] == [False, True]

    @pytest.mark.parametrize("values", [[], [math.nan] * 3, [1.0], [math.inf, 1.0, 1.0, 1.0], [1.0] * 6])
    def test_few_or_no_values(self, tmp_path, values):
        rows = [
            Row(k, "complete" if value == value else "failed", {"a": k, "b": "x"}, value) for k, value in enumerate(values)
        ]
        (tmp_path / "few").mkdir()
        (tmp_path / "few/trials.csv").write_text(Results("few", "m", False, ["a"], rows).csv())
        (each,) = reported(tmp_path)["sweeps"]
        assert len(each["trials"]) == len(values) and (each["problem"] == "" or not values)

    def test_only_trials_that_train_are_runs(self, tmp_path):
        _sweep(tmp_path / "sweeps/eps")
        sampled = tmp_path / "sweeps/eps/trials/0000"
        sampled.mkdir(parents=True)
        (sampled / "evaluations.jsonl").write_text(json.dumps(asdict(record())) + "\n")
        run_folder(tmp_path / "sweeps/train/trials/0000")
        found = Reader(tmp_path).look()
        assert [each.name for each in found.runs] == ["sweeps/train/trials/0000"]
        assert [each.name for each in found.sweeps] == ["eps"]

    def test_a_sweep_without_trials(self, tmp_path):
        (tmp_path / "eps").mkdir()
        (tmp_path / "eps/study.db").write_bytes(b"")
        assert "no table of trials" in reported(tmp_path)["sweeps"][0]["problem"]


class TestPage:
    def test_names_and_configs_are_text(self, tmp_path):
        bad = '<img src=x onerror="alert(1)">&lt;b&gt;'
        run_folder(tmp_path / bad)
        html = (reported(tmp_path), (tmp_path / "report.html").read_text())[1]
        assert "onerror" not in html
        title = '</title><script>alert("title")</script>'
        assert run(["report", str(tmp_path), "--title", title]) == 0
        assert title not in (tmp_path / "report.html").read_text()

    def test_it_stays_below_its_size_and_counts_what_was_left_out(self, tmp_path):
        for k in range(8):
            run_folder(tmp_path / f"r{k}", seed=k)
        everything = reported(tmp_path)
        assert everything["left_out"] == 0
        assert all(len(each["pictures"]["samples"]) == 4 for each in everything["runs"])
        size = (tmp_path / "report.html").stat().st_size
        small = reported(tmp_path, "--size", str((size - 150_000) / 1e6))
        assert (tmp_path / "report.html").stat().st_size <= size - 150_000
        assert small["left_out"] > 0
        assert all(each["pictures"]["samples"][-1]["step"] == 1000 for each in small["runs"])  # the last come first

    def test_wide_drawings_get_wide_places(self, tmp_path):
        from PIL import Image

        for width, kind in ((900, "drawing"), (500, "drawing"), (900, "pixels")):
            drawn = Image.new("RGB", (width, 9))
            drawn.info[KIND] = kind
            save_picture(drawn, tmp_path / "a.png", "curves")
            found = _description(tmp_path / "a.png", width + len(kind))
            assert found == {"caption": "curves", "drawing": kind == "drawing", "wide": (width, kind) == (900, "drawing")}

    def test_the_pictures_keep_their_pixels(self, tmp_path):
        from io import BytesIO

        from PIL import Image, ImageChops

        folder = run_folder(tmp_path / "a")
        shown = reported(tmp_path)["runs"][0]["pictures"]["samples"][-1]
        assert shown["caption"] == "step 1000, NFE 201" and not shown["drawing"]
        packed = Image.open(BytesIO(base64.b64decode(shown["src"].partition(",")[2])))
        original = Image.open(folder / "samples/step_0001000.png")
        assert ImageChops.difference(packed.convert("L"), original).getbbox() is None

    def test_the_last_the_first_then_the_middle(self):
        assert _spread([0, 1, 2, 3, 4]) == [4, 0, 2, 1, 3]
        assert _spread([0]) == [0] and sorted(_spread(list(range(37)))) == list(range(37))

    def test_nothing_to_show(self, tmp_path):
        data = reported(tmp_path)
        assert data["runs"] == [] and data["measures"] == []

    def test_embedding_reports_a_damaged_picture_once(self, tmp_path):
        folder = run_folder(tmp_path / "a", pictures=("samples",))
        (folder / "samples/step_0000500.png").write_bytes(b"damaged")
        runs = Reader(tmp_path).look().runs
        assert len(embed_pictures(runs, 10**6)) == 3
        assert [problem.partition(":")[0] for problem in runs[0].problems] == ["samples/step_0000500.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        ([".", "--size", "0"], "--size 0.0: must be above 0"),
        ([".", "--serve", "--port", "99999"], "--port 99999: must be between 0 and 65535"),
        ([".", "--output", "file/folder.html"], "cannot be written"),
        ([".", "--wandb", "somebody"], "--wandb somebody: must be ENTITY/PROJECT"),
        ([".", "--json", "--csv"], "--json --csv: one of them at a time"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert run(["report", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_without_a_key_wandb_is_refused(capsys):
    assert run(["report", "--wandb", "somebody/scores"]) == 2
    assert "needs an account" in capsys.readouterr().err


class TestServer:
    @pytest.fixture
    def served(self, tmp_path):
        run_folder(tmp_path / "runs/a")
        with server(tmp_path / "runs", "runs", 0) as serving:
            threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
            yield tmp_path / "runs", f"http://127.0.0.1:{serving.server_address[1]}", serving
            serving.shutdown()

    def get(self, url, **headers):
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers))

    def test_the_page_and_what_it_asks_for(self, served):
        root, url, _ = served
        assert b"/plotly.js" in self.get(url).read()
        for name in ("plotly.js", "datatables.js", "datatables.css"):
            assert len(self.get(f"{url}/{name}").read()) > 50_000
        data = json.loads(self.get(f"{url}/data.json").read())
        source = data["runs"][0]["pictures"]["samples"][0]["src"]
        assert self.get(url + source).read() == (root / "a/samples/step_0000250.png").read_bytes()

    def test_it_is_live_and_answers_304_without_changes(self, served):
        root, url, _ = served
        answer = self.get(f"{url}/data.json")
        version = answer.headers["ETag"]
        with pytest.raises(urllib.error.HTTPError) as unchanged:
            self.get(f"{url}/data.json", **{"If-None-Match": version})
        assert unchanged.value.code == 304
        run_folder(root / "b", seed=1)
        picture(root / "a/samples/step_0002000.png", 2000)
        answer = self.get(f"{url}/data.json", **{"If-None-Match": version})
        data = json.loads(answer.read())
        assert [each["name"] for each in data["runs"]] == ["a", "b"]
        assert data["runs"][0]["pictures"]["samples"][-1]["step"] == 2000

    def test_it_listens_on_loopback_only_and_to_its_own_name(self, served):
        _, url, serving = served
        assert serving.server_address[0] == "127.0.0.1"
        with pytest.raises(urllib.error.HTTPError) as refused:
            self.get(url, Host="evil.example")
        assert refused.value.code == 403

    @pytest.mark.parametrize(
        "path", ["../run.json", "a/run.json", "picture/../a/run.json", "picture/%2e%2e", "etc/passwd", "picture/"]
    )
    def test_it_gives_nothing_else_away(self, served, path):
        _, url, _ = served
        with pytest.raises(urllib.error.HTTPError) as refused:
            self.get(f"{url}/{path}")
        assert refused.value.code == 404

    def test_a_taken_port_is_a_mistake(self, served, capsys, tmp_path):
        port = served[2].server_address[1]
        assert run(["report", str(tmp_path), "--serve", "--port", str(port)]) == 2
        assert f"--port {port}: Address already in use; give another one" in capsys.readouterr().err
