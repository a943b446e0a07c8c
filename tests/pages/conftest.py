import pytest
from attention_pages import ARGUMENTS, CHROMIUM, TITLE, View, history

from minigpt.pages.attention import render_page


@pytest.fixture(scope="package")
def chromium():
    """One browser for all tests of pages (starting one takes longer than a test)."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium: install one, or set MINIGPT_CHROMIUM to its path")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser(chromium):
    """A window of its own for each module: one that has opened dozens of pages stalls for half a minute."""
    with chromium.new_context(viewport={"width": 1200, "height": 800}) as context:
        yield context


@pytest.fixture
def open_view(browser, tmp_path):
    """open_view(page, ...) opens a document; at the end every page must have been silent and without requests."""
    views = []

    def open_page(page, width=1200, height=800, kind=View):
        path = tmp_path / f"page{len(views)}.html"
        path.write_text(page, encoding="ascii")
        views.append(kind(browser, path, width, height))
        return views[-1]

    yield open_page
    for view in views:
        view.check_clean()
        view.close()


@pytest.fixture
def show(open_view):
    """show(snapshots, ...) opens their attention page."""

    def open_page(snapshots, width=1200, height=800, **fields):
        return open_view(render_page(snapshots, title=TITLE, **fields), width, height)

    return open_page


@pytest.fixture
def view(show):
    return show(history())
