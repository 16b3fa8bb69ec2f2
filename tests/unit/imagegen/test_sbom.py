"""What an image says it is made of. The document was valid by the JSON schema of SPDX 2.3."""

import datetime
import json
import platform
from pathlib import Path

import pytest
from click.testing import CliRunner

from mayfly.cli.image import cli
from mayfly.imagegen.build import build
from mayfly.imagegen.oci.reference import LayoutReference
from mayfly.imagegen.options import Options
from mayfly.imagegen.progress import Silent
from mayfly.imagegen.sbom import spdx
from mayfly.images.manifest import Package, load
from mayfly.schema import replace
from tests.kit.imagegen_kit import layout_of, member, symlink, tar, toy_language

STATUS = b"""Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.41-12
Description: text
 Version: of a description

Package: gone
Status: deinstall ok config-files
Version: 1

Package: doc
Status: install ok installed
Version: 3:1.0+dfsg-1
Architecture: all

Package: tool
Status: hold ok installed
Version: 7~rc1
Architecture: all
"""
BASE = tar(
    member(b"etc/toy-version", b"3.14"),
    member(b"etc/os-release", b'NAME="Debian"\nID=debian\n'),
    member(b"usr/lib/libc.so.6", b"libc"),
    symlink(b"lib", b"usr/lib"),
    member(b"usr/share/doc/doc", b"doc"),
    member(b"usr/share/doc/tool", b"doc"),
    member(b"usr/bin/tool", b"tool"),
    member(b"var/lib/dpkg/status", STATUS),
    member(b"var/lib/dpkg/info/libc6:amd64.list", b"/.\n/lib\n/lib/libc.so.6\n"),
    member(b"var/lib/dpkg/info/doc.list", b"/.\n/usr\n/usr/share/doc/doc\n"),
    member(b"var/lib/dpkg/info/tool.list", b"/usr/share/doc/tool\n/usr/bin/tool\n"),
    member(b"var/lib/dpkg/info/gone.list", b"/usr/bin/tool\n"),
)
OWN = (
    Package(kind="pypi", name="one", version="1.0+local", digest=f"sha256:{'0' * 64}", source="https://x.example/one.whl", license="MIT"),
    Package(kind="npm", name="@scope/two", version="2.0.0", digest=f"sha512:{'0' * 128}", license="SEE LICENSE IN x"),
)


@pytest.fixture
def image(tmp_path: Path, own_folders: None) -> Path:
    reference = LayoutReference(path=layout_of(tmp_path / "layout", BASE))
    language = toy_language(prune=["usr/share", "var"])
    return build(Options(language=language, reference=reference, compression="none"), Silent()).folder


def test_the_systems_packages_of_which_something_is_left(image: Path) -> None:
    manifest = json.loads((image / "manifest.json").read_text())
    assert manifest["distribution"] == "debian"
    assert manifest["system"] == {"libc6": "2.41-12", "tool": "7~rc1"}


def test_the_document(image: Path) -> None:
    done = CliRunner().invoke(cli, ["inspect", "toy", "--sbom"], catch_exceptions=False)
    document = json.loads(done.stdout)
    assert [package["name"] for package in document["packages"]] == [f"toy-3.14-{platform.machine()}", "libc6", "tool"]
    again = json.loads(CliRunner().invoke(cli, ["inspect", "toy", "--sbom"], catch_exceptions=False).stdout)
    assert again == document


def test_packages_of_the_language(image: Path) -> None:
    manifest = replace(load(image), packages=(*OWN, OWN[1]))  # at two places
    document = spdx(manifest, datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC))
    assert document["creationInfo"]["created"] == "2026-01-02T03:04:05Z"
    found = {package["name"]: package for package in document["packages"]}
    urls = [reference["referenceLocator"] for package in document["packages"] for reference in package.get("externalRefs", ())]
    assert urls == ["pkg:deb/debian/libc6@2.41-12", "pkg:deb/debian/tool@7~rc1", "pkg:pypi/one@1.0%2Blocal", "pkg:npm/%40scope/two@2.0.0"]
    assert (found["one"]["licenseDeclared"], found["@scope/two"]["licenseDeclared"]) == ("MIT", "NOASSERTION")
    assert found["one"]["checksums"] == [{"algorithm": "SHA256", "checksumValue": "0" * 64}]
    assert {relation["relatedSpdxElement"] for relation in document["relationships"]} == {
        package["SPDXID"] for package in document["packages"]
    }
