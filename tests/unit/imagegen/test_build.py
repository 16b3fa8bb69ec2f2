"""The whole story on small images: layout in, initramfs and manifest out; and what stands in its
way.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import pty
import random
import re
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import rich.console
import rich.progress
from click.testing import CliRunner

import mayfly.imagegen.build
from mayfly.cli.image import COLUMNS, BarProgress, cli
from mayfly.errors import ConfigError, HostError, ImageError, ImageNotFoundError, LayerError, MayflyError
from mayfly.imagegen.build import Built, build, fetch_layers
from mayfly.imagegen.oci.documents import Descriptor
from mayfly.imagegen.oci.reference import LayoutReference
from mayfly.imagegen.options import Options
from mayfly.imagegen.progress import Silent
from mayfly.imagegen.rootfs.spools import Limits
from mayfly.images.manifest import Manifest, load
from mayfly.images.store import image_folders
from mayfly.paths import image_dir
from tests.kit.agent_process import build_agent
from tests.kit.imagegen_kit import OCI_MANIFEST, CpioEntry, LayoutMaker, directory, header, member, read_cpio, symlink, tar, toy_language
from tests.kit.registry_kit import FakeRegistry

ROOT = Path(__file__).parents[3]
AGENT = b"\x7fELF agent"
LANGUAGE = toy_language(
    env={"TOY": "1"},
    steps=[
        {"name": "build", "argv": ["toyc", "main.toy"], "cwd": "/work", "wall_s": 60},
        {"name": "run", "argv": ["./main", "{args}"], "stdin": True},
    ],
    warmup={"files": {"main.toy": "hello"}, "steps": [{"name": "warm", "argv": ["toyc", "main.toy"]}]},
    prune=["usr/share", "!usr/share/keep"],
)
BASE = tar(
    directory(b"etc"),
    member(b"etc/toy-version", b"toy 3.14\n"),
    member(b"etc/passwd", b"root:x:0:0::/:/bin/sh"),
    member(b"usr/share/doc", b"d" * 5000),
    member(b"usr/share/keep", b"k" * 5000),
    member(b"proc/left", b"over"),
    member(b"mayfly/end/x", b"in the marker's way"),
    symlink(b"tmp", b"usr"),
    member(b"dev/null", kind=b"3"),
)
TOP = tar(member(b"usr/bin/toyc", b"\0" * 9000, mode=0o755), member(b"etc/.wh.gone"))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    agents = tmp_path / "agents"
    agents.mkdir()
    (agents / "mayfly-agent.x86_64").write_bytes(AGENT)
    monkeypatch.setattr(mayfly.imagegen.build, "AGENTS", agents)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return _layout(tmp_path / "layout")


def _layout(folder: Path, *layers: bytes) -> Path:
    maker = LayoutMaker(folder)
    packed = [maker.layer(data, "zstd" if number % 2 else "gzip") for number, data in enumerate(layers or (BASE, TOP))]
    return maker.finish(maker.image(packed, env=["PATH=/toy/bin", "A=b\x1b[2J"], working_dir="/srv"))


def _options(layout: Path, **changes: object) -> Options:
    reference = LayoutReference(path=layout)
    return Options(**{"language": LANGUAGE, "reference": reference, "compression": "none", **changes})  # type: ignore[arg-type]


def _entries(built: Built) -> dict[bytes, CpioEntry]:
    return {entry.name: entry for entry in read_cpio((built.folder / "initramfs").read_bytes())}


def test_the_image_has_what_the_guest_needs(layout: Path) -> None:
    built = build(_options(layout), Silent())
    entries = _entries(built)
    assert entries[b"init"].data == AGENT
    assert entries[b"init"].mode == stat.S_IFREG | 0o755
    for name in (b"proc", b"sys", b"dev", b"run", b"mayfly", b"work", b"tmp"):
        assert stat.S_ISDIR(entries[name].mode), name
    assert entries[b"tmp"].mode == stat.S_IFDIR | 0o1777
    assert entries[b"work"].uid == 1000
    assert entries[b"etc/passwd"].data == b"root:x:0:0::/:/bin/sh\nrunner:x:1000:1000::/work:/bin/sh\n"
    assert b"runner:x:1000:" in entries[b"etc/group"].data
    assert b"localhost" in entries[b"etc/hosts"].data
    assert entries[b"usr/bin/toyc"].data == bytes(9000)
    assert entries[b"usr/share/keep"].data == b"k" * 5000
    assert b"usr/share/doc" not in entries
    assert b"proc/left" not in entries
    assert b"mayfly/end/x" not in entries
    assert b"dev/null" not in entries
    assert list(entries)[-2:] == [b"mayfly/end", b"TRAILER!!!"]


def test_a_snippet_can_write_to_nothing_of_the_image(tmp_path: Path) -> None:
    """But it reads and executes what it could."""
    places = {
        directory(b"open", mode=0o1777): (0o1775, 0, 0),
        directory(b"home", mode=0o750, uid=1000, gid=1000): (0o755, 0, 0),
        member(b"open/secret", mode=0o640): (0o640, 0, 0),
        member(b"open/for-all", mode=0o666): (0o664, 0, 0),
        member(b"home/tool", mode=0o700, uid=1000, gid=7): (0o705, 0, 7),
        member(b"home/of-the-group", mode=0o060, uid=7, gid=1000): (0o064, 7, 0),
        member(b"home/not-for-its-owner", mode=0o077, uid=1000, gid=1000): (0o070, 0, 0),
        member(b"home/as-its-owner", mode=0o6755, uid=1000, gid=7): (0o755, 0, 7),
        header(b"home/link", b"1", link=b"home/tool"): (0o705, 0, 7),
    }
    built = build(_options(_layout(tmp_path / "layout", BASE, TOP, tar(*places))), Silent())
    entries = _entries(built)
    names = [place[:100].rstrip(b"\0") for place in places]
    assert [(stat.S_IMODE(entries[name].mode), entries[name].uid, entries[name].gid) for name in names] == list(places.values())
    writable = [
        entry.name for entry in entries.values() if not stat.S_ISLNK(entry.mode) and (entry.mode & 0o002 or 1000 in (entry.uid, entry.gid))
    ]
    assert writable == [b"tmp", b"work"]


def test_each_platform_of_an_index_becomes_an_image_with_its_own_agent(tmp_path: Path) -> None:
    agents = {"x86_64": AGENT, "aarch64": b"\x7fELF Arm agent"}
    (tmp_path / "agents/mayfly-agent.aarch64").write_bytes(agents["aarch64"])
    maker = LayoutMaker(tmp_path / "both")
    images = [maker.image([maker.layer(BASE), maker.layer(tar(member(b"arch", name.encode())))], name) for name in ("amd64", "arm64")]
    layout = maker.finish(maker.index(images))
    for (arch, agent), name in zip(agents.items(), (b"amd64", b"arm64"), strict=True):
        built = build(_options(layout, arch=arch), Silent())
        assert (built.manifest.arch, built.folder) == (arch, image_dir("toy", arch))
        assert (_entries(built)[b"init"].data, _entries(built)[b"arch"].data) == (agent, name)


def test_the_manifest_says_what_the_image_is(layout: Path) -> None:
    built = build(_options(layout), Silent())
    manifest = load(image_dir("toy", "x86_64"))
    assert manifest == built.manifest
    assert built.fresh
    archive = (built.folder / "initramfs").read_bytes()
    assert manifest.version == "3.14"
    assert manifest.initramfs_digest == f"sha256:{hashlib.sha256(archive).hexdigest()}"
    assert manifest.initramfs_size == len(archive)
    assert manifest.agent_digest == f"sha256:{hashlib.sha256(AGENT).hexdigest()}"
    assert manifest.end_marker == _entries(built)[b"mayfly/end"].data.decode()
    assert manifest.env == {"PATH": "/toy/bin", "LANG": "C.UTF-8", "A": "b\x1b[2J", "TOY": "1"}
    assert [(step.name, step.cwd) for step in manifest.steps] == [("build", "/work"), ("run", "/srv")]
    assert manifest.warmup.files == {"main.toy": "hello"}
    assert [(step.argv, step.cwd) for step in manifest.warmup.steps] == [(("toyc", "main.toy"), "/srv")]
    assert len(manifest.source.layers) == 2
    pages = sum(-(-len(entry.data) // 4096) * 4096 for entry in _entries(built).values() if stat.S_ISREG(entry.mode))
    assert manifest.memory == -(-(len(archive) + pages + (7 << 20)) // (1 << 20)) * (1 << 20)


def test_the_same_again_is_not_built_again(layout: Path) -> None:
    first = build(_options(layout), Silent())
    before = (first.folder / "initramfs").stat().st_ino
    again = build(_options(layout), Silent())
    assert not again.fresh
    assert again.manifest == first.manifest
    assert (first.folder / "initramfs").stat().st_ino == before
    assert build(_options(layout, force=True), Silent()).fresh


def test_whatever_goes_in_counts(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(_options(layout), Silent())
    assert build(_options(layout, compression="gzip"), Silent()).fresh
    assert build(_options(layout, compression="gzip", language=toy_language()), Silent()).fresh
    assert build(_options(_layout(tmp_path / "other", BASE)), Silent()).fresh
    (tmp_path / "agents" / "mayfly-agent.x86_64").write_bytes(b"new")
    assert build(_options(tmp_path / "other"), Silent()).fresh
    assert not build(_options(tmp_path / "other"), Silent()).fresh
    (image_dir("toy", "x86_64") / "initramfs").write_bytes(b"damaged")
    assert build(_options(tmp_path / "other"), Silent()).fresh


NOBODY = 65534
SCRIPT = """
import os, sys
from pathlib import Path
import mayfly.imagegen.build
from mayfly.imagegen.progress import Silent
from mayfly.imagegen.oci.reference import parse_reference
from tests.unit.imagegen.test_build import _options
reference, agents, umask, user, order = sys.argv[1:]
os.umask(int(umask, 8))
if user:
    os.setgroups([])
    os.setresgid(*[int(user)] * 3)
    os.setresuid(*[int(user)] * 3)
mayfly.imagegen.build.AGENTS = Path(agents)
fetch = mayfly.imagegen.build.fetch_layers
def in_order(source, image, limits):
    for layer in image.layers[:: int(order)]:
        source.blob(layer)
    return fetch(source, image, limits)
mayfly.imagegen.build.fetch_layers = in_order
options = _options(Path(), reference=parse_reference(reference), compression="zstd", force=True)
print(mayfly.imagegen.build.build(options, Silent()).folder)
"""


def test_the_same_bytes_from_two_clones_whatever_the_surroundings(layout: Path) -> None:
    """Another umask, time zone, locale, hash seed, home, user, number of processors, order of what
    is cached; a cache that is warm.
    """
    user = str(NOBODY) if os.geteuid() == 0 else ""
    processors = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name, FakeRegistry(layout) as registry:
        place = Path(name)
        place.chmod(0o755)
        clone = place / "clone"
        for package in ("imagegen", "mayfly", "vmm", "tests"):
            shutil.copytree(ROOT / package, clone / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(mayfly.imagegen.build.AGENTS, place / "agents")
        surroundings = [
            ("first", "077", "Pacific/Auckland", "C", "1", ROOT, "", "1", processors),
            ("first", "022", "UTC", "C.UTF-8", "2", ROOT, "", "1", processors),  # its cache is warm
            ("second", "000", "Asia/Kolkata", "de_DE.UTF-8", "3", clone, user, "-1", processors[:1]),
        ]
        seen = set()
        for folder, umask, zone, locale, seed, tree, uid, order, mask in surroundings:
            (place / folder).mkdir(exist_ok=True)
            os.chown(place / folder, int(uid or -1), -1)
            xdg = {f"XDG_{kind}_HOME": str(place / folder / kind.lower()) for kind in ("DATA", "CACHE")}
            surrounding = {"TZ": zone, "LC_ALL": locale, "PYTHONHASHSEED": seed, "HOME": str(place / folder), "USER": uid or "root"}
            reference = f"{registry.address}/test:latest"
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT, reference, str(place / "agents"), umask, uid, order],
                env={**os.environ, **xdg, **surrounding},
                cwd=tree,
                stdout=subprocess.PIPE,
                check=True,
                text=True,
                preexec_fn=functools.partial(os.sched_setaffinity, 0, mask),
            )
            built = Path(done.stdout.strip())
            assert built.stat().st_uid == int(uid or os.geteuid())
            seen.add(((built / "initramfs").read_bytes(), (built / "manifest.json").read_bytes()))
    assert len(seen) == 1
    manifest = Manifest.from_json(seen.pop()[1].decode())
    digests = (
        manifest.initramfs_digest,
        manifest.agent_digest,
        manifest.recipe_digest,
        manifest.source.manifest_digest,
        manifest.source.config_digest,
    )
    assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in (*digests, *manifest.source.layers))


def test_a_failed_build_leaves_the_old_image_and_nothing_else(layout: Path, tmp_path: Path) -> None:
    good = build(_options(layout), Silent())
    bad = _layout(tmp_path / "bad", BASE, tar(member(b"../../etc/passwd", b"x")))
    with pytest.raises(LayerError, match=r"'\.\.'"):
        build(_options(bad), Silent())
    assert load(good.folder) == good.manifest
    assert sorted(path.name for path in good.folder.parent.iterdir()) == [".x86_64.lock", "x86_64"]
    assert list((tmp_path / "cache" / "mayfly" / "spool").iterdir()) == []
    assert not (tmp_path / "etc").exists()


def test_left_overs_of_a_killed_build_go(layout: Path) -> None:
    folder = image_dir("toy", "x86_64")
    left = folder.parent / ".x86_64.part"
    left.mkdir(parents=True)
    (left / "initramfs").write_bytes(b"half")
    build(_options(layout), Silent())
    assert not left.exists()


def test_the_image_is_exchanged_in_one_step(layout: Path, tmp_path: Path) -> None:
    """A reader that looks all the time finds an image at each look, whole."""
    build(_options(layout), Silent())
    folder = image_dir("toy", "x86_64")
    stop = threading.Event()
    looks: list[str] = []
    errors: list[Exception] = []

    def look() -> None:
        while not stop.is_set():
            try:
                looks.append(load(folder).compression)
            except MayflyError as error:
                # Between reading the manifest and the archive's size the image may change; that
                # there is none never happens.
                if isinstance(error, ImageNotFoundError):
                    errors.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(10):
            build(_options(layout, compression=("gzip", "none")[number % 2]), Silent())
    finally:
        stop.set()
        reader.join()
    assert errors == []
    assert set(looks) == {"gzip", "none"}


def test_two_builds_at_once_do_the_work_once(layout: Path) -> None:
    results: list[Built] = []
    threads = [threading.Thread(target=lambda: results.append(build(_options(layout), Silent()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.fresh for result in results) == [False, False, True]


def test_versions_lie_side_by_side(layout: Path, tmp_path: Path) -> None:
    build(_options(layout), Silent())
    older = _layout(tmp_path / "older", tar(member(b"etc/toy-version", b"2.7.1")))
    built = build(_options(older, version="2.7"), Silent())
    assert built.folder == image_dir("toy@2.7", "x86_64")
    assert [load(folder).version for folder in image_folders()] == ["3.14", "2.7.1"]
    for other in ("2", "2.7.1"):
        assert build(_options(older, version=other), Silent()).fresh
    with pytest.raises(ImageError, match=r"has toy 3\.14, not 3\.1$"):
        build(_options(layout, version="3.1"), Silent())
    for bad in ("../x", "1/2", "latest", ".5"):
        with pytest.raises(ConfigError, match="is not a version"):
            _options(layout, version=bad)


def test_layers_are_fetched_side_by_side() -> None:
    """Each waits until the other is under way too; they come back in the image's order."""
    both = threading.Barrier(2, timeout=30)

    def blob(layer: Descriptor) -> Path:
        both.wait()
        return Path(layer.digest)

    layers = tuple(Descriptor(media_type="", digest=name, size=1) for name in ("first", "second"))
    image = SimpleNamespace(layers=layers)
    assert fetch_layers(SimpleNamespace(blob=blob), image, Limits()) == [Path("first"), Path("second")]  # type: ignore[arg-type]


def test_layers_beyond_the_limit_are_not_fetched() -> None:
    """What the manifest says of them is enough."""
    layers = tuple(Descriptor(media_type="", digest=name, size=600) for name in ("first", "second", "first"))
    fetched: list[Descriptor] = []

    def blob(layer: Descriptor) -> Path:
        fetched.append(layer)
        return Path(layer.digest)

    source, image = SimpleNamespace(blob=blob), SimpleNamespace(layers=layers)
    with pytest.raises(LayerError, match="1200 bytes packed; 1199 unpacked") as caught:
        fetch_layers(source, image, Limits(unpacked=1199))  # type: ignore[arg-type]
    assert "--max-unpacked" in caught.value.hint
    assert fetched == []
    assert len(fetch_layers(source, image, Limits(unpacked=1200))) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("passwd", "expected"),
    [
        (b"root:x:0:0::/:/bin/sh\nubuntu:x:1000:1000:Ubuntu:/home/ubuntu:/bin/bash\n", b"root:x:0:0::/:/bin/sh\n"),
        (b"runner:x:1001:1001::/home/runner:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\nlast:x:5:5::/:", b"last:x:5:5::/:\n"),
        (b"", b""),
    ],
)
def test_the_runner_is_who_has_its_id(tmp_path: Path, passwd: bytes, expected: bytes) -> None:
    """Images of Ubuntu 24.04 and of node have a user 1000, whose home a snippet does not find."""
    group = b"root:x:0:\nubuntu:x:1000:\nadm:x:4:ubuntu\n"
    built = build(_options(_layout(tmp_path / "taken", BASE, tar(member(b"etc/passwd", passwd), member(b"etc/group", group)))), Silent())
    entries = _entries(built)
    assert entries[b"etc/passwd"].data == expected + b"runner:x:1000:1000::/work:/bin/sh\n"
    assert entries[b"etc/group"].data == b"root:x:0:\nadm:x:4:ubuntu\nrunner:x:1000:\n"


def test_wrong_media_types_make_the_same_image(tmp_path: Path) -> None:
    """gzip as plain, plain as gzip, zstd as gzip: all are read by their first bytes."""
    digests = set()
    for declared, packing in (("", "gzip"), ("+gzip", "none"), ("+gzip", "zstd")):
        maker = LayoutMaker(tmp_path / f"{packing}{declared}")
        descriptor, diff_id = maker.layer(BASE, packing)
        wrong = {**descriptor, "mediaType": f"application/vnd.oci.image.layer.v1.tar{declared}"}
        built = build(_options(maker.finish(maker.image([(wrong, diff_id)]))), Silent())
        assert built.fresh
        digests.add(built.manifest.initramfs_digest)
    assert len(digests) == 1


@pytest.mark.parametrize("compression", ["zstd", "lz4", "none"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, compression: str) -> None:
    """A limit of the process on files stands for the disk's: first for the spool, then for the
    archive.
    """
    layout = _layout(tmp_path / "large", BASE, tar(member(b"noise", random.Random(1).randbytes(3_000_000))))
    before = sorted(path for path in (tmp_path / "data").rglob("*") if path.name[-5:] != ".lock")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (1_000_000, 3_001_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(HostError, match="File too large") as caught:
                build(_options(layout, compression=compression), Silent())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "imagegen prune" in caught.value.hint
        left = sorted(path for path in (tmp_path / "data").rglob("*") if path.is_file() and path.name[-5:] != ".lock")
        assert left == before
    assert build(_options(layout, compression=compression), Silent()).fresh


@pytest.mark.parametrize("variable", ["XDG_DATA_HOME", "XDG_CACHE_HOME"])
def test_a_folder_that_takes_no_files_is_named(layout: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "/proc")  # refuses even root
    with pytest.raises(HostError, match="/proc/mayfly") as caught:
        build(_options(layout), Silent())
    assert variable in caught.value.hint


def test_a_missing_agent_says_how_to_make_it(layout: Path, tmp_path: Path) -> None:
    (tmp_path / "agents" / "mayfly-agent.x86_64").unlink()
    with pytest.raises(ImageError) as caught:
        build(_options(layout), Silent())
    assert "make agents" in caught.value.hint


def test_an_image_without_the_language_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no version of toy"):
        build(_options(_layout(tmp_path / "other", tar(member(b"a")))), Silent())


def test_limits_reach_the_layers(layout: Path) -> None:
    with pytest.raises(LayerError, match="more than 3 members"):
        build(_options(layout, limits=Limits(entries=3)), Silent())


@pytest.mark.parametrize("changes", [{"arch": "vax"}, {"compression": "xz"}])
def test_options_check_themselves(layout: Path, changes: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        _options(layout, **changes)


# --- the command ---


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mayfly.cli.main", "image", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_errors_are_two_lines_and_status_1(tmp_path: Path) -> None:
    for arguments in (["build", "cobol"], ["build", "rust", "--image", f"oci:{tmp_path}/none"], ["inspect", "rust"], ["rm", "../x"]):
        result = _run(*arguments)
        assert result.returncode == 1
        assert result.stdout == ""
        lines = result.stderr.splitlines()
        assert lines[-2].startswith("mayfly: ")
        assert lines[-1].startswith("  hint: ")


@pytest.mark.parametrize("flag", ["--max-entries=3", "--max-unpacked=1000000", "--max-ratio=200"])
def test_limits_have_flags(tmp_path: Path, flag: str) -> None:
    layout = _layout(tmp_path / "bomb", tar(*(member(name, bytes(24 << 20)) for name in (b"a", b"b", b"c", b"d"))))
    error = CliRunner().invoke(cli, ["build", "rust", "--image", f"oci:{layout}", "--max-ratio=9999", flag]).exception
    assert isinstance(error, LayerError)
    assert flag.partition("=")[0] in error.hint


def test_progress_is_bars_on_a_terminal_and_lines_elsewhere(tmp_path: Path) -> None:
    status = b"Package: rustc\nVersion: 1.85.0\n"
    layout = _layout(tmp_path / "layout", tar(member(b"var/lib/dpkg/status", status)), tar(member(b"bin/rustc", bytes(100_000))))
    ours, theirs = pty.openpty()
    with FakeRegistry(layout) as registry:
        build_agent()
        plain = _run("build", "rust", "--image", f"{registry.address}/test", "--json")
        (tmp_path / "cache").rename(tmp_path / "cold")
        command = [sys.executable, "-m", "mayfly.cli.main", "image", "build", "rust", "--force", "--image", f"{registry.address}/test"]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=theirs)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while data := os.read(ours, 4096):
                shown += data
        os.close(ours)
        assert process.wait() == 0
    assert json.loads(plain.stdout)["language"] == "rust"
    pulled = [f"pulling {digest[7:19]}" for digest in json.loads(plain.stdout)["source"]["layers"]]
    assert set(pulled) <= {line.partition(",")[0] for line in plain.stderr.splitlines()}
    assert "\x1b" not in plain.stderr
    for title in pulled:
        assert re.search(title.encode() + rb"[^\n]*\xe2\x94\x81", shown)  # a bar's line
    assert b"\x1b[" in shown


def test_progress_shows_names_as_they_are_and_no_more() -> None:
    """Names come from images: no markup of rich's, nothing that a terminal would obey."""
    out = io.StringIO()
    with rich.progress.Progress(*COLUMNS, console=rich.console.Console(file=out, force_terminal=True, width=100)) as bars:
        progress = BarProgress(bars)
        progress.say("said [red]\x1b]0;title\x07")
        with progress.task("task [link=x]\x1b[2J\u202e", 1):
            pass
    assert "said [red]\ufffd]0;title\ufffd" in out.getvalue()
    assert "task [link=x]\ufffd[2J\ufffd" in out.getvalue()


def test_what_an_image_says_does_not_reach_the_terminal_as_it_is(tmp_path: Path) -> None:
    layout = LayoutMaker(tmp_path / "layout")
    layout.finish({**layout.blob(b"{}", OCI_MANIFEST), "platform": {"os": "\x1b[2Jplan9\u202e", "architecture": "x"}})
    result = _run("build", "rust", "--image", f"oci:{tmp_path}/layout")
    assert result.returncode == 1
    assert "plan9" in result.stderr
    assert "\u202e" not in result.stderr
    assert "\x1b" not in result.stderr


def test_list_inspect_and_rm(layout: Path) -> None:
    run = CliRunner().invoke
    assert run(cli, ["list", "--json"]).stdout == "[]\n"
    built = build(_options(layout), Silent())
    assert "toy" in run(cli, ["list"]).stdout
    assert json.loads(run(cli, ["list", "--json"]).stdout)[0]["version"] == "3.14"
    shown = run(cli, ["inspect", "toy"]).stdout
    assert built.manifest.end_marker in shown
    assert "PATH=/toy/bin" in shown
    assert "\x1b" not in shown
    assert "warm-up  toyc main.toy" in shown
    assert run(cli, ["inspect", "toy", "--json"]).stdout == built.manifest.to_json()
    assert image_folders() == [built.folder]
    assert run(cli, ["rm", "toy"]).exit_code == 0
    assert not built.folder.parent.exists()
    assert isinstance(run(cli, ["rm", "toy"]).exception, ImageNotFoundError)
