"""Trials that differ in the seed of training alone are one row: mean, t-interval, spread, and paired differences."""

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats as st
import yaml

from lightning_score.sweep.folds import SEED, folded
from lightning_score.sweep.objectives import Constraint, Objective
from lightning_score.sweep.on_wandb import publish
from lightning_score.sweep.results import Results, Row, difference, read_csv
from lightning_score.sweep.rows import measured_fields

OBJECTIVES = (Objective("val/fid"), Objective("val/bits"))


def trial(number, lr, seed, value, state="complete", **fields):
    return Row(number, state, {"lr": lr, SEED: seed}, value, 0.1, 1.4, 898, 15.0, 60.0, folder=f"trials/{number}", **fields)


def sweep_of(rows, **fields):
    return Results("train", "val/fid", False, ["lr", SEED], rows, **fields)


def made(values, seeds=range(9)):
    """A sweep of two learning rates with these values for the first seeds."""
    pairs = [(lr, seed, value) for lr, of_seeds in values.items() for seed, value in zip(seeds, of_seeds, strict=False)]
    return sweep_of([trial(number, *pair) for number, pair in enumerate(pairs)])


def test_seeds_are_one_row_with_mean_interval_and_spread():
    values = [2.0, 2.6, 1.9, 2.3, 2.2]
    found = folded(made({0.1: values, 0.2: [9.0, 8.0, 7.0, 9.0, 8.5]}))
    row = found.ranked[0]
    assert found.varied == ["lr"] and len(found.rows) == 2 and row.settings == {"lr": 0.1}
    low, high = st.t.interval(0.95, 4, np.mean(values), st.sem(values))
    assert row.value == pytest.approx((low + high) / 2) and 2 * row.error == pytest.approx((high - low) / 2)
    assert row.spread == pytest.approx(statistics.stdev(values)) and row.seeds == (0, 1, 2, 3, 4)
    assert (row.of_seeds, row.planned, row.number, row.message) == (tuple(values), 5, 0, "")
    assert (row.floor, row.nfe, row.seconds, row.n, row.folder) == (1.4, 15.0, 60.0, 898, "trials/0")


def test_a_difference_is_paired_for_the_same_seeds_and_welchs_for_others():
    one, other = [2.0, 2.6, 1.9, 2.3, 2.2], [2.5, 3.0, 2.5, 2.7, 2.8]
    best, row = folded(made({0.1: one, 0.2: other})).ranked
    gap, error = difference(row, best)
    low, high = st.ttest_rel(other, one).confidence_interval()
    assert gap == pytest.approx((low + high) / 2) and 2 * error == pytest.approx((high - low) / 2)
    fewer = folded(made({0.2: other[:3]}, [5, 6, 7])).rows[0]
    low, high = st.ttest_ind(other[:3], one, equal_var=False).confidence_interval()
    gap, error = difference(fewer, best)
    assert gap == pytest.approx((low + high) / 2) and 2 * error == pytest.approx((high - low) / 2)
    single = replace(best, seeds=(0,), of_seeds=(2.0,), spread=math.nan)
    assert math.isnan(difference(single, best)[1]) and math.isnan(difference(best, single)[1])
    still = replace(best, of_seeds=(2.0,) * 5, spread=0.0)
    assert difference(still, replace(still, seeds=(5, 6, 7, 8, 9)))[1] == 0.0


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("seeds", [2, 5])
def test_the_intervals_cover_the_truth(seeds, paired):
    """The mean of one row and the difference of two, whose seeds share a part of their effect, over 2000 sweeps."""
    rng, mean, gaps = np.random.default_rng(seeds), 0, 0
    for _ in range(2000):
        common = rng.normal(0, 1, seeds)
        shared = [common, common if paired else rng.normal(0, 1, seeds)]
        one, other = (truth + part + rng.normal(0, 0.5, seeds) for truth, part in zip((3.0, 3.5), shared, strict=True))
        rows = [trial(k, 0.1, k, value) for k, value in enumerate(one)]
        rows += [trial(k, 0.2, k if paired else seeds + k, value) for k, value in enumerate(other)]
        first, second = folded(sweep_of(rows)).rows
        gap, error = difference(second, first)
        mean += abs(first.value - 3.0) <= 2 * first.error
        gaps += abs(gap - 0.5) <= 2 * error
    assert 0.93 <= mean / 2000 <= 0.97
    assert 0.93 <= gaps / 2000 <= 0.985  # Welch's interval is too wide for two seeds


@pytest.mark.parametrize(("state", "expected"), [
    ("failed", "complete"), ("running", "running"), ("waiting", "waiting"), ("interrupted", "interrupted"),
    ("stopped early", "stopped early"),
])  # fmt: skip
def test_an_incomplete_row_says_how_many_seeds_it_has(state, expected):
    message = "out of memory" if state == "failed" else ""
    ended = [trial(0, 0.1, 0, 2.0), trial(1, 0.1, 1, 2.6)]
    row = folded(sweep_of([*ended, trial(2, 0.1, 2, math.nan, state, message=message), trial(3, 0.2, 0, 5.0)])).rows[0]
    assert (row.state, row.value, row.seeds, row.planned) == (expected, 2.3, (0, 1), 3)
    assert row.message == f"2 of 3 seeds, 1 {state}" + (": out of memory" if message else "")
    assert 2 * row.error == pytest.approx(st.sem([2.0, 2.6]) * st.t.ppf(0.975, 1))


def test_one_complete_seed_has_no_interval_and_none_has_no_value():
    """The error of its samples says nothing about other seeds."""
    rows = [trial(0, 0.1, 0, 2.0), trial(1, 0.1, 1, math.nan, "failed"), trial(2, 0.2, 0, math.nan, "failed")]
    one, none = folded(sweep_of([*rows, trial(3, 0.2, 1, math.nan, "failed")])).rows
    assert one.value == 2.0 and math.isnan(one.error) and math.isnan(one.spread)
    assert none.state == "failed" and math.isnan(none.value) and none.message == "0 of 2 seeds, 2 failed"


def test_rows_are_ranked_before_one_is_complete_and_then_only_complete_ones():
    rows = [trial(0, 0.1, 0, 3.0), trial(1, 0.1, 1, math.nan, "running"), trial(2, 0.2, 0, 2.0)]
    waiting = trial(3, 0.2, 1, math.nan, "waiting")
    assert [row.settings["lr"] for row in folded(sweep_of([*rows, waiting])).ranked] == [0.2, 0.1]
    done = [rows[0], trial(1, 0.1, 1, 3.1), *rows[2:], waiting]
    assert [row.settings["lr"] for row in folded(sweep_of(done)).ranked] == [0.1]


def test_only_the_same_settings_are_folded():
    """Random settings with a random seed each stay; of two trials with one seed the later complete one counts."""
    rows = [trial(number, 0.1 * number, number % 2, 1.0) for number in range(4)]
    assert folded(sweep_of(rows)).rows == rows
    once = Results("x", "val/fid", False, ["lr"], rows)
    assert folded(once) is once
    twice = [trial(0, 0.1, 0, 1.0), trial(1, 0.1, 0, 2.0), trial(2, 0.1, 1, 4.0), trial(3, 0.1, 1, math.nan, "failed")]
    row = folded(sweep_of(twice)).rows[0]
    assert (row.of_seeds, row.planned, row.state, row.message) == ((2.0, 4.0), 2, "complete", "")
    strange = [trial(0, 0.1, None, 1.0), trial(1, 0.1, "x", 2.0), trial(2, 0.1, 0, 3.0), trial(3, 0.1, 1, 4.0)]
    assert sorted(len(row.seeds) for row in folded(sweep_of(strange)).rows) == [0, 0, 2]


def test_every_objective_is_folded_and_constraints_hold_for_the_means():
    bounds = (Constraint("val/bits", 1, 4.0), Constraint("val/size", 1, 10.0))
    rows = []
    for number, (fid, bits, size) in enumerate([(2.0, 3.0, 9.0), (2.4, 4.5, 9.0), (3.0, 4.5, 9.0), (3.2, 4.7, 9.0)]):
        metrics = {"val/fid": fid, "val/bits": bits, "val/bits_error": 0.1, "val/size": size, "val/nfe": 15.0}
        fields = measured_fields(metrics, OBJECTIVES, bounds)
        rows.append(Row(number, "complete", {"lr": number // 2, SEED: number % 2}, **fields))
    assert [row.feasible for row in rows] == [True, False, False, False]
    found = folded(sweep_of(rows, objectives=OBJECTIVES, constraints=bounds))
    one, two = found.rows
    assert one.values == pytest.approx({"val/fid": 2.2, "val/bits": 3.75, "val/size": 9.0})
    assert one.feasible and not two.feasible and found.ranked == [one, two]
    bits = one.of("val/bits")
    assert bits.value == 3.75 and bits.of_seeds == (3.0, 4.5) and bits.spread == pytest.approx(statistics.stdev([3.0, 4.5]))
    gap, error = difference(two.of("val/bits"), bits)
    assert gap == pytest.approx(0.85) and 2 * error == pytest.approx(st.sem([1.5, 0.2]) * st.t.ppf(0.975, 1))


def test_a_value_of_another_objective_may_be_missing_or_differ_alone():
    rows = []
    for number, (fid, bits) in enumerate([(2.0, 3.0), (2.0, 4.0), (3.0, 5.0), (4.0, math.nan)]):
        fields = measured_fields({"val/fid": fid, "val/bits": bits}, OBJECTIVES, ())
        rows.append(Row(number, "complete", {"lr": number // 2, SEED: number % 2}, **fields))
    one, two = folded(sweep_of(rows, objectives=OBJECTIVES)).rows
    assert one.of("val/bits").of_seeds == (3.0, 4.0) and one.spread == 0.0 and not one.message
    assert two.value == 3.5 and math.isnan(two.of("val/bits").value) and math.isnan(two.of("val/bits").error)


def test_wandbs_summary_has_the_means(monkeypatch, tmp_path):
    class Fake(dict):
        """A run that keeps what it is told."""

        def __init__(self, *_, **__):
            super().__init__()
            self.summary, self.log, self.url = {}, self.update, "here"
            runs.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            """Nothing."""

    runs = []
    monkeypatch.setattr("wandb.init", Fake)
    found = folded(made({0.1: [2.0, 3.0, 4.0], 0.2: [0.0, 0.0, 0.0]}))
    publish(found, [], "me/digits/abc", tmp_path)
    (run,) = runs
    assert run.summary == {"best": 0.0, "best error": 0.1, "best trial": "trials/3"}  # where the seed changes nothing
    publish(replace(found, rows=found.rows[:1]), [], "me/digits/abc", tmp_path)
    error = st.sem([2.0, 3.0, 4.0]) * st.t.ppf(0.975, 2) / 2
    expected = {
        "best": 3.0,
        "best error": pytest.approx(error),
        "best spread": 1.0,
        "best seeds": 3,
        "best trial": "trials/0",
    }
    assert runs[1].summary == expected
    table = runs[0]["sweep/trials"]
    assert len(table.data) == 2 and table.columns[:5] == ["trial", "lr", "val/fid", "val/fid +-", "val/fid spread"]
    assert [row[5] for row in table.data] == [None, 3.0] and len({*table.columns}) == len(table.columns)
    partial = folded(sweep_of([trial(0, 0.1, 0, 2.0), trial(1, 0.1, 1, math.nan, "failed"), trial(2, 0.2, 0, 3.0)]))
    publish(partial, [], "me/digits/abc", tmp_path)
    assert [row[5] for row in runs[2]["sweep/trials"].data] == ["1 of 2", "1"]


def test_the_table_of_trials_keeps_every_objective_and_reads_old_tables(tmp_path):
    bounds = (Constraint("val/size", 1, 10.0),)
    metrics = {"val/fid": 2.0, "val/fid_error": 0.2, "val/bits": 3.0, "val/bits_error": 0.1, "val/size": 11.0}
    row = Row(0, "complete", {"lr": 0.1}, **measured_fields(metrics, OBJECTIVES, bounds), folder="x", seconds=1.0)
    row.measures["val/bits"].update(jackknife=(1.0, 2.0), paired="same", floor_kind="perfect")
    found = Results("s", "val/fid", False, ["lr"], [row], objectives=OBJECTIVES, constraints=bounds)
    (tmp_path / "trials.csv").write_text(found.csv())
    listed = [{"name": "val/fid"}, {"name": "val/bits", "goal": "minimize"}]
    file = {"metrics": listed, "metric_constraints": ["val/size <= 10"]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(file))
    again = read_csv(tmp_path)
    assert again.objectives == OBJECTIVES and again.constraints == bounds and not again.rows[0].feasible
    assert again.rows[0].values == row.values
    assert (again.rows[0].floor_kind, again.rows[0].of("val/bits").floor_kind) == ("", "perfect")
    assert again.rows[0].of("val/bits").jackknife == (1.0, 2.0) and again.rows[0].of("val/bits").error == 0.1
    old = "trial,state,lr,val/fid,error,floor,n,nfe,seconds,folder,message,without\n0,complete,0.1,2.0,0.2,,5,7,1,x,,\n"
    (tmp_path / "trials.csv").write_text(old)
    one = read_csv(tmp_path).rows[0]
    assert (one.value, one.error, one.n, one.nfe, one.jackknife) == (2.0, 0.2, 5, 7.0, ())
    assert one.values["val/fid"] == 2.0 and math.isnan(one.values["val/bits"])
