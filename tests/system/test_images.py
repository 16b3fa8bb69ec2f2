"""Images as a guest's kernel unpacks them: each compression, entry by entry; and the languages'
own, in machines behind one server.
"""

import hashlib
import json
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly import paths
from mayfly.imagegen.build import build
from mayfly.imagegen.languages import parse_language
from mayfly.imagegen.oci.documents import MACHINE_TO_GOARCH
from mayfly.imagegen.oci.reference import LayoutReference
from mayfly.imagegen.options import Options
from mayfly.imagegen.progress import Silent
from mayfly.images.manifest import COMPRESSIONS
from tests.kit import toy
from tests.kit.imagegen_kit import LayoutMaker, directory, hard_link, member, symlink, tar
from tests.kit.scale import FULL
from tests.system.test_service import Server

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
DEADLINE_S = 500
DOCKER_IMAGE = ROOT / "build" / "rust-docker"
"""Made by `scripts/build-image rust --layout docker --output build/rust-docker`, outside of the
emulated host.
"""
LANGUAGE = b"""
name: probe
image: docker.io/library/probe
extensions: [.probe]
source_file: main.probe
version: [{path: 'tree/version-([0-9]+)'}]
working_memory_mib: 96
steps:
  - {name: build, argv: [sh, -n, main.probe], cwd: /work}
  - {name: run, argv: [sh, main.probe], cwd: /work}
prune: []
"""
NOISE = hashlib.shake_256(b"noise").digest(9 << 20)
"""More than one of lz4's blocks of 8 MiB, and nothing that compresses."""
LOOK = """
find /tree -exec stat -c '%n|%f|%u|%g|%s|%i' {} +
readlink /tree/link
sha256sum /tree/noise /tree/zeros /tree/deep/other
"""

RUST = 'fn main() { std::process::Command::new("rustc").arg("--version").status().unwrap(); }'
GO = """package main

import (
	"fmt"
	_ "net/http"
	"os/exec"
)

func main() {
	said, _ := exec.Command("go", "version").Output()
	fmt.Print(string(said))
}
"""
PYTHON = """import os
import subprocess

assert os.path.exists(subprocess.__cached__)
subprocess.run(["python3", "--version"], check=True)
"""
JAVASCRIPT = 'process.stdout.write(require("child_process").execSync("node --version"));'
TYPESCRIPT = 'import { execSync } from "child_process";\nconst said: Buffer = execSync("node --version");\nprocess.stdout.write(said);'
C = '#include <stdlib.h>\nint main(void) { return system("gcc --version | head -n1"); }'
CPP = '#include <cstdlib>\nint main() { return std::system("g++ --version | head -n1"); }'
JAVA = """import java.io.File;
import java.security.KeyStore;

public class Program {
    public static void main(String[] args) throws Exception {
        KeyStore.getInstance(new File("/etc/ssl/certs/java/cacerts"), "changeit".toCharArray()).aliases().nextElement();
        new ProcessBuilder("javac", "--version").inheritIO().start().waitFor();
    }
}
"""
LANGUAGES = {
    "rust": (RUST, "rustc 1.85."),
    "rust@1.63": (RUST, "rustc 1.63."),
    "go": (GO, "go version go1.24."),
    "go@1.19": (GO, "go version go1.19."),
    "python": (PYTHON, "Python 3.13."),
    "javascript": (JAVASCRIPT, "v20.19."),
    "typescript": (TYPESCRIPT, "v20.19."),
    "java": (JAVA, "javac 21."),
    "c": (C, "gcc (Debian 14.2."),
    "cpp": (CPP, "g++ (Debian 14.2."),
}
"""Programs that ask their compiler, and how its answer begins. Python's library has to be compiled,
and Java to have certificates.
"""
INSTALLED = tuple(name for name in LANGUAGES if toy.MACHINE == "x86_64" or "@" not in name)
"""Other versions are made for one architecture."""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder with this host's kernels and no images; it is emptied at once, as it may be in
    memory.
    """
    folder = tmp_path / "data"
    (folder / "mayfly").mkdir(parents=True)
    (folder / "mayfly" / "kernel").symlink_to((paths.data_dir() / "kernel").resolve())
    monkeypatch.setenv("XDG_DATA_HOME", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield folder
    shutil.rmtree(tmp_path)


def _layout(folder: Path, *more: bytes) -> Path:
    applets = [symlink(b"bin/%s" % name, b"busybox") for name in (b"sh", b"find", b"stat", b"readlink", b"sha256sum", *more)]
    base = tar(
        member(b"bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755),
        *applets,
        directory(b"tree"),
        member(b"tree/version-1"),
        member(b"tree/gone", b"to be whited out"),
        member(b"tree/zeros", bytes(20_000_001)),
        directory(b"tree/deep", mode=0o755, uid=7, gid=1000),
    )
    top = tar(
        member(b"tree/.wh.gone"),
        member(b"tree/noise", NOISE, mode=0o604, uid=70_000, gid=70_001),
        hard_link(b"tree/deep/other", b"tree/noise"),
        symlink(b"tree/link", b"deep/../noise"),
        member(b"tree/odd \xff name", b"12345", mode=0o4755),
        member(b"tree/empty"),
        member(b"tree/pipe", kind=b"6", mode=0o600),
        directory(b"tree/" + b"/".join([b"d" * 14] * 6)),
    )
    maker = LayoutMaker(folder)
    return maker.finish(maker.image([maker.layer(base), maker.layer(top, "zstd")], MACHINE_TO_GOARCH[toy.MACHINE]))


def _expected() -> list[bytes]:
    """What stat says in the guest of each name below /tree: mode in hex, owner, group, size of what
    has one.
    """
    deep = {b"/".join([b"", b"tree", *[b"d" * 14] * count]): (stat.S_IFDIR | 0o755, 0, 0, 0) for count in range(1, 7)}
    entries = {
        b"/tree": (stat.S_IFDIR | 0o755, 0, 0, 0),
        b"/tree/version-1": (stat.S_IFREG | 0o644, 0, 0, 0),
        b"/tree/zeros": (stat.S_IFREG | 0o644, 0, 0, 20_000_001),
        b"/tree/deep": (stat.S_IFDIR | 0o755, 7, 0, 0),  # the runner's group keeps nothing
        b"/tree/noise": (stat.S_IFREG | 0o604, 70_000, 70_001, len(NOISE)),
        b"/tree/deep/other": (stat.S_IFREG | 0o604, 70_000, 70_001, len(NOISE)),
        b"/tree/link": (stat.S_IFLNK | 0o777, 0, 0, 13),
        b"/tree/odd \xff name": (stat.S_IFREG | 0o4755, 0, 0, 5),
        b"/tree/empty": (stat.S_IFREG | 0o644, 0, 0, 0),
        b"/tree/pipe": (stat.S_IFIFO | 0o600, 0, 0, 0),
        **deep,
    }
    return sorted(b"%s|%x|%d|%d|%d" % (name, *fields) for name, fields in entries.items())


def _mayfly_run(source: Path) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "mayfly.cli.main", "run", str(source)]
    return subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False, cwd=ROOT)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_kernel_sees_what_was_merged(compression: str, data: Path, tmp_path: Path) -> None:
    layout = _layout(tmp_path / "layout")
    language = parse_language(LANGUAGE, "probe")
    build(Options(language=language, reference=LayoutReference(path=layout), compression=compression), Silent())
    source = tmp_path / "look.probe"
    source.write_text(LOOK)
    done = _mayfly_run(source)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    *listing, target, noise, zeros, other = done.stdout.rstrip(b"\n").split(b"\n")
    seen, inodes = [], {}
    for line in listing:
        name, mode, uid, gid, size, inode = line.split(b"|")
        if stat.S_ISDIR(int(mode, 16)):
            size = b"0"
        seen.append(b"|".join((name, mode, uid, gid, size)))
        inodes[name] = inode
    assert sorted(seen) == _expected()
    assert target == b"deep/../noise"
    assert noise.split()[0].decode() == other.split()[0].decode() == hashlib.sha256(NOISE).hexdigest()
    assert zeros.split()[0].decode() == hashlib.sha256(bytes(20_000_001)).hexdigest()
    assert inodes[b"/tree/noise"] == inodes[b"/tree/deep/other"]


def test_prepare_steps_run_in_a_machine(data: Path, tmp_path: Path) -> None:
    """What they make is in the image, none of it the snippet's to change. 20 MB come over the
    channel; the compiler is asked too.
    """
    prepare = b"""
prepare:
  working_memory_mib: 128
  steps:
    - {name: copy, argv: [sh, -ec, 'mkdir /kept/deep; cp /tree/zeros /kept/deep/; cp /tree/noise /kept/deep/; id -u >/kept/who']}
  collect: [/kept]
"""
    language = parse_language(LANGUAGE + prepare + b"version_command: [sh, -c, 'echo probe 1 at; pwd; id -u >&2']", "probe")
    reference = LayoutReference(path=_layout(tmp_path / "layout", b"id", b"mkdir", b"cp", b"cat", b"touch"))
    built = build(Options(language=language, reference=reference, compression="none"), Silent())
    assert built.manifest.compiler == "probe 1 at/work"
    source = tmp_path / "look.probe"
    source.write_text("cat /kept/who; cd /kept/deep; sha256sum noise zeros; touch /kept/new || echo refused")
    done = _mayfly_run(source)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    contents = [f"{hashlib.sha256(data).hexdigest()}  {name}" for data, name in ((NOISE, "noise"), (bytes(20_000_001), "zeros"))]
    assert done.stdout.decode().splitlines() == ["1000", *contents, "refused"]


if FULL:  # a machine, and a minute, for each image; `make test-images` builds them beforehand

    @pytest.fixture(scope="module")
    def server() -> Iterator[Server]:
        with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
            server = Server(Path(name), "--cold", *(part for language in INSTALLED for part in ("--language", language)))
            yield server
            server.close()

    @pytest.mark.slow
    @pytest.mark.parametrize("name", INSTALLED)
    def test_versions_side_by_side_are_what_their_compilers_say(server: Server, name: str) -> None:
        """GET /languages shows the very words that the compiler says in a program's machine. A
        build of Go compiles the program alone.
        """
        source, begins = LANGUAGES[name]
        language, _, version = name.partition("@")
        found = server.request("GET", "/languages")[1]["languages"]
        wanted = (item for item in found if item["language"] == language and item["version"].startswith(version))
        installed = next(item for item in wanted if item["default"] is not bool(version))
        assert installed["compiler"].startswith(begins)
        assert installed["version"] in installed["compiler"]
        body = json.dumps({"language": name, "source": source, "env": {"GOFLAGS": "-buildvcs=false -v"}})
        status, result = server.request("POST", "/run", body.encode(), "application/json")
        assert (status, result["exit_status"]) == (200, 0), result
        *builds, run = result["steps"]
        assert run["stdout"] == installed["compiler"] + "\n"
        assert "".join(build["stderr"] for build in builds) == (
            "command-line-arguments\n" if language == "go" else ""
        )  # -v: each package that is compiled


if FULL and toy.MACHINE == "x86_64":

    @pytest.mark.slow
    def test_rust_as_docker_lays_it_out_runs(data: Path, tmp_path: Path) -> None:
        assert DOCKER_IMAGE.is_dir(), "make it first: scripts/build-image rust --layout docker --output build/rust-docker"
        shutil.copytree(DOCKER_IMAGE, paths.image_dir("rust", toy.MACHINE))
        source = tmp_path / "hello.rs"
        source.write_text('fn main() { println!("from {}", std::env::var("CARGO_HOME").unwrap()); }')
        done = _mayfly_run(source)
        assert (done.returncode, done.stdout) == (0, b"from /usr/local/cargo\n"), done.stderr.decode(errors="replace")[-3000:]
