"""Packages for tests: small ones made here, and installed ones packed again as they were, in a
registry on loopback.
"""

import base64
import gzip
import hashlib
import http.server
import importlib.metadata
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

from mayfly.imagegen.build import Built, build
from mayfly.imagegen.languages import Language
from mayfly.imagegen.oci.reference import LayoutReference
from mayfly.imagegen.options import Options
from mayfly.imagegen.progress import Silent
from tests.kit.loopback import LoopbackServer


def pack(files: Mapping[str, bytes]) -> bytes:
    """A zip of these files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return packed.getvalue()


def wheel(name: str, version: str, needs: Sequence[str] = (), files: Mapping[str, bytes] | None = None) -> bytes:
    """A wheel of a module that has the package's name."""
    folder = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nLicense-Expression: MIT"]
    metadata += [f"Requires-Dist: {need}" for need in needs]
    return pack(
        {
            f"{name.replace('-', '_')}/__init__.py": f"version = {version!r}\n".encode(),
            f"{folder}/METADATA": ("\n".join(metadata) + "\n\n").encode(),
            f"{folder}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{folder}/RECORD": b"",
            **(files or {}),
        }
    )


def packed_again(name: str) -> tuple[str, bytes]:
    """The wheel of a package that is installed here, and the name of its file."""
    found = importlib.metadata.distribution(name)
    files = {}
    for path in found.files or ():
        if ".." not in path.parts and "__pycache__" not in path.parts:
            files[str(path)] = Path(str(path.locate())).read_bytes()
    tags = [value for key, value in _fields(found.read_text("WHEEL") or "") if key == "Tag"]
    python, abi, _ = tags[0].split("-")
    platforms = ".".join(tag.split("-")[2] for tag in tags)
    return f"{found.name.replace('-', '_')}-{found.version}-{python}-{abi}-{platforms}.whl", pack(files)


def _fields(text: str) -> list[tuple[str, str]]:
    return [(key, value.strip()) for key, _, value in (line.partition(":") for line in text.splitlines())]


class PackageServer(LoopbackServer):
    """Answers GET of the paths in `pages` with their bytes, of a type by path. A context manager;
    `asked` has the paths that were asked for.
    """

    def __init__(self, pages: Mapping[str, bytes] | None = None) -> None:
        self.pages = dict(pages or {})
        self.asked: list[str] = []
        super().__init__()

    @property
    def address(self) -> str:
        """Its URL, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """A page, or that there is none."""
        self.asked.append(request.path)
        data = self.pages.get(request.path)
        request.send_response(404 if data is None else 200)
        request.send_header("Content-Length", str(len(data or b"")))
        request.end_headers()
        request.wfile.write(data or b"")
        request.close_connection = True

    def add_wheels(self, wheels: Mapping[str, bytes], *, metadata: bool = True, **fields: Any) -> None:
        """Serve wheels by the names of their files, in a simple index at `/simple/`."""
        for file, data in wheels.items():
            at = f"/simple/{file.partition('-')[0].lower().replace('_', '-')}/"
            known = json.loads(self.pages.get(at, b'{"files": []}'))
            entry: dict[str, Any] = {"filename": file, "url": f"../../files/{file}", "hashes": {"sha256": sha256(data)}, **fields}
            if metadata:
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    said = archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA")))
                self.pages[f"/files/{file}.metadata"] = said
                entry["core-metadata"] = {"sha256": sha256(said)}
            self.pages[at] = json.dumps({"meta": {"api-version": "1.1"}, "files": [*known["files"], entry]}).encode()
            self.pages[f"/files/{file}"] = data

    def add_npm(self, name: str, version: str, files: Mapping[str, bytes] | None = None, **fields: Any) -> None:
        """Serve a version of a package of npm's, the newest so far, as a registry at `/`."""
        manifest = json.dumps({"name": name, "version": version, "main": "index.js"}).encode()
        inside = {"package.json": manifest, "index.js": f"module.exports = '{version}';\n".encode(), **(files or {})}
        data = tgz({f"package/{path}": text for path, text in inside.items()})
        file = f"/{name}/-/{name.rpartition('/')[2]}-{version}.tgz"
        self.pages[file] = data
        integrity = f"sha512-{base64.b64encode(hashlib.sha512(data).digest()).decode()}"
        at = f"/{name.replace('/', '%2F')}"
        known = json.loads(self.pages.get(at, b'{"versions": {}}'))
        known["versions"][version] = {"dist": {"tarball": f"{self.address}{file}", "integrity": integrity}, **fields}
        self.pages[at] = json.dumps({**known, "dist-tags": {"latest": version}}).encode()

    def add_debs(self, debs: Sequence[tuple[Mapping[str, str], bytes]], suite: str, arch: str) -> None:
        """Serve packages of Debian's, given as fields and file, as a suite's `main`, of an archive
        at `/debian`.
        """
        paragraphs = []
        for fields, data in debs:
            file = f"pool/main/{fields['Package']}_{fields['Version']}.deb"
            self.pages[f"/debian/{file}"] = data
            known = {"Architecture": arch, **fields, "Filename": file, "Size": str(len(data)), "SHA256": sha256(data)}
            paragraphs.append("".join(f"{key}: {value}\n" for key, value in known.items()))
        index = lzma.compress("\n".join(paragraphs).encode())
        name = f"main/binary-{arch}/Packages.xz"
        self.pages[f"/debian/dists/{suite}/{name}"] = index
        release = f"Suite: {suite}\nSHA256:\n {sha256(index)} {len(index):8} {name}\n"
        self.pages[f"/debian/dists/{suite}/InRelease"] = release.encode()

    def add_maven(self, coordinates: str, pom: str = "", jar: bytes | None = None) -> None:
        """Serve a package as a Maven repository at `/m2`, with what its POM has besides; without a
        jar if that is None.
        """
        group, artifact, version = coordinates.split(":")
        at = f"/m2/{group.replace('.', '/')}/{artifact}"
        named = f"<groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
        text = f'<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>{named}{pom}</project>'
        self.pages[f"{at}/maven-metadata.xml"] = f"<metadata><versioning><release>{version}</release></versioning></metadata>".encode()
        for data, suffix in ((text.encode(), "pom"), (jar, "jar")):
            if data is not None:
                self.pages[f"{at}/{version}/{artifact}-{version}.{suffix}"] = data
                digest = hashlib.sha1(data).hexdigest()
                self.pages[f"{at}/{version}/{artifact}-{version}.{suffix}.sha1"] = f"{digest}\n".encode()


def build_with(language: Language, layout: Path, registry: str, *packages: str, **changes: object) -> Built:
    """Build the image in `layout` with packages from the registry at this address; `changes` are
    other options.
    """
    usual = {"language": language, "reference": LayoutReference(path=layout), "compression": "none", "packages": packages}
    return build(Options(**{**usual, "packages_from": registry, **changes}), Silent())  # type: ignore[arg-type]


def deb(data: bytes, packing: str = "xz") -> bytes:
    """A package of Debian's with this tar (deb(5))."""
    packers: Mapping[str, Callable[[bytes], bytes]] = {
        "xz": lzma.compress,
        "gz": gzip.compress,
        "zst": zstandard.ZstdCompressor().compress,
    }
    members = {"debian-binary": b"2.0\n", "control.tar.xz": lzma.compress(bytes(1024)), f"data.tar.{packing}": packers[packing](data)}
    packed = b"!<arch>\n"
    for name, content in members.items():
        packed += f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content + b"\n" * (len(content) % 2)
    return packed


def tgz(files: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    """A tar of these files, packed by gzip."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, data in files.items():
            member = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = 0 if isinstance(data, tarfile.TarInfo) else len(data)
            archive.addfile(member, None if isinstance(data, tarfile.TarInfo) else io.BytesIO(data))
    return packed.getvalue()


def sha256(data: bytes) -> str:
    """The digest, in hex."""
    return hashlib.sha256(data).hexdigest()
