"""`mayfly run` with real machines and compilers: what each kind of program comes to, and that
nothing is left of any.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import pytest

from mayfly.imagegen.checks import load_checks
from mayfly.images.store import Images
from mayfly.runs.result import TestReport as Report
from tests.kit.scale import FULL
from tests.kit.suites import SUITES, expected, told
from tests.system.test_snapshots import own_memory

pytestmark = [pytest.mark.system, pytest.mark.slow]

Results: TypeAlias = "dict[str, Future[subprocess.CompletedProcess[bytes]]]"

ROOT = Path(__file__).parents[2]
DEADLINE_S = 600
AT_ONCE = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A program, how it is run, and what must come of it.

    Attributes:
        quick: not for the whole counts only; `arm`: nor there on 64-bit Arm.
    """

    name: str
    source: str
    extension: str = ".rs"
    options: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    stdin: bytes = b""
    status: int = 0
    quick: bool = False
    arm: bool = False
    stdout: bytes | None = b""
    stderr: str = ""


def printing(text: str) -> str:
    return f'fn main() {{ print!("{text}"); }}'


GO = 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("hello") }\n'
CASES = [
    Case(name="prints", quick=True, arm=True, source=printing("hello"), stdout=b"hello"),
    Case(name="over the serial port", quick=True, source=printing("by wire"), options=("--channel", "serial"), stdout=b"by wire"),
    Case(name="exits with 7", quick=True, source="fn main() { std::process::exit(7) }", status=7),
    Case(name="does not compile", quick=True, source='fn main() { let x: i32 = "text"; }', status=1, stderr="mismatched types"),
    Case(name="panics", quick=True, source='fn main() { panic!("no way on") }', status=101, stderr="no way on"),
    Case(name="aborts", quick=True, source="fn main() { std::process::abort() }", status=134),
    Case(
        name="reads standard input and arguments",
        quick=True,
        source="""
            use std::io::Read;
            fn main() {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).unwrap();
                println!("{} {:?}", text.to_uppercase(), std::env::args().skip(1).collect::<Vec<_>>());
            }
        """,
        stdin=b"some words",
        args=("a", "b c"),
        stdout=b'SOME WORDS ["a", "b c"]\n',
    ),
    Case(
        name="prints over its limit on a serial port",
        quick=True,
        source='fn main() { for _ in 0..2000 { println!("{}", "x".repeat(63)) } }',
        options=("--channel", "serial", "--output-limit", "16K"),
        stdout=(b"x" * 63 + b"\n") * 256,
        stderr="stdout was cut",
    ),
    Case(name="loops", quick=True, source="fn main() { loop {} }", options=("--wall", "1"), status=124, stderr="wall"),
    Case(
        name="forks without end",
        quick=True,
        source="""
            unsafe extern "C" { fn fork() -> i32; }
            fn main() { loop { unsafe { fork(); } } }
        """,
        options=("--wall", "2"),
        status=124,
    ),
    Case(
        name="takes all memory",
        quick=True,
        source="fn main() { let mut all = Vec::new(); loop { all.push(vec![1u8; 1 << 20]); } }",
        options=("--run-memory", "64M"),
        status=124,
        stderr="memory",
    ),
    Case(
        name="kills its process group",
        source="""
            unsafe extern "C" { fn kill(pid: i32, signal: i32) -> i32; }
            fn main() { unsafe { kill(0, 9); } loop {} }
        """,
        status=137,
    ),
    Case(
        name="kills everything that it may",
        source="""
            unsafe extern "C" { fn kill(pid: i32, signal: i32) -> i32; }
            fn main() { unsafe { kill(-1, 9); } println!("alone"); }
        """,
        stdout=b"alone\n",
    ),
    Case(
        name="prints what is not UTF-8",
        source=r'use std::io::Write; fn main() { std::io::stdout().write_all(b"\xff\xfe\x00\n").unwrap(); }',
        stdout=b"\xff\xfe\x00\n",
    ),
    Case(
        name="leaves a child with its output, and looks its own name up",
        source="""
            use std::net::ToSocketAddrs;
            fn main() {
                std::process::Command::new("sleep").arg("1000").spawn().unwrap();
                let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
                let found = (name.trim(), 0).to_socket_addrs().unwrap().next().unwrap();
                println!("{}", found.ip());
            }
        """,
        stdout=b"127.0.1.1\n",
    ),
    Case(
        name="takes a device without an end into itself",
        source='static NOISE: &[u8] = include_bytes!("/dev/zero"); fn main() { println!("{}", NOISE.len()); }',
        status=124,
        stderr="memory",
    ),
    Case(name="is empty", source="", status=1, stderr="main"),
    Case(name="has 64 KiB", source=(printing("long") + "\n// ").ljust(65536, "y"), stdout=b"long"),
    Case(name="is written in Go", extension=".go", source=GO, stdout=b"hello\n"),
    Case(name="ends while its input comes", source=printing("enough"), stdin=b"line\n" * 400_000, stdout=b"enough"),
]


def mayfly(*arguments: str | Path, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """Run the real command."""
    command = [sys.executable, "-m", "mayfly.cli.main", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=DEADLINE_S, check=False)


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    """All selected cases, some of them at once: most of their time a guest compiles."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    selected: list[Case] = [call.params["case"] for call in calls if call and "case" in call.params]
    folder = tmp_path_factory.mktemp("snippets")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {}
        for number, case in enumerate(selected):
            source = folder / f"{number}{case.extension}"
            source.write_text(case.source)
            futures[case.name] = pool.submit(mayfly, "run", *case.options, source, "--", *case.args, stdin=case.stdin)
        yield futures


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[pytest.mark.aarch64] if case.arm else []) for case in CASES if case.quick or FULL],
)
@pytest.mark.timeout(DEADLINE_S)
def test_a_program_comes_to_its_end(case: Case, results: Results) -> None:
    done = results[case.name].result()
    message = f"status {done.returncode}, stdout {done.stdout[:200]!r}, stderr {done.stderr.decode(errors='replace')[-3000:]}"
    assert done.returncode == case.status, message
    assert case.stdout is None or done.stdout == case.stdout, message
    assert case.stderr in done.stderr.decode(), message


SUMS = {
    ".rs": """
        use std::io::Read;
        fn main() {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).unwrap();
            println!("{}", text.split_whitespace().map(|word| word.parse::<i64>().unwrap()).sum::<i64>());
        }
    """,
    ".go": """
        package main

        import "fmt"

        func main() {
            sum, number := 0, 0
            for {
                if _, err := fmt.Scan(&number); err != nil {
                    break
                }
                sum += number
            }
            fmt.Println(sum)
        }
    """,
}


@pytest.mark.timeout(2 * DEADLINE_S)
@pytest.mark.parametrize("extension", SUMS)
def test_a_program_is_built_once_for_fifty_cases(tmp_path: Path, extension: str) -> None:
    """In one guest, behind which the base is there in any case, and then in a copy of it too."""
    if extension == ".go" and not FULL:
        pytest.skip("go compiles in the emulated host; the whole counts do")
    cases = [{"stdin": f"{number} 1", "expected_stdout": str(number + 1 + (number == 7))} for number in range(50)]
    source = tmp_path / f"sum{extension}"
    source.write_text(SUMS[extension])
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    for parallel in (1, 2) if FULL else (1,):
        done = mayfly("run", "--cases", tmp_path / "cases.json", "--parallel", str(parallel), "--json", source)
        assert done.returncode == 1, done.stderr.decode(errors="replace")[-3000:]
        result = json.loads(done.stdout)
        verdicts = [row["verdict"] for row in result["cases"]["results"]]
        assert verdicts == ["passed"] * 7 + ["wrong_answer"] + ["passed"] * 42
        assert ([step["step"] for step in result["steps"]], result["cases"]["parallel"]) == (["build"], parallel)
        print(f"50 cases of {source.name} in {parallel} guests: {result['phases']}")


@pytest.mark.timeout(4 * DEADLINE_S)
@pytest.mark.parametrize("language", SUITES if FULL else ["c"])
def test_a_languages_own_checks(tmp_path: Path, language: str) -> None:
    """Those of `imagegen check`, from its base, and a suite of tests."""
    if not FULL and language not in {image.manifest.language for image in Images().installed()}:
        pytest.skip(f"there is no image of it: scripts/build-image {language}")
    made = mayfly("snapshot", "create", language)
    assert made.returncode == 0, made.stderr.decode(errors="replace")[-3000:]
    done = mayfly("image", "check", "--json", language)
    print(done.stdout.decode(), done.stderr.decode(errors="replace")[-3000:])
    assert {check["name"]: check["fault"] for check in json.loads(done.stdout)} == dict.fromkeys(
        (check.name for check in load_checks(language)), ""
    )
    suite = SUITES[language]
    for path, text in suite.files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    hidden = [word for path in suite.hidden for word in ("--hidden", tmp_path / path)]
    done = mayfly("test", "--json", "--language", language, *hidden, *(tmp_path / path for path in suite.files if path not in suite.hidden))
    tests = [Report(**test) for test in json.loads(done.stdout)["tests"]]
    assert told(tests) == expected(suite, tests), done.stderr.decode(errors="replace")[-3000:]


def test_nothing_is_left(results: Results) -> None:
    for future in results.values():
        future.result()
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.name != str(os.getpid())]
    assert not [command for command in commands if b"mayfly.vmm.process.zygote" in command]


@pytest.mark.timeout(DEADLINE_S)
def test_output_arrives_while_the_program_runs(tmp_path: Path) -> None:
    """The program waits for input after its first line, which is sent only when that line has come;
    both streams keep their order.
    """
    source = tmp_path / "talk.rs"
    source.write_text("""
        use std::io::Write;
        fn main() {
            println!("first");
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).unwrap();
            eprintln!("second");
            std::io::stdout().write_all(line.as_bytes()).unwrap();
        }
    """)
    command = [sys.executable, "-m", "mayfly.cli.main", "run", str(source)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        assert process.poll() is None
        stdout, stderr = process.communicate(b"third\n", timeout=DEADLINE_S)
    assert (stdout, stderr, process.returncode) == (b"third\n", b"second\n", 0)


@pytest.mark.skipif(not FULL, reason="a hundred machines; the whole counts have them")
def test_a_hundred_idle_clones_of_rust() -> None:
    """None fails, and each has at most 24 MiB of its own: guest pages that it changed, and its vmm
    process.
    """
    with tempfile.TemporaryDirectory(prefix="mayfly-") as folder:
        sizes = own_memory(Path(folder), "rust", 100)
    assert len(sizes) == 101
    assert max(sizes) < 24 * 1024


@pytest.mark.skipif(not FULL, reason="compiles in the emulated host; the whole counts do")
@pytest.mark.skipif(sys.prefix != sys.base_prefix, reason="in a virtual environment tests/unit/test_wheel.py has it, with what pip fetches")
@pytest.mark.timeout(DEADLINE_S)
def test_what_pip_installs_runs_a_program(tmp_path: Path) -> None:
    """Built from the sources on a host without network, as the emulated Arm host is."""
    sources, installed = tmp_path / "sources", tmp_path / "installed"
    for package in ("mayfly", "vmm", "imagegen", "api"):
        shutil.copytree(ROOT / package, sources / package, ignore=shutil.ignore_patterns("__pycache__", "_kvm.*"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def python(*arguments: str | Path) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    python("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "--target", installed, sources)
    assert python("-c", "import mayfly.vmm.kvm._kvm; print(mayfly.vmm.kvm._kvm.__file__)").startswith(str(installed))
    snippet = tmp_path / "hello.rs"
    snippet.write_text(printing("hello"))
    assert python(installed / "bin/mayfly", "run", snippet) == "hello"
