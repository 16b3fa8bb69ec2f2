"""Programs of WebAssembly in real guests: stopped in one and resumed in another, which has neither
their source nor a compiler; some of them are compiled from Rust, Go and C in their guests.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly import paths
from mayfly.client.blocking import BlockingRun, Client
from mayfly.client.results import StdoutEvent
from tests.kit import toy, wasm_programs
from tests.kit.scale import FULL
from tests.system.test_service import Server
from tests.unit.wasm.test_checkpoints import echo

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1200)]

SOURCES = {
    "rust": """
fn main() {
    let mut line = String::new();
    let mut sum = 1.5f64;
    println!("ready");
    while std::io::stdin().read_line(&mut line).unwrap() > 0 {
        sum = sum * 1.1 + line.len() as f64;
        println!("{sum}");
        line.clear();
    }
}
""",
    "go": (wasm_programs.SOURCES / "sums.go").read_text(),
    "c": """
#include <stdio.h>
#include <string.h>

int main(void) {
    char line[80];
    double sum = 1.5;
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        sum = sum * 1.1 + strlen(line);
        printf("%.17g\\n", sum);
        fflush(stdout);
    }
    return 0;
}
""",
}
MISTAKES = {
    "rust": ('fn main() { let x: i32 = "text"; }', "mismatched types"),
    "go": ("package main\n\nfn main() {}", "syntax error"),
    "c": ("int main(void) { return missing; }", "undeclared identifier"),
}
LINES = ("one\n", "and two\n", "three, at last\n")


def expected() -> list[float]:
    """What the programs write behind their first line."""
    sums = [1.5]
    for line in LINES:
        sums.append(sums[-1] * 1.1 + len(line))
    return sums[1:]


def need(language: str, arch: str = toy.MACHINE) -> None:
    """Skip the test where the language has no image, or one that only the whole counts have."""
    if language != "wasm" and not FULL:
        pytest.skip(f"the image of {language} is one of the whole counts")
    if not paths.image_dir(language, arch).is_dir():
        pytest.skip(f"there is no image of {language}: scripts/build-image {language} --arch {arch}")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    need("wasm")
    languages = [name for name in ("wasm", *(f"{name}-wasm" for name in SOURCES)) if paths.image_dir(name, toy.MACHINE).is_dir()]
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        server = Server(Path(name), *(part for name in languages for part in ("--language", name)))
        with Client(server.socket) as client:
            yield client
        server.close()


def read(run: BlockingRun, lines: int) -> list[str]:
    """The run's first lines."""
    text = b""
    for event in run:
        text += event.data if isinstance(event, StdoutEvent) else b""
        if text.count(b"\n") >= lines:
            break
    return text.decode().splitlines()


def test_a_module_goes_on_from_its_checkpoint(client: Client) -> None:
    with client.start(echo().encoded(), language="wasm", interactive=True, stdin="before ") as first:
        for event in first:
            if isinstance(event, StdoutEvent):
                break
        state = first.checkpoint()
        assert (first.result().stdout, first.result().exit_status) == ("before ", 75)
    result = client.run(state, language="wasm", stdin="and after")
    assert (result.stdout, result.exit_status) == ("and after", 0), result.stderr


@pytest.mark.parametrize("language", SOURCES)
def test_a_program_goes_on_from_its_checkpoint(client: Client, language: str) -> None:
    need(f"{language}-wasm")
    with client.start(SOURCES[language], language=language, target="wasm", interactive=True) as first:
        assert read(first, 1) == ["ready"]
        first.send(LINES[0])
        before = read(first, 2)[1:]
        state = first.checkpoint()
        assert first.result().exit_status == 75
    with client.start(state, language="wasm", stdin="".join(LINES[1:])) as second:
        result = second.result()
    assert (list(map(float, before + result.stdout.splitlines())), result.exit_status) == (expected(), 0), result.stderr


@pytest.mark.parametrize("language", MISTAKES)
def test_it_is_built_with_its_mistakes_shown(client: Client, language: str) -> None:
    need(f"{language}-wasm")
    source, mistake = MISTAKES[language]
    result = client.run(source, language=language, target="wasm")
    assert result.status == "build_failed"
    assert mistake in result.stderr
