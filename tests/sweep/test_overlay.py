"""Several sweeps of one measure in one table and the same figures."""

import pytest
import yaml

from lightning_score.cli import run
from lightning_score.errors import InputError
from lightning_score.metrics import jackknife_error
from lightning_score.sweep.charts import PARETO
from lightning_score.sweep.folds import SEED
from lightning_score.sweep.history import HISTORY
from lightning_score.sweep.objectives import Objective
from lightning_score.sweep.overlay import SWEEP, overlay
from lightning_score.sweep.results import Results, Row

FID = "test/fid_digits_898"
AXIS = ("fid_digits_898", 898, "features", "none", "data", "train", [1, 8, 8], [0], "ema")


def sweep_of(name, shift=0.0, axis=AXIS, metric=FID, **fields):
    rows = []
    for number, (steps, kind) in enumerate((t, d) for t in (5, 10, 20) for d in ("a", "b")):
        value, noise = 20.0 / steps + shift + (kind == "b"), [0.01 * (k * (1 + shift)) ** 2 for k in range(10)]
        paired = {"jackknife": tuple(value + each for each in noise), "paired": str(axis) if axis else ""}
        rows.append(Row(number, "complete", {"steps": steps, "kind": kind, "n": 1}, value, 0.5, 1.4, 898, steps, **paired))
    return Results(name, metric, False, ["kind", "steps"], rows, **fields)


def test_two_sweeps_share_their_figures_and_their_best_are_compared_pair_by_pair():
    one, other = sweep_of("one"), sweep_of("other", -0.25)
    shown = overlay([one, other])
    assert list(shown.charts) == ["kind", "steps", PARETO, HISTORY]
    chart = shown.charts["steps"]
    assert [line.label for line in chart.lines] == ["sweep=one", "sweep=other"] and "best" in chart.metric.label
    assert [line.values for line in chart.lines] == [[4.0, 2.0, 1.0], [3.75, 1.75, 0.75]]  # the better of a and b
    assert {row.settings[SWEEP] for row in shown.charts[PARETO].front} == {"other"}
    assert [line.values for line in shown.charts[HISTORY].lines] == [
        [4, 4, 2, 2, 1, 1],
        [3.75, 3.75, 1.75, 1.75, 0.75, 0.75],
    ]
    best = [each.ranked[0].jackknife for each in (other, one)]
    error = jackknife_error([a - b for a, b in zip(*best, strict=True)])
    assert shown.lines == [["other", "6", "0.75 +- 1", "", "", "20", "kind=a, steps=20"],
                           ["one", "6", "1 +- 1", "0.25", f"{2 * error:.3g}", "20", "kind=a, steps=20"]]  # fmt: skip
    again = overlay([one, sweep_of("one", -0.25)])
    assert [line.label for line in again.charts["steps"].lines] == ["sweep=one (1)", "sweep=one (2)"]


def test_what_differs_between_sweeps_is_a_parameter_of_both():
    one, other = sweep_of("one"), sweep_of("other")
    for row in other.rows:
        row.settings["n"] = 2
    assert overlay([one, other]).results.varied == [SWEEP, "kind", "n", "steps"]
    for row in other.rows:
        del row.settings["kind"]
    assert overlay([one, other]).results.varied == [SWEEP, "n", "steps"]


@pytest.mark.parametrize(("change", "message"), [
    ({"metric": "test/kid_digits_898"}, "objectives test/kid_digits_898 (minimized) and test/fid_digits_898 (minimized)"),
    ({"objectives": (Objective(FID, True),)}, "test/fid_digits_898 (maximized) and test/fid_digits_898 (minimized)"),
    ({"axis": ("fid_digits_898", 500, *AXIS[2:])}, "number of samples 500 and 898"),
    ({"axis": (*AXIS[:2], "other", *AXIS[3:])}, "features other and features"),
    ({"axis": (*AXIS[:4], "mine", *AXIS[5:])}, "data mine and data"),
])  # fmt: skip
def test_sweeps_of_different_measures_are_refused(change, message):
    with pytest.raises(InputError, match="other and one are not of one measure") as refused:
        overlay([sweep_of("one"), sweep_of("other", **change)])
    assert message in str(refused.value)


def test_a_sweep_without_records_is_compared_by_its_floor():
    """As one of W&B, where the data are not known."""
    assert overlay([sweep_of("one"), sweep_of("other", axis=())]).lines[0][3] == ""
    low = [Row(k, "complete", {"steps": k}, 1.0 + k, 0.5, 9.9, 898) for k in range(2)]
    with pytest.raises(InputError, match=r"value 9\.9 and 1\.4"):
        overlay([sweep_of("one", axis=()), Results("other", FID, False, ["steps"], low)])


def test_training_seeds_are_folded_and_paired():
    rows = {}
    for name, shift in (("one", 0.0), ("other", 1.0)):
        values = [(lr, seed, 3.0 + lr + seed + shift * (1 + 0.1 * seed)) for lr in (1, 2) for seed in range(3)]
        rows[name] = [Row(k, "complete", {"lr": lr, SEED: seed}, value) for k, (lr, seed, value) in enumerate(values)]
    shown = overlay([Results(name, "val/fid", False, ["lr", SEED], rows[name]) for name in rows])
    assert [line[1] for line in shown.lines] == ["2", "2"]
    assert float(shown.lines[1][3]) == 1.1 and float(shown.lines[1][4]) == pytest.approx(4.303 * 0.1 / 3**0.5, rel=0.01)


def test_the_command_compares_folders_and_writes_into_the_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, shift in (("one", 0.0), ("other", -0.25)):
        folder = tmp_path / "runs/sweeps" / name
        folder.mkdir(parents=True)
        (folder / "trials.csv").write_text(sweep_of(name, shift).csv())
        (folder / "sweep.yaml").write_text(yaml.safe_dump({"metric": {"name": FID}}))
    assert run(["sweep", "--compare", "one,runs/sweeps/other"]) == 0
    printed = capsys.readouterr().out
    assert "0.75 +- 1" in printed and "one/compared_with_other: " in printed
    names = {file.name for file in (tmp_path / "runs/sweeps/one/compared_with_other").iterdir()}
    assert names == {"kind.png", "steps.png", "pareto.png", "history.png"}
    (tmp_path / "runs/sweeps/other/trials.csv").write_text("x")
    for words, message in (("one", "at least two"), ("one,none", "--compare none: neither"), ("one,", "--compare : neither"),
                           ("one,other", "cannot be read")):  # fmt: skip
        assert run(["sweep", "--compare", words]) == 2
        assert message in capsys.readouterr().err
