"""Modules of Go for tests: small ones made here, and Debian's packaged ones, in a proxy on
loopback.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from mayfly.imagegen.packages.modules import escaped
from tests.kit.package_kit import PackageServer, pack


def add_module(server: PackageServer, path: str, version: str, files: Mapping[str, bytes] | None = None, mod: str = "") -> None:
    """Serve a version of a module as a proxy at `/`, with what its go.mod has besides."""
    text = f"module {path}\n\ngo 1.18\n{mod}".encode()
    name = path.rpartition("/")[2].replace("-", "_")
    source = f'package {name}\n\nconst Version = "{version}"\n'.encode()
    serve_module(server, path, version, {"go.mod": text, f"{name}.go": source, **(files or {})})


def add_debian_module(server: PackageServer, source: Path, path: str, version: str, requires: str = "") -> None:
    """Serve a module as Debian's packages golang-*-dev have it in /usr/share/gocode/src, in this
    version; its go.mod requires what is given instead of what Debian left out.
    """
    folder = source / path
    files = {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    files.pop("go.sum", None)
    serve_module(server, path, version, {**files, "go.mod": f"module {path}\n\ngo 1.20\n{requires}".encode()})


def serve_module(server: PackageServer, path: str, version: str, files: Mapping[str, bytes]) -> None:
    """Serve these files as a version of a module."""
    at = f"/{escaped(path)}/@v"
    server.pages[f"{at}/list"] = server.pages.get(f"{at}/list", b"") + f"{version}\n".encode()
    server.pages[f"{at}/{escaped(version)}.info"] = json.dumps({"Version": version}).encode()
    server.pages[f"{at}/{escaped(version)}.mod"] = files["go.mod"]
    server.pages[f"{at}/{escaped(version)}.zip"] = pack({f"{path}@{version}/{name}": data for name, data in files.items()})
