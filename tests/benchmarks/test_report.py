"""The report of 200 runs: how long it takes to make, how large it is, and how long until a browser shows it."""

import time

import pytest
from browser import Watched, chromium
from run_folders import run_folder

from lightning_score.cli import run

RUNS = 200


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The run folders, each with 500 rows of metrics, 20 measurements and 40 pictures."""
    root = tmp_path_factory.mktemp("runs")
    for k in range(RUNS):
        run_folder(root / f"ncsn/r{k:03d}", points=500, validations=20, lr=1e-3 * (1 + k % 5), best=1.5 + k % 7, seed=k)
    return root


def test_make(root, benchmark, note):
    benchmark.pedantic(lambda: run(["report", str(root)]), rounds=3)
    size = (root / "report.html").stat().st_size / 1e6
    note(f"report of {RUNS} runs", f"{benchmark.stats.stats.median:.1f} s", "-", "-", "-")
    note("its size", f"{size:.1f} MB", "the aim", "10 MB", f"{10 / size:.2f}")


def test_open(root, benchmark, note):
    assert run(["report", str(root)]) == 0
    with chromium() as browser:

        def opened():
            watched = Watched(browser.new_page(viewport={"width": 1280, "height": 900}))
            start = time.perf_counter()
            watched.open((root / "report.html").as_uri())
            shown = time.perf_counter() - start
            assert watched.errors == [] and watched.page.query_selector("#runs tbody tr")
            watched.page.close()
            return shown

        benchmark.pedantic(opened, rounds=5, warmup_rounds=1)
    seconds = benchmark.stats.stats.median
    note(f"opening the report of {RUNS} runs in Chromium", f"{seconds:.2f} s", "the aim", "2 s", f"{2 / seconds:.2f}")
