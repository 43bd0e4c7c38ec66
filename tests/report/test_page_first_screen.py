"""The first screen and the tables of the page in a real browser: the best run, its certainty, states, downloads, access."""

import csv
import random
import time
from dataclasses import replace

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import Watched, browser_fixture  # noqa: F401
from run_folders import config, measured, picture, record, run_folder, status

from lightning_score.cli import run
from lightning_score.metrics import jackknife_error

LONG = "a_name_without_any_place_to_break_it_" * 4
STATES = {"running": "▶", "failed": "✕", "interrupted": "‖"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Runs with paired tests, of which `best` is ahead of `second`, one of another measure, and one in each state."""
    root = tmp_path_factory.mktemp("runs")
    draws = random.Random(0)
    common = [draws.gauss(0, 0.1) for _ in range(10)]
    for k, (name, value, lr) in enumerate([("best", 2.0, 1e-3), ("second", 2.5, 0.1 + 0.2), (LONG, 4.0, 1e-3)]):
        parts = [value + each + draws.gauss(0, 0.01) for each in common]
        error = jackknife_error(parts)
        one = record(value=value, jackknife=parts, error=error, floor=1.0, floor_kind="perfect")
        measured(run_folder(root / name, lr=lr, seed=k, best=3 - k, pictures=("samples",)), one,
                 record(metric="recall_digits_898", value=0.1 * k, error=0.01))  # fmt: skip
    for k, state in enumerate(STATES):
        folder = run_folder(root / state, seed=10 + k, validations=1, pictures=())
        (folder / "evaluations.jsonl").unlink()
        status(folder, state=state, host="elsewhere", message="no room", started=time.time() - 9000, seconds=10.0)
    (root / "empty").mkdir()
    config(root / "empty")
    picture(root / "best/samples/step_0002000.png", 2000)
    run_folder(root / "archived", seed=30, pictures=())
    (root / "archived/tags.json").write_text('{"tags": [], "notes": "", "archived": true}')
    return root


def opened(browser, root, **options):
    assert run(["report", str(root)]) == 0
    watched = Watched(browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options}))
    watched.open((root / "report.html").as_uri())
    return watched


@pytest.fixture(scope="module")
def page(browser, root):
    """The page of the runs, which all tests share; it must end without errors."""
    watched = opened(browser, root, accept_downloads=True)
    yield watched.page
    assert watched.errors == []
    watched.page.close()


def titles(page, table="#runs"):
    return [each.inner_text().replace("\n", " ").strip() for each in page.query_selector_all(f"{table} thead th")]


def cells(page, title, table="#runs"):
    j = titles(page, table).index(title)
    return [row.query_selector_all("td")[j].inner_text().strip() for row in page.query_selector_all(f"{table} tbody tr")]


def best(page):
    return page.inner_text("#best").replace("\n", " ")


def test_it_opens_with_the_best_run_and_loads_figures_later(page):
    """The values are those of `root`: paired samples, so that 0.5 is clear although each error is 0.2 to 0.4."""
    text = best(page)
    assert page.inner_text(".winner button") == "best" and "fid_digits_898, test" in text
    assert "clearly ahead of second by 0.50" in text and "(paired samples)" in text
    assert "not reached, that of a perfect model, 1: above it by 1.0" in text
    assert "model.optimizer.lr 0.001, not 0.3" in text and "0.30000000000000004" not in page.inner_text("#runs")
    assert page.get_attribute(".best img", "alt") == "the last samples of best: step 2000, NFE 201"
    assert page.evaluate("document.querySelector('.best img').naturalWidth") > 100
    assert page.evaluate("performance.getEntriesByName('first screen').length") == 1


@pytest.mark.slow
def test_another_measure_ranks_anew_and_never_mixes(page):
    values = [float(text.split()[0]) for text in cells(page, "fid_digits_898, test") if text]
    assert sorted(values) == [2.0, 2.5, 4.0]  # not those of the validations
    page.focus("#best select")
    page.select_option("#best select", "recall_digits_898, test")
    assert page.inner_text(".winner button") == LONG and "0.200 ± 0.020" in best(page)
    assert page.evaluate("document.activeElement.closest('section').id") == "best"  # the focus stays on the choice
    assert titles(page)[2] == "recall_digits_898, test"
    assert sorted(filter(None, cells(page, "recall_digits_898, test"))) == [
        "0.000 ± 0.020",
        "0.100 ± 0.020",
        "0.200 ± 0.020",
    ]
    page.select_option("#best select", "fid_digits_898, test")
    page.uncheck("#runs input[aria-label='show best in the figures']")
    assert page.inner_text(".winner button") == "second"
    page.check("#runs input[aria-label='show best in the figures']")
    assert page.inner_text(".winner button") == "best"


@pytest.mark.slow
def test_states_have_a_sign_and_tests_a_row(page):
    states = dict(zip(cells(page, "run"), cells(page, "state"), strict=True))
    assert {name: states[name] for name in STATES} == {name: f"{sign} {name}" for name, sign in STATES.items()}
    assert states["empty"] == "○ empty" and states["best"] == "✓ finished"
    assert dict(zip(cells(page, "run"), cells(page, "duration"), strict=True))["failed"] == "10 s"
    assert len(cells(page, "run", "#tests")) == 3 and "recall_digits_898" in titles(page, "#tests")
    assert "3 failed" not in page.inner_text("#about") and "1 failed" in page.inner_text("#about")


@pytest.mark.slow
def test_archived_runs_are_behind_a_switch(page):
    assert "archived" not in cells(page, "run")
    page.check("#archived")
    assert "archived" in cells(page, "run")
    page.uncheck("#archived")
    assert "archived" not in cells(page, "run")


def test_a_table_is_downloaded_with_all_columns_and_digits(page, tmp_path):
    page.fill("#runs .dt-search input", "second")
    page.wait_for_function("document.querySelectorAll('#runs tbody tr').length === 1")
    with page.expect_download() as download:
        page.click("#runs button:has-text('CSV')")
    page.fill("#runs .dt-search input", "")
    download.value.save_as(tmp_path / "runs.csv")
    (row,) = csv.DictReader((tmp_path / "runs.csv").open(encoding="utf-8-sig"))
    assert row["run"] == "second" and float(row["fid_digits_898, test"]) == 2.5 and 0.2 < float(row["± 2 s.e."]) < 0.9
    assert float(row["hours"]) == 1 and float(row["model.optimizer.lr"]) == pytest.approx(0.3)


def test_hidden_columns_have_a_cue_and_the_name_stays(page):
    frame = "#runs .dt-layout-table > .dt-layout-cell"
    page.set_viewport_size({"width": 390, "height": 900})
    page.wait_for_selector(f"{frame}.more")
    left = "document.querySelector('#runs tbody tr td').getBoundingClientRect().left"
    before = page.evaluate(left)
    seen = page.evaluate("document.querySelectorAll('#runs thead th')[2].getBoundingClientRect().right")
    assert seen <= 390  # the run, its state and the main value
    page.focus(frame)
    page.evaluate(f"document.querySelector('{frame}').scrollLeft = 1e6")
    page.wait_for_selector(f"{frame}:not(.more)")
    assert page.evaluate(left) == before
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate(f"document.querySelector('{frame}').scrollLeft = 0")
    page.set_viewport_size({"width": 1280, "height": 900})


@pytest.mark.slow
def test_the_keyboard_reaches_everything(page):
    assert page.evaluate("document.querySelector('a, button, input').className") == "skip"  # the first stop of Tab
    page.focus(".skip")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash.startsWith('#best')")
    page.focus(".winner button")
    page.keyboard.press("Enter")
    assert page.is_visible("#detail") and page.inner_text("#detail-name") == "best"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.textContent") == "best"
    page.focus("#runs thead th:nth-child(3) .dt-column-order")
    page.keyboard.press("Enter")
    found = [float(text.split()[0]) for text in cells(page, "fid_digits_898, test") if text]
    assert found == sorted(found) and len(found) == 3


@pytest.mark.parametrize("dark", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_axe_finds_nothing(page, dark):
    if page.evaluate("document.documentElement.classList.contains('dark')") != dark:
        page.click("#theme")
    for chart in page.query_selector_all(".chart"):
        chart.scroll_into_view_if_needed()
    page.wait_for_selector("#curves .main-svg")
    found = Axe().run(page).response["violations"]
    assert [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found] == []
    page.click(".winner button")
    found = Axe().run(page, "#detail").response["violations"]
    assert [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found] == []
    page.keyboard.press("Escape")


def nothing(root):
    return "There are no runs in"


def one_alone(root):
    run_folder(root / "alone")
    return "It is the only run with this measure."


def all_failed(root):
    for k in range(2):
        folder = run_folder(root / f"r{k}", seed=k)
        (folder / "evaluations.jsonl").unlink()
        status(folder, state="failed", message="no room on the disk")
    return "No run has been measured yet"


def without_errors(root):
    for k in range(2):
        (run_folder(root / f"r{k}", seed=k) / "evaluations.jsonl").unlink()
        measured(root / f"r{k}", replace(record(value=2.0 + k), error=None, floor=None))
    return "ahead, without known errors of r1 by 1"


@pytest.mark.slow
@pytest.mark.parametrize("make", [nothing, one_alone, all_failed, without_errors])
def test_few_runs_or_none(browser, tmp_path, make):
    expected = make(tmp_path)
    watched = opened(browser, tmp_path)
    assert expected in best(watched.page)
    if make is all_failed:
        assert "failed, no room on the disk" in best(watched.page)
    assert watched.errors == []
    watched.page.close()
