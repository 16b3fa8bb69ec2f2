"""The page in a headless Chromium, as a person uses it. Machines are ordinary processes."""

import re
from typing import Any

import pytest

from tests.kit.api_fakes import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.slow]
AXE = ROOT / "web/node_modules/axe-core/axe.min.js"
PYTHON, SHELL, SAID = "python@3.13", "shell@1.0", "said@1.0"
BOTH = "echo to stdout; echo to stderr >&2\n"
LONG = 'echo "begun"; sleep 600\n'


def write(page: Any, text: str) -> None:
    """Put `text` in the place of the file that is shown."""
    page.locator(".cm-content").click()
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    page.keyboard.insert_text(text)


def run(page: Any, language: str, text: str) -> None:
    page.select_option("#language", language)
    write(page, text)
    page.keyboard.press("Control+Enter")


def add_file(page: Any, name: str, text: str) -> None:
    page.get_by_role("button", name="Add a file").click()
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_role("tab", name=name).wait_for()
    write(page, text)


def test_a_program_that_is_typed_runs_and_its_output_is_shown(page: Any, expect: Any) -> None:
    page.select_option("#language", SHELL)
    page.locator(".cm-content").click()
    page.keyboard.type("echo typed by hand\n", delay=0)
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#output")).to_have_text("typed by hand\n")
    expect(page.get_by_role("status")).to_contain_text("Exited with 0")
    expect(page.get_by_label("Phases of the run")).to_contain_text("running")
    assert page.locator("#phases .part").count() >= 2


def test_the_sample_greets_whom_standard_input_names(page: Any, expect: Any) -> None:
    page.get_by_role("textbox", name="Standard input").fill("Ada")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#output")).to_have_text("Hello, Ada!\n")


def test_arguments_are_split_as_a_shell_does(page: Any, expect: Any) -> None:
    page.get_by_label("Arguments").fill("""one "two \\"words\\"" 'it is' a"b"c""")
    run(page, SHELL, 'for each; do echo "<$each>"; done\n')
    expect(page.locator("#output")).to_have_text('<one>\n<two "words">\n<it is>\n<abc>\n')


def test_both_streams_are_told_apart(page: Any, expect: Any) -> None:
    run(page, SHELL, BOTH)
    expect(page.locator("#output .stdout")).to_have_text("to stdout\n")
    expect(page.locator("#output .stderr")).to_have_text("standard error: to stderr\n")
    page.get_by_role("radio", name="stdout").check(force=True)
    expect(page.locator("#output .stderr")).to_be_hidden()
    page.get_by_role("radio", name="stderr").check(force=True)
    expect(page.locator("#output .stdout")).to_be_hidden()
    expect(page.locator("#output .stderr")).to_be_visible()


def test_output_is_shown_as_text_without_escape_sequences(page: Any, expect: Any) -> None:
    run(page, SHELL, r"""printf '\033[31m<b>red</b>\033[0m <img src=x onerror=alert(1)>\n\377\n'""")
    expect(page.locator("#output")).to_have_text("<b>red</b> <img src=x onerror=alert(1)>\n\N{REPLACEMENT CHARACTER}\n")
    assert page.locator("#output b, #output img").count() == 0


def test_much_output_is_cut_and_the_page_stays_quick(page: Any, expect: Any) -> None:
    run(page, SHELL, 'yes "a line of many" | head -c 3000000; echo end >&2\n')
    expect(page.get_by_role("status")).to_contain_text("output cut at its limit")
    assert page.locator("#output *").count() < 25_000


def test_output_comes_while_it_runs_and_stop_ends_it(page: Any, expect: Any) -> None:
    run(page, SHELL, LONG)
    expect(page.locator("#output")).to_have_text("begun\n")
    expect(page.get_by_role("status")).to_have_text("Running…")
    expect(page.get_by_role("button", name="Run")).to_be_disabled()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_have_text("Stopped")
    expect(page.get_by_role("button", name="Run")).to_be_focused()
    run(page, SHELL, "echo again\n")
    expect(page.locator("#output")).to_have_text("again\n")


def test_what_ended_a_program_is_said(page: Any, expect: Any) -> None:
    for text, words in (("exit 3", "Exited with 3"), ("kill -SEGV $$", "Segmentation fault")):
        run(page, SHELL, text)
        expect(page.get_by_role("status")).to_contain_text(words)


def test_a_compile_error_is_marked_and_leads_to_its_line(page: Any, expect: Any) -> None:
    run(page, PYTHON, "x = 1\ny = 2\nprint(((\n")
    expect(page.get_by_role("status")).to_contain_text("Build failed")
    expect(page.locator(".cm-lintRange-error")).to_be_visible()
    page.get_by_role("button", name="Go to main.py:3:").click()
    expect(page.locator(".cm-activeLine")).to_have_text("print(((")
    expect(page.locator(".cm-content")).to_be_focused()
    write(page, "print('mended')\n")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#output")).to_have_text("mended\n")
    expect(page.locator(".cm-lintRange-error")).to_have_count(0)


def test_places_in_the_output_are_links(page: Any, expect: Any) -> None:
    run(page, SHELL, "echo 'thread main panicked at main.sh:2:5:' >&2\n: here\n")
    page.locator("#output").get_by_role("button", name="main.sh:2:5").click()
    expect(page.locator(".cm-activeLine")).to_have_text(": here")


COMPILERS = {
    "error[E0308]: mismatched types\n --> main.rs:2:18\n  |\n": "main.rs:2: mismatched types",
    "warning: unused\n --> main.rs:1:1\n\nerror: expected `;`\n --> main.rs:3:4\n": "main.rs:3: expected `;`",
    "# command-line-arguments\n./main.rs:3:2: undefined: x\n": "main.rs:3: undefined: x",
    "main.rs: In function 'main':\nmain.rs:2:5: error: no ';'\nmain.rs:3:1: note: here\n": "main.rs:2: no ';'",
    "main.rs:3: error: ';' expected\n": "main.rs:3: ';' expected",
    "/work/main.rs:3\nlet = ;\n    ^\n\nSyntaxError: Unexpected token\n    at x\n": "main.rs:3: SyntaxError: Unexpected token",
    "main.rs(2,5): error TS2304: Cannot find name 'x'.\n": "main.rs:2: Cannot find name 'x'.",
    "main.rs: 3: Syntax error: end of file\n": "main.rs:3: Syntax error: end of file",
}
"""What rustc, go, gcc, javac, Node, tsc and dash say, and what the page makes of it."""


def test_the_places_that_compilers_name_are_found(page: Any, expect: Any) -> None:
    for said, place in COMPILERS.items():
        run(page, SAID, f"{said}\nenough\nlines\n")
        page.get_by_role("button", name=f"Go to {place}", exact=True).click()
        expect(page.locator(".cm-content")).to_be_focused()
        expect(page.locator(".cm-lint-marker-error").first).to_be_visible()


def fill_cases(page: Any, cases: list[tuple[str, str]]) -> None:
    page.get_by_role("tab", name="Cases").click()
    for index, (stdin, expected) in enumerate(cases, 1):
        if index > 1:
            page.get_by_role("button", name="Add a case").click()
        page.get_by_label(f"Standard input of case {index}").fill(stdin)
        page.get_by_label(f"Expected output of case {index}").fill(expected)


def test_cases_get_verdicts(page: Any, expect: Any) -> None:
    fill_cases(page, [("1 2", "3"), ("2 2", "5"), ("x", "0"), ("4 4", "")])
    run(page, PYTHON, "a, b = input().split()\nprint(int(a) + int(b))\n")
    rows = page.locator("#cases tbody").get_by_role("row")
    for row, verdict in zip(rows.all(), ("passed", "wrong answer", "exited with an error", "passed"), strict=True):
        expect(row.locator("strong")).to_contain_text(verdict)
    expect(page.get_by_role("status")).to_contain_text("2 of 4 cases passed")
    expect(rows.nth(1).locator("pre.stdout")).to_have_text("4\n")
    expect(rows.nth(2).locator("pre.stderr")).to_contain_text("ValueError")
    page.get_by_label("Expected output of case 2").fill("4")
    expect(rows.nth(1).locator("strong")).to_have_count(0)  # the verdict was on what stood there before
    rows.nth(2).get_by_role("button", name="Remove").click()
    expect(page.get_by_label("Standard input of case 3")).to_have_value("4 4")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_contain_text("3 of 3 cases passed")


def test_cases_stop_at_the_first_failure_if_asked(page: Any, expect: Any) -> None:
    fill_cases(page, [("a", "b"), ("a", "a")])
    page.get_by_label("Stop at the first failure").check()
    run(page, SHELL, "cat\n")
    expect(page.locator("#cases tbody tr").nth(1)).to_contain_text("skipped")
    expect(page.get_by_role("status")).to_contain_text("0 of 2 cases passed")


def test_cases_of_a_program_that_does_not_build_are_skipped(page: Any, expect: Any) -> None:
    fill_cases(page, [("a", "b")])
    run(page, PYTHON, "print((\n")
    expect(page.get_by_role("status")).to_contain_text("Build failed")
    expect(page.locator("#cases tbody strong")).to_contain_text("skipped")


def test_files_that_the_program_left_can_be_saved(page: Any, expect: Any) -> None:
    page.get_by_label("Files wanted back").fill("out/**/* 'a b.html'")
    source = "mkdir -p out; printf '\\377\\000' > out/x.bin; echo '<script>alert(1)</script>' > 'a b.html'; exit 3\n"
    run(page, SHELL, source)
    expect(page.get_by_role("status")).to_contain_text("Exited with 3")
    files = page.get_by_role("list", name="Files that the program left").get_by_role("link")
    expect(files).to_have_text(["a b.html (1 KiB)", "out/x.bin (1 KiB)"])
    for link, name, content in zip(files.all(), ("a b.html", "x.bin"), (b"<script>alert(1)</script>\n", b"\xff\0"), strict=True):
        with page.expect_download() as saved:
            link.click()
        assert saved.value.suggested_filename == name
        assert saved.value.path().read_bytes() == content
    run(page, SHELL, "head -c 9000000 /dev/zero > 'a b.html'\n")
    expect(page.locator("#collected")).to_contain_text("No file came back")
    run(page, SHELL, "true\n")
    expect(page.locator("#collected")).to_have_text("The program left no file that matches.")
    page.get_by_label("Files wanted back").fill("")
    run(page, SHELL, "true\n")
    expect(page.get_by_role("status")).to_contain_text("Exited with 0")
    expect(page.locator("#collected")).to_be_hidden()


def at_terminal(page: Any, text: str) -> Any:
    """Run a shell's program in a terminal; what the terminal shows."""
    page.get_by_role("tab", name="Terminal").click()
    run(page, SHELL, text)
    return page.locator(".xterm-rows")


def test_a_program_is_talked_to_at_a_terminal(page: Any, expect: Any) -> None:
    screen = at_terminal(page, 'test -t 1 && echo "name?"; read name; printf "hello \\033[38;2;255;0;0m$name\\033[0m\\n"; cat')
    expect(screen).to_contain_text("name?")
    page.keyboard.type("Ada\n")  # the terminal has the focus
    expect(screen).to_contain_text("hello Ada")
    page.keyboard.type("more\n")
    expect(screen).to_contain_text("moremore")  # as typed, and by cat
    page.keyboard.press("Control+D")
    expect(page.get_by_role("status")).to_contain_text("Exited with 0")


def test_keys_and_sizes_reach_a_terminal(page: Any, expect: Any) -> None:
    screen = at_terminal(page, "trap 'echo resized to $(stty size)' WINCH; trap 'exit 7' INT; echo begun; while :; do sleep 0.1; done\n")
    expect(screen).to_contain_text("begun")
    page.set_viewport_size({"width": 1000, "height": 500})
    expect(screen).to_contain_text("resized to")
    page.keyboard.press("Control+C")
    expect(page.get_by_role("status")).to_contain_text("Exited with 7")


def test_a_terminal_is_left_and_stopped_by_keys(page: Any, expect: Any) -> None:
    screen = at_terminal(page, LONG)
    expect(screen).to_contain_text("begun")
    page.keyboard.press("F6")
    expect(page.locator("#language")).to_be_focused()
    page.keyboard.press("Shift+F6")
    expect(page.locator(".xterm-helper-textarea")).to_be_focused()
    page.keyboard.press("Control+.")
    expect(page.get_by_role("status")).to_have_text("Stopped")


def test_files_are_added_renamed_and_removed(page: Any, expect: Any) -> None:
    page.select_option("#language", PYTHON)
    write(page, "import helper\nprint(helper.TEXT)\n")
    add_file(page, "other.py", "TEXT = 'from another file'\n")
    page.get_by_role("button", name="Rename this file").click()
    page.get_by_label("Name", exact=True).fill("main.py")
    page.get_by_role("button", name="Rename", exact=True).click()
    expect(page.get_by_role("alert")).to_have_text("There is a file main.py already")
    page.get_by_label("Name", exact=True).fill("helper.py")
    page.get_by_role("button", name="Rename", exact=True).click()
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#output")).to_have_text("from another file\n")
    page.get_by_role("button", name="Remove this file").click()
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page.get_by_role("tab", name="helper.py")).to_have_count(0)
    expect(page.locator(".cm-content")).to_contain_text("import helper")


def test_each_language_keeps_its_own_program(page: Any, expect: Any) -> None:
    page.select_option("#language", SHELL)
    write(page, "echo kept\n")
    page.select_option("#language", PYTHON)
    expect(page.get_by_role("tab", name="main.py")).to_be_visible()
    page.select_option("#language", SHELL)
    expect(page.locator(".cm-content")).to_have_text("echo kept")


def test_a_draft_outlives_a_reload(page: Any, expect: Any) -> None:
    page.select_option("#language", SHELL)
    write(page, "echo still here\n")
    page.reload()
    expect(page.locator(".cm-content")).to_have_text("echo still here")
    expect(page.locator("#language")).to_have_value(SHELL)


def test_a_shared_link_opens_with_all_of_it_and_runs_nothing(page: Any, browser: Any, address: str, expect: Any) -> None:
    page.select_option("#language", SHELL)
    write(page, "cat; echo héllo\n")
    page.get_by_role("textbox", name="Standard input").fill("shared input")
    page.get_by_label("Files wanted back").fill("*.png")
    add_file(page, "more.txt", "more")
    page.keyboard.press("Control+S")
    link = page.get_by_label("Link").input_value()
    base, key = address.split("#key=")
    assert link.startswith(f"{base}#s=")
    assert key not in link

    context = browser.new_context()
    other = context.new_page()
    other.goto(link)
    other.get_by_role("textbox", name="Key").fill("wrong")  # a link gives nobody a key
    other.get_by_role("button", name="Use it").click()
    expect(other.get_by_text("does not know this key")).to_be_visible()
    other.get_by_role("textbox", name="Key").fill(key)
    other.get_by_role("button", name="Use it").click()
    expect(other.locator(".cm-content")).to_have_text("cat; echo héllo")
    expect(other.get_by_role("textbox", name="Standard input")).to_have_value("shared input")
    expect(other.get_by_label("Files wanted back")).to_have_value("*.png")
    expect(other.get_by_role("tab", name="more.txt")).to_be_visible()
    expect(other.get_by_role("status")).to_have_text("Ready")
    assert "#" not in other.url
    other.get_by_role("button", name="Run").click()
    expect(other.locator("#output")).to_have_text("shared inputhéllo\n")
    context.close()


def test_the_key_leaves_the_address(page: Any, address: str) -> None:
    assert page.url == address.split("#")[0]


@pytest.mark.parametrize("link", ["s=????", "s=eJyrVk", "s=", "s=q1YqzVPSUVIqTs5ITc5WslIyqAUA"])
def test_a_broken_link_is_said_and_the_page_works(page: Any, address: str, expect: Any, link: str) -> None:
    page.goto(f"{address}&{link}")
    page.reload()
    page.locator("#run:enabled").wait_for()
    run(page, SHELL, "echo fine\n")
    expect(page.locator("#output")).to_have_text("fine\n")


def test_a_link_that_unpacks_to_very_much_is_refused(page: Any, address: str, expect: Any) -> None:
    bomb = page.evaluate(
        """async () => {
            const stream = new Blob([new Uint8Array(64 << 20)]).stream().pipeThrough(new CompressionStream("deflate-raw"));
            const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
            return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))
                .replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
        }"""
    )
    page.evaluate("link => { location.hash = link; }", f"s={bomb}")
    expect(page.get_by_role("status")).to_contain_text("The link cannot be read")


def test_names_in_a_link_are_only_text(page: Any, expect: Any) -> None:
    page.evaluate(
        """async () => {
            const name = "<img src=x onerror=alert(1)>.sh";
            const draft = JSON.stringify({language: "<b>none</b>", files: [{name, text: "echo <i>x</i>"}], cases: 7, mode: "evil"});
            const stream = new Blob([draft]).stream().pipeThrough(new CompressionStream("deflate-raw"));
            const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
            location.hash = "s=" + btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
        }"""
    )
    expect(page.get_by_role("tab", name="onerror=alert(1)")).to_be_visible()
    expect(page.get_by_role("status")).to_contain_text("does not have <b>none</b>")
    assert page.locator("main img, #status b").count() == 0


def test_what_the_server_refuses_is_said(page: Any, wrong: list[str], expect: Any) -> None:
    page.get_by_label("Arguments").fill("nul\0")
    page.evaluate("document.querySelector('#args').value = 'a\\0b'")
    run(page, SHELL, "true\n")
    expect(page.get_by_role("status")).to_contain_text("without NUL")
    wrong[:] = [text for text in wrong if "422" not in text]


def test_only_what_the_server_has_is_shown(browser: Any, address: str, expect: Any) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.route("**/openapi.json", lambda route: route.fulfill(json={"paths": {}, "components": {}}))
    page.goto(address)
    page.locator("#run:enabled").wait_for()
    expect(page.get_by_role("tab", name="Input")).to_be_visible()
    expect(page.get_by_role("tab", name="Cases")).to_be_hidden()
    expect(page.get_by_role("tab", name="Terminal")).to_be_hidden()
    expect(page.get_by_label("Files wanted back")).to_be_hidden()
    context.close()


def test_dark_and_light_follow_the_system_until_one_is_chosen(browser: Any, address: str, expect: Any) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(address)
    root = page.locator("html")
    expect(root).to_have_attribute("data-theme", "dark")
    page.emulate_media(color_scheme="light")
    expect(root).to_have_attribute("data-theme", "light")
    page.get_by_role("button", name="Dark colours").click()
    expect(root).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(root).to_have_attribute("data-theme", "dark")
    expect(page.get_by_role("button", name="Dark colours")).to_have_attribute("aria-pressed", "true")
    context.close()


def test_the_keyboard_is_enough(page: Any, expect: Any) -> None:
    page.select_option("#language", SHELL)
    page.locator("#language").focus()
    page.keyboard.press("F6")
    expect(page.locator(".cm-content")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator(".cm-content")).to_be_focused()  # it indented
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    expect(page.locator(".cm-content")).not_to_be_focused()
    page.keyboard.press("F1")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    run(page, SHELL, LONG)
    expect(page.locator("#output")).to_have_text("begun\n")
    page.keyboard.press("Control+.")
    expect(page.get_by_role("status")).to_have_text("Stopped")
    page.locator("#language").focus()
    page.keyboard.press("Shift+F6")
    expect(page.locator("#output")).to_be_focused()


def test_on_a_narrow_phone_everything_is_reached_without_scrolling_sideways(browser: Any, address: str, expect: Any) -> None:
    context = browser.new_context(viewport={"width": 320, "height": 640}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(address)
    page.locator("#run:enabled").wait_for()
    page.select_option("#language", SHELL)
    page.locator(".cm-content").tap()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(f"echo {'very' * 60}long >&2\n")
    page.get_by_role("button", name="Run").tap()
    expect(page.locator("#output")).to_contain_text("long")
    for tab in page.locator("#modes [role=tab]:visible").all():
        tab.tap()
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
    outside = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, textarea")].filter((one) => one.checkVisibility())
            .map((one) => [one.id || one.textContent, one.getBoundingClientRect()])
            .filter(([, box]) => box.width > 1 && (box.left < 0 || box.right > 320)).map(([name]) => name)"""
    )
    assert outside == []
    context.close()


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: make web")
@pytest.mark.parametrize("theme", ["dark", "light"])
def test_axe_finds_nothing_serious(page: Any, expect: Any, theme: str) -> None:
    page.emulate_media(color_scheme=theme)
    page.evaluate(AXE.read_text())

    def check(where: str) -> None:
        found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        serious = {one["id"]: [node["html"] for node in one["nodes"]] for one in found if one["impact"] in ("serious", "critical")}
        assert serious == {}, where

    check("at the start")
    run(page, PYTHON, "import sys\n# a comment\nclass A: pass\nprint('x', 1.5, None, len('text'))\nprint('error', file=sys.stderr)\n")
    expect(page.get_by_role("status")).to_contain_text("Exited with 0")
    check("after a run")
    page.get_by_label("Files wanted back").fill("*.py")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#collected")).to_contain_text("main.py")
    check("with files of the program")
    run(page, PYTHON, "print((\n")
    expect(page.get_by_role("status")).to_contain_text("Build failed")
    check("after a failed build")
    for tab in page.locator("#modes [role=tab]:visible").all():
        tab.click()
        check(f"with the tab {tab.text_content()}")
    expect(at_terminal(page, "echo in the terminal\n")).to_contain_text("in the terminal")
    check("with a terminal")
    page.get_by_role("button", name="Share").click()
    check("with a dialog")


def test_no_policy_allows_code_or_styles_from_elsewhere(page: Any) -> None:
    answer = page.request.get(page.url)
    policy = answer.headers["content-security-policy"]
    assert re.match(r"default-src 'none'; script-src 'self'; style-src 'self' 'nonce-[0-9a-f]{32}';", policy)
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
