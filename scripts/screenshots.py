"""Take the pictures of the playground's page that docs/ has.

Usage: python -m scripts.screenshots      after `make web`; machines are ordinary processes
"""

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from tests.kit.page_server import find_chromium, install_languages, serve_page, why_no_browser

DOCS = Path(__file__).resolve().parents[1] / "docs"
COLOURS = 128
"""Of a picture's palette: the pages have few, and a picture is then a third of its size."""
PROGRAM = '''"""Whose name is the longest?"""

import sys


def longest(names: list[str]) -> str:
    """The longest name; the first of several."""
    if not names:
        raise SystemExit("no names")
    return max(names, key=len)


names = sys.stdin.read().split()
print(f"{len(names)} names were read", file=sys.stderr)
print(longest(names))
'''
CASES = (("Ada Grace Edsger", "Edsger"), ("Bo Al", "Al"), ("", ""))
BROKEN = PROGRAM.replace("key=len)", "key=len")


def fill(page: Any, text: str) -> None:
    page.locator(".cm-content").click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(text)
    page.keyboard.press("Control+Home")


def save(page: Any, name: str) -> None:
    """A picture with a palette, without the cursor's blinking."""
    page.evaluate("document.activeElement.blur()")
    picture = Image.open(io.BytesIO(page.screenshot(animations="disabled", caret="hide")))
    path = DOCS / f"playground-{name}.png"
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(DOCS.parent)}: {path.stat().st_size / 1000:.0f} kB")


def opened(browser: Any, address: str, **context: Any) -> Any:
    page = browser.new_context(**context).new_page()
    page.goto(address)
    page.locator("#run:enabled").wait_for()
    return page


def finish(page: Any) -> None:
    page.keyboard.press("Control+Enter")
    page.locator("#stop:enabled").wait_for()
    page.locator("#run:enabled").wait_for()


def main() -> int:
    """All pictures; 1 if they cannot be taken here."""
    if reason := why_no_browser():
        print(f"screenshots: {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        install_languages(patch, Path(name))
        with serve_page(Path(name)) as address:
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
            wide = {"width": 1200, "height": 720}
            page = opened(browser, address, viewport=wide, color_scheme="dark")
            fill(page, BROKEN)
            finish(page)
            save(page, "dark")
            page = opened(browser, address, viewport=wide, color_scheme="light")
            fill(page, PROGRAM)
            page.get_by_role("tab", name="Cases").click()
            for index, (stdin, expected) in enumerate(CASES, 1):
                if index > 1:
                    page.get_by_role("button", name="Add a case").click()
                page.get_by_label(f"Standard input of case {index}").fill(stdin)
                page.get_by_label(f"Expected output of case {index}").fill(expected)
            finish(page)
            save(page, "light")
            page = opened(browser, address, viewport={"width": 360, "height": 740}, color_scheme="dark", is_mobile=True, has_touch=True)
            fill(page, PROGRAM)
            page.get_by_role("textbox", name="Standard input").fill("Ada Grace Edsger")
            finish(page)
            page.locator("#result").scroll_into_view_if_needed()
            save(page, "phone")
            browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
