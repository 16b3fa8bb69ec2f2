"""The real images: how small they are, and that what is left of them builds programs. In a chroot:
without a machine, but as root.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mayfly.host.snippet import Snippet
from mayfly.images.manifest import Manifest, load
from mayfly.runs.tested import read_tests
from mayfly.units import MIB
from tests.kit import go_snippets, rust_snippets, suites
from tests.kit.chroot_agent import run_in
from tests.kit.function_process import ANSWER, EXCEPTION, LOADED, RESUMED, FunctionProcess
from tests.kit.layouts import LAYOUTS
from tests.kit.scale import FULL
from tests.kit.strangers import STRANGERS
from tests.kit.traps import TRAPS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
ASSERTJ = "AssertJ where there is none"
"""A suite that an image with AssertJ takes otherwise."""
CHROOT = shutil.which("chroot", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or "chroot"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
    """What an image must be: MiB unpacked and as an archive, the beginning of its version; what it
    must build, and refuse.
    """

    unpacked: int
    archive: int
    version: str
    snippets: Mapping[str, tuple[str, str]]
    wrong: tuple[str, str]


C = {
    "hello": ('#include <stdio.h>\nint main(void) { puts("hello"); }', "hello\n"),
    "library": (
        "#include <complex.h>\n#include <errno.h>\n#include <math.h>\n#include <stdatomic.h>\n"
        "#include <stdio.h>\n#include <threads.h>\n#include <time.h>\n"
        "atomic_int n; int add(void *unused) { return n++; }\n"
        "int main(void) { thrd_t t; thrd_create(&t, add, 0); thrd_join(t, 0);\n"
        '  time_t zero = 0; printf("%d %.3f %.1f %d\\n", n, sqrt(2), cabs(3 + 4 * I), gmtime(&zero)->tm_year); }',
        "1 1.414 5.0 70\n",
    ),
    "wide": (
        "#include <locale.h>\n#include <stdio.h>\n#include <wchar.h>\n"
        'int main(void) { setlocale(LC_ALL, ""); printf("%ls %d\\n", L"\\u00e9", __SIZEOF_INT128__ > 8); }',
        "é 1\n",
    ),
}
CPP = {
    "hello": ('#include <iostream>\nint main() { std::cout << "hello" << std::endl; }', "hello\n"),
    "library": (
        "#include <bits/stdc++.h>\n"
        "int main() { std::vector<int> v(5); std::iota(v.begin(), v.end(), 1); std::atomic<int> n = 0;\n"
        "  std::thread t([&] { n += std::accumulate(v.begin(), v.end(), 0); }); t.join();\n"
        '  try { v.at(9); } catch (const std::out_of_range&) { std::cout << n << " " << std::filesystem::exists("/tmp") << "\\n"; } }',
        "15 1\n",
    ),
}
EXPECTED = {
    "rust": Expected(
        unpacked=420,
        archive=130,
        version="1.85",
        snippets=rust_snippets.SNIPPETS,
        wrong=("fn main() { let x: u8 = true; }", "mismatched types"),
    ),
    "go": Expected(
        unpacked=320,
        archive=100,
        version="1.24",
        snippets=go_snippets.SNIPPETS,
        wrong=("package main\n\nfunc main() { var x uint8 = true; _ = x }", "cannot use true"),
    ),
    "python": Expected(
        unpacked=100,
        archive=40,
        version="3.13",
        snippets={
            "hello": ("print('hello')", "hello\n"),
            "extensions": (
                "import ctypes, decimal, hashlib, json, lzma, sqlite3, ssl, zoneinfo\n"
                "print(sqlite3.connect(':memory:').execute('select 1 + 1').fetchone(), zoneinfo.ZoneInfo('Asia/Tokyo'))",
                "(2,) Asia/Tokyo\n",
            ),
            "processes and threads": (
                "import concurrent.futures, multiprocessing, subprocess\n"
                "with concurrent.futures.ThreadPoolExecutor() as pool: print(sum(pool.map(abs, range(-4, 4))))\n"
                "print(subprocess.check_output(['echo', 'child'], text=True), end='')",
                "16\nchild\n",
            ),
        },
        wrong=("def main(:\n  pass", "SyntaxError"),
    ),
    "javascript": Expected(
        unpacked=140,
        archive=50,
        version="20.19",
        snippets={
            "hello": ("console.log('hello')", "hello\n"),
            "modules": (
                "import { createHash, randomUUID } from 'node:crypto';\n"
                "import { gzipSync } from 'node:zlib';\n"
                "console.log(createHash('md5').update('x').digest('hex').slice(0, 4), randomUUID().length, gzipSync('x').length > 0,\n"
                "  new Intl.DateTimeFormat('de', { timeZone: 'Asia/Tokyo', hour: 'numeric' }).format(new Date(0)), typeof fetch);",
                "9dd4 36 true 09 Uhr function\n",
            ),
            "processes and threads": (
                "const { Worker } = require('worker_threads');\n"
                "console.log(require('child_process').execSync('echo child').toString().trim());\n"
                "new Worker('require(\"worker_threads\").parentPort.postMessage(16)', { eval: true }).on('message', console.log);",
                "child\n16\n",
            ),
        },
        wrong=("let x = ;", "SyntaxError"),
    ),
    "typescript": Expected(
        unpacked=165,
        archive=55,
        version="20.19",
        snippets={
            "hello": ("const name: string = 'hello'; console.log(name);", "hello\n"),
            "enums": ("import * as os from 'os';\nenum Kind { One, Two }\nconsole.log(Kind[1], os.EOL.length);", "Two 1\n"),
        },
        wrong=("let x: number = ;", "Unexpected"),
    ),
    "java": Expected(
        unpacked=260,
        archive=110,
        version="21",
        snippets={
            "hello": ('class Main { public static void main(String[] a) { System.out.println("hello"); } }', "hello\n"),
            "library": (
                "import java.net.http.*; import java.security.*; import java.time.*; import java.util.concurrent.*;\n"
                "public class Main { public static void main(String[] a) throws Exception {\n"
                '  byte[] digest = MessageDigest.getInstance("SHA-256").digest("x".getBytes());\n'
                '  System.out.println(digest.length + " " + HttpClient.newHttpClient().version());\n'
                "  try (var pool = Executors.newVirtualThreadPerTaskExecutor()) { System.out.println(pool.submit(() -> 16).get()); }\n"
                '  System.out.println(ZonedDateTime.of(2026, 1, 1, 0, 0, 0, 0, ZoneId.of("Asia/Tokyo")).getOffset() + " é");\n'
                "} }",
                "32 HTTP_2\n16\n+09:00 é\n",
            ),
        },
        wrong=("class Main { int x = true; }", "incompatible types"),
    ),
    "c": Expected(unpacked=260, archive=80, version="14.2", snippets=C, wrong=("int main(void) { return undefined; }", "undeclared")),
    "cpp": Expected(unpacked=320, archive=100, version="14.2", snippets=CPP, wrong=("int main() { return undefined; }", "not declared")),
}


GO = ["go debian", "go docker", "go debian bookworm"]
"""Prepared in a machine, which takes long on an emulated host: scripts/build-image go does it
beforehand.
"""
MORE = ("python", "javascript", "typescript", "java", "c", "cpp")
IMAGES = ["rust debian", "rust docker"] + ([f"{name} debian" for name in MORE] + ["rust debian bookworm", *GO] if FULL else [])
BOOKWORM = {
    "rust": Expected(
        unpacked=440,
        archive=130,
        version="1.63",
        snippets={name: snippet for name, snippet in rust_snippets.SNIPPETS.items() if name not in ("async by hand", "C's library")},
        wrong=EXPECTED["rust"].wrong,
    ),
    "go": Expected(
        unpacked=320,
        archive=100,
        version="1.19",
        snippets={
            name: go_snippets.SNIPPETS[name]
            for name in ("hello", "maps", "containers", "files", "network", "http", "json", "text", "a test")
        },
        wrong=EXPECTED["go"].wrong,
    ),
}
"""The older compilers, which know less of what is in the snippets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
    """A reference image's build, its archive unpacked in `root` by GNU cpio."""

    manifest: Manifest
    expected: Expected
    root: Path

    @property
    def prefix(self) -> list[str]:
        """What goes before a command that is run as the agent would."""
        within = 'mount -t proc proc "$0/proc" && exec "$@"'
        chroot = [CHROOT, "--userspec=1000:1000", str(self.root), "sh", "-c", 'cd /work && exec "$@"', "sh"]
        return ["unshare", "-m", "sh", "-c", within, str(self.root), *chroot]

    def run(self, *command: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """Run a command as the agent would: as its user, in /work, with the image's environment
        alone.
        """
        return subprocess.run(
            [*self.prefix, *command],
            env={**self.manifest.env, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def renew(self) -> None:
        """Empty what programs have written to, as the agent does before a run."""
        for name in ("work", "tmp"):
            for path in (self.root / name).iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def build(self, source: str, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """Build a snippet by the image's own step; where it has none, run it."""
        self.renew()
        step = self.manifest.steps[0]
        (self.root / "work" / self.manifest.source_file).write_text(source)
        chosen = {name: option.default for name, option in self.manifest.options.items()}
        chosen.update(re.findall(r"// (edition): (\d+)", source))
        argv = [part for part in step.argv if part != "{args}"]
        for name, value in chosen.items():
            argv = [part.replace(f"{{{name}}}", value) for part in argv]
        return self.run(*argv, *arguments, **step.env, **env)


@pytest.fixture(scope="module", params=IMAGES)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    language, layout, *suite = request.param.split()
    if os.geteuid() != 0:
        pytest.skip("only root can unpack an archive with its owners, and chroot")
    folder = tmp_path_factory.mktemp(layout)
    oci, built, root = folder / "layout", folder / "image", folder / "root"
    reference = [sys.executable, "-m", "scripts.debian.reference_image", language, str(oci)]
    subprocess.run([*reference, "--layout", layout, "--suite", *(suite or ["trixie"])], cwd=ROOT, check=True)
    expected = (BOOKWORM if suite else EXPECTED)[language]
    name = f"{language}@{expected.version}"
    command = [sys.executable, "-m", "mayfly.cli.main", "image", "build", name, "--image", f"oci:{oci}", "--output", str(built)]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    if "none can run here" in done.stderr:
        pytest.skip(f"the image was never prepared here: scripts/build-image {name} --layout {layout} --suite {suite or 'trixie'}")
    assert done.returncode == 0, done.stderr
    root.mkdir()
    unpack = f"zstd -dc '{built}/initramfs' | cpio -idm --quiet"
    subprocess.run(["sh", "-c", unpack], cwd=root, check=True)
    os.mknod(root / "dev" / "null", 0o020666, os.makedev(1, 3))  # in a machine the agent mounts devtmpfs
    (root / "dev" / "null").chmod(0o666)
    yield Image(manifest=load(built), expected=expected, root=root)
    shutil.rmtree(folder)


def test_it_is_small(image: Image) -> None:
    manifest = image.manifest
    print(json.dumps({"unpacked_mib": manifest.unpacked_size / MIB, "archive_mib": manifest.initramfs_size / MIB}))
    assert manifest.unpacked_size <= image.expected.unpacked * MIB
    assert manifest.initramfs_size <= image.expected.archive * MIB
    assert manifest.version.startswith(image.expected.version)
    assert (image.root / "mayfly" / "end").read_text() == manifest.end_marker


def test_it_builds_and_runs_programs(image: Image) -> None:
    failed = {}
    for name, (source, expected) in image.expected.snippets.items():
        extra = ("--test",) if "#[test]" in source else ()
        built = image.build(source, *extra)
        ran = image.run(*image.manifest.steps[-1].argv[:-1]) if built.returncode == 0 else built
        right = expected in ran.stdout if extra else ran.stdout == expected
        if ran.returncode != 0 or not right:
            failed[name] = built.stderr + ran.stdout + ran.stderr
    assert failed == {}


def test_a_compile_error_is_the_compilers(image: Image) -> None:
    source, message = image.expected.wrong
    built = image.build(source)
    assert built.returncode in (1, 2)  # 2: go up to 1.19
    assert message in built.stderr


if FULL:

    def test_it_tells_tests_as_sites_lay_them_out(image: Image) -> None:
        """With the compilers that hosts of these tests have not, too."""
        if image.expected is not EXPECTED[image.manifest.language]:
            pytest.skip("its compiler is another one than the tests are of")
        wrong = {}
        for name, layout in {**LAYOUTS, **TRAPS, **STRANGERS}.items():
            if layout.language != image.manifest.language or (name == ASSERTJ and image.manifest.language == "java"):
                continue
            snippet = Snippet(profile="test", files={path: text.encode() for path, text in layout.files.items()})
            plan, result = run_in(image.root, image.manifest, snippet)
            tests = read_tests(plan.tests, result.stdout, result.exits[-1])
            if suites.told(tests) != suites.expected(layout, tests) or layout.says not in result.stderr.decode():
                wrong[name] = suites.told(tests), result.stderr
        assert wrong == {}


FUNCTIONS = {
    "rust": (
        'pub fn init() { print!("once"); }\n'
        "pub fn handle(event: &[u8]) -> Result<Vec<u8>, String> {\n"
        '    if event.is_empty() { panic!("empty") }\n'
        "    Ok(event.to_vec())\n"
        "}\n"
    ),
    "go": (
        "package main\n\n"
        'import "fmt"\n\n'
        'func Init() { fmt.Print("once") }\n\n'
        "func Handle(event []byte) ([]byte, error) {\n"
        '	if len(event) == 0 { panic("empty") }\n'
        "	return event, nil\n"
        "}\n"
    ),
    "python": (
        "import asyncio, random, ssl\n"
        "print('once', end='')\n"
        "async def handle(event):\n"
        "    if event is None: raise ValueError('empty')\n"
        "    return event\n"
    ),
    "javascript": (
        "process.stdout.write('once');\n"
        "exports.handle = async (event) => {\n"
        "  if (event === null) throw new Error('empty');\n"
        "  return event;\n};\n"
    ),
    "java": (
        'public class Handler {\n    static { System.out.print("once"); }\n'
        "    byte[] handle(byte[] event) {\n"
        '        if (event.length == 0) throw new IllegalArgumentException("empty");\n'
        "        return event;\n    }\n}\n"
    ),
}
"""Functions that answer with what they are asked, and fail when that is nothing."""


def test_it_loads_a_function(image: Image) -> None:
    function = image.manifest.function
    if function is None:
        pytest.skip(f"{image.manifest.language} loads no functions")
    chosen = {name: option.default for name, option in image.manifest.options.items()}
    files = {function.source_file: FUNCTIONS[image.manifest.language]}
    image.renew()
    work, env = image.root / "work", image.manifest.env
    with FunctionProcess(function, files, work, options=chosen, env=env, prefix=image.prefix, user=1000) as process:
        loaded = process.load()
        assert (loaded.kind, loaded.log) == (LOADED, b"once")
        for payload in (b"one", bytes(range(256)) * 20_000):
            said = process.ask(payload, id=len(payload))
            assert (said.kind, said.id, said.payload) == (ANSWER, len(payload), payload)
        process.send(kind=RESUMED, id=0)
        said = process.ask()
        assert (said.kind, said.exception["message"]) == (EXCEPTION, "empty")
        assert process.ask(b"again").payload == b"again"


if FULL:

    @pytest.mark.parametrize("image", GO, indirect=True)
    def test_go_compiles_only_the_snippet(image: Image) -> None:
        """With -v go names each package that it compiles: none of the standard library is one. A
        directive has it build what is else compiled and linked without it.
        """
        everything = {line for source, _ in image.expected.snippets.values() for line in source.splitlines() if line.startswith("import ")}
        imports = [f"import _ {line.split()[1]}" for line in sorted(everything)]
        source = "\n".join(["//go:build linux", "package main", *imports, "func main() {}"])
        built = image.build(source, GOFLAGS=f"{image.manifest.env['GOFLAGS']} -v")
        assert (built.returncode, built.stderr) == (0, "command-line-arguments\n")

    @pytest.mark.parametrize("image", GO, indirect=True)
    def test_go_is_asked_only_for_what_it_alone_knows(image: Image) -> None:
        """With a toolchain that is none go builds nothing."""
        main = 'import _ "embed"\n\nfunc main() { println(1) }\n'
        assert image.build(f"package main\n\n{main}", GOTOOLCHAIN="wrong").returncode == 0
        assert "unknown flag -wrong" in image.build(f"package main\n\n{main}", GOFLAGS="-wrong").stderr
        traces = []
        for source in ("package main\n", "package main // as //go: has it\n"):
            built = image.build(f'{source}func main() {{ var list []int; defer println("end"); println(list[1]) }}\n')
            assert (built.returncode, built.stderr) == (0, "")
            traces.append(image.run("./main").stderr)
        assert traces[0] == traces[1]
        assert "/work/main.go:2" in traces[0]
        for source in (
            f"//go:build linux\n\npackage main\n\n{main}",
            'package main\n\nimport "runtime/debug"\n\nfunc main() { debug.FreeOSMemory() }\n',
            'package main\n\nimport "internal/abi"\n\nfunc main() { println(abi.FuncPCABI0) }\n',
            f"package other\n\n{main}",
        ):
            assert '"wrong"' in image.build(source, GOTOOLCHAIN="wrong").stderr, source
