"""W&B's `scheduler`: the same trials here as W&B's own optimizer draws, the user's code, and what is refused."""

import math

import optuna
import pytest
import yaml
from wandb.sdk.sweeps.run_state import RunState
from wandb.sdk.sweeps.scheduler.optimizer import RunConfig, RunWithMetrics
from wandb.sdk.sweeps.scheduler.optuna import build_optuna_optimizer
from wandb.sdk.sweeps.sweep_info import SweepInfo

from lightning_score.errors import InputError
from lightning_score.sweep.draws import plan_trials
from lightning_score.sweep.spec import read_sweep_file
from lightning_score.sweep.study import SETTINGS, Study
from lightning_score.sweep.trial_run import measured
from lightning_score.sweep.trials import Trials, _Objective

SOURCE = """
import optuna
from optuna.samplers import GridSampler, QMCSampler, RandomSampler, TPESampler

GRID = {"x": [-1.0, 0.0, 1.0], "y": [0.01], "z": ["a", "b"]}

def made(sampler):
    return lambda sweep: optuna.create_study(sampler=sampler(), directions=[sweep.config["metric"]["goal"]])

random = made(lambda: RandomSampler(seed=3))
tpe = made(lambda: TPESampler(seed=3, n_startup_trials=3))
together = made(lambda: TPESampler(seed=3, n_startup_trials=3, multivariate=True, group=True))
quasi = made(lambda: QMCSampler(seed=3, scramble=True))
grid = made(lambda: GridSampler(GRID, seed=3))
unseeded = made(TPESampler)

def patient(sweep):
    pruner = optuna.pruners.ThresholdPruner(upper=6.0, n_warmup_steps=300)
    return optuna.create_study(sampler=RandomSampler(seed=3), pruner=pruner)

def front(sweep):
    goals = [metric["goal"] for metric in sweep.config["metrics"]]
    return optuna.create_study(sampler=TPESampler(seed=3, n_startup_trials=2), directions=goals)

def few(sweep):
    return random(sweep), lambda study: len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE])) >= 4

def conditional(trial):
    kind = trial.suggest_categorical("kind", ["a", "b"])
    if kind == "a":
        return {"z": kind, "x": trial.suggest_float("x", -2.0, 2.0), "y": 0.1}
    return {"z": kind, "x": 1.0, "y": trial.suggest_float("y", 1e-4, 1.0, log=True), "mixed": [None, {"n": 2}]}

def broken(sweep):
    return 1 // 0
def wrong_study(sweep):
    return optuna.create_study(direction="maximize")
def not_a_study(sweep):
    return "TPE"
def no_settings(trial):
    return [trial.suggest_int("n", 1, 2)]
def no_json(trial):
    return {"n": {trial.suggest_int("n", 1, 2)}}
def half(trial):
    return {"x": 1 / (trial.suggest_int("n", 0, 1))}
def ends(trial):
    raise SystemExit("no GPU")
"""
PARAMETERS = {
    "x": {"min": -2.0, "max": 2.0},
    "y": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0},
    "z": {"values": ["a", "b"]},
    "fixed": {"value": [1, None]},
}


@pytest.fixture(name="file")
def file_fixture(tmp_path):
    """Writes a sweep file with a scheduler."""
    (tmp_path / "own.py").write_text(SOURCE)

    def written(own, /, **entries):
        base = {"method": "custom", "metric": {"name": "m", "goal": "minimize"}, "parameters": PARAMETERS}
        given = {"engine": "optuna", "source": str(tmp_path / "own.py"), **own}
        path = tmp_path / "s.yaml"
        entries = {key: value for key, value in {**base, "scheduler": given, **entries}.items() if value is not None}
        path.write_text(yaml.safe_dump(entries))
        return str(path)

    return written


def bowl(settings):
    return (settings["x"] - 1) ** 2 + math.log10(settings["y"] / 0.01) ** 2 + (settings["z"] == "a")


def on_wandb(file, count, measured=lambda settings: {"m": bowl(settings)}):
    """The trials that W&B's optimizer draws from a file, one at a time."""
    with open(file) as text:
        optimizer = build_optuna_optimizer(SweepInfo("s", "s", "e", "p", yaml.safe_load(text), ""))
    found = []
    while len(found) < count and not optimizer.should_terminate_sweep():
        asked = optimizer.ask_n_runs(1)
        if not asked:
            break
        settings = asked[0].config.flat_dict()
        found.append(settings)
        told = RunWithMetrics(RunConfig({}), RunState.FINISHED, "", measured(settings), [])
        optimizer.tell_run(asked[0].run_id, told)
    return found


def here(file, tmp_path, count, turns, measured=bowl):
    """The trials that workers draw here, which take turns; each turn is a new process as far as the study is concerned."""
    url = f"sqlite:///{tmp_path}/study.db"
    Study(read_sweep_file(file), url, "s", create=True).queue(count)
    workers = {}
    for worker, most in turns:
        study = workers[worker] = workers.get(worker) or Study(read_sweep_file(file), url, "s")
        done = []

        def objective(study, trial, settings, done=done):
            done.append(settings)
            return measured(settings)

        study.work(objective, lambda done=done, most=most: len(done) >= most)
    trials = sorted(study.trials(), key=lambda trial: trial.number)
    return [trial.user_attrs[SETTINGS] for trial in trials if trial.state.name == "COMPLETE"], study


ONE = [("a", 99)]
"""One worker for all trials."""
SEVERAL = [("a", 3), ("b", 1), ("a", 2), ("c", 99)]
"""Three workers that take turns; the last one begins late, as after an interruption."""


@pytest.mark.parametrize(
    ("optimizer", "space", "turns"),
    [("random", "", ONE), ("tpe", "", SEVERAL), ("quasi", "", SEVERAL), ("tpe", "conditional", ONE),
     ("together", "conditional", SEVERAL), ("few", "", SEVERAL), ("grid", "", ONE)],
)  # fmt: skip
def test_the_users_study_draws_the_same_trials_as_on_wandb(file, tmp_path, optimizer, space, turns):
    extra = {"search_space": space, "optimizer": optimizer} if space else {"optimizer": optimizer}
    path = file(extra, parameters=None if space else PARAMETERS)
    expected = on_wandb(path, 8)
    found, study = here(path, tmp_path, 8, turns)
    assert found == expected and len(expected) == {"few": 4, "grid": 6}.get(optimizer, 8)
    assert bool(study.ended) == (optimizer in ("few", "grid")) and study.remaining() == 0
    assert study.queue(9) == (0 if study.ended else 1)


def test_an_unseeded_study_goes_on_with_the_trials_of_other_workers(file, tmp_path):
    found, study = here(file({"optimizer": "unseeded"}), tmp_path, 7, SEVERAL)
    assert len({str(settings) for settings in found}) == 7
    sampler = study._study.sampler
    assert [list(trial.params.values()) for trial in sampler._made.study.trials][:6] == [
        [settings[name] for name in trial.params]
        for settings, trial in zip(found[:6], sampler._made.study.trials, strict=False)
    ]


def test_failed_and_pruned_trials_are_told(file, tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    study = Study(read_sweep_file(file({"optimizer": "tpe"})), url, "s", create=True)
    study.queue(3)

    def objective(study, trial, settings):
        trial.report(1.0, 1)
        if trial.number == 0:
            raise ValueError("no")
        if trial.number == 1:
            raise optuna.TrialPruned
        return 1.0

    study.work(objective)
    study.queue(4)
    study.work(objective)
    told = study._study.sampler._made.study.trials
    assert [trial.state.name for trial in told] == ["FAIL", "PRUNED", "COMPLETE", "RUNNING"]
    assert told[1].intermediate_values == {1: 1.0} and told[2].value == 1.0


REFUSED = [
    ({"engine": "ax"}, {}, "scheduler: engine=ax: not run here, because Ax is not installed"),
    ({"engine": "hyperopt"}, {}, "engine='hyperopt': must be wandb or optuna"),
    ({"engine": "wandb"}, {}, "engine=wandb: method=custom: must be grid, random, bayes"),
    ({}, {"method": "bayes"}, "engine=optuna: method=bayes: must be custom"),
    ({}, {"early_terminate": {"type": "hyperband", "min_iter": 1}}, "excludes early_terminate"),
    ({}, {"controller": {"type": "local"}}, "excludes 'controller: {type: local}'"),
    ({"engine": "wandb", "optimizer": "tpe"}, {"method": "grid"}, "engine wandb does not use it"),
    ({"source": "", "optimizer": "tpe"}, {}, "optimizer=tpe: needs source"),
    ({"sampler": "tpe"}, {}, "scheduler: sampler: unknown; allowed are engine, optimizer, search_space, source"),
    ({"search_space": "conditional"}, {}, "so that parameters are not used"),
    ({"search_space": 3}, {}, "search_space=3: must be text"),
    ({}, {"parameters": None}, "needs parameters, as"),
    ({}, {"metric": None}, "method=custom: needs a metric"),
    ({}, {"scheduler": None}, "method custom needs 'scheduler: {engine: optuna}'"),
    ({}, {"scheduler": "optuna"}, "scheduler='optuna': must be a mapping"),
    (
        {"engine": "wandb", "source": ""},
        {"method": "bayes", "metric": {"name": "m", "impute": "best"}},
        "impute: method bayes learns nothing from trials without a result here",
    ),
    ({}, {"metric": {"name": "m", "target": "low"}}, "target='low': must be a number"),
    ({}, {"metric": None, "metrics": [{"name": "m", "target": 1}, {"name": "n"}]}, "m: target ends a sweep of one metric"),
]


@pytest.mark.parametrize(("scheduler", "entries", "message"), REFUSED)
def test_a_file_that_cannot_be_honoured_is_refused(file, scheduler, entries, message):
    with pytest.raises(InputError) as caught:
        read_sweep_file(file(scheduler, **entries))
    assert message in str(caught.value) and "\n" not in str(caught.value)


FAULTS = [
    ({"optimizer": "broken"}, "own.py: broken: ZeroDivisionError: integer division"),
    ({"optimizer": "wrong_study"}, "own.py: wrong_study: ValueError: Study direction 'maximize' does not match"),
    ({"optimizer": "not_a_study"}, "own.py: not_a_study: 'not_a_study' in "),
    ({"optimizer": "missing"}, "has no attribute 'missing'"),
    ({"optimizer": "tpe", "source": "none.py"}, "source=none.py: there is no such file"),
    ({"search_space": "no_settings"}, "own.py: no_settings: ValueError: 'no_settings' in "),
    ({"search_space": "no_json"}, "own.py: no_json: n: {"),
    ({"search_space": "half"}, "own.py: half: ZeroDivisionError"),
    ({"search_space": "ends"}, "own.py: ends: SystemExit: no GPU"),
    ({"search_space": "tpe"}, "own.py: tpe: "),
]


@pytest.mark.parametrize(("scheduler", "message"), FAULTS)
def test_an_error_of_the_users_code_is_one_line_before_the_first_trial(file, scheduler, message):
    sweep = read_sweep_file(file(scheduler, parameters=None if "search_space" in scheduler else PARAMETERS))
    with pytest.raises(InputError) as caught:
        plan_trials(sweep, 3, None)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_faulty_file_is_named(file, tmp_path):
    path = file({"optimizer": "tpe"})
    (tmp_path / "own.py").write_text("def tpe(sweep:\n")
    with pytest.raises(InputError, match="tpe: SyntaxError: "):
        plan_trials(read_sweep_file(path), 3, None)


def test_a_changed_source_is_another_sweep(file, tmp_path):
    path, url = file({"optimizer": "tpe"}), f"sqlite:///{tmp_path}/study.db"
    Study(read_sweep_file(path), url, "s", create=True)
    (tmp_path / "own.py").write_text(SOURCE.replace("seed=3", "seed=4"))
    with pytest.raises(InputError, match="another version of its file"):
        Study(read_sweep_file(path), url, "s")


def test_a_seed_of_the_command_is_refused_where_the_users_study_has_its_own(file):
    with pytest.raises(InputError, match="--seed 1: the study of `tpe` has its own seed"):
        plan_trials(read_sweep_file(file({"optimizer": "tpe"})), 3, 1)


@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_a_sweep_ends_at_its_target(file, tmp_path, goal):
    """No trial begins after one that reached it, also through a value that it reported before its end."""
    sign = 1 if goal == "minimize" else -1
    metric = {"name": "m", "goal": goal, "target": sign * 2.0}
    path = file({"optimizer": None}, method="random", metric=metric, scheduler=None)
    study = Study(read_sweep_file(path), f"sqlite:///{tmp_path}/study.db", "s", create=True)
    study.queue(9)

    def objective(study, trial, settings):
        trial.report(sign * (5.0 - trial.number), 1)
        return sign * 9.0 if trial.number else math.nan

    study.work(objective)
    with pytest.raises(InputError, match=f"--retry 0: a trial has reached the target {sign * 2} of m"):
        study.retry("0")
    assert [trial.state.name for trial in study.trials()] == ["FAIL", *["COMPLETE"] * 3]
    assert f"target {sign * 2} of m" in study.ended and study.queue(20) == 0


def test_the_file_in_the_folder_of_a_sweep_is_the_same_sweep(file):
    """As for the workers of a cluster, which read it; it ends with the user's code, also after a line without an end."""
    path = file({"optimizer": "tpe"})
    with open(path, "r+") as text:
        whole = text.read().rstrip("\n")
        text.seek(0)
        text.truncate()
        text.write(whole)
    sweep = read_sweep_file(path)
    assert sweep.text.startswith(f"{whole}\n# own.py:\n#\n# import optuna\n")
    with open(path, "w") as text:
        text.write(sweep.text)
    assert read_sweep_file(path).text == sweep.text


def test_a_search_space_has_the_settings_that_it_draws(file):
    sweep = read_sweep_file(file({"search_space": "conditional"}, parameters=None))
    assert sorted(sweep.varied) == ["mixed", "x", "y", "z"]
    assert (
        plan_trials(sweep, 3, None).settings
        == sweep.drawn
        == read_sweep_file(file({"search_space": "conditional"}, parameters=None)).drawn
    )
    assert {settings["z"]: {*settings} for settings in sweep.drawn} == {"a": {"z", "x", "y"}, "b": {"z", "x", "y", "mixed"}}


def test_a_search_space_without_an_own_study_is_searched_here(file, tmp_path):
    """With a seed, by the sampler of method bayes; the settings of each trial are those of its branch."""
    path = file({"search_space": "conditional"}, parameters=None)
    found, _ = here(path, tmp_path, 8, ONE)
    assert {settings["z"]: {*settings} for settings in found} == {"a": {"z", "x", "y"}, "b": {"z", "x", "y", "mixed"}}
    (tmp_path / "again").mkdir()
    assert here(path, tmp_path / "again", 8, ONE)[0] == found


def test_several_objectives_of_the_users_study(file, tmp_path):
    metrics = [{"name": "m", "goal": "minimize"}, {"name": "n", "goal": "maximize"}]
    path = file({"optimizer": "front", "search_space": "conditional"}, parameters=None, metric=None, metrics=metrics)
    found, study = here(path, tmp_path, 7, SEVERAL, lambda settings: [bowl(settings), settings["x"]])
    assert found == on_wandb(path, 7, lambda settings: {"m": bowl(settings), "n": settings["x"]})
    told = study._study.sampler._made.study
    assert [direction.name for direction in told.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert [trial.values for trial in told.trials[:5]] == [[bowl(settings), settings["x"]] for settings in found[:5]]


def test_the_grid_of_wandbs_engine_is_that_of_its_library(file):
    """As the grid search of `sweeps` 0.3.0 lists it: q_uniform without its upper end, the last name changes fastest."""
    parameters = {
        "b": {"parameters": {"y": {"values": [3, 1]}, "x": {"distribution": "q_uniform", "min": 0.5, "max": 1.5, "q": 0.5}}},
        "a": {"min": 1, "max": 2},
        "b.z": {"value": None},
    }
    sweep = read_sweep_file(file({"engine": "wandb", "source": None}, method="grid", parameters=parameters))
    found = [tuple(settings[name] for name in ("a", "b.x", "b.y")) for settings in plan_trials(sweep, None, None).settings]
    assert found == [(1, 0.5, 3), (1, 0.5, 1), (1, 1.0, 3), (1, 1.0, 1), (2, 0.5, 3), (2, 0.5, 1), (2, 1.0, 3), (2, 1.0, 1)]
    assert "drawn here with a seed" not in sweep.search
    for method in ("random", "bayes"):
        other = read_sweep_file(file({"engine": "wandb", "source": None}, method=method))
        assert "drawn here with a seed, which W&B's engine has not" in other.search


class OneTrial(Trials):
    """Reports two values and stops if it is told to."""

    def run(self, arguments, folder, metric, report):
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("step,time,m,n\n100,1.0,,2.0\n200,2.0,5.0,\n400,3.0,7.0,\n600,4.")
        for value, step in measured(folder, metric):
            report(value, step)
        return {"m": 7.0}


@pytest.mark.parametrize(("optimizer", "stops"), [("patient", True), ("random", False)])
def test_the_pruner_of_the_users_study_is_told_optimizer_steps(file, tmp_path, monkeypatch, optimizer, stops):
    """As W&B tells it: one that stops values above 6 from step 300 on."""
    monkeypatch.setattr("lightning_score.sweep.trials.choose_runner", lambda *_: OneTrial())
    command = ["python", "-m", "lightning_score", "fit", "--config", "ncsn", "${args}"]
    sweep = read_sweep_file(file({"optimizer": optimizer}, command=command))
    study = Study(sweep, f"sqlite:///{tmp_path}/study.db", "s", create=True)
    study.queue(1)
    study.work(_Objective(sweep, tmp_path, 1, lambda: None))
    (trial,) = study.trials()
    assert trial.intermediate_values == {200: 5.0, 400: 7.0} and (trial.state.name == "PRUNED") == stops
