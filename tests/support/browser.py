"""Headless Chromium for tests of pages."""

import shutil
from contextlib import contextmanager

import pytest

OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync"]  # fmt: skip
EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Watched:
    """A page whose errors and requests are recorded.

    Attributes:
        page: the page.
        errors: error messages of its console, and uncaught exceptions.
        requests: addresses that it has requested, except data within the page.
    """

    def __init__(self, page) -> None:
        self.page, self.errors, self.requests = page, [], []
        page.set_default_timeout(20_000)  # it shares the cores with other tests
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("data:", "blob:")) else self.requests.append(request.url),
        )

    def open(self, address: str) -> None:
        """Opens a report and waits until it is ready."""
        self.page.goto(address)
        self.page.wait_for_selector("html[data-ready]", timeout=20_000)

    def see_all(self) -> None:
        """Scrolls through the page, so that every figure is drawn."""
        for section in self.page.query_selector_all("main > section:not([hidden])"):
            for chart in section.query_selector_all(".chart"):
                chart.scroll_into_view_if_needed()
                self.page.wait_for_function("chart => chart.dataset.drawn", arg=chart, timeout=120_000)


@contextmanager
def chromium():
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=EXECUTABLE, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture(name="browser", scope="module")
def browser_fixture():
    assert EXECUTABLE, "these tests need a browser: apt-get install chromium"
    with chromium() as found:
        yield found
