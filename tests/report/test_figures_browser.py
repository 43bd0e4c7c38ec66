"""The figures of runs in a real browser: smoothing, groups, axes, legends, downloads; and the mathematics behind them."""

import csv
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from browser import Watched, browser_fixture  # noqa: F401
from run_folders import config, record, run_folder
from scipy import stats

from lightning_score.cli import run
from lightning_score.report import figures

pytestmark = pytest.mark.slow

PARTS = Path(figures.__file__).parent / "parts"
FIGURE = "#curves figure:has([data-key='curves train/loss SigmaSquared'])"
LOSS = "#curves .chart[data-key='curves train/loss SigmaSquared']"


@pytest.fixture(scope="module")
def calculate(browser):
    """Evaluates an expression of the page's functions, which need nothing of the page."""
    page = browser.new_page()

    def calculated(expression, runs=9, **values):
        source = "".join((PARTS / f"{name}.js").read_text() for name in ("looks", "smoothing", "curves"))
        state = {"data": {"student": figures.student(runs), "colors": figures.COLORS, "runs": []}, "yScale": "auto"}
        names = ", ".join(values)
        return page.evaluate(
            f"([state, {{{names}}}]) => {{ {source}; return {expression}; }}", [state | {"xScale": "linear"}, values]
        )

    yield calculated
    page.close()


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """The page of six runs: three learning rates; a NaN, a single point; and one run of another objective."""
    root = tmp_path_factory.mktemp("figures") / "runs"
    for k in range(6):
        folder = run_folder(root / f"r{k}", points=1 if k == 4 else 60, lr=1e-3 * (1 + k % 3), best=2 + k, seed=k)
        weighting = "EDMWeighting" if k == 5 else "SigmaSquared"
        objective = {"class_path": "x.DenoisingScoreMatching", "init_args": {"weighting": weighting}}
        optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3 * (1 + k % 3)}}
        config(folder, model={"objective": objective, "optimizer": optimizer})
    lines = (root / "r1/metrics.csv").read_text().splitlines()
    lines[30] = ",".join([*lines[30].split(",")[:3], "nan", *lines[30].split(",")[4:]])
    (root / "r1/metrics.csv").write_text("\n".join(lines))
    with (root / "r0/evaluations.jsonl").open("a") as file:
        for step in (500, 1000):
            file.write(json.dumps(asdict(record(value=0.5, step=step, weights="raw"))) + "\n")
    for step in (250, 500, 750):
        (root / f"r5/samples/step_{step:07d}.png").unlink()
    assert run(["report", str(root)]) == 0
    watched = Watched(browser.new_page(viewport={"width": 1280, "height": 900}, accept_downloads=True))
    watched.open((root / "report.html").as_uri())
    watched.page.set_default_timeout(30_000)
    watched.see_all()
    yield watched
    assert watched.errors == [] and len(watched.requests) == 1
    watched.page.close()


def drawn(page, chart=LOSS):
    """The traces and the layout of a chart that is in sight."""
    page.query_selector(chart).scroll_into_view_if_needed()
    page.wait_for_selector(f"{chart}[data-drawn]")
    return page.evaluate("chart => (({data, layout}) => ({data, layout}))(document.querySelector(chart))", chart)


def lines_of(figure):
    """The lines by name, without what is behind them."""
    return {trace["name"]: trace for trace in figure["data"] if trace.get("showlegend") is not False}


@pytest.fixture
def page(opened):
    """The page, as it was at first after the test."""
    yield opened.page
    for option, value in {"x": "steps", "xScale": "linear", "yScale": "auto", "smoothing": "none", "group": ""}.items():
        opened.page.select_option(f"#curves [data-option={option}]", value)


class TestSmoothing:
    X = (0.0, 1.0, 2.0, 4.0, 4.0, 9.0, 10.0)
    Y = (3.0, 1.0, None, 7.0, 5.0, 2.0, 8.0)

    def weights(self, kind, width):
        """Those of every point for every other one."""
        known = [k for k, value in enumerate(self.Y) if value is not None]
        x = np.array([self.X[k] for k in known])
        spacing = (np.append(x[1:], x[-1]) - np.append(x[0], x[:-1])) / 2 + 1e-8
        apart = x[:, None] - x[None]
        if kind == "gaussian":
            return known, np.exp(-((apart / width) ** 2) / 2) * spacing
        order = np.arange(len(x))
        return known, np.where(order[:, None] >= order[None], np.exp(-apart / width), 0) * spacing

    @pytest.mark.parametrize("kind", ["exponential", "gaussian"])
    @pytest.mark.parametrize("width", [0.5, 3.0])
    def test_it_is_a_weighted_mean(self, calculate, kind, width):
        known, weights = self.weights(kind, width)
        wanted = weights @ [self.Y[k] for k in known] / weights.sum(1)
        found = calculate("smoothed(x, y, kind, width)", x=self.X, y=self.Y, kind=kind, width=width)
        assert found[2] is None and [found[k] for k in known] == pytest.approx(wanted, rel=1e-4)

    @pytest.mark.parametrize("kind", ["exponential", "gaussian"])
    def test_a_constant_stays_and_a_fine_grid_does_not_matter(self, calculate, kind):
        """No bias to 0 at the start; the steps between points count, not their number."""
        assert calculate("smoothed([0, 1, 5], [4, 4, 4], kind, 2)", kind=kind) == pytest.approx([4, 4, 4])
        fine, coarse = np.linspace(0, 10, 2001), np.linspace(0, 10, 401)
        ends = [calculate("smoothed(x, y, kind, 1)", x=x.tolist(), y=np.sin(x).tolist(), kind=kind)[::len(x) // 4]
                for x in (fine, coarse)]  # fmt: skip
        assert ends[0] == pytest.approx(ends[1], abs=0.02)
        assert calculate("smoothed([3], [2], kind, 1)", kind=kind) == [2]


class TestGroups:
    CURVES = ([[0, 1, 2], [1.0, 2.0, 4.0]], [[0, 2], [3.0, 5.0]], [[1, 2], [None, 7.5]])

    def test_the_band_is_the_t_interval_of_the_mean(self, calculate):
        found = calculate("meanOf(curves, 't')", curves=self.CURVES)
        values = [[1, 3], [2, 4], [4, 5, 7.5]]  # the second curve is interpolated; the third is known at 2 only
        assert (
            found["x"] == [0, 1, 2] and found["n"] == [2, 2, 3] and found["y"] == pytest.approx([np.mean(v) for v in values])
        )
        for k, each in enumerate(values):
            low, high = stats.t.interval(0.95, len(each) - 1, np.mean(each), stats.sem(each))
            assert (found["low"][k], found["high"][k]) == pytest.approx((low, high), rel=1e-4)

    def test_or_the_smallest_and_the_largest(self, calculate):
        found = calculate("meanOf(curves, 'range')", curves=self.CURVES)
        assert found["low"] == [1, 2, 4] and found["high"] == [3, 4, 7.5]
        assert calculate("meanOf([[[1], [2]]], 't')")["low"] == [None]  # one run has no interval

    def test_many_points_are_thinned(self, calculate):
        found = calculate("meanOf([[x, x]], 'range')", x=list(range(5000)))
        assert len(found["x"]) <= 201 and found["x"] == found["y"] and (found["x"][0], found["x"][-1]) == (0, 4999)

    @pytest.mark.slow
    def test_on_the_page(self, page):
        page.select_option("#curves [data-option=group]", "model.optimizer.lr")
        lines = lines_of(drawn(page))
        assert list(lines) == ["lr 0.001 (n = 2)", "lr 0.002 (n = 2)", "lr 0.003 (n = 1)"]
        assert page.inner_text("#curves .legend").count("(n = 2)") == 2
        bands = [trace for trace in drawn(page)["data"] if trace.get("fill")]
        assert len(bands) == 2 and page.input_value("#measures [data-option=group]") == "model.optimizer.lr"
        page.select_option("#curves [data-option=band]", "range")
        ranges = [trace for trace in drawn(page)["data"] if trace.get("fill")]
        assert len(ranges) == 3 and max(ranges[0]["y"]) < max(bands[0]["y"])


class TestAxes:
    @pytest.mark.slow
    def test_logarithmic_or_linear(self, page):
        for scale, kind in (("log", "log"), ("linear", "linear"), ("auto", "linear")):  # the losses are from 9 to 16
            page.select_option("#curves [data-option=yScale]", scale)
            assert drawn(page)["layout"]["yaxis"].get("type") == kind
        page.select_option("#curves [data-option=xScale]", "log")
        assert drawn(page)["layout"]["xaxis"]["type"] == "log"
        assert drawn(page, "#measures .chart")["layout"]["yaxis"]["type"] == "log"  # automatically: they are from 0.5 to 18

    def test_over_hours_and_epochs(self, page):
        page.select_option("#curves [data-option=x]", "hours")
        line = lines_of(drawn(page))["r0"]
        assert line["x"][-1] == pytest.approx(3000 / 3600, abs=1e-3)
        page.select_option("#curves [data-option=x]", "epochs")
        assert lines_of(drawn(page))["r0"]["x"][-1] == 1  # all rows are of epoch 0
        assert drawn(page)["layout"]["xaxis"]["title"]["text"] == "epochs"

    def test_own_limits_and_zoom(self, page):
        figure = page.query_selector(FIGURE)
        figure.query_selector("summary").click()
        low, high = (figure.query_selector(f"[data-limit=y{end}]") for end in (0, 1))
        low.fill("9")
        high.fill("20")
        high.press("Tab")
        assert drawn(page)["layout"]["yaxis"]["range"] == [9, 20]
        page.select_option("#curves [data-option=yScale]", "log")
        assert drawn(page)["layout"]["yaxis"]["range"] == pytest.approx([math.log10(9), math.log10(20)])
        page.select_option("#curves [data-option=yScale]", "linear")
        page.evaluate(f"Plotly.relayout(document.querySelector(\"{LOSS}\"), {{'yaxis.range[0]': 10, 'yaxis.range[1]': 15}})")
        assert low.input_value() == "10" and high.input_value() == "15"
        page.evaluate(f"Plotly.relayout(document.querySelector(\"{LOSS}\"), {{'yaxis.autorange': true}})")
        assert low.input_value() == "" and drawn(page)["layout"]["yaxis"].get("autorange", True)

    @pytest.mark.parametrize(("low", "high"), [(1.0, 1.3), (0.03, 70), (1e-12, 1e9), (5, 5), (3e4, 3.1e4)])
    def test_ticks_are_few_and_plain(self, calculate, low, high):
        found = calculate("logTicks(low, high)", low=low, high=high)
        inside = [tick for tick in found["tickvals"] if low <= tick <= high]
        assert (2 if high > low else 0) <= len(inside) <= 11 and len(found["ticktext"]) == len(found["tickvals"])
        assert [float(text) for text in found["ticktext"]] == pytest.approx(found["tickvals"], rel=1e-3)


@pytest.mark.parametrize(
    ("call", "text"),
    [("number(12345)", "12345"), ("number(1.23456)", "1.235"), ("number(1.2e-4)", "1.2e-4"), ("number(null)", "unknown"),
     ("short(12345)", "12345"), ("short(-0.12345)", "\u22120.123"), ("short(null)", ""), ("short(undefined)", ""),
     ("withErrors(2.15, 0.3)", "2.15 ± 0.60"), ("withErrors(2.15, null)", "2.15"), ("withErrors(null, 1)", ""),
     ("withErrors(1.5e-8, 5e-10)", "1.5e-8 ± 1e-9"), ("plainText(plotText('<b>&lt;'))", "<b>&lt;")],
)  # fmt: skip
def test_numbers_and_text(calculate, call, text):
    assert calculate(call) == text


class TestLines:
    def test_forty_look_different_and_more_share_few_traces(self, calculate):
        assert len({json.dumps(look) for look in calculate("[...Array(40).keys()].map(look)")}) == 40
        assert calculate("[...Array(60).keys()].map(k => look(k).color)")[::8][:2] == [figures.COLORS[0]] * 2
        lines = "[...Array(1000).keys()].map(k => ({id: `r${k}`, name: `r${k}`, look: look(k), x: [1, 2], y: [k, null]}))"
        traces = calculate(f"tracesOf({lines}, 'steps')")
        assert len(traces) == len(figures.COLORS) and sum(len(trace["x"]) for trace in traces) == 3000
        assert len(calculate(f"tracesOf({lines}.slice(0, 40), 'steps')")) == 40

    def test_a_raw_curve_is_behind_the_smoothed_one(self, page):
        before = lines_of(drawn(page))["r0"]["y"]
        page.select_option("#curves [data-option=smoothing]", "exponential")
        raw, line = (next(trace for trace in drawn(page)["data"] if trace["name"] == name) for name in ("r0 (raw)", "r0"))
        assert raw["y"] == before and raw["opacity"] < 0.5 and np.std(np.diff(line["y"])) < np.std(np.diff(before))
        page.fill("#curves [data-option=width]", "30")
        assert np.std(np.diff(lines_of(drawn(page))["r0"]["y"])) < np.std(np.diff(line["y"]))
        assert "30 % of the axis" in page.inner_text("#curves .options")

    def test_gaps_and_single_points(self, page):
        lines = lines_of(drawn(page))
        assert lines["r1"]["y"].count(None) == 1 and lines["r4"]["mode"] == "lines+markers" and len(lines["r4"]["x"]) == 1

    def test_losses_of_other_objectives_have_their_own_figure(self, page):
        titles = [each.inner_text() for each in page.query_selector_all("#curves h3")]
        assert {"train/loss: SigmaSquared", "train/loss: EDMWeighting"} <= set(titles)
        other = lines_of(drawn(page, "#curves .chart[data-key='curves train/loss EDMWeighting']"))
        assert set(other) == {"r5"} and "r5" not in lines_of(drawn(page))
        page.uncheck("#runs tbody tr:has-text('r5') input")
        assert "train/loss" in [each.inner_text() for each in page.query_selector_all("#curves h3")]
        page.check("#runs tbody tr:has-text('r5') input")

    def test_what_a_measurement_tells(self, page):
        figure = drawn(page, "#measures .chart")
        lines = lines_of(figure)
        assert list(lines)[-1] == "subset of the data (older version)" and "r0 raw weights" in lines
        assert lines["r0"]["error_y"]["array"] == [0.6] * 4 and lines["r0"]["customdata"][0] == [898, 201]
        assert "r0" in lines["r0"]["hovertemplate"] and "lr 0.001" in lines["r0"]["hovertemplate"]
        label = page.get_attribute("#measures .chart", "aria-label")
        assert "Lowest 0.5 (r0 raw weights at 500)" in label and "highest" in label

    @pytest.mark.slow
    def test_the_legend_highlights(self, page):
        drawn(page)
        page.focus("#curves .legend button[data-line=r1]")
        page.wait_for_selector(f"{LOSS}.faded path.lit")
        color = page.get_attribute(f"{LOSS} path.lit", "stroke")
        assert (
            color == page.evaluate("getComputedStyle(document.querySelector('#curves [data-line=r1] path')).stroke") or color
        )
        page.keyboard.press("Enter")
        page.focus("#curves [data-option=x]")
        assert page.get_attribute("#curves [data-line=r1]", "aria-pressed") == "true"
        assert page.query_selector(f"{LOSS}.faded")
        page.click("#curves [data-line=r1]")
        page.focus("#curves [data-option=x]")
        page.mouse.move(0, 0)
        page.wait_for_selector(f"{LOSS}:not(.faded)")

    @pytest.mark.slow
    def test_several_metrics_are_small_multiples(self, page):
        page.click("#curves .chooser summary")
        before = page.query_selector_all("#curves .chart")
        page.uncheck("#curves .chooser input[value='val/loss']")
        assert len(page.query_selector_all("#curves .chart")) == len(before) - 2  # one per objective
        page.check("#curves .chooser input[value='val/loss']")
        assert len(page.query_selector_all("#curves .chart")) == len(before)
        page.click("#curves .chooser summary")


class TestDownloads:
    @pytest.mark.parametrize(("kind", "start"), [("PNG", b"\x89PNG"), ("SVG", b"<svg")])
    def test_pictures(self, page, kind, start):
        drawn(page)
        with page.expect_download() as download:
            page.focus(f"{FIGURE} button:has-text('{kind}')")
            page.keyboard.press("Enter")
        saved = Path(download.value.path()).read_bytes()
        assert saved.startswith(start) and len(saved) > 10_000
        assert download.value.suggested_filename == f"curves_train_loss_SigmaSquared_train_loss_SigmaSquared.{kind.lower()}"
        assert kind == "PNG" or (b"train/loss: SigmaSquared" in saved and b">r0<" in saved)

    def test_the_data(self, page):
        with page.expect_download() as download:
            page.click("#measures figure button:has-text('CSV')")
        rows = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
        own = [row for row in rows if row["line"] == "r0"]
        assert [row["training steps"] for row in own] == ["250", "500", "750", "1000"]
        assert own[0]["two standard errors"] == "0.6" and own[0]["n"] == "898" and float(own[0]["value"]) > 2


@pytest.mark.slow
class TestLevels:
    def test_all_runs_at_their_last_step_or_one_as_a_map(self, page):
        chart = "#levels .chart[data-key='levels excess loss, train data']"
        lines = lines_of(drawn(page, chart))
        assert len(lines) == 6 and lines["r0"]["x"] == [0.03, 0.2, 1]
        page.select_option("#levels .tools select", "r2")
        (heat,) = drawn(page, chart)["data"]
        assert heat["type"] == "heatmap" and heat["y"] == ["0.03", "0.2", "1"] and heat["x"] == ["250", "500", "750", "1000"]
        assert heat["colorscale"][1][0] == 0.5 and heat["zmin"] == -heat["zmax"]
        page.select_option("#levels .tools select", "")
        assert len(lines_of(drawn(page, chart))) == 6

    def test_langevin_dynamics_of_one_step(self, page):
        page.select_option("#langevin .tools select", "r2")
        page.select_option("#langevin .stage select", "500")
        lines = lines_of(drawn(page, "#langevin .chart[data-key='langevin variance_ratio']"))
        assert set(lines) == {"r2", "r2, compared with"} and lines["r2"]["x"] == [1, 0.2, 0.03]
        page.select_option("#langevin .tools select", "")
        assert len(lines_of(drawn(page, "#langevin .chart[data-key='langevin snr']"))) == 6


@pytest.mark.slow
class TestPictures:
    def test_one_opens_in_full_size(self, page):
        """Left and right go to other runs, up and down through training; a sample has a whole number of pixels."""
        page.click("#pictures .shelf button >> nth=0")
        assert (
            "step 1000" in page.inner_text("#picture p[role=status]")
            and page.inner_text("#picture p[role=status]")[:2] == "r0"
        )
        page.wait_for_function("document.querySelector('#picture img').naturalWidth > 0")
        width, natural = page.evaluate(
            "(({clientWidth, naturalWidth}) => [clientWidth, naturalWidth])(document.querySelector('#picture img'))"
        )
        assert width >= natural and width % natural == 0
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        assert page.inner_text("#picture p[role=status]") == "r1: step 750, NFE 201 (2 of 6)"
        page.keyboard.press("Escape")
        assert not page.is_visible("#picture")

    def test_all_are_of_one_step(self, page):
        page.focus("#step")
        page.keyboard.press("Home")
        captions = [each.inner_text() for each in page.query_selector_all("#pictures figcaption")]
        assert all("step 250" in caption for caption in captions[:4]) and "none up to step 250" in page.inner_text(
            "#pictures .shelf"
        )
        page.keyboard.press("End")
        assert "step 1000" in page.inner_text("#pictures figcaption")


@pytest.mark.slow
def test_plotly_knows_every_property(page, opened):
    opened.see_all()
    wrong = page.evaluate("""() => [...document.querySelectorAll('.chart[data-drawn]')].flatMap(chart =>
        (Plotly.validate(chart.data, chart.layout) ?? []).filter(({code}) => code !== 'unused').map(({msg}) => msg))""")
    assert wrong == []
