"""The report in a real browser, of runs that really ran: figures are drawn, tables sort, the slider moves."""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from browser import Watched, browser_fixture  # noqa: F401
from run_folders import config, record, run_folder, status

from lightning_score.cli import run
from lightning_score.report.server import server

QUICK = ["--trainer.max_steps=8", "--trainer.val_check_interval=4", "--trainer.log_every_n_steps=2",
         "--samples.num_samples=9", "--evaluate.num_samples=40", "--model.sampler.steps=2",
         "--trainer.logger=false"]  # fmt: skip
SWEEP = {
    "method": "grid",
    "metric": {"name": "test/fid_digits_20", "goal": "minimize"},
    "parameters": {"model.sampler.steps": {"values": [1, 2]}, "model.sampler.step_size": {"values": [1e-5, 1e-4]}},
}
BAD = '<img src=x onerror="document.title=666">'


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs that ended well, one that was killed, an empty one, a damaged one, one whose name is HTML; a test and a sweep."""
    root = tmp_path_factory.mktemp("report") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root.parent)
        assert run(["fit", "--config=ncsn", f"--output={root}/ncsn/r0", *QUICK]) == 0
        for name in ("r1", "killed"):
            shutil.copytree(root / "ncsn/r0", root / f"ncsn/{name}")
        assert run(["test", f"--ckpt_path={root}/ncsn/r0/last.ckpt", "--evaluate.num_samples=20"]) == 0
        command = ["${env}", "${interpreter}", "-m", "lightning_score", "test", f"--ckpt_path={root}/ncsn/r0/last.ckpt",
                   "--evaluate.num_samples=20", "${args}"]  # fmt: skip
        (root.parent / "tiny.yaml").write_text(yaml.safe_dump(SWEEP | {"command": command}))
        assert run(["sweep", "tiny.yaml"]) == 0
    with (root / "ncsn/r1/config.yaml").open("r+") as file:
        changed = file.read().replace("lr: 0.006", "lr: 0.001")
        file.seek(0)
        file.write(changed)
    first = json.loads((root / "ncsn/r0/run.json").read_text())
    status(root / "ncsn/r1", **first | {"arguments": ["fit", "--config=ncsn", "--model.optimizer.lr=0.001"]})
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    status(root / "ncsn/killed", **first | {"state": "running", "pid": ended.pid})
    (root / "ncsn/empty").mkdir()
    config(root / "ncsn/empty")
    damaged = run_folder(root / "ncsn/damaged", seed=-9000)
    (damaged / "metrics.csv").write_bytes(b"\0\0\0")
    (damaged / "config.yaml").write_text("model: [")
    run_folder(root / BAD, seed=-8000)
    (root / BAD / "config.yaml").write_text(f"name: '{BAD}'\nmodel:\n  name: '{BAD}'\n")
    return root


@pytest.fixture(scope="module")
def file(runs):
    """The page of the runs."""
    assert run(["report", str(runs)]) == 0
    moved = runs.parent / "mailed.html"
    shutil.copy(runs / "report.html", moved)
    return moved


@pytest.fixture
def opened(browser, file):
    """The page, opened from its file; it must end without errors, and must not request anything else."""
    watched = Watched(browser.new_page(viewport={"width": 1280, "height": 900}))
    watched.open(file.as_uri())
    yield watched
    assert watched.errors == [] and watched.requests == [file.as_uri()]
    assert watched.page.title() != "666"
    watched.page.close()


def cells(page, title, table="#runs"):
    """The texts of a column, row by row."""
    j = [each.inner_text().strip() for each in page.query_selector_all(f"{table} thead th")].index(title)
    return [row.query_selector_all("td")[j].inner_text().strip() for row in page.query_selector_all(f"{table} tbody tr")]


def chart(page, section):
    """The names of the lines that the first figure of a section shows; it is drawn when it comes into sight."""
    page.query_selector(f"#{section} .chart").scroll_into_view_if_needed()
    page.wait_for_selector(f"#{section} .chart[data-drawn]")
    return page.evaluate("id => document.querySelector(`#${id} .chart`).data.map(t => t.name)", section)


def test_a_page_of_two_runs_is_drawn_without_errors(browser, tmp_path):
    for k in range(2):
        run_folder(tmp_path / f"r{k}", seed=k)
    assert run(["report", str(tmp_path)]) == 0
    watched = Watched(browser.new_page(viewport={"width": 1280, "height": 900}))
    watched.open((tmp_path / "report.html").as_uri())
    watched.see_all()
    assert set(chart(watched.page, "curves")) >= {"r0", "r1"}
    watched.page.uncheck("#runs tbody tr:has-text('r1') input")
    assert "r1" not in chart(watched.page, "curves")
    assert watched.errors == [] and watched.requests == [(tmp_path / "report.html").as_uri()]
    watched.page.close()


@pytest.mark.slow
def test_every_figure_is_drawn(opened):
    opened.see_all()
    page = opened.page
    drawn = page.evaluate("""() => Object.fromEntries([...document.querySelectorAll('.chart')].map(chart =>
        [chart.closest('section').id, chart.querySelectorAll(
            '.scatterlayer .trace .lines path, .scatterlayer .trace .points path, .heatmaplayer image, .barlayer path, ' +
            'canvas').length]))""")
    assert set(drawn) == {"measures", "curves", "levels", "langevin", "sweeps"}
    assert all(count > 0 for count in drawn.values()), drawn
    labels = page.evaluate("() => [...document.querySelectorAll('.chart')].map(chart => chart.getAttribute('aria-label'))")
    assert all(label and len(label) > 20 for label in labels)


@pytest.mark.slow
def test_every_view_of_every_figure_is_drawn(opened):
    opened.see_all()
    page = opened.page
    for select in page.query_selector_all("#sweeps figure select"):
        chart = page.evaluate_handle("select => select.closest('figure').querySelector('.chart')", select)
        for value in page.evaluate("select => [...select.options].map(option => option.value)", select):
            select.select_option(value)
            count = "chart => chart.querySelectorAll('.trace, .heatmaplayer image, canvas').length"
            assert page.evaluate(count, chart) > 0, value


@pytest.mark.slow
def test_states(opened):
    states = dict(zip(cells(opened.page, "run"), cells(opened.page, "state"), strict=True))
    assert states["ncsn/r0"] == states["ncsn/r1"] == "✓ finished"
    assert states["ncsn/killed"] == "! crashed" and states["ncsn/empty"] == "○ empty"
    assert "2 problems" in states["ncsn/damaged"]


@pytest.mark.slow
def test_the_table_sorts_and_filters(opened):
    page = opened.page
    measure = page.evaluate("document.querySelectorAll('#runs thead th')[2].textContent")
    for reverse in (False, True):
        page.click(f"#runs thead th:has-text('{measure}')")
        best = [float(text.split()[0]) for text in cells(page, measure) if text]
        assert len(best) >= 3 and best == sorted(best, reverse=reverse) and cells(page, measure)[-1] == ""
    page.fill("#runs .dt-search input", "crashed")
    assert cells(page, "run") == ["ncsn/killed"]
    page.click("#listed")
    page.fill("#runs .dt-search input", "")
    assert page.evaluate("document.querySelectorAll('#runs tbody input:checked').length") == 1
    page.click("#all")
    assert page.evaluate("document.querySelectorAll('#runs tbody input:not(:checked)').length") == 0


@pytest.mark.slow
def test_a_run_is_switched_off_and_on(opened):
    opened.see_all()
    page = opened.page
    pictures = page.evaluate("document.querySelectorAll('#pictures .shelf figure').length")
    assert {"ncsn/r0", "ncsn/r1"} <= set(chart(page, "curves"))
    box = "#runs tbody tr:has-text('ncsn/r1') input"
    page.uncheck(box)
    for section in ("measures", "curves"):
        assert "ncsn/r1" not in chart(page, section) and "ncsn/r0" in chart(page, section)
    assert page.evaluate("document.querySelectorAll('#pictures .shelf figure').length") == pictures - 1
    page.check(box)
    assert "ncsn/r1" in chart(page, "measures")


@pytest.mark.slow
def test_the_slider_goes_through_training(opened):
    page = opened.page
    page.uncheck(f"#runs tbody tr:has-text('{BAD[:9]}') input")
    page.uncheck("#runs tbody tr:has-text('damaged') input")
    page.uncheck("#runs tbody tr:has-text('killed') input")
    assert page.inner_text("#pictures output") == "step 8"
    before = page.get_attribute("#pictures .shelf img", "src")
    page.focus("#step")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#pictures output") == "step 4"
    after = page.get_attribute("#pictures .shelf img", "src")
    assert after != before and "step 4" in page.inner_text("#pictures figcaption")
    page.wait_for_function("document.querySelector('#pictures .shelf img').naturalWidth > 100")
    assert page.evaluate("getComputedStyle(document.querySelector('#pictures .shelf img')).imageRendering") == "pixelated"
    page.select_option("#pictures select", "progress")
    assert "from noise to" in page.inner_text("#pictures figcaption")


@pytest.mark.slow
def test_curves_over_hours(opened):
    opened.see_all()
    page = opened.page
    page.select_option("#measures select >> nth=0", "hours")
    assert "ncsn/r0" in chart(page, "measures")
    assert page.evaluate("document.querySelector('#measures .chart').layout.xaxis.title.text").startswith("hours")
    assert page.input_value("#curves select >> nth=0") == "hours" and "ncsn/r0" in chart(page, "curves")
    longest = page.evaluate("Math.max(...document.querySelector('#curves .chart').data.find(t => t.name === 'ncsn/r0').x)")
    assert 0 < longest < 0.1


@pytest.mark.slow
def test_a_name_opens_config_and_command(opened):
    page = opened.page
    page.focus("#runs tbody tr:has-text('ncsn/r1') button.run")
    page.keyboard.press("Enter")
    text = page.inner_text("#detail")
    assert "AnnealedLangevin\n" in text and "lr: 0.001" in text and "python -m lightning_score fit --config" in text
    assert "--model.optimizer.lr=0.001" in text
    page.keyboard.press("Escape")
    assert not page.is_visible("#detail")
    page.click("#runs tbody tr:has-text('damaged') button.run")
    assert "config.yaml: cannot be read" in page.inner_text("#detail")


@pytest.mark.slow
def test_names_are_text(opened):
    page = opened.page
    assert BAD in cells(page, "run")
    assert page.query_selector("img[src=x]") is None
    page.click(f"#runs tbody tr:has-text('{BAD[:9]}') button.run")
    assert BAD in page.inner_text("#detail pre >> nth=-1")
    opened.see_all()
    assert BAD in page.text_content("#curves .legend")


@pytest.mark.slow
def test_what_was_measured_afterwards_and_the_sweep(opened):
    page = opened.page
    assert cells(page, "run", "#tests") == ["ncsn/r0"] and cells(page, "fid_digits_20", "#tests") != [""]
    assert any("AnnealedLangevin" in text for text in cells(page, "sampler", "#tests"))
    assert len(cells(page, "trial", "#sweeps")) == 4
    assert "4 of 4 trials have ended. Best: trial" in page.inner_text("#sweeps .summary")


@pytest.mark.slow
def test_light_and_dark(opened):
    opened.see_all()
    page = opened.page

    def brightness():
        return page.evaluate("""() => [getComputedStyle(document.body).backgroundColor,
            document.querySelector('#measures .chart').layout.template.layout.font.color]""")

    light = brightness()
    page.click("#theme")
    dark = brightness()
    assert light != dark and light[0] == "rgb(255, 255, 255)" and page.inner_text("#theme") == "Light"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("laptop", 1280, "light"), ("dark", 1280, "dark"), ("phone", 390, "dark")]
)
def test_it_fits_a_phone_and_a_laptop(browser, file, name, width, scheme):
    """A screenshot goes to the folder in LIGHTNING_SCORE_SCREENSHOTS, if it is set."""
    watched = Watched(browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme))
    watched.open(file.as_uri())
    watched.see_all()
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    assert ("dark" in (watched.page.get_attribute("html", "class") or "")) == (scheme == "dark")
    too_wide = watched.page.evaluate("""() => [...document.querySelectorAll('.chart')].filter(chart =>
        !chart.closest('.across') && chart.querySelector('.main-svg').getBoundingClientRect().width > innerWidth).length""")
    assert too_wide == 0 and watched.errors == []
    taken = watched.page.screenshot(full_page=True)
    assert len(taken) > 50_000
    if folder := os.environ.get("LIGHTNING_SCORE_SCREENSHOTS"):
        (Path(folder) / f"report_{name}.png").write_bytes(taken)
    watched.page.close()


@pytest.mark.slow
def test_headings_labels_and_roles(opened):
    """What a screen reader needs: one heading of the page, names of all controls and pictures."""
    page = opened.page
    assert page.evaluate("document.querySelectorAll('h1').length") == 1
    unnamed = page.evaluate("""() => [...document.querySelectorAll('button, select, input')].filter(each =>
        each.offsetParent && !each.textContent.trim() && !each.getAttribute('aria-label') && !each.labels?.length
        && !each.querySelector('img[alt]')
    ).map(each => each.outerHTML)""")
    assert unnamed == []
    assert page.evaluate("[...document.querySelectorAll('img')].every(image => image.alt.length > 5)")
    assert page.evaluate("document.querySelector('#runs th').getAttribute('scope')") == "col"


@pytest.mark.slow
def test_new_results_show_without_a_reload(browser, tmp_path):
    run_folder(tmp_path / "a", seed=5)
    with server(tmp_path, "live", 0) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        watched = Watched(browser.new_page(viewport={"width": 1280, "height": 900}))
        watched.page.clock.install()
        watched.open(f"http://127.0.0.1:{serving.server_address[1]}/")
        watched.page.fill("#runs .dt-search input", "a")
        watched.page.uncheck("#runs tbody tr input")
        other = run_folder(tmp_path / "ab")
        status(other, state="running", host="elsewhere")
        with (other / "evaluations.jsonl").open("a") as lines:
            lines.write(json.dumps(asdict(record(value=0.5, step=2000))) + "\n")
        watched.page.clock.run_for(6000)
        watched.page.wait_for_selector("#runs tbody tr:has-text('running')", timeout=120_000)
        assert cells(watched.page, "run") == ["ab", "a"] and cells(watched.page, "fid_digits_898, validation")[0].startswith(
            "0.50"
        )
        assert watched.page.input_value("#runs .dt-search input") == "a"  # what the reader has chosen stays
        assert not watched.page.is_checked("#runs tbody tr:nth-child(2) input")
        assert watched.errors == [] and all(url.startswith("http://127.0.0.1:") for url in watched.requests)
        serving.shutdown()
        watched.page.close()
