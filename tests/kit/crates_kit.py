"""Crates for tests: small ones made here, and Debian's packaged ones packed again, in a sparse
index on loopback.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mayfly.imagegen.packages.crate_index import index_path
from tests.kit.package_kit import PackageServer, sha256, tgz


def add_crate(
    server: PackageServer, name: str, version: str, manifest: str = "", files: Mapping[str, bytes] | None = None, **fields: Any
) -> None:
    """Serve a version of a crate as an index at `/`: with what its Cargo.toml has besides, and
    other fields of its line.
    """
    text = f'[package]\nname = "{name}"\nversion = "{version}"\nedition = "2021"\nlicense = "MIT"\n{manifest}'
    source = f'pub const VERSION: &str = "{version}";\n'.encode()
    _serve(server, text, {"src/lib.rs": source, **(files or {}), "Cargo.toml": text.encode()}, **fields)


def add_debian_crates(server: PackageServer, registry: Path) -> None:
    """Serve all crates of a directory registry, as Debian's packages librust-*-dev have it in
    /usr/share/cargo/registry.
    """
    for folder in sorted(registry.iterdir()):
        files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        files.pop(".cargo-checksum.json", None)
        _serve(server, files["Cargo.toml"].decode(), files)


def _serve(server: PackageServer, manifest: str, files: Mapping[str, bytes], **fields: Any) -> None:
    described = tomllib.loads(manifest)
    name, version = described["package"]["name"], described["package"]["version"]
    data = tgz({f"{name}-{version}/{path}": text for path, text in files.items()})
    deps = _dependencies(described, None)
    for target, known in described.get("target", {}).items():
        deps += _dependencies(known, target)
    line = {"name": name, "vers": version, "deps": deps, "cksum": sha256(data), "features": described.get("features", {}), "yanked": False}
    if "rust-version" in described["package"]:
        line["rust_version"] = described["package"]["rust-version"]
    at = f"/{index_path(name)}"
    server.pages[at] = server.pages.get(at, b"") + json.dumps({**line, **fields}).encode() + b"\n"
    server.pages[f"/crates/{name}/{version}/download"] = data
    server.pages["/config.json"] = json.dumps({"dl": f"{server.address}/crates"}).encode()


def _dependencies(described: Mapping[str, Any], target: str | None) -> list[dict[str, Any]]:
    found = []
    for key, kind in (("dependencies", "normal"), ("build-dependencies", "build"), ("dev-dependencies", "dev")):
        for name, value in described.get(key, {}).items():
            need = value if isinstance(value, dict) else {"version": value}
            found.append(
                {
                    "name": name,
                    "req": need.get("version", "*"),
                    "features": need.get("features", []),
                    "optional": need.get("optional", False),
                    "default_features": need.get("default-features", True),
                    "target": target,
                    "kind": kind,
                    "package": need.get("package"),
                }
            )
    return found
