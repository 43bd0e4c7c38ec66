"""The page of a server and its state: news without disturbance, tags and notes, queries, the address, two runs compared."""

import shutil
import threading
import time
import urllib.parse

import pytest
from browser import Watched, browser_fixture  # noqa: F401
from run_folders import run_folder, status

from lightning_score.cli import run
from lightning_score.report.notes import Notes, read_notes, write_notes
from lightning_score.report.server import server

pytestmark = pytest.mark.slow

NAMES = ["ncsn/a", "ddpm/b", "ddpm/c"]


@pytest.fixture
def root(tmp_path):
    """Three runs; the first has a console and system metrics."""
    root = tmp_path / "runs"
    for k, name in enumerate(NAMES):
        run_folder(root / name, lr=1e-3 * (1 + k), best=2.0 + k, seed=k, pictures=("samples",))
    (root / "ncsn/a/console.log").write_text(
        "".join(f"line {i}\n" for i in range(300)) + "\x1b[31mred\x1b[0m\n1 %\r50 %\r99 %\n"
    )
    rows = [f"{i},{time.time() - 3600 + i},{i},{2 * i}" for i in range(50)]
    (root / "ncsn/a/system.csv").write_text("\n".join(["step,time,cpu_percent,memory_gb", *rows]) + "\n")
    return root


@pytest.fixture
def served(root, browser):
    """The page of a server, whose clock stands still, and its address."""
    with server(root, "live", 0) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        watched = Watched(browser.new_page(viewport={"width": 1280, "height": 900}))
        watched.answers = []
        watched.page.on("response", lambda answer: watched.answers.append(answer))
        watched.page.clock.install()
        watched.open(f"http://127.0.0.1:{serving.server_address[1]}/")
        yield watched, f"http://127.0.0.1:{serving.server_address[1]}/"
        assert [error for error in watched.errors if "status of 4" not in error] == []
        watched.page.close()
        serving.shutdown()


@pytest.fixture
def filed(root, browser):
    """The page in a file that was mailed."""
    write_notes(root / "ddpm/b", root, Notes(("good",), "the first", False), Notes().version)
    write_notes(root / "ddpm/c", root, Notes((), "", True), Notes().version)
    assert run(["report", str(root)]) == 0
    file = shutil.move(root / "report.html", root.parent / "mailed.html")
    watched = Watched(browser.new_page(viewport={"width": 1280, "height": 900}))
    watched.open(file.as_uri())
    yield watched, file.as_uri()
    assert watched.errors == [] and set(watched.requests) == {file.as_uri()}
    watched.page.close()


def listed(page):
    """The names in the table of runs."""
    return [each.inner_text() for each in page.query_selector_all("#runs tbody button.run")]


def poll(watched, wanted):
    """Lets the page ask its server until a condition holds in it."""
    watched.page.clock.run_for(6000)
    watched.page.wait_for_function(wanted, timeout=30_000)


def lines(page, section):
    """The names of the lines of the first figure of a section, without raw curves and floors."""
    found = page.evaluate("id => document.querySelector(`#${id} .chart`).data.filter(t => t.meta).map(t => t.meta)", section)
    return {name for name in found if name in NAMES}


@pytest.mark.slow
def test_news_disturb_nothing(served, root):
    watched, _ = served
    page = watched.page
    page.fill("#query", "fid <")
    assert "a value is missing at the end" in page.inner_text("#query-error")
    page.fill("#query", "fid < 9")
    page.click("#runs thead th:has-text('run')")
    page.click("#runs thead th:has-text('run')")
    page.wait_for_selector("#runs thead th[aria-sort=descending]")
    before = listed(page)
    page.uncheck("#runs tbody tr:has-text('ddpm/c') input")
    page.evaluate("document.querySelector('#curves').scrollIntoView()")
    page.wait_for_selector("#curves .chart .main-svg")
    page.evaluate("document.querySelector('#curves .chart').kept = true; document.querySelector('#runs table').kept = true")
    page.focus("#query")
    page.evaluate("document.querySelector('#query').setSelectionRange(1, 3); scrollTo(0, 500)")
    del watched.answers[:]
    with (root / "ncsn/a/metrics.csv").open("a") as file:
        file.write(f"0,2000,{time.time()},7.5\n")
    poll(watched, "document.querySelector('#runs tbody').innerText.includes('2,000')")
    (answer,) = [each for each in watched.answers if "data.json" in each.url]
    assert answer.status == 226 and len(answer.body()) < 2000
    assert page.input_value("#query") == "fid < 9" and listed(page) == before == sorted(before, reverse=True)
    assert not page.is_checked("#runs tbody tr:has-text('ddpm/c') input")
    focus = page.evaluate(
        "[document.activeElement.id, document.activeElement.selectionStart, document.activeElement.selectionEnd]"
    )
    assert focus == ["query", 1, 3] and page.evaluate("scrollY") == 500
    assert page.evaluate("document.querySelector('#curves .chart').kept && document.querySelector('#runs table').kept")
    run_folder(root / "ncsn/new", seed=-50, pictures=("samples",))
    poll(watched, "document.querySelector('#runs tbody').innerText.includes('ncsn/new')")
    assert page.input_value("#query") == "fid < 9" and page.evaluate("scrollY") == 500


@pytest.mark.slow
def test_an_open_dialog_follows_its_run_and_keeps_what_is_typed(served, root):
    watched, _ = served
    page = watched.page
    status(root / "ncsn/a", state="running", host="elsewhere")
    poll(watched, "document.querySelector('#runs tbody').innerText.includes('running')")
    page.click("#runs tbody button.run:has-text('ncsn/a')")
    text = page.inner_text("#detail-body")
    assert "line 299\nred\n99 %" in text and "line 102\n" in text and "line 101\n" not in text  # the last 200
    charts = page.query_selector_all("#detail-system .chart")
    for chart, last in zip(charts, (49, 98), strict=True):
        chart.scroll_into_view_if_needed()
        page.wait_for_function("([chart, last]) => chart.data?.[0].y.at(-1) === last", arg=[chart, last])
    page.fill("#detail-tags", "half ty")
    with (root / "ncsn/a/console.log").open("a") as file:
        file.write("the newest\n")
    poll(watched, "document.querySelector('#detail-body').innerText.includes('the newest')")
    assert page.input_value("#detail-tags") == "half ty" and page.evaluate("document.activeElement.id") == "detail-tags"
    page.click("#detail form[method=dialog] button")
    assert not page.is_visible("#detail")


def test_tags_and_notes_are_saved_shown_and_found(served, root):
    watched, _ = served
    page = watched.page
    page.click("#runs tbody button.run:has-text('ddpm/b')")
    page.fill("#detail-tags", " good,old , good")
    page.fill("#detail textarea", "<b>two</b>\nlines")
    page.click("#detail-notes button")
    page.wait_for_function("document.querySelector('#detail-tags').value === 'good, old'")
    assert read_notes(root / "ddpm/b") == Notes(("good", "old"), "<b>two</b>\nlines")
    assert "good" in page.inner_text("#runs tbody tr:has-text('ddpm/b')")
    page.fill("#detail-tags", "mine")
    write_notes(root / "ddpm/b", root, Notes(("theirs",)), read_notes(root / "ddpm/b").version)
    page.click("#detail-notes button")
    page.wait_for_selector("#detail-notes output:has-text('Changed elsewhere')")
    assert read_notes(root / "ddpm/b").tags == ("theirs",) and page.input_value("#detail-tags") == "mine"
    page.click("#detail-notes button")
    page.wait_for_function("!document.querySelector('#detail-notes form.edited')")
    assert read_notes(root / "ddpm/b").tags == ("mine",)
    page.fill("#detail-tags", "x" * 100)
    page.click("#detail-notes button")
    page.wait_for_selector("#detail-notes output:has-text('must have 1 to 60 letters')")
    page.fill("#detail-tags", "mine")
    page.check("#detail-notes input[type=checkbox]")
    page.click("#detail-notes button")
    page.wait_for_function("document.querySelectorAll('#runs tbody button.run').length === 2")
    page.keyboard.press("Escape")
    page.check("#archived")
    page.fill("#query", 'tag == "mine" and archived')
    assert listed(page) == ["ddpm/b"]


@pytest.mark.parametrize("slow", ["**/notes", "**/data.json*"])
def test_what_is_typed_while_notes_are_saved_stays_and_can_be_saved(served, root, slow):
    watched, _ = served
    page = watched.page
    page.click("#runs tbody button.run:has-text('ddpm/b')")
    held = []
    page.route(slow, lambda route: held.append(route))
    page.fill("#detail-tags", "first")
    with page.expect_response("**/notes") if slow != "**/notes" else page.expect_request("**/notes"):
        page.click("#detail-notes button")
    page.wait_for_timeout(100)
    page.fill("#detail-tags", "second")
    for route in held:
        route.continue_()
    page.unroute(slow)
    page.wait_for_selector("#detail-notes output:has-text('Saved')")
    page.wait_for_timeout(300)
    assert page.input_value("#detail-tags") == "second" and read_notes(root / "ddpm/b").tags == ("first",)
    page.click("#detail-notes button")
    page.wait_for_function("!document.querySelector('#detail-notes form.edited')")
    assert read_notes(root / "ddpm/b").tags == ("second",)


@pytest.mark.slow
def test_a_query_chooses_what_the_page_shows(filed):
    watched, _ = filed
    page = watched.page
    watched.see_all()
    page.fill("#query", 'config.model.optimizer.lr < 0.0015 and fid < 3 and "nc" in name')
    assert listed(page) == ["ncsn/a"]
    page.query_selector("#curves .chart").scroll_into_view_if_needed()
    drawn = "document.querySelector('#curves .chart').data.filter(t => t.meta)"
    page.wait_for_function(f"{drawn}.every(t => t.meta === 'ncsn/a')")
    page.fill("#query", "fidd < 3")
    assert "no run has fidd; near: fid" in page.inner_text("#query-error")
    assert listed(page) == ["ncsn/a"]  # the last one that could be read
    page.fill("#query", 'tag == "good"')
    assert listed(page) == ["ddpm/b"] and page.inner_text("#query-error") == ""
    page.fill("#query", "")
    assert set(listed(page)) == {"ncsn/a", "ddpm/b"}  # the other one is archived
    page.click("#runs tbody button.run:has-text('ddpm/b')")
    assert "the first" in page.inner_text("#detail-notes") and page.query_selector("#detail-notes input") is None


@pytest.mark.slow
def test_the_address_holds_the_state(filed, browser):
    watched, _ = filed
    page = watched.page

    def written(part):
        page.wait_for_function("part => location.hash.includes(part)", arg=part)

    page.fill("#query", "fid < 9")
    written("query")
    page.click("#theme")
    written("dark")
    page.uncheck("#runs tbody tr:has-text('ddpm/b') input")
    written("off")
    page.click("#runs thead th:has-text('run')")
    written("order")
    page.select_option("#comparison select >> nth=0", "ncsn/a")
    written("compare")
    page.select_option("#comparison select >> nth=1", "ddpm/b")
    written("a%22,%22d")
    link = urllib.parse.unquote_plus(page.evaluate("location.hash"))
    assert "query=fid < 9" in link and 'off=["ddpm/b"]' in link and 'compare=["ncsn/a","ddpm/b"]' in link and len(link) < 250
    other = Watched(browser.new_page(viewport={"width": 1280, "height": 900}))
    other.open(page.url)

    def view(page):
        return page.evaluate("""() => [document.querySelector('#query').value, document.documentElement.className,
            [...document.querySelectorAll('#runs tbody tr')].map(row => [row.innerText, row.querySelector('input').checked]),
            document.querySelector('#comparison').innerText, document.querySelector('#theme').innerText]""")

    assert view(other.page) == view(page)
    other.page.close()
    page.go_back()
    page.wait_for_function("document.querySelectorAll('#comparison select')[1].value === ''")
    for _ in range(3):
        page.go_back()
    page.wait_for_function("document.querySelector('#runs tbody input:not(:checked)') === null")
    page.go_forward()
    page.wait_for_function("document.querySelector('#runs tbody input:not(:checked)') !== null")
    page.click("nav a[href='#curves']")
    page.wait_for_function("location.hash.startsWith('#curves&')")
    assert page.input_value("#query") == "fid < 9" and page.evaluate("scrollY") > 100


@pytest.mark.slow
def test_an_address_that_somebody_has_changed_opens_the_page(filed):
    watched, address = filed
    page = watched.page
    page.goto("about:blank")
    for wrong in (
        "#x=%E0%A4%A",
        "#__proto__.x=1&constructor.prototype.y=2",
        "#off={}&view=5&tables.runs.order=1",
        "#nowhere",
        "#&&==&a=b",
    ):
        watched.open(address + wrong)
        assert len(listed(page)) == 2 and page.evaluate("({}).x === undefined && ({}).y === undefined")
        page.goto("about:blank")
    assert set(watched.requests) == {address}


@pytest.mark.slow
def test_two_runs_side_by_side(filed):
    watched, _ = filed
    page = watched.page
    page.click("#runs tbody button.run:has-text('ncsn/a')")
    page.select_option("#detail-body select", "ddpm/b")
    assert not page.is_visible("#detail")
    tables = page.query_selector_all("#comparison table")
    values = [[cell.inner_text() for cell in row.query_selector_all("th, td")] for row in tables[0].query_selector_all("tr")]
    assert values[0][1:3] == ["ncsn/a", "ddpm/b"]
    best = next(row for row in values if row[0].startswith("fid"))
    assert best[1] == "2.30 ± 0.60" and best[2] == "3.45 ± 0.60" and best[3] == "\u22121.15 ± 0.85"
    assert best[4] == "independent samples, clear"
    settings = [row.inner_text().split() for row in tables[1].query_selector_all("tbody tr")]
    assert settings == [["model.optimizer.lr", "0.001", "0.002"]]
    page.check("#comparison input[type=checkbox]")
    assert len(page.query_selector_all("#comparison table >> nth=1 >> tbody tr")) > 5
    page.query_selector("#comparison .chart").scroll_into_view_if_needed()
    page.wait_for_selector("#comparison .chart .main-svg")
    assert lines(page, "comparison") == {"ncsn/a", "ddpm/b"}
    page.focus("#comparison input[type=range]")
    page.keyboard.press("ArrowLeft")
    captions = [each.inner_text() for each in page.query_selector_all("#comparison .shelf figcaption")]
    assert captions == ["ncsn/a: step 750, NFE 201", "ddpm/b: step 750, NFE 201"]
