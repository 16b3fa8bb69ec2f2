"""A browser with the page in it, and a server whose machines are ordinary processes."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit.page_server import find_chromium, install_languages, serve_page

WAIT_MS = 60_000
WATCH = """
window.violations = [];
addEventListener("securitypolicyviolation", (event) => violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`));
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page's address, with a key."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        install_languages(patch, folder)
        with serve_page(folder) as url:
            yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def expect(browser: Any) -> Any:
    """Playwright's assertions, which wait; a loaded host takes its time."""
    from playwright.sync_api import expect

    expect.set_options(timeout=WAIT_MS)
    return expect


@pytest.fixture
def wrong() -> list[str]:
    """What the page's console has of errors; a test removes those that it expects."""
    return []


@pytest.fixture
def page(browser: Any, address: str, wrong: list[str]) -> Iterator[Any]:
    """The page, ready. The test fails if a script of it did, or if its policy forbade something."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(WAIT_MS)
    context.add_init_script(WATCH)
    opened = context.new_page()
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    opened.goto(address)
    opened.locator("#run:enabled").wait_for()
    yield opened
    wrong += opened.evaluate("window.violations")
    context.close()
    assert wrong == []
