"""Globs, and the YAML of languages."""

import re
import stat
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.errors import ConfigError, UnknownLanguageError
from mayfly.imagegen.languages import VersionRule, find_version, known_languages, load_language, offered, parse_language
from mayfly.imagegen.rootfs.prune import Pruner, prune, translate
from mayfly.imagegen.rootfs.tree import Inode, Tree
from mayfly.images.manifest import Option, Warmup


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("usr/share", b"usr/share", True),
        ("usr/share", b"usr/share/doc/x", True),
        ("usr/share", b"usr/shared", False),
        ("usr/*", b"usr/a/b", True),
        ("usr/*.so", b"usr/a/b.so", False),
        ("usr/**", b"usr", False),
        ("usr/**", b"usr/a/b/c", True),
        ("**/*.a", b"x.a", True),
        ("**/*.a", b"x/y/z.a", True),
        ("**/*.a", b"x/y/z.ab", False),
        ("lib?", b"lib6", True),
        ("lib?", b"lib/", False),
        ("a{b,c/d,}e", b"abe", True),
        ("a{b,c/d,}e", b"ac/de", True),
        ("a{b,c/d,}e", b"ae", True),
        ("a{b,c/d,}e", b"ade", False),
        ("a.b", b"axb", False),
        ("x,y", b"x,y", True),
        ("*", b"\xff\n", True),
    ],
)
def test_globs(glob: str, path: bytes, matches: bool) -> None:
    assert (re.compile(translate(glob).encode(), re.DOTALL).fullmatch(path) is not None) is matches


def test_a_class_of_letters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has a \["):
        translate("gcc-[0-9]")


def test_an_unclosed_brace_is_refused() -> None:
    with pytest.raises(ValueError, match="brace"):
        translate("a{b")


def test_the_last_glob_that_matches_decides() -> None:
    pruner = Pruner(["bin/**", "!bin/{a,b}", "bin/b"])
    assert [pruner(path) for path in (b"bin/a", b"bin/b", b"bin/c", b"bin")] == [False, True, True, False]


def test_pruning_keeps_the_way_to_what_stays() -> None:
    tree = Tree()
    for path in (b"usr/bin/keep", b"usr/bin/go", b"usr/share/x/y", b"usr/lib/empty/z", b"var/lib/q"):
        tree.put(path, Inode(mode=stat.S_IFREG | 0o644, content=b"12345"))
    removed = prune(tree, ["usr/**", "!usr/bin/keep", "var/lib/*"]).total()
    assert [path for path, _ in tree.walk()] == [b"usr", b"usr/bin", b"usr/bin/keep", b"var", b"var/lib"]
    assert removed == 20


def test_rust_is_there() -> None:
    rust = load_language("rust")
    assert "rust" in known_languages()
    assert rust.reference() == "docker.io/library/rust:1-slim"
    assert rust.reference("1.63") == "docker.io/library/rust:1.63-slim"
    assert [step.name for step in rust.steps] == ["build", "run"]
    assert [step.wall_s for step in rust.steps] == [None, None]  # what the operator says
    assert rust.steps[1].stdin
    assert {step.cwd for step in rust.steps} == {"/work"}
    assert rust.extensions == (".rs",)


SOURCES = [name for name in known_languages() if name != "wasm"]
"""Languages whose snippets are text."""
TO_WASM = [name for name in SOURCES if name.endswith("-wasm")]


@pytest.mark.parametrize("name", TO_WASM)
def test_programs_of_webassembly_run_as_compiled_ones_do(name: str) -> None:
    language, compiled = load_language(name), load_language("wasm")
    assert (language.target, language.checkpoint, language.function) == ("wasm", compiled.checkpoint, None)
    assert language.steps[-1] == compiled.steps[-1]
    assert "main.wasm" in " ".join(language.steps[0].argv)


def test_what_a_language_leaves_out_is_as_in_the_one_it_is_like() -> None:
    go, to_wasm = load_language("go"), load_language("go-wasm")
    assert (to_wasm.prepare, to_wasm.prune, to_wasm.version, to_wasm.extensions) == (go.prepare, go.prune, go.version, go.extensions)
    assert to_wasm.env == {"GOOS": "wasip1", "GOARCH": "wasm", **go.env}
    assert to_wasm.digest != go.digest


def test_a_change_of_a_language_changes_those_that_are_like_it(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(_yaml())
    digests = {parse_language(b"like: x\nname: y\n", "y.yaml", tmp_path / "functions").digest}
    (tmp_path / "x.yaml").write_bytes(_yaml(source_file="main.y"))
    changed = parse_language(b"like: x\nname: y\n", "y.yaml", tmp_path / "functions")
    assert (changed.name, changed.source_file, changed.digest in digests) == ("y", "main.y", False)


SHARED = ("sh", "cat", "echo", "env", "head", "ls", "mkdir", "mv", "printf", "pwd", "rm", "sleep", "sort", "tail", "touch", "true", "wc")
"""Programs that every snippet may start."""
NO_USE = (
    *("boot/vmlinuz", "usr/sbin/useradd", "usr/bin/dpkg", "usr/bin/perl", "usr/bin/apt-get", "usr/share/doc/x/y"),
    *("var/lib/dpkg/status", "etc/apt/sources.list", "etc/pam.d/login", "usr/lib/systemd/systemd"),
    "usr/lib/x86_64-linux-gnu/libsystemd.so.0",
)


@pytest.mark.parametrize("name", SOURCES)
def test_no_languages_globs_drift_from_the_others(name: str) -> None:
    """What the machine's own programs may start is the same for all, and nothing stays that none
    needs. A program of WebAssembly starts none, and sees no time zone; a shell compiles it.
    """
    gone = Pruner(load_language(name).prune)
    tools = SHARED if name not in TO_WASM else ("sh", "dash")
    assert [path for path in (b"usr/bin/%s" % tool.encode() for tool in tools) if gone(path)] == []
    assert [path for path in NO_USE if not gone(path.encode())] == []
    for library in ("libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"):
        assert not gone(f"usr/lib/x86_64-linux-gnu/{library}".encode())


def test_the_programs_of_gcc_stay() -> None:
    for name, compiler in (("c", b"gcc"), ("cpp", b"g++")):
        gone = Pruner(load_language(name).globs())
        links = (compiler, compiler + b"-14", b"x86_64-linux-gnu-" + compiler + b"-14", b"x86_64-linux-gnu-ld.bfd", b"as")
        assert [path for path in links if gone(b"usr/bin/" + path)] == []
        assert not gone(b"usr/libexec/gcc/x86_64-linux-gnu/14/cc1")
        assert not gone(b"usr/lib/linux/uapi/x86/asm/errno.h")
        assert gone(b"usr/libexec/gcc/x86_64-linux-gnu/14/cc1plus") is (name == "c")


def test_the_programs_of_java_stay() -> None:
    gone = Pruner(load_language("java").globs())
    links = ("etc/alternatives/java", "etc/alternatives/javac", "usr/bin/javac", "usr/bin/grep", "opt/java/openjdk/bin/javac")
    jvm = ("bin/java", "lib/modules", "lib/server/classes.jsa", "lib/server/libjvm.so", "lib/ct.sym", "conf/net.properties")
    paths = (*links, *(f"usr/lib/jvm/java-21-openjdk-amd64/{name}" for name in jvm), "etc/java-21-openjdk/security/java.security")
    assert [path for path in paths if gone(path.encode())] == []


@pytest.mark.parametrize("name", sorted({*SOURCES} - {*TO_WASM, "go", "rust"}))
def test_languages_have_the_shared_sets(name: str) -> None:
    """Go and Rust have lists that are older than the sets, and smaller."""
    gone = Pruner(load_language(name).prune)
    assert not gone(b"usr/share/zoneinfo/Asia/Tokyo")
    assert not gone(b"usr/lib/locale/C.utf8/LC_CTYPE")
    assert load_language(name).common_env == {"LANG": "C.UTF-8"}


def test_shared_globs_are_put_where_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "common.yaml").write_text("env: {LANG: x}\nprune: {two: [b, c]}\n")
    found = parse_language(_yaml(prune="[a, '@two', d]"), "x.yaml", tmp_path / "functions")
    assert (found.prune, found.common_env) == (("a", "b", "c", "d"), {"LANG": "x"})
    before = found.digest
    (tmp_path / "common.yaml").write_text("prune: {two: [b]}\n")
    assert parse_language(_yaml(prune="[a, '@two', d]"), "x.yaml", tmp_path / "functions").digest != before
    with pytest.raises(ConfigError, match="has no set 'three'"):
        parse_language(_yaml(prune="['@three']"), "x.yaml", tmp_path / "functions")
    (tmp_path / "common.yaml").write_text("prone: {}\n")
    with pytest.raises(ConfigError, match=r"common\.yaml: "):
        parse_language(_yaml(), "x.yaml", tmp_path / "functions")


def test_what_is_shared_is_not_a_language() -> None:
    assert "common" not in known_languages()
    with pytest.raises(UnknownLanguageError):
        load_language("common")


def test_the_version_may_be_in_the_images_environment() -> None:
    rules = load_language("javascript").version
    assert find_version(rules, list, lambda _: None, {"NODE_VERSION": "24.11.1"}) == "24.11.1"
    assert find_version(rules, list, lambda _: b"Package: nodejs\nVersion: 20.19.2+dfsg-1\n") == "20.19.2"
    assert find_version(rules, list, lambda _: None, {"NODE_VERSION": "24"}) is None


def test_compiled_programs_have_no_build_and_no_function() -> None:
    wasm = load_language("wasm")
    assert (wasm.extensions, wasm.source_file, wasm.function) == ((".wasm", ".checkpoint"), "main.wasm", None)
    (step,) = wasm.steps
    assert (step.name, step.stdin, step.cwd) == ("run", True, "/work")
    assert step.argv[step.argv.index("--save") + 1] == wasm.checkpoint


def test_each_language_is_a_file_that_can_be_read() -> None:
    for name in SOURCES:
        language = load_language(name)
        assert language.name == name
        assert [(step.name, step.stdin) for step in language.steps] in ([("build", False), ("run", True)], [("run", True)])
        assert language.warmup.steps == language.steps
        assert list(language.warmup.files) == [language.source_file]


WITH_FUNCTIONS = [name for name in SOURCES if load_language(name).function]


@pytest.mark.parametrize("name", sorted({"go", "java", "javascript", "python", "rust", *WITH_FUNCTIONS}))
def test_languages_load_functions(name: str) -> None:
    found = load_language(name).function
    assert found is not None
    assert [step.name for step in found.steps] in (["function"], ["build", "function"])
    assert {step.cwd for step in found.steps} == {"/work"}
    assert not any(step.stdin for step in found.steps)
    assert [part for step in found.steps for part in step.argv if part == "{entry}"] == ["{entry}"]
    assert found.source_file.endswith(load_language(name).extensions[0])
    for text in found.files.values():
        assert "agent/PROTOCOL.md" in text


FUNCTION = "{source_file: f.x, entry: f, files: {.mayfly/s: shim.x}, steps: [{name: function, argv: [a, '{entry}']}]}"


def test_the_text_of_a_functions_files_is_part_of_the_language(tmp_path: Path) -> None:
    (tmp_path / "shim.x").write_text("one")
    first = parse_language(_yaml(function=FUNCTION), "x.yaml", tmp_path)
    assert first.function is not None
    assert first.function.files == {".mayfly/s": "one"}
    assert first.function.steps[0].cwd == ""
    (tmp_path / "shim.x").write_text("two")
    assert parse_language(_yaml(function=FUNCTION), "x.yaml", tmp_path).digest != first.digest
    assert parse_language(_yaml(), "x.yaml").function is None


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("shim.x", "other.x", "there is no file 'other.x'"),
        ("shim.x", "../shim.x", "there is no file '../shim.x'"),
        ("shim.x", "1", "there is no file '1'"),
        ("shim.x", ".", "there is no file '.'"),
        (".mayfly/s", "/etc/s", "a file's path is relative"),
        (".mayfly/s", "a/../s", "a file's path is relative"),
        (".mayfly/s", "''", "a file's path is relative"),
        (".mayfly/s", "f.x", "f.x is the function's own file"),
        ("f.x", "a/f.x", "source_file"),
        ("[{name: function, argv: [a, '{entry}']}]", "[]", "steps"),
        ("entry: f, ", "", "entry"),
        ("entry: f", "exit: f", "exit"),
    ],
)
def test_a_broken_function_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    (tmp_path / "shim.x").write_text("one")
    assert old in FUNCTION
    with pytest.raises(ConfigError, match=r"x\.yaml") as caught:
        parse_language(_yaml(function=FUNCTION.replace(old, new, 1)), "x.yaml", tmp_path)
    assert words in str(caught.value)


def test_the_version_of_go_in_either_layout() -> None:
    rules = load_language("go").version
    debian = b"Package: golang-1.24-go\nStatus: x\nVersion: 1.24.4-1\n\nPackage: golang-go\nVersion: 2:1.24~2\n"
    assert find_version(rules, list, lambda path: b"go1.24.4\ntime x\n" if path == "usr/local/go/VERSION" else None) == "1.24.4"
    assert find_version(rules, list, lambda path: debian if path == "var/lib/dpkg/status" else None) == "1.24.4"


@pytest.mark.parametrize("name", ["cobol", "../rust", "", "rust.yaml", "Rust", "/etc/passwd"])
def test_a_language_that_is_not_there(name: str) -> None:
    with pytest.raises(UnknownLanguageError, match="not known") as caught:
        load_language(name)
    assert "rust" in caught.value.hint


DEBIAN = b"""Package: rust-x
Version: 9.9

Package: rustc
Status: install ok installed
Depends: libc6
 and more
Version: 1.85.0+dfsg3-1
Description: x
"""


def test_the_version_of_either_layout() -> None:
    rules = load_language("rust").version
    paths = [b"usr/local/rustup/toolchains", b"usr/local/rustup/toolchains/1.85.1-x86_64-unknown-linux-gnu"]
    assert find_version(rules, lambda: paths, lambda _: None) == "1.85.1"
    assert find_version(rules, lambda: [b"x"], lambda path: DEBIAN if path == "var/lib/dpkg/status" else None) == "1.85.0"
    assert find_version(rules, lambda: [b"x"], lambda _: b"Package: python\nVersion: 3\n") is None


def test_names_are_walked_no_further_than_the_version_and_none_is_held() -> None:
    def names(count: int) -> Iterator[bytes]:
        yield from (b"usr/local/rustup/%d" % number for number in range(count))
        yield b"usr/local/rustup/toolchains/1.85.1-x86_64-unknown-linux-gnu"
        pytest.fail("the walk went on behind the version")

    rules = load_language("rust").version
    tracemalloc.start()
    try:
        assert find_version(rules, lambda: names(100_000), lambda _: None) == "1.85.1"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


GOOD = {
    "name": "x",
    "image": "y",
    "extensions": "[.x]",
    "source_file": "main.x",
    "version": "[{path: '(1)'}]",
    "working_memory_mib": "1",
    "steps": "[{name: run, argv: [a]}]",
    "prune": "[]",
}


def _yaml(**changes: str) -> bytes:
    return "".join(f"{key}: {value}\n" for key, value in {**GOOD, **changes}.items()).encode()


def test_a_small_language() -> None:
    language = parse_language(_yaml(), "x.yaml")
    assert language.working_memory == 1 << 20
    assert language.steps[0].cwd == ""
    assert language.warmup == Warmup()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "[]"},
        {"name": "../x"},
        {"image": "''"},
        {"image": "'y:{version}'"},
        {"extensions": "x"},
        {"source_file": "a/b"},
        {"version": "[{path: '1'}]"},
        {"version": "[{path: '(('}]"},
        {"version": "[{env: X, file: y, pattern: '(1)'}]"},
        {"source_files": "{.y: main.y}"},
        {"source_files": "{.x: a/b}"},
        {"working_memory_mib": "true"},
        {"working_memory_mib": "-1"},
        {"steps": "[]"},
        {"steps": "[{name: run, argv: [a], color: red}]"},
        {"steps": "[{name: run, argv: a}]"},
        {"prune": "['a{b']"},
        {"prune": "[3]"},
        {"prune": "{"},
        {"prepare": "{steps: [], collect: [/a], working_memory_mib: 1}"},
        {"prepare": "{steps: [{name: x, argv: [a]}], collect: [], working_memory_mib: 1}"},
        {"prepare": "{steps: [{name: x, argv: [a]}], collect: [a/b], working_memory_mib: 1}"},
        {"prepare": "{steps: [{name: x, argv: [a]}], collect: [/a/../b], working_memory_mib: 1}"},
        {"prepare": "{steps: [{name: x, argv: [a]}], collect: [/a]}"},
        {"like": "none"},
        {"like": "../languages/rust"},
        {"like": "[rust]"},
        {"target": "wasm"},
        {"warmup": "{files: {main.x: a}, steps: []}"},
        {"warmup": "{files: {main.x: 1}, steps: [{name: x, argv: [a]}]}"},
        {"warmup": "{steps: [{name: x, argv: [a]}]}"},
    ],
)
def test_a_broken_language_is_named(changes: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        parse_language(_yaml(**changes), "x.yaml")


def test_many_packages_without_a_version_take_no_square_of_time() -> None:
    """With a backtracking expression over the whole text this would take minutes."""
    text = b"Package: rustc\n" * 50_000 + b"\nPackage: rustc\nVersion: 1.85.0\n"
    rules = load_language("rust").version
    assert find_version(rules, list, lambda path: text if path == "var/lib/dpkg/status" else None) == "1.85.0"
    long = b"1" * 1_000_000 + b"\n1.85\n"
    rule = VersionRule(file="x", pattern=r"(\d+\.\d+)")
    assert find_version([rule], list, lambda _: long) == "1.85"


def test_options_are_those_that_the_version_has() -> None:
    language = parse_language(_yaml(options="{edition: {values: {'2015': '', '2021': '1.56', '2024': '1.85'}}}"), "x.yaml")
    assert offered(language, "1.85.1")["edition"] == Option(values=("2015", "2021", "2024"), default="2024")
    assert offered(language, "1.63")["edition"].default == "2021"
    assert offered(language, "1.9")["edition"].values == ("2015",)


def test_programs_of_webassembly_listen_where_a_snippet_says() -> None:
    for name in ("wasm", *TO_WASM):
        language = load_language(name)
        assert offered(language, "1")["listen"] == Option(values=(), default="", takes="addresses")
        argv = language.steps[-1].argv
        assert argv[argv.index("--listen") + 1] == "{listen}"
    for wrong in ("{}", "{takes: addresses, values: {a: ''}}", "{takes: names}"):
        with pytest.raises(ConfigError):
            parse_language(_yaml(options=f"{{listen: {wrong}}}"), "x.yaml")
