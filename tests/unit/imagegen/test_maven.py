"""Jars in images of Java, from a Maven repository on loopback: what is chosen, what is refused, and
that snippets are compiled with them.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.errors import ConfigError, ImageError, MayflyError, RegistryError
from mayfly.imagegen.build import Built
from mayfly.imagegen.languages import load_language
from mayfly.imagegen.rootfs.unpack import unpack
from tests.kit.imagegen_kit import layout_of, member, read_cpio, tar, toy_language
from tests.kit.package_kit import PackageServer, build_with, pack
from tests.kit.prepared_here import here

pytestmark = pytest.mark.usefixtures("own_folders")
LANGUAGE = toy_language(packages={"kind": "maven", "registry": "http://127.0.0.1:1"})


@pytest.fixture
def server() -> Iterator[PackageServer]:
    with PackageServer() as server:
        _fill(server)
        yield server


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return layout_of(tmp_path / "layout", tar(member(b"etc/toy-version", b"21.0")))


def _build(layout: Path, server: PackageServer, *packages: str, **changes: object) -> Built:
    return build_with(LANGUAGE, layout, f"{server.address}/m2/", *packages, **changes)


def _needs(*needs: str) -> str:
    """Dependencies: GROUP:ARTIFACT:VERSION, what else one says after a space."""
    written = ""
    for need in needs:
        name, _, more = need.partition(" ")
        group, artifact, version = name.split(":")
        stated = f"<version>{version}</version>" if version else ""
        written += f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>{stated}{more}</dependency>"
    return f"<dependencies>{written}</dependencies>"


def _parent(coordinates: str) -> str:
    group, artifact, version = coordinates.split(":")
    return f"<parent><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version></parent>"


def _fill(server: PackageServer) -> None:
    jar = pack({"x/X.class": b"class"})
    for coordinates in ("org.a:leaf:1.0", "org.a:leaf:2.0", "org.a:other:1.0", "org.a:junit:4", "org.a:optional:1"):
        server.add_maven(coordinates, "<licenses><license><name>MIT</name></license></licenses>", jar)
    server.add_maven("org.a:two:1.0", _needs("org.a:leaf:2.0", "org.a:other:[1.0]"), jar)
    server.add_maven("org.a:far:1.0", _needs("org.a:two:1.0"), jar)
    managed = f"<dependencyManagement>{_needs('org.a:leaf:${leaf.version}')}</dependencyManagement>"
    server.add_maven("org.b:parent:7", f"<packaging>pom</packaging><properties><leaf.version>1.0</leaf.version></properties>{managed}")
    server.add_maven(
        "org.b:child:7", _parent("org.b:parent:7") + _needs("org.a:leaf:", "${project.groupId}:sibling:${project.version}"), jar
    )
    server.add_maven("org.b:sibling:7", "<packaging>bundle</packaging>", jar)
    bom = f"<dependencyManagement>{_needs('org.b:parent:7 <type>pom</type><scope>import</scope>')}</dependencyManagement>"
    server.add_maven("org.b:imports:1", bom + _needs("org.a:leaf:"), jar)
    scopes = _needs(
        "org.a:junit:4 <scope>test</scope>", "org.a:none:1 <scope>provided</scope>", "org.a:optional:1 <optional>true</optional>"
    )
    server.add_maven("org.c:scopes:1", scopes, jar)
    without = "<exclusions><exclusion><groupId>org.a</groupId><artifactId>leaf</artifactId></exclusion></exclusions>"
    server.add_maven("org.c:without:1", _needs(f"org.a:far:1.0 {without}"), jar)
    server.add_maven("org.c:nearest:1", _needs("org.a:far:1.0", "org.a:leaf:1.0"), jar)
    server.add_maven("org.c:missing:1", _needs("org.c:nowhere:1"), jar)
    server.add_maven("org.c:range:1", _needs("org.a:leaf:[1.0,3.0)"), jar)
    server.add_maven("org.c:round:1", _parent("org.c:round:1"), jar)
    server.add_maven("org.c:nojar:1")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["org.a:leaf"], ["leaf-2.0"]),
        (["org.a:far:1.0"], ["far-1.0", "leaf-2.0", "other-1.0", "two-1.0"]),
        (["org.b:child:7"], ["leaf-1.0", "child-7", "sibling-7"]),
        (["org.b:imports:1"], ["leaf-1.0", "imports-1"]),
        (["org.c:scopes:1"], ["scopes-1"]),
        (["org.c:without:1"], ["far-1.0", "other-1.0", "two-1.0", "without-1"]),
        (["org.c:nearest:1"], ["far-1.0", "leaf-1.0", "other-1.0", "two-1.0", "nearest-1"]),
        (["org.a:far:1.0", "org.a:leaf:1.0"], ["far-1.0", "leaf-1.0", "other-1.0", "two-1.0"]),
    ],
)
def test_what_is_chosen(layout: Path, server: PackageServer, wanted: list[str], found: list[str]) -> None:
    built = _build(layout, server, *wanted)
    assert [f"{package.name.rpartition('/')[2]}-{package.version}" for package in built.manifest.packages] == found
    assert {package.kind for package in built.manifest.packages} == {"maven"}
    jars = [entry.name for entry in read_cpio((built.folder / "initramfs").read_bytes()) if entry.name.endswith(b".jar")]
    expected = [f"usr/lib/mayfly/java/{'.'.join(package.name.split('/'))}-{package.version}.jar" for package in built.manifest.packages]
    assert jars == sorted(name.encode() for name in expected)


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ("org.a:nothing", ImageError, "the repository has no org.a:nothing"),
        ("org.a:leaf:9", ImageError, "the repository has no org.a:leaf:9"),
        ("org.c:missing:1", ImageError, "the repository has no org.c:nowhere:1"),
        ("org.c:range:1", ImageError, r"org.a:leaf:\[1.0,3.0\) is not a package"),
        ("org.c:round:1", ImageError, "has more than 20 parents"),
        ("org.c:nojar:1", ImageError, r"has no http.*nojar-1\.jar"),
        ("leaf", ConfigError, "is not Maven's name"),
        ("../x:y:1", ConfigError, "is not Maven's name"),
        ("a..b:y:1", ImageError, "is not a package"),
    ],
)
def test_what_cannot_be_had_is_said(layout: Path, server: PackageServer, wanted: str, error: type[MayflyError], message: str) -> None:
    with pytest.raises(error, match=message):
        _build(layout, server, wanted)


@pytest.mark.parametrize(
    ("path", "data", "message"),
    [
        ("leaf-1.0.jar", b"another", "is not what its digest says"),
        ("leaf-1.0.pom", b"another", "is not what its digest says"),
        ("leaf-1.0.jar.sha1", b"", ""),
        ("leaf-1.0.jar.sha1", b"\xff", "is not what its digest says"),
    ],
)
def test_a_repository_that_lies(layout: Path, server: PackageServer, path: str, data: bytes, message: str) -> None:
    """One that states no digest is believed: the manifest pins what came."""
    server.pages[f"/m2/org/a/leaf/1.0/{path}"] = data
    if not message:
        assert _build(layout, server, "org.a:leaf:1.0").fresh
        return
    with pytest.raises(RegistryError, match=message):
        _build(layout, server, "org.a:leaf:1.0")


@pytest.mark.parametrize(
    ("pom", "message"),
    [
        (b'<!DOCTYPE x [<!ENTITY a "b">]><project>&a;</project>', "defines entities"),
        (b"<project>", "is not XML"),
        (b"\xff\xfe", "is not XML"),
    ],
)
def test_hostile_documents_are_refused(layout: Path, server: PackageServer, pom: bytes, message: str) -> None:
    server.pages["/m2/org/a/leaf/1.0/leaf-1.0.pom"] = pom
    del server.pages["/m2/org/a/leaf/1.0/leaf-1.0.pom.sha1"]
    with pytest.raises(RegistryError, match=message):
        _build(layout, server, "org.a:leaf:1.0")


@pytest.mark.skipif(not shutil.which("javac"), reason="no javac on this host")
def test_a_snippet_is_compiled_and_run_with_what_came(layout: Path, server: PackageServer, tmp_path: Path) -> None:
    """By the language's own steps."""
    source = tmp_path / "Seven.java"
    source.write_text("package sevens; public class Seven { public static int seven() { return 7; } }")
    subprocess.run(["javac", "-d", tmp_path / "classes", source], check=True)
    jar = pack({"sevens/Seven.class": (tmp_path / "classes/sevens/Seven.class").read_bytes()})
    server.add_maven("org.a:sevens:1", "", jar)
    unpack(_build(layout, server, "org.a:sevens").folder, tmp_path / "root")
    work = tmp_path / "work"
    for folder in (work, tmp_path / "prepared", tmp_path / "made"):
        folder.mkdir()
    (work / "Main.java").write_text("class Main { public static void main(String[] a) { System.out.println(sevens.Seven.seven()); } }")
    language = load_language("java")
    places = {"/usr/lib/mayfly": str(tmp_path / "root/usr/lib/mayfly"), "/var/cache/java": str(tmp_path / "made")}
    places |= {"{release}": "newest", "{warnings}": "default"}
    for step in (*language.prepare.steps, *language.steps):
        argv = [here(part, places) for part in step.argv if part != "{args}"]
        cwd = work if step in language.steps else tmp_path / "prepared"
        done = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert done.stdout == "7\n"
