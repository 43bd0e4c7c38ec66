"""The data of the figures of runs: thinned curves, what losses depend on, colors."""

import math
import random
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from run_folders import config, run_folder
from scipy import stats

from lightning_score.report import figures
from lightning_score.report.finding import Reader
from lightning_score.report.reading import Curve, Run, read_run

MOST = {name: few for name, (few, _) in figures.MOST.items()}


def thinned(values, most=101):
    """A curve of these values at steps 0, 1, ..., with at most so many points."""
    return figures.thinned(Run(Path(), "a"), Curve(list(range(len(values))), [0.0] * len(values), values), most)


class TestThinning:
    def test_a_short_curve_stays_as_it_is(self):
        found = thinned([1.0, math.nan, 3.0])
        assert found["values"] == [1, None, 3] and found["steps"] == [0, 1, 2] and "means" not in found

    @pytest.mark.parametrize("seed", range(3))
    def test_ends_and_extremes_stay(self, seed):
        draws = random.Random(seed)
        values = [draws.gauss(0, 1) for _ in range(10_000)]
        values[draws.randrange(10_000)] = 99.0
        found = thinned(values)
        assert len(found["steps"]) <= 101 and found["steps"] == sorted(found["steps"])
        assert found["steps"][0] == 0 and found["steps"][-1] == 9999
        assert max(found["values"]) == 99 and min(found["values"]) == pytest.approx(min(values), rel=1e-4)
        assert all(found["values"][k] == pytest.approx(values[step], rel=1e-4) for k, step in enumerate(found["steps"]))
        assert max(b - a for a, b in pairwise(found["steps"])) < 2 * 10_000 / 33 + 1

    def test_a_value_that_is_not_finite_stays_a_gap(self):
        found = thinned([1.0] * 500 + [math.nan] + [1.0] * 500 + [math.inf] + [2.0] * 500)
        assert [step for step, value in zip(found["steps"], found["values"], strict=True) if value is None] == [500, 1001]
        assert set(thinned([math.nan] * 1000)["values"]) == {None}

    def test_the_means_are_those_of_all_values(self):
        """A spike on each hundredth step is an extreme of every part, but only a hundredth of its mean."""
        values = [100.0 if k % 100 == 50 else 1.0 for k in range(10_000)]
        found = thinned(values)
        assert {1, 100} == set(found["values"])
        assert np.mean(found["means"]) == pytest.approx(1.99, abs=0.3) and max(found["means"]) < 4

    @pytest.mark.slow
    def test_levels_keep_their_common_steps(self, tmp_path):
        run = read_run(run_folder(tmp_path / "a", validations=300), tmp_path)
        found = figures.curves(run, MOST)
        steps = {tuple(curve["steps"]) for name, curve in found.items() if figures.LEVEL.match(name)}
        assert len(steps) == 1 and len(*steps) == 100

    def test_many_runs_have_fewer_points_each(self, tmp_path):
        run = read_run(run_folder(tmp_path / "a", points=700), tmp_path)
        alone, many = figures.data_of([run])[0], figures.data_of([run] * 1000)[0]
        assert 300 < len(alone["curves"]["train/loss"]["steps"]) <= 600
        assert 30 < len(many["curves"]["train/loss"]["steps"]) <= 60
        assert len(alone["langevin"]) == 4 and [each["step"] for each in many["langevin"]] == [1000]


class TestRuns:
    def test_epochs(self, tmp_path):
        folder = run_folder(tmp_path / "a")
        (folder / "metrics.csv").write_text("epoch,step,train/loss\n0,50,3\n0,100,2\n1,150,2\n3,400,1\n")
        run = read_run(folder, tmp_path)
        assert figures.steps_per_epoch(run) == 100 and "epoch" not in figures.curves(run, MOST)
        assert figures.steps_per_epoch(Run(folder, "b")) is None

    def test_losses_depend_on_the_objective(self, tmp_path):
        for name, weighting in (("a", "SigmaSquared"), ("b", "SigmaSquared"), ("c", "EDMWeighting")):
            objective = {"class_path": "x.DenoisingScoreMatching", "init_args": {"weighting": weighting, "mean": True}}
            config(run_folder(tmp_path / name), model={"objective": objective})
        runs = Reader(tmp_path).look().runs
        found = dict(zip([run.name for run in runs], figures.objectives(runs), strict=True))
        assert found == {"a": "SigmaSquared", "b": "SigmaSquared", "c": "EDMWeighting"}
        assert figures.objectives(runs[:1]) == [""]  # nothing to tell apart

    def test_langevin_is_that_of_the_file(self, tmp_path):
        run = read_run(run_folder(tmp_path / "a"), tmp_path)
        stages = figures.langevin(run, MOST)
        assert [each["step"] for each in stages] == [1000, 750, 500, 250] and stages[0]["sigma"] == [1, 0.2, 0.03]
        assert stages[0]["snr"] == pytest.approx(run.langevin[-1]["snr"], rel=1e-4)
        assert figures.langevin(Run(tmp_path, "b"), MOST) == []

    def test_quantiles(self):
        assert figures.student(4) == pytest.approx(stats.t.ppf(0.975, [1, 2, 3]), abs=1e-4)


def _linear(color):
    """Linear RGB in 0..1."""
    values = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _oklab(linear):
    """Coordinates whose distances are those that are seen (Ottosson 2020)."""
    cones = np.array([[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]])
    lab = np.array([[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]])
    return lab @ np.cbrt(cones @ np.clip(linear, 0, 1))


class TestColors:
    @pytest.mark.parametrize("page", ["#ffffff", "#14171c"])
    def test_lines_contrast_with_both_pages(self, page):
        """3:1, as WCAG 2.2 asks for (1.4.11)."""
        luminance = [float(_linear(color) @ [0.2126, 0.7152, 0.0722]) + 0.05 for color in (*figures.COLORS, page)]
        assert min(max(each, luminance[-1]) / min(each, luminance[-1]) for each in luminance[:-1]) >= 3

    @pytest.mark.parametrize(
        ("seen", "least"),
        [
            (np.eye(3), 0.15),
            ([[0.15229, 1.05258, -0.20487], [0.11450, 0.78628, 0.09922], [-0.00388, -0.04812, 1.05200]], 0.09),
            ([[0.36732, 0.86065, -0.22797], [0.28009, 0.67250, 0.04741], [-0.01182, 0.04294, 0.96888]], 0.09),
        ],
        ids=["normal", "protanopia", "deuteranopia"],
    )
    def test_no_two_look_alike(self, seen, least):
        """Also without one kind of cones (Machado et al. 2009); a just noticeable difference is 0.02."""
        places = [_oklab(np.asarray(seen) @ _linear(color)) for color in figures.COLORS]
        assert min(np.linalg.norm(one - other) for one, other in combinations(places, 2)) >= least
