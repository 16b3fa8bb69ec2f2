"""A built image goes to other hosts: as an artifact in docker-registry, with and without accounts,
or as a folder; unpacked, pruned.
"""

import base64
import json
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import mayfly.imagegen.build
from mayfly.cli.image import cli
from mayfly.errors import ConfigError, HostError, ImageError, MayflyError, RegistryError
from mayfly.imagegen.build import Built, build
from mayfly.imagegen.cache import prune_cache, using_cache
from mayfly.imagegen.oci import artifact
from mayfly.imagegen.oci.documents import MANIFEST_TYPE
from mayfly.imagegen.oci.layout import LayoutSource
from mayfly.imagegen.oci.reference import LayoutReference, RegistryReference, parse_reference
from mayfly.imagegen.oci.registry import RegistrySource
from mayfly.imagegen.options import Options
from mayfly.imagegen.progress import Silent
from mayfly.imagegen.rootfs.cpio import END_MARKER, header
from mayfly.imagegen.rootfs.unpack import unpack
from mayfly.images.manifest import Manifest, load
from mayfly.paths import cache_dir, image_dir
from tests.kit.imagegen_kit import LayoutMaker, digest, directory, hard_link, member, symlink, tar, toy_language

LANGUAGE = toy_language(prune=["usr/share"])
LAYER = tar(
    member(b"etc/toy-version", b"3.14"),
    member(b"usr/lib/toy/big", bytes(3 << 20), mode=0o4755),
    member(b"usr/share/doc/big", bytes(2 << 20)),
    directory(b"usr/closed", mode=0o555),
    member(b"usr/closed/in", b"inside"),
    hard_link(b"usr/again", b"usr/closed/in"),
    symlink(b"usr/link", b"/etc/toy-version"),
    member(b"usr/pipe", kind=b"6"),
)
HTPASSWD = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"
"""The password is `secret`, hashed with bcrypt, the only hash that docker-registry takes."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Be on a host of this name: with folders of its own."""

    def enter(name: str) -> None:
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / name / "data"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name / "cache"))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / name))

    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "mayfly-agent.x86_64").write_bytes(b"agent")
    monkeypatch.setattr(mayfly.imagegen.build, "AGENTS", tmp_path / "agents")
    enter("here")
    return enter


@pytest.fixture(params=["none", "zstd"])
def image(request: pytest.FixtureRequest, home: Callable[[str], None], tmp_path: Path) -> Built:
    return _build(tmp_path, request.param)


def _build(tmp_path: Path, compression: str = "zstd") -> Built:
    maker = LayoutMaker(tmp_path / "layout")
    reference = LayoutReference(path=maker.finish(maker.image([maker.layer(LAYER)])))
    return build(Options(language=LANGUAGE, reference=reference, compression=compression), Silent())


def _registry(text: str) -> RegistrySource:
    reference = parse_reference(text)
    assert isinstance(reference, RegistryReference)
    return RegistrySource(reference, cache_dir() / "blobs", progress=Silent(), pause=lambda _: None)


@pytest.fixture(params=["anyone", "accounts"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, bool]]:
    """The address of a docker-registry, and whether it wants an account."""
    private = request.param == "accounts"
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    (tmp_path / "config.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/registry}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n"
        + (f"auth: {{htpasswd: {{realm: here, path: {tmp_path}/htpasswd}}}}\n" if private else "")
    )
    log = tmp_path / "registry.log"
    with log.open("wb") as out, subprocess.Popen(["docker-registry", "serve", tmp_path / "config.yml"], stdout=out, stderr=out) as process:
        until = time.monotonic() + 30
        while (found := re.search(rb"listening on (127\.0\.0\.1:\d+)", log.read_bytes())) is None:
            assert time.monotonic() < until
            assert process.poll() is None, log.read_text()
        yield found[1].decode(), private
        process.kill()


def _log_in(folder: Path, address: str, password: str = "secret") -> None:
    folder.mkdir(exist_ok=True)
    account = base64.b64encode(f"user:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {address: {"auth": account}}}))


def test_pushed_here_and_pulled_by_digest_there(
    image: Built, registry: tuple[str, bool], home: Callable[[str], None], tmp_path: Path
) -> None:
    address, private = registry
    for name in ("here", "there") if private else ():
        _log_in(tmp_path / name, address)
    found = artifact.push(image.folder, _registry(f"{address}/images/toy:1"))
    assert artifact.push(image.folder, _registry(f"{address}/images/toy:again")) == found
    home("there")
    manifest, folder = artifact.pull(_registry(f"{address}/images/toy@{found}"), "", Silent())
    assert folder == image_dir("toy", "x86_64") != image.folder
    assert manifest == load(folder) == image.manifest
    assert (folder / "initramfs").read_bytes() == (image.folder / "initramfs").read_bytes()
    assert artifact.pull(_registry(f"{address}/images/toy:1"), "toy@3.14", Silent())[1] == image_dir("toy@3.14", "x86_64")


@pytest.mark.parametrize("registry", ["accounts"], indirect=True)
def test_without_the_right_account_nothing_goes(home: Callable[[str], None], registry: tuple[str, bool], tmp_path: Path) -> None:
    image = _build(tmp_path)
    for password in (None, "wrong"):
        if password:
            _log_in(tmp_path / "here", registry[0], password)
        with pytest.raises(RegistryError, match="refuses") as caught:
            artifact.push(image.folder, _registry(f"{registry[0]}/toy:1"))
        assert "log in" in caught.value.hint


def test_exported_here_and_imported_there(image: Built, home: Callable[[str], None], tmp_path: Path) -> None:
    run = CliRunner().invoke
    exported = run(cli, ["export", "toy", str(tmp_path / "usb")], catch_exceptions=False)
    assert exported.exit_code == 0
    home("there")
    assert run(cli, ["import", str(tmp_path / "usb")], catch_exceptions=False).exit_code == 0
    folder = image_dir("toy", "x86_64")
    again = run(cli, ["export", "toy", str(tmp_path / "again")], catch_exceptions=False)
    assert again.stdout.split()[-1] == exported.stdout.split()[-1]
    assert (folder / "initramfs").read_bytes() == (image.folder / "initramfs").read_bytes()
    with pytest.raises(ConfigError, match="not an empty folder"):
        artifact.export(folder, tmp_path / "usb")
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def _spoil_archive(usb: Path, image: Built) -> None:
    blob = usb / "blobs" / "sha256" / image.manifest.initramfs_digest.removeprefix("sha256:")
    blob.write_bytes(bytes([blob.read_bytes()[0] ^ 1]) + blob.read_bytes()[1:])


def _rewritten(**changes: object) -> Callable[[Path, Built], None]:
    """The artifact with another configuration, all digests right."""

    def spoil(usb: Path, image: Built) -> None:
        shutil.rmtree(usb)
        maker = LayoutMaker(usb)
        config = maker.document({**json.loads(image.manifest.to_json()), **changes}, artifact.CONFIG_TYPE)
        layer = maker.blob((image.folder / "initramfs").read_bytes(), artifact.INITRAMFS_TYPE)
        maker.finish(maker.document({"schemaVersion": 2, "config": config, "layers": [layer]}, MANIFEST_TYPE))

    return spoil


def _container(usb: Path, image: Built) -> None:
    shutil.rmtree(usb)
    maker = LayoutMaker(usb)
    maker.finish(maker.image([maker.layer(LAYER)]))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_spoil_archive, "hashes to"),
        (_rewritten(language="../../x"), "for the language"),
        (_rewritten(arch=".."), "architecture"),
        (_rewritten(initramfs_size=1), "different archives"),
        (_rewritten(initramfs_digest="sha256:" + "0" * 64), "different archives"),
        (_rewritten(format=9), "format"),
        (_container, "not an image that imagegen pushed"),
        (lambda usb, _: (usb / "index.json").write_text('{"manifests": []}'), "0 artifacts"),
    ],
)
def test_what_is_no_artifact_is_refused(
    home: Callable[[str], None], tmp_path: Path, spoil: Callable[[Path, Built], object], text: str
) -> None:
    image = _build(tmp_path)
    artifact.export(image.folder, tmp_path / "usb")
    home("there")
    assert artifact.pull(LayoutSource(LayoutReference(path=tmp_path / "usb")), "toy@3", Silent())[0] == image.manifest
    spoil(tmp_path / "usb", image)
    with pytest.raises(MayflyError, match=text):
        artifact.pull(LayoutSource(LayoutReference(path=tmp_path / "usb")), "", Silent())
    assert not image_dir("toy", "x86_64").exists()


@pytest.mark.parametrize("name", ["rust", "toy@", "../toy", "toy@../x", "toy/x"])
def test_an_odd_name_to_install_as(home: Callable[[str], None], tmp_path: Path, name: str) -> None:
    artifact.export(_build(tmp_path).folder, tmp_path / "usb")
    with pytest.raises((ConfigError, RegistryError)):
        artifact.pull(LayoutSource(LayoutReference(path=tmp_path / "usb")), name, Silent())


# --- a look inside ---


def test_unpacking(image: Built, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert unpack(image.folder, out) == image.manifest.entries
    assert (out / "etc" / "toy-version").read_bytes() == b"3.14"
    assert stat.S_IMODE((out / "usr/lib/toy/big").stat().st_mode) == 0o755
    assert stat.S_IMODE((out / "usr/closed").stat().st_mode) == 0o555
    assert (out / "usr/again").read_bytes() == b"inside"
    assert (out / "usr/again").stat().st_ino == (out / "usr/closed/in").stat().st_ino
    assert str((out / "usr/link").readlink()) == "/etc/toy-version"
    assert stat.S_ISFIFO((out / "usr/pipe").lstat().st_mode)
    assert not (out / "usr/share").exists()
    with pytest.raises(ConfigError, match="not an empty folder"):
        unpack(image.folder, out)
    (out / "usr/closed").chmod(0o755)


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ([(b"../out", stat.S_IFREG | 0o644, b"x")], ImageError),
        ([(b"link", stat.S_IFLNK | 0o777, b".."), (b"link/out", stat.S_IFREG | 0o644, b"x")], ImageError),
        ([(b"link", stat.S_IFLNK | 0o777, b"/tmp"), (b"link", stat.S_IFREG | 0o644, b"x")], HostError),
        ([(b"file", stat.S_IFREG | 0o644, b"x"), (b"file/in", stat.S_IFREG | 0o644, b"x")], ImageError),
        ([(b"", stat.S_IFREG | 0o644, b"x")], ImageError),
        ([(b"no/folder", stat.S_IFREG | 0o644, b"x")], HostError),
        ([(b"link", stat.S_IFLNK | 0o777, b"t" * 5000)], ImageError),
        ([(b"%d" % number, stat.S_IFIFO | 0o644, b"") for number in range(100)], ImageError),
        ([(b"large", stat.S_IFREG | 0o644, bytes(4 << 20))], ImageError),
    ],
)
def test_a_hostile_archive_writes_nothing_elsewhere(
    home: Callable[[str], None], tmp_path: Path, entries: list[tuple[bytes, int, bytes]], error: type[MayflyError]
) -> None:
    image = _build(tmp_path, "none")
    archive = b"".join(
        header(ino=number, mode=mode, uid=0, gid=0, nlink=1, size=len(data), name=name) + data + bytes(-len(data) % 4)
        for number, (name, mode, data) in enumerate([*entries, (b"TRAILER!!!", 0, b"")], start=1)
    )
    _replace_archive(image, archive)
    with pytest.raises(error):
        unpack(image.folder, tmp_path / "inner" / "out")
    assert list((tmp_path / "inner").iterdir()) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-200], lambda data: b"x" + data[1:], lambda data: data[:6] + b"g" * 8 + data[14:]])
def test_a_damaged_archive(home: Callable[[str], None], tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    image = _build(tmp_path, "none")
    data = (image.folder / "initramfs").read_bytes()
    assert data.rindex(END_MARKER) < len(data) - 200
    _replace_archive(image, damage(data))
    with pytest.raises(ImageError, match="archive"):
        unpack(image.folder, tmp_path / "out")


def _replace_archive(image: Built, archive: bytes) -> None:
    (image.folder / "initramfs").write_bytes(archive)
    raw = json.loads(image.manifest.to_json()) | {"initramfs_size": len(archive), "initramfs_digest": digest(archive)}
    (image.folder / "manifest.json").write_text(Manifest.from_json(json.dumps(raw)).to_json())


def test_inspect_says_where_the_bytes_are(image: Built) -> None:
    shown = CliRunner().invoke(cli, ["inspect", "toy"]).stdout
    rows = {line.split()[-1]: line.split()[:2] for line in shown.splitlines()}
    assert rows["/usr/lib/toy"] == ["3.0", "0.0"]
    assert rows["/usr/share/doc"] == ["0.0", "2.0"]
    assert rows["all"] == ["3.0", "2.0"]


def test_the_cache_is_pruned(home: Callable[[str], None], tmp_path: Path) -> None:
    image = _build(tmp_path)
    blobs = cache_dir() / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (blobs / image.manifest.source.layers[0].removeprefix("sha256:")).write_bytes(b"in use")
    (blobs / "not-in-use").write_bytes(bytes(100))
    (cache_dir() / "prepared").mkdir()
    (cache_dir() / "prepared" / "x.tar").touch()
    with using_cache(), pytest.raises(ImageError, match="a build is using"):
        prune_cache()
    assert [(path.name, size) for path, size in prune_cache()] == [("not-in-use", 100)]
    assert len(list(blobs.iterdir())) == 1
    assert (cache_dir() / "prepared" / "x.tar").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    assert "imagegen" in CliRunner().invoke(cli, ["completion", shell]).stdout
