"""The section of sweeps in a real browser: what its figures show, and that a selection holds in all of them."""

import csv
import math
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from browser import EXECUTABLE, Watched, chromium
from run_folders import picture, run_folder, status

from lightning_score.cli import run
from lightning_score.sweep.fronts import front_of
from lightning_score.sweep.objectives import Objective
from lightning_score.sweep.results import Results, Row

pytestmark = pytest.mark.slow

FID, SPEED = "test/fid_digits_898", Objective("test/speed", True)
STEP, STEPS, PREDICTOR = "model.sampler.step_size", "model.sampler.steps", "model.sampler.predictor"
FILE = """method: random
metric: {name: test/fid_digits_898}
parameters: {model.sampler.steps: {values: [1, 2]}}
command: ['${env}', '${interpreter}', -m, lightning_score, test, --ckpt_path=a.ckpt, '${args}']
"""
PREDICTORS = ("Heun", "lightning_score.DDIM")
BAD = '<img src=x onerror="document.title=666">'


def write(folder, metric, rows, text="", objectives=()):
    """The folder of a sweep."""
    names = sorted({name for row in rows for name in row.settings})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trials.csv").write_text(Results(folder.name, metric, False, names, rows, objectives=objectives).csv())
    (folder / "sweep.yaml").write_text(text)


def trials(folder, n, shift=0.0, speed=False):
    """Complete trials of random settings, the value depends on the step size most."""
    draws = random.Random(1)
    rows = []
    for k in range(n):
        settings = {
            STEP: 10 ** draws.uniform(-6, -3),
            STEPS: draws.randint(2, 60),
            PREDICTOR: PREDICTORS[k % 2],
        }
        value = shift + 1.7 + abs(math.log10(settings[STEP] / 2e-5)) * 3 + 8 / settings[STEPS]
        values = {FID: value, **({SPEED.name: 100 / settings[STEPS]} if speed else {})}
        place = str(folder / f"trials/{k:04d}")
        rest = {"folder": place, "worker": f"here:{k % 2}", "floor_kind": "perfect", "started": 1.79e9 + 5 * (k // 2)}
        error, nfe = 0.1 + 0.01 * k, 10.0 * settings[STEPS] + 1
        rows.append(Row(k, "complete", settings, value, error, 1.4, 898, nfe, 5.0, values=values, **rest))
    return rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Sweeps with all states, of the same measure, of two objectives, of one trial, of failures, and of training seeds."""
    root = tmp_path_factory.mktemp("sweeps")
    rows = trials(root / "eps", 40)
    unknown = {"value": math.nan, "error": math.nan, "nfe": math.nan, "values": {}}
    rows += [
        Row(40, "failed", rows[0].settings, message=f"exit code 1: {BAD} {'long ' * 60}the end", **unknown),
        Row(41, "stopped early", rows[1].settings, 12.0, values={FID: 12.0}),
        Row(42, "waiting", {}, **unknown),
    ]
    write(root / "eps", FID, rows, FILE)
    best = min(rows[:40], key=lambda row: row.value)
    picture(root / f"eps/trials/{best.number:04d}/samples/step_0000010.png", 10)
    (root / f"eps/trials/{best.number:04d}.log").write_text("first\nthe last line\n")
    write(root / "eps_again", FID, trials(root / "eps_again", 12, 1.0), "metric: {name: test/fid_digits_898}\n")
    goals = f"metrics: [{{name: {FID}}}, {{name: {SPEED.name}, goal: maximize}}]\n"
    write(root / "two", FID, trials(root / "two", 30, speed=True), goals, (Objective(FID), SPEED))
    write(root / "one", FID, trials(root / "one", 1), "metric: {name: test/fid_digits_898}\n")
    write(root / "broken", FID, [Row(k, "failed", {STEPS: k}, message="no") for k in range(3)])
    seeds = []
    for k in range(6):
        folder = root / f"train/trials/{k:04d}"
        run_folder(folder, seed=k)
        if k == 5:
            status(folder, state="stopped early")
        state, value = ("stopped early", math.nan) if k == 5 else ("complete", 2.0 + k)
        settings = {"model.optimizer.lr": 0.1 ** (k // 3), "seed_everything": k % 3}
        rest = {"folder": str(folder), "started": 1.79e9 + k, "seconds": 1.0, "values": {"val/loss": value}}
        seeds.append(Row(k, state, settings, value, **rest))
    write(root / "train", "val/loss", seeds, "metric: {name: val/loss}\n")
    assert run(["report", str(root), "--output", str(root / "page.html")]) == 0
    return root, {"eps": rows, "best": best}


@pytest.fixture(scope="module")
def page_of_sweeps(made):
    assert EXECUTABLE, "these tests need a browser: apt-get install chromium"
    with chromium() as browser:
        found = Watched(browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark"))
        found.open((made[0] / "page.html").as_uri())
        yield found


@pytest.fixture
def watched(page_of_sweeps):
    """The page, which the tests leave with other choices; without an open dialog or a selection."""
    page_of_sweeps.page.keyboard.press("Escape")
    if clear := page_of_sweeps.page.query_selector("#selection button"):
        clear.click()
    yield page_of_sweeps
    assert page_of_sweeps.errors == [] and page_of_sweeps.page.title() != "666"


TRIALS = "#sweeps .table >> nth=1 >> "
FIGURE = "document.querySelector(`[data-key='sweep ${key}']`)"


def show(page, name):
    """Opens a sweep and draws all its figures."""
    if page.inner_text("#sweep") != name:
        page.click(f"#sweeps tbody button.run:text-is('{name}')")
    draw(page)


def draw(page):
    for chart in page.query_selector_all("#sweeps .chart"):
        chart.scroll_into_view_if_needed()
        page.wait_for_function("chart => chart.dataset.drawn && chart.querySelector('.main-svg')", arg=chart)


def data(page, key):
    """The traces of a figure by their names."""
    found = page.evaluate(f"key => {FIGURE}.data.map(trace => ({{...trace, text: null}}))", key)
    return {trace.get("name", trace.get("type")): trace for trace in found}


def choose(page, key, label, value):
    page.select_option(f"figure:has([data-key='sweep {key}']) label:has-text('{label}') select", value)


def selected(page):
    """The selected trials by each figure, and those that are ticked in the table."""
    figures = page.evaluate("""() => Object.fromEntries([...document.querySelectorAll('#sweeps .chart')].map(chart => {
        const found = chart.data.flatMap(trace => (trace.selectedpoints ?? []).map(i => trace.customdata[i]));
        return [chart.dataset.key, [...new Set(found)].sort((a, b) => a - b)]; }))""")
    ticked = page.evaluate("[...document.querySelectorAll('#sweeps input:checked')].map(box => box.ariaLabel)")
    return {key.removeprefix("sweep "): numbers for key, numbers in figures.items()}, ticked


def test_the_list_of_sweeps(watched):
    page = watched.page
    rows = page.evaluate("""[...document.querySelector('#sweeps .table').querySelectorAll('tbody tr')].map(
        row => [...row.cells].map(cell => cell.innerText.trim()))""")
    found = {row[0]: row[1:] for row in rows}
    assert set(found) == {"eps", "eps_again", "two", "one", "broken", "train"}
    assert found["eps"][:3] == ["interrupted", "42 of 43", FID] and found["train"][1] == "2 of 2"
    assert found["broken"][0] == "finished" and found["broken"][3] == ""
    assert found["two"][2] == f"{FID}, {SPEED.name}"


@pytest.mark.slow
def test_the_history_has_the_best_so_far_errors_and_failures(watched, made):
    page, rows = watched.page, made[1]["eps"][:40]
    show(page, "eps")
    found = data(page, "history")
    assert found["best so far"]["y"][:40] == pytest.approx(np.minimum.accumulate([row.value for row in rows]), rel=1e-4)
    assert found["best so far"]["x"] == [*range(40), 42]
    assert found["complete"]["error_y"]["array"] == pytest.approx([2 * row.error for row in rows], rel=1e-4)
    assert found["failed"]["customdata"] == [40] and found["stopped early"]["y"] == [12]
    assert found["perfect model"]["y"] == [1.4, 1.4]


@pytest.mark.slow
def test_a_selection_holds_in_all_figures_and_the_table(watched, made):
    page, best = watched.page, made[1]["best"].number
    show(page, "eps")
    page.check(f"#sweeps input[aria-label='select trial {best}']")
    draw(page)
    figures, ticked = selected(page)
    assert {key for key, numbers in figures.items() if numbers == [best]} >= {"history", "front", "slice", "map", "timeline"}
    (parallel,) = data(page, "parallel").values()
    assert np.ravel(parallel["dimensions"][0]["constraintrange"]) == pytest.approx([best - 0.4, best + 0.4])
    assert ticked == [f"select trial {best}"] and "1 trial selected" in page.inner_text("#selection")
    page.click("#selection button")
    draw(page)
    figures, ticked = selected(page)
    assert not any(figures.values()) and ticked == []


def test_a_click_on_a_point_selects_its_trial_and_shows_its_row(watched, made):
    """Of the worst trial, whose row is on another page of the table."""
    page = watched.page
    worst = max(made[1]["eps"][:40], key=lambda row: row.value).number
    show(page, "eps")
    page.locator("[data-key='sweep history']").scroll_into_view_if_needed()
    points = page.query_selector_all("[data-key='sweep history'] .scatterlayer .trace >> nth=0 >> .points path")
    box = points[worst].bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#selection:has-text('1 trial selected')")
    assert selected(page)[1] == [f"select trial {worst}"]
    page.click("#selection button")


@pytest.mark.slow
def test_dragging_along_an_axis_selects_trials(watched, made):
    page, rows = watched.page, made[1]["eps"][:40]
    show(page, "eps")
    page.locator("[data-key='sweep parallel']").scroll_into_view_if_needed()
    axes = page.query_selector_all("[data-key='sweep parallel'] .axis-brush")
    titles = [dimension["label"] for dimension in data(page, "parallel")["parcoords"]["dimensions"]]
    box = axes[titles.index("step_size")].bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + 20, steps=3)
    page.mouse.move(x, box["y"] + 0.95 * box["height"], steps=5)
    page.mouse.up()
    page.wait_for_selector("#selection:has-text('selected')")
    count = int(page.inner_text("#selection").split()[0])
    assert 3 < count < 37
    draw(page)
    figures, _ = selected(page)
    order = [row.number for row in sorted(rows, key=lambda row: row.settings[STEP])]
    places = sorted(map(order.index, figures["history"]))
    assert figures["timeline"] == figures["history"] and len(places) == count
    assert places == [*range(places[0], places[-1] + 1)] and places[-1] < 30  # neighbors in the lower half of the axis
    page.click("#selection button")


@pytest.mark.slow
def test_the_best_trial_has_the_strongest_color_in_both_themes(watched, made):
    page = watched.page
    show(page, "eps")
    for _ in range(2):
        draw(page)
        dark = page.evaluate("document.documentElement.classList.contains('dark')")
        (lines,) = data(page, "parallel").values()
        assert lines["numbers"][0] == made[1]["best"].number and lines["line"]["color"] == list(range(40))
        contrasts = [contrast(color, "#14171c" if dark else "#ffffff") for _, color in lines["line"]["colorscale"]]
        assert contrasts == sorted(contrasts, reverse=True) and contrasts[0] > 10 and contrasts[-1] > 2.9
        page.click("#theme")


def contrast(one, other):
    """The contrast of two colors (WCAG 2)."""
    levels = []
    for color in (one, other):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        levels.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(levels) / min(levels)


@pytest.mark.slow
def test_slices_and_maps_of_chosen_parameters(watched, made):
    page, rows = watched.page, made[1]["eps"][:40]
    show(page, "eps")
    choose(page, "slice", "Parameter", PREDICTOR)
    found = data(page, "slice")["trials"]
    order = sorted(PREDICTORS)
    assert [round(y) for y in found["y"]] == [order.index(rows[n].settings[PREDICTOR]) for n in found["customdata"]]
    choose(page, "map", "Across", STEP)
    choose(page, "map", "Up", STEPS)
    contours = data(page, "map")
    places = [rows[n].settings[STEP] for n in contours["trials"]["customdata"]]
    assert contours["trials"]["x"] == pytest.approx(places, rel=1e-4)
    assert next(iter(contours.values()))["type"] == "contour"
    layout = page.evaluate(f"key => {FIGURE}.layout", "map")
    assert layout["xaxis"]["type"] == layout["yaxis"]["type"] == "log"
    choose(page, "map", "Up", PREDICTOR)
    (heat,) = data(page, "map").values()
    assert heat["type"] == "heatmap"
    best = [min(row.value for row in rows if row.settings[PREDICTOR] == name) for name in order]
    assert [min(filter(None, line)) for line in heat["customdata"]] == pytest.approx(best, rel=1e-4)


def test_the_front_of_two_objectives_is_that_of_python(watched, made):
    page = watched.page
    rows = trials(made[0], 30, speed=True)
    show(page, "two")
    choose(page, "front", "Across", SPEED.name)
    choose(page, "front", "Up", FID)
    rows = [
        replace(row, measures={FID: {"value": row.value}, SPEED.name: {"value": row.values[SPEED.name]}}) for row in rows
    ]
    wanted = sorted((row.values[SPEED.name], row.value) for row in front_of(rows, (Objective(FID), SPEED)))
    found = data(page, "front")["Pareto front"]
    assert np.array(sorted(zip(found["x"], found["y"], strict=True))) == pytest.approx(np.array(wanted), rel=1e-4)
    assert found["x"] == sorted(found["x"], reverse=True)  # the fastest first, and then better and better
    label = page.get_attribute("[data-key='sweep front']", "aria-label")
    assert f"has {len(wanted)} trials: trial" in label
    choose(page, "history", "Of", "hypervolume")
    volumes = data(page, "history")["hypervolume"]["y"]
    assert volumes == sorted(volumes) and volumes[-1] > 0


@pytest.mark.slow
def test_another_sweep_of_the_measure_is_overlaid(watched):
    page = watched.page
    show(page, "eps")
    assert page.is_disabled("input[aria-label='overlay train']") and page.is_disabled("input[aria-label='overlay eps']")
    page.check("input[aria-label='overlay eps_again']")
    draw(page)
    found = data(page, "history")
    assert {"eps: best so far", "eps_again: best so far"} <= set(found)
    assert min(found["eps_again: best so far"]["y"]) > min(found["eps: best so far"]["y"])
    assert {"eps: Pareto front", "eps_again: Pareto front"} <= set(data(page, "front"))
    page.uncheck("input[aria-label='overlay eps_again']")


@pytest.mark.slow
def test_a_trial_opens_with_its_command_log_and_picture(watched, made):
    page, best = watched.page, made[1]["best"].number
    show(page, "eps")
    page.click(f"#sweeps tr:has([aria-label='select trial {best}']) button.run")
    text = page.inner_text("#detail")
    assert "python -m lightning_score test" in text and "--model.sampler.steps=" in text and "the last line" in text
    assert page.wait_for_function("document.querySelector('#detail img').naturalWidth > 0")
    page.keyboard.press("Escape")


def test_failed_and_waiting_trials(watched):
    page = watched.page
    show(page, "eps")
    page.fill(TRIALS + "input[type=search]", "exit code")
    row = page.query_selector(TRIALS + "tbody tr")
    assert len(row.query_selector_all("td")[-1].inner_text()) < 60
    row.query_selector("button.run").click()
    text = page.inner_text("#detail")
    assert BAD in text and "the end" in text and page.query_selector("img[src=x]") is None
    page.keyboard.press("Escape")
    page.fill(TRIALS + "input[type=search]", "waiting")
    cells = [cell.inner_text().strip() for cell in page.query_selector_all(TRIALS + "tbody td")]
    assert cells[0] == "42" and cells[1] == "waiting" and set(cells[2:]) == {""}
    page.fill(TRIALS + "input[type=search]", "")


def test_training_seeds_are_one_row_with_the_curves_of_all(watched):
    page = watched.page
    show(page, "train")
    history = data(page, "history")
    assert history["complete"]["y"] == pytest.approx([3.0])
    assert history["complete"]["error_y"]["array"] == pytest.approx([4.30265 / 3**0.5], rel=1e-4)  # t(0.975, 2) s / sqrt(3)
    lines = data(page, "learning")
    assert set(lines) == {f"trial {k}" for k in range(6)}
    assert lines["trial 5"]["marker"]["symbol"][-1] == "x" and "x" not in lines["trial 4"]["marker"]["symbol"]
    assert sum(len(trace["x"]) for trace in data(page, "timeline").values()) == 6
    page.click(TRIALS + "tbody button.run >> nth=0")
    assert page.inner_text("#detail").count("Seed ") == 3
    page.click("#detail button:has-text('Its run: train/trials/0000')")
    assert page.inner_text("#detail-name") == "train/trials/0000"
    page.wait_for_function("location.hash.includes('detail=train/trials/0000')")
    page.keyboard.press("Escape")


def test_a_trial_shows_nothing_of_the_run_before_it(watched):
    page = watched.page
    page.click("#runs button.run >> nth=0")
    page.evaluate("document.querySelector('#detail-notes').textContent = 'of the run'")
    page.keyboard.press("Escape")
    show(page, "eps")
    page.click(TRIALS + "tbody button.run >> nth=0")
    assert page.inner_text("#detail-notes") == "" and "trial" in page.inner_text("#detail-name")
    page.keyboard.press("Escape")


def test_the_downloaded_slice_has_choices_not_places(watched, made):
    page, rows = watched.page, made[1]["eps"][:40]
    show(page, "eps")
    choose(page, "slice", "Parameter", PREDICTOR)
    with page.expect_download() as download:
        page.click("figure:has([data-key='sweep slice']) button:text-is('CSV')")
    lines = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    assert {line["trial"]: line[PREDICTOR] for line in lines} == {str(row.number): row.settings[PREDICTOR] for row in rows}


@pytest.mark.parametrize("name", ["one", "broken"])
@pytest.mark.slow
def test_few_or_no_values_are_no_error(watched, name):
    show(watched.page, name)
    assert ("No trial has a value yet" in watched.page.inner_text("#sweeps")) == (name == "broken")
    assert watched.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 768, 1920])
@pytest.mark.parametrize("name", ["eps", "two"])
def test_it_fits_and_no_titles_overlap(watched, width, name):
    page = watched.page
    page.set_viewport_size({"width": width, "height": 900})
    show(page, name)
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    titles = page.evaluate("""[...document.querySelectorAll("[data-key='sweep parallel'] .axis-title")].map(title => {
        const {left, right} = title.getBoundingClientRect(); return [left, right]; })""")
    assert len(titles) > 3 and all(one[1] <= other[0] for one, other in pairwise(titles))
    page.set_viewport_size({"width": 1280, "height": 900})
