"""The steps of the language files, run by the agent with this host's own compilers: what a snippet
gets is what the language's own tool does.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.imagegen.languages import load_language, offered
from mayfly.protocol import frames as p
from tests.kit.agent_process import AgentProcess, Result, greeted
from tests.kit.agent_process import executable as executable
from tests.kit.wasm import TRAPPED
from tests.kit.wasm import build as build_runtime
from tests.kit.wasm_programs import compiler

HAS_RUST = shutil.which("rustc") is not None
HAS_GO = shutil.which("go") is not None
GO_CACHE, GO_CACHE_OF_RUN = "/var/cache/go", "/tmp/go-build"
needs_rust = pytest.mark.skipif(not HAS_RUST, reason="rustc is not installed")
needs_go = pytest.mark.skipif(not HAS_GO, reason="go is not installed")


@pytest.fixture
def agent(executable: Path) -> Iterator[AgentProcess]:
    """An agent whose steps run as ourselves, who can read this host's compilers."""
    with greeted(executable, uid=os.geteuid()) as process:
        yield process


def version_here(name: str) -> str:
    """The version of this machine's compiler."""
    said = subprocess.run(load_language(name).version_command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+\.\d+(\.\d+)?", said)
    assert found is not None, said
    return found[0]


def run(agent: AgentProcess, name: str, files: dict[str, str], stdin: bytes = b"", path: str = "") -> Result:
    """Run files as a snippet of a language, with its compiler in `path` or wherever it is here."""
    language = load_language(name)
    version = load_language(name).default_version if path else version_here(name)
    replaced = {f"{{{option}}}": found.default for option, found in offered(language, version).items()}
    replaced |= {"/usr/bin/mayfly-wasm": str(build_runtime())} if language.target else {}
    replaced |= {GO_CACHE: str(agent.work.parent / "cache"), GO_CACHE_OF_RUN: str(agent.work.parent / "run" / "cache")}

    def local(text: str) -> str:
        for old, new in replaced.items():
            text = text.replace(old, new)
        return text

    env = {"PATH": f"{path}:{os.environ['PATH']}", "HOME": str(Path.home()), **{key: local(value) for key, value in language.env.items()}}
    steps = [
        p.Step(
            step.name,
            tuple(local(part) for part in step.argv if part != "{args}"),
            cwd=step.cwd,
            env=tuple({**env, **step.env}.items()),
            wall_ms=60_000,
            stdin=step.stdin,
        )
        for step in language.steps
    ]
    agent.start(*steps, files=[(path, text.encode()) for path, text in files.items()])
    agent.send(p.Stdin(stdin), p.StdinEof())
    return agent.result()


@pytest.fixture
def go_agent(agent: AgentProcess) -> AgentProcess:
    """An agent beside a cache of Go as an image has it, and a place for the run's own."""
    (agent.work.parent / "run").mkdir(mode=0o777)
    (agent.work.parent / "run").chmod(0o777)
    for number in range(256):
        folder = agent.work.parent / "cache" / f"{number:02x}"
        folder.mkdir(parents=True)
        folder.chmod(0o777)
    return agent


@needs_rust
@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("n.parse::<u8>().unwrap() + 1", b"attempt to add with overflow"),
        ("n.parse::<u8>().unwrap() << n.len() * 3", b"attempt to shift left with overflow"),
        ('{ debug_assert!(n.is_empty(), "not empty"); 1 }', b"not empty"),
        ('if cfg!(debug_assertions) { panic!("checked") } else { 1 }', b"checked"),
    ],
    ids=["add", "shift", "debug_assert", "cfg"],
)
def test_rust_has_the_checks_of_cargo_run(agent: AgentProcess, expression: str, message: bytes) -> None:
    source = f'fn main() {{ let n = "255".to_string(); let m: u8 = {expression}; println!("{{m}}"); }}'
    result = run(agent, "rust", {"main.rs": source})
    assert (result.stages, result.exits[-1].code, result.stdout) == (["build", "run"], 101, b"")
    assert message in result.stderr


@needs_rust
@pytest.mark.parametrize(
    "source",
    ["pub fn leap() {}\n", '#![crate_type = "lib"]\npub fn leap() {}\n', '#![crate_type = "staticlib"]\n'],
    ids=["none", "lib", "staticlib"],
)
def test_a_rust_library_is_a_failed_build(agent: AgentProcess, source: str) -> None:
    result = run(agent, "rust", {"main.rs": source})
    assert (result.stages, result.exit.code) == (["build"], 1)
    assert b"`main` function not found in crate `main`" in result.stderr


@needs_rust
def test_a_rust_program_that_calls_itself_a_library_runs(agent: AgentProcess) -> None:
    result = run(agent, "rust", {"main.rs": '#![crate_type = "lib"]\nfn main() { println!("ran"); }\n'})
    assert (result.stages, result.stdout) == (["build", "run"], b"ran\n")


@needs_go
@pytest.mark.parametrize("module", [False, True], ids=["files", "module"])
def test_a_go_package_that_is_not_a_program_is_a_failed_build(go_agent: AgentProcess, module: bool) -> None:
    files = {"leap.go": "package leap\n\nfunc Leap() bool { return true }\n", **({"go.mod": "module leap\n\ngo 1.19\n"} if module else {})}
    result = run(go_agent, "go", files)
    assert (result.stages, result.exit.code, result.stdout) == (["build"], 1, b"")
    assert b"not a main package" in result.stderr


@needs_go
def test_a_folder_with_the_go_programs_name_is_a_failed_build(go_agent: AgentProcess) -> None:
    result = run(go_agent, "go", {"main.go": "package main\n\nfunc main() {}\n", "main/data": "x"})
    assert (result.stages, result.exit.code) == (["build"], 1)
    assert b"main is a folder" in result.stderr


@needs_go
def test_go_tests_beside_a_program_are_left_out(go_agent: AgentProcess) -> None:
    program = 'package main\n\nfunc main() { println("ran") }\n'
    test = 'package main\n\nimport "testing"\n\nfunc TestIt(t *testing.T) { undefined() }\n'
    result = run(go_agent, "go", {"main.go": program, "main_test.go": test})
    assert (result.stages, result.stderr) == (["build", "run"], b"ran\n")
    assert not (go_agent.work.parent / "cache" / "trim.txt").exists(), "what stays from run to run is not written to"


@needs_go
def test_go_tests_alone_are_a_failed_build_in_gos_words(go_agent: AgentProcess) -> None:
    test = 'package main\n\nimport "testing"\n\nfunc TestIt(t *testing.T) {}\n'
    result = run(go_agent, "go", {"a.go": "package main\n\nfunc one() int { return 1 }\n", "a_test.go": test})
    assert (result.stages, result.exit.code) == (["build"], 2)
    assert b"function main is undeclared in the main package" in result.stderr


def test_python_warns_once_and_leaves_no_cache(agent: AgentProcess) -> None:
    source = 'import os\nx = 1 is 1\nprint(sorted(os.listdir(".")))\n'
    result = run(agent, "python", {"main.py": source})
    assert (result.stages, result.stdout) == (["build", "run"], b"['main.py']\n")
    assert result.stderr.count(b"SyntaxWarning") == 1


def test_an_error_of_syntax_in_python_is_a_failed_build(agent: AgentProcess) -> None:
    result = run(agent, "python", {"main.py": "if x\n"})
    assert (result.stages, result.exit.code) == (["build"], 1)
    assert b"SyntaxError" in result.stderr


@needs_rust
@pytest.mark.skipif(not HAS_RUST or tuple(map(int, version_here("rust").split("."))) < (1, 85), reason="rustc is older than edition 2024")
def test_rust_is_of_the_newest_edition(agent: AgentProcess) -> None:
    # Future is in the prelude of 2024 only.
    source = 'fn f(_: impl Future) {}\nfn main() { f(async {}); println!("ok"); }\n'
    assert run(agent, "rust", {"main.rs": source}).stdout == b"ok\n"


RUST_TO_WASM = """
fn main() {
    let n: u8 = std::env::args().count() as u8;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    println!("{} {}", line.trim(), std::env::var("HOME").is_ok());
    if line.starts_with("over") { println!("{}", n + 255); }
}
"""


def test_rust_is_compiled_to_webassembly(agent: AgentProcess) -> None:
    result = run(agent, "rust-wasm", {"main.rs": RUST_TO_WASM}, b"a line\n", path=str(compiler("rust")))
    assert (result.stages, result.stdout, result.exits[-1].code) == (["build", "run"], b"a line true\n", 0), result.stderr


def test_rust_as_webassembly_has_the_checks_of_cargo_run(agent: AgentProcess) -> None:
    result = run(agent, "rust-wasm", {"main.rs": RUST_TO_WASM}, b"over\n", path=str(compiler("rust")))
    assert result.exits[-1].code == TRAPPED
    assert b"attempt to add with overflow" in result.stderr


def test_go_is_compiled_to_webassembly(go_agent: AgentProcess) -> None:
    source = 'package main\n\nimport "os"\n\nfunc main() { println("ran"); os.Exit(7) }\n'
    result = run(go_agent, "go-wasm", {"main.go": source}, path=str(compiler("go")))
    assert (result.stages, result.stderr, result.exits[-1].code) == (["build", "run"], b"ran\n", 7)


def test_a_go_package_that_is_not_a_program_is_a_failed_build_for_webassembly_too(go_agent: AgentProcess) -> None:
    result = run(go_agent, "go-wasm", {"leap.go": "package leap\n"}, path=str(compiler("go")))
    assert (result.stages, result.exit.code) == (["build"], 1)
    assert b"not a main package" in result.stderr
