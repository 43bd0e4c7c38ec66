"""Several objectives and bounds in a sweep: hypervolume, search, results of trials, and what is refused."""

import itertools
import math
import threading

import numpy as np
import optuna
import pytest
import yaml
from run_folders import record
from wandb.sdk.sweeps.scheduler.optuna import build_optuna_optimizer
from wandb.sdk.sweeps.sweep_info import SweepInfo

from lightning_score.commands.configs import shipped
from lightning_score.errors import InputError
from lightning_score.runs.records import FILE, append_record
from lightning_score.sweep.draws import SETTINGS, make_sampler, plan_trials
from lightning_score.sweep.objectives import Constraint, Objective, hypervolume_history, reference_point
from lightning_score.sweep.processes import Stopped
from lightning_score.sweep.spec import from_entries
from lightning_score.sweep.study import ERROR, METRICS, SLOT
from lightning_score.sweep.summary import collect_results
from lightning_score.sweep.trials import Trials, _Objective
from sweeps import make_fixture  # noqa: F401

METRICS_OF = [{"name": "one", "goal": "minimize"}, {"name": "two", "goal": "minimize"}]
PLANE = {"x": {"min": -10.0, "max": 10.0}, "y": {"min": -3.0, "max": 3.0}}
LISTS = {"x": {"values": [0, 1, 2, 3]}, "y": {"values": ["a", "b", "c"]}}
TWO = ["minimize", "minimize"]


def hypervolume(*arguments):
    return [0.0, *hypervolume_history(*arguments)][-1]


def schaffer(settings):
    """Two squared distances, whose front is the segment from (0, 0) to (2, 0) (Schaffer 1985)."""
    x, y = settings["x"], settings["y"]
    return x**2 + y**2, (x - 2) ** 2 + y**2


def sweep_of(**entries):
    return from_entries({"method": "bayes", "metrics": METRICS_OF, "parameters": PLANE, **entries}, "s.yaml", "", "s")


def search(sweep, function, seed, count=24):
    """Draws trials in memory; returns their settings and values."""
    study = optuna.create_study(directions=TWO, sampler=make_sampler(sweep, seed))
    found = []
    for _ in range(count):
        trial = study.ask()
        settings = sweep.settings(trial)
        trial.set_user_attr(SETTINGS, settings)
        values = function(settings)
        for bound in sweep.constraints:
            trial.set_constraint(str(bound), bound.violation(dict(zip(("one", "two"), values, strict=True))[bound.name]))
        study.tell(trial, values)
        found.append((settings, values))
    return found


def test_hypervolumes_of_known_fronts():
    front = [(1, 3), (2, 2), (3, 1)]
    assert hypervolume([], TWO, (4, 4)) == 0.0
    assert hypervolume([(1, 3)], TWO, (4, 4)) == 3.0
    assert hypervolume_history([*front, (3, 3), (1, 9), (9, 1), (4, 1)], TWO, (4, 4)) == [3, 5, 6, 6, 6, 6, 6]
    assert hypervolume([(-1, 3), (-2, 2), (-3, 1)], ["maximize", "minimize"], (-4, 4)) == 6.0
    line = np.linspace(0, 1, 401)
    zdt = np.stack([line, 1 - np.sqrt(line)], axis=1)  # ZDT1's front, over which the volume to (1, 1) is 2/3
    assert hypervolume(zdt.tolist(), TWO, (1, 1)) == pytest.approx(2 / 3, abs=2e-3)
    ball = np.random.default_rng(0).uniform(size=(5, 3))
    corners = [math.prod(1 - ball[list(some)].max(axis=0)) * (-1) ** (len(some) + 1)
               for size in range(1, 6) for some in itertools.combinations(range(5), size)]  # fmt: skip
    assert hypervolume(ball.tolist(), ["minimize"] * 3, (1, 1, 1)) == pytest.approx(sum(corners))


def test_the_reference_point_is_the_bound_of_an_objective_or_its_worst_value():
    objectives = (Objective("one"), Objective("two", maximize=True))
    values = [(1.0, 5.0), (3.0, 2.0)]
    assert reference_point(values, objectives) == [3.0, 2.0]
    bounds = (Constraint("one", 1, 2.5), Constraint("two", 1, 9.0), Constraint("else", 1, 0.0))
    assert reference_point(values, objectives, bounds) == [2.5, 2.0]


def test_24_trials_find_more_of_the_front_than_random_ones():
    shares = {"bayes": [], "random": []}
    line = np.linspace(0, 2, 401)
    whole = hypervolume(np.stack([line**2, (line - 2) ** 2], axis=1).tolist(), TWO, (10, 10))
    rng = np.random.default_rng(0)
    for seed in range(8):
        found = [values for _, values in search(sweep_of(), schaffer, seed)]
        blind = [schaffer({"x": rng.uniform(-10, 10), "y": rng.uniform(-3, 3)}) for _ in range(24)]
        for name, values in (("bayes", found), ("random", blind)):
            shares[name].append(hypervolume(values, TWO, (10, 10)) / whole)
    assert np.mean(shares["bayes"]) > 0.8 > np.mean(shares["random"]) + 0.05


def test_bounds_draw_the_search_to_where_they_hold():
    shares = []
    for bounds in ([], ["one >= 9"]):
        sweep = sweep_of(metric_constraints=bounds)
        found = [values[0] >= 9 for seed in range(6) for _, values in search(sweep, schaffer, seed)[12:]]
        shares.append(np.mean(found))
    assert shares[1] > shares[0] + 0.1


def test_no_settings_are_tried_twice_while_others_are_left():
    sweep = sweep_of(parameters={**LISTS, "z": {"values": [1.5, [2, None]], "probabilities": [0.7, 0.3]}})
    found = [str(sorted(settings.items(), key=str)) for settings, _ in search(sweep, lambda s: (s["x"], -s["x"]), 0, 24)]
    assert len({*found}) == 24
    again = search(sweep_of(parameters=LISTS), lambda s: (s["x"], -s["x"]), 0, 13)
    assert len({str(settings) for settings, _ in again}) == 12  # then they repeat
    assert plan_trials(sweep_of(parameters=LISTS), 24, None).count == 12 and plan_trials(sweep_of(), 24, None).count == 24


def settings_of(study):
    return [trial.user_attrs[SETTINGS] for trial in sorted(study.trials(), key=lambda trial: trial.user_attrs[SLOT])]


@pytest.mark.parametrize("several", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_an_interrupted_sweep_draws_the_same_trials(make, several):
    """After a stop between two trials, and one within a trial, which is the next to run again."""
    aim = {"metric": None, "metrics": METRICS_OF} if several else {"metric": {"name": "one"}}
    stops = iter([3, 11])
    stop = next(stops)

    def measure(study, trial, settings):
        nonlocal stop
        if study.name == "parts" and trial.user_attrs[SLOT] == stop:
            stop = next(stops, None)
            raise Stopped
        return schaffer(settings)[: 2 if several else 1]

    found = {}
    for name, counts in (("whole", [13]), ("parts", [7, 7, 13, 13])):
        for total in counts:
            study = make(name, method="bayes", parameters=PLANE, **aim)
            study.queue(total)
            try:
                study.work(measure)
            except Stopped:
                continue
        found[name] = settings_of(study)
    assert found["whole"] == found["parts"] and stop is None and len({str(each) for each in found["whole"]}) == 13


def test_several_workers_share_all_settings_without_duplicates(make):
    entries = {"method": "bayes", "parameters": LISTS, "metric": None, "metrics": METRICS_OF}
    studies = [make(**entries) for _ in range(3)]
    studies[0].queue(12)
    threads = [threading.Thread(target=study.work, args=(lambda study, trial, settings: (settings["x"], -settings["x"]),))
               for study in studies]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({str(settings) for settings in settings_of(studies[0])}) == len(studies[0].trials()) == 12


class Measured(Trials):
    """Trials that give these metrics; the second objective has records of samples."""

    def __init__(self, metrics):
        self.metrics = metrics

    def run(self, arguments, folder, metric, report):
        assert metric is None  # nothing is compared while a trial runs
        folder.mkdir(parents=True)
        parts = [self.metrics["test/two"] + 0.1 * k for k in range(10)]
        append_record(folder / FILE, record(metric="two", jackknife=parts, floor_kind="perfect"))
        return self.metrics


@pytest.mark.parametrize(
    ("metrics", "error"),
    [
        ({"test/one": 1.0, "test/two": 4.0, "test/nfe": 5.0}, ""),
        ({"test/two": 4.0, "test/nfe": 5.0}, "test/one was not measured; measured: test/nfe, test/two"),
        ({"test/one": 1.0, "test/two": math.nan, "test/nfe": 5.0}, "test/two is nan"),
        ({"test/one": 1.0, "test/two": math.inf, "test/nfe": 5.0}, "test/two is inf"),
        ({"test/one": 1.0, "test/two": 4.0, "test/nfe": math.nan}, "test/nfe is nan, which test/nfe <= 4 needs"),
    ],
)
def test_a_trial_fails_by_the_metric_that_it_misses(make, tmp_path, metrics, error):
    several = [{"name": "test/one"}, {"name": "test/two", "goal": "maximize"}]
    command = ["python", "-m", "lightning_score", "test", "--ckpt_path", "tiny.ckpt", "${args}"]
    study = make(metric=None, metrics=several, metric_constraints=["test/nfe <= 4"], command=command)
    study.queue(1)
    objective = _Objective(study.sweep, tmp_path / "sweep", 1, lambda: None)
    objective._trials = Measured(metrics)
    study.work(objective)
    (trial,), (row,) = study.trials(), collect_results(study.sweep, study).rows
    assert (trial.state.name, row.state) == (("FAIL", "failed") if error else ("COMPLETE", "complete"))
    assert trial.user_attrs.get(ERROR, "") == row.message == error and trial.user_attrs[METRICS] == pytest.approx(
        metrics, nan_ok=True
    )
    if not error:
        assert trial.values == [1.0, 4.0] and trial.constraints == {"0": 1.0} and not row.feasible
        second = row.of("test/two")
        assert second.jackknife[3] == pytest.approx(4.3) and second.paired and second.floor_kind == "perfect"
        assert row.jackknife == () and row.paired == ""


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"early_terminate": {"type": "hyperband", "min_iter": 1}},
            "early_terminate: compares trials by one metric, not by 2",
        ),
        ({"metrics": METRICS_OF[:1]}, "must be a list of at least two"),
        ({"metric": {"name": "one"}}, "give one of them"),
        ({"metric_constraints": ["one < 1"]}, "must be a metric, <= or >=, and a number"),
    ],
)
def test_what_several_objectives_refuse(entries, message):
    with pytest.raises(InputError, match=message) as refusal:
        sweep_of(**entries)
    assert "\n" not in str(refusal.value)


def test_the_shipped_front_is_one_for_wandb():
    """W&B's own client makes an optimizer of the file, which draws settings that it allows."""
    config = yaml.safe_load((shipped("sweeps") / "front.yaml").read_text())
    optimizer = build_optuna_optimizer(SweepInfo("s", "s", "e", "p", config, ""))
    optimizer.validate_sweep_objective()
    drawn = optimizer.ask_n_runs(1)[0].config.flat_dict()
    assert drawn.keys() == config["parameters"].keys()
    assert drawn["model.sampler.predictor"] in config["parameters"]["model.sampler.predictor"]["values"]
