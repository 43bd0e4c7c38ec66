"""Results of several objectives: rows from trials, fronts with their errors, tables, notes, charts and importances."""

import math
from itertools import combinations, pairwise

import numpy as np
import optuna
import pytest

from lightning_score.sweep.charts import PARETO, charts
from lightning_score.sweep.drawing import draw
from lightning_score.sweep.fronts import alike, front_of
from lightning_score.sweep.history import hypervolume_chart
from lightning_score.sweep.importance import importances
from lightning_score.sweep.notes import markdown, notes
from lightning_score.sweep.objectives import Constraint, Objective
from lightning_score.sweep.results import TABLE, Results, Row, difference, read_csv
from lightning_score.sweep.rows import NFE, measured_fields
from lightning_score.sweep.spec import from_entries
from lightning_score.sweep.summary import collect_results, write_summary

OBJECTIVES = (Objective("test/fid"), Objective("test/recall", True), Objective("test/seconds"))


def rows_of(values, objectives=OBJECTIVES, constraints=(), **settings):
    names = [objective.name for objective in objectives]
    made = []
    for number, each in enumerate(values):
        metrics = dict(zip(names, each, strict=True)) | {"test/fid_error": 0.5, "test/nfe": 10.0 + number}
        chosen = {name: listed[number] for name, listed in settings.items()}
        made.append(Row(number, "complete", chosen, **measured_fields(metrics, objectives, constraints)))
    return made


def results_of(rows, varied=("a", "b"), objectives=OBJECTIVES, constraints=()):
    first = objectives[0]
    return Results("s", first.name, first.maximize, [*varied], rows, objectives=objectives, constraints=constraints)


def test_settings_that_are_not_drawn_yet_do_not_make_a_parameter_vary(tmp_path):
    rows = rows_of([(1.0, 2.0, 3.0), (2.0, 3.0, 4.0)], a=[1, 2], b=[[0], [0]])
    (tmp_path / TABLE).write_text(results_of([*rows, Row(2, "waiting", {})]).csv())
    found = read_csv(tmp_path)
    assert found.varied == ["a"] and [row.state for row in found.rows] == ["complete", "complete", "waiting"]


def test_brackets_of_messages_and_settings_are_printed(tmp_path, capsys):
    """Which are markup for the library that prints the table."""
    rows = [*rows_of([(1.0, 2.0, 3.0)], a=["[red]"]), Row(1, "failed", {"a": ":x:"}, message="[rank0]: no [/usr/lib]")]
    found = results_of(rows, ["a"])
    write_summary(found, found, tmp_path)
    printed = capsys.readouterr().out
    assert all(part in printed for part in ("[red]", ":x:", "failed: [rank0]: no [/usr/lib]")), printed


def test_names_and_settings_may_hold_dollar_signs_and_greek_letters(tmp_path):
    settings = {"a$^$": ["$x_$", "$y^$"], "σ": [1, 2], "β": [1, 2]}
    found = results_of(rows_of([(1.0, 2.0, 3.0), (2.0, 3.0, 4.0)], **settings), [*settings])
    assert len({*draw(found, tmp_path)}) == 3 * 3 + 3  # each objective against each setting, and each pair of objectives


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_front_holds_exactly_the_trials_that_no_other_dominates(count):
    rng, objectives = np.random.default_rng(count), OBJECTIVES[:count]
    values = rng.integers(0, 12, (150, count)).astype(float)
    front = front_of(rows_of(values, objectives), objectives)
    signs = np.array([1, -1, 1])[:count]
    best = {tuple(v) for v in values if not any((signs * w <= signs * v).all() and (w != v).any() for w in values)}
    assert {tuple(row.values[objective.name] for objective in objectives) for row in front} == best
    assert len(front) == len(best)  # of equal trials one
    last = [row.values[objectives[-1].name] for row in front]
    assert last == sorted(last, reverse=objectives[-1].maximize)


def test_the_front_is_that_of_optuna():
    study = optuna.create_study(directions=["minimize", "maximize", "minimize"])
    values = np.random.default_rng(0).normal(0, 1, (80, 3))
    study.add_trials([optuna.trial.create_trial(values=[*each]) for each in values])
    found = results_of(rows_of(values))
    assert {row.number for row in found.front()} == {trial.number for trial in study.best_trials}


def test_infeasible_trials_are_ranked_last_and_never_on_a_front():
    bound = (Constraint("test/fid", 1, 3.0),)
    objectives = OBJECTIVES[:2]
    rows = rows_of([(5.0, 0.9), (2.0, 0.5), (2.5, 0.7), (4.0, 0.8)], objectives, bound, a=[1, 2, 3, 4])
    found = results_of(rows, "a", objectives, bound)
    assert [row.number for row in found.ranked] == [1, 2, 3, 0] and {row.number for row in found.front()} == {1, 2}
    best = found.by(objectives[1]).ranked[0]
    assert (best.number, best.value) == (2, 0.7)
    assert "complete (infeasible)" in markdown(found) and "best: test/recall=0.7 with a=3" in markdown(found)
    none = results_of(rows_of([(5.0, 0.9), (4.0, 0.8)], objectives, bound, a=[1, 2]), "a", objectives, bound)
    assert none.front() == [] and notes(none)[0] == "no trial satisfies test/fid <= 3"


def test_neighbors_on_a_front_are_compared_by_their_paired_errors():
    """The errors of the values are 0.5 each; those of differences of the same samples are far smaller."""
    objectives, common = OBJECTIVES[:2], np.random.default_rng(0).normal(0, 0.5, 10)
    rows = rows_of([(2.0, 0.5), (2.2, 0.6), (2.2001, 0.7)], objectives)
    for row, noise in zip(rows, np.random.default_rng(1).normal(0, 1e-3, (3, 10)), strict=True):
        fields = {"jackknife": tuple(row.value + common + noise), "paired": "same"}
        row.measures["test/fid"].update(fields)
    front = results_of(rows, (), objectives).front(*objectives)
    assert [row.number for row in front] == [2, 1, 0]
    gaps = [difference(one.of("test/fid"), other.of("test/fid")) for one, other in pairwise(front)]
    assert alike(front, objectives) == [True, False] and 2 * gaps[0][1] > 1e-4 and 2 * gaps[1][1] < 0.2
    unpaired = rows_of([(2.0, 0.5), (2.2, 0.6)], objectives)
    assert alike(front_of(unpaired, objectives), objectives) == [True]
    unknown = [Row(k, "complete", {}, float(k), nfe=2.0 - k) for k in range(2)]
    assert alike(front_of(unknown, (Objective("x"), NFE)), (Objective("x"), NFE)) == [False]  # nothing is known


def test_tables_and_notes_have_every_objective():
    rows = rows_of([(2.0, 0.5, 9.0), (3.0, 0.7, 5.0), (4.0, 0.6, 7.0)], a=[1, 2, 3])
    found = results_of(rows, "a")
    found.importances_of = {"test/fid": {"a": 1.0}, "test/recall": {"a": 0.6}}
    titles, lines = found.table()
    assert [title for title in titles if title.startswith("test/")] == [each.name for each in OBJECTIVES]
    assert [line[titles.index("front")] for line in lines] == ["yes", "yes", ""]
    text = "\n".join(notes(found))
    assert "Pareto front of test/fid and test/recall: trial 1 (3 at 0.7), trial 0 (2 at 0.5)" in text
    assert "Pareto front of test/recall and test/seconds" not in text  # trial 1 is the best in both
    assert "importance for test/recall: a 60%" in text and "best: test/seconds=5 with a=2" in text


def test_charts_show_every_objective_and_every_pair(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.uniform(1, 9, (12, 3))
    settings = {"a": [k % 4 for k in range(12)], "b": ["x", "y", "z"] * 4}
    found = results_of(rows_of(values, **settings))
    named = charts(found, colored=True)
    pairs = [f"{PARETO}: {one.name}, {other.name}" for one, other in combinations(OBJECTIVES, 2)]
    assert list(named) == [f"{each.name}: {name}" for each in OBJECTIVES for name in "ab"] + pairs
    chart = named[pairs[1]]
    assert chart.across.label == "test/seconds" and len(chart.lines) == 3 and len(chart.alike) == len(chart.front) - 1
    for line in chart.lines:
        assert line.values == [row.values["test/fid"] for row in line.rows]
        assert line.places == [row.values["test/seconds"] for row in line.rows]
    assert [row.values["test/seconds"] for row in chart.front] == chart.front_places == sorted(chart.front_places)
    files = draw(found, tmp_path)
    assert len(files) == len({*files}) == 10 and all(file.stat().st_size > 5000 for file in files)


def test_the_hypervolume_grows_by_the_area_that_a_trial_adds():
    """FID below 4 (a bound) and recall above the worst, 0.1; the third trial is infeasible, the last one dominated."""
    bound, objectives = (Constraint("test/fid", 1, 4.0),), OBJECTIVES[:2]
    rows = rows_of([(3.0, 0.6), (2.0, 0.4), (5.0, 0.9), (3.5, 0.1)], objectives, bound, a=[1, 2, 3, 4])
    found = results_of(rows[::-1], "a", objectives, bound)
    chart = hypervolume_chart(found)
    areas = [1 * 0.5, 1 * 0.5 + 1 * 0.3, 0.8, 0.8]
    assert chart.lines[0].places == [1, 2, 3, 4] and chart.lines[0].values == pytest.approx(areas)
    assert chart.metric.label == "hypervolume, reference (4, 0.1)" and chart.connected
    assert "hypervolume of the front: 0.8, reference test/fid=4, test/recall=0.1" in notes(found)
    assert hypervolume_chart(results_of(rows, "a", objectives[:1])) is None


def test_importances_are_shares_of_the_variance_of_means():
    """Of 3 a + b on a grid: 9 to 1. The seed of training is no parameter."""
    grid = [(a, b) for a in range(4) for b in range(4)]
    rows = [Row(k, "complete", {"a": a, "b": b, "c": "x"}, 3.0 * a + b) for k, (a, b) in enumerate(grid)]
    shares = importances(Results("s", "m", False, ["a", "b", "c"], rows))
    assert list(shares) == ["a", "b"] and shares["a"] == pytest.approx(0.9, abs=0.06)
    assert importances(Results("s", "m", False, ["a", "b"], rows[:3])) == {}
    same = [Row(k, "complete", {"a": k}, 1.0) for k in range(8)]
    assert importances(Results("s", "m", False, ["a"], same)) == {}


class OneTrial:
    """A study with one trial."""

    def __init__(self, **attributes):
        self._trial = optuna.trial.create_trial(value=2.0, user_attrs={"slot": 0, "settings": {"a": 1}, **attributes})

    def trials(self):
        return [self._trial]

    def state(self, trial):
        return "complete"


def test_a_row_has_what_its_trial_has_stored_of_every_metric():
    file = {"method": "grid", "parameters": {"a": {"values": [1, 2]}}, "metric_constraints": ["test/size <= 3"],
            "metrics": [{"name": "test/fid"}, {"name": "test/recall", "goal": "maximize"}]}  # fmt: skip
    spec = from_entries(file, "x.yaml", "", "x")
    metrics = {"test/fid": 2.0, "test/fid_error": 0.5, "test/recall": 0.6, "test/recall_error": 0.1, "test/size": 4.0}
    kept = {"test/fid": {"jackknife": [1.0, 2.0], "paired": "fid", "floor_kind": "perfect"},
            "test/recall": {"jackknife": [3.0], "paired": "recall", "floor_kind": ""}}  # fmt: skip
    row = collect_results(spec, OneTrial(metrics=metrics, measures=kept)).rows[0]
    assert (row.value, row.error, row.jackknife, row.paired, row.floor_kind) == (2.0, 0.5, (1.0, 2.0), "fid", "perfect")
    recall = row.of("test/recall")
    assert (recall.value, recall.error, recall.jackknife, recall.paired) == (0.6, 0.1, (3.0,), "recall")
    assert not row.feasible and row.values["test/size"] == 4.0
    old = {"metrics": metrics, "without": [1.0, 2.0], "paired": "same", "floor_kind": "perfect"}
    row = collect_results(spec, OneTrial(**old)).rows[0]
    assert (row.jackknife, row.paired, row.floor_kind) == ((1.0, 2.0), "same", "perfect")
    assert row.of("test/fid").paired == "same" and row.of("test/recall").paired == ""
    oldest = collect_results(spec, OneTrial(metrics=metrics)).rows[0]
    assert oldest.floor_kind == "subset" and math.isnan(oldest.seconds)


def test_failed_seeds_are_counted_in_the_notes(tmp_path, capsys):
    from lightning_score.sweep.folds import SEED, folded

    rows = [Row(k, "failed" if k == 1 else "complete", {"a": k // 3, SEED: k % 3}, float(k)) for k in range(6)]
    found = Results("s", "m", False, ["a", SEED], rows)
    write_summary(found, folded(found), tmp_path)
    printed = capsys.readouterr().out
    assert "1 of 6 trials failed" in printed and "2 of 3" in printed and "over 2 of 3 training seeds" in printed
    assert len((tmp_path / "trials.csv").read_text().splitlines()) == 7
    assert len((tmp_path / "means.csv").read_text().splitlines()) == 3
