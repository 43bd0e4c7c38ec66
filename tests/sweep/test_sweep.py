"""Sweep files: distributions against scipy's, commands against W&B's, early termination, results."""

import datetime
import json
import math
import sqlite3
import statistics
from dataclasses import replace

import numpy as np
import optuna
import pytest
import scipy.stats as st
import yaml
from run_folders import record
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from lightning_score.commands.arguments import Arguments
from lightning_score.errors import InputError
from lightning_score.metrics import jackknife_error
from lightning_score.sweep.charts import PARETO, charts
from lightning_score.sweep.drawing import draw
from lightning_score.sweep.folder import check_folder, folder_of
from lightning_score.sweep.macros import expand_macros, flatten, from_agent, options
from lightning_score.sweep.notes import markdown
from lightning_score.sweep.parameters import DISTRIBUTIONS, parameter
from lightning_score.sweep.results import Results, Row, difference
from lightning_score.sweep.rows import leave_one_out
from lightning_score.sweep.spec import Hyperband, read_sweep_file

LAWS = {
    "uniform": ({"min": -1.0, "max": 3.0}, st.uniform(-1, 4)),
    "log_uniform": ({"min": -2.0, "max": 1.0}, st.loguniform(math.exp(-2), math.exp(1))),
    "log_uniform_values": ({"min": 1e-4, "max": 1e-1}, st.loguniform(1e-4, 1e-1)),
    "inv_log_uniform": ({"min": 1.0, "max": 3.0}, st.loguniform(math.exp(-3), math.exp(-1))),
    "inv_log_uniform_values": ({"min": 0.5, "max": 8.0}, st.loguniform(0.5, 8.0)),
    "normal": ({"mu": 2.0, "sigma": 0.5}, st.norm(2, 0.5)),
    "log_normal": ({"mu": -1.0, "sigma": 0.5}, st.lognorm(0.5, scale=math.exp(-1))),
    "beta": ({"a": 2.0, "b": 5.0}, st.beta(2, 5)),
}


def drawn(law, n=2000):
    trials = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [law.suggest(trials.ask(), "x") for _ in range(n)]


@pytest.mark.parametrize("name", LAWS)
def test_values_follow_their_distribution(name):
    numbers, expected = LAWS[name]
    values = drawn(parameter("x", {"distribution": name, **numbers}))
    assert st.kstest(values, expected.cdf).pvalue > 1e-3
    assert st.kstest(values, st.uniform(np.mean(values), np.ptp(values)).cdf).pvalue < 1e-3 or name == "uniform"


def test_a_seed_draws_the_same_values_in_every_version():
    first = {"uniform": [1.195254015709299, 1.860757465489678], "log_uniform": [0.7021842196576273, 1.1566965019108817],
             "log_uniform_values": [0.004430375245218269, 0.013981961408994055],
             "inv_log_uniform": [0.14921411484843045, 0.20812399080271252],
             "inv_log_uniform_values": [2.2898514604770375, 3.6319830392206485],
             "normal": [2.061332113787362, 2.284304683036679], "log_normal": [0.39114854282752803, 0.48885208644907185],
             "beta": [0.2858794950460208, 0.36887782807386815]}  # fmt: skip
    for name, (numbers, _) in LAWS.items():
        assert drawn(parameter("x", {"distribution": name, **numbers}), 2) == pytest.approx(first[name], rel=1e-14), name


@pytest.mark.parametrize("name", [name for name in DISTRIBUTIONS if name.startswith("q_")])
def test_quantized_values_are_the_nearest_multiples(name):
    numbers, expected = LAWS[name.removeprefix("q_")]
    q = 0.05
    values = drawn(parameter("x", {"distribution": name, **numbers, "q": q}), 4000)
    multiples = np.asarray(values) / q
    np.testing.assert_allclose(multiples, multiples.round(), atol=1e-6)
    for k in np.unique(multiples.round()):
        share = expected.cdf((k + 0.5) * q) - expected.cdf((k - 0.5) * q)
        assert abs(np.mean(multiples.round() == k) - share) < 5 * math.sqrt(max(share, 1e-3) / 4000)


def test_integers_choices_and_probabilities():
    values = drawn(parameter("x", {"min": 1, "max": 4}))
    assert st.chisquare(np.bincount(values, minlength=5)[1:]).pvalue > 1e-3
    mixed = [None, True, 1, "1", 0.5, [1, 2], {"class_path": "A"}]
    values = drawn(parameter("x", {"values": mixed}))
    assert [values.count(value) > 100 for value in mixed[2:]] == [True] * 5
    assert sum(value is None for value in values) > 100 and sum(value is True for value in values) > 100
    shares = [0.7, 0.2, 0.1]
    values = drawn(parameter("x", {"values": ["a", "b", "c"], "probabilities": shares}))
    assert st.chisquare([values.count(v) for v in "abc"], [share * 2000 for share in shares]).pvalue > 1e-3


def test_every_distribution_is_tested():
    tested = {
        *LAWS,
        *(f"q_{name}" for name in LAWS),
        "constant",
        "categorical",
        "categorical_w_probabilities",
        "int_uniform",
    }
    assert set(DISTRIBUTIONS) <= tested


def sweep_file(tmp_path, **entries):
    path = tmp_path / "sweep.yaml"
    base = {"method": "grid", "parameters": {"a.b": {"values": [1, 2]}}, "metric": {"name": "val/loss"}}
    path.write_text(yaml.safe_dump({**base, **entries}))
    return str(path)


def test_a_grid_lists_all_and_nested_parameters_have_dotted_names(tmp_path):
    parameters = {
        "model": {"parameters": {"sampler": {"parameters": {"steps": {"values": [5, 10]}}}, "lr": {"value": 0.1}}},
        "n": {"min": 1, "max": 3},
        "q": {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.5},
        "w": {"values": [None, "x"]},
    }
    sweep = read_sweep_file(sweep_file(tmp_path, parameters=parameters))
    trials = optuna.create_study()
    for point in sweep.grid():
        trials.enqueue_trial(point)
    settings = [sweep.settings(trials.ask()) for _ in sweep.grid()]
    assert len({json.dumps(each, sort_keys=True) for each in settings}) == 2 * 3 * 3 * 2
    assert {each["model.sampler.steps"] for each in settings} == {5, 10}
    assert {each["q"] for each in settings} == {0.0, 0.5, 1.0} and {each["w"] for each in settings} == {None, "x"}
    assert all(each["model.lr"] == 0.1 for each in settings)
    assert sweep.varied == ["model.sampler.steps", "n", "q", "w"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"method": "annealing"}, "method='annealing'"),
        ({"parameters": {}}, "needs parameters"),
        ({"parameters": {"x": {"values": []}}}, "x: values=\\[\\]: must be a list with at least one value"),
        ({"parameters": {"x": {"min": 2, "max": 1}}}, "min=2, max=1: min must not be above max"),
        ({"parameters": {"x": {"min": "1e-5", "max": 1.0}}}, "write 1.0e-3"),
        ({"parameters": {"x": {"distribution": "cauchy"}}}, "distribution='cauchy': unknown"),
        ({"parameters": {"x": {"distribution": "log_uniform_values", "min": 0, "max": 1}}}, "above 0"),
        ({"parameters": {"x": {"distribution": "log_uniform", "min": 0, "max": 1000}}}, "x: log_uniform takes natural log"),
        ({"parameters": {"x": {"distribution": "log_uniform", "min": -1000, "max": 1}}}, "-1000 to 1 are too far from 0"),
        ({"parameters": {"x": {"distribution": "inv_log_uniform", "min": -1000, "max": 1}}}, "x: inv_log_uniform takes"),
        ({"parameters": {"x": {"distribution": "q_log_normal", "mu": 800}}}, "x: q_log_normal takes natural logarithms"),
        ({"parameters": {"x": {"min": 1, "max": 10**30}}}, "integers must be at most 9007199254740992"),
        ({"parameters": {"x": {"distribution": "uniform", "min": 0}}}, "uniform needs max"),
        ({"parameters": {"x": {"values": [1, 2], "probabilities": [0.5, 0.6]}}}, "with sum 1"),
        ({"parameters": {"x": 3}}, "parameters: x=3: must be a mapping"),
        ({"parameters": {"x": {"vaules": [1]}}}, "needs value, values"),
        ({"parameters": {"x": {"values": [datetime.date(2024, 1, 31)]}}}, "quote it"),
        ({"parameters": {"x": {"values": [0.1, float("nan")]}}}, "x: nan: must be a number"),
        ({"metric": {"name": "a", "gaol": "maximize"}}, "metric: gaol: unknown"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "etc": 2}}, "early_terminate: etc: unknown"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "strict": "false"}}, "strict='false'"),
        ({"metrics": {"name": "a"}}, "metric and metrics: give one"),
        ({"metric": None, "metrics": [{"name": "a"}]}, "must be a list of at least two"),
        ({"metric": None, "metrics": [{"name": "a"}, {"name": "a"}]}, "names must differ"),
        ({"metric_constraints": ["m < 2"]}, "must be a metric, <= or >=, and a number"),
        ({"metric": {"name": "a", "goal": "smallest"}}, "goal='smallest'"),
        ({"method": "bayes", "metric": None}, "method=bayes: needs a metric"),
        ({"early_terminate": {"type": "median"}}, "type must be hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, "min_iter or max_iter"),
        ({"run_cap": 0}, "run_cap=0"),
        ({"command": "python"}, "list of words"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(tmp_path, entries, message):
    with pytest.raises(InputError, match=message):
        read_sweep_file(sweep_file(tmp_path, **entries))


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(InputError, match="no such sweep file"):
        read_sweep_file(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [1,\n b: }")
    with pytest.raises(InputError, match="not a sweep file"):
        read_sweep_file(str(tmp_path / "bad.yaml"))


def test_a_repeated_key_is_refused(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text("method: grid\nparameters:\n  a: {value: 1}\n  b: {value: 1}\n  a: {value: 2}\n")
    with pytest.raises(InputError, match="a is given twice"):
        read_sweep_file(str(file))


@pytest.mark.parametrize("q", [1e-9, 1e-30])
def test_too_many_multiples_are_refused_before_they_are_listed(tmp_path, q):
    parameters = {"x": {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": q}}
    with pytest.raises(InputError, match="more than 100000 multiples from 0 to 1"):
        read_sweep_file(sweep_file(tmp_path, parameters=parameters)).grid()


def test_a_huge_grid_is_refused_before_it_is_listed(tmp_path):
    with pytest.raises(InputError, match="a grid of 1000000000000 trials"):
        read_sweep_file(sweep_file(tmp_path, parameters={"x": {"min": 1, "max": 10**12}})).grid()


@pytest.mark.parametrize("law", ["uniform", "log_uniform_values", "normal", "int_uniform", "q_uniform", "beta"])
def test_examples_are_the_ends_of_a_distribution_and_values_between(law):
    numbers = {"int_uniform": {"min": 1, "max": 100}, "q_uniform": {"min": 0.0, "max": 10.0, "q": 0.5}}
    numbers = numbers.get(law) or LAWS[law][0]
    values = parameter("x", {"distribution": law, **numbers}).examples()
    assert len(values) == 5 and values == sorted(values)
    if "min" in numbers:
        assert values[0] == numbers["min"] and values[-1] == numbers["max"]
    assert len(parameter("x", {"distribution": "uniform", "min": 1.0, "max": 1.0}).examples()) == 1


WORDS = ["${env}", "${interpreter}", "-m", "lightning_score", "test"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (WORDS, "does not give --c=true to the program"),
        ([*WORDS, "${arg}"], "does not give --c=true"),  # an unknown macro vanishes
        ([*WORDS, "${args}", "--a.b=7"], "does not give --a.b=1 but --a.b=7"),
        ([*WORDS, "${args_no_hyphens}"], "does not give --c=true"),
        ([*WORDS, "${args_no_boolean_flags}"], "does not give --c=true"),
        ([*WORDS, "${args_json}"], "does not give --c=true"),
        (["${env}", "LANG=C", *WORDS[1:], "${args}"], "sets variables"),
        (["torchrun", *WORDS[2:], "${args}"], "other programs"),
        (["python", "train.py", "${args}"], "other programs"),
        (["python", "-m", "lightning_score", "predict", "${args}"], "other programs"),
    ],
)
def test_a_command_without_the_parameters_is_refused(tmp_path, command, message):
    parameters = {"a.b": {"values": [1, 2]}, "c": {"value": True}}
    sweep = read_sweep_file(sweep_file(tmp_path, parameters=parameters, command=command))
    with pytest.raises(InputError, match=message):
        sweep.arguments({"a.b": 1, "c": True})


@pytest.mark.parametrize("macro", [["${args}"], ["${args_no_equals}"], ["--config", "${args_json_file}"]])
def test_every_value_reaches_the_program_unchanged(tmp_path, macro):
    settings = {"a": [1, None], "b": ["x"], "c": None, "d": True, "e": {"class_path": "A", "init_args": {"f": None}},
                "g": 1e-5, "h": {"i": {"j": False}}, "k": -1, "l": "text with spaces"}  # fmt: skip
    parameters = {name: {"value": value} for name, value in settings.items()}
    sweep = read_sweep_file(
        sweep_file(tmp_path, parameters=parameters, command=["python3", "-u", *WORDS[2:], "--a=[5]", *macro])
    )
    assert sorted(sweep.arguments(dict(flatten(settings))).options) == sorted(options(dict(flatten(settings))))


def test_a_folder_with_other_files_is_refused(tmp_path):
    folder = tmp_path / "runs" / "sweeps" / "eps"
    assert folder_of(str(tmp_path / "runs"), "eps") == folder
    for name in ("..", "", "a/b", "/tmp/x", "x" * 300):
        with pytest.raises(InputError, match="must be the name of one folder"):
            folder_of("runs", name)
    check_folder(folder, "text", shared=False)
    folder.mkdir(parents=True)
    check_folder(folder, "text", shared=False)
    (folder / "notes.txt").write_text("mine")
    for shared in (False, True):
        with pytest.raises(InputError, match="contains files that are not"):
            check_folder(folder, "text", shared)
    for content in (b"not a database", None):
        if content is None:
            (folder / "study.db").unlink()
            with sqlite3.connect(folder / "study.db") as database:
                database.execute("create table mine (x)")
        else:
            (folder / "study.db").write_bytes(content)
        with pytest.raises(InputError, match="contains files that are not"):
            check_folder(folder, "text", shared=False)
    (folder / "study.db").unlink()
    optuna.create_study(storage=f"sqlite:///{folder}/study.db")
    check_folder(folder, "text", shared=False)
    (folder / "sweep.yaml").write_text("other text")
    with pytest.raises(InputError, match="contains another sweep"):
        check_folder(folder, "text", shared=False)


def test_a_grid_of_reals_is_refused(tmp_path):
    with pytest.raises(InputError, match="use random or bayes"):
        read_sweep_file(sweep_file(tmp_path, parameters={"x": {"min": 0.0, "max": 1.0}})).grid()


def test_macros_are_those_of_wandb(monkeypatch):
    monkeypatch.setenv("SOME_PATH", "/data")
    words = expand_macros(["${env}", "${program}", "--x=${envvar:SOME_PATH}", "${nothing}"], "train.py")
    assert words == ["/usr/bin/env", "train.py", "--x=/data"]
    assert expand_macros(["-m", "x", "${args}"], None) == expand_macros(["-m", "x", "--config", "${args_json_file}"], None)
    with pytest.raises(InputError, match="must follow --config"):
        expand_macros(["--settings", "${args_json_file}"], None)


@pytest.mark.parametrize("macro", ["args", "args_no_equals", "args_json_file"])
def test_wandbs_agent_and_the_local_sweep_give_the_same_options(tmp_path, macro):
    settings = {"m.p.eta": 0.5, "m.p": "DDIM", "m": {"q": {"r": None}}, "flag": True, "off": False, "x": 1e-5}
    wanted = ["--flag=true", "--m.p=DDIM", "--m.q.r=null", "--m.p.eta=0.5", "--off=false", "--x=1e-05"]
    fixed = ["fit", "--config", "c.yaml"]
    theirs = create_sweep_command_args({"args": {name: {"value": value} for name, value in settings.items()}})
    (tmp_path / "args.json").write_text(json.dumps(settings))
    words = ["--config", str(tmp_path / "args.json")] if macro == "args_json_file" else theirs[macro]
    of_agent = from_agent(Arguments.parse([*fixed, *words])).command_line()
    command = [*WORDS[:-1], *fixed, *(["--config"] if macro == "args_json_file" else []), f"${{{macro}}}"]
    parameters = {name: {"value": value} for name, value in settings.items()}
    sweep = read_sweep_file(sweep_file(tmp_path, parameters=parameters, command=command))
    assert sweep.arguments(dict(flatten(settings))).command_line() == of_agent
    assert of_agent[:3] == fixed and sorted(of_agent[3:]) == sorted(wanted)
    assert of_agent.index("--m.p=DDIM") < of_agent.index("--m.p.eta=0.5")


def test_options_after_an_added_part_belong_to_it():
    added = ["--c+=A", "--c.seed=1", "--c+=B", "--c.seed=2"]
    of_agent = from_agent(Arguments.parse(["fit", *added, "--flag=True"])).command_line()
    assert of_agent == ["fit", *added, "--flag=true"], "each is of the part before it"
    assert [option.words() for option in options({"x": {"class_path": "A"}})] == [['--x={"class_path": "A"}']]


def test_hyperband_stops_trials_that_are_not_among_the_best_at_a_band(tmp_path):
    rule = read_sweep_file(
        sweep_file(tmp_path, early_terminate={"type": "hyperband", "max_iter": 8, "s": 2, "eta": 2})
    ).hyperband
    assert rule.bands == (2, 4)
    others = [[5.0, 4.0], [5.0, 2.0], [5.0, 3.0], [5.0, 1.0]]
    assert rule.should_stop([5.0, 4.0], others) and not rule.should_stop([5.0, 2.0], others)
    assert not rule.should_stop([5.0], others)  # before the first band
    assert not rule.should_stop([1.0, 4.0], others)  # it was better before
    assert Hyperband((2, 4), 2.0, strict=True).should_stop([1.0, 4.0], others)
    default = read_sweep_file(sweep_file(tmp_path, early_terminate={"type": "hyperband", "min_iter": 2})).hyperband
    assert default.bands[:3] == (2, 6, 18)


def rows():
    rng = np.random.default_rng(0)
    common = rng.normal(0, 1, 10)
    made = []
    for number, (eps, steps) in enumerate((e, t) for e in (1e-4, 2e-4, 4e-4) for t in (5, 10, 20)):
        value = 20 * 2e-4 / eps + 100 / steps
        without = tuple(value + common + rng.normal(0, 0.1, 10))
        settings = {"model.sampler.step_size": eps, "model.sampler.steps": steps}
        made.append(Row(number, "complete", settings, value, 3.0, 1.7, 898, 10.0 * steps, 1.0, without, "same"))
    return [*made, Row(9, "failed", settings, message="it crashed")]


@pytest.fixture
def found():
    return Results("eps", "test/fid", False, ["model.sampler.step_size", "model.sampler.steps"], rows())


def test_the_best_comes_first_and_differences_are_paired(found):
    best, second = found.ranked[:2]
    assert (best.number, best.value) == (8, 15.0)
    gap, error = difference(second, best)
    assert gap == second.value - best.value and error < 0.6 < math.hypot(second.error, best.error)
    other = Row(0, "complete", {}, 20.0, 3.0, jackknife=second.jackknife, paired="other")
    assert difference(other, best)[1] == pytest.approx(math.hypot(3, 3))


def test_trials_of_several_seeds_are_paired_by_seed():
    """The difference of the means, and the error of independent seeds, each from its jackknife values."""
    rng, values = np.random.default_rng(0), {"one": [5.0, 9.0, 7.0], "other": [6.0, 10.5, 7.5]}
    tenths = {name: [v + rng.normal(0, 0.1, 10) for v in of_seeds] for name, of_seeds in values.items()}
    made = {}
    for name, of_seeds in values.items():
        records = [record(value=v, seed=k, jackknife=list(tenths[name][k]), denoised=True) for k, v in enumerate(of_seeds)]
        noisy = [record(value=99.0, seed=0, jackknife=[1.0, 2.0], denoised=False)]
        without, common = leave_one_out([*records, *noisy], records[0].metric)
        earlier = [record(value=50.0, seed=0, jackknife=[50.0, 60.0], step=10)]
        assert leave_one_out([*earlier, *records], records[0].metric) == leave_one_out(records, records[0].metric)
        made[name] = Row(0, "complete", {}, statistics.mean(of_seeds), 9.0, jackknife=without, paired=common)
        assert leave_one_out(records[:1], records[0].metric)[0] == tuple(tenths[name][0])
    gap, error = difference(made["other"], made["one"])
    of_seeds = [jackknife_error(tenths["other"][k] - tenths["one"][k]) for k in range(3)]
    assert gap == pytest.approx(1.0) and error == pytest.approx(math.hypot(*of_seeds) / 3, rel=0.15)
    assert leave_one_out([], "fid") == ((), "")


@pytest.mark.parametrize("seeds", [1, 3])
def test_two_standard_errors_of_a_difference_cover_the_truth(seeds):
    """Trials that draw from the same random numbers: the difference of their means, over 300 repeats."""
    rng, inside, made = np.random.default_rng(0), 0, record()
    for _ in range(300):
        common = rng.normal(0, 1, (seeds, 200))
        rows = []
        for truth in (2.0, 2.5):
            x = truth + common + 0.3 * rng.normal(0, 1, (seeds, 200))
            without = [(one.sum() - one.reshape(10, -1).sum(1)) / 180 for one in x]
            records = [replace(made, value=one.mean(), seed=k, jackknife=list(without[k])) for k, one in enumerate(x)]
            left, same = leave_one_out(records, records[0].metric)
            rows.append(Row(0, "complete", {}, x.mean(), 1.0, jackknife=left, paired=same))
        gap, error = difference(rows[1], rows[0])
        inside += abs(gap - 0.5) <= 2 * error
    assert 0.9 <= inside / 300 <= 0.99


def test_no_trial_dominates_the_pareto_front(found):
    front = found.front()
    assert [row.nfe for row in front] == [50, 100, 200] and [row.number for row in front] == [6, 7, 8]
    for row in found.ranked:
        beaten = any(o.nfe <= row.nfe and o.value <= row.value and o is not row for o in found.ranked)
        assert beaten == (row not in front)


def test_tables_contain_all_trials(found):
    found.importances_of, found.again = {found.metric: {"model.sampler.steps": 0.75}}, "python -m lightning_score test"
    text = markdown(found)
    for part in ("| 8 | 0.0004 | 20 | 15 | 6 |", "failed: it crashed", "steps 75%", "trial 6 (30 at 50)", "score test"):
        assert part in text, text
    lines = found.csv().splitlines()
    assert lines[0].startswith("trial,state,model.sampler.step_size,model.sampler.steps,test/fid,error,floor,n,nfe")
    assert len(lines) == 11 and "it crashed" in lines[-1]


def test_figures_are_drawn(found, tmp_path):
    from PIL import Image

    files = draw(found, tmp_path)
    colored = charts(found, colored=True)[PARETO].lines
    assert [line.label for line in colored] == [f"step_size={eps}" for eps in (0.0001, 0.0002, 0.0004)]
    assert {file.name for file in files} == {"model_sampler_step_size.png", "model_sampler_steps.png", "pareto.png"}
    assert all(np.asarray(Image.open(file)).std() > 10 for file in files)
    assert draw(Results("x", "m", False, ["a"], rows()[:1]), tmp_path) == []
