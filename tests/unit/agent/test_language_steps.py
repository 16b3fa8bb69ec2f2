"""The steps of the language files, run by the agent with this host's own compilers: what a snippet
gets is what the language's own tool does.
"""

import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from mayfly.imagegen.languages import Language, load_language, offered
from mayfly.images.manifest import LanguageStep
from mayfly.protocol import frames as p
from tests.kit.agent_process import ROOT, AgentProcess, Result, greeted
from tests.kit.agent_process import executable as executable
from tests.kit.prepared_here import prepared_here
from tests.kit.scale import FULL
from tests.kit.wasm import TRAPPED
from tests.kit.wasm import build as build_runtime
from tests.kit.wasm_programs import compiler

HAS_RUST = shutil.which("rustc") is not None
HAS_GO = shutil.which("go") is not None
HAS_NODE = shutil.which("node") is not None
HAS_GCC = shutil.which("g++") is not None
GO_CACHE, GO_CACHE_OF_RUN = "/var/cache/go", "/tmp/go-build"
needs_rust = pytest.mark.skipif(not HAS_RUST, reason="rustc is not installed")
needs_node = pytest.mark.skipif(not HAS_NODE, reason="node is not installed")
needs_gcc = pytest.mark.skipif(not HAS_GCC, reason="g++ is not installed")
needs_java = pytest.mark.skipif(shutil.which("javac") is None, reason="javac is not installed")
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


def run(agent: AgentProcess, name: str, files: dict[str, str], stdin: bytes = b"", path: str = "", **options: str) -> Result:
    """Run files as a snippet of a language, with its compiler in `path` or wherever it is here."""
    language = load_language(name)
    agent.start(
        *steps_here(agent, language, language.steps, path, options=options), files=[(path, text.encode()) for path, text in files.items()]
    )
    agent.send(p.Stdin(stdin), p.StdinEof())
    return agent.result()


def steps_here(
    agent: AgentProcess,
    language: Language,
    steps: Sequence[LanguageStep],
    path: str = "",
    *,
    wall_ms: int = 60_000,
    hidden: Sequence[str] = (),
    options: Mapping[str, str] = {},
) -> list[p.Step]:
    """Steps of a language with this host's places in them, and the options that are given."""
    version = language.default_version if path else version_here(language.name)
    replaced = {f"{{{option}}}": found.default for option, found in offered(language, version).items()}
    replaced |= {f"{{{option}}}": value for option, value in options.items()}
    replaced |= {"/usr/bin/mayfly-wasm": str(build_runtime())} if language.target else {}
    replaced |= prepared_here(language.name)
    replaced |= {GO_CACHE: str(agent.work.parent / "cache"), GO_CACHE_OF_RUN: str(agent.work.parent / "run" / "cache")}

    def local(text: str) -> str:
        for old, new in replaced.items():
            text = text.replace(old, new)
        return text

    env = {"PATH": f"{path}:{os.environ['PATH']}", "HOME": str(Path.home()), **{key: local(value) for key, value in language.env.items()}}
    several = {"{args}": (), "{hidden}": tuple(hidden)}
    return [
        p.Step(
            step.name,
            tuple(part for piece in step.argv for part in several.get(piece, (local(piece),))),
            cwd=step.cwd,
            env=tuple({**env, **step.env}.items()),
            wall_ms=wall_ms,
            stdin=step.stdin,
        )
        for step in steps
    ]


def go_caches(agent: AgentProcess) -> None:
    """Make a cache of Go beside an agent, as an image has it, and a place for the run's own."""
    (agent.work.parent / "run").mkdir(mode=0o777)
    (agent.work.parent / "run").chmod(0o777)
    for number in range(256):
        folder = agent.work.parent / "cache" / f"{number:02x}"
        folder.mkdir(parents=True)
        folder.chmod(0o777)


@pytest.fixture
def go_agent(agent: AgentProcess) -> AgentProcess:
    """An agent beside a cache of Go."""
    go_caches(agent)
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
@pytest.mark.parametrize(("main", "says"), [("src/main.rs", ""), ("src/p.rs", '\n[[bin]]\nname = "p"\npath = "src/p.rs"\n')])
def test_a_rust_project_is_built_without_cargo(agent: AgentProcess, tmp_path: Path, main: str, says: str) -> None:
    """As images without packages are."""
    for tool in ("rustc", "cc", "ld", "sh"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    files = {
        "Cargo.toml": (
            '[package]\nname = "leap-year"\nversion = "0.3.1"\nedition = "2018"\n\n[features]\ndefault = ["std", \'more\']\n'
            'default-impl = ["other"]\nother = []\nstd = []\n\n[lib]\nname = "leap"\n'
            f"{says}"
        ),
        "src/lib.rs": (
            '#[cfg(all(feature = "std", feature = "more", not(feature = "other")))]\npub fn number() -> u8 { let gen = 3; gen }\n'
        ),
        main: 'fn main() { println!("{} {} {}", leap::number(), env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")); }\n',
    }
    step, *rest = steps_here(agent, load_language("rust"), load_language("rust").steps)
    env = tuple((name, str(tmp_path) if name == "PATH" else value) for name, value in step.env)
    agent.start(dataclasses.replace(step, env=env), *rest, files=[(path, text.encode()) for path, text in files.items()])
    agent.send(p.StdinEof())
    result = agent.result()
    assert (result.stages, result.stdout) == (["build", "run"], b"3 leap-year 0.3.1\n"), result.stderr


@needs_rust
def test_a_rust_program_that_calls_itself_a_library_runs(agent: AgentProcess) -> None:
    result = run(agent, "rust", {"main.rs": '#![crate_type = "lib"]\nfn main() { println!("ran"); }\n'})
    assert (result.stages, result.stdout) == (["build", "run"], b"ran\n")


@needs_rust
def test_a_rust_program_in_src_needs_no_cargo_toml(agent: AgentProcess) -> None:
    result = run(
        agent, "rust", {"src/main.rs": 'mod a;\n\nfn main() { println!("{}", a::ONE); }\n', "src/a.rs": "pub const ONE: u8 = 1;\n"}
    )
    assert result.stdout == b"1\n", result.stderr


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
def test_a_go_program_may_be_in_a_folder_of_its_module(go_agent: AgentProcess) -> None:
    files = {
        "go.mod": "module leap\n\ngo 1.18\n",
        "cmd/app/main.go": 'package main\n\nimport "leap/lib"\n\nfunc main() { println(lib.One) }\n',
        "lib/lib.go": "package lib\n\nconst One = 1\n",
    }
    result = run(go_agent, "go", files)
    assert (result.stages, result.stderr) == (["build", "run"], b"1\n")
    result = run(go_agent, "go", {**files, "cmd/b/b.go": "package main\n\nfunc main() {}\n"})
    assert b"several programs" in result.stderr


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


HELLO_STDIN = {
    "javascript": {"main.js": 'console.log("hello " + require("fs").readFileSync(0, "utf8").trim()); process.exitCode = 3;'},
    "typescript": {
        "main.ts": 'import * as fs from "fs";\n'
        'const name: string = fs.readFileSync(0, "utf8").trim();\n'
        "console.log(`hello ${name}`);\nprocess.exit(3);"
    },
    "java": {
        "Main.java": "public class Greeter {\n  public static void main(String[] args) {\n"
        '    System.out.println("hello " + new java.util.Scanner(System.in).next());\n    System.exit(3);\n  }\n}\n'
    },
    "c": {"main.c": '#include <stdio.h>\nint main(void) { char s[9]; scanf("%8s", s); printf("hello %s\\n", s); return 3; }'},
    "cpp": {"main.cpp": '#include <iostream>\nint main() { std::string s; std::cin >> s; std::cout << "hello " << s << "\\n"; return 3; }'},
}
"""Programs that greet whom they are told, and end with 3."""


@needs_node
@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("main.js", 'import fs from "fs"; console.log(typeof require, typeof fs.openSync);'),
        ("main.js", "console.log(typeof require, await Promise.resolve('function'));"),
        ("main.mjs", "console.log(typeof require, typeof setTimeout);"),
        ("main.cjs", "console.log(typeof await_, typeof require); var await_;"),
    ],
    ids=["import", "await", "mjs", "cjs"],
)
def test_a_script_is_what_its_extension_or_its_text_says(agent: AgentProcess, name: str, source: str) -> None:
    result = run(agent, "javascript", {name: source})
    assert (result.stages, result.stdout, result.stderr) == (["run"], b"undefined function\n", b"")


@needs_node
def test_scripts_find_the_files_beside_them(agent: AgentProcess) -> None:
    files = {"main.js": 'console.log(require("./lib/sum")(1, 2));', "lib/sum.js": "module.exports = (a, b) => a + b;"}
    assert run(agent, "javascript", files).stdout == b"3\n"
    files = {
        "main.mjs": 'import { sum } from "./lib/sum.mjs"; console.log(sum(1, 2));',
        "lib/sum.mjs": "export const sum = (a, b) => a + b;",
    }
    assert run(agent, "javascript", files).stdout == b"3\n"


@needs_node
def test_a_script_may_be_an_index(agent: AgentProcess) -> None:
    files = {"src/index.js": "console.log(require('./one'), __dirname.slice(-8));\n", "src/one.js": "module.exports = 1;\n"}
    assert run(agent, "javascript", files).stdout == b"1 work/src\n"
    assert run(agent, "javascript", {**files, "index.mjs": "console.log(2);\n"}).stdout == b"2\n"


@needs_node
def test_what_is_wrong_with_a_script_is_nodes_to_say(agent: AgentProcess) -> None:
    result = run(agent, "javascript", {"main.js": "let x = ;"})
    assert (result.stages, result.exit.code) == (["run"], 1)
    assert b"SyntaxError: Unexpected token ';'" in result.stderr


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("javascript", marks=needs_node),
        pytest.param("java", marks=needs_java),
        pytest.param("c", marks=needs_gcc),
        pytest.param("cpp", marks=needs_gcc),
    ],
)
def test_programs_read_write_and_end(agent: AgentProcess, name: str) -> None:
    result = run(agent, name, HELLO_STDIN[name], b"world\n")
    assert (result.stdout, result.exits[-1].code) == (b"hello world\n", 3), result.stderr


@needs_gcc
@pytest.mark.parametrize(("name", "suffix"), [("c", ".c"), ("cpp", ".cc")])
def test_a_project_in_folders_is_compiled(agent: AgentProcess, name: str, suffix: str) -> None:
    files = {
        "include/lib.h": "int number(void);\n",
        f"src/lib{suffix}": '#include "lib.h"\nint number(void) { return 3; }\n',
        f"src/other{suffix}": "int main(void) { return 4; }\n",
        f"tests/test_lib{suffix}": "int number(void) { return 5; }\n",
    }
    main = '#include "lib.h"\nint main(void) { return number(); }\n'
    beside = run(agent, name, {f"main{suffix}": main, **files})
    assert (beside.stages, beside.exits[-1].code) == (["build", "run"], 3), beside.stderr
    included = f'#include "src/lib{suffix}"\nint main(void) {{ return number(); }}\n'
    assert run(agent, name, {f"main{suffix}": included, **files}).exits[-1].code == 3
    wrong = run(agent, name, {f"main{suffix}": "int nowhere(void);\nint main(void) { return nowhere(); }\n", **files})
    assert (wrong.stages, b"undefined reference to `nowhere" in wrong.stderr) == (["build"], True)


@needs_gcc
def test_c_beside_cpp_is_c(agent: AgentProcess) -> None:
    files = {
        "main.cpp": 'extern "C" int three(void);\nint main() { return three(); }\n',
        "three.c": "int three(void) { int new = 3; return new; }\n",
    }
    assert run(agent, "cpp", files).exits[-1].code == 3


@needs_gcc
@pytest.mark.parametrize(("name", "message"), [("c", b"undeclared"), ("cpp", b"was not declared")])
def test_an_error_of_c_is_a_failed_build(agent: AgentProcess, name: str, message: bytes) -> None:
    result = run(agent, name, {load_language(name).source_file: "int main(void) { return undefined; }"})
    assert (result.stages, result.exit.code, result.stdout) == (["build"], 1, b"")
    assert message in result.stderr


@needs_gcc
def test_all_sources_in_the_folder_are_the_program(agent: AgentProcess) -> None:
    files = {
        "main.c": "int three(void);\nint main(void) { return three(); }",
        "three.c": '#include "deep/n.h"\nint three(void) { return N; }',
    }
    assert run(agent, "c", {**files, "deep/n.h": "#define N 3\n"}).exits[-1].code == 3
    files = {"main.cpp": "int three(); int main() { return three(); }", "three.cc": "int three() { return 3; }"}
    assert run(agent, "cpp", files).exits[-1].code == 3


@needs_gcc
def test_options_of_c(agent: AgentProcess) -> None:
    source = {"main.c": "int main(void) { int unused; return __STDC_VERSION__ == 199901L ? 9 : 8; }"}
    plain = run(agent, "c", source)
    assert (plain.exits[-1].code, plain.stderr) == (8, b"")
    chosen = run(agent, "c", source, standard="c99", warnings="all")
    assert chosen.exits[-1].code == 9
    assert b"-Wunused-variable" in chosen.stderr
    assert run(agent, "c", source, warnings="error").stages == ["build"]


ESBUILD = next((ROOT / "web/node_modules/@esbuild").glob("*/bin/esbuild"), None) or shutil.which("esbuild")
"""The playground's, once scripts/web has fetched it: the program itself. npm's own link to it is a
script where it was installed without scripts, and that one traces every failure.
"""
needs_esbuild = pytest.mark.skipif(not (ESBUILD and HAS_NODE), reason="node or esbuild is missing: scripts/web")


@pytest.fixture
def with_esbuild(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that has it, if it is here."""
    if ESBUILD:
        monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{Path(ESBUILD).parent}")


MAIN = "public static void main(String[] args) {"


WITH_MAIN = {
    "packages": {
        "a/Other.java": "package a; public class Other { public int n() { return 1; } }",
        "b/Start.java": f"package b; public class Start {{ {MAIN} System.out.println(new a.Other().n()); }} }}",
    },
    "another name": {
        "Main.java": f"public final class Solver {{ class Inner {{}} {MAIN} System.out.println(1); }} }}",
        "A.java": f"class A {{ {MAIN} System.out.println(2); }} }}",
    },
    "second class": {
        "Main.java": f"class Other {{ int n() {{ return 1; }} }}\nclass Start {{ {MAIN} System.out.println(new Other().n()); }} }}"
    },
    "two mains": {
        "Main.java": f"public class Main {{ {MAIN} System.out.println(1); }} }}",
        "A.java": f"class A {{ {MAIN} System.out.println(2); }} }}",
    },
    "misnamed, after a comment": {
        "Main.java": f"/*\npublic class Wrong is said here\n*/\n  @Deprecated public class Right {{ {MAIN} System.out.println(1); }} }}",
        "A.java": f"class A {{ {MAIN} System.out.println(2); }} }}",
    },
    "Maven's": {
        "src/main/java/a/Start.java": (
            f'package a; public class Start {{ {MAIN} System.out.println(Start.class.getResource("/one") == null ? 0 : 1); }} }}'
        ),
        "src/main/resources/one": "",
        "src/test/java/a/StartTest.java": "package a; import org.nowhere.Test; class StartTest { @Test void a() {} }",
    },
    "package in one file": {"Main.java": f"package x.y;\nimport java.util.*;\npublic class Main {{ {MAIN} System.out.println(1); }} }}"},
}


@needs_java
@pytest.mark.parametrize("which", [*WITH_MAIN] if FULL else ["another name", "Maven's"])
def test_the_class_with_main_is_found(agent: AgentProcess, which: str) -> None:
    result = run(agent, "java", WITH_MAIN[which])
    assert (result.stdout, result.stderr, result.exits[-1].code) == (b"1\n", b"", 0)


@needs_java
def test_errors_of_java(agent: AgentProcess) -> None:
    wrong = run(agent, "java", {"Main.java": "class Main { int x = true; }"})
    assert (wrong.stages, wrong.exit.code) == (["build"], 1)
    assert b"Main.java:1: error: incompatible types" in wrong.stderr
    none = run(agent, "java", {"Main.java": "class Main { int x = 1; }"})
    assert (none.stages, none.exit.code) == (["build"], 1)
    assert b"no class has a method main" in none.stderr
    thrown = run(agent, "java", {"Main.java": f"class Main {{ {MAIN} int[] x = {{}}; x[1] = 2; }} }}"})
    assert thrown.exits[-1].code == 1
    assert b"ArrayIndexOutOfBoundsException" in thrown.stderr
    assert b"Main.main(Main.java:1)" in thrown.stderr


if FULL:

    @needs_java
    def test_options_of_java(agent: AgentProcess) -> None:
        source = {"Main.java": f"class Main {{ record P(int a) {{}} {MAIN} System.out.println(new P(1)); java.util.List l = null; }} }}"}
        assert run(agent, "java", source).stdout == b"P[a=1]\n"
        old = run(agent, "java", source, release="11")
        assert old.stages == ["build"], old.stderr
        assert b"[rawtypes]" in run(agent, "java", source, warnings="all").stderr
