"""Published clients of the contracts of others, curl, and the page in a browser, all over TCP with
a key: on a server whose guests have the real languages, each restored from its language's base.
"""

import asyncio
import base64
import functools
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mayfly import paths
from mayfly.errors import UnknownLanguageError
from mayfly.host.config import Config
from mayfly.host.keys import create, default_path
from mayfly.host.plan import want_machine
from mayfly.images.store import Images
from mayfly.snapshots.making import find_base
from tests.kit.scale import FULL, patience, time_factor
from tests.system.test_service import CONTRACTS, DEADLINE_S, Server, command

# An emulated Arm host has none of them.
judge0 = pytest.importorskip("judge0")
ultra_piston = pytest.importorskip("ultra_piston")
fusion = pytest.importorskip("sandbox_fusion")
aiohttp = pytest.importorskip("aiohttp")

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]


class Program(NamedTuple):
    """A program that prints its standard input in capitals, and says so on standard error; one that
    cannot be built; Judge0's number.
    """

    source: str
    broken: str
    number: int


PROGRAMS = {
    "rust": Program(
        """
        fn main() {
            let text = std::io::read_to_string(std::io::stdin()).unwrap();
            println!("{}", text.trim().to_uppercase());
            eprintln!("done");
        }
        """,
        "fn main() { let x: u8 = true; }",
        73,
    ),
    "python": Program("import sys\nprint(sys.stdin.read().strip().upper())\nprint('done', file=sys.stderr)\n", "print((\n", 71),
    "go": Program(
        """
        package main

        import ("fmt"; "io"; "os"; "strings")

        func main() {
            text, _ := io.ReadAll(os.Stdin)
            fmt.Println(strings.ToUpper(strings.TrimSpace(string(text))))
            fmt.Fprintln(os.Stderr, "done")
        }
        """,
        "package main\n\nfunc main() { var x int = true }\n",
        60,
    ),
}
LANGUAGES = tuple(PROGRAMS) if FULL else ("python",)
"""A build takes long in an emulated host; how its end is told, tests with toys show."""


class Served(NamedTuple):
    """A server's TCP address, a key for it, and the address of its page."""

    url: str
    token: str
    page: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all, with keys of its own, and a base of each language."""
    data = tmp_path_factory.mktemp("data")
    (data / "mayfly").mkdir()
    for name in ("images", "kernel", "snapshots"):
        there = paths.data_dir() / name
        there.mkdir(exist_ok=True)
        (data / "mayfly" / name).symlink_to(there.resolve())
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="mayfly-") as folder:
        patch.setenv("XDG_DATA_HOME", str(data))
        for language in LANGUAGES:
            make_base(language)
        token = create(default_path(), "tests")
        options = [*(word for contract in CONTRACTS for word in ("--compat", contract)), "--listen", "127.0.0.1:0", "--playground"]
        server = Server(Path(folder), *options, cold=False)
        assert server.process.stderr is not None
        page = server.process.stderr.readline().decode().split()[-1]
        yield Served(server.urls[0], token, page)
        server.close()


def make_base(language: str) -> None:
    """Make what the language's runs start from, unless it is there."""
    config = Config.load().scaled(time_factor())
    try:
        image = Images(()).find(language)
    except UnknownLanguageError:
        return
    if find_base(want_machine(image, config)) is None:
        subprocess.run(command("snapshot", "create", language), check=True, timeout=900)


@pytest.fixture(params=LANGUAGES)
def program(request: pytest.FixtureRequest, served: Served) -> tuple[str, Program]:
    """A language and its program."""
    if not (paths.data_dir() / "images" / request.param).is_dir():
        pytest.skip(f"there is no image of {request.param}: make test-images")
    return request.param, PROGRAMS[request.param]


def curl(served: Served, path: str, body: Any) -> tuple[int, Any]:
    """Post a body; the status and the answer."""
    headers = ["-H", f"Authorization: Bearer {served.token}", "-H", "Content-Type: application/json"]
    asked = ["curl", "-sS", *headers, "--data-binary", "@-", "-w", "\n%{http_code}", served.url + path]
    done = subprocess.run(asked, input=json.dumps(body), capture_output=True, text=True, check=True, timeout=DEADLINE_S)
    answer, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(answer)


def test_piston(served: Served, program: tuple[str, Program], monkeypatch: pytest.MonkeyPatch) -> None:
    language, (source, _, _) = program
    import httpx

    # The client waits for 5 s, as httpx does by default; an emulated host takes longer.
    monkeypatch.setattr(httpx, "post", functools.partial(httpx.post, timeout=patience(60)))
    client = ultra_piston.PistonClient(base_url=f"{served.url}/piston/api/v2/", api_key=served.token, rate_limit=0)
    runtimes = {one.language: one.version for one in client.get_runtimes()}
    found = client.post_execute(language, "*", ultra_piston.File(content=source), stdin="in")
    assert (found.language, found.version) == (language, runtimes[language])
    assert (found.run.code, found.run.stdout, found.run.stderr, found.run.signal) == (0, "IN\n", "done\n", None)
    assert (found.compile is None) is (language == "python")


def test_pistons_websocket(served: Served, program: tuple[str, Program]) -> None:
    language, (source, _, _) = program

    async def talk() -> list[dict[str, Any]]:
        headers = {"Authorization": served.token}
        said = []
        async with aiohttp.ClientSession() as client, client.ws_connect(f"{served.url}/piston/api/v2/connect", headers=headers) as socket:
            await socket.send_json({"type": "init", "language": language, "version": "*", "files": [{"content": source}]})
            async for message in socket:
                said.append(json.loads(message.data))
                if said[-1] == {"type": "stage", "stage": "run"}:
                    await socket.send_json({"type": "data", "stream": "stdin", "data": "in\n"})
                    await socket.send_json({"type": "data", "stream": "stdin", "data": None})
            assert socket.close_code == 4999
        return said

    said = asyncio.run(asyncio.wait_for(talk(), patience(120)))
    assert said[0]["type"] == "runtime"
    assert [one["stage"] for one in said if one["type"] == "stage"] == ["run"] if language == "python" else ["compile", "run"]
    for stream, text in (("stdout", "IN\n"), ("stderr", "done\n")):
        assert "".join(one["data"] for one in said if one.get("stream") == stream) == text
    assert said[-1] == {"type": "exit", "stage": "run", "code": 0, "signal": None}


def test_judge0(served: Served, program: tuple[str, Program]) -> None:
    """The official SDK with one case and with several; a plain request that waits, of what does not
    compile.
    """
    _, (source, broken, number) = program
    client = judge0.Client(endpoint=f"{served.url}/judge0", headers={"X-Auth-Token": served.token})
    one = judge0.run(client=client, source_code=source, language=number, stdin="in", expected_output="IN")
    assert (one.status, one.stdout, one.stderr, one.exit_code) == (judge0.Status.ACCEPTED, "IN\n", "done\n", 0)
    cases = [judge0.TestCase("a", "A"), judge0.TestCase("b", "C")]
    several = judge0.run(client=client, source_code=source, language=number, test_cases=cases)
    assert [(case.status, case.stdout) for case in several] == [
        (judge0.Status.ACCEPTED, "A\n"),
        (judge0.Status.WRONG_ANSWER, "B\n"),
    ]
    body = {"source_code": broken, "language_id": number}
    status, found = curl(served, "/judge0/submissions?wait=true", body)
    interpreted = number == PROGRAMS["python"].number
    assert (status, found["status"]["id"]) == (201, 11 if interpreted else 6)
    assert found["stderr" if interpreted else "compile_output"]


def test_sandboxfusion(served: Served, program: tuple[str, Program], monkeypatch: pytest.MonkeyPatch) -> None:
    language, (source, _, _) = program
    import requests

    post = requests.post  # the client has no place for a key
    monkeypatch.setattr(requests, "post", lambda url, **options: post(url, headers={"X-Auth-Token": served.token}, **options))
    asked = fusion.RunCodeRequest(code=source, language=language, stdin="in", compile_timeout=60, run_timeout=10)
    found = fusion.run_code(asked, endpoint=f"{served.url}/sandboxfusion")
    assert (found.status, found.run_result.status, found.run_result.return_code) == ("Success", "Finished", 0)
    assert (found.run_result.stdout, found.run_result.stderr) == ("IN\n", "done\n")


def test_polycode_and_codapi_by_curl(served: Served, program: tuple[str, Program]) -> None:
    language, (source, broken, _) = program
    body: dict[str, Any] = {"sourceCode": source, "language": language, "stdin": ["in"]}
    status, found = curl(served, "/polycode/run", body)
    assert (status, found["stdout"], found["stderr"], found["exitCode"]) == (201, "IN", "done", 0)
    body = {"id": "1", "source": broken, "compilerOptions": {"language": language, "version": ""}}
    status, found = curl(served, "/polycode/run", body)
    assert (status, found["success"], found["output"]["stdout"]) == (201, False, "")
    assert found["output"]["stderr"]
    status, found = curl(served, "/codapi/v1/exec", {"sandbox": language, "command": "run", "files": {"": source}})
    assert (status, found["ok"], found["stdout"], found["stderr"]) == (200, True, "", "done")


needs = pytest.mark.skipif(not FULL, reason="has an image that only the whole counts have")


def installed(language: str) -> None:
    if not (paths.data_dir() / "images" / language).is_dir():
        pytest.skip(f"there is no image of {language}: make test-images")


@needs
def test_go_test_and_pytest(served: Served) -> None:
    """SandboxFusion's ways to run tests. Where the image of Python has no pytest it is said."""
    installed("go")
    installed("python")
    code = """
        package main

        import "testing"

        func TestRight(t *testing.T) {}

        func TestSum(t *testing.T) {
            if 1+1 != N {
                t.Fatal("wrong")
            }
        }
    """
    for number, status, word in (("2", "Success", "ok"), ("3", "Failed", "FAIL")):
        body = {
            "code": code.replace("N", number),
            "language": "go_test",
            "run_timeout": 60,
            "files": {"x.go": base64.b64encode(b"?").decode()},
        }
        _, found = curl(served, "/sandboxfusion/run_code", body)
        assert (found["status"], found["compile_result"]) == (status, None), found
        assert word in found["run_result"]["stdout"]
    _, found = curl(served, "/polycode/run", {"sourceCode": "import pytest", "language": "python"})
    has = found["exitCode"] == 0
    _, found = curl(served, "/sandboxfusion/run_code", {"code": "def test(): pass", "language": "pytest"})
    assert (found["status"], "no pytest" in found["message"]) == (("Success", False) if has else ("SandboxError", True))


@needs
@pytest.mark.browser
@pytest.mark.timeout(1800)
def test_the_page(served: Served, tmp_path: Path) -> None:
    """A program is typed, run, stopped, has cases, and is talked to at a terminal."""
    installed("python")
    from playwright.sync_api import expect, sync_playwright

    from tests.kit.page_server import find_chromium
    from tests.page.test_page import fill_cases, write

    wait_ms = int(patience(60) * 1000)
    expect.set_options(timeout=wait_ms)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"], timeout=wait_ms)
        page = browser.new_page()
        page.set_default_timeout(wait_ms)
        page.goto(served.page)
        page.locator("#run:enabled").wait_for()
        python = page.locator("#language option", has_text="Python").first.get_attribute("value")
        page.select_option("#language", python)

        def run(text: str) -> None:
            write(page, text)
            page.get_by_role("button", name="Run").click()

        status = page.get_by_role("status")
        run("print('typed', input())\n")
        expect(status).to_contain_text("Exited with 1")  # there is nothing to read
        page.get_by_role("textbox", name="Standard input").fill("words")
        page.get_by_role("button", name="Run").click()
        expect(page.locator("#output")).to_have_text("typed words\n")
        expect(status).to_contain_text("Exited with 0")
        run("print('begun')\nwhile True: pass\n")
        expect(page.locator("#output")).to_have_text("begun\n")
        page.get_by_role("button", name="Stop").click()
        expect(status).to_have_text("Stopped")
        fill_cases(page, [("1 2", "3"), ("2 2", "5")])
        run("print(sum(map(int, input().split())))\n")
        expect(status).to_contain_text("1 of 2 cases passed")
        expect(page.locator("#cases tbody strong").nth(1)).to_contain_text("wrong answer")
        page.get_by_role("tab", name="Terminal").click()
        run("import os\nprint(os.isatty(0), end=' name?')\nprint(' hello', input())\n")
        screen = page.locator(".xterm-rows")
        expect(screen).to_contain_text("True name?")
        page.locator(".xterm-helper-textarea").focus()
        page.keyboard.type("Ada\n")
        expect(screen).to_contain_text("hello Ada")
        expect(status).to_contain_text("Exited with 0")
        page.screenshot(path=str(tmp_path / "page.png"))
        browser.close()
